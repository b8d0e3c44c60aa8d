//! One row for each thing that a route's status can say.
use std::sync::Arc;

use weft_api::resource::{Resource, Route, parse_documents};

use super::*;
use crate::compile::{self, Shared, routes};
use crate::model::{Endpoints, Model};
use crate::source::Event;

const MESH: &str = "
{apiVersion: v1, kind: Service, metadata: {name: stock, namespace: shop}, spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}, {name: db, port: 81, appProtocol: tcp}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: shop}, spec: {clusterIP: None, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: calls, namespace: shop}, spec: {clusterIP: 10.0.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: far, namespace: attic}, spec: {clusterIP: 10.0.0.3, ports: [{port: 80}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: calls}]}
";

fn route(spec: &str) -> Route {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec: {spec}"
    );
    match parse_documents(&text).pop() {
        Some(Ok(Resource::Route(route))) => route,
        other => panic!("{spec}: {other:?}"),
    }
}

fn state(route: &Route) -> RouteState {
    let domain = weft_certs::TrustDomain::parse("cluster.local").expect("valid");
    let mut model = Model::with(domain, Default::default(), Endpoints::Slices);
    let mesh = parse_documents(MESH).into_iter().map(|resource| resource.expect("valid"));
    mesh.chain([Resource::Route(route.clone())]).for_each(|resource| model.apply(Event::Applied(resource)));
    let shared = compile::shared(&model, &Shared::default(), &model.clone().take_changed());
    routes::states(&model, &shared).remove(&(route.name.clone(), route.kind)).expect("it is there")
}

fn object(route: &Route, error: Option<&str>) -> Object {
    Object {
        uid: "u".to_owned(),
        generation: 3,
        error: error.map(str::to_owned),
        content: None,
        status: Value::Null,
        route: Some(Arc::new(route.clone())),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("valid")
}

/// `Accepted=True:Accepted ResolvedRefs=…`, and the messages.
fn said(parent: &Parent) -> (String, String) {
    let all = parent.conditions.iter();
    let words = all.clone().map(|condition| format!("{}={}:{}", condition.type_, condition.status, condition.reason));
    (
        words.collect::<Vec<_>>().join(" "),
        all.map(|condition| condition.message.clone()).collect::<Vec<_>>().join(" | "),
    )
}

#[test]
fn a_route_is_told_how_it_fares_at_each_service() {
    let fine = "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs";
    let not = |reason: &str| format!("Accepted=False:{reason} ResolvedRefs=True:ResolvedRefs");
    let lost = |reason: &str| format!("Accepted=True:Accepted ResolvedRefs=False:{reason}");
    let cors = "{filters: [{type: CORS, cors: {}}]}";
    for (parent, rules, expected, words) in [
        ("name: stock", "[{}]".to_owned(), fine.to_owned(), "it holds"),
        ("name: stock, port: 80, sectionName: http", "[{}]".to_owned(), fine.to_owned(), "it holds"),
        ("name: stcok", "[{}]".to_owned(), not("NoMatchingParent"), "no Service shop/stcok"),
        ("name: headless", "[{}]".to_owned(), not("NoMatchingParent"), "no address"),
        ("name: stock, port: 82", "[{}]".to_owned(), not("NoMatchingParent"), "no TCP port"),
        ("name: stock, port: 81", "[{}]".to_owned(), not("UnsupportedProtocol"), "appProtocol"),
        ("name: calls", "[{}]".to_owned(), not("Conflicted"), "a GRPCRoute holds"),
        ("name: stock", format!("[{cors}]"), not("UnsupportedValue"), "none of its rules"),
        (
            "name: stock",
            format!("[{cors}, {{}}]"),
            format!("{fine} PartiallyInvalid=True:UnsupportedValue"),
            "Dropped Rule: rule 1: the filter CORS",
        ),
        (
            "name: stock",
            "[{backendRefs: [{name: gone, port: 80}]}]".to_owned(),
            lost("BackendNotFound"),
            "no Service shop/gone",
        ),
        (
            "name: stock",
            "[{backendRefs: [{name: stock, port: 8}]}]".to_owned(),
            lost("BackendNotFound"),
            "no TCP port 8",
        ),
        (
            "name: stock",
            "[{backendRefs: [{name: far, namespace: attic, port: 80}]}]".to_owned(),
            lost("RefNotPermitted"),
            "no ReferenceGrant in namespace attic",
        ),
        (
            "name: far, namespace: attic",
            "[{backendRefs: [{name: far, namespace: attic, port: 80}]}]".to_owned(),
            fine.to_owned(),
            "it holds",
        ),
        (
            "name: stock",
            "[{backendRefs: [{group: a.b, kind: C, name: d}, {name: gone, port: 80}]}]".to_owned(),
            lost("InvalidKind"),
            "a.b/C",
        ),
        (
            "name: stock",
            "[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}]}]".to_owned(),
            lost("BackendNotFound"),
            "shop/gone",
        ),
    ] {
        let route = route(&format!("{{parentRefs: [{{group: '', kind: Service, {parent}}}], rules: {rules}}}"));
        let parents = wanted(&object(&route, None), Some(&state(&route)), &[], at(1));
        assert_eq!(parents.len(), 1, "{parent}");
        let (conditions, messages) = said(&parents[0]);
        assert_eq!(conditions, expected, "{parent} {rules}: {messages}");
        assert!(messages.contains(words), "{parent} {rules}: {messages}");
        assert!(parents[0].conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    }
}

#[test]
fn a_route_that_cannot_be_understood_is_not_accepted() {
    let route = route("{parentRefs: [{group: '', kind: Service, name: stock}]}");
    let object = object(&route, Some("it is odd."));
    for (state, words) in [(None, "it is odd; it is left out"), (Some(state(&route)), "stays in force")] {
        let (conditions, messages) = said(&wanted(&object, state.as_ref(), &[], at(1))[0]);
        assert_eq!(conditions, "Accepted=False:UnsupportedValue ResolvedRefs=Unknown:Pending");
        assert!(messages.contains(words), "{messages}");
    }
}

#[test]
fn what_other_controllers_wrote_stays_and_so_do_parents_that_are_no_services() {
    let route = route(
        "{parentRefs: [{name: edge}, {group: '', kind: Service, name: stock, port: 80}, {group: '', kind: Service, name: stock, sectionName: http}]}",
    );
    let foreign = json!({"parentRef": {"name": "edge"}, "controllerName": "example.org/gateway", "conditions": []});
    let stale = json!({"parentRef": {"group": "", "kind": "Service", "name": "old"}, "controllerName": CONTROLLER, "conditions": []});
    let status = json!({"parents": [stale, foreign]});
    let before = ours(&status);
    let said = wanted(&object(&route, None), Some(&state(&route)), &before, at(1));
    assert_eq!(change(&before, &said), Some(Change::Status));
    let written = with(&status, &said);
    let parents = written["parents"].as_array().expect("a list");
    assert_eq!(parents[0], foreign);
    let references: Vec<&Value> = parents[1..].iter().map(|entry| &entry["parentRef"]).collect();
    assert_eq!(
        references,
        [
            &json!({"group": "", "kind": "Service", "name": "stock", "port": 80}),
            &json!({"group": "", "kind": "Service", "name": "stock", "sectionName": "http"}),
        ]
    );
    // What was written is what is read again, and is not written twice; time goes on only where something changes.
    let again = wanted(&object(&route, None), Some(&state(&route)), &ours(&written), at(2));
    assert_eq!(change(&ours(&written), &again), None);
    let gone = wanted(&object(&route, None), Some(&state(&route)), &[], at(2));
    assert_eq!(change(&again, &gone), Some(Change::Words), "another time alone");
    let none =
        Object { route: Some(Arc::new(Route { parents: Vec::new(), ..route })), ..object(&route_without(), None) };
    assert_eq!(with(&written, &wanted(&none, None, &ours(&written), at(3)))["parents"], json!([foreign]));
}

fn route_without() -> Route {
    route("{}")
}
