//! `weft check` and `weft get` as an operator runs them: the answers, the exit codes, and what is said when there is no
//! cluster to ask.
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::kubernetes::ApiServerOptions;
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, WEFT, eventually, meshed};

pub const TESTS: &[Test] = &[
    ("an_operator_is_told_what_is_missing_and_what_to_do", an_operator_is_told_what_is_missing_and_what_to_do),
    ("policies_are_listed_in_each_form", policies_are_listed_in_each_form),
];

/// What a command said, and its exit code.
struct Said {
    code: Option<i32>,
    output: String,
    error: String,
}

fn weft(cluster: &Cluster, arguments: &str, variables: &[(&str, &str)]) -> Result<Said> {
    let mut weft = Command::new(WEFT);
    weft.args(arguments.split(' ')).env("KUBECONFIG", cluster.api.kubeconfig()).env("HOME", cluster.directory.path());
    for (name, value) in variables {
        if value.is_empty() {
            weft.env_remove(name);
        } else {
            weft.env(name, value);
        }
    }
    let output = weft.output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: output.status.code(), output: text(&output.stdout), error: text(&output.stderr) })
}

/// Contexts of the test's cluster, one of them in namespace `shop`, and one of a cluster that is not there.
fn contexts(cluster: &Cluster) -> Result<String> {
    let file = cluster.directory.path().join("contexts");
    std::fs::copy(cluster.api.kubeconfig(), &file)?;
    let option = format!("--kubeconfig={}", file.display());
    for arguments in [
        &["set-cluster", "dead", "--server=https://127.0.0.1:1"][..],
        &["set-context", "dead", "--cluster=dead", "--user=admin"],
        &["set-context", "in-shop", "--cluster=test", "--user=admin", "--namespace=shop"],
        &["set-credentials", "stranger", "--token=unknown"],
        &["set-context", "stranger", "--cluster=test", "--user=stranger"],
        &["unset", "current-context"],
    ] {
        cluster.api.kubectl(&[&[option.as_str(), "config"], arguments].concat())?;
    }
    Ok(file.display().to_string())
}

/// Arguments, variables, exit code, and what is on standard output and standard error.
type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], i32, &'a [&'a str], &'a [&'a str]);

fn answers(cluster: &Cluster, table: &[Row<'_>]) -> Result<()> {
    for (arguments, variables, code, output, error) in table {
        let said = weft(cluster, arguments, variables)?;
        let all = format!("weft {arguments} {variables:?}: {:?}\n{}\n{}", said.code, said.output, said.error);
        ensure!(said.code == Some(*code), "{all}");
        ensure!(output.iter().all(|text| said.output.contains(text)), "{output:?} is not in {all}");
        ensure!(error.iter().all(|text| said.error.contains(text)), "{error:?} is not in {all}");
        ensure!(!error.is_empty() || said.error.is_empty(), "{all}");
        ensure!(!said.error.contains("panicked"), "{all}");
    }
    Ok(())
}

fn an_operator_is_told_what_is_missing_and_what_to_do() -> Result<()> {
    let cluster = Cluster::bare(ApiServerOptions::default())?;
    let contexts = contexts(&cluster)?;
    let named: &[_] = &[("KUBECONFIG", contexts.as_str())];
    answers(
        &cluster,
        &[
            (
                "check --pre",
                &[],
                0,
                &[
                    "✓ version: v1.",
                    "✓ permissions: you may install",
                    "! nodes: there is none",
                    "0 failures, 1 warning.",
                ],
                &[],
            ),
            ("check --pre --strict", &[], 1, &["0 failures, 1 warning."], &[]),
            ("check --pre --quiet", &[], 0, &["! nodes: there is none"], &[]),
            ("check --pre --as nobody", &[], 1, &["✗ permissions"], &[]),
            ("check", &[], 1, &["there is no Deployment weft-control-plane", "helm install weft charts/weft"], &[]),
            ("get policies", &[], 1, &[], &["the API server does not have this kind"]),
            ("get workloads -A -o json", &[], 0, &["[]"], &["there is none in this cluster: see weft check"]),
            ("version", &[], 0, &["control plane: none"], &[]),
            // No cluster, or the wrong one.
            (
                "check --pre",
                named,
                1,
                &[],
                &["no current context; give --context, one of: dead, in-shop, stranger, test"],
            ),
            ("check --pre --context test", named, 0, &["✓ reachable"], &[]),
            ("get policies --context tset", named, 1, &[], &["no context 'tset'", "one of: dead"]),
            ("check --pre --context dead", named, 1, &["✗ reachable: https://127.0.0.1:1/"], &[]),
            ("get policies --context dead", named, 1, &[], &["refused"]),
            ("get policies --context stranger", named, 1, &[], &["does not know this user (401)", "log in again"]),
            ("check --context stranger", named, 1, &["✗ reachable"], &[]),
            ("get policies", &[("KUBECONFIG", "/no/such/file")], 1, &[], &["cannot read the kubeconfig"]),
            (
                "get policies",
                &[("KUBECONFIG", "")],
                1,
                &[],
                &["there is no cluster to talk to", "give --kubeconfig FILE"],
            ),
            ("get policies -o xml", &[], 2, &[], &["possible values: wide, json, yaml"]),
        ],
    )
}

const POLICY: &str = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec: {targetRefs: [{kind: Service, name: stock}], action: Allow, rules: [{from: [{serviceAccounts: [orders]}]}]}
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: typo, namespace: shop}
spec: {action: Deny, rulez: []}
---
apiVersion: policy.weft.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: slow, namespace: attic}
spec: {limits: [{name: each, requests: 5, window: 1s}]}
";

fn policies_are_listed_in_each_form() -> Result<()> {
    let cluster = Cluster::start()?;
    for name in ["shop", "attic"] {
        cluster.namespace(name, json!({}))?;
    }
    cluster.pod(&meshed("stock-1", "stock", "10.1.0.2"))?;
    cluster.pod(&meshed("orders-1", "orders", "10.1.0.1"))?;
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-1", "10.1.0.2", true)])?;
    cluster.api.apply(POLICY)?;
    let contexts = contexts(&cluster)?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let _stock = cluster.sidecar(&meshed("stock-1", "stock", "10.1.0.2"), &control_plane)?;
    eventually("their status is written", || {
        let said = weft(&cluster, "get policies -A -o json", &[])?;
        ensure!(
            said.output.contains("1 of 1 sidecar confirmed") && said.output.contains("Write `rules`"),
            "{}",
            said.output
        );
        Ok(Some(()))
    })?;
    let in_shop: &[_] = &[("KUBECONFIG", contexts.as_str())];
    answers(
        &cluster,
        &[
            ("get policies", &[], 0, &[], &["No policies in namespace default."]),
            ("get policies -n shop", &[], 0, &["readers", "typo", "Service/stock", "Deny"], &[]),
            ("get policies --context in-shop", in_shop, 0, &["readers", "typo"], &[]),
            ("get policies -A", &[], 0, &["shop", "attic", "each 5/1s"], &[]),
            ("get policies -n shop -o wide", &[], 0, &["MESSAGE", "Write `rules`"], &[]),
            ("get policies readers -n shop -o yaml", &[], 0, &["name: readers", "namespace: shop"], &[]),
            ("get policies writers -n shop", &[], 1, &[], &["No policies named writers in namespace shop."]),
            ("get policies -n shop --as nobody", &[], 1, &[], &["forbidden", "nobody"]),
        ],
    )?;
    let said = weft(&cluster, "get policies -A -o json", &[])?;
    let list: Value = serde_json::from_str(&said.output).with_context(|| said.error)?;
    let rows = list["items"].as_array().context("items")?;
    let shown = rows.iter().map(|row| {
        let conditions = row["conditions"].as_array().into_iter().flatten();
        let accepted = conditions.into_iter().find(|one| one["type"] == "Accepted").map(|one| one["status"].clone());
        format!("{}/{} {}", row["namespace"], row["name"], accepted.unwrap_or_default()).replace('"', "")
    });
    let shown: Vec<String> = shown.collect();
    ensure!(shown == ["attic/slow True", "shop/readers True", "shop/typo False"], "{shown:?}\n{list:#}");
    Ok(())
}
