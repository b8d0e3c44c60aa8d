//! `weft get routes`: the Gateway API's routes to Services, and how they fare there.
use std::process::ExitCode;

use clap::Args;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use serde::Serialize;
use serde_json::Value;

use super::{ListArgs, place};
use crate::kubernetes::client::{Cluster, list};
use crate::kubernetes::output::{Column, Table};

/// Kinds with their plurals.
const KINDS: [(&str, &str); 2] = [("HTTPRoute", "httproutes"), ("GRPCRoute", "grpcroutes")];
const GROUP: &str = "gateway.networking.k8s.io";
/// Who writes what is shown.
const CONTROLLER: &str = "weft.dev/mesh";

/// Arguments of `weft get routes`.
#[derive(Args)]
pub(super) struct RouteArgs {
    /// A route's name.
    name: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// A route at one Service.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    kind: &'static str,
    namespace: String,
    name: String,
    /// `namespace/name`, with `:port` where only one is meant.
    service: String,
    /// Of the callers for whom it holds; `None`: of all.
    callers: Option<String>,
    rules: usize,
    /// Status of each condition; empty: nobody has written it.
    accepted: String,
    resolved: String,
    /// What is not as it should be.
    message: String,
}

#[derive(Serialize)]
struct List<'a> {
    items: &'a [Row],
}

pub(super) async fn run(args: &RouteArgs) -> anyhow::Result<ExitCode> {
    let cluster = args.list.cluster.connect().await?;
    let (scope, name) = (args.list.scope(&cluster), args.name.as_deref());
    let groups = cluster.client.list_api_groups().await.map_err(|fault| cluster.failed(fault.to_string()))?;
    anyhow::ensure!(
        groups.groups.iter().any(|group| group.name == GROUP),
        "this cluster does not have the Gateway API; see the chart's README, Routing"
    );
    let mut rows = Vec::new();
    for (kind, plural) in KINDS {
        let found = list(&api(&cluster, kind, plural, scope.as_deref()), ListParams::default()).await;
        for route in found.map_err(|fault| cluster.failed(format!("{plural}.{GROUP}: {fault}")))? {
            let object = serde_json::to_value(&route)?;
            rows.extend(of(kind, &object).into_iter().filter(|row| name.is_none_or(|name| row.name == name)));
        }
    }
    rows.sort_by(|one, other| {
        (&one.namespace, &one.name, &one.service).cmp(&(&other.namespace, &other.name, &other.service))
    });
    let named = name.map(|name| format!(" named {name}")).unwrap_or_default();
    let nothing = format!("No routes to Services{named} in {}.", place(scope.as_deref()));
    args.list.show(&List { items: &rows }, &table(&rows, scope.is_none()), &nothing)?;
    Ok(if rows.is_empty() && name.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn api(cluster: &Cluster, kind: &str, plural: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", kind), plural);
    match namespace {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    }
}

/// A row for each Service that the route is attached to.
fn of(kind: &'static str, object: &Value) -> Vec<Row> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
    let rules = object["spec"]["rules"].as_array().map_or(0, Vec::len);
    let entries = object["status"]["parents"].as_array().into_iter().flatten();
    let ours: Vec<&Value> = entries.filter(|entry| entry["controllerName"] == CONTROLLER).collect();
    let parents = object["spec"]["parentRefs"].as_array().into_iter().flatten();
    let services = parents.filter(|parent| parent["kind"] == "Service");
    let row = |parent: &Value| {
        let home = parent["namespace"].as_str().unwrap_or(&namespace);
        let port = match (parent["port"].as_u64(), parent["sectionName"].as_str()) {
            (Some(port), _) => format!(":{port}"),
            (None, Some(section)) => format!(":{section}"),
            (None, None) => String::new(),
        };
        let entry = ours.iter().find(|entry| entry["parentRef"] == *parent);
        let conditions = || entry.into_iter().flat_map(|entry| entry["conditions"].as_array()).flatten();
        let status = |type_: &str| {
            conditions()
                .find(|condition| condition["type"] == type_)
                .map_or_else(String::new, |found| text(&found["status"]))
        };
        // Of a condition that is there only when something is wrong, `True` is the bad news.
        let is_bad = |condition: &&Value| (condition["status"] == "True") == (condition["type"] == "PartiallyInvalid");
        let bad: Vec<String> = conditions().filter(is_bad).map(|condition| text(&condition["message"])).collect();
        Row {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
            service: format!("{home}/{}{port}", parent["name"].as_str().unwrap_or("?")),
            callers: (home != namespace).then(|| namespace.clone()),
            rules,
            accepted: status("Accepted"),
            resolved: status("ResolvedRefs"),
            message: bad.join("; "),
        }
    };
    services.map(row).collect()
}

fn table(rows: &[Row], all_namespaces: bool) -> Table {
    use Column::{Always, Wide};
    let mut table = Table::new(vec![
        if all_namespaces { Always("NAMESPACE") } else { Wide("NAMESPACE") },
        Always("KIND"),
        Always("NAME"),
        Always("SERVICE"),
        Always("CALLERS"),
        Always("RULES"),
        Always("ACCEPTED"),
        Always("RESOLVED"),
        Wide("MESSAGE"),
    ]);
    for row in rows {
        table.row(vec![
            row.namespace.clone(),
            row.kind.to_owned(),
            row.name.clone(),
            row.service.clone(),
            row.callers.as_ref().map_or_else(|| "all".to_owned(), |namespace| format!("of {namespace}")),
            row.rules.to_string(),
            row.accepted.clone(),
            row.resolved.clone(),
            row.message.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_route_has_a_row_for_each_service_with_what_weft_says_of_it() {
        let whole = json!({"group": "", "kind": "Service", "name": "stock"});
        let far = json!({"group": "", "kind": "Service", "name": "far", "namespace": "attic", "port": 80});
        let condition =
            |type_: &str, status: &str| json!({"type": type_, "status": status, "message": format!("{type_} it is")});
        let object = json!({
            "metadata": {"name": "r", "namespace": "shop"},
            "spec": {"parentRefs": [whole, {"name": "edge", "kind": "Gateway"}, far], "rules": [{}, {}]},
            "status": {"parents": [
                {"controllerName": "example.org/other", "parentRef": whole, "conditions": [condition("Accepted", "False")]},
                {"controllerName": CONTROLLER, "parentRef": whole, "conditions": [
                    condition("Accepted", "True"), condition("ResolvedRefs", "False"), condition("PartiallyInvalid", "True"),
                ]},
            ]},
        });
        let rows = of("HTTPRoute", &object);
        let shown = table(&rows, true).render(true);
        let lines: Vec<String> =
            shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines[1..],
            [
                "shop HTTPRoute r shop/stock all 2 True False ResolvedRefs it is; PartiallyInvalid it is",
                "shop HTTPRoute r attic/far:80 of shop 2 - - -",
            ]
        );
    }
}
