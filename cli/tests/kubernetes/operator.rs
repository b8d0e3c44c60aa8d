//! The operator's commands against a real API server: what they see of a cluster without Weft, and of one with it.
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::kubernetes::ApiServerOptions;
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, WEFT, eventually, meshed};

pub const TESTS: &[Test] = &[
    ("a_cluster_is_checked_before_weft_is_there", a_cluster_is_checked_before_weft_is_there),
    ("whoever_may_not_install_is_told_what_is_missing", whoever_may_not_install_is_told_what_is_missing),
    ("what_is_missing_of_an_installation_is_named", what_is_missing_of_an_installation_is_named),
    ("policies_are_listed_with_what_became_of_them", policies_are_listed_with_what_became_of_them),
    (
        "pods_of_the_mesh_are_listed_without_a_control_plane_too",
        pods_of_the_mesh_are_listed_without_a_control_plane_too,
    ),
];

/// What `weft` prints as JSON, and its exit code.
pub fn weft(cluster: &Cluster, line: &str) -> Result<(Value, i32)> {
    let mut command = Command::new(WEFT);
    let output =
        command.args(line.split(' ')).args(["-o", "json"]).env("KUBECONFIG", cluster.api.kubeconfig()).output()?;
    let code = output.status.code().context("it was killed")?;
    let said = String::from_utf8_lossy(&output.stderr);
    Ok((serde_json::from_slice(&output.stdout).with_context(|| format!("{line}: {said}"))?, code))
}

/// The verdict of a check; `None`: it was not made.
fn verdict<'a>(report: &'a Value, group: &str, check: &str) -> Option<&'a str> {
    let groups = report["groups"].as_array()?;
    let group = groups.iter().find(|candidate| candidate["group"] == group)?;
    group["findings"].as_array()?.iter().find(|finding| finding["check"] == check)?["verdict"].as_str()
}

pub fn expect(report: &Value, expected: &[(&str, &str, &str)]) -> Result<()> {
    for (group, check, wanted) in expected {
        ensure!(verdict(report, group, check) == Some(wanted), "{group}, {check} is not {wanted}: {report:#}");
    }
    Ok(())
}

fn a_cluster_is_checked_before_weft_is_there() -> Result<()> {
    let cluster = Cluster::bare(ApiServerOptions::default())?;
    let (report, code) = weft(&cluster, "check --pre")?;
    ensure!(code == 0, "{report:#}");
    expect(
        &report,
        &[
            ("API server", "version", "ok"),
            ("API server", "clock", "ok"),
            ("Permissions", "permissions", "ok"),
            ("Installation", "installed", "ok"),
            ("Installation", "kinds", "ok"),
            ("Other meshes", "other meshes", "ok"),
            // No node will ever be there.
            ("Nodes", "nodes", "warning"),
        ],
    )?;
    ensure!(weft(&cluster, "check --pre --strict")?.1 == 1, "a warning passes a strict check");
    let (report, code) = weft(&cluster, "check")?;
    ensure!(code == 1, "{report:#}");
    expect(&report, &[("Control plane", "kinds", "failure"), ("Control plane", "deployment", "failure")])
}

fn whoever_may_not_install_is_told_what_is_missing() -> Result<()> {
    let cluster = Cluster::bare(ApiServerOptions::default())?;
    cluster.api.kubectl(&["create", "clusterrolebinding", "viewer", "--clusterrole=view", "--user=viewer"])?;
    let (report, code) = weft(&cluster, "check --pre --as viewer")?;
    ensure!(code == 1, "{report:#}");
    expect(&report, &[("Permissions", "permissions", "failure"), ("Nodes", "nodes", "warning")])?;
    let text = report.to_string();
    ensure!(text.contains("deployments.apps") && text.contains("cluster-admin"), "{report:#}");
    Ok(())
}

fn what_is_missing_of_an_installation_is_named() -> Result<()> {
    let cluster = Cluster::with(ApiServerOptions { controllers: true })?;
    cluster.namespace("shop", json!({"weft.dev/inject": "enabled"}))?;
    cluster.namespace("typo", json!({"weft.dev/inject": "yes"}))?;
    let labels =
        ["label", "namespace", "shop", "istio-injection=enabled", "pod-security.kubernetes.io/enforce=baseline"];
    cluster.api.kubectl(&labels)?;
    cluster.api.kubectl(&["run", "old", "-n", "shop", "--image=app:test"])?;
    let control_plane = ["create", "deployment", "weft-control-plane", "-n", "weft-system", "--image=weft:test"];
    cluster.api.kubectl(&control_plane)?;
    eventually("the pod is seen without a sidecar", || {
        let (report, _) = weft(&cluster, "check")?;
        Ok((verdict(&report, "Injection", "pods") == Some("failure")).then_some(()))
    })?;
    let (report, code) = weft(&cluster, "check")?;
    ensure!(code == 1, "{report:#}");
    expect(
        &report,
        &[
            ("Control plane", "kinds", "ok"),
            ("Control plane", "deployment", "failure"),
            ("Control plane", "leader", "failure"),
            ("Webhooks", "injector", "failure"),
            ("Webhooks", "admission", "failure"),
            ("Webhooks", "guard", "failure"),
            ("Certificates", "authority", "failure"),
            ("Certificates", "webhook", "failure"),
            ("Certificates", "trust bundles", "failure"),
            ("Injection", "annotations", "failure"),
            ("Injection", "pod security", "failure"),
            ("Other meshes", "two meshes", "failure"),
        ],
    )
}

fn policies_are_listed_with_what_became_of_them() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.namespace("shop", json!({}))?;
    cluster.api.apply(
        "apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec: {action: Allow, rules: [{from: [{serviceAccounts: [orders]}]}]}
",
    )?;
    let _control_plane = cluster.control_plane("weft-control-plane-0", &[])?;
    eventually("the policy is accepted", || {
        let (list, _) = weft(&cluster, "get policies -n shop")?;
        let conditions = list["items"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let accepted = |condition: &Value| condition["type"] == "Accepted" && condition["status"] == "True";
        Ok(conditions.iter().any(accepted).then_some(()))
    })?;
    let (list, code) = weft(&cluster, "get policies nothing -n shop")?;
    ensure!(code == 1 && list["items"] == json!([]), "{list:#}");
    Ok(())
}

fn pods_of_the_mesh_are_listed_without_a_control_plane_too() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.namespace("shop", json!({}))?;
    cluster.pod(&meshed("orders-1", "orders", "10.1.0.1"))?;
    cluster.pod(&crate::fixture::PodSpec { meshed: false, ..meshed("outside-1", "outside", "10.1.0.2") })?;
    let (list, code) = weft(&cluster, "get workloads -A")?;
    ensure!(code == 0, "{list:#}");
    let names: Vec<&str> =
        list["items"].as_array().into_iter().flatten().filter_map(|row| row["name"].as_str()).collect();
    ensure!(names == ["orders-1"], "{list:#}");
    let row = &list["items"][0];
    ensure!(row["identity"] == "spiffe://cluster.local/ns/shop/sa/orders", "{list:#}");
    ensure!(row["connected"].is_null(), "nobody can know it: {list:#}");
    ensure!(list["faults"].as_array().is_some_and(|faults| faults.len() == 1), "{list:#}");
    // No node runs the pod, so nobody answers for it.
    let (list, code) = weft(&cluster, "get edges -n shop")?;
    ensure!(code == 1 && list["faults"][0]["of"] == "pod/shop/orders-1", "{list:#}");
    Ok(())
}
