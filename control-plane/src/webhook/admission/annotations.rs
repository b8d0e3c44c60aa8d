//! Weft's annotations on Namespaces and Services: what is wrong in those that somebody just wrote. Annotations of others
//! are not looked at, nor are those that were there before.
use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_api::resource::{DEFAULT_POLICY_ANNOTATION, PORT_PROTOCOLS_ANNOTATION, traffic_annotations};

use super::{PREFIX, parse_object};
use crate::webhook::injector::{self, INJECT_ANNOTATION, InjectorConfig, NamespaceMeta, Outcome};
use crate::webhook::review::Review;

/// Annotations by which a Namespace speaks for its pods.
const OF_NAMESPACES: &[&str] = &[
    INJECT_ANNOTATION,
    DEFAULT_POLICY_ANNOTATION,
    "weft.dev/skip-inbound-ports",
    "weft.dev/skip-outbound-ports",
    "weft.dev/skip-subnets",
    "weft.dev/opaque-ports",
    "weft.dev/proxy-cpu-request",
    "weft.dev/proxy-cpu-limit",
    "weft.dev/proxy-memory-request",
    "weft.dev/proxy-memory-limit",
    "weft.dev/log-level",
    "weft.dev/access-log",
];
/// Annotations that a Service may have.
fn of_services() -> Vec<&'static str> {
    [PORT_PROTOCOLS_ANNOTATION].into_iter().chain(traffic_annotations()).collect()
}

/// Judges what is new in a Namespace's annotations and labels.
pub(super) fn of_namespace(review: &Review) -> Result<Vec<String>, String> {
    let object = format!("Namespace {}", review.object_name());
    let mut warnings = Vec::new();
    let mut defaults = BTreeMap::new();
    for (place, key, text) in changed(review, &["annotations", "labels"]) {
        // Labels of our domain that are not ours to judge, such as a component's, are left alone.
        if key == INJECT_ANNOTATION {
            check_inject(review, &object)?;
        } else if place == "labels" {
            continue;
        } else if key == DEFAULT_POLICY_ANNOTATION {
            warnings.extend(check_default_policy(review, text)?);
        } else {
            match spelling(&object, key, OF_NAMESPACES)? {
                None => drop(defaults.insert(key.to_owned(), text.to_owned())),
                Some(warning) => warnings.push(warning),
            }
        }
    }
    check_defaults(review, defaults)?;
    Ok(warnings)
}

fn check_inject(review: &Review, object: &str) -> Result<(), String> {
    let said = |place: &str| review.object["metadata"][place].get(INJECT_ANNOTATION).and_then(Value::as_str);
    let (annotation, label) = (said("annotations"), said("labels"));
    for (place, text) in [("annotations", annotation), ("labels", label)] {
        if let Some(text) = text.filter(|text| !matches!(*text, "enabled" | "disabled")) {
            let text = short(text);
            return Err(format!(
                "{object}: `{INJECT_ANNOTATION}` of `metadata.{place}` is '{text}'. Write `enabled` or `disabled`."
            ));
        }
    }
    if annotation.is_some() && label.is_some() && annotation != label {
        return Err(format!(
            "{object}: annotation and label `{INJECT_ANNOTATION}` say different things. Leave one out."
        ));
    }
    Ok(())
}

fn check_default_policy(review: &Review, text: &str) -> Result<Option<String>, String> {
    let mut object = json!({"apiVersion": "v1", "kind": "Namespace"});
    object["metadata"]["annotations"][DEFAULT_POLICY_ANNOTATION] = text.into();
    parse_object(&object, "", review.object_name()).map_err(|fault| fault.to_string())?;
    Ok((text == "allow").then(|| {
        format!(
            "{DEFAULT_POLICY_ANNOTATION}: allow lets anyone call what no policy speaks of, also without a mesh identity"
        )
    }))
}

/// Judges what a namespace says for its pods as the injector would for the first of them.
fn check_defaults(review: &Review, mut annotations: BTreeMap<String, String>) -> Result<(), String> {
    if annotations.is_empty() {
        return Ok(());
    }
    annotations.insert(INJECT_ANNOTATION.to_owned(), "enabled".to_owned());
    let namespace = NamespaceMeta { name: review.object_name().to_owned(), annotations, ..NamespaceMeta::default() };
    let pod = json!({"metadata": {"name": "pod"}, "spec": {"containers": [{"name": "app", "image": "app"}]}});
    match injector::inject(&pod, &namespace, &InjectorConfig::default()) {
        Outcome::Refused(fault) => Err(fault),
        _ => Ok(()),
    }
}

/// Judges what is new in a Service's annotations.
pub(super) fn of_service(review: &Review) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    for (_, key, text) in changed(review, &["annotations"]) {
        let (known, object) = (of_services(), format!("Service {}/{}", review.namespace, review.object_name()));
        warnings.extend(spelling(&object, key, &known)?);
        if known.contains(&key) {
            let mut object = json!({"apiVersion": "v1", "kind": "Service", "spec": {}});
            object["metadata"]["annotations"][key] = text.into();
            parse_object(&object, &review.namespace, review.object_name()).map_err(|fault| fault.to_string())?;
        }
        if key == PORT_PROTOCOLS_ANNOTATION {
            let ports = review.object.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice);
            let has = |port: &str| {
                let port = port.parse::<u64>().ok();
                ports.unwrap_or_default().iter().any(|has| has["port"].as_u64() == port)
            };
            let named = text.split(',').filter_map(|pair| pair.split_once('=')).map(|(port, _)| port.trim());
            warnings.extend(
                named.filter(|port| !has(port)).map(|port| format!("{key}: the Service has no port {}", short(port))),
            );
        }
    }
    Ok(warnings)
}

/// Weft's annotations (and, where asked for, labels) that are new or were changed, with the place that they stand at.
fn changed<'r>(review: &'r Review, places: &'r [&'r str]) -> impl Iterator<Item = (&'r str, &'r str, &'r str)> {
    places.iter().flat_map(|place| {
        let field = format!("/metadata/{place}");
        let old = review.old_object.pointer(&field);
        let new = review.object.pointer(&field).and_then(Value::as_object);
        let changed = move |(key, text): &(&String, &Value)| old.and_then(|old| old.get(key)) != Some(text);
        let ours = new.into_iter().flatten().filter(|(key, _)| key.starts_with(PREFIX)).filter(changed);
        ours.map(|(key, text)| (*place, key.as_str(), text.as_str().unwrap_or_default()))
    })
}

/// Refuses what is nearly one of `known`: a misspelt restriction must not become none. Warns of what is unknown: another
/// version may know it.
fn spelling(object: &str, key: &str, known: &[&str]) -> Result<Option<String>, String> {
    if known.contains(&key) {
        return Ok(None);
    }
    let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(key, known));
    match nearest {
        Some(right) if strsim::damerau_levenshtein(key, right) <= 2 => {
            Err(format!("{object}: `metadata.annotations` holds '{}'. Write `{right}`.", short(key)))
        }
        _ => Ok(Some(format!("{}: this version of Weft does not know this annotation here", short(key)))),
    }
}

fn short(text: &str) -> String {
    let mut cut: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::admission::answer;
    use crate::webhook::review::Answer;

    fn review(operation: &str, object: Value, old: Value) -> Review {
        let kind = object["kind"].clone();
        let namespace = if kind == "Namespace" { "" } else { "shop" };
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": kind}, "operation": operation,
            "namespace": namespace, "object": object, "oldObject": old,
        }});
        Review::parse(body.to_string().as_bytes()).expect("whole")
    }

    #[test]
    fn annotations_of_ours_are_judged_where_they_change_and_those_of_others_never() {
        let object = |kind: &str, place: &str, key: &str, text: &str| {
            let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "shop"}, "spec": {
                "ports": [{"port": 8080}],
            }});
            object["metadata"][place][key] = text.into();
            object
        };
        let rows = [
            ("Namespace", "annotations", "weft.dev/inject", "enabled", Ok(0)),
            ("Namespace", "labels", "weft.dev/inject", "disabled", Ok(0)),
            ("Namespace", "annotations", "weft.dev/inject", "true", Err("Write `enabled` or `disabled`")),
            ("Namespace", "labels", "weft.dev/inject", "enable", Err("of `metadata.labels`")),
            ("Namespace", "annotations", "weft.dev/default-policy", "deny", Ok(0)),
            ("Namespace", "annotations", "weft.dev/default-policy", "allow", Ok(1)),
            ("Namespace", "annotations", "weft.dev/default-policy", "dney", Err("Write `deny`")),
            ("Namespace", "annotations", "weft.dev/default-policy", "", Err("Write `deny`, `authenticated`")),
            ("Namespace", "annotations", "weft.dev/defualt-policy", "deny", Err("Write `weft.dev/default-policy`")),
            ("Namespace", "annotations", "weft.dev/of-a-later-version", "x", Ok(1)),
            ("Namespace", "annotations", "weft.dev/opaque-ports", "3306", Ok(0)),
            (
                "Namespace",
                "annotations",
                "weft.dev/opaque-ports",
                "-1",
                Err("weft.dev/opaque-ports of namespace `shop`"),
            ),
            ("Namespace", "annotations", "weft.dev/skip-outbound-ports", "70000", Err("70000")),
            ("Namespace", "annotations", "weft.dev/skip-inbound-ports", "80-20", Err("80-20")),
            ("Namespace", "annotations", "weft.dev/skip-subnets", "10.0.0.0/33", Err("10.0.0.0/33")),
            ("Namespace", "annotations", "weft.dev/proxy-cpu-limit", "much", Err("weft.dev/proxy-cpu-limit")),
            ("Namespace", "annotations", "weft.dev/access-log", "some", Err("weft.dev/access-log")),
            ("Namespace", "labels", "weft.dev/component", "control-plane", Ok(0)),
            ("Namespace", "annotations", "example.org/inject", "\u{7}", Ok(0)),
            ("Service", "annotations", "weft.dev/port-protocols", "8080=http", Ok(0)),
            ("Service", "annotations", "weft.dev/port-protocols", "80=http", Ok(1)),
            ("Service", "annotations", "weft.dev/port-protocols", "-1=http", Err("Write `port=protocol` pairs")),
            ("Service", "annotations", "weft.dev/port-protocols", "70000=http", Err("`70000=http`")),
            ("Service", "annotations", "weft.dev/port-protocols", "80-20=http", Err("`80-20=http`")),
            ("Service", "annotations", "weft.dev/port-protocols", "abc", Err("`abc`")),
            ("Service", "annotations", "weft.dev/port-protocol", "80=http", Err("Write `weft.dev/port-protocols`")),
            ("Service", "annotations", "weft.dev/request-timeout", "15s", Ok(0)),
            ("Service", "annotations", "weft.dev/request-timeout", "15", Err("Write a time up to 24h")),
            ("Service", "annotations", "weft.dev/max-request", "5", Err("Write `weft.dev/max-requests`")),
            ("Service", "annotations", "weft.dev/retry-budget", "120", Err("from 0 to 100")),
            ("Service", "annotations", "weft.dev/of-a-later-version", "x", Ok(1)),
            ("ConfigMap", "annotations", "weft.dev/inject", "nonsense", Ok(0)),
        ];
        for (kind, place, key, text, expected) in rows {
            let new = object(kind, place, key, text);
            let row = format!("{kind} {place} {key}: {text}");
            match (answer(&review("CREATE", new.clone(), Value::Null), None), expected) {
                (Answer::Allow { warnings }, Ok(count)) => assert_eq!(warnings.len(), count, "{row}: {warnings:?}"),
                (Answer::Refuse { message }, Err(part)) => assert!(message.contains(part), "{row}: {message}"),
                (answer, _) => panic!("{row}: {answer:?}"),
            }
            let mut labelled = new.clone();
            labelled["metadata"]["labels"]["team"] = "a".into();
            assert_eq!(answer(&review("UPDATE", labelled, new), None), Answer::allow(), "{row}, unchanged");
        }
    }

    #[test]
    fn annotation_and_label_must_not_disagree() {
        let namespace = |annotation: &str, label: &str| {
            json!({"kind": "Namespace", "metadata": {
                "name": "shop", "annotations": {"weft.dev/inject": annotation}, "labels": {"weft.dev/inject": label},
            }})
        };
        let same = namespace("enabled", "enabled");
        assert_eq!(answer(&review("CREATE", same.clone(), Value::Null), None), Answer::allow());
        let other = review("UPDATE", namespace("enabled", "disabled"), same);
        assert!(matches!(answer(&other, None), Answer::Refuse { message } if message.contains("say different things")));
    }
}
