//! A pod as a workload of the mesh. Pure.
//!
//! It is meshed when it has the sidecar's container, whoever put it there: what counts is that somebody answers by mTLS.
use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};
use weft_api::resource::{NamespacedName, Workload, WorkloadPort};
use weft_api::workload::ProtocolHint;

/// The sidecar's container.
const SIDECAR: &str = "weft-proxy";
/// Annotation of a pod: ports of it that speak no HTTP, such as `3306,5432`.
const OPAQUE_PORTS: &str = "weft.dev/opaque-ports";

/// The workload that `pod` is. `None`: it has ended (its address may be another's already), or has no name.
///
/// A pod in its node's network is one without sidecar: its address is the node's, so no rule could tell its traffic from
/// the node's.
pub(super) fn workload(pod: &Pod) -> Option<Workload> {
    let name = NamespacedName::new(pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    let host_network = spec.host_network.unwrap_or_default();
    Some(Workload {
        name,
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: BTreeMap::new(),
        addresses: addresses(pod),
        service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
        ports: ports(pod),
        node: spec.node_name.clone(),
        mesh: !host_network && containers(pod).any(|container| container.name == SIDECAR),
    })
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str()).chain(status.pod_ip.as_deref());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in all.filter_map(|text| text.parse::<IpAddr>().ok()) {
        let address = address.to_canonical();
        if !addresses.contains(&address) && !address.is_unspecified() && !address.is_multicast() {
            addresses.push(address);
        }
    }
    addresses
}

/// Native sidecars are init containers; a plain one stands among the others.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|spec| &spec.containers);
    containers.chain(spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten()))
}

/// The TCP ports that its containers declare, and those that the annotation calls opaque.
fn ports(pod: &Pod) -> Vec<WorkloadPort> {
    let mut ports: BTreeMap<u16, WorkloadPort> = BTreeMap::new();
    let declared = containers(pod).filter(|container| container.name != SIDECAR).flat_map(|c| c.ports.iter().flatten());
    for port in declared.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP") {
        let Ok(number @ 1..) = u16::try_from(port.container_port) else { continue };
        // The first container that declares a number gives it its name, as a Service's `targetPort` finds it.
        ports.entry(number).or_insert_with(|| WorkloadPort::declared(port.name.as_deref(), number));
    }
    let opaque = pod.metadata.annotations.iter().flatten().find(|(key, _)| *key == OPAQUE_PORTS);
    // What is no number was refused by the injector; here it must not take the rest down with it.
    for number in opaque.iter().flat_map(|(_, list)| list.split(',')).filter_map(|text| text.trim().parse().ok()) {
        let port = ports.entry(number).or_insert_with(|| WorkloadPort::declared(None, number));
        port.protocol = ProtocolHint::Opaque;
    }
    ports.into_values().filter(|port| port.port > 0).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, status: Value, annotations: Value) -> Pod {
        let metadata =
            json!({"name": "web-1", "namespace": "shop", "labels": {"app": "web"}, "annotations": annotations});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).expect("a pod")
    }

    fn containers(extra: Value) -> Value {
        let mut spec = json!({
            "containers": [{"name": "web", "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"containerPort": 3306},
            ]}],
            "initContainers": [{"name": "weft-proxy", "restartPolicy": "Always", "ports": [{"containerPort": 4291}]}],
            "serviceAccountName": "web",
        });
        spec.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        spec
    }

    #[test]
    fn a_pod_is_a_workload_with_its_addresses_account_and_ports() {
        let status =
            json!({"phase": "Running", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]});
        let found = workload(&pod(containers(json!({})), status, json!({"weft.dev/opaque-ports": "3306, 9000"})));
        let found = found.expect("a workload");
        assert!(found.mesh);
        assert_eq!(found.service_account, "web");
        assert_eq!(found.addresses, ["10.1.0.5", "fd00::5"].map(|text| text.parse::<IpAddr>().expect("valid")));
        let ports: Vec<_> = found.ports.iter().map(|port| (port.port, port.name.as_deref(), port.protocol)).collect();
        assert_eq!(
            ports,
            [
                (3306, None, ProtocolHint::Opaque),
                (8080, Some("http"), ProtocolHint::Http1),
                (9000, None, ProtocolHint::Opaque)
            ]
        );
    }

    #[test]
    fn only_a_running_sidecar_of_the_pods_own_network_makes_it_meshed() {
        let plain = json!({"initContainers": []});
        let beside = json!({"initContainers": [], "containers": [{"name": "web"}, {"name": "weft-proxy"}]});
        for (case, extra, phase, expected) in [
            ("native sidecar", json!({}), "Running", Some(true)),
            ("not scheduled yet", json!({}), "Pending", Some(true)),
            ("plain sidecar", beside, "Running", Some(true)),
            ("no sidecar", plain, "Running", Some(false)),
            ("host network", json!({"hostNetwork": true}), "Running", Some(false)),
            ("a Job's pod that is done", json!({}), "Succeeded", None),
            ("evicted", json!({}), "Failed", None),
        ] {
            let found = workload(&pod(containers(extra), json!({"phase": phase}), json!({})));
            assert_eq!(found.map(|workload| workload.mesh), expected, "{case}");
        }
    }
}
