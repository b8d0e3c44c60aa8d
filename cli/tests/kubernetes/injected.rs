//! Injected pods, as an API server and Pod Security judge them.
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, WEFT};

pub const TESTS: &[Test] = &[
    ("a_pod_that_satisfies_restricted_still_does_with_the_cni_plugin", restricted_stays_restricted),
    ("what_the_api_server_stored_is_injected_already", stored_is_unchanged),
    ("an_api_server_takes_every_pod_that_the_injector_makes", every_pod_is_taken),
];

/// Satisfies `restricted`, and has checks of every kind.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: vault, namespace: shop}
spec:
  serviceAccountName: default
  securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: vault
    image: vault:1
    ports: [{name: web, containerPort: 8200}]
    startupProbe: {grpc: {port: 9000}}
    livenessProbe: {httpGet: {path: /health, port: web, scheme: HTTPS}}
    readinessProbe: {tcpSocket: {port: 8200}}
    lifecycle: {preStop: {httpGet: {path: /stop, port: web}}}
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
";

/// A cluster whose namespace `shop` enforces `level`.
fn cluster(level: &str) -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.namespace("shop", json!({}))?;
    cluster.api.kubectl(&["label", "namespace", "shop", &format!("pod-security.kubernetes.io/enforce={level}")])?;
    cluster.api.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: shop}}")?;
    Ok(cluster)
}

fn inject(flags: &[&str], text: &str) -> Result<String> {
    let mut weft = Command::new(WEFT);
    let mut child = weft.arg("inject").args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "weft inject: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn restricted_stays_restricted() -> Result<()> {
    let cluster = cluster("restricted")?;
    cluster.api.with_input(&["create", "-f", "-"], &inject(&["--redirect=cni"], POD)?)?;
    let refused = cluster.api.with_input(&["create", "--dry-run=server", "-f", "-"], &inject(&[], POD)?);
    let refused = refused.expect_err("weft-init needs NET_ADMIN").to_string();
    ensure!(refused.contains("weft-init") && refused.contains("NET_ADMIN"), "{refused}");
    ensure!(!refused.contains("weft-proxy"), "the sidecar satisfies it in either way: {refused}");
    Ok(())
}

/// The API server adds defaults; a webhook that is asked again must find nothing to do.
fn stored_is_unchanged() -> Result<()> {
    let cluster = cluster("privileged")?;
    cluster.api.with_input(&["create", "-f", "-"], &inject(&[], POD)?)?;
    let stored = cluster.api.kubectl(&["get", "pod", "vault", "-n", "shop", "-o", "yaml"])?;
    ensure!(stored.contains("weft-proxy"), "{stored}");
    ensure!(inject(&[], &stored)? == stored, "it was injected once more");
    Ok(())
}

fn every_pod_is_taken() -> Result<()> {
    let cluster = cluster("privileged")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/tests/injector/out");
    let mut pods = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let golden: Value = serde_saphyr::from_str(&fs::read_to_string(&path)?)?;
        let mut pod = golden["pod"].clone();
        if pod.is_null() {
            continue;
        }
        let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = name.into();
        pod["metadata"]["namespace"] = "shop".into();
        // As the API server's own admission fills it in before webhooks are asked.
        pod["spec"]["serviceAccountName"] = "default".into();
        pods.push(pod);
    }
    ensure!(pods.len() >= 9, "{} pods", pods.len());
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    cluster.api.with_input(&["create", "--dry-run=server", "-f", "-"], &list.to_string()).map(drop)
}
