//! Calls that running sidecars judged: explained, counted, and turned into policies that hold.
use anyhow::{Result, ensure};
use serde_json::Value;
use weft_loadtests::lab::testing::Test;
use weft_loadtests::lab::{Pod, Program};
use weft_loadtests::mesh::{WorkloadSpec, eventually, get, run_to_end};

use crate::fixture::{PATIENCE, Pair, WEFT};

pub const TESTS: &[Test] = &[
    ("a_sidecar_explains_a_call_with_the_first_field_of_each_policy_that_does_not_match", explained),
    ("a_sidecar_keeps_its_last_refusals_and_says_why_without_query_or_header", refusals),
    ("judged_calls_reach_the_control_plane_and_what_is_suggested_from_them_holds_under_deny", observed),
];

const READERS: &str = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Allow
  rules:
  - from: [{serviceAccounts: [client]}]
    to: [{methods: [GET], paths: [\"/items/{id}\"]}]
    when: [{header: x-tenant, in: [blue]}]
";

/// `weft policy …` in the pod.
fn policy(pod: &Pod, arguments: &[&str]) -> Result<String> {
    run_to_end(pod, Program::new(WEFT).arg("policy").args(arguments))
}

fn explained() -> Result<()> {
    let pair = Pair::start("explain")?;
    pair.mesh.write("policy.yaml", READERS)?;
    pair.settle()?;
    for (call, expected) in [
        (vec!["--from", "client", "--path", "/items/1"], "rule 0: header x-tenant is absent; wanted in [blue]"),
        (vec!["--from", "client", "--path", "/items/1", "--header", "x-tenant=blue"], "allowed by rules[0]"),
        (vec!["--from", "shop/other", "--path", "/items/1"], "rule 0: caller shop/other is not in [shop/client]"),
        (vec!["--from", "client", "--method", "PUT", "--path", "/items/1"], "rule 0: method PUT is not in [GET]"),
        (vec!["--from", "10.9.9.9", "--path", "/items/1"], "rule 0: the caller has no mesh identity"),
        (vec!["--from", "client"], "rule 0: a byte stream has no method"),
        (vec!["--from", "client", "--path", "/items%2f1"], "refused with 400: the path holds an encoded slash"),
    ] {
        let explain = [vec!["explain", "--admin", "127.0.0.1:4291", "--port", "8080"], call].concat();
        let said = policy(&pair.server.pod, &explain)?;
        ensure!(said.contains(expected), "{explain:?}: {said}");
    }
    Ok(())
}

fn refusals() -> Result<()> {
    let pair = Pair::start("refusals")?;
    let _app = pair.serve_http()?;
    pair.mesh.write("policy.yaml", READERS)?;
    pair.settle()?;
    ensure!(pair.get("/items/1?token=secret")?.0 == 403);
    ensure!(pair.get("/items%2f1")?.0 == 400);
    let stranger = pair.mesh.pod(WorkloadSpec::new("stranger", "stranger").without_sidecar())?;
    ensure!(get(&stranger.pod, pair.server.pod.address(8080), "/items/2")?.0 == 403);
    let ask = |more: &[&str]| {
        let explain = ["explain", "--admin", "127.0.0.1:4291", "--last", "10"];
        policy(&pair.server.pod, &[&explain, more].concat())
    };
    let json: Value = serde_json::from_str(&ask(&["-o", "json"])?)?;
    let rows: Vec<(&str, u64, &str)> = json
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            let text = |field: &str| row[field].as_str().unwrap_or_default();
            (text("path"), row["status"].as_u64().unwrap_or_default(), text("reason"))
        })
        .collect();
    // The newest first.
    let expected = [("/items/2", 403, "denied"), ("/items%2f1", 400, "encoded_slash"), ("/items/1", 403, "denied")];
    ensure!(rows == expected, "{json:#}");
    ensure!(json[2]["policy"] == "shop/readers" && json[2]["port"] == 8080, "{json:#}");
    ensure!(!json.to_string().contains("secret"), "{json:#}");
    let text = ask(&[])?;
    ensure!(text.contains("rule 0: header x-tenant is absent; wanted in [blue]"), "{text}");
    ensure!(text.contains("rule 0: the caller has no mesh identity"), "{text}");
    Ok(())
}

fn observed() -> Result<()> {
    let pair = Pair::start("observed")?;
    let _app = pair.serve_http()?;
    pair.settle()?;
    for path in ["/items/1", "/items/2", "/items/3f2a9c4e-1111-2222-3333-444455556666", "/reports"] {
        ensure!(pair.get(path)?.0 == 200, "{path}");
    }
    let stranger = pair.mesh.pod(WorkloadSpec::new("stranger", "stranger").without_sidecar())?;
    ensure!(get(&stranger.pod, pair.server.pod.address(8080), "/items/4")?.0 == 403);
    let calls = || pair.mesh.weft(["policy", "calls", "--control-plane", "127.0.0.1:4291"]);
    // Sidecars tell every ten seconds.
    eventually("the calls are told", 3 * PATIENCE, || {
        let told = calls()?;
        let has = |words: &[&str]| told.lines().any(|line| line.split_whitespace().eq(words.iter().copied()));
        Ok(has(&["shop/client", "shop/server:8080", "GET", "/items/{id}", "3", "unlisted", "default"])
            && has(&["shop/client", "shop/server:8080", "GET", "/reports", "1", "unlisted", "default"])
            && has(&["outside", "shop/server:8080", "GET", "/items/{id}", "1", "refused", "default"]))
    })?;
    let suggested = pair.mesh.weft(["policy", "suggest", "--control-plane", "127.0.0.1:4291"])?;
    pair.mesh.write("suggested.yaml", &suggested)?;
    pair.mesh.write(
        "namespace.yaml",
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {weft.dev/default-policy: deny}}}\n",
    )?;
    pair.settle()?;
    for (path, status) in [("/items/9", 200), ("/reports", 200), ("/items/9/price", 403), ("/", 403)] {
        let (answered, body) = pair.get(path)?;
        ensure!(answered == status, "{path}: {answered} {body}\n{suggested}");
    }
    let resources = pair.mesh.resources().display().to_string();
    let diff = pair.mesh.weft(["policy", "diff", "--control-plane", "127.0.0.1:4291", "--resources", &resources])?;
    ensure!(diff.contains(" 0 newly refused, 0 newly allowed"), "{diff}");
    Ok(())
}
