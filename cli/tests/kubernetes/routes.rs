//! Routes of the Gateway API, whose kinds come and go while the control plane runs.
//!
//! The folder `WEFT_GATEWAY_API` holds a release of it, such as the Go module sigs.k8s.io/gateway-api.
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, eventually, get, meshed};

pub const TESTS: &[Test] = &[
    ("routes_hold_once_the_cluster_has_their_kinds", routes_hold_once_the_cluster_has_their_kinds),
    ("the_status_of_a_route_follows_its_services_and_grants", the_status_of_a_route_follows_its_services_and_grants),
];

const KINDS: [&str; 3] = ["grpcroutes", "httproutes", "referencegrants"];

/// The folder of the Gateway API's own definitions.
pub fn definitions() -> Result<PathBuf, String> {
    let module = std::env::var_os("WEFT_GATEWAY_API").ok_or("no folder WEFT_GATEWAY_API with the Gateway API")?;
    let folder = PathBuf::from(module).join("config/crd/standard");
    folder.is_dir().then_some(folder).ok_or_else(|| "WEFT_GATEWAY_API has no config/crd/standard".to_owned())
}

/// Gives the cluster the kinds of the Gateway API.
pub fn define(cluster: &Cluster) -> Result<()> {
    let folder = definitions().map_err(anyhow::Error::msg)?;
    for kind in KINDS {
        let file = folder.join(format!("gateway.networking.k8s.io_{kind}.yaml"));
        cluster.api.kubectl(&["create", "-f", file.to_str().context("a path in UTF-8")?])?;
    }
    let names = KINDS.map(|kind| format!("crd/{kind}.gateway.networking.k8s.io"));
    let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
    cluster.api.kubectl(&[&wait[..], &names.each_ref().map(String::as_str)].concat()).map(drop)
}

/// Takes them away, and all objects with them.
pub fn forget(cluster: &Cluster) -> Result<()> {
    let names = KINDS.map(|kind| format!("{kind}.gateway.networking.k8s.io"));
    let delete = ["delete", "crd", "--wait=true"];
    cluster.api.kubectl(&[&delete[..], &names.each_ref().map(String::as_str)].concat()).map(drop)
}

/// A route of namespace shop to the Service stock.
fn route(kind: &str, name: &str, rules: &Value) -> String {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "shop"},
        "spec": {"parentRefs": [{"name": "edge"}, {"group": "", "kind": "Service", "name": "stock"}], "rules": rules},
    })
    .to_string()
}

fn object(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.api.kubectl(&["get", kind, name, "-n", "shop", "-o", "json"])?)?)
}

/// `Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs`, of our one entry for the present generation.
fn said(object: &Value) -> Option<String> {
    let parents = object["status"]["parents"].as_array()?;
    let ours = parents.iter().find(|entry| entry["controllerName"] == "weft.dev/mesh")?;
    let generation = &object["metadata"]["generation"];
    let conditions = ours["conditions"].as_array()?.iter().map(|condition| {
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        let current = condition["observedGeneration"] == *generation;
        current.then(|| format!("{}={}:{}", text("type"), text("status"), text("reason")))
    });
    Some(conditions.collect::<Option<Vec<_>>>()?.join(" "))
}

fn until(cluster: &Cluster, kind: &str, name: &str, wanted: &str) -> Result<Value> {
    let found = || {
        let object = object(cluster, kind, name)?;
        let said = said(&object);
        ensure!(said.as_deref() == Some(wanted), "{said:?}");
        Ok(Some(object))
    };
    eventually(&format!("{kind} {name} says {wanted}"), found)
}

const FINE: &str = "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs";

fn shop() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.namespace("shop", json!({}))?;
    cluster.namespace("attic", json!({}))?;
    cluster.pod(&meshed("stock-1", "stock", "10.1.0.1"))?;
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-1", "10.1.0.1", true)])?;
    Ok(cluster)
}

fn routes_hold_once_the_cluster_has_their_kinds() -> Result<()> {
    let cluster = shop()?;
    // Ready without them.
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let sidecar = cluster.sidecar(&meshed("stock-1", "stock", "10.1.0.1"), &control_plane)?;
    sidecar.until("told", |config| config.to_string().contains("shop/stock"))?;
    let rules = json!([{"backendRefs": [{"name": "stock", "port": 80}]}]);
    for round in 0..2 {
        define(&cluster)?;
        cluster.api.apply(&route("HTTPRoute", "pages", &rules))?;
        until(&cluster, "httproute", "pages", FINE).with_context(|| control_plane.process.tail())?;
        if round == 0 {
            // A Service of whose routes one is of gRPC has no other: each port has one kind.
            cluster.api.apply(&route("GRPCRoute", "calls", &rules))?;
            until(&cluster, "grpcroute", "calls", FINE)?;
            until(&cluster, "httproute", "pages", "Accepted=False:Conflicted ResolvedRefs=True:ResolvedRefs")?;
            forget(&cluster)?;
            // Nobody is the worse for it.
            ensure!(get(control_plane.admin, "/ready")?.0 == 200);
        }
    }
    ensure!(control_plane.workload("shop/stock-1")?.is_some_and(|row| row["connected"] == true), "still connected");
    Ok(())
}

fn the_status_of_a_route_follows_its_services_and_grants() -> Result<()> {
    let cluster = shop()?;
    define(&cluster)?;
    cluster.service("attic", "archive", "10.96.1.2", &[])?;
    let rules = json!([{"backendRefs": [{"name": "archive", "namespace": "attic", "port": 80}]}]);
    cluster.api.apply(&route("HTTPRoute", "pages", &rules))?;
    let foreign = json!({
        "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
        "controllerName": "example.org/gateway",
        "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
        }],
    });
    let status = json!({"status": {"parents": [foreign]}}).to_string();
    let patch = ["patch", "httproute", "pages", "-n", "shop", "--subresource=status", "--type=merge", "-p", &status];
    cluster.api.kubectl(&patch)?;

    let control_plane = cluster.control_plane("weft-1", &[])?;
    let not_granted = "Accepted=True:Accepted ResolvedRefs=False:RefNotPermitted";
    let told = until(&cluster, "httproute", "pages", not_granted).with_context(|| control_plane.process.tail())?;
    let parents = told["status"]["parents"].as_array().context("a list")?;
    ensure!(parents.len() == 2 && parents.contains(&foreign), "{parents:#?}");
    ensure!(parents[1]["parentRef"] == json!({"group": "", "kind": "Service", "name": "stock"}), "{parents:#?}");
    for version in ["v1beta1", "v1"] {
        let grant = json!({
            "apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": "ReferenceGrant",
            "metadata": {"name": "shop", "namespace": "attic"},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
                "to": [{"group": "", "kind": "Service"}],
            },
        });
        cluster.api.apply(&grant.to_string())?;
        until(&cluster, "httproute", "pages", FINE)?;
        cluster.api.kubectl(&["delete", "referencegrant", "shop", "-n", "attic"])?;
        until(&cluster, "httproute", "pages", not_granted)?;
    }
    let near = json!([{"backendRefs": [{"name": "near", "port": 80}]}]);
    cluster.api.apply(&route("HTTPRoute", "pages", &near))?;
    until(&cluster, "httproute", "pages", "Accepted=True:Accepted ResolvedRefs=False:BackendNotFound")?;
    cluster.service("shop", "near", "10.96.1.3", &[])?;
    until(&cluster, "httproute", "pages", FINE)?;
    cluster.api.kubectl(&["delete", "service", "stock", "-n", "shop"])?;
    until(&cluster, "httproute", "pages", "Accepted=False:NoMatchingParent ResolvedRefs=True:ResolvedRefs")?;
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-1", "10.1.0.1", true)])?;
    until(&cluster, "httproute", "pages", FINE)?;

    // What the API's own schema lets in.
    let broken = json!([{"matches": [{"path": {"type": "RegularExpression", "value": "("}}], "backendRefs": [{"name": "near", "port": 80}]}]);
    cluster.api.apply(&route("HTTPRoute", "pages", &broken))?;
    let told = until(&cluster, "httproute", "pages", "Accepted=False:UnsupportedValue ResolvedRefs=Unknown:Pending")?;
    ensure!(told.to_string().contains("what was last read without fault stays in force"), "{told:#}");
    let cors = json!([{"filters": [{"type": "CORS", "cors": {"allowOrigins": ["*"]}}]}, {"backendRefs": [{"name": "near", "port": 80}]}]);
    cluster.api.apply(&route("HTTPRoute", "pages", &cors))?;
    until(&cluster, "httproute", "pages", &format!("{FINE} PartiallyInvalid=True:UnsupportedValue"))?;
    Ok(())
}
