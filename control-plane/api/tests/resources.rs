//! What good resources become.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use weft_api::resource::{
    Action, AuthorizationPolicy, DefaultPolicy, LimitKey, Mode, NamespacedName, RateLimitPolicy, Resource, Service,
    Subject, Target, TargetPort, Workload, parse_documents,
};
use weft_api::workload::ProtocolHint::{self, Detect, Http1, Http2, Opaque};
use weft_api::workload::Traffic;

fn one(text: &str) -> Resource {
    let mut resources = parse_documents(text);
    assert_eq!(resources.len(), 1, "{resources:?}");
    resources.remove(0).unwrap_or_else(|error| panic!("{error}"))
}
fn service(text: &str) -> Service {
    match one(text) {
        Resource::Service(service) => service,
        other => panic!("{other:?}"),
    }
}
fn workload(text: &str) -> Workload {
    match one(text) {
        Resource::Workload(workload) => workload,
        other => panic!("{other:?}"),
    }
}
fn authorization(spec: &str) -> AuthorizationPolicy {
    let text = format!(
        "{{apiVersion: policy.weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
    );
    match one(&text) {
        Resource::AuthorizationPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}
fn rate_limit(spec: &str) -> RateLimitPolicy {
    let text = format!(
        "{{apiVersion: policy.weft.dev/v1alpha1, kind: RateLimitPolicy, metadata: {{name: r, namespace: shop}}, spec: {spec}}}"
    );
    match one(&text) {
        Resource::RateLimitPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}
fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn annotations_of_a_service_say_how_calls_to_it_are_carried() {
    let service = |annotations: &str| {
        let text =
            format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a, annotations: {{{annotations}}}}}\nspec: {{}}");
        match parse_documents(&text).pop() {
            Some(Ok(Resource::Service(service))) => service.traffic,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(service(""), Traffic::DEFAULT);
    let all = "weft.dev/request-timeout: 15s, weft.dev/idle-timeout: 1m, weft.dev/connect-timeout: 500ms, \
               weft.dev/max-connections: '7', weft.dev/max-requests: '8', weft.dev/max-pending-requests: '9', \
               weft.dev/retry-budget: '0', weft.dev/eject-after: '3', weft.dev/of-a-later-version: x";
    let expected = Traffic {
        request_timeout: Some(Duration::from_secs(15)),
        idle_timeout: Some(Duration::from_secs(60)),
        connect_timeout: Duration::from_millis(500),
        max_connections: 7,
        max_requests: 8,
        max_pending: 9,
        retry_budget: 0,
        eject_after: 3,
    };
    assert_eq!(service(all), expected);
    assert_eq!(service("weft.dev/request-timeout: 0s").request_timeout, None, "no limit, said aloud");
}

#[test]
fn a_service_as_the_api_server_returns_it_is_read() {
    let service = service(
        r#"
apiVersion: v1
kind: Service
metadata:
  annotations:
    meta.helm.sh/release-name: orders
    weft.dev/port-protocols: "9091=grpc, 9092 = tcp"
  creationTimestamp: "2026-01-01T00:00:00Z"
  labels: {app: inventory}
  managedFields:
  - {apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {"f:spec": {}}, manager: helm, operation: Update}
  name: inventory
  namespace: shop
  resourceVersion: "12"
  uid: 11111111-2222-3333-4444-555555555555
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00::7"]
  internalTrafficPolicy: Cluster
  ipFamilyPolicy: PreferDualStack
  selector: {app: inventory}
  sessionAffinity: None
  type: ClusterIP
  ports:
  - {name: http-web, port: 80, protocol: TCP, targetPort: web}
  - {name: metrics, port: 9090, targetPort: 9190}
  - {name: http-but-annotated, port: 9091}
  - {name: b, port: 9092, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP, targetPort: 53}
status:
  loadBalancer: {}
"#,
    );
    assert_eq!(service.name, NamespacedName::new("shop", "inventory"));
    assert_eq!(service.addresses, ["10.96.0.7", "fd00::7"].map(|address| address.parse::<IpAddr>().unwrap()));
    let ports: Vec<_> = service.ports.iter().map(|port| (port.port, port.target.clone(), port.protocol)).collect();
    assert_eq!(
        ports,
        [
            (80, TargetPort::Name("web".into()), Http1),
            (9090, TargetPort::Number(9190), Detect),
            (9091, TargetPort::Number(9091), Http2),
            (9092, TargetPort::Number(9092), Opaque),
        ]
    );
    let rows = [
        ("shop", labels(&[("app", "inventory"), ("v", "1")]), true),
        ("shop", labels(&[("app", "orders")]), false),
        ("shop", labels(&[]), false),
        ("bank", labels(&[("app", "inventory")]), false),
    ];
    for (namespace, labels, expected) in rows {
        assert_eq!(service.selects(namespace, &labels), expected, "{namespace} {labels:?}");
    }
}

#[test]
fn a_service_without_selector_or_address_selects_and_has_none() {
    let cases = [
        "{clusterIP: None}",
        "{clusterIP: '', selector: null, ports: null}",
        "{type: ExternalName, externalName: a.b}",
    ];
    for spec in cases {
        let service = service(&format!("{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {spec}}}"));
        assert!(service.addresses.is_empty() && service.ports.is_empty(), "{spec}");
        assert!(!service.selects("default", &labels(&[("a", "b")])), "{spec}");
    }
}

#[test]
fn a_port_speaks_what_its_owner_declares() {
    let rows: &[(Option<&str>, &str, ProtocolHint)] = &[
        (None, "http", Http1),
        (None, "http-web", Http1),
        (None, "http1-x", Http1),
        (None, "http2", Http2),
        (None, "http2-x", Http2),
        (None, "h2c", Http2),
        (None, "grpc", Http2),
        (None, "grpc-api", Http2),
        (None, "grpc-web", Detect),
        (None, "grpc-web-x", Detect),
        (None, "tcp", Opaque),
        (None, "tcp-x", Opaque),
        (None, "tls", Opaque),
        (None, "https", Opaque),
        (None, "mysql", Opaque),
        (None, "postgres-main", Opaque),
        (None, "redis", Opaque),
        (None, "httpx", Detect),
        (None, "web", Detect),
        (None, "my-http", Detect),
        (Some("http"), "tcp", Http1),
        (Some("HTTP"), "web", Http1),
        (Some("kubernetes.io/h2c"), "http", Http2),
        (Some("kubernetes.io/ws"), "web", Http1),
        (Some("kubernetes.io/wss"), "http", Opaque),
        (Some("example.org/own"), "http", Detect),
    ];
    for (app_protocol, name, expected) in rows {
        let declared = app_protocol.map(|declared| format!(", appProtocol: {declared}")).unwrap_or_default();
        let port = format!("{{name: {name}, port: 80{declared}}}");
        let service =
            service(&format!("{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {{ports: [{port}]}}}}"));
        assert_eq!(service.ports[0].protocol, *expected, "{port}");
        let workload = workload(&format!(
            "{{apiVersion: policy.weft.dev/v1alpha1, kind: Workload, metadata: {{name: w}}, spec: {{addresses: [10.0.0.1], ports: [{port}]}}}}"
        ));
        assert_eq!(workload.ports[0].protocol, *expected, "{port}");
    }
}

#[test]
fn a_workload_has_a_sidecar_and_the_default_account_unless_it_says_otherwise() {
    let least = workload(
        "{apiVersion: policy.weft.dev/v1alpha1, kind: Workload, metadata: {name: w.1}, spec: {addresses: ['::ffff:10.0.0.1']}}",
    );
    assert_eq!(least.name, NamespacedName::new("default", "w.1"));
    assert_eq!((least.mesh, least.service_account.as_str()), (true, "default"));
    assert_eq!(least.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    let most = workload(
        "
apiVersion: policy.weft.dev/v1alpha1
kind: Workload
metadata: {name: db, namespace: shop, labels: {app: db}, annotations: {note: anything}}
spec:
  addresses: [10.0.0.1, fd00::1]
  serviceAccount: db.main
  mesh: false
  ports: [{name: postgres, port: 5432}, {port: 9100}]
",
    );
    assert_eq!((most.mesh, most.service_account.as_str()), (false, "db.main"));
    assert_eq!(most.labels, labels(&[("app", "db")]));
    assert_eq!(
        most.ports.iter().map(|port| (port.port, port.protocol)).collect::<Vec<_>>(),
        [(5432, Opaque), (9100, Detect)]
    );
}

#[test]
fn a_namespace_may_say_what_happens_to_calls_no_policy_speaks_of() {
    let rows = [
        ("", None),
        ("weft.dev/default-policy: deny", Some(DefaultPolicy::Deny)),
        ("weft.dev/default-policy: authenticated", Some(DefaultPolicy::Authenticated)),
        ("weft.dev/default-policy: allow", Some(DefaultPolicy::Allow)),
    ];
    for (annotation, expected) in rows {
        let text =
            format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{annotation}}}}}}}");
        match one(&text) {
            Resource::Namespace(namespace) => assert_eq!(namespace.default_policy, expected, "{annotation}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_authorization_policy_is_read_whole_and_survives_being_written() {
    let policy = authorization(
        "{
          targetRefs: [{kind: Service, name: inventory}, {group: '', kind: Service, name: inventory}],
          action: Allow, mode: Shadow,
          rules: [
            {from: [{serviceAccounts: [orders, batch/nightly]}, {namespaces: [reporting]},
                    {identities: ['spiffe://cluster.local/ns/shop/sa/*', '*']}, {ipBlocks: [10.0.0.0/8, 192.0.2.7, 'fd00::/8']}],
             to: [{ports: [8080], methods: [GET, POST], paths: ['/stock/*', '/items/{id}'], hosts: [Inventory.shop.svc, '*.x.test']}],
             when: [{header: X-Tenant, in: [blue, 'a b']}]},
            {}]}",
    );
    assert_eq!((policy.action, policy.mode), (Action::Allow, Mode::Shadow));
    assert_eq!(policy.target, Target::Services(vec!["inventory".into()]));
    let rule = &policy.rules[0];
    assert_eq!(rule.from.len(), 4);
    assert_eq!(
        rule.from[0].service_accounts,
        [NamespacedName::new("shop", "orders"), NamespacedName::new("batch", "nightly")]
    );
    assert_eq!(rule.from[3].ip_blocks[1].to_string(), "192.0.2.7/32");
    assert_eq!(rule.to[0].hosts[0].to_string(), "inventory.shop.svc");
    assert_eq!(rule.when[0].header.as_str(), "x-tenant");
    assert_eq!(policy.rules[1], weft_api::resource::Rule::default());
    assert_eq!(authorization(&policy.spec_json().to_string()), policy);
}

#[test]
fn a_rate_limit_policy_is_read_whole_and_survives_being_written() {
    let policy = rate_limit(
        "{selector: {matchLabels: {app: inventory}}, limits: [
            {name: per-client, requests: 100, window: 1s, burst: 20, per: Client, scope: Pod},
            {name: total, requests: 60000, window: 1m},
            {name: short, requests: 50000, window: 500ms, per: All}]}",
    );
    let limits: Vec<_> =
        policy.rate_limits().map(|limit| (limit.requests, limit.window, limit.burst, limit.per)).collect();
    assert_eq!(
        limits,
        [
            (100, Duration::from_secs(1), 20, LimitKey::Client),
            (60_000, Duration::from_secs(60), 60_000, LimitKey::All),
            (50_000, Duration::from_millis(500), 50_000, LimitKey::All),
        ]
    );
    assert_eq!(rate_limit(&policy.spec_json().to_string()), policy);
}

#[test]
fn a_policy_applies_to_its_target_in_its_own_namespace_only() {
    let (app, services) =
        (labels(&[("app", "a"), ("v", "1")]), [NamespacedName::new("shop", "s"), NamespacedName::new("bank", "t")]);
    let here = Subject { namespace: "shop", labels: &app, services: &services };
    let elsewhere = Subject { namespace: "bank", ..here };
    let rows = [
        ("", true),
        ("selector: {matchLabels: {app: a}},", true),
        ("selector: {matchLabels: {app: a, v: '2'}},", false),
        ("targetRefs: [{kind: Service, name: s}],", true),
        ("targetRefs: [{kind: Service, name: t}],", false),
        ("targetRefs: [{kind: Service, name: t}, {kind: Service, name: s}],", true),
    ];
    for (target, expected) in rows {
        let policy = authorization(&format!("{{{target} action: Deny}}"));
        assert_eq!(policy.applies_to(here), expected, "{target}");
        assert!(!policy.applies_to(elsewhere), "{target}");
        assert_eq!(weft_api::policy::applicable([&policy], here).count(), usize::from(expected));
        let limits = rate_limit(&format!("{{{target} limits: [{{name: l, requests: 1, window: 1s}}]}}"));
        assert_eq!((limits.applies_to(here), limits.applies_to(elsewhere)), (expected, false), "{target}");
    }
}

#[test]
fn documents_are_read_in_order_lists_are_opened_and_foreign_kinds_are_skipped() {
    let resources = parse_documents(
        "# a comment\n%YAML 1.2\n---\n# only a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n...\n--- # b\n\
         {\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"b\"}}\n---\n\
         apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: c}}\n\
         - {apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: e}, spec: {}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: f}\ndata:\n  text: |\n    --- not a document\n",
    );
    let seen: Vec<_> = resources
        .iter()
        .map(|resource| {
            let resource = resource.as_ref().unwrap_or_else(|error| panic!("{error}"));
            (resource.kind(), resource.name().unwrap().to_string())
        })
        .collect();
    let expected = [
        ("Namespace", "/a"),
        ("Namespace", "/b"),
        ("Namespace", "/c"),
        ("Deployment", "e/d"),
        ("ConfigMap", "default/f"),
    ];
    assert_eq!(seen, expected.map(|(kind, name)| (kind, name.to_owned())));
    match &resources[3] {
        Ok(Resource::Skipped(skipped)) => {
            assert_eq!(skipped.to_string(), "line 17: Deployment is skipped: the mesh has no use for it");
        }
        other => panic!("{other:?}"),
    }
}
