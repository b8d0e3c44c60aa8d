//! Which other replicas of this control plane there are: the endpoints of its Service, those that are not ready among them
//! (one that is stopping or behind may have sidecars all the same).
use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Cluster;
use crate::replicas::ask::Replica;

/// How often they are looked up.
const INTERVAL: Duration = Duration::from_secs(5);
/// A question that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// The gRPC port of the control plane, by name or else by number.
const PORT_NAME: &str = "grpc";
const PORT: i32 = 4280;

/// Looks them up until `stop`. While the API server is away, those of before count.
pub async fn follow(cluster: Cluster, others: watch::Sender<Vec<Replica>>, stop: CancellationToken) {
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    // Any state of the cluster will do, so the API server need not ask its store.
    let of_service =
        ListParams::default().labels(&format!("kubernetes.io/service-name={}", cluster.service)).match_any();
    loop {
        let listed = tokio::time::timeout(PATIENCE, slices.list(&of_service));
        match stop.run_until_cancelled(listed).await {
            None => return,
            Some(Ok(Ok(slices))) => {
                let found = replicas(&slices.items, &cluster.pod);
                others.send_if_modified(|known| {
                    let changed = *known != found;
                    *known = found;
                    changed
                });
            }
            Some(Ok(Err(fault))) => tracing::debug!(%fault, "cannot look up the other replicas"),
            Some(Err(_)) => tracing::debug!("cannot look up the other replicas: no answer"),
        }
        if stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
            return;
        }
    }
}

/// The replicas that `slices` name, without the pod `me`; each once, though it may have an address of either family.
fn replicas(slices: &[EndpointSlice], me: &str) -> Vec<Replica> {
    let mut found: Vec<Replica> = Vec::new();
    let mut slices: Vec<&EndpointSlice> = slices.iter().collect();
    // Whoever listens for IPv6 listens for IPv4 too, but not the other way round.
    slices.sort_by_key(|slice| &slice.address_type);
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let ports: Vec<(Option<&str>, i32)> =
            ports.filter_map(|port| Some((port.name.as_deref(), port.port?))).collect();
        let named = ports.iter().find(|(name, _)| *name == Some(PORT_NAME));
        let Some((_, port)) = named.or_else(|| ports.iter().find(|(_, number)| *number == PORT)) else { continue };
        let Ok(port) = u16::try_from(*port) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let pod = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            let address = endpoint.addresses.first().and_then(|address| address.parse().ok());
            if let (Some(name), Some(address)) = (pod, address)
                && name != me
                && !found.iter().any(|replica| replica.name == name)
            {
                found.push(Replica { name, address: SocketAddr::new(address, port) });
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(port: Value, endpoints: &[(&str, &str)]) -> EndpointSlice {
        let v6 = endpoints.iter().any(|(_, address)| address.contains(':'));
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(pod, address)| json!({"addresses": [address], "targetRef": {"kind": "Pod", "name": pod}}))
            .collect();
        let slice = json!({"addressType": if v6 { "IPv6" } else { "IPv4" }, "metadata": {}, "ports": [port], "endpoints": endpoints});
        serde_json::from_value(slice).expect("a slice")
    }

    #[test]
    fn the_others_are_found_once_each_and_never_oneself() {
        let grpc = json!({"name": "grpc", "port": 4999});
        for (case, slices, expected) in [
            ("nobody", vec![], ""),
            ("only oneself", vec![slice(grpc.clone(), &[("me", "10.0.0.1")])], ""),
            ("one more", vec![slice(grpc.clone(), &[("me", "10.0.0.1"), ("b", "10.0.0.2")])], "b 10.0.0.2:4999"),
            (
                "both families",
                vec![slice(grpc.clone(), &[("b", "fd00::2")]), slice(grpc.clone(), &[("b", "10.0.0.2")])],
                "b 10.0.0.2:4999",
            ),
            ("a port by its number", vec![slice(json!({"port": 4280}), &[("b", "fd00::2")])], "b [fd00::2]:4280"),
            ("another port", vec![slice(json!({"name": "webhook", "port": 4443}), &[("b", "10.0.0.2")])], ""),
            ("no address", vec![slice(grpc, &[("b", "x")])], ""),
        ] {
            let found: Vec<String> =
                replicas(&slices, "me").iter().map(|found| format!("{} {}", found.name, found.address)).collect();
            assert_eq!(found.join(","), expected, "{case}");
        }
    }
}
