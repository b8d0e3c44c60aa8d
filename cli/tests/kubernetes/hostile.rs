//! Objects that people with rights in one namespace may write, on purpose or by mistake, with no webhook to stop them:
//! each is refused by the API server, or named by the control plane, or harmless. None stops the others.
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, ControlPlane, PodSpec, Sidecar, eventually, get, meshed};
use crate::mesh::endpoints;

pub const TESTS: &[Test] = &[
    ("no_object_of_one_namespace_stops_the_others", no_object_of_one_namespace_stops_the_others),
    (
        "a_slice_of_another_namespace_does_not_have_a_pod_called_in_the_clear",
        a_slice_of_another_namespace_does_not_have_a_pod_called_in_the_clear,
    ),
    ("each_field_of_the_wrong_kind_is_named", each_field_of_the_wrong_kind_is_named),
];

/// What becomes of an object.
enum Fate {
    /// The API server refuses it.
    Refused,
    /// The control plane names it, should this version of the API server let it in.
    Named(&'static str),
    /// It is let in, and all that is in it is used or passed over.
    Harmless,
}
use Fate::{Harmless, Named, Refused};

/// Namespace `shop` with orders and stock, whose sidecars must be told whatever happens in `mess`; `mess` has a pod.
fn shop() -> Result<(Cluster, ControlPlane, Sidecar)> {
    let cluster = Cluster::start()?;
    cluster.namespace("shop", json!({}))?;
    cluster.namespace("mess", json!({}))?;
    cluster.pod(&meshed("orders-1", "orders", "10.1.0.1"))?;
    cluster.pod(&meshed("stock-1", "stock", "10.1.0.2"))?;
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-1", "10.1.0.2", true)])?;
    cluster.pod(&PodSpec { namespace: "mess", meshed: false, ..meshed("plain", "plain", "10.1.9.1") })?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let orders = cluster.sidecar(&meshed("orders-1", "orders", "10.1.0.1"), &control_plane)?;
    orders.until("orders knows where stock is", |config| endpoints(config, "shop/stock").len() == 1)?;
    Ok((cluster, control_plane, orders))
}

fn object(api_version: &str, kind: &str, name: &str, annotations: Value, rest: Value) -> Value {
    let mut object = json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"name": name, "namespace": "mess", "annotations": annotations},
    });
    object.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
    object
}

fn own(kind: &str, name: &str, spec: Value) -> Value {
    object("policy.weft.dev/v1alpha1", kind, name, json!({}), json!({ "spec": spec }))
}

fn pod(name: &str, annotations: Value, ports: Vec<Value>) -> Value {
    let spec = json!({
        "containers": [{"name": "app", "image": "app:test", "ports": ports}],
        "initContainers": [{"name": "weft-proxy", "image": "weft-proxy:test", "restartPolicy": "Always"}],
    });
    object("v1", "Pod", name, annotations, json!({ "spec": spec }))
}

fn service(name: &str, annotations: Value, address: Option<&str>, ports: u16) -> Value {
    let ports: Vec<Value> = (1..=ports).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let mut spec = json!({"selector": {"app": name}, "ports": ports});
    if let Some(address) = address {
        spec["clusterIP"] = address.into();
    }
    object("v1", "Service", name, annotations, json!({ "spec": spec }))
}

fn slice(service: &str, kind: &str, ports: u16, endpoints: Vec<Value>) -> Value {
    let ports: Vec<Value> = (1..=ports).map(|port| json!({"name": format!("p{port}"), "port": 8080})).collect();
    let mut slice = object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        &format!("{service}-{}", kind.to_lowercase()),
        json!({}),
        json!({
            "addressType": kind, "ports": ports, "endpoints": endpoints,
        }),
    );
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": service});
    slice
}

fn objects() -> Vec<(&'static str, Value, Fate)> {
    let long = "x".repeat(200_000);
    let numbers: Vec<String> = (1..=3_000).map(|port: u16| port.to_string()).collect();
    let declared = (1..=1_000).map(|port: u16| json!({"containerPort": port, "name": format!("p{port}")})).collect();
    let rules = |count: usize| json!({"action": "Allow", "rules": vec![json!({"to": [{"paths": ["/a"]}]}); count]});
    let many = (0..1_000_u32).map(|last| json!({"addresses": [Ipv4Addr::from(0x0a20_0001 + last).to_string()]}));
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "garbage", "annotations": {
            "weft.dev/default-policy": "запретить🔥\u{202e}", "weft.dev/inject": "\n", "weft.dev/no-such": long.clone(),
        }},
    });
    let bodies: Vec<Value> = (1..=65).map(|last| format!("10.3.0.{last}").into()).collect();
    vec![
        ("a namespace whose annotations are garbage", namespace, Named("Namespace garbage")),
        ("a giant annotation of a pod", pod("giant", json!({"weft.dev/log-level": long.clone()}), vec![]), Harmless),
        ("a giant annotation of a Service", service("giant", json!({"note🔥": long}), None, 1), Refused),
        ("1,000 ports of a pod", pod("ports", json!({}), declared), Harmless),
        ("3,000 opaque ports", pod("opaque", json!({"weft.dev/opaque-ports": numbers.join(",")}), vec![]), Harmless),
        (
            "opaque ports that are none",
            pod("odd", json!({"weft.dev/opaque-ports": "a,-1,0,99999999,🔥,"}), vec![]),
            Harmless,
        ),
        ("300 ports of a Service", service("wide", json!({}), Some("10.96.9.1"), 300), Harmless),
        ("its 100,000 endpoints", slice("wide", "IPv4", 100, many.collect()), Harmless),
        ("more ports than sidecars take", service("wider", json!({}), None, 1_500), Named("Service mess/wider")),
        (
            "protocols that are none",
            service("odd", json!({"weft.dev/port-protocols": "{{🔥"}), None, 1),
            Named("Service mess/odd"),
        ),
        ("the address of another Service", service("thief", json!({}), Some("10.96.1.1"), 1), Refused),
        ("a slice of no address", slice("wide2", "IPv4", 1, vec![json!({"addresses": ["10.0.0.300"]})]), Refused),
        (
            "a slice of many hosts' address",
            slice("wide3", "IPv4", 1, vec![json!({"addresses": ["239.1.2.3"]}), json!({"addresses": ["10.1.9.1"]})]),
            Named("EndpointSlice mess/wide3-ipv4"),
        ),
        (
            "the same of IPv6",
            slice("wide3", "IPv6", 1, vec![json!({"addresses": ["ff05::1"]})]),
            Named("EndpointSlice mess/wide3-ipv6"),
        ),
        ("a slice of names", slice("wide3", "FQDN", 1, vec![json!({"addresses": ["stock.shop"]})]), Harmless),
        (
            "a Workload with a pod's name",
            own("Workload", "plain", json!({"addresses": ["10.3.0.1"]})),
            Named("Workload mess/plain"),
        ),
        (
            "a Workload at no address",
            own("Workload", "none", json!({"addresses": ["10.0.0.300"]})),
            Named("Workload mess/none"),
        ),
        (
            "a Workload at many hosts' address",
            own("Workload", "all", json!({"addresses": ["239.0.0.1"]})),
            Named("Workload mess/all"),
        ),
        ("a Workload at too many addresses", own("Workload", "many", json!({"addresses": bodies})), Refused),
        ("1,000 rules", own("AuthorizationPolicy", "rules", rules(1_000)), Harmless),
        ("more rules than a list may have", own("AuthorizationPolicy", "more", rules(1_001)), Refused),
        (
            "an unknown field",
            own("AuthorizationPolicy", "typo", json!({"action": "Allow", "rulez": []})),
            Named("AuthorizationPolicy mess/typo"),
        ),
        (
            "a limit of nothing",
            own("RateLimitPolicy", "none", json!({"limits": [{"name": "a", "requests": 0, "window": "0s"}]})),
            Named("RateLimitPolicy mess/none"),
        ),
    ]
}

fn no_object_of_one_namespace_stops_the_others() -> Result<()> {
    let (cluster, control_plane, orders) = shop()?;
    let mut named = Vec::new();
    for (case, object, fate) in objects() {
        match (cluster.api.apply(&object.to_string()), fate) {
            (Err(_), Refused) | (Ok(_), Harmless) => {}
            (Ok(_), Named(resource)) => named.push((case, resource)),
            // What one version of the API server lets in, another refuses.
            (Err(fault), Named(_)) => ensure!(fault.to_string().contains("nvalid"), "{case}: {fault:#}"),
            (Ok(_), Refused) => anyhow::bail!("{case}: it was let in"),
            (Err(fault), Harmless) => return Err(fault).context(case),
        }
    }
    for address in ["239.0.0.1", "::", "not-an-address", "10.1.0.2"] {
        let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}}).to_string();
        let patch = ["patch", "pod", "ports", "-n", "mess", "--subresource=status", "--type=merge", "-p", &status];
        // Only a kubelet may write it, and the API server refuses most.
        let _ = cluster.api.kubectl(&patch);
    }
    for (case, resource) in named {
        eventually(&format!("{case} is named as {resource}"), || {
            Ok(get(control_plane.admin, "/config/errors")?.1.contains(&format!("\"{resource}\"")).then_some(()))
        })?;
    }
    told_all_the_same(&cluster, &control_plane, &orders)
}

/// The other namespace's sidecars are told of a change, one that starts now is told all, and nothing has panicked.
fn told_all_the_same(cluster: &Cluster, control_plane: &ControlPlane, orders: &Sidecar) -> Result<()> {
    let stock = meshed("stock-2", "stock", "10.1.0.3");
    cluster.pod(&stock)?;
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-2", "10.1.0.3", true)])?;
    let id = Some("spiffe://cluster.local/ns/shop/sa/stock".to_owned());
    let moved = |config: &Value| endpoints(config, "shop/stock") == [("10.1.0.3:8080".to_owned(), id.clone())];
    orders.until("a later change is told", moved)?;
    let started = cluster.sidecar(&stock, control_plane)?;
    started.until("who starts later is told all", moved)?;
    for process in [&control_plane.process, &orders.process, &started.process] {
        ensure!(!process.text().contains("panicked"), "{}", process.tail());
        ensure!(process.runs(), "{}", process.tail());
    }
    Ok(())
}

fn a_slice_of_another_namespace_does_not_have_a_pod_called_in_the_clear() -> Result<()> {
    let (cluster, control_plane, orders) = shop()?;
    let target = |namespace: &str, name: &str| json!({"kind": "Pod", "namespace": namespace, "name": name});
    let victim = || ("10.1.0.2:8080".to_owned(), Some("spiffe://cluster.local/ns/shop/sa/stock".to_owned()));
    let table = [
        ("trap-1", json!({"addresses": ["10.1.0.2"], "targetRef": target("mess", "plain")}), vec![victim()]),
        ("trap-2", json!({"addresses": ["10.1.0.2"]}), vec![victim()]),
        // Of another namespace: in its own there is none of that name.
        ("trap-3", json!({"addresses": ["10.1.0.2"], "targetRef": target("shop", "stock-1")}), vec![]),
        (
            "trap-4",
            json!({"addresses": ["10.1.9.1"], "targetRef": target("mess", "plain")}),
            vec![("10.1.9.1:8080".to_owned(), None)],
        ),
        ("trap-5", json!({"addresses": ["10.1.0.9"]}), vec![("10.1.0.9:8080".to_owned(), None)]),
    ];
    for (name, endpoint, expected) in &table {
        cluster.api.apply(&service(name, json!({}), None, 1).to_string())?;
        cluster.api.apply(&slice(name, "IPv4", 1, vec![endpoint.clone()]).to_string())?;
        let service = format!("mess/{name}");
        orders
            .until(name, |config| config.to_string().contains(&service) && endpoints(config, &service) == *expected)?;
    }
    // Nobody in its own namespace changes: somebody of the mesh gets the address.
    let late = PodSpec { namespace: "shop", ..meshed("late-1", "late", "10.1.0.9") };
    cluster.pod(&late)?;
    let id = Some("spiffe://cluster.local/ns/shop/sa/late".to_owned());
    orders.until("whoever has the address is called by mTLS", |config| {
        endpoints(config, "mess/trap-5") == [("10.1.0.9:8080".to_owned(), id.clone())]
    })?;
    told_all_the_same(&cluster, &control_plane, &orders)
}

/// Each of Weft's own kinds with every field that it has.
fn whole() -> [(&'static str, &'static str, Value); 3] {
    let rules = json!([{
        "from": [
            {"serviceAccounts": ["orders"], "namespaces": ["shop"], "identities": ["spiffe://cluster.local/ns/shop/sa/*"]},
            {"ipBlocks": ["10.0.0.0/8"]},
        ],
        "to": [{"methods": ["GET"], "paths": ["/a"], "hosts": ["a.test"], "ports": [8080]}],
        "when": [{"header": "x-a", "in": ["b"]}],
    }]);
    let targets = json!([{"group": "", "kind": "Service", "name": "stock"}]);
    let limit = json!({"name": "a", "requests": 10, "window": "1s", "burst": 5, "per": "Client", "scope": "Pod"});
    let ports = json!([{"name": "http", "port": 80, "appProtocol": "http"}]);
    [
        (
            "AuthorizationPolicy",
            "authorizationpolicies",
            json!({"targetRefs": targets, "action": "Allow", "mode": "Enforce", "rules": rules}),
        ),
        ("RateLimitPolicy", "ratelimitpolicies", json!({"selector": {"matchLabels": {"app": "a"}}, "limits": [limit]})),
        (
            "Workload",
            "workloads",
            json!({"addresses": ["10.7.0.1"], "serviceAccount": "a", "ports": ports, "mesh": true}),
        ),
    ]
}

/// `value` with one thing wrong: each field and item replaced by what it cannot be, and an unknown field in each object.
fn broken(value: &Value) -> Vec<Value> {
    let wrong = if value.is_string() { json!({"🔥": 7}) } else { json!("🔥") };
    let mut all = vec![wrong];
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                all.extend(broken(field).into_iter().map(|broken| {
                    let mut copy = value.clone();
                    copy[name] = broken;
                    copy
                }));
            }
            let mut more = value.clone();
            more["zzz"] = json!(1);
            all.push(more);
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                all.extend(broken(item).into_iter().map(|broken| {
                    let mut copy = value.clone();
                    copy[index] = broken;
                    copy
                }));
            }
        }
        _ => {}
    }
    all
}

fn each_field_of_the_wrong_kind_is_named() -> Result<()> {
    let (cluster, control_plane, orders) = shop()?;
    // As if the cluster had the kinds of another version: nothing is refused before the control plane sees it.
    let open = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let patch = json!([{"op": "replace", "path": "/spec/versions/0/schema", "value": open}]).to_string();
    let mut items = Vec::new();
    for (kind, plural, spec) in whole() {
        cluster.api.kubectl(&["patch", "crd", &format!("{plural}.policy.weft.dev"), "--type=json", "-p", &patch])?;
        items.push(own(kind, "whole", spec.clone()));
        let broken = broken(&spec).into_iter().enumerate();
        items.extend(broken.map(|(index, spec)| own(kind, &format!("broken-{index}"), spec)));
    }
    let names: Vec<String> = items
        .iter()
        .map(|item| {
            format!(
                "{} mess/{}",
                item["kind"].as_str().unwrap_or_default(),
                item["metadata"]["name"].as_str().unwrap_or_default()
            )
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    eventually("the API server takes the new schemas", || {
        Ok(cluster.api.apply(&list.to_string()).map_err(|fault| anyhow::anyhow!("{fault}")).ok())
    })?;
    let (whole, broken): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with("/whole"));
    eventually("each is named", || {
        let errors = get(control_plane.admin, "/config/errors")?.1;
        let missing: Vec<_> = broken.iter().filter(|name| !errors.contains(&format!("\"{name}\""))).collect();
        ensure!(missing.is_empty(), "{missing:?}");
        ensure!(!whole.iter().any(|name| errors.contains(&format!("\"{name}\""))), "{errors}");
        Ok(Some(()))
    })?;
    eventually("each is told so in its status", || {
        let kinds = "authorizationpolicies,ratelimitpolicies,workloads";
        let all: Value = serde_json::from_str(&cluster.api.kubectl(&["get", kinds, "-n", "mess", "-o", "json"])?)?;
        for object in all["items"].as_array().into_iter().flatten() {
            let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            let accepted =
                conditions.into_iter().find(|one| one["type"] == "Accepted").map(|one| one["status"].clone());
            let expected = if object["metadata"]["name"] == "whole" { "True" } else { "False" };
            ensure!(accepted == Some(expected.into()), "{object:#}");
        }
        Ok(Some(()))
    })?;
    told_all_the_same(&cluster, &control_plane, &orders)
}
