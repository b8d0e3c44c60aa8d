//! What the control plane writes for operators: status and events, by one leader, over all replicas.
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, ControlPlane, eventually, get, meshed, own_address};

pub const TESTS: &[Test] = &[
    ("a_policy_s_status_follows_its_sidecars", a_policy_s_status_follows_its_sidecars),
    ("a_broken_policy_is_told_so_and_what_is_in_force", a_broken_policy_is_told_so_and_what_is_in_force),
    ("a_policy_for_nobody_is_told_so", a_policy_for_nobody_is_told_so),
    (
        "one_replica_leads_and_another_follows_when_it_is_killed",
        one_replica_leads_and_another_follows_when_it_is_killed,
    ),
    ("sidecars_of_all_replicas_are_counted", sidecars_of_all_replicas_are_counted),
    ("a_leader_outlives_its_api_server", a_leader_outlives_its_api_server),
    ("a_denied_identity_is_told_at_its_pod", a_denied_identity_is_told_at_its_pod),
];

fn policy(name: &str, service: &str, action: &str) -> String {
    format!(
        "apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, name: {service}}}], action: {action}, rules: [{{from: [{{serviceAccounts: [orders]}}]}}]}}
"
    )
}

/// stock-1 and stock-2 behind the Service stock, and orders' account.
fn shop() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.namespace("shop", json!({}))?;
    cluster.pod(&meshed("orders-1", "orders", "10.1.0.1"))?;
    cluster.pod(&meshed("stock-1", "stock", "10.1.0.2"))?;
    cluster.pod(&meshed("stock-2", "stock", "10.1.0.3"))?;
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-1", "10.1.0.2", true), ("stock-2", "10.1.0.3", true)])?;
    Ok(cluster)
}

fn object(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.api.kubectl(&["get", kind, name, "-n", "shop", "-o", "json"])?)?)
}

/// `True Programmed: 2 of 2 sidecars confirmed`.
fn condition(object: &Value, type_: &str) -> String {
    let all = object["status"]["conditions"].as_array();
    let found = all.into_iter().flatten().find(|condition| condition["type"] == type_).cloned().unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    format!("{} {}: {}", text("status"), text("reason"), text("message"))
}

/// Waits until the condition of the policy begins so, for its present generation.
fn until(cluster: &Cluster, policy: &str, type_: &str, wanted: &str) -> Result<Value> {
    let found = || {
        let object = object(cluster, "authorizationpolicy", policy)?;
        let observed = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        Ok(Some(object).filter(|object| observed && condition(object, type_).starts_with(wanted)))
    };
    eventually(&format!("{policy}: {type_} {wanted}"), found)
        .with_context(|| format!("{:#}", object(cluster, "authorizationpolicy", policy).unwrap_or_default()["status"]))
}

fn events(cluster: &Cluster, namespace: &str, reason: &str) -> Result<Vec<Value>> {
    let all: Value =
        serde_json::from_str(&cluster.api.kubectl(&["get", "events.events.k8s.io", "-n", namespace, "-o", "json"])?)?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().filter(|event| event["reason"] == reason).collect())
}

fn metric(control_plane: &ControlPlane, line: &str) -> Result<bool> {
    Ok(get(control_plane.admin, "/metrics")?.1.lines().any(|found| found == line))
}

fn a_policy_s_status_follows_its_sidecars() -> Result<()> {
    let cluster = shop()?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let _one = cluster.sidecar(&meshed("stock-1", "stock", "10.1.0.2"), &control_plane)?;
    cluster.api.apply(&policy("readers", "stock", "Allow"))?;
    let told =
        until(&cluster, "readers", "Programmed", "False Pending: 1 of 2 sidecars confirmed; waiting for stock-2")?;
    ensure!(condition(&told, "Accepted").starts_with("True Accepted"), "{told:#}");
    ensure!(condition(&told, "ResolvedRefs").starts_with("True ResolvedRefs"), "{told:#}");
    let _two = cluster.sidecar(&meshed("stock-2", "stock", "10.1.0.3"), &control_plane)?;
    let told = until(&cluster, "readers", "Programmed", "True Programmed: 2 of 2 sidecars confirmed")?;
    let fields = ["get", "authorizationpolicy", "readers", "-n", "shop", "--show-managed-fields", "-o", "json"];
    let fields: Value = serde_json::from_str(&cluster.api.kubectl(&fields)?)?;
    let ours = |entry: &Value| entry["manager"] == "weft-control-plane" && entry["subresource"] == "status";
    ensure!(fields["metadata"]["managedFields"].as_array().is_some_and(|all| all.iter().any(ours)), "{fields:#}");

    // What was written is what is to be said: nothing is written again.
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    cluster.api.apply(&policy("others", "stock", "Deny"))?;
    until(&cluster, "others", "Programmed", "True Programmed: 2 of 2")?;
    ensure!(version(&object(&cluster, "authorizationpolicy", "readers")?) == version(&told), "written again");

    // A new generation is confirmed anew.
    cluster.api.apply(&policy("readers", "stock", "Deny"))?;
    let again = until(&cluster, "readers", "Programmed", "True Programmed: 2 of 2")?;
    ensure!(again["status"]["observedGeneration"] == 2, "{again:#}");
    ensure!(metric(&control_plane, "weft_leader 1")?, "it leads");

    // A declared Workload has a status of its own.
    cluster.api.apply(
        "{apiVersion: policy.weft.dev/v1alpha1, kind: Workload, metadata: {name: host-1, namespace: shop}, \
         spec: {addresses: [10.2.0.1], mesh: false}}",
    )?;
    eventually("the Workload's status", || {
        Ok(condition(&object(&cluster, "workload", "host-1")?, "Programmed")
            .starts_with("True NotMeshed")
            .then_some(()))
    })
}

fn a_broken_policy_is_told_so_and_what_is_in_force() -> Result<()> {
    let cluster = shop()?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let _one = cluster.sidecar(&meshed("stock-1", "stock", "10.1.0.2"), &control_plane)?;
    let _two = cluster.sidecar(&meshed("stock-2", "stock", "10.1.0.3"), &control_plane)?;
    cluster.api.apply(&policy("readers", "stock", "Allow"))?;
    until(&cluster, "readers", "Programmed", "True Programmed")?;
    // What the schema cannot judge: a field that no version knows.
    let broken = policy("readers", "stock", "Allow").replace("rules:", "ruels: [], rules:");
    cluster.api.apply(&broken)?;
    let told = until(&cluster, "readers", "Accepted", "False Invalid")?;
    let accepted = condition(&told, "Accepted");
    ensure!(
        accepted.contains("ruels") && accepted.contains("what was last read without fault stays in force"),
        "{accepted}"
    );
    ensure!(
        condition(&told, "Programmed").starts_with("False Invalid: this generation is not in force; 2 of 2"),
        "{told:#}"
    );
    let event = eventually("an event", || Ok(events(&cluster, "shop", "Invalid")?.into_iter().next()))?;
    ensure!(event["regarding"]["name"] == "readers" && event["type"] == "Warning", "{event:#}");
    ensure!(event["regarding"]["uid"] == told["metadata"]["uid"], "{event:#}");

    cluster.api.apply(&policy("readers", "stock", "Allow"))?;
    let mended = cluster.api.kubectl(&["get", "authorizationpolicy", "readers", "-n", "shop", "-o", "json"])?;
    ensure!(!mended.contains("\"ruels\""), "applied");
    until(&cluster, "readers", "Accepted", "True Accepted")?;
    ensure!(events(&cluster, "shop", "Invalid")?.len() == 1, "once is enough");
    Ok(())
}

fn a_policy_for_nobody_is_told_so() -> Result<()> {
    let cluster = shop()?;
    let _control_plane = cluster.control_plane("weft-1", &[])?;
    cluster.api.apply(&policy("misspelt", "stcok", "Allow"))?;
    let told = until(&cluster, "misspelt", "ResolvedRefs", "False TargetNotFound: there is no Service stcok")?;
    ensure!(condition(&told, "Programmed").starts_with("False NoWorkload"), "{told:#}");
    cluster.api.apply(&policy("stranger", "stock", "Allow").replace("[orders]", "[ordres]"))?;
    until(
        &cluster,
        "stranger",
        "ResolvedRefs",
        "False ServiceAccountNotFound: there is no ServiceAccount shop/ordres",
    )?;
    // Not at once: a policy may be there before its workloads are.
    eventually("an event", || Ok(events(&cluster, "shop", "TargetNotFound")?.into_iter().next()))?;
    cluster.service("shop", "stcok", "10.96.1.2", &[])?;
    until(&cluster, "misspelt", "ResolvedRefs", "False NoWorkload")?;
    Ok(())
}

fn holder(cluster: &Cluster) -> Result<String> {
    let path = ["-o", "jsonpath={.spec.holderIdentity}"];
    cluster.api.kubectl(&[&["get", "lease", "weft-control-plane", "-n", "weft-system"][..], &path].concat())
}

fn one_replica_leads_and_another_follows_when_it_is_killed() -> Result<()> {
    let cluster = shop()?;
    let first = cluster.control_plane("weft-1", &[])?;
    eventually("the first leads", || Ok(metric(&first, "weft_leader 1")?.then_some(())))?;
    let second = cluster.control_plane("weft-2", &[])?;
    cluster.api.apply(&policy("readers", "stock", "Allow"))?;
    until(&cluster, "readers", "Accepted", "True")?;
    ensure!(holder(&cluster)? == "weft-1" && metric(&second, "weft_leader 0")?, "one leads");
    // Killed, it can give nothing back.
    drop(first);
    eventually("the second leads", || Ok(metric(&second, "weft_leader 1")?.then_some(())))?;
    ensure!(holder(&cluster)? == "weft-2", "by the lease too");
    cluster.api.apply(&policy("later", "stcok", "Allow"))?;
    until(&cluster, "later", "ResolvedRefs", "False TargetNotFound")?;
    Ok(())
}

fn sidecars_of_all_replicas_are_counted() -> Result<()> {
    let Some(host) = own_address() else {
        println!("skipped: this host has no address but loopback, which no endpoint may have");
        return Ok(());
    };
    let cluster = shop()?;
    let listen = format!("--listen={host}:0");
    let (first, second) = (cluster.control_plane("weft-1", &[&listen])?, cluster.control_plane("weft-2", &[&listen])?);
    let _one = cluster.sidecar(&meshed("stock-1", "stock", "10.1.0.2"), &first)?;
    let _two = cluster.sidecar(&meshed("stock-2", "stock", "10.1.0.3"), &second)?;
    cluster.api.apply(&policy("readers", "stock", "Allow"))?;
    // One slice each, for they have different ports here.
    let slice = |name: &str, control_plane: &ControlPlane| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": name, "namespace": "weft-system",
                "labels": {"kubernetes.io/service-name": "weft-control-plane"},
            },
            "ports": [{"name": "grpc", "port": control_plane.address.port(), "protocol": "TCP"}],
            "endpoints": [{
                "addresses": [host.to_string()], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": name, "namespace": "weft-system"},
            }],
        })
    };
    cluster.api.apply(&slice("weft-1", &first).to_string())?;
    cluster.api.apply(&slice("weft-2", &second).to_string())?;
    until(&cluster, "readers", "Programmed", "True Programmed: 2 of 2 sidecars confirmed")?;
    for control_plane in [&first, &second] {
        eventually("each replica knows of all sidecars", || {
            let connected = |name| -> Result<bool> {
                Ok(control_plane.workload(name)?.is_some_and(|row| row["connected"] == true))
            };
            Ok((connected("shop/stock-1")? && connected("shop/stock-2")?).then_some(()))
        })?;
    }
    // The replica that does not lead is gone, but not from the slices yet: what its sidecar runs is not known.
    let (gone, name) = if holder(&cluster)? == "weft-1" { (second, "weft-2") } else { (first, "weft-1") };
    drop(gone);
    cluster.api.apply(&policy("readers", "stock", "Deny"))?;
    let told = until(&cluster, "readers", "Programmed", "Unknown ReplicaSilent: 1 of 2 sidecars confirmed")?;
    ensure!(condition(&told, "Programmed").ends_with(name), "{told:#}");
    Ok(())
}

fn a_leader_outlives_its_api_server() -> Result<()> {
    let mut cluster = shop()?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    eventually("it leads", || Ok(metric(&control_plane, "weft_leader 1")?.then_some(())))?;
    let sidecar = cluster.sidecar(&meshed("stock-1", "stock", "10.1.0.2"), &control_plane)?;
    sidecar.until("told", |config| config.to_string().contains("shop/stock"))?;
    cluster.api.stop_api_server();
    eventually("nobody leads", || Ok(metric(&control_plane, "weft_leader 0")?.then_some(())))?;
    ensure!(control_plane.workload("shop/stock-1")?.is_some_and(|row| row["connected"] == true), "sidecars stay");
    cluster.api.start_api_server()?;
    eventually("it leads again", || Ok(metric(&control_plane, "weft_leader 1")?.then_some(())))?;
    cluster.api.apply(&policy("readers", "stock", "Allow"))?;
    until(&cluster, "readers", "Programmed", "False Pending: 1 of 2")?;
    Ok(())
}

fn a_denied_identity_is_told_at_its_pod() -> Result<()> {
    let cluster = shop()?;
    let denied = cluster.directory.path().join("denied");
    std::fs::write(&denied, "spiffe://cluster.local/ns/shop/sa/orders\n")?;
    let control_plane = cluster.control_plane("weft-1", &[&format!("--denied-identities={}", denied.display())])?;
    let _orders = cluster.sidecar(&meshed("orders-1", "orders", "10.1.0.1"), &control_plane)?;
    let event = eventually("an event", || Ok(events(&cluster, "shop", "CertificateRefused")?.into_iter().next()))?;
    let pod = object(&cluster, "pod", "orders-1")?;
    ensure!(event["regarding"]["uid"] == pod["metadata"]["uid"], "{event:#}");
    ensure!(event["note"].as_str().is_some_and(|note| note.contains("the identity is denied")), "{event:#}");
    Ok(())
}
