//! `weft get workloads`: pods with a sidecar and Workload objects, each with what the control plane knows of its sidecar.
use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, ListParams};
use serde::Serialize;

use super::{Fault, ListArgs, place, say};
use crate::kubernetes::client::{Cluster, list};
use crate::kubernetes::control_plane::{self, Knowledge, WorkloadStatus};
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::output::{Column, Table, span};
use crate::kubernetes::policy_kinds;

/// Arguments of `weft get workloads`.
#[derive(Args)]
pub(super) struct WorkloadArgs {
    /// Only those of these names.
    names: Vec<String>,
    /// Only those with these labels, such as `app=orders`.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    kind: &'static str,
    namespace: String,
    name: String,
    /// Whether all containers are ready. Weft does not know it of a Workload.
    ready: Option<bool>,
    containers: Option<String>,
    identity: Option<String>,
    sidecar_version: Option<String>,
    /// Whether its sidecar listens to a control plane. `None`: no control plane could be asked.
    connected: Option<bool>,
    configuration: Configuration,
    /// Seconds since 1970.
    certificate_expiry: Option<u64>,
    /// The control plane's replica that has its sidecar.
    replica: Option<String>,
    node: Option<String>,
    addresses: Vec<String>,
    problem: Option<String>,
}

/// How a sidecar's configuration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Configuration {
    /// The latest is confirmed.
    Current,
    /// The latest is not confirmed yet.
    Behind,
    /// The latest was refused.
    Refused,
    /// The sidecar is going.
    Draining,
    /// Nobody knows.
    Unknown,
}

/// The answer.
#[derive(Serialize)]
struct List {
    items: Vec<Row>,
    faults: Vec<Fault>,
}

pub(super) async fn run(args: &WorkloadArgs) -> anyhow::Result<ExitCode> {
    let cluster = args.list.cluster.connect().await?;
    let scope = args.list.scope(&cluster);
    let params = || match &args.selector {
        Some(selector) => ListParams::default().labels(selector),
        None => ListParams::default(),
    };
    let pods = cluster.api::<Pod>(scope.as_deref());
    let objects = policy_kinds::api(&cluster, &policy_kinds::WORKLOAD, scope.as_deref());
    let (pods, objects, (knowledge, mut faults)) =
        tokio::join!(list(&pods, params()), list(&objects, params()), ask_control_planes(&cluster));
    let pods: Vec<PodFacts> = pods.map_err(|fault| cluster.failed(fault))?.iter().map(PodFacts::of).collect();
    // A cluster without the kind has none of them.
    let objects = objects.unwrap_or_else(|fault| {
        faults.push(Fault { of: policy_kinds::WORKLOAD.name(), fault });
        Vec::new()
    });
    let mut items = rows(&pods, &objects, &knowledge);
    if !args.names.is_empty() {
        items.retain(|row| args.names.contains(&row.name));
    }
    let all = List { items, faults };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    say(&all.faults);
    let nothing = format!("No workloads of the mesh in {}.", place(scope.as_deref()));
    args.list.show(&all, &table(&all.items, scope.is_none(), now), &nothing)?;
    Ok(if all.items.is_empty() && !args.names.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn ask_control_planes(cluster: &Cluster) -> (Knowledge, Vec<Fault>) {
    let replicas = match control_plane::replicas(cluster).await {
        Ok(replicas) if replicas.is_empty() => {
            let fault = "there is none in this cluster: see weft check".to_owned();
            return (Knowledge::default(), vec![Fault { of: "control plane".to_owned(), fault }]);
        }
        Ok(replicas) => replicas,
        Err(fault) => return (Knowledge::default(), vec![Fault { of: "control plane".to_owned(), fault }]),
    };
    let knowledge = control_plane::knowledge(cluster, &replicas).await;
    let silent = knowledge.silent.iter();
    let faults = silent.map(|(replica, fault)| Fault { of: format!("pod/{replica}"), fault: fault.clone() }).collect();
    (knowledge, faults)
}

/// Pods with a sidecar and Workload objects, by namespace and name.
fn rows(pods: &[PodFacts], objects: &[DynamicObject], knowledge: &Knowledge) -> Vec<Row> {
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    // A mesh has one trust domain; objects do not repeat it.
    let domain = pods.iter().find_map(|pod| Some(pod.sidecar.as_ref()?.trust_domain.clone()));
    for object in objects {
        let spec = &object.data["spec"];
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let addresses = spec["addresses"].as_array().into_iter().flatten().filter_map(text).collect();
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let row = Row {
            kind: "Workload",
            addresses,
            identity: domain.as_ref().map(|domain| {
                let account = spec["serviceAccount"].as_str().unwrap_or("default");
                format!("spiffe://{domain}/ns/{namespace}/sa/{account}")
            }),
            ..row(namespace, name, knowledge)
        };
        rows.insert((row.namespace.clone(), row.name.clone()), row);
    }
    for pod in pods.iter().filter(|pod| pod.sidecar.is_some() && pod.alive) {
        let row = Row {
            ready: Some(pod.ready),
            containers: Some(format!("{}/{}", pod.containers.0, pod.containers.1)),
            identity: pod.identity().map(|identity| identity.to_string()),
            sidecar_version: pod.sidecar.as_ref().and_then(|sidecar| sidecar.version.clone()),
            node: pod.node.clone(),
            addresses: pod.addresses.clone(),
            ..row(pod.namespace.clone(), pod.name.clone(), knowledge)
        };
        rows.insert((row.namespace.clone(), row.name.clone()), row);
    }
    rows.into_values().collect()
}

/// What the control plane knows of a workload.
fn row(namespace: String, name: String, knowledge: &Knowledge) -> Row {
    let known = knowledge.workloads.get(&format!("{namespace}/{name}"));
    let status = known.map(|(status, _)| status);
    let asked = knowledge.answered > 0;
    Row {
        kind: "Pod",
        namespace,
        name,
        ready: None,
        containers: None,
        identity: None,
        sidecar_version: None,
        connected: match status {
            Some(status) => Some(status.connected),
            None => asked.then_some(false),
        },
        configuration: status.map_or(Configuration::Unknown, configuration),
        certificate_expiry: status.and_then(|status| status.certificate_expiry),
        replica: known.and_then(|(_, replica)| replica.clone()),
        node: None,
        addresses: Vec::new(),
        problem: match status {
            None => asked.then(|| "unknown to the control plane".to_owned()),
            Some(status) => problem(status),
        },
    }
}

fn configuration(status: &WorkloadStatus) -> Configuration {
    match (status.draining, &status.error, status.version, status.confirmed) {
        (true, ..) => Configuration::Draining,
        (_, Some(_), ..) => Configuration::Refused,
        (_, _, None, _) => Configuration::Unknown,
        (_, _, version, confirmed) if version == confirmed => Configuration::Current,
        _ => Configuration::Behind,
    }
}

fn problem(status: &WorkloadStatus) -> Option<String> {
    match (&status.error, status.connected, status.disconnected_for) {
        (Some(error), ..) => Some(error.clone()),
        (None, false, Some(seconds)) => Some(format!("away for {}", span(seconds))),
        (None, false, None) => Some("its sidecar never came".to_owned()),
        (None, true, _) => None,
    }
}

fn table(rows: &[Row], all_namespaces: bool, now: u64) -> Table {
    use Column::{Always, Wide};
    let namespace = if all_namespaces { Always("NAMESPACE") } else { Wide("NAMESPACE") };
    let mut table = Table::new(vec![
        namespace,
        Always("NAME"),
        Always("READY"),
        Always("SIDECAR"),
        Always("CONNECTED"),
        Always("CONFIGURATION"),
        Always("CERTIFICATE"),
        Always("IDENTITY"),
        Wide("KIND"),
        Wide("ADDRESSES"),
        Wide("NODE"),
        Wide("CONTROL PLANE"),
        Wide("PROBLEM"),
    ]);
    for row in rows {
        let configuration = match row.configuration {
            Configuration::Current => "current",
            Configuration::Behind => "behind",
            Configuration::Refused => "refused",
            Configuration::Draining => "draining",
            Configuration::Unknown => "",
        };
        let certificate = row.certificate_expiry.map(|expiry| match expiry.checked_sub(now) {
            Some(left) => span(left),
            None => format!("expired {}", span(now - expiry)),
        });
        let connected = row.connected.map(|connected| if connected { "yes" } else { "no" });
        table.row(vec![
            row.namespace.clone(),
            row.name.clone(),
            row.containers.clone().unwrap_or_default(),
            row.sidecar_version.clone().unwrap_or_default(),
            connected.unwrap_or_default().to_owned(),
            configuration.to_owned(),
            certificate.unwrap_or_default(),
            row.identity.clone().unwrap_or_default(),
            row.kind.to_owned(),
            row.addresses.join(","),
            row.node.clone().unwrap_or_default(),
            row.replica.clone().unwrap_or_default(),
            row.problem.clone().unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::objects::SidecarFacts;

    fn pod(name: &str) -> PodFacts {
        PodFacts {
            namespace: "shop".into(),
            name: name.into(),
            alive: true,
            ready: true,
            containers: (2, 2),
            service_account: "orders".into(),
            sidecar: Some(SidecarFacts {
                version: Some("0.1.0".into()),
                trust_domain: "cluster.local".into(),
                started: true,
            }),
            ..PodFacts::default()
        }
    }

    fn knowledge(rows: Vec<WorkloadStatus>) -> Knowledge {
        let workloads = rows.into_iter().map(|row| (row.name.clone(), (row, Some("weft-1".to_owned())))).collect();
        Knowledge { workloads, silent: vec![], answered: 1 }
    }

    #[test]
    fn pods_and_workload_objects_are_shown_with_what_the_control_plane_knows() {
        let status = |name: &str, version, confirmed| WorkloadStatus {
            name: format!("shop/{name}"),
            connected: true,
            version: Some(version),
            confirmed: Some(confirmed),
            certificate_expiry: Some(4_600),
            ..WorkloadStatus::default()
        };
        let object: DynamicObject = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "vm", "namespace": "shop"},
            "spec": {"addresses": ["10.1.0.1"], "serviceAccount": "legacy"},
        }))
        .expect("an object");
        let finished = PodFacts { alive: false, ..pod("job") };
        let outside = PodFacts { sidecar: None, ..pod("outside") };
        let known = knowledge(vec![status("orders-1", 7, 7), status("users-1", 7, 6)]);
        let rows = rows(&[pod("users-1"), pod("orders-1"), finished, outside], &[object], &known);
        assert_eq!(
            table(&rows, false, 1_000).render(false),
            "\
NAME       READY   SIDECAR   CONNECTED   CONFIGURATION   CERTIFICATE   IDENTITY
orders-1   2/2     0.1.0     yes         current         1h            spiffe://cluster.local/ns/shop/sa/orders
users-1    2/2     0.1.0     yes         behind          1h            spiffe://cluster.local/ns/shop/sa/orders
vm         -       -         no          -               -             spiffe://cluster.local/ns/shop/sa/legacy
"
        );
        assert_eq!(rows[2].problem.as_deref(), Some("unknown to the control plane"));
    }

    #[test]
    fn without_a_control_plane_nothing_is_claimed_of_a_connection() {
        let rows = rows(&[pod("orders-1")], &[], &Knowledge::default());
        assert_eq!((rows[0].connected, rows[0].problem.as_deref()), (None, None));
    }

    #[test]
    fn a_sidecar_that_is_not_well_says_why() {
        let status = |change: &dyn Fn(&mut WorkloadStatus)| {
            let mut status =
                WorkloadStatus { connected: true, version: Some(1), confirmed: Some(1), ..Default::default() };
            change(&mut status);
            (configuration(&status), problem(&status))
        };
        assert_eq!(status(&|_| {}), (Configuration::Current, None));
        assert_eq!(
            status(&|status| status.error = Some("cannot read".into())),
            (Configuration::Refused, Some("cannot read".into()))
        );
        assert_eq!(
            status(&|status| (status.connected, status.disconnected_for) = (false, Some(61))),
            (Configuration::Current, Some("away for 1m".into()))
        );
        assert_eq!(
            status(&|status| *status = WorkloadStatus::default()),
            (Configuration::Unknown, Some("its sidecar never came".into()))
        );
    }
}
