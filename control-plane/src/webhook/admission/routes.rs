//! Routes of the Gateway API. Its own schemas refuse most of what is wrong; here is said what they cannot know. Does no I/O.
use serde_json::Value;
use weft_api::resource::{GATEWAY_GROUP, NamespacedName, Resource, Route};

use super::super::review::{Operation, Review};
use super::{KnownService, parse_object};

/// Warnings of a route that is attached to a Service, or why it is refused. Others are none of ours.
pub(super) fn of_route(review: &Review, known: Option<KnownService<'_>>) -> Result<Vec<String>, String> {
    let unchanged = review.operation == Operation::Update && review.object.get("spec") == review.old_object.get("spec");
    if unchanged || !names_a_service(&review.object) {
        return Ok(Vec::new());
    }
    let mut object = review.object.clone();
    // The same in every version that the API server has.
    object["apiVersion"] = format!("{GATEWAY_GROUP}/v1").into();
    let name = review.object_name().trim_end_matches(['-', '.']);
    match parse_object(&object, &review.namespace, name) {
        Ok(Resource::Route(route)) => Ok(warnings(&route, &object, known)),
        Ok(_) => Ok(Vec::new()),
        Err(fault) => Err(fault.to_string()),
    }
}

fn names_a_service(object: &Value) -> bool {
    let parents = object.pointer("/spec/parentRefs").and_then(Value::as_array).into_iter().flatten();
    parents.into_iter().any(|parent| parent["kind"] == "Service")
}

fn warnings(route: &Route, object: &Value, known: Option<KnownService<'_>>) -> Vec<String> {
    let mut warnings = Vec::new();
    let home = &route.name.namespace;
    for (place, rule) in route.rules.iter().enumerate() {
        warnings
            .extend(rule.refused.iter().map(|why| format!("rules[{place}]: {why}; until then its requests get 500")));
    }
    if object.pointer("/spec/hostnames").and_then(Value::as_array).is_some_and(|hostnames| !hostnames.is_empty()) {
        warnings.push("hostnames: they mean nothing for a Service; match the header host instead".to_owned());
    }
    let Some(known) = known else { return warnings };
    for service in route.parents.iter().filter_map(|parent| parent.service(home)).filter(|service| !known(service)) {
        warnings.push(format!("parentRefs: there is no Service {service}; until there is, the route holds nowhere"));
    }
    let absent = |service: &&NamespacedName| service.namespace == *home && !known(service);
    let backends = route.backends().filter(|backend| backend.refused.is_none()).map(|backend| &backend.service);
    for service in backends.filter(absent) {
        warnings.push(format!("backendRefs: there is no Service {service}; until there is, its requests get 500"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::review::Answer;
    use super::*;

    fn answer(kind: &str, spec: &Value, old: &Value) -> Answer {
        let object = |spec: &Value| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": kind, "spec": spec, "metadata": {
                "name": "r", "namespace": "shop", "annotations": {"a": "b"}, "managedFields": [{}],
            }})
        };
        let (operation, old) = if old.is_null() { ("CREATE", Value::Null) } else { ("UPDATE", object(old)) };
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u-1", "kind": {"group": GATEWAY_GROUP, "version": "v1beta1", "kind": kind}, "operation": operation,
            "namespace": "shop", "object": object(spec), "oldObject": old,
        }});
        let review = Review::parse(body.to_string().as_bytes()).expect("whole");
        super::super::answer(&review, Some(&|service: &NamespacedName| service.to_string() == "shop/stock"))
    }

    fn spec(rules: Value) -> Value {
        json!({"parentRefs": [{"group": "", "kind": "Service", "name": "stock"}], "rules": rules})
    }

    const BAD: &str = "(";

    fn regex() -> Value {
        json!([{"matches": [{"path": {"type": "RegularExpression", "value": BAD}}]}])
    }

    #[test]
    fn what_the_api_s_own_schema_cannot_know_is_refused_or_warned_of() {
        for (spec, expected) in [
            (spec(json!([{"backendRefs": [{"name": "stock", "port": 80}]}])), vec![]),
            (spec(json!([{"filters": [{"type": "CORS", "cors": {}}]}])), vec!["rules[0]: the filter CORS"]),
            (spec(json!([{"backendRefs": [{"name": "gone", "port": 80}]}])), vec!["no Service shop/gone"]),
            // It may be there and no affair of whoever writes the route.
            (spec(json!([{"backendRefs": [{"name": "x", "namespace": "y", "port": 80}]}])), vec![]),
            (
                json!({"parentRefs": [{"group": "", "kind": "Service", "name": "gone"}]}),
                vec!["the route holds nowhere"],
            ),
            (
                json!({"parentRefs": [{"group": "", "kind": "Service", "name": "stock"}], "hostnames": ["a.b"]}),
                vec!["hostnames"],
            ),
            // Of a Gateway's routes nothing is said.
            (json!({"parentRefs": [{"name": "edge"}], "rules": regex()}), vec![]),
        ] {
            let Answer::Allow { warnings } = answer("HTTPRoute", &spec, &Value::Null) else { panic!("{spec}") };
            assert_eq!(warnings.len(), expected.len(), "{spec}: {warnings:?}");
            assert!(warnings.iter().zip(&expected).all(|(said, expected)| said.contains(expected)), "{warnings:?}");
        }
        match answer("HTTPRoute", &spec(regex()), &Value::Null) {
            Answer::Refuse { message } => {
                assert!(message.starts_with("HTTPRoute shop/r: `spec.rules[0].matches[0].path.value`"), "{message}");
                assert!(message.contains("RE2"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_route_that_was_let_in_can_be_labelled() {
        let same = spec(regex());
        assert_eq!(answer("HTTPRoute", &same, &same), Answer::allow());
        assert!(matches!(answer("HTTPRoute", &same, &json!({})), Answer::Refuse { .. }));
    }
}
