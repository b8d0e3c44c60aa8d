//! The wire: what is told in differences adds up to what was meant, and nothing malformed is believed.
mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{applied, cases, policies};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use weft_api::policy::{AppliedPolicy, PolicySet, Reason, Source};
use weft_api::resource::{DefaultPolicy, LimitKey, NamespacedName, RateLimit, Resource, parse_documents};
use weft_api::routing::Route;
use weft_api::wire::{self, SidecarMessage, SignRequest, proto};
use weft_api::workload::{
    Endpoint, Inbound, MeshedWorkload, ProtocolHint, Service, ServicePort, Traffic, WorkloadConfig,
};
use weft_certs::{CertificateAuthority, SpiffeId, TrustDomain};

fn name() -> impl Strategy<Value = NamespacedName> {
    (select(vec!["a", "b"]), select(vec!["x", "y", "z-1"]))
        .prop_map(|(namespace, name)| NamespacedName::new(namespace, name))
}
fn address() -> impl Strategy<Value = IpAddr> {
    select(vec!["10.0.0.1", "10.0.0.2", "fd00::1"]).prop_map(|address| address.parse().unwrap())
}
fn identity() -> impl Strategy<Value = SpiffeId> {
    select(common::IDENTITIES).prop_map(|id| SpiffeId::parse(id).unwrap())
}
fn hint() -> impl Strategy<Value = ProtocolHint> {
    select(vec![ProtocolHint::Detect, ProtocolHint::Http1, ProtocolHint::Http2, ProtocolHint::Opaque])
}
fn ports() -> impl Strategy<Value = BTreeMap<u16, ProtocolHint>> {
    btree_map(select(vec![1_u16, 80, 65_535]), hint(), 0..3)
}
fn endpoint() -> impl Strategy<Value = Endpoint> {
    (address(), 1_u16.., option::of(identity())).prop_map(|(ip, port, identity)| Endpoint {
        address: SocketAddr::new(ip, port),
        workload: "w".into(),
        identity,
    })
}
/// Routes as resources give them, with a backend that was looked up.
fn route() -> impl Strategy<Value = Arc<Route>> {
    const RULES: &[&str] = &[
        "{}",
        "{name: a, matches: [{path: {type: RegularExpression, value: '/a+'}, method: GET, headers: [{name: a, value: b}]}]}",
        "{matches: [{queryParams: [{name: a, value: b}]}], timeouts: {request: 1s}, retry: {codes: [503], backoff: 1ms}}",
        "{filters: [{type: RequestRedirect, requestRedirect: {scheme: https, path: {type: ReplaceFullPath, replaceFullPath: /}}}]}",
        "{filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}], backendRefs: [{name: a, port: 80, weight: 0}]}",
        "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}, percent: 1}}]}",
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}]}",
        "{filters: [{type: CORS, cors: {}}]}",
    ];
    (name(), subsequence(RULES, 1..=3), any::<bool>(), 0..=u64::from(u32::MAX)).prop_map(|(name, rules, refused, created)| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: a}}\nspec: {{rules: [{}]}}",
            rules.join(", ").replace("name: a, matches", "matches")
        );
        let Some(Ok(Resource::Route(route))) = parse_documents(&text).pop() else { panic!("{text}") };
        let mut rules = route.rules;
        for backend in rules.iter_mut().flat_map(|rule| &mut rule.backends).filter(|_| refused) {
            backend.refused = Some("it is not there".into());
        }
        Arc::new(Route { kind: route.kind, name, created, rules })
    })
}
fn services() -> impl Strategy<Value = BTreeMap<NamespacedName, Arc<Service>>> {
    let port =
        |port| {
            (hint(), vec(endpoint(), 0..3), vec(route(), 0..3))
                .prop_map(move |(protocol, endpoints, routes)| ServicePort { port, protocol, endpoints, routes })
        };
    let body = (vec(address(), 0..3), option::of(port(80)), option::of(port(81)));
    btree_map(name(), body, 0..5).prop_map(|services| {
        let service = |(name, (addresses, first, second)): (NamespacedName, (_, Option<_>, Option<_>))| {
            let ports = first.into_iter().chain(second).collect();
            (name.clone(), Arc::new(Service { name, addresses, ports, traffic: Traffic::DEFAULT }))
        };
        services.into_iter().map(service).collect()
    })
}
fn rate_limit() -> impl Strategy<Value = RateLimit> {
    (name(), select(vec!["l1", "l2"]), 1..=1_000_000_u32, 1..=86_400_000_u64, 1..=1_000_000_u32).prop_map(
        |(policy, name, requests, window, burst)| RateLimit {
            policy,
            name: name.into(),
            requests,
            window: Duration::from_millis(window),
            burst,
            per: if burst % 2 == 0 { LimitKey::All } else { LimitKey::Client },
        },
    )
}
/// Limits as the policies of a model give them: one run a policy, names unique in it, clients within the total.
fn rate_limits() -> impl Strategy<Value = Vec<RateLimit>> {
    vec(rate_limit(), 0..4).prop_map(|mut limits| {
        limits.sort_by(|a, b| (&a.policy, &a.name).cmp(&(&b.policy, &b.name)));
        limits.dedup_by(|a, b| a.policy == b.policy && (a.name == b.name || a.per != b.per));
        limits
    })
}
fn config() -> impl Strategy<Value = WorkloadConfig> {
    let unreadable = option::weighted(0.2, "[ -~]{0,20}");
    let default = select(vec![DefaultPolicy::Deny, DefaultPolicy::Authenticated, DefaultPolicy::Allow]);
    let inbound = (vec(name(), 0..3), policies(), unreadable, default, rate_limits(), ports());
    let meshed = (name(), vec(address(), 1..3), identity(), ports())
        .prop_map(|(name, addresses, identity, ports)| MeshedWorkload { name, addresses, identity, ports });
    let denied = subsequence(common::IDENTITIES, 0..3);
    (inbound, services(), vec(meshed, 0..4), denied).prop_map(|(inbound, services, meshed, denied)| {
        let (own_services, documents, unreadable, default, rate_limits, ports) = inbound;
        let denied: Arc<Vec<SpiffeId>> = Arc::new(denied.iter().map(|id| SpiffeId::parse(id).unwrap()).collect());
        let mut policies = applied(&documents);
        policies.extend(unreadable.map(|why| AppliedPolicy::Unreadable { name: NamespacedName::new("a", "u"), why }));
        WorkloadConfig {
            inbound: Inbound {
                namespace: "a".into(),
                workload: "w-0.v1".into(),
                service_account: "x".into(),
                services: own_services,
                policy: Arc::new(PolicySet::compile(default, denied.clone(), policies)),
                rate_limits: Arc::new(rate_limits),
                ports,
            },
            services: Arc::new(services),
            meshed_workloads: Arc::new(meshed.into_iter().map(|one| (one.name.clone(), Arc::new(one))).collect()),
            denied_identities: denied,
        }
    })
}

/// Through bytes and back, as gRPC does it.
fn sent(update: &proto::Update) -> proto::Update {
    use prost::Message;
    proto::Update::decode(update.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #![proptest_config(cases(1_500))]

    #[test]
    fn a_difference_applied_to_the_old_gives_the_new(old in config(), new in config(), parts in 0..8_u8) {
        // Often only a part differs.
        let mut new = new;
        if parts & 1 > 0 {
            let denied = new.denied_identities.clone();
            new.inbound = old.inbound.clone();
            new.inbound.policy = Arc::new(old.inbound.policy.with_denied(denied));
        }
        if parts & 2 > 0 {
            Arc::make_mut(&mut new.services).extend(old.services.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        if parts & 4 > 0 {
            new.meshed_workloads = old.meshed_workloads.clone();
        }
        let first = wire::apply(None, &sent(&wire::diff(None, &old, 1)));
        prop_assert_eq!(first.as_ref(), Ok(&old));
        let second = wire::apply(first.as_ref().ok(), &sent(&wire::diff(Some(&old), &new, 2)));
        prop_assert_eq!(second.as_ref(), Ok(&new));
        prop_assert!(wire::is_empty(&wire::diff(Some(&new), &new.clone(), 3)));
        let full = wire::apply(Some(&old), &sent(&wire::diff(None, &new, 4)));
        prop_assert_eq!(full.as_ref(), Ok(&new));
        // Decisions travel too: what arrived is compiled, not only equal by its sources.
        let call = Source { identity: None, address: [10, 1, 2, 3].into() };
        let arrived = second.unwrap().inbound.policy;
        prop_assert_eq!(arrived.decide(call, 80, None), new.inbound.policy.decide(call, 80, None));
    }
}

fn full() -> proto::Update {
    let policy = common::parse_policy(&serde_json::json!({
        "apiVersion": "policy.weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "a"}, "spec": {"action": "Allow", "rules": [{}]},
    }));
    let denied = Arc::new(vec![SpiffeId::parse(common::IDENTITIES[0]).unwrap()]);
    let id = SpiffeId::parse(common::IDENTITIES[1]).unwrap();
    let service = NamespacedName::new("a", "s");
    let address = IpAddr::from([10, 0, 0, 1]);
    let port = ServicePort {
        port: 80,
        protocol: ProtocolHint::Http1,
        endpoints: vec![Endpoint { address: (address, 8080).into(), workload: "w".into(), identity: Some(id.clone()) }],
        routes: Vec::new(),
    };
    let limit = RateLimit {
        policy: NamespacedName::new("a", "r"),
        name: "l".into(),
        requests: 1,
        window: Duration::from_secs(1),
        burst: 1,
        per: LimitKey::All,
    };
    let config = WorkloadConfig {
        inbound: Inbound {
            namespace: "a".into(),
            workload: "w".into(),
            service_account: "x".into(),
            services: vec![service.clone()],
            policy: Arc::new(PolicySet::compile(
                DefaultPolicy::Deny,
                denied.clone(),
                [AppliedPolicy::Readable(policy)],
            )),
            rate_limits: Arc::new(vec![limit]),
            ports: BTreeMap::from([(8080, ProtocolHint::Http1)]),
        },
        services: Arc::new(BTreeMap::from([(
            service.clone(),
            Arc::new(Service { name: service, addresses: vec![address], ports: vec![port], traffic: Traffic::DEFAULT }),
        )])),
        meshed_workloads: Arc::new(BTreeMap::from([(
            NamespacedName::new("a", "w"),
            Arc::new(MeshedWorkload {
                name: NamespacedName::new("a", "w"),
                addresses: vec![address],
                identity: id,
                ports: BTreeMap::new(),
            }),
        )])),
        denied_identities: denied,
    };
    wire::diff(None, &config, 1)
}

#[test]
fn a_malformed_update_is_an_error_that_names_the_field() {
    type Break = fn(&mut proto::Update);
    fn inbound(update: &mut proto::Update) -> &mut proto::Inbound {
        update.inbound.as_mut().unwrap()
    }
    fn meshed(update: &mut proto::Update) -> &mut proto::MeshedWorkload {
        &mut update.meshed_workloads.as_mut().unwrap().workloads[0]
    }
    let rows: &[(&str, Break)] = &[
        ("full", |update| update.full = false),
        ("inbound", |update| update.inbound = None),
        ("meshed_workloads", |update| update.meshed_workloads = None),
        ("denied_identities", |update| update.denied_identities = None),
        ("denied_identities[0]", |update| update.denied_identities.as_mut().unwrap().ids[0] = "*".into()),
        ("inbound.workload", |update| inbound(update).namespace = "A".into()),
        ("inbound.workload", |update| inbound(update).workload = String::new()),
        ("inbound.service_account", |update| inbound(update).service_account = "a/b".into()),
        ("inbound.services[0]", |update| inbound(update).services[0] = "s".into()),
        ("inbound.default_policy", |update| inbound(update).default_policy = "Deny".into()),
        ("inbound.ports[0].port", |update| inbound(update).ports[0].port = 0),
        ("inbound.ports[0].port", |update| inbound(update).ports[0].port = 65_536),
        ("inbound.ports[0].protocol", |update| inbound(update).ports[0].protocol = "quic".into()),
        ("inbound.ports[1].port", |update| {
            let twice = inbound(update).ports[0].clone();
            inbound(update).ports.push(twice);
        }),
        ("inbound.authorization_policies[0]", |update| inbound(update).authorization_policies[0].name = "P".into()),
        ("inbound.authorization_policies", |update| {
            let policy = inbound(update).authorization_policies[0].clone();
            inbound(update).authorization_policies = vec![policy; 1_001];
        }),
        ("services[0].name", |update| update.services[0].name = "a\0b".into()),
        ("services[1].name", |update| update.services.push(update.services[0].clone())),
        ("services[0].addresses[0]", |update| update.services[0].addresses[0] = vec![10, 0, 0]),
        ("services[0].addresses[0]", |update| update.services[0].addresses[0] = vec![0; 4]),
        ("services[0].addresses[0]", |update| {
            update.services[0].addresses[0] = [[0; 10].as_slice(), &[255, 255, 10, 0, 0, 1]].concat();
        }),
        ("services[0].ports[0].protocol", |update| update.services[0].ports[0].protocol = String::new()),
        ("services[0].ports[1].port", |update| {
            let twice = update.services[0].ports[0].clone();
            update.services[0].ports.push(twice);
        }),
        ("services[0].ports[0].endpoints[0].port", |update| update.services[0].ports[0].endpoints[0].port = 0),
        ("services[0].ports[0].endpoints[0].spiffe_id", |update| {
            update.services[0].ports[0].endpoints[0].spiffe_id = "spiffe://mesh.test".into();
        }),
        ("services[0].ports[0].endpoints", |update| {
            let endpoint = update.services[0].ports[0].endpoints[0].clone();
            update.services[0].ports[0].endpoints = vec![endpoint; 20_001];
        }),
        ("removed_services[0]", |update| update.removed_services = vec!["no-namespace".into()]),
        ("meshed_workloads[0].spiffe_id", |update| meshed(update).spiffe_id = String::new()),
        ("meshed_workloads[0].addresses", |update| meshed(update).addresses = vec![vec![10, 0, 0, 1]; 65]),
    ];
    let good = full();
    wire::apply(None, &good).expect("the update is good before it is broken");
    for (field, break_it) in rows {
        let mut update = good.clone();
        break_it(&mut update);
        let error = wire::apply(None, &sent(&update)).expect_err(field);
        assert_eq!(error.field, *field, "{error}");
    }
}

#[test]
fn a_policy_that_is_not_understood_refuses_everything_and_the_rest_of_the_update_holds() {
    let specs: &[&[u8]] = &[
        b"",
        b"null",
        b"{}",
        b"\xff",
        b"[1",
        br#"{"action":"Allow","rules":[{}],"fromTheFuture":true}"#,
        br#"{"action":"Allow","rules":[{"from":[]}]}"#,
        br#"{"action":"Allow","action":"Allow","rules":[{}]}"#,
        br#"{"unreadable":"because"}"#,
    ];
    for spec in specs {
        for as_rate_limit in [false, true] {
            let mut update = full();
            let inbound = update.inbound.as_mut().unwrap();
            let list =
                if as_rate_limit { &mut inbound.rate_limit_policies } else { &mut inbound.authorization_policies };
            list[0].spec_json = spec.to_vec();
            let config = wire::apply(None, &update).unwrap();
            let id = SpiffeId::parse(common::IDENTITIES[3]).unwrap();
            let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
            let decision = config.inbound.policy.decide(source, 8080, None);
            assert!(!decision.allowed, "{decision}");
            assert_eq!(decision.reason, Reason::Unreadable, "{}", String::from_utf8_lossy(spec));
            assert_eq!(config.services.len(), 1);
        }
    }
    let config = wire::apply(None, &full()).unwrap();
    let id = SpiffeId::parse(common::IDENTITIES[3]).unwrap();
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    assert!(config.inbound.policy.decide(source, 8080, None).allowed, "the policy was good before it was broken");
}

#[test]
fn a_new_denied_list_takes_effect_without_the_policies_being_sent_again() {
    let config = wire::apply(None, &full()).unwrap();
    let id = SpiffeId::parse(common::IDENTITIES[3]).unwrap();
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let mut next = config.clone();
    next.denied_identities = Arc::new(vec![id.clone()]);
    next.inbound.policy = Arc::new(config.inbound.policy.with_denied(next.denied_identities.clone()));
    let update = wire::diff(Some(&config), &next, 2);
    assert!(update.inbound.is_none());
    let applied = wire::apply(Some(&config), &update).unwrap();
    assert_eq!(applied.inbound.policy.decide(source, 80, None).reason, Reason::DeniedIdentity);
    assert_eq!(applied, next);
}

#[test]
fn trust_bundles_survive_the_wire_and_bad_ones_do_not() {
    weft_certs::install_crypto_provider();
    let domain = TrustDomain::parse("mesh.test").unwrap();
    let authority = CertificateAuthority::self_signed(&domain, Duration::from_secs(3_600), SystemTime::now()).unwrap();
    let bundle = authority.trust_bundle();
    let mut update = proto::Update::default();
    assert_eq!(wire::bundle(&update), Ok(None));
    wire::set_bundle(&mut update, &bundle);
    assert_eq!(wire::bundle(&sent(&update)).unwrap().as_ref(), Some(&bundle));
    let response = wire::encode_sign_response(&[vec![1_u8, 2]], &bundle);
    assert_eq!(wire::decode_sign_response(&response), Ok((vec![vec![1, 2]], bundle)));

    type Break = fn(&mut proto::TrustBundle);
    let rows: &[(&str, Break)] = &[
        ("bundle.trust_domain", |bundle| bundle.trust_domain = "Mesh Test".into()),
        ("bundle.roots", |bundle| bundle.roots.clear()),
        ("bundle.roots", |bundle| bundle.roots = vec![vec![0x30, 0]]),
        ("bundle.roots", |bundle| bundle.roots = vec![bundle.roots[0].clone(); 65]),
        ("bundle.roots[0]", |bundle| bundle.roots = vec![vec![0; 20_000]]),
    ];
    for (field, break_it) in rows {
        let mut update = update.clone();
        break_it(update.bundle.as_mut().unwrap());
        assert_eq!(wire::bundle(&update).expect_err(field).field, *field);
    }
    assert_eq!(wire::decode_sign_response(&proto::SignResponse::default()).unwrap_err().field, "chain");
}

#[test]
fn what_a_sidecar_says_survives_the_wire_and_is_bounded() {
    for message in [
        SidecarMessage::Hello { workload: "orders-1".into(), version: "0.1.0".into() },
        SidecarMessage::Ack { version: 7, error: None },
        SidecarMessage::Ack { version: u64::MAX, error: Some("services[0].name: not a name".into()) },
        SidecarMessage::Draining,
    ] {
        assert_eq!(wire::decode_sidecar_message(wire::encode_sidecar_message(&message)), Ok(message));
    }
    use proto::sidecar_message::Message;
    let long = "x".repeat(5_000);
    let rows = [
        ("message", None),
        ("hello.workload", Some(Message::Hello(proto::Hello { workload: "../b".into(), version: String::new() }))),
        ("hello.version", Some(Message::Hello(proto::Hello { workload: "b".into(), version: long.clone() }))),
        ("ack.error", Some(Message::Ack(proto::Ack { version: 1, error: long.clone() }))),
    ];
    for (field, message) in rows {
        assert_eq!(wire::decode_sidecar_message(proto::SidecarMessage { message }).unwrap_err().field, field);
    }
    let long_error = SidecarMessage::Ack { version: 1, error: Some(long) };
    wire::decode_sidecar_message(wire::encode_sidecar_message(&long_error)).expect("cut short when sent");

    for lifetime in [None, Some(Duration::from_secs(300))] {
        let request = SignRequest { certificate_request: vec![0x30], lifetime };
        assert_eq!(wire::decode_sign_request(wire::encode_sign_request(&request)), Ok(request));
    }
    for size in [0, 16_385] {
        let request = proto::SignRequest { certificate_request: vec![0; size], lifetime_seconds: 0 };
        assert_eq!(wire::decode_sign_request(request).unwrap_err().field, "certificate_request");
    }
}
