//! Says whether an object may be stored: Weft's own kinds by the engine that the sidecars' configuration is made with, and
//! what is Weft's in objects of others. Does no I/O.
//!
//! Only what is wrong in what somebody just wrote is refused. What is being deleted, what a controller writes (status,
//! finalizers, labels) and what belongs to others always passes: a fault that got in once must not block its repair.
mod annotations;
mod routes;

use serde_json::{Map, Value};
use weft_api::resource::{
    Action, AuthorizationPolicy, GATEWAY_GROUP, NamespacedName, Resource, ResourceError, Target, parse_documents,
};

use super::review::{Answer, Operation, Review};

/// Whether a Service of that name is known; it may lag behind by a moment.
pub type KnownService<'a> = &'a (dyn Fn(&NamespacedName) -> bool + Send + Sync);

/// Group of Weft's own kinds.
const GROUP: &str = "policy.weft.dev";
/// What stands before all of Weft's annotations.
const PREFIX: &str = "weft.dev/";

/// Answers a review. `known` tells which Services there are; `None`: nothing is said of Services that are not there.
pub fn answer(review: &Review, known: Option<KnownService<'_>>) -> Answer {
    let writes = matches!(review.operation, Operation::Create | Operation::Update) && review.sub_resource.is_empty();
    if !writes || is_being_deleted(&review.object) {
        return Answer::allow();
    }
    let warnings = match (review.kind.group.as_str(), review.kind.kind.as_str()) {
        (GROUP, _) => own_kind(review, known),
        (GATEWAY_GROUP, "HTTPRoute" | "GRPCRoute") => routes::of_route(review, known),
        ("", "Namespace") => annotations::of_namespace(review),
        ("", "Service") => annotations::of_service(review),
        _ => Ok(Vec::new()),
    };
    match warnings {
        Ok(warnings) => Answer::Allow { warnings },
        Err(message) => Answer::Refuse { message },
    }
}

/// Reads an object of the API as the resource that it is; its name and namespace may be missing in the object itself.
///
/// # Errors
/// What is wrong and what to write instead.
pub fn parse_object(object: &Value, namespace: &str, name: &str) -> Result<Resource, ResourceError> {
    let mut object = object.clone();
    let Some(fields) = object.as_object_mut() else { return parse(&object) };
    // Written by the API server and controllers, and no affair of the engine.
    fields.remove("status");
    let written = fields.get("metadata").and_then(Value::as_object);
    let mut metadata = Map::from_iter([("name".to_owned(), name.into())]);
    if !namespace.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    }
    for key in ["labels", "annotations"] {
        if let Some(texts) = written.and_then(|written| written.get(key)) {
            // Annotations of others may hold anything.
            let ours = |(key, _): &(&String, &Value)| key.starts_with(PREFIX);
            let kept = match texts.as_object() {
                Some(texts) if key == "annotations" => {
                    texts.iter().filter(ours).map(|(key, text)| (key.clone(), text.clone())).collect()
                }
                _ => texts.clone(),
            };
            metadata.insert(key.into(), kept);
        }
    }
    fields.insert("metadata".into(), metadata.into());
    parse(&object)
}

fn parse(object: &Value) -> Result<Resource, ResourceError> {
    let mut read = parse_documents(&object.to_string());
    let mut read = if read.len() == 1 { read.remove(0) } else { Err(not_one()) };
    if let Err(fault) = &mut read {
        // The object is one line of JSON, which nobody wrote.
        fault.line = 0;
    }
    read
}

fn not_one() -> ResourceError {
    ResourceError {
        line: 0,
        kind: None,
        name: None,
        message: "the object is not one resource".into(),
        remedy: "Write each resource as an object of its own.".into(),
    }
}

fn is_being_deleted(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null())
}

fn own_kind(review: &Review, known: Option<KnownService<'_>>) -> Result<Vec<String>, String> {
    if review.operation == Operation::Update && review.object.get("spec") == review.old_object.get("spec") {
        return Ok(Vec::new());
    }
    let resource = parse_object(&review.object, &review.namespace, review.object_name().trim_end_matches(['-', '.']))
        .map_err(|fault| fault.to_string())?;
    let (target, name) = match &resource {
        Resource::AuthorizationPolicy(policy) => (&policy.target, &policy.name),
        Resource::RateLimitPolicy(policy) => (&policy.target, &policy.name),
        _ => return Ok(Vec::new()),
    };
    let mut warnings = match &resource {
        Resource::AuthorizationPolicy(policy) => without_rules(policy),
        _ => Vec::new(),
    };
    if let (Target::Services(services), Some(known)) = (target, known) {
        let absent = services.iter().filter(|service| !known(&NamespacedName::new(&*name.namespace, &***service)));
        warnings.extend(absent.map(|service| {
            let namespace = &name.namespace;
            format!("targetRefs: there is no Service {service} in namespace {namespace}; until there is, the policy applies to nothing there")
        }));
    }
    Ok(warnings)
}

fn without_rules(policy: &AuthorizationPolicy) -> Vec<String> {
    let warning = match policy.action {
        _ if !policy.rules.is_empty() => return Vec::new(),
        Action::Allow => "an Allow policy without rules allows nothing: every call to what it applies to is refused",
        Action::Deny => "a Deny policy without rules refuses every call to what it applies to",
    };
    vec![warning.to_owned()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn review(operation: &str, group: &str, object: Value, old: Value) -> Review {
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        let namespace = if kind == "Namespace" { "" } else { "shop" };
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u-1", "kind": {"group": group, "version": "v1", "kind": kind}, "operation": operation,
            "namespace": namespace, "object": object, "oldObject": old,
        }});
        Review::parse(body.to_string().as_bytes()).expect("whole")
    }

    fn policy(kind: &str, spec: Value) -> Value {
        json!({"apiVersion": "policy.weft.dev/v1alpha1", "kind": kind, "spec": spec, "metadata": {
            "name": "p", "namespace": "shop", "uid": "1", "managedFields": [{"fieldsV1": {"f:spec": {}}}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"a\":\"\u{85}\u{2028}\"}"},
        }, "status": {"conditions": [{"anything": true}]}})
    }

    fn created(kind: &str, spec: Value) -> Answer {
        answer(&review("CREATE", "policy.weft.dev", policy(kind, spec), Value::Null), None)
    }

    fn refusal(answer: Answer) -> String {
        match answer {
            Answer::Refuse { message } => message,
            other => panic!("was not refused: {other:?}"),
        }
    }

    fn warnings(answer: Answer) -> Vec<String> {
        match answer {
            Answer::Allow { warnings } => warnings,
            other => panic!("was not allowed: {other:?}"),
        }
    }

    #[test]
    fn what_is_right_is_allowed_without_a_word() {
        for (kind, spec) in [
            ("AuthorizationPolicy", json!({"action": "Allow", "rules": [{"from": [{"serviceAccounts": ["orders"]}]}]})),
            ("RateLimitPolicy", json!({"limits": [{"name": "a", "requests": 1, "window": "1s"}]})),
            ("Workload", json!({"addresses": ["10.0.0.1"]})),
        ] {
            assert_eq!(created(kind, spec), Answer::allow(), "{kind}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_to_write_instead() {
        let rule = |rule: Value| json!({"action": "Allow", "rules": [rule]});
        let paths = |path: String| rule(json!({"to": [{"paths": [path]}]}));
        let identity = |identity: &str| rule(json!({"from": [{"identities": [identity]}]}));
        let limit = |field: &str, value: Value| {
            let mut limit = json!({"name": "a", "requests": 1, "window": "1s"});
            limit[field] = value;
            json!({"limits": [limit]})
        };
        let deep = (0..90).fold(json!(1), |inner, _| json!([inner]));
        let rows = [
            // 123
            ("AuthorizationPolicy", rule(json!({"to": [{"pathss": ["/a"]}]})), "Write `paths`"),
            ("AuthorizationPolicy", json!({"action": "allow"}), "Write `Allow`"),
            ("AuthorizationPolicy", json!({"action": 1}), "must be a text"),
            ("AuthorizationPolicy", json!({"rules": []}), "`spec.action`"),
            ("AuthorizationPolicy", Value::Null, "`spec`"),
            ("AuthorizationPolicy", json!([]), "`spec` must be an object"),
            ("RateLimitPolicy", json!({}), "`spec.limits`"),
            ("Workload", json!({"addresses": ["10.0.0.0/8"]}), "which is not an IP address"),
            // 124
            ("AuthorizationPolicy", rule(json!({"from": []})), "empty list"),
            // 125
            ("AuthorizationPolicy", paths(format!("/{}", "a".repeat(1 << 19))), "`spec.rules[0].to[0].paths[0]`"),
            // 126
            ("AuthorizationPolicy", json!({"action": deep}), "nesting"),
            ("AuthorizationPolicy", paths(format!("/{}", "a".repeat(1 << 20))), "bytes"),
            // 127
            (
                "AuthorizationPolicy",
                json!({"action": "Deny", "targetRefs": [{"kind": "Service", "name": "a", "namespace": "b"}]}),
                "own namespace only",
            ),
            (
                "RateLimitPolicy",
                json!({"targetRefs": [{"kind": "Service", "name": "b/a"}], "limits": []}),
                "own namespace only",
            ),
            // 129
            ("AuthorizationPolicy", identity("spiffe://*/ns/x/sa/y"), "`spec.rules[0].from[0].identities[0]`"),
            ("AuthorizationPolicy", identity("spiffe://a/ns/x/sa/*y"), "`spec.rules[0].from[0].identities[0]`"),
            ("AuthorizationPolicy", paths("/a/**".into()), "`spec.rules[0].to[0].paths[0]`"),
            ("AuthorizationPolicy", paths("/a*b".into()), "`spec.rules[0].to[0].paths[0]`"),
            // 130
            ("RateLimitPolicy", limit("requests", json!(0)), "from 1 to"),
            ("RateLimitPolicy", limit("requests", json!(-1)), "from 1 to"),
            ("RateLimitPolicy", limit("requests", json!(1.5)), "whole number"),
            ("RateLimitPolicy", limit("requests", json!(18_446_744_073_709_551_615_u64)), "from 1 to"),
            ("RateLimitPolicy", limit("requests", json!("NaN")), "whole number"),
            ("RateLimitPolicy", limit("window", json!("0s")), "`spec.limits[0].window`"),
            (
                "RateLimitPolicy",
                json!({"limits": [
                    {"name": "a", "requests": 2, "window": "1s", "per": "Client"},
                    {"name": "b", "requests": 1, "window": "1s", "per": "All"},
                ]}),
                "one client more",
            ),
            // 131 and what else comes later
            ("RequestAuthentication", json!({"jwt": [{"jwksUri": "http://169.254.169.254/"}]}), "not supported"),
            ("EgressPolicy", json!({}), "not supported"),
            ("AuthorizatonPolicy", json!({}), "Write `AuthorizationPolicy`"),
        ];
        for (kind, spec, expected) in rows {
            let Answer::Refuse { message } = created(kind, spec.clone()) else {
                panic!("{kind} {:.200} was not refused", spec.to_string());
            };
            assert!(message.contains(expected), "{kind} {:.200}: {message}", spec.to_string());
            assert!(message.len() < 1_000, "{} bytes: {message}", message.len());
            assert!(!message.starts_with("line"), "{message}");
        }
        let message = refusal(created("AuthorizationPolicy", json!({"action": "allow"})));
        assert!(message.starts_with("AuthorizationPolicy shop/p: `spec.action` "), "{message}");
    }

    #[test]
    fn a_fault_that_is_stored_does_not_block_its_repair() {
        let (bad, good) = (json!({"action": "allow"}), json!({"action": "Allow"}));
        let object = |spec: &Value| policy("AuthorizationPolicy", spec.clone());
        let deleted = |spec: &Value| {
            let mut object = object(spec);
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            object
        };
        let labelled = |spec: &Value| {
            let mut object = object(spec);
            object["metadata"]["labels"] = json!({"team": "a"});
            object
        };
        let rows = [
            ("a fault is added", "UPDATE", object(&bad), object(&good), false),
            ("a fault is changed", "UPDATE", object(&json!({"action": "deny"})), object(&bad), false),
            ("a fault is mended", "UPDATE", object(&good), object(&bad), true),
            ("a label is added", "UPDATE", labelled(&bad), object(&bad), true),
            ("it is going away", "UPDATE", deleted(&bad), object(&good), true),
            ("it is deleted", "DELETE", object(&bad), object(&bad), true),
        ];
        for (name, operation, new, old, allowed) in rows {
            let answer = answer(&review(operation, "policy.weft.dev", new, old), None);
            assert_eq!(matches!(answer, Answer::Allow { .. }), allowed, "{name}: {answer:?}");
        }
        let mut status = review("UPDATE", "policy.weft.dev", object(&bad), object(&good));
        status.sub_resource = "status".into();
        assert_eq!(answer(&status, None), Answer::allow());
    }

    #[test]
    fn a_name_that_is_generated_later_is_no_fault() {
        let mut object = policy("AuthorizationPolicy", json!({"action": "Deny"}));
        object["metadata"] = json!({"generateName": "p-"});
        warnings(answer(&review("CREATE", "policy.weft.dev", object, Value::Null), None));
    }

    #[test]
    fn what_is_legal_but_suspicious_is_warned_of() {
        let known = |name: &NamespacedName| name.to_string() == "shop/inventory";
        let target = |name: &str| json!({"action": "Deny", "targetRefs": [{"kind": "Service", "name": name}]});
        let rows = [
            (target("inventory"), "without rules refuses every call", 1),
            (target("inventori"), "no Service inventori in namespace shop", 2),
            (json!({"action": "Allow"}), "without rules allows nothing", 1),
            (json!({"action": "Allow", "rules": [{}]}), "", 0),
        ];
        for (spec, expected, count) in rows {
            let object = policy("AuthorizationPolicy", spec.clone());
            let warnings = warnings(answer(&review("CREATE", "policy.weft.dev", object, Value::Null), Some(&known)));
            assert_eq!(warnings.len(), count, "{spec}: {warnings:?}");
            assert!(warnings.iter().any(|warning| warning.contains(expected)) || count == 0, "{spec}: {warnings:?}");
            assert!(warnings.iter().all(|warning| warning.chars().count() <= 256), "{warnings:?}");
        }
    }
}
