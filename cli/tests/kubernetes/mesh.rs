//! From objects of the API to what sidecars are told, and who gets a certificate.
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_certs::{CertificateAuthority, TrustDomain};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, PodSpec, eventually, get, meshed};

pub const TESTS: &[Test] = &[
    (
        "a_pod_is_told_of_services_and_policies_and_of_each_change",
        a_pod_is_told_of_services_and_policies_and_of_each_change,
    ),
    ("only_a_pods_own_token_gets_a_certificate", only_a_pods_own_token_gets_a_certificate),
    ("a_deleted_pod_loses_its_stream_and_its_identity", a_deleted_pod_loses_its_stream_and_its_identity),
    ("replicas_share_one_authority", replicas_share_one_authority),
    ("certificates_are_renewed_while_the_api_server_is_away", certificates_are_renewed_while_the_api_server_is_away),
    ("the_operators_issuer_signs_and_its_successor_too", the_operators_issuer_signs_and_its_successor_too),
    ("an_api_server_that_comes_back_is_followed_again", an_api_server_that_comes_back_is_followed_again),
    ("a_broken_policy_refuses_and_stops_nobody_else", a_broken_policy_refuses_and_stops_nobody_else),
];

const POLICY: &str = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: stock}]
  action: Allow
  rules: [{from: [{serviceAccounts: [orders]}], to: [{methods: [GET]}]}]
";

/// orders and stock, both in the mesh, and stock's Service.
fn shop() -> Result<(Cluster, PodSpec<'static>, PodSpec<'static>)> {
    let cluster = Cluster::start()?;
    cluster.namespace("shop", json!({"weft.dev/default-policy": "deny"}))?;
    let (orders, stock) = (meshed("orders-1", "orders", "10.1.0.1"), meshed("stock-1", "stock", "10.1.0.2"));
    cluster.pod(&orders)?;
    cluster.pod(&stock)?;
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-1", "10.1.0.2", true)])?;
    Ok((cluster, orders, stock))
}

/// Address and identity of those who are called for `service`.
pub fn endpoints(config: &Value, service: &str) -> Vec<(String, Option<String>)> {
    let ports = config["configuration"]["services"].as_array().into_iter().flatten().filter(|s| s["name"] == service);
    let endpoints = ports.flat_map(|service| service["ports"].as_array().into_iter().flatten());
    let endpoints = endpoints.flat_map(|port| port["endpoints"].as_array().into_iter().flatten());
    let text = |value: &Value| value.as_str().map(str::to_owned);
    endpoints.map(|one| (text(&one["address"]).unwrap_or_default(), text(&one["identity"]))).collect()
}

fn a_pod_is_told_of_services_and_policies_and_of_each_change() -> Result<()> {
    let (cluster, orders, stock) = shop()?;
    cluster.api.apply(POLICY)?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let (orders, stock) = (cluster.sidecar(&orders, &control_plane)?, cluster.sidecar(&stock, &control_plane)?);
    let id = || Some("spiffe://cluster.local/ns/shop/sa/stock".to_owned());
    orders.until("orders knows where stock is", |config| {
        endpoints(config, "shop/stock") == [("10.1.0.2:8080".to_owned(), id())]
    })?;
    let told = stock.until("stock has its policy", |config| config.to_string().contains("shop/readers"))?;
    ensure!(told.to_string().contains("\"deny\""), "the namespace's default: {told:#}");

    // Ready, not ready, ready elsewhere: the slice decides, whatever the selector says.
    cluster.pod(&meshed("stock-2", "stock", "10.1.0.3"))?;
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-1", "10.1.0.2", false), ("stock-2", "10.1.0.3", true)])?;
    orders.until("only who is ready is called", |config| {
        endpoints(config, "shop/stock") == [("10.1.0.3:8080".to_owned(), id())]
    })?;
    // A pod that nobody knows yet may be in the mesh: it is not called in the clear.
    cluster.service("shop", "stock", "10.96.1.1", &[("stock-3", "10.1.0.4", true), ("stock-2", "10.1.0.3", true)])?;
    cluster.pod(&PodSpec { meshed: false, ..meshed("stock-4", "stock", "10.1.0.5") })?;
    orders.until("still only who is known", |config| {
        endpoints(config, "shop/stock") == [("10.1.0.3:8080".to_owned(), id())]
    })?;
    cluster.api.kubectl(&["delete", "authorizationpolicy", "readers", "-n", "shop"])?;
    stock.until("the policy is gone", |config| !config.to_string().contains("shop/readers"))?;
    Ok(())
}

fn only_a_pods_own_token_gets_a_certificate() -> Result<()> {
    let (cluster, orders, _) = shop()?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let good = cluster.sidecar(&orders, &control_plane)?;
    eventually("a good token is accepted", || Ok(get(good.admin, "/ready").ok().filter(|(status, _)| *status == 200)))?;
    // Another audience, and no pod: neither is what the kubelet gives a sidecar.
    let wrong = cluster.token(&orders, "https://kubernetes.default.svc")?;
    let unbound = cluster.api.kubectl(&["create", "token", "orders", "-n", "shop", "--audience", "weft"])?;
    for (case, token, reason) in
        [("audience", wrong, "it is for another audience"), ("no pod", unbound, "is not bound to a pod")]
    {
        let refused = meshed("orders-2", "orders", "10.1.0.9");
        cluster.pod(&refused)?;
        let sidecar = cluster.sidecar(&refused, &control_plane)?;
        std::fs::write(cluster.directory.path().join("token-orders-2"), token.trim())?;
        eventually("the control plane says why", || Ok(control_plane.process.text().contains(reason).then_some(())))?;
        drop(sidecar);
        ensure!(!control_plane.process.text().contains(token.trim()), "{case}: a token is in the log");
    }
    Ok(())
}

fn a_deleted_pod_loses_its_stream_and_its_identity() -> Result<()> {
    let (cluster, orders, _) = shop()?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let sidecar = cluster.sidecar(&orders, &control_plane)?;
    sidecar.until("told", |config| !endpoints(config, "shop/stock").is_empty())?;
    let token = cluster.token(&orders, "weft")?;
    cluster.api.kubectl(&["delete", "pod", "orders-1", "-n", "shop", "--grace-period=0", "--force"])?;
    eventually("its stream ends", || Ok(control_plane.workload("shop/orders-1")?.is_none().then_some(())))?;
    // The same name again is another pod: the old one's token is worth nothing.
    cluster.pod(&orders)?;
    let again = cluster.sidecar(&orders, &control_plane)?;
    std::fs::write(cluster.directory.path().join("token-orders-1"), token)?;
    drop(sidecar);
    eventually("the old token is refused", || {
        Ok(control_plane.process.text().contains("the API server refuses the token").then_some(()))
    })?;
    drop(again);
    Ok(())
}

fn replicas_share_one_authority() -> Result<()> {
    let (cluster, orders, _) = shop()?;
    // Both start at once, on an empty cluster.
    let bundles: Vec<String> = std::thread::scope(|scope| {
        let start = |name: &'static str| scope.spawn(|| cluster.control_plane(name, &[]));
        let both = ["weft-1", "weft-2"].map(start);
        let bundle = |started: Result<crate::fixture::ControlPlane>| -> Result<String> {
            Ok(std::fs::read_to_string(started?.state.join("trust-bundle.pem"))?)
        };
        both.into_iter().map(|thread| bundle(thread.join().expect("no panic"))).collect::<Result<_>>()
    })?;
    ensure!(bundles[0] == bundles[1], "two roots");
    // And one that comes later signs for sidecars that trust the first.
    let control_plane = cluster.control_plane("weft-3", &[])?;
    std::fs::write(control_plane.state.join("trust-bundle.pem"), &bundles[0])?;
    let sidecar = cluster.sidecar(&orders, &control_plane)?;
    sidecar.until("told", |config| !endpoints(config, "shop/stock").is_empty())?;
    // Deleted by mistake, it is written again.
    cluster.api.kubectl(&["delete", "secret", "weft-ca", "-n", "weft-system"])?;
    eventually("the Secret is back", || {
        Ok(cluster.api.kubectl(&["get", "secret", "weft-ca", "-n", "weft-system", "-o", "name"]).ok())
    })?;
    Ok(())
}

fn certificates_are_renewed_while_the_api_server_is_away() -> Result<()> {
    let (mut cluster, orders, _) = shop()?;
    let short = ["--allow-short-lifetimes", "--certificate-lifetime=8s"];
    let control_plane = cluster.control_plane("weft-1", &short)?;
    let sidecar = cluster.sidecar(&orders, &control_plane)?;
    sidecar.until("told", |config| !endpoints(config, "shop/stock").is_empty())?;
    ensure!(!control_plane.process.text().contains("\"proof\":\"certificate\""), "the token is asked for first");
    cluster.api.stop_api_server();
    eventually("a certificate renews itself", || {
        Ok(control_plane.process.text().contains("\"proof\":\"certificate\"").then_some(()))
    })?;
    Ok(())
}

fn the_operators_issuer_signs_and_its_successor_too() -> Result<()> {
    let (cluster, orders, _) = shop()?;
    let domain = TrustDomain::parse("cluster.local")?;
    let made = || CertificateAuthority::self_signed(&domain, Duration::from_secs(86_400), SystemTime::now());
    let (first, second) = (made()?, made()?);
    let both = format!("{}{}", first.certificates_pem(), second.certificates_pem());
    // As cert-manager writes it.
    let secret = |signer: &CertificateAuthority, roots: &str| {
        let data = json!({"tls.crt": signer.certificates_pem(), "tls.key": signer.key_pem(), "ca.crt": roots});
        let metadata = json!({"name": "issuer", "namespace": "weft-system"});
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "stringData": data,
        });
        cluster.api.apply(&secret.to_string()).map(drop)
    };
    secret(&first, &both)?;
    let control_plane = cluster.control_plane("weft-1", &["--issuer-secret=issuer"])?;
    ensure!(
        cluster.api.kubectl(&["get", "secret", "weft-ca", "-n", "weft-system"]).is_err(),
        "a root nobody asked for"
    );
    let sidecar = cluster.sidecar(&orders, &control_plane)?;
    let told = sidecar.until("told", |config| !endpoints(config, "shop/stock").is_empty())?;
    ensure!(told["identity"]["roots"] == 2, "it trusts both: {told:#}");
    // What cannot sign changes nothing; what can is used.
    let broken = json!({"stringData": {"tls.key": "no key"}}).to_string();
    cluster.api.kubectl(&["patch", "secret", "issuer", "-n", "weft-system", "-p", &broken])?;
    eventually("it is said", || {
        Ok(control_plane.process.text().contains("going on with the one in use").then_some(()))
    })?;
    secret(&second, second.certificates_pem().as_str())?;
    sidecar.until("the sidecar has a certificate under the new root", |config| config["identity"]["roots"] == 1)?;
    Ok(())
}

fn an_api_server_that_comes_back_is_followed_again() -> Result<()> {
    let (mut cluster, orders, _) = shop()?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let sidecar = cluster.sidecar(&orders, &control_plane)?;
    sidecar.until("told", |config| !endpoints(config, "shop/stock").is_empty())?;
    cluster.api.stop_api_server();
    eventually("it is missed", || Ok(control_plane.process.text().contains("cannot watch").then_some(())))?;
    ensure!(get(control_plane.admin, "/ready")?.0 == 200, "what is known stays in force");
    ensure!(!endpoints(&sidecar.config()?, "shop/stock").is_empty(), "nothing was taken back");
    cluster.api.start_api_server()?;
    cluster.service("shop", "stock", "10.96.1.1", &[])?;
    sidecar.until("what changed meanwhile is told", |config| endpoints(config, "shop/stock").is_empty())?;
    Ok(())
}

fn a_broken_policy_refuses_and_stops_nobody_else() -> Result<()> {
    let (cluster, _, stock) = shop()?;
    cluster.namespace("attic", json!({}))?;
    let web = PodSpec { namespace: "attic", ..meshed("web-1", "web", "10.1.0.7") };
    cluster.pod(&web)?;
    // Without a webhook it gets in; what it restricts is unknown.
    cluster.api.apply(&POLICY.replace("methods", "methodes"))?;
    let control_plane = cluster.control_plane("weft-1", &[])?;
    let (_, errors) = get(control_plane.admin, "/config/errors")?;
    ensure!(errors.contains("`methodes`") && errors.contains("Write `methods`"), "{errors}");
    let stock = cluster.sidecar(&stock, &control_plane)?;
    stock.until("every call is refused by its name", |config| {
        let text = config.to_string();
        text.contains("shop/readers") && text.contains("unreadable")
    })?;
    let web = cluster.sidecar(&web, &control_plane)?;
    web.until("other namespaces are told all", |config| !config.to_string().contains("shop/readers"))?;
    cluster.api.apply(POLICY)?;
    stock.until("mended", |config| !config.to_string().contains("unreadable"))?;
    Ok(())
}
