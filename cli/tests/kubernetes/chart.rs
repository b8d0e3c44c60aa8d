//! The chart on a real API server: what it makes, that the control plane can do all of its work with the rights that the
//! chart gives it and has no others, what may start while it is away, and that nothing of it stays.
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::kubernetes::{ApiServer, ApiServerOptions};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, ControlPlane, PodSpec, eventually, get, own_address};

pub const TESTS: &[Test] = &[("the_chart_s_rights_are_enough_and_no_more", the_chart_s_rights_are_enough_and_no_more)];

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/weft");
const NAMESPACE: &str = "weft-system";
const ACCOUNT: &str = "system:serviceaccount:weft-system:weft-control-plane";

/// `helm`, or why there is none.
pub fn helm() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join("go/bin"));
    let mut all = std::env::split_paths(&path).chain(home).map(|folder| folder.join("helm"));
    all.find(|program| program.is_file()).ok_or_else(|| "no helm in PATH or ~/go/bin".to_owned())
}

fn run_helm(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let home = cluster.directory.path();
    let mut helm = Command::new(helm().map_err(anyhow::Error::msg)?);
    helm.args(arguments).args(["-n", NAMESPACE]).env("KUBECONFIG", cluster.api.kubeconfig()).env("HOME", home);
    helm.envs(["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(|name| (name, home.join("helm"))));
    let output = helm.output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {}: {error}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn the_chart_s_rights_are_enough_and_no_more() -> Result<()> {
    let cluster = Cluster::bare(ApiServerOptions { controllers: true })?;
    for (name, annotations, labels) in [
        (NAMESPACE, json!({}), json!({})),
        ("shop", json!({"weft.dev/inject": "enabled"}), json!({})),
        ("labelled", json!({}), json!({"weft.dev/inject": "enabled"})),
        ("plain", json!({}), json!({})),
    ] {
        let metadata = json!({"name": name, "annotations": annotations, "labels": labels});
        cluster.api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}).to_string())?;
        eventually("it has its service account", || {
            Ok(cluster.api.kubectl(&["get", "serviceaccount", "default", "-n", name]).ok())
        })?;
    }
    let before = inventory(&cluster.api)?;
    run_helm(&cluster, &["install", "weft", CHART])?;
    cluster.api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
    nothing_starts_in_the_clear(&cluster).context("while no injector answers")?;
    if let Some(host) = own_address() {
        let control_plane = start(&cluster, host)?;
        has_made_everything(&cluster)?;
        webhooks_answer(&cluster, &control_plane, host)?;
        issues_certificates_and_writes_status(&cluster, &control_plane.1)?;
        check_says_so(&cluster)?;
        let text = control_plane.1.process.text();
        let refused = |line: &&str| line.to_lowercase().contains("forbidden") || line.contains("cannot watch");
        ensure!(!text.lines().any(|line| refused(&line)), "{:?}", text.lines().find(refused));
    } else {
        println!("in part only: this host has no address but loopback, which no endpoint may have");
    }
    may_do_nothing_else(&cluster)?;

    let bundles = authorities(&cluster)?;
    run_helm(&cluster, &["upgrade", "weft", CHART])?;
    ensure!(authorities(&cluster)? == bundles, "an upgrade takes the webhooks' CA away");
    run_helm(&cluster, &["uninstall", "weft", "--wait"])?;
    eventually("nothing of it stays", || {
        let left: Vec<String> = inventory(&cluster.api)?.difference(&before).cloned().collect();
        ensure!(left.is_empty(), "{left:#?}");
        Ok(Some(()))
    })
}

/// All objects, but events, what the cluster writes for itself, and what the test made.
fn inventory(api: &ApiServer) -> Result<BTreeSet<String>> {
    let kinds = api.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let row = "{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let all = api.kubectl(&["get", &kinds.join(","), "-A", "-o", &format!("jsonpath={row}")])?;
    Ok(all
        .lines()
        .filter(|line| !line.contains(" kube-system/") && !line.contains("/test-"))
        .map(str::to_owned)
        .collect())
}

/// Whether a pod may be made, or why not.
fn pod(api: &ApiServer, namespace: &str, name: &str, account: &str, annotations: Value) -> Result<(), String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("test-{name}"), "namespace": namespace, "annotations": annotations},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "app:test"}]},
    });
    api.with_input(&["create", "-f", "-"], &pod.to_string()).map(drop).map_err(|fault| format!("{fault:#}"))
}

fn nothing_starts_in_the_clear(cluster: &Cluster) -> Result<()> {
    // The API server takes a moment to see the policy.
    let refused = "weft.dev/inject asks for a sidecar, and this pod has none: the injector did not answer";
    eventually("a bare pod is refused in an annotated namespace", || {
        let dry = ["delete", "pod", "test-bare", "-n", "shop", "--ignore-not-found", "--grace-period=0", "--force"];
        match pod(&cluster.api, "shop", "bare", "default", json!({})) {
            Err(why) if why.contains(refused) => Ok(Some(())),
            other => cluster.api.kubectl(&dry).map(|_| println!("not yet: {other:?}")).map(|()| None),
        }
    })?;
    let asks = || json!({"weft.dev/inject": "enabled"});
    let table = [
        ("shop", "own", json!({"weft.dev/inject": "disabled"}), None),
        ("shop", "misspelt", json!({"weft.dev/inject": "enable"}), Some(refused)),
        ("plain", "bare", json!({}), None),
        ("plain", "asks", asks(), Some(refused)),
        ("kube-system", "bare", asks(), None),
        ("labelled", "bare", json!({}), Some("failed calling webhook")),
    ];
    for (namespace, name, annotations, expected) in table {
        match (pod(&cluster.api, namespace, name, "default", annotations), expected) {
            (Ok(()), None) => {}
            (Err(why), Some(expected)) if why.contains(expected) => {}
            (found, _) => anyhow::bail!("{namespace}/{name}: {found:?}, where {expected:?} is right"),
        }
    }
    Ok(())
}

/// The control plane as the Deployment has it: its variables, its settings, its service account, the name of a pod of it.
/// With the port of its webhooks.
fn start(cluster: &Cluster, host: IpAddr) -> Result<(u16, ControlPlane)> {
    let json = |arguments: &[&str]| -> Result<Value> {
        Ok(serde_json::from_str(&cluster.api.kubectl(&[arguments, &["-n", NAMESPACE, "-o", "json"]].concat())?)?)
    };
    let deployment = json(&["get", "deployment", "weft-control-plane"])?;
    let pods = eventually("the Deployment makes pods", || {
        let pods = json(&["get", "pods", "-l", "weft.dev/component=control-plane"])?;
        Ok(pods["items"].as_array().filter(|pods| !pods.is_empty()).cloned())
    })?;
    let name = pods[0]["metadata"]["name"].as_str().context("a name")?.to_owned();
    let token = cluster.api.kubectl(&["create", "token", "weft-control-plane", "-n", NAMESPACE, "--duration=1h"])?;
    let kubeconfig = cluster.directory.path().join("kubeconfig");
    std::fs::copy(cluster.api.kubeconfig(), &kubeconfig)?;
    let file = format!("--kubeconfig={}", kubeconfig.display());
    cluster.api.kubectl(&[&file, "config", "set-credentials", "admin", "--token", token.trim()])?;
    ensure!(cluster.api.kubectl(&[&file, "auth", "whoami"])?.contains(ACCOUNT));

    let settings = cluster.directory.path().join("config.yaml");
    let config = json(&["get", "configmap", "weft-injector"])?;
    std::fs::write(&settings, config["data"]["config.yaml"].as_str().context("settings")?)?;
    // The identity that is refused makes an event.
    let denied = cluster.directory.path().join("denied");
    std::fs::write(&denied, "spiffe://cluster.local/ns/shop/sa/test-thief\n")?;
    let port = TcpListener::bind((host, 0))?.local_addr()?.port();
    let arguments = [
        format!("--webhook-listen={host}:{port}"),
        format!("--injector-config={}", settings.display()),
        format!("--denied-identities={}", denied.display()),
        "--namespace=weft-system".to_owned(),
    ];
    let variables: BTreeMap<String, String> = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| Some((one["name"].as_str()?.to_owned(), one["value"].as_str()?.to_owned())))
        .collect();
    ensure!(variables.contains_key("WEFT_OWNER"), "{variables:?}");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok((port, cluster.control_plane_as(&kubeconfig, &variables, &name, &arguments)?))
}

fn has_made_everything(cluster: &Cluster) -> Result<()> {
    let owner = cluster.api.kubectl(&["get", "clusterrole", "weft-control-plane", "-o", "jsonpath={.metadata.uid}"])?;
    for (kind, name, namespace) in [
        ("secret", "weft-ca", NAMESPACE),
        ("secret", "weft-webhook", NAMESPACE),
        ("lease", "weft-control-plane", NAMESPACE),
        ("configmap", "weft-trust-bundle", NAMESPACE),
        ("configmap", "weft-trust-bundle", "shop"),
    ] {
        let uid = ["get", kind, name, "-n", namespace, "-o", "jsonpath={.metadata.ownerReferences[*].uid}"];
        eventually(&format!("{kind} {namespace}/{name} is there"), || {
            let found = cluster.api.kubectl(&uid)?;
            ensure!(found == owner, "its owner is {found}, not {owner}");
            Ok(Some(()))
        })?;
    }
    eventually("the webhooks have their CA", || {
        Ok(authorities(cluster)?.iter().all(|one| !one.is_empty()).then_some(()))
    })
}

/// `caBundle` of each of the four webhooks.
fn authorities(cluster: &Cluster) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (kind, name) in [("mutating", "weft-injector"), ("validating", "weft-admission")] {
        let kind = format!("{kind}webhookconfiguration");
        let found: Value = serde_json::from_str(&cluster.api.kubectl(&["get", &kind, name, "-o", "json"])?)?;
        let webhooks = found["webhooks"].as_array().context("webhooks")?;
        let authority = |webhook: &Value| webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned();
        all.extend(webhooks.iter().map(authority));
    }
    ensure!(all.len() == 4, "{all:?}");
    Ok(all)
}

/// The API server calls the webhooks by the chart's Service.
fn webhooks_answer(cluster: &Cluster, (port, _): &(u16, ControlPlane), host: IpAddr) -> Result<()> {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "addressType": if host.is_ipv4() { "IPv4" } else { "IPv6" },
        "metadata": {
            "name": "test-webhooks", "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": "weft-control-plane"},
        },
        "ports": [{"name": "webhooks", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [host.to_string()], "conditions": {"ready": true}}],
    });
    cluster.api.apply(&slice.to_string())?;
    for namespace in ["shop", "labelled"] {
        eventually("a pod gets its sidecar", || {
            if let Err(why) = pod(&cluster.api, namespace, "injected", "default", json!({})) {
                ensure!(why.contains("AlreadyExists"), "{why}");
            }
            let names = "jsonpath={.spec.initContainers[*].name}";
            let names = cluster.api.kubectl(&["get", "pod", "test-injected", "-n", namespace, "-o", names])?;
            Ok((names == "weft-init weft-proxy").then_some(()))
        })?;
    }
    let refused = policy("test-typo").replace("rules", "rulez");
    let why = cluster.api.apply(&refused).err().context("it was let in")?;
    ensure!(why.to_string().contains("Write `rules`"), "{why}");
    Ok(())
}

fn policy(name: &str) -> String {
    json!({
        "apiVersion": "policy.weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"action": "Allow", "rules": [{}]},
    })
    .to_string()
}

fn issues_certificates_and_writes_status(cluster: &Cluster, control_plane: &ControlPlane) -> Result<()> {
    let of = |name, account| PodSpec { namespace: "shop", name, account, address: "", meshed: true };
    let sidecar = cluster.sidecar(&of("test-injected", "default"), control_plane)?;
    eventually("it has a certificate", || Ok(get(sidecar.admin, "/ready").ok().filter(|(status, _)| *status == 200)))?;
    cluster.api.apply(&policy("test-readers"))?;
    let conditions = "jsonpath={.status.conditions[*].type}";
    let conditions = ["get", "authorizationpolicy", "test-readers", "-n", "shop", "-o", conditions];
    eventually("its status is written", || Ok(cluster.api.kubectl(&conditions)?.contains("Programmed").then_some(())))?;
    cluster.api.kubectl(&["create", "serviceaccount", "test-thief", "-n", "shop"])?;
    pod(&cluster.api, "shop", "thief", "test-thief", json!({})).map_err(anyhow::Error::msg)?;
    let _refused = cluster.sidecar(&of("test-thief", "test-thief"), control_plane)?;
    let reasons = ["get", "events.events.k8s.io", "-n", "shop", "-o", "jsonpath={.items[*].reason}"];
    eventually("an event", || Ok(cluster.api.kubectl(&reasons)?.contains("CertificateRefused").then_some(())))
        .with_context(|| control_plane.process.tail())
}

/// What can be true without a node.
fn check_says_so(cluster: &Cluster) -> Result<()> {
    let mut check = Command::new(crate::fixture::WEFT);
    let output = check.args(["check", "-o", "json"]).env("KUBECONFIG", cluster.api.kubeconfig()).output()?;
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    println!("{report:#}");
    Ok(())
}

/// What the control plane may do, by the API server's own word.
fn may_do_nothing_else(cluster: &Cluster) -> Result<()> {
    let table = [
        ("create", "authentication.k8s.io", "tokenreviews", "", "", true),
        ("get", "", "secrets", "weft-ca", NAMESPACE, true),
        ("get", "", "secrets", "weft-ca", "shop", false),
        ("get", "", "secrets", "other", NAMESPACE, false),
        ("list", "", "secrets", "", NAMESPACE, false),
        ("list", "", "secrets", "", "", false),
        ("delete", "", "secrets", "weft-ca", NAMESPACE, false),
        ("create", "", "secrets", "", "shop", false),
        ("get", "", "configmaps", "weft-trust-bundle", "shop", true),
        ("get", "", "configmaps", "other", "shop", false),
        ("patch", "", "configmaps", "kube-root-ca.crt", "kube-system", false),
        ("create", "", "pods", "", "shop", false),
        ("delete", "", "pods", "", "shop", false),
        ("patch", "", "pods", "", "shop", false),
        ("create", "", "pods/exec", "", "shop", false),
        ("create", "", "serviceaccounts/token", "", "shop", false),
        ("patch", "", "namespaces", "shop", "", false),
        ("patch", "", "services", "", "shop", false),
        ("get", "", "nodes", "", "", false),
        ("patch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "other", "", false),
        ("delete", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "weft-injector", "", false),
        ("patch", "admissionregistration.k8s.io", "validatingadmissionpolicies", "weft-injected", "", false),
        ("patch", "policy.weft.dev", "authorizationpolicies", "", "shop", false),
        ("patch", "policy.weft.dev", "authorizationpolicies/status", "", "shop", true),
        ("update", "coordination.k8s.io", "leases", "other", NAMESPACE, false),
        ("escalate", "rbac.authorization.k8s.io", "clusterroles", "weft-control-plane", "", false),
        ("patch", "rbac.authorization.k8s.io", "clusterroles", "weft-control-plane", "", false),
        ("create", "rbac.authorization.k8s.io", "clusterrolebindings", "", "", false),
        ("impersonate", "", "users", "admin", "", false),
        ("*", "*", "*", "", "", false),
    ];
    let reviews: Vec<Value> = table
        .iter()
        .map(|(verb, group, resource, name, namespace, _)| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let attributes = json!({
                "verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name,
                "namespace": namespace,
            });
            json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {"user": ACCOUNT, "groups": ["system:authenticated"], "resourceAttributes": attributes},
            })
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": reviews}).to_string();
    let answers: Value = serde_json::from_str(&cluster.api.with_input(&["create", "-f", "-", "-o", "json"], &list)?)?;
    let answers = answers["items"].as_array().context("a list")?;
    ensure!(answers.len() == table.len(), "{answers:?}");
    for (answer, row) in answers.iter().zip(table) {
        ensure!(answer["status"]["allowed"].as_bool().unwrap_or_default() == row.5, "{row:?}: {}", answer["status"]);
    }
    Ok(())
}
