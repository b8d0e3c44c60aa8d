//! `weft get policies`: policies with their conditions; or, for a pod, those that its own sidecar has in force, beside
//! those that are declared for it.
use std::process::ExitCode;

use clap::Args;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, ListParams};
use serde::Serialize;
use serde_json::Value;
use weft_api::resource::NamespacedName;

use super::in_force::{self, InForce, SidecarConfig};
use super::{ListArgs, place};
use crate::kubernetes::client::{Cluster, find, list};
use crate::kubernetes::forward;
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::output::{Column, Table, machine, print, printable};
use crate::kubernetes::policy_kinds;

/// Arguments of `weft get policies`.
#[derive(Args)]
pub(super) struct PolicyArgs {
    /// A policy's name; or `pod/NAME`, `deploy/NAME`, `statefulset/NAME`, `daemonset/NAME`: those in force there.
    name: Option<String>,
    /// Those in force for this pod.
    #[arg(long, value_name = "NAME", conflicts_with = "name")]
    pod: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// A policy as the API server has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::kubernetes) struct PolicyFacts {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) spec: Value,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
}

impl PolicyFacts {
    pub(in crate::kubernetes) fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        Self {
            kind: text(&object["kind"]),
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            spec: object["spec"].clone(),
            conditions: conditions
                .map(|condition| Condition {
                    kind: text(&condition["type"]),
                    status: text(&condition["status"]),
                    message: text(&condition["message"]),
                })
                .collect(),
        }
    }

    /// Status and message of a condition; `None`: nobody has written it.
    pub(in crate::kubernetes) fn condition(&self, kind: &str) -> Option<(&str, &str)> {
        let condition = self.conditions.iter().find(|condition| condition.kind == kind)?;
        Some((&condition.status, &condition.message))
    }

    /// `AuthorizationPolicy shop/readers`.
    pub(in crate::kubernetes) fn reference(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    /// What it names as its target, in short.
    fn target(&self) -> String {
        let references = self.spec["targetRefs"].as_array().into_iter().flatten();
        let names: Vec<String> = references
            .map(|reference| {
                format!("{}/{}", reference["kind"].as_str().unwrap_or("?"), reference["name"].as_str().unwrap_or("?"))
            })
            .collect();
        let labels = self.spec["selector"]["matchLabels"].as_object();
        match (names.is_empty(), labels) {
            (false, _) => names.join(","),
            (true, Some(labels)) => labels
                .iter()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("?")))
                .collect::<Vec<_>>()
                .join(","),
            (true, None) => "the namespace".to_owned(),
        }
    }

    /// What it does, in short: action and mode, or its limits.
    fn effect(&self) -> String {
        if self.kind == policy_kinds::RATE_LIMIT.kind {
            let limits = self.spec["limits"].as_array().into_iter().flatten();
            let limits = limits.map(|limit| {
                format!(
                    "{} {}/{}",
                    limit["name"].as_str().unwrap_or("?"),
                    limit["requests"],
                    limit["window"].as_str().unwrap_or("?")
                )
            });
            return limits.collect::<Vec<_>>().join(", ");
        }
        let action = self.spec["action"].as_str().unwrap_or("?");
        match self.spec["mode"].as_str() {
            None | Some("Enforce") => action.to_owned(),
            Some(mode) => format!("{action} ({mode})"),
        }
    }
}

/// Both kinds of policies, in a namespace or in all.
///
/// # Errors
/// What to tell an operator.
pub(in crate::kubernetes) async fn all_policies(
    cluster: &Cluster,
    namespace: Option<&str>,
) -> Result<Vec<PolicyFacts>, String> {
    let mut all = Vec::new();
    for kind in [&policy_kinds::AUTHORIZATION, &policy_kinds::RATE_LIMIT] {
        let found = list(&policy_kinds::api(cluster, kind, namespace), ListParams::default()).await;
        let found: Vec<DynamicObject> = found.map_err(|fault| format!("{}: {fault}", kind.name()))?;
        for object in found {
            let mut value = serde_json::to_value(&object).map_err(|fault| fault.to_string())?;
            // Items of a list do not repeat it.
            value["kind"] = kind.kind.into();
            all.push(PolicyFacts::of(&value));
        }
    }
    Ok(all)
}

#[derive(Serialize)]
struct List<'a> {
    items: &'a [PolicyFacts],
}

pub(super) async fn run(args: &PolicyArgs) -> anyhow::Result<ExitCode> {
    let cluster = args.list.cluster.connect().await?;
    let name = args.name.as_deref();
    let workload = name.and_then(|name| name.split_once('/'));
    let pod = match (&args.pod, workload) {
        (Some(name), _) => Some(("pod", name.as_str())),
        (None, workload) => workload,
    };
    if let Some((kind, name)) = pod {
        anyhow::ensure!(!args.list.all_namespaces, "a pod is in one namespace: give -n NAMESPACE instead of -A");
        return show_in_force(args, &cluster, kind, name).await;
    }
    let scope = args.list.scope(&cluster);
    let mut all = all_policies(&cluster, scope.as_deref()).await.map_err(|fault| cluster.failed(fault))?;
    all.retain(|policy| name.is_none_or(|name| policy.name == name));
    all.sort_by(|one, other| (&one.namespace, &one.kind, &one.name).cmp(&(&other.namespace, &other.kind, &other.name)));
    let nothing = format!(
        "No policies{} in {}.",
        name.map(|name| format!(" named {name}")).unwrap_or_default(),
        place(scope.as_deref())
    );
    args.list.show(&List { items: &all }, &table(&all, scope.is_none()), &nothing)?;
    Ok(if all.is_empty() && name.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(policies: &[PolicyFacts], all_namespaces: bool) -> Table {
    use Column::{Always, Wide};
    let mut table = Table::new(vec![
        if all_namespaces { Always("NAMESPACE") } else { Wide("NAMESPACE") },
        Always("KIND"),
        Always("NAME"),
        Always("TARGET"),
        Always("EFFECT"),
        Always("ACCEPTED"),
        Always("RESOLVED"),
        Always("PROGRAMMED"),
        Wide("MESSAGE"),
    ]);
    for policy in policies {
        let status = |kind| policy.condition(kind).map(|(status, _)| status.to_owned()).unwrap_or_default();
        let messages = policy.conditions.iter().filter(|condition| condition.status != "True");
        let messages: Vec<&str> = messages.map(|condition| condition.message.as_str()).collect();
        table.row(vec![
            policy.namespace.clone(),
            policy.kind.clone(),
            policy.name.clone(),
            policy.target(),
            policy.effect(),
            status("Accepted"),
            status("ResolvedRefs"),
            status("Programmed"),
            messages.join("; "),
        ]);
    }
    table
}

/// What is in force for one pod.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodPolicies<'a> {
    namespace: &'a str,
    pod: &'a str,
    identity: &'a Option<String>,
    default_policy: &'a Option<String>,
    items: &'a [InForce],
}

async fn show_in_force(args: &PolicyArgs, cluster: &Cluster, kind: &str, name: &str) -> anyhow::Result<ExitCode> {
    let namespace = args.list.scope(cluster).unwrap_or_else(|| cluster.default_namespace.clone());
    let pod = pod_of(cluster, &namespace, kind, name).await?;
    anyhow::ensure!(
        pod.sidecar.is_some(),
        "pod {} has no sidecar: it is not in the mesh, and no policy protects it; see weft check",
        pod.key()
    );
    let services = cluster.api::<Service>(Some(&namespace));
    let (config, declared, services) = tokio::join!(
        forward::get_json::<SidecarConfig>(cluster, &namespace, &pod.name, "/config"),
        all_policies(cluster, Some(&namespace)),
        list(&services, ListParams::default()),
    );
    let config = config.map_err(|fault| anyhow::anyhow!("pod {}: {fault}", pod.key()))?;
    let declared = declared.map_err(|fault| cluster.failed(fault))?;
    let services: Vec<NamespacedName> = services
        .map_err(|fault| cluster.failed(fault))?
        .iter()
        .filter(|service| selects(service, &pod))
        .map(|service| NamespacedName::new(&namespace, service.name_any()))
        .collect();
    let items = in_force::compare(&config, &declared, &pod, &services);
    let answer = PodPolicies {
        namespace: &namespace,
        pod: &pod.name,
        identity: &config.identity(),
        default_policy: &config.default_policy(),
        items: &items,
    };
    if let Some(format) = args.list.output.and_then(super::ListFormat::machine) {
        print(&machine(&answer, format)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let unknown = || "unknown".to_owned();
    let head = format!(
        "Pod:             {}\nIdentity:        {}\nDefault policy:  {}\n",
        printable(&pod.key()),
        printable(&answer.identity.clone().unwrap_or_else(unknown)),
        printable(&answer.default_policy.clone().unwrap_or_else(unknown)),
    );
    let table = in_force::table(&items);
    let wide = args.list.output.is_some();
    let body = if table.is_empty() {
        "No policy applies: the default policy decides.\n".to_owned()
    } else {
        table.render(wide)
    };
    print(&format!("{head}\n{body}"))?;
    Ok(ExitCode::SUCCESS)
}

fn selects(service: &Service, pod: &PodFacts) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    })
}

/// The pod, or the first of those that a Deployment, StatefulSet or DaemonSet has, one that is ready before others.
pub(in crate::kubernetes) async fn pod_of(
    cluster: &Cluster,
    namespace: &str,
    kind: &str,
    name: &str,
) -> anyhow::Result<PodFacts> {
    let missing = || anyhow::anyhow!("there is no {kind} {name} in namespace {namespace}");
    let selector: Option<LabelSelector> = match kind {
        "pod" | "pods" | "po" => {
            let pod = find(&cluster.api::<Pod>(Some(namespace)), name).await.map_err(|fault| cluster.failed(fault))?;
            return pod.as_ref().map(PodFacts::of).ok_or_else(missing);
        }
        "deploy" | "deployment" | "deployments" => {
            let found =
                find(&cluster.api::<Deployment>(Some(namespace)), name).await.map_err(|fault| cluster.failed(fault))?;
            found.ok_or_else(missing)?.spec.map(|spec| spec.selector)
        }
        "sts" | "statefulset" | "statefulsets" => {
            let found = find(&cluster.api::<StatefulSet>(Some(namespace)), name)
                .await
                .map_err(|fault| cluster.failed(fault))?;
            found.ok_or_else(missing)?.spec.map(|spec| spec.selector)
        }
        "ds" | "daemonset" | "daemonsets" => {
            let found =
                find(&cluster.api::<DaemonSet>(Some(namespace)), name).await.map_err(|fault| cluster.failed(fault))?;
            found.ok_or_else(missing)?.spec.map(|spec| spec.selector)
        }
        other => {
            anyhow::bail!("'{other}' is nothing that has pods here; write pod/NAME, deploy/NAME, sts/NAME or ds/NAME")
        }
    };
    let labels = selector_text(&selector.unwrap_or_default());
    let params = ListParams::default().labels(&labels);
    let pods = list(&cluster.api::<Pod>(Some(namespace)), params).await.map_err(|fault| cluster.failed(fault))?;
    let mut pods: Vec<PodFacts> = pods.iter().map(PodFacts::of).filter(|pod| pod.alive).collect();
    pods.sort_by_key(|pod| (!pod.ready, pod.sidecar.is_none(), pod.name.clone()));
    pods.into_iter()
        .next()
        .ok_or_else(|| anyhow::anyhow!("{kind} {name} in namespace {namespace} has no pod that runs"))
}

/// A selector as the API's query takes it.
fn selector_text(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().filter_map(|expression| {
        let values = expression.values.as_deref().unwrap_or_default().join(",");
        let key = &expression.key;
        match expression.operator.as_str() {
            "In" => Some(format!("{key} in ({values})")),
            "NotIn" => Some(format!("{key} notin ({values})")),
            "Exists" => Some(key.clone()),
            "DoesNotExist" => Some(format!("!{key}")),
            _ => None,
        }
    });
    equal.chain(expressions).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies_are_shown_with_what_became_of_them() {
        let policies = [
            PolicyFacts::of(&json!({
                "kind": "AuthorizationPolicy", "metadata": {"name": "readers", "namespace": "shop"},
                "spec": {"action": "Allow", "mode": "Shadow", "targetRefs": [{"kind": "Service", "name": "inventory"}]},
                "status": {"conditions": [
                    {"type": "Accepted", "status": "True", "message": "in force"},
                    {"type": "Programmed", "status": "False", "message": "1 of 2 sidecars"},
                ]},
            })),
            PolicyFacts::of(&json!({
                "kind": "RateLimitPolicy", "metadata": {"name": "fair", "namespace": "shop"},
                "spec": {"selector": {"matchLabels": {"app": "users"}},
                         "limits": [{"name": "all", "requests": 100, "window": "1s"}]},
            })),
        ];
        assert_eq!(
            table(&policies, false).render(true),
            "\
NAMESPACE   KIND                  NAME      TARGET              EFFECT           ACCEPTED   RESOLVED   PROGRAMMED   MESSAGE
shop        AuthorizationPolicy   readers   Service/inventory   Allow (Shadow)   True       -          False        1 of 2 sidecars
shop        RateLimitPolicy       fair      app=users           all 100/1s       -          -          -            -
"
        );
    }

    #[test]
    fn a_policy_of_any_shape_is_shown_not_judged() {
        let policy = PolicyFacts::of(&json!({"kind": "AuthorizationPolicy", "spec": {"action": 7, "targetRefs": "x"}}));
        assert_eq!((policy.effect().as_str(), policy.target().as_str()), ("?", "the namespace"));
        assert_eq!(PolicyFacts::of(&json!(null)).reference(), " /");
    }

    #[test]
    fn a_selector_becomes_a_query() {
        let selector = serde_json::from_value(json!({
            "matchLabels": {"app": "a"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["x", "y"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        }));
        assert_eq!(selector_text(&selector.expect("a selector")), "app=a,tier in (x,y),!old");
    }
}
