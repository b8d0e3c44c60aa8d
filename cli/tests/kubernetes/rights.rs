//! The rights that the chart gives: the control plane can do all of its work with them, has no others, and nothing that it
//! made stays.
use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::lab::testing::Test;

use crate::chart::{Charted, RELEASE};
use crate::fixture::{ControlPlane, PodSpec, eventually, get, own_address};
use crate::operator::{expect, weft};
use crate::routes;

pub const TESTS: &[Test] = &[("the_chart_s_rights_are_enough_and_no_more", the_chart_s_rights_are_enough_and_no_more)];

const NAMESPACE: &str = "weft-system";
const ACCOUNT: &str = "system:serviceaccount:weft-system:weft-control-plane";
const CHART: &str = "../charts/weft";

fn the_chart_s_rights_are_enough_and_no_more() -> Result<()> {
    let Some(host) = own_address() else {
        println!("skipped: this host has no address but loopback, which no endpoint may have");
        return Ok(());
    };
    let cluster = Charted::start()?;
    cluster.namespace(NAMESPACE, json!({}), json!({}))?;
    cluster.namespace("shop", json!({"weft.dev/inject": "enabled"}), json!({}))?;
    let before = inventory(&cluster)?;
    cluster.helm(&[&["install"], RELEASE, &[CHART]].concat())?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
    {
        let (control_plane, webhooks) = start(&cluster, host)?;
        has_made_everything(&cluster).with_context(|| control_plane.process.tail())?;
        webhooks_answer(&cluster, host, webhooks).with_context(|| control_plane.process.tail())?;
        if routes::definitions().is_ok() {
            follows_routes(&cluster).with_context(|| control_plane.process.tail())?;
        }
        issues_certificates_and_writes_status(&cluster, &control_plane)?;
        nothing_fails_but_what_needs_a_node(&cluster)?;
        let text = control_plane.process.text();
        let refused = |line: &&str| line.to_lowercase().contains("forbidden") || line.contains("cannot ");
        ensure!(!text.lines().any(|line| refused(&line)), "{:?}", text.lines().find(refused));
    }
    may_do_nothing_else(&cluster)?;
    if routes::definitions().is_ok() {
        routes::forget(&cluster.0)?;
    }

    let bundles = authorities(&cluster)?;
    cluster.helm(&[&["upgrade"], RELEASE, &[CHART]].concat())?;
    ensure!(authorities(&cluster)? == bundles, "an upgrade takes the webhooks' CA away");
    cluster.helm(&[&["uninstall", "--wait"], RELEASE].concat())?;
    eventually("nothing of it stays", || {
        let left: Vec<String> = inventory(&cluster)?.difference(&before).cloned().collect();
        ensure!(left.is_empty(), "{left:#?}");
        Ok(Some(()))
    })
}

/// All objects, but events, what the cluster writes for itself, and what the test made.
fn inventory(cluster: &Charted) -> Result<BTreeSet<String>> {
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let row = "{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let all = cluster.kubectl(&["get", &kinds.join(","), "-A", "-o", &format!("jsonpath={row}")])?;
    Ok(all
        .lines()
        .filter(|line| !line.contains(" kube-system/") && !line.contains("/test-"))
        .map(str::to_owned)
        .collect())
}

/// Makes a pod as its owner would, without a sidecar.
fn pod(cluster: &Charted, name: &str, account: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("test-{name}"), "namespace": "shop"},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "app:test"}]},
    });
    cluster.0.api.with_input(&["create", "-f", "-"], &pod.to_string()).map(drop)
}

/// The control plane as the Deployment has it: its settings, its service account, the name of a pod of it. With the port of
/// its webhooks.
fn start(cluster: &Charted, host: IpAddr) -> Result<(ControlPlane, u16)> {
    let json = |arguments: &[&str]| -> Result<Value> {
        Ok(serde_json::from_str(&cluster.kubectl(&[arguments, &["-n", NAMESPACE, "-o", "json"]].concat())?)?)
    };
    let deployment = json(&["get", "deployment", "weft-control-plane"])?;
    let pods = eventually("the Deployment makes pods", || {
        let pods = json(&["get", "pods", "-l", "weft.dev/component=control-plane"])?;
        Ok(pods["items"].as_array().filter(|pods| !pods.is_empty()).cloned())
    })?;
    let name = pods[0]["metadata"]["name"].as_str().context("a name")?.to_owned();
    let token = cluster.kubectl(&["create", "token", "weft-control-plane", "-n", NAMESPACE, "--duration=1h"])?;
    let kubeconfig = cluster.0.directory.path().join("kubeconfig");
    std::fs::copy(cluster.0.api.kubeconfig(), &kubeconfig)?;
    let file = format!("--kubeconfig={}", kubeconfig.display());
    cluster.kubectl(&[&file, "config", "set-credentials", "admin", "--token", token.trim()])?;
    ensure!(cluster.kubectl(&[&file, "auth", "whoami"])?.contains(ACCOUNT));

    let settings = cluster.0.directory.path().join("config.yaml");
    let config = json(&["get", "configmap", "weft-injector"])?;
    std::fs::write(&settings, config["data"]["config.yaml"].as_str().context("settings")?)?;
    // The identity that is refused makes an event.
    let denied = cluster.0.directory.path().join("denied");
    std::fs::write(&denied, "spiffe://cluster.local/ns/shop/sa/test-thief\n")?;
    let port = TcpListener::bind((host, 0))?.local_addr()?.port();
    let mut arguments = vec![
        format!("--webhook-listen={host}:{port}"),
        format!("--injector-config={}", settings.display()),
        format!("--denied-identities={}", denied.display()),
        format!("--namespace={NAMESPACE}"),
    ];
    let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().context("variables")?;
    // What stays of them is not a place of the pod.
    for name in ["OWNER", "TRUST_DOMAIN", "DEFAULT_POLICY", "CERTIFICATE_LIFETIME", "LOG"] {
        let variable = variables.iter().find(|variable| variable["name"] == format!("WEFT_{name}"));
        let value = variable.and_then(|variable| variable["value"].as_str()).with_context(|| format!("no {name}"))?;
        arguments.push(format!("--{}={value}", name.to_lowercase().replace('_', "-")));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok((cluster.0.control_plane_as(&kubeconfig, &name, &arguments)?, port))
}

fn has_made_everything(cluster: &Charted) -> Result<()> {
    let owner = cluster.kubectl(&["get", "clusterrole", "weft-control-plane", "-o", "jsonpath={.metadata.uid}"])?;
    for (kind, name, namespace) in [
        ("secret", "weft-ca", NAMESPACE),
        ("secret", "weft-webhook", NAMESPACE),
        ("lease", "weft-control-plane", NAMESPACE),
        ("configmap", "weft-trust-bundle", NAMESPACE),
        ("configmap", "weft-trust-bundle", "shop"),
    ] {
        let uid = ["get", kind, name, "-n", namespace, "-o", "jsonpath={.metadata.ownerReferences[*].uid}"];
        eventually(&format!("{kind} {namespace}/{name} is there"), || {
            let found = cluster.kubectl(&uid)?;
            ensure!(found == owner, "its owner is {found}, not {owner}");
            Ok(Some(()))
        })?;
    }
    eventually("the webhooks have their CA", || {
        Ok(authorities(cluster)?.iter().all(|one| !one.is_empty()).then_some(()))
    })
}

/// `caBundle` of each of the five webhooks.
fn authorities(cluster: &Charted) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (kind, name) in [("mutating", "weft-injector"), ("validating", "weft-admission")] {
        let kind = format!("{kind}webhookconfiguration");
        let found: Value = serde_json::from_str(&cluster.kubectl(&["get", &kind, name, "-o", "json"])?)?;
        let webhooks = found["webhooks"].as_array().context("webhooks")?;
        let authority = |webhook: &Value| webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned();
        all.extend(webhooks.iter().map(authority));
    }
    ensure!(all.len() == 5, "{all:?}");
    Ok(all)
}

/// The API server calls the webhooks by the chart's Service.
fn webhooks_answer(cluster: &Charted, host: IpAddr, port: u16) -> Result<()> {
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
    cluster.0.api.apply(&slice.to_string())?;
    eventually("a pod gets its sidecar", || {
        if let Err(why) = pod(cluster, "injected", "default") {
            ensure!(why.to_string().contains("AlreadyExists"), "{why:#}");
        }
        let names = "jsonpath={.spec.initContainers[*].name}";
        let names = cluster.kubectl(&["get", "pod", "test-injected", "-n", "shop", "-o", names])?;
        Ok((names == "weft-init weft-proxy").then_some(()))
    })?;
    let refused = policy("test-typo").replace("rules", "rulez");
    let why = cluster.0.api.apply(&refused).err().context("it was let in")?;
    ensure!(why.to_string().contains("Write `rules`"), "{why}");
    Ok(())
}

/// With the Gateway API, which came after the chart: a route is judged before it is stored, and has a status afterwards.
fn follows_routes(cluster: &Charted) -> Result<()> {
    routes::define(&cluster.0)?;
    let route = |value: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "test-route", "namespace": "shop"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "test-service"}],
                "rules": [{"matches": [{"path": {"type": "RegularExpression", "value": value}}]}],
            },
        })
        .to_string()
    };
    // It is asked as soon as the API server knows of the kind. What was let in before that is judged when it changes.
    let mut value = "(".to_owned();
    eventually("a route that nobody could follow is refused", || {
        value.push('(');
        let refused = cluster.0.api.apply(&route(&value)).err();
        Ok(refused.filter(|why| why.to_string().contains("RE2")))
    })?;
    cluster.0.api.apply(&route("/a+"))?;
    let reason = "jsonpath={.status.parents[0].conditions[0].reason}";
    let reason = ["get", "httproute", "test-route", "-n", "shop", "-o", reason];
    eventually("the route's status is written", || {
        Ok(cluster.kubectl(&reason)?.contains("NoMatchingParent").then_some(()))
    })
}

fn policy(name: &str) -> String {
    json!({
        "apiVersion": "policy.weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"action": "Allow", "rules": [{}]},
    })
    .to_string()
}

fn issues_certificates_and_writes_status(cluster: &Charted, control_plane: &ControlPlane) -> Result<()> {
    let of = |name, account| PodSpec { namespace: "shop", name, account, address: "", meshed: true };
    let sidecar = cluster.0.sidecar(&of("test-injected", "default"), control_plane)?;
    eventually("it has a certificate", || Ok(get(sidecar.admin, "/ready").ok().filter(|(status, _)| *status == 200)))?;
    cluster.0.api.apply(&policy("test-readers"))?;
    let conditions = "jsonpath={.status.conditions[*].type}";
    let conditions = ["get", "authorizationpolicy", "test-readers", "-n", "shop", "-o", conditions];
    eventually("its status is written", || Ok(cluster.kubectl(&conditions)?.contains("Programmed").then_some(())))?;
    cluster.kubectl(&["create", "serviceaccount", "test-thief", "-n", "shop"])?;
    pod(cluster, "thief", "test-thief")?;
    let _refused = cluster.0.sidecar(&of("test-thief", "test-thief"), control_plane)?;
    let reasons = ["get", "events.events.k8s.io", "-n", "shop", "-o", "jsonpath={.items[*].reason}"];
    eventually("an event", || Ok(cluster.kubectl(&reasons)?.contains("CertificateRefused").then_some(())))
        .with_context(|| control_plane.process.tail())
}

fn nothing_fails_but_what_needs_a_node(cluster: &Charted) -> Result<()> {
    let (report, code) = weft(&cluster.0, "check")?;
    ensure!(code == 1, "{report:#}");
    let findings = report["groups"].as_array().into_iter().flatten().flat_map(|group| group["findings"].as_array());
    let failed = findings.flatten().filter(|finding| finding["verdict"] == "failure");
    let failed: Vec<&str> = failed.filter_map(|finding| finding["check"].as_str()).collect();
    ensure!(failed == ["deployment", "replicas"], "{report:#}");
    expect(
        &report,
        &[
            ("Webhooks", "injection", "ok"),
            ("Webhooks", "policy admission", "ok"),
            ("Certificates", "trust bundles", "ok"),
            ("Injection", "pods", "ok"),
        ],
    )
}

/// What the control plane may do, by the API server's own word.
fn may_do_nothing_else(cluster: &Charted) -> Result<()> {
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
        ("watch", "", "nodes", "", "", true),
        ("patch", "", "nodes", "", "", false),
        ("patch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "other", "", false),
        ("delete", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "weft-injector", "", false),
        ("patch", "admissionregistration.k8s.io", "validatingadmissionpolicies", "weft-injected", "", false),
        ("patch", "policy.weft.dev", "authorizationpolicies", "", "shop", false),
        ("patch", "policy.weft.dev", "authorizationpolicies/status", "", "shop", true),
        ("watch", "gateway.networking.k8s.io", "httproutes", "", "", true),
        ("watch", "gateway.networking.k8s.io", "grpcroutes", "", "", true),
        ("watch", "gateway.networking.k8s.io", "referencegrants", "", "", true),
        ("patch", "gateway.networking.k8s.io", "httproutes/status", "", "shop", true),
        ("patch", "gateway.networking.k8s.io", "grpcroutes/status", "", "shop", true),
        ("patch", "gateway.networking.k8s.io", "httproutes", "", "shop", false),
        ("list", "gateway.networking.k8s.io", "gateways", "", "", false),
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
    let answers = cluster.0.api.with_input(&["create", "-f", "-", "-o", "json"], &list)?;
    // One after the other, not as a list.
    let answers: Vec<Value> = serde_json::Deserializer::from_str(&answers).into_iter().collect::<Result<_, _>>()?;
    ensure!(answers.len() == table.len(), "{answers:?}");
    for (answer, row) in answers.iter().zip(table) {
        ensure!(answer["status"]["allowed"].as_bool().unwrap_or_default() == row.5, "{row:?}: {}", answer["status"]);
    }
    Ok(())
}
