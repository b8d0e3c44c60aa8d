//! The webhooks, their certificate and the trust bundle: what an API server does with them, and that they can do it with
//! the rights that the chart gives.
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_certs::{CertificateAuthority, TrustBundle, TrustDomain};
use weft_control_plane::cluster::{Cluster as Replica, namespaces, trust_bundle, webhook_secret, webhooks};
use weft_control_plane::metrics::Metrics;
use weft_control_plane::webhook::certificate::{self, Serving, Stored};
use weft_control_plane::webhook::injection;
use weft_control_plane::webhook::injector::InjectorConfig;
use weft_control_plane::webhook::server::{self, Hooks};
use weft_loadtests::lab::testing::Test;

use crate::fixture::Cluster;

/// Long enough for the slowest machine; reached only by a failing test.
const LONG: Duration = Duration::from_secs(60);

pub const TESTS: &[Test] = &[
    ("an_api_server_asks_the_webhooks_and_does_what_they_say", || with_admin(asks_the_webhooks)),
    ("replicas_that_start_together_serve_one_certificate", || with_admin(serve_one_certificate)),
    ("a_renewal_changes_nothing_that_api_servers_trust", || with_admin(renews)),
    ("a_restart_of_the_api_server_is_survived_and_what_changed_meanwhile_is_repaired", || {
        with_admin(survives_a_restart)
    }),
    ("the_leader_keeps_the_trust_bundle_in_every_namespace", || with_admin(keeps_the_trust_bundle)),
];

/// Who may do everything.
struct Admin {
    cluster: Cluster,
    client: Client,
    config: Config,
}

/// Runs `test` with an API server of its own.
fn with_admin<F: Future<Output = ()>>(test: impl FnOnce(Admin) -> F) -> Result<()> {
    let cluster = Cluster::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(cluster.api.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        test(Admin { cluster, client: Client::try_from(config.clone())?, config }).await;
        Ok(())
    })
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

/// A replica in a namespace of its own, which may do what these parts need and nothing else; its role owns what it makes.
async fn replica(admin: &Admin, name: &str) -> Replica {
    let client = &admin.client;
    let suffix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").subsec_nanos();
    let namespace = format!("{name}-{suffix}");
    namespace_of(client, &namespace, &[]).await;
    let rule = |group: &str, resource: &str, names: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "resourceNames": names, "verbs": verbs});
    let keep = ["get", "list", "watch", "patch"];
    let webhooks = "admissionregistration.k8s.io";
    let anywhere: ClusterRole = object(json!({"metadata": {"name": namespace}, "rules": [
        rule("", "namespaces", &[], &["get", "list", "watch"]),
        rule("", "configmaps", &[], &["create"]),
        rule("", "configmaps", &[trust_bundle::CONFIG_MAP], &[&keep[..], &["delete"]].concat()),
        rule(webhooks, "mutatingwebhookconfigurations", &[webhooks::INJECTOR], &keep),
        rule(webhooks, "validatingwebhookconfigurations", &[webhooks::ADMISSION], &keep),
    ]}));
    let here: Role = object(json!({"metadata": {"name": namespace}, "rules": [
        rule("", "secrets", &[], &["create"]),
        rule("", "secrets", &[webhook_secret::SECRET], &["get", "list", "watch", "update"]),
    ]}));
    let user = format!("user-of-{namespace}");
    let bind = |kind: &str| {
        json!({
            "metadata": {"name": namespace}, "subjects": [{"kind": "User", "name": user}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": namespace},
        })
    };
    let create = PostParams::default();
    let role = Api::all(client.clone()).create(&create, &anywhere).await.expect("created");
    let binding: ClusterRoleBinding = object(bind("ClusterRole"));
    Api::all(client.clone()).create(&create, &binding).await.expect("created");
    let binding: RoleBinding = object(bind("Role"));
    Api::namespaced(client.clone(), &namespace).create(&create, &here).await.expect("created");
    Api::namespaced(client.clone(), &namespace).create(&create, &binding).await.expect("created");
    let owner = OwnerReference {
        api_version: "rbac.authorization.k8s.io/v1".into(),
        kind: "ClusterRole".into(),
        name: role.name_any(),
        uid: role.uid().expect("a uid"),
        ..OwnerReference::default()
    };
    let mut config = admin.config.clone();
    config.auth_info.impersonate = Some(user);
    let client = Client::try_from(config).expect("a client");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    until("the role is in force", || async { namespaces.get(&namespace).await.ok() }).await;
    Replica {
        client,
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

async fn start(cluster: &Replica) -> Webhooks {
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
    let mut annotations = webhook("annotations.admission.weft.dev", "/validate", annotated);
    annotations["matchConditions"] = json!([{"name": "has-annotations-of-weft", "expression":
        "object.metadata.?annotations.orValue({}).exists(key, key.startsWith('weft.dev/')) ||
        object.metadata.?labels.orValue({}).exists(key, key.startsWith('weft.dev/'))"}]);
    let injector: MutatingWebhookConfiguration = object(json!({
        "metadata": {"name": webhooks::INJECTOR}, "webhooks": [webhook("injector.weft.dev", "/inject", pods)],
    }));
    let admission: ValidatingWebhookConfiguration = object(json!({
        "metadata": {"name": webhooks::ADMISSION}, "webhooks": [
            webhook("admission.weft.dev", "/validate", policies),
            annotations,
        ],
    }));
    Api::all(client.clone()).create(&PostParams::default(), &injector).await.expect("created");
    Api::all(client.clone()).create(&PostParams::default(), &admission).await.expect("created");
}

fn policies(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("policy.weft.dev", "v1alpha1", "AuthorizationPolicy");
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk_with_plural(&kind, "authorizationpolicies"))
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

async fn asks_the_webhooks(admin: Admin) {
    let client = admin.client.clone();
    let cluster = replica(&admin, "weft-webhooks").await;
    let mut webhooks = start(&cluster).await;
    let shop = format!("shop-of-{}", cluster.namespace);
    namespace_of(&client, &shop, &[("weft.dev/inject", "enabled")]).await;
    configure(&client, webhooks.port, &shop).await;
    let ready = webhooks.not_ready.wait_for(Option::is_none);
    tokio::time::timeout(LONG, ready).await.expect("in time").expect("it serves");

    let policies = policies(&client, &shop);
    let create = PostParams::default();
    let dry = PostParams { dry_run: true, ..PostParams::default() };

    // Refused by the engine, once API servers trust the webhook: then never by anything else.
    let bad = policy("bad", json!({"action": "Allow", "rules": [{"to": [{"pathss": ["/a"]}]}]}));
    let message = until("a bad policy is refused by the webhook", || async {
        let fault = policies.create(&dry, &bad).await.err()?.to_string();
        fault.contains("admission webhook \"admission.weft.dev\" denied the request").then_some(fault)
    });
    let message = message.await;
    let expected =
        format!("AuthorizationPolicy {shop}/bad: `pathss` in `spec.rules[0].to[0]` is not a field. Write `paths`.");
    assert!(message.contains(&expected), "{message}");
    let good = json!({"action": "Allow", "targetRefs": [{"kind": "Service", "name": "inventory"}], "rules": [{}]});
    policies.create(&create, &policy("good", good.clone())).await.expect("allowed");
    let fault = policies
        .patch("good", &PatchParams::default(), &Patch::Merge(json!({"spec": {"mod": "Shadow"}})))
        .await
        .expect_err("a fault is added");
    assert!(fault.to_string().contains("Write `mode`"), "{fault}");
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
        fault.contains("`pathss`").then_some(())
    })
    .await;
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

async fn serve_one_certificate(admin: Admin) {
    let client = admin.client.clone();
    let cluster = replica(&admin, "weft-secret").await;
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

async fn renews(admin: Admin) {
    let client = admin.client.clone();
    // Made so long ago that the serving certificate is due, has expired, or the root is due too.
    for (days, roots) in [(25, 1), (31, 1), (250, 2)] {
        let cluster = replica(&admin, "weft-renewal").await;
        let names = certificate::names(&cluster.service, &cluster.namespace, None);
        let old = Stored::make(&names, SystemTime::now() - Duration::from_secs(days * 24 * 3600)).expect("made");
        let secret: Secret = object(json!({
            "metadata": {"name": webhook_secret::SECRET}, "type": "kubernetes.io/tls",
            "stringData": {"ca.crt": old.roots, "ca.key": old.root_key, "tls.crt": old.certificate, "tls.key": old.key},
        }));
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
        secrets.create(&PostParams::default(), &secret).await.expect("created");
        let replicas = [start(&cluster).await, start(&cluster).await];
        let fresh = SystemTime::now() + Duration::from_secs(29 * 24 * 3600);
        for replica in replicas {
            let mut certificates = replica.certificates.clone();
            let served = certificates.wait_for(|serving| {
                serving.as_ref().is_some_and(|serving| {
                    serving.not_after > fresh && serving.bundle.matches("BEGIN CERTIFICATE").count() == roots
                })
            });
            let served = tokio::time::timeout(LONG, served).await.expect("in time").expect("served");
            let bundle = &served.as_ref().expect("there").bundle;
            assert!(bundle.ends_with(&old.roots), "after {days} days the old root is trusted yet");
        }
    }
}

async fn survives_a_restart(mut admin: Admin) {
    let cluster = replica(&admin, "weft-restart").await;
    let mut webhooks = start(&cluster).await;
    let certificates = &mut webhooks.certificates;
    let first = certificates.wait_for(Option::is_some).await.expect("it runs").as_ref().expect("there").bundle.clone();
    let secrets: Api<Secret> = Api::namespaced(admin.client.clone(), &cluster.namespace);
    tokio::task::block_in_place(|| {
        admin.cluster.api.stop_api_server();
        admin.cluster.api.start_api_server().expect("started");
    });
    assert!(webhooks.not_ready.borrow().is_none(), "it goes on serving");
    until("the Secret is deleted", || async {
        secrets.delete(webhook_secret::SECRET, &DeleteParams::default()).await.ok()
    })
    .await;
    let made = certificates.wait_for(|serving| serving.as_ref().is_some_and(|serving| serving.bundle != first));
    drop(tokio::time::timeout(LONG, made).await.expect("in time").expect("made anew"));
}

async fn keeps_the_trust_bundle(admin: Admin) {
    let client = admin.client.clone();
    let cluster = replica(&admin, "weft-bundle").await;
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
