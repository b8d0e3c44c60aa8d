//! Who is told of which endpoints where callers and endpoints are in zones: as kube-proxy has it, by the hints of
//! EndpointSlices; without Kubernetes, where a Service asks for it.
use std::collections::BTreeSet;
use std::sync::Arc;

use weft_api::resource::{
    EndpointSlice, NamespacedName, Resource, SliceEndpoint, SlicePort, Workload, parse_documents,
};
use weft_certs::TrustDomain;
use weft_control_plane::compile::{self, Shared};
use weft_control_plane::model::{Endpoints, Model};
use weft_control_plane::source::{Event, Kind, ResourceKey};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn resource(text: &str) -> Resource {
    parse_documents(text).pop().expect("one").expect("valid")
}

fn workload(name: &str, app: &str, address: &str, zone: Option<&str>) -> Workload {
    let zone = zone.map(|zone| format!(", topology.kubernetes.io/zone: {zone}")).unwrap_or_default();
    let text = format!(
        "{{apiVersion: policy.weft.dev/v1alpha1, kind: Workload, metadata: {{name: {name}, namespace: shop, \
         labels: {{app: {app}{zone}}}}}, spec: {{addresses: [{address}], mesh: false}}}}"
    );
    let Resource::Workload(workload) = resource(&text) else { panic!("a Workload") };
    workload
}

/// One endpoint: the last byte of its address, whether it is ready, and the zones that it is for.
type Row<'a> = (u8, bool, &'a [&'a str]);

fn slice(rows: &[Row<'_>]) -> Event {
    let endpoint = |(last, ready, zones): &Row<'_>| SliceEndpoint {
        address: [10, 1, 0, *last].into(),
        pod: None,
        ready: *ready,
        serving: true,
        zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
    };
    Event::EndpointSlice(EndpointSlice {
        name: NamespacedName::new("shop", "web-1"),
        service: NamespacedName::new("shop", "web"),
        ports: vec![SlicePort { name: "http".into(), port: 8080 }],
        endpoints: rows.iter().map(endpoint).collect(),
    })
}

fn node(name: &str, zone: Option<&str>) -> Event {
    Event::Node { name: name.to_owned(), zone: zone.map(str::to_owned) }
}

fn model(endpoints: Endpoints) -> Model {
    Model::with(TrustDomain::parse("cluster.local").expect("valid"), Default::default(), endpoints)
}

/// The mesh with a caller on node `n`, of zone `a`.
fn cluster() -> Model {
    let mut model = model(Endpoints::Slices);
    let caller = Workload { node: Some("n".into()), ..workload("caller", "caller", "10.2.0.1", None) };
    let events = [Event::Applied(resource(SERVICE)), Event::Applied(Resource::Workload(caller)), node("n", Some("a"))];
    events.into_iter().for_each(|event| model.apply(event));
    model
}

fn compiled(model: &mut Model, previous: &Shared) -> Shared {
    let changed = model.take_changed();
    compile::shared(model, previous, &changed)
}

/// The last bytes of the addresses that `caller` is told of.
fn told(model: &Model, shared: &Shared, caller: &str) -> Vec<u8> {
    let config = compile::workload(model, shared, &NamespacedName::new("shop", caller)).expect("there");
    let service = &config.services[&NamespacedName::new("shop", "web")];
    let last = |address: std::net::SocketAddr| match address.ip() {
        std::net::IpAddr::V4(v4) => v4.octets()[3],
        std::net::IpAddr::V6(_) => unreachable!("the tests have IPv4"),
    };
    service.ports[0].endpoints.iter().map(|endpoint| last(endpoint.address)).collect()
}

#[test]
fn a_caller_is_told_of_its_zone_s_endpoints_where_all_hints_are_there_and_of_all_otherwise() {
    let rows: &[(&str, &[Row<'_>], &[u8])] = &[
        ("all have hints", &[(1, true, &["a"]), (2, true, &["b"]), (3, true, &["a"])], &[1, 3]),
        ("one is for several zones", &[(1, true, &["b", "a"]), (2, true, &["b"])], &[1]),
        ("one has no hint", &[(1, true, &["a"]), (2, true, &[])], &[1, 2]),
        ("one that is not ready has no hint", &[(1, true, &["a"]), (2, true, &["b"]), (3, false, &[])], &[1]),
        ("none is for the caller's zone", &[(1, true, &["b"]), (2, true, &["c"])], &[1, 2]),
        ("no hints at all", &[(1, true, &[]), (2, true, &[])], &[1, 2]),
        ("none is ready", &[(1, false, &["a"]), (2, false, &["b"])], &[1, 2]),
    ];
    for (case, rows, expected) in rows {
        let mut model = cluster();
        model.apply(slice(rows));
        let shared = compiled(&mut model, &Shared::default());
        assert_eq!(told(&model, &shared, "caller"), *expected, "{case}");
    }
}

#[test]
fn a_caller_whose_zone_is_not_known_is_told_of_all_and_a_change_of_its_zone_is_told() {
    let mut model = cluster();
    model.apply(slice(&[(1, true, &["a"]), (2, true, &["b"])]));
    let caller = NamespacedName::new("shop", "caller");
    let mut shared = compiled(&mut model, &Shared::default());
    let gone = Event::Removed(ResourceKey { kind: Kind::Node, name: NamespacedName::new("", "n") });
    for (event, expected) in [
        (node("n", Some("a")), &[1_u8][..]),
        (node("n", Some("b")), &[2]),
        (node("n", Some("c")), &[1, 2]),
        (node("n", None), &[1, 2]),
        (node("n", Some("b")), &[2]),
        (gone, &[1, 2]),
    ] {
        let before = compile::workload(&model, &shared, &caller).expect("there");
        model.apply(event.clone());
        shared = compiled(&mut model, &shared);
        let now = compile::workload(&model, &shared, &caller).expect("there");
        assert_eq!(told(&model, &shared, "caller"), expected, "{event:?}");
        let same = compile::is_reachable(&model, &shared, &caller, &before.services);
        assert!(same || before.services != now.services, "{event:?}: what is the same is the very same");
        assert!(!same || before.services == now.services, "{event:?}: a change is noticed");
    }
}

#[test]
fn callers_of_one_zone_share_what_they_are_told_and_a_change_elsewhere_keeps_it() {
    let mut model = cluster();
    let second = Workload { node: Some("n".into()), ..workload("second", "caller", "10.2.0.2", None) };
    let far = Workload { node: Some("m".into()), ..workload("far", "caller", "10.2.0.3", None) };
    [second, far].into_iter().for_each(|workload| model.apply(Event::Applied(Resource::Workload(workload))));
    model.apply(node("m", Some("b")));
    model.apply(slice(&[(1, true, &["a"]), (2, true, &["b"])]));
    let shared = compiled(&mut model, &Shared::default());
    let services = |shared: &Shared, name: &str| {
        compile::workload(&model, shared, &NamespacedName::new("shop", name)).expect("there").services
    };
    assert!(Arc::ptr_eq(&services(&shared, "caller"), &services(&shared, "second")));
    assert_ne!(services(&shared, "caller"), services(&shared, "far"));
    let again = compile::shared(&model, &shared, &BTreeSet::from(["elsewhere".to_owned()]));
    assert!(again.is(&shared));
    assert!(Arc::ptr_eq(&services(&again, "far"), &services(&shared, "far")));
}

#[test]
fn without_kubernetes_a_service_asks_for_it_and_its_workloads_say_where_they_are() {
    let asking = SERVICE.replace("spec: {", "spec: {trafficDistribution: PreferClose, ");
    for (service, zone_of_2, expected) in
        [(asking.as_str(), Some("b"), &[1_u8][..]), (SERVICE, Some("b"), &[1, 2]), (asking.as_str(), None, &[1, 2])]
    {
        let mut model = model(Endpoints::Selectors);
        model.apply(Event::Applied(resource(service)));
        for workload in [
            workload("caller", "caller", "10.2.0.1", Some("a")),
            workload("web-1", "web", "10.1.0.1", Some("a")),
            workload("web-2", "web", "10.1.0.2", zone_of_2),
        ] {
            model.apply(Event::Applied(Resource::Workload(workload)));
        }
        let shared = compiled(&mut model, &Shared::default());
        assert_eq!(told(&model, &shared, "caller"), expected, "{service} {zone_of_2:?}");
    }
}
