//! Bounds, and what is kept while nothing changes.
use weft_api::resource::{Resource, parse_documents};
use weft_certs::TrustDomain;

use super::*;
use crate::compile::{Shared, shared};
use crate::source::Event;

fn model(yaml: &str) -> Model {
    let mut model = Model::new(TrustDomain::parse("cluster.local").expect("valid"));
    apply(&mut model, yaml);
    model
}

fn apply(model: &mut Model, yaml: &str) {
    for resource in parse_documents(yaml) {
        model.apply(Event::Applied(resource.expect("valid")));
    }
}

fn recompiled(model: &mut Model, previous: &Shared) -> Shared {
    let changed = model.take_changed();
    shared(model, previous, &changed)
}

fn service(namespace: &str, name: &str, ports: usize) -> String {
    let ports: Vec<String> = (1..=ports).map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: 10.0.0.1, ports: [{}]}}\n---\n",
        ports.join(", ")
    )
}

/// A route of `namespace` to shop/stock, of about `bytes`.
fn route(namespace: &str, name: &str, bytes: usize) -> Event {
    let value = "x".repeat(4_000);
    let header = |number| format!("{{name: h{number}, value: {value}}}");
    let headers: Vec<String> = (0..bytes / 4_000).map(header).collect();
    let matches: Vec<String> = headers.chunks(16).map(|some| format!("{{headers: [{}]}}", some.join(", "))).collect();
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: stock, namespace: shop}}], rules: [{{matches: [{}]}}]}}",
        matches.join(", ")
    );
    let resource = parse_documents(&text).pop().expect("one").expect("valid");
    Event::Applied(resource)
}

fn names(shared: &Shared, port: usize) -> Vec<String> {
    let service = &shared.services[&NamespacedName::new("shop", "stock")];
    service.ports[port].routes.iter().map(|route| route.name.name.clone()).collect()
}

#[test]
fn what_exceeds_the_bounds_is_left_out_and_what_was_there_before_stays() {
    // (ports of the Service, size and number of routes, routes that hold)
    for (ports, bytes, count, expected) in [(1, 0, MAX_ROUTES + 5, MAX_ROUTES), (1, 400_000, 4, 2), (4, 200_000, 3, 1)]
    {
        let mut model = model(&service("shop", "stock", ports));
        for number in 0..count {
            let Event::Applied(Resource::Route(route)) = route("shop", &format!("r{number:04}"), bytes) else {
                panic!()
            };
            // By name the last, by age the first.
            let created = u64::try_from(count - number).expect("small");
            model.apply(Event::Applied(Resource::Route(Route { created, ..route })));
        }
        let compiled = recompiled(&mut model, &Shared::default());
        let held = names(&compiled, ports - 1);
        assert_eq!(held.len(), expected, "{ports} ports, {bytes} bytes");
        assert_eq!(held[0], format!("r{:04}", count - 1), "the oldest holds");
        let states = states(&model, &compiled);
        let left_out = states.values().filter(|state| state.parents[0].attached == Attached::TooMany).count();
        assert_eq!(left_out, count - expected, "{ports} ports, {bytes} bytes");
    }
}

#[test]
fn nothing_is_made_anew_for_what_did_not_change() {
    let mut model = model(&[service("shop", "stock", 2), service("attic", "far", 1)].concat());
    model.apply(route("shop", "producer", 0));
    model.apply(route("batch", "consumer", 0));
    let first = recompiled(&mut model, &Shared::default());
    let name = NamespacedName::new("shop", "stock");
    // Something else of a namespace with routes, and something of another.
    apply(&mut model, &service("shop", "other", 1));
    apply(&mut model, &service("attic", "far", 2));
    let second = recompiled(&mut model, &first);
    assert!(Arc::ptr_eq(&first.services[&name], &second.services[&name]));
    assert!(Arc::ptr_eq(&first.overlays["batch"][&name], &second.overlays["batch"][&name]));
    assert!(second.overlays["batch"].contains_key(&NamespacedName::new("shop", "other")), "the rest goes on");
    assert_eq!(second.overlays.len(), 1, "only who has routes of its own has a view of its own");
    // Nothing at all.
    model.apply(route("batch", "consumer", 0));
    let third = recompiled(&mut model, &second);
    assert!(Arc::ptr_eq(&second.overlays["batch"], &third.overlays["batch"]) && second.is(&third));
    // The last consumer route takes the view with it.
    let key = crate::source::ResourceKey {
        kind: crate::source::Kind::HttpRoute,
        name: NamespacedName::new("batch", "consumer"),
    };
    model.apply(Event::Removed(key));
    let fourth = recompiled(&mut model, &third);
    assert!(fourth.overlays.is_empty() && !fourth.is(&third));
    assert_eq!(fourth.resolved.0.len(), 1, "and is forgotten");
}
