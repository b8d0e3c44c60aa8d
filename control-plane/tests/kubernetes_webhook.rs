//! The webhooks, their certificate and the trust bundle against a real API server: the one of `KUBECONFIG`. Without it
//! each test says that it was skipped.
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams,
};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_certs::{CertificateAuthority, TrustBundle, TrustDomain};
use weft_control_plane::cluster::{Cluster, namespaces, trust_bundle, webhook_secret, webhooks};
use weft_control_plane::metrics::Metrics;
use weft_control_plane::webhook::certificate::{self, Serving};
use weft_control_plane::webhook::injection;
use weft_control_plane::webhook::injector::InjectorConfig;
use weft_control_plane::webhook::server::{self, Hooks};

/// Long enough for the slowest machine; reached only by a failing test.
const LONG: Duration = Duration::from_secs(60);

async fn client() -> Option<Client> {
    if std::env::var_os("KUBECONFIG").is_none() {
        println!("skipped: KUBECONFIG names no cluster");
        return None;
    }
    weft_certs::install_crypto_provider();
    Some(Client::try_default().await.expect("KUBECONFIG can be used"))
}

/// What `ask` gives once it gives something: what controllers do takes a moment.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let asked = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, asked).await.unwrap_or_else(|_| panic!("it never came to be that {what}"))
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of this kind")
}

/// A replica in a namespace of its own, with an owner for what it makes.
async fn replica(client: &Client, name: &str) -> Cluster {
    let suffix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").subsec_nanos();
    let namespace = format!("{name}-{suffix}");
    namespace_of(client, &namespace, &[]).await;
    let role: ClusterRole = object(json!({"metadata": {"name": namespace}, "rules": []}));
    let role = Api::all(client.clone()).create(&PostParams::default(), &role).await.expect("created");
    let owner = OwnerReference {
        api_version: "rbac.authorization.k8s.io/v1".into(),
        kind: "ClusterRole".into(),
        name: role.name_any(),
        uid: role.uid().expect("a uid"),
        ..OwnerReference::default()
    };
    Cluster {
        client: client.clone(),
        namespace,
        pod: "weft-control-plane-0".into(),
        service: "weft-control-plane".into(),
        owner: Some(owner),
    }
}

async fn namespace_of(client: &Client, name: &str, annotations: &[(&str, &str)]) {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    let namespace = object(json!({"metadata": {
        "name": name, "annotations": annotations, "labels": {"weft-test": name},
    }}));
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.expect("created");
    let account: ServiceAccount = object(json!({"metadata": {"name": "default"}}));
    // A controller may have been first.
    let _ = Api::namespaced(client.clone(), name).create(&PostParams::default(), &account).await;
}

/// A replica's webhooks, all of it running.
struct Webhooks {
    port: u16,
    certificates: watch::Receiver<Option<Arc<Serving>>>,
    not_ready: watch::Receiver<Option<String>>,
    _stop: DropGuard,
}

async fn start(cluster: &Cluster) -> Webhooks {
    let stop = CancellationToken::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let (sender, certificates) = watch::channel(None);
    let wanted = webhook_secret::Wanted {
        names: certificate::names(&cluster.service, &cluster.namespace, None),
        client_roots: None,
    };
    tokio::spawn(webhook_secret::run(cluster.clone(), wanted, sender, Metrics::default(), stop.clone()));
    tokio::spawn(webhooks::run(cluster.client.clone(), certificates.clone(), stop.clone()));
    let (_, config) = watch::channel(Arc::new(InjectorConfig::default()));
    let hooks = Hooks {
        inject: injection::decide(config, namespaces::lookup(cluster.client.clone())),
        services: Some(Arc::new(|name| name.name == "inventory")),
        metrics: Metrics::default(),
    };
    let (sender, not_ready) = watch::channel(Some("not started".into()));
    tokio::spawn(server::serve(listener, certificates.clone(), hooks, sender, stop.clone()));
    Webhooks { port, certificates, not_ready, _stop: stop.drop_guard() }
}

/// The two configurations as the chart has them, but for URLs in place of the Service.
async fn configure(client: &Client, port: u16, selected: &str) {
    let webhook = |name: &str, path: &str, rules: Value| {
        json!({
            "name": name, "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://127.0.0.1:{port}{path}")},
            "namespaceSelector": {"matchLabels": {"weft-test": selected}}, "rules": [rules],
        })
    };
    let pods = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
    let policies = json!({
        "operations": ["CREATE", "UPDATE"], "apiGroups": ["policy.weft.dev"], "apiVersions": ["*"], "resources": ["*"],
    });
    let annotated = json!({
        "operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"],
        "resources": ["namespaces", "services"],
    });
    let injector: MutatingWebhookConfiguration = object(json!({
        "metadata": {"name": webhooks::INJECTOR}, "webhooks": [webhook("injector.weft.dev", "/inject", pods)],
    }));
    let admission: ValidatingWebhookConfiguration = object(json!({
        "metadata": {"name": webhooks::ADMISSION}, "webhooks": [
            webhook("admission.weft.dev", "/validate", policies),
            webhook("annotations.weft.dev", "/validate", annotated),
        ],
    }));
    Api::all(client.clone()).create(&PostParams::default(), &injector).await.expect("created");
    Api::all(client.clone()).create(&PostParams::default(), &admission).await.expect("created");
}

async fn unconfigure(client: &Client) {
    let gone = DeleteParams::default();
    let injector: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let _ = injector.delete(webhooks::INJECTOR, &gone).await;
    let admission: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let _ = admission.delete(webhooks::ADMISSION, &gone).await;
}

/// The kind AuthorizationPolicy: as the cluster has it, else one that takes anything.
async fn policies(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let definition: CustomResourceDefinition = object(json!({
        "metadata": {"name": "authorizationpolicies.policy.weft.dev"},
        "spec": {
            "group": "policy.weft.dev", "scope": "Namespaced",
            "names": {"plural": "authorizationpolicies", "singular": "authorizationpolicy", "kind": "AuthorizationPolicy"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    }));
    let _ = Api::all(client.clone()).create(&PostParams::default(), &definition).await;
    let kind = GroupVersionKind::gvk("policy.weft.dev", "v1alpha1", "AuthorizationPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "authorizationpolicies");
    let policies = Api::namespaced_with(client.clone(), namespace, &resource);
    until("the API server knows the kind", || async { policies.list(&Default::default()).await.ok() }).await;
    policies
}

fn policy(name: &str, spec: Value) -> DynamicObject {
    object(json!({
        "apiVersion": "policy.weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": name}, "spec": spec,
    }))
}

fn pod(name: &str, spec: Value) -> Pod {
    let mut pod = json!({"metadata": {"name": name}, "spec": spec});
    // Where nothing sets the default.
    pod["spec"]["serviceAccountName"] = "default".into();
    pod["spec"]["containers"] = json!([{"name": "app", "image": "app:1"}]);
    object(pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_asks_the_webhooks_and_does_what_they_say() {
    let Some(client) = client().await else { return };
    unconfigure(&client).await;
    let cluster = replica(&client, "weft-webhooks").await;
    let mut webhooks = start(&cluster).await;
    let shop = format!("shop-of-{}", cluster.namespace);
    namespace_of(&client, &shop, &[("weft.dev/inject", "enabled")]).await;
    configure(&client, webhooks.port, &shop).await;
    let ready = webhooks.not_ready.wait_for(Option::is_none);
    tokio::time::timeout(LONG, ready).await.expect("in time").expect("it serves");

    let policies = policies(&client, &shop).await;
    let create = PostParams::default();
    let dry = PostParams { dry_run: true, ..PostParams::default() };

    // Refused by the engine, once API servers trust the webhook: then never by anything else.
    let bad = policy("bad", json!({"action": "allow"}));
    let message = until("a bad policy is refused by the webhook", || async {
        let fault = policies.create(&dry, &bad).await.err()?.to_string();
        fault.contains("admission webhook \"admission.weft.dev\" denied the request").then_some(fault)
    });
    let message = message.await;
    let expected = format!("AuthorizationPolicy {shop}/bad: `spec.action` is `allow`");
    assert!(message.contains(&expected) && message.contains("Write `Allow` or `Deny`."), "{message}");
    let good = json!({"action": "Allow", "targetRefs": [{"kind": "Service", "name": "inventory"}], "rules": [{}]});
    policies.create(&create, &policy("good", good.clone())).await.expect("allowed");
    let fault = policies
        .patch("good", &PatchParams::default(), &Patch::Merge(json!({"spec": {"action": "permit"}})))
        .await
        .expect_err("a fault is added");
    assert!(fault.to_string().contains("`spec.action` is `permit`"), "{fault}");
    assert_eq!(warnings(&client, &policies, "unknown", "stock").await, 1, "there is no Service stock");
    assert_eq!(warnings(&client, &policies, "known", "inventory").await, 0);

    // Pods of an annotated namespace, as a dry run and really, and one that cannot be meshed.
    let pods: Api<Pod> = Api::namespaced(client.clone(), &shop);
    for (params, name) in [(&dry, "dry"), (&create, "orders")] {
        let made = pods.create(params, &pod(name, json!({}))).await.expect("allowed");
        let spec = made.spec.as_ref().expect("a spec");
        let init: Vec<&str> = spec.init_containers.iter().flatten().map(|container| container.name.as_str()).collect();
        assert_eq!(init, ["weft-init", "weft-proxy"], "{name}");
        assert!(made.annotations().contains_key("weft.dev/injected"), "{name}");
    }
    let node = pods.create(&create, &pod("node", json!({"hostNetwork": true}))).await.expect("allowed");
    assert!(node.annotations()["weft.dev/inject-skipped"].starts_with("host-network"), "{:?}", node.annotations());
    let fault = pods.create(&create, &pod("bypass", json!({"securityContext": {"runAsUser": 2102}}))).await;
    assert!(fault.is_err_and(|fault| fault.to_string().contains("runAsUser")), "it would bypass its sidecar");

    // Annotations that were made a moment ago count.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let annotate = |text: &'static str| {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"weft.dev/inject": text}}}));
        let (namespaces, shop) = (&namespaces, &shop);
        async move { namespaces.patch(shop, &PatchParams::default(), &patch).await }
    };
    let fault = annotate("yes").await.expect_err("misspelt");
    assert!(fault.to_string().contains("Write `enabled` or `disabled`"), "{fault}");
    for (text, expected) in [("disabled", false), ("enabled", true), ("disabled", false), ("enabled", true)] {
        annotate(text).await.expect("allowed");
        let made = pods.create(&dry, &pod("moment", json!({}))).await.expect("allowed");
        assert_eq!(made.annotations().contains_key("weft.dev/injected"), expected, "{text}");
    }

    // Somebody takes the roots away, or breaks the Secret: both are repaired, and the API server follows.
    let admission: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let bundle = |configuration: &ValidatingWebhookConfiguration| {
        let webhooks = configuration.webhooks.iter().flatten();
        webhooks.map(|webhook| webhook.client_config.ca_bundle.clone()).collect::<Vec<_>>()
    };
    let before = bundle(&admission.get(webhooks::ADMISSION).await.expect("there"));
    assert!(before.len() == 2 && before.iter().all(Option::is_some));
    let wrong = json!({"webhooks": [{"name": "admission.weft.dev", "clientConfig": {"caBundle": null}}]});
    admission.patch(webhooks::ADMISSION, &PatchParams::default(), &Patch::Strategic(wrong)).await.expect("patched");
    until("the roots are written again", || async {
        (bundle(&admission.get(webhooks::ADMISSION).await.ok()?) == before).then_some(())
    })
    .await;

    let first = webhooks.certificates.borrow_and_update().as_ref().expect("served").bundle.clone();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    let broken = json!({"data": {"tls.key": "YnJva2Vu"}});
    secrets.patch(webhook_secret::SECRET, &PatchParams::default(), &Patch::Merge(broken)).await.expect("patched");
    let changed = webhooks.certificates.wait_for(|serving| serving.as_ref().is_some_and(|now| now.bundle != first));
    drop(tokio::time::timeout(LONG, changed).await.expect("in time").expect("made anew"));
    until("the API server trusts the new roots", || async {
        let fault = policies.create(&dry, &bad).await.err()?.to_string();
        fault.contains("`spec.action` is `allow`").then_some(())
    })
    .await;
    unconfigure(&client).await;
}

/// How many warnings a policy for `service` gets.
async fn warnings(client: &Client, policies: &Api<DynamicObject>, name: &str, service: &str) -> usize {
    let spec = json!({"action": "Allow", "targetRefs": [{"kind": "Service", "name": service}], "rules": [{}]});
    let body = serde_json::to_vec(&policy(name, spec)).expect("JSON");
    let request = http::Request::post(policies.resource_url())
        .header("content-type", "application/json")
        .body(kube::client::Body::from(body))
        .expect("a request");
    let response = client.send(request).await.expect("answered");
    assert_eq!(response.status(), 201);
    let warnings: Vec<_> = response.headers().get_all("warning").iter().collect();
    for warning in &warnings {
        assert!(warning.to_str().expect("text").contains(&format!("there is no Service {service}")), "{warning:?}");
    }
    warnings.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_serve_one_certificate_and_make_it_anew_when_it_is_deleted() {
    let Some(client) = client().await else { return };
    let cluster = replica(&client, "weft-secret").await;
    let mut replicas = Vec::new();
    for _ in 0..5 {
        replicas.push(start(&cluster).await);
    }
    let agree = async |replicas: &mut Vec<Webhooks>, other_than: &str| {
        let mut bundles = Vec::new();
        for replica in replicas {
            let served = replica
                .certificates
                .wait_for(|serving| serving.as_ref().is_some_and(|serving| serving.bundle != other_than));
            let served = tokio::time::timeout(LONG, served).await.expect("in time").expect("served");
            bundles.push(served.as_ref().expect("there").bundle.clone());
        }
        bundles.dedup();
        assert_eq!(bundles.len(), 1, "replicas serve under different roots");
        bundles.remove(0)
    };
    let first = agree(&mut replicas, "").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    let secret = secrets.get(webhook_secret::SECRET).await.expect("there");
    assert_eq!(secret.owner_references(), [cluster.owner.clone().expect("an owner")]);
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    let data = secret.data.as_ref().expect("data");
    assert_eq!(data.keys().collect::<Vec<_>>(), ["ca.crt", "ca.key", "tls.crt", "tls.key"]);
    assert_eq!(data["ca.crt"].0, first.as_bytes());

    secrets.delete(webhook_secret::SECRET, &DeleteParams::default()).await.expect("deleted");
    let second = agree(&mut replicas, &first).await;
    assert_eq!(
        secrets.get(webhook_secret::SECRET).await.expect("there").data.expect("data")["ca.crt"].0,
        second.as_bytes()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_keeps_the_trust_bundle_in_every_namespace() {
    let Some(client) = client().await else { return };
    let cluster = replica(&client, "weft-bundle").await;
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let bundle = || -> Arc<TrustBundle> {
        let authority = CertificateAuthority::self_signed(&domain, Duration::from_secs(3600), SystemTime::now());
        Arc::new(authority.expect("made").trust_bundle())
    };
    let (bundles, followed) = watch::channel(bundle());
    let (leader, leads) = watch::channel(false);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(trust_bundle::run(cluster.clone(), followed, leads, stop));

    let of = |namespace: &str| Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let holds = async |namespace: &str, pem: String| {
        let config_maps = of(namespace);
        until(&format!("the bundle is in {namespace}"), || async {
            let found = config_maps.get_opt(trust_bundle::CONFIG_MAP).await.ok()??;
            (found.data.as_ref()?.get(trust_bundle::KEY)? == &pem).then_some(found)
        })
        .await
    };
    let present = bundles.borrow().to_pem();
    let own = &cluster.namespace;
    assert_eq!(of(own).get_opt(trust_bundle::CONFIG_MAP).await.expect("asked"), None, "it does not lead");

    leader.send_replace(true);
    let made = holds(own, present.clone()).await;
    assert_eq!(made.labels()["app.kubernetes.io/managed-by"], "weft");
    assert_eq!(made.owner_references(), [cluster.owner.clone().expect("an owner")]);
    holds("default", present.clone()).await;
    let later = format!("later-{own}");
    namespace_of(&client, &later, &[]).await;
    holds(&later, present.clone()).await;
    for system in ["kube-system", "kube-public", "kube-node-lease"] {
        assert_eq!(of(system).get_opt(trust_bundle::CONFIG_MAP).await.expect("asked"), None, "{system}");
    }

    of(own).delete(trust_bundle::CONFIG_MAP, &DeleteParams::default()).await.expect("deleted");
    holds(own, present.clone()).await;
    let edited = json!({"data": {trust_bundle::KEY: "edited"}, "metadata": {"ownerReferences": null}});
    of(own).patch(trust_bundle::CONFIG_MAP, &PatchParams::default(), &Patch::Merge(edited)).await.expect("edited");
    assert_eq!(holds(own, present).await.owner_references().len(), 1);
    let next = bundle();
    bundles.send_replace(Arc::clone(&next));
    for namespace in [own, &later] {
        holds(namespace, next.to_pem()).await;
    }

    // What another leader does is left alone.
    leader.send_replace(false);
    let theirs = ConfigMap {
        metadata: ObjectMeta { name: Some(trust_bundle::CONFIG_MAP.into()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(trust_bundle::KEY.into(), "theirs".into())])),
        ..ConfigMap::default()
    };
    until("nobody writes against us", || async {
        let replaced = of(own).replace(trust_bundle::CONFIG_MAP, &PostParams::default(), &theirs).await.ok()?;
        let version = replaced.resource_version();
        tokio::time::sleep(Duration::from_millis(300)).await;
        (of(own).get(trust_bundle::CONFIG_MAP).await.ok()?.resource_version() == version).then_some(())
    })
    .await;
}
