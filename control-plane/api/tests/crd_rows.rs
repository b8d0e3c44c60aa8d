//! The CustomResourceDefinitions beside the parser: what each refuses, and that nothing is lost between the two.
//!
//! The rows stand in `tests/crd`. Tests with a real API server send the same ones to it.
mod common;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use weft_api::resource::{Resource, crds, parse_documents};

use common::schema::{cel_messages, faults, rows, schema_of, with_defaults};

const ACCEPTED: &str = include_str!("crd/accepted.yaml");
const REFUSED: &str = include_str!("crd/refused.yaml");
const PASSED_ON: &str = include_str!("crd/passed_on.yaml");

fn kind(document: &Value) -> &str {
    document["kind"].as_str().expect("a kind")
}

fn parse(text: &str) -> Resource {
    parse_documents(text).remove(0).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

#[test]
fn what_the_parser_accepts_the_schema_accepts() {
    let mut kinds: Vec<String> = Vec::new();
    for (_, text, document) in rows(ACCEPTED) {
        parse(text);
        assert_eq!(faults(&schema_of(kind(&document)), &document), [""; 0], "{text}");
        kinds.push(kind(&document).to_owned());
    }
    kinds.dedup();
    let defined: Vec<Value> = crds().iter().map(|crd| crd["spec"]["names"]["kind"].clone()).collect();
    assert_eq!(kinds, defined, "rows of every kind");
}

#[test]
fn what_the_schema_refuses_the_parser_refuses() {
    for (expected, text, document) in rows(REFUSED) {
        assert!(parse_documents(text)[0].is_err(), "{text}");
        let schema = schema_of(kind(&document));
        let said_by_cel = cel_messages(&schema).iter().any(|message| expected.contains(message));
        assert_ne!(faults(&schema, &document).is_empty(), !said_by_cel, "{text}");
    }
}

#[test]
fn what_the_schema_cannot_say_reaches_the_parser_whole() {
    for (expected, text, document) in rows(PASSED_ON) {
        assert_eq!(faults(&schema_of(kind(&document)), &document), [""; 0], "{text}");
        let error = parse_documents(text).remove(0).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}\n{error}");
    }
}

#[test]
fn the_default_of_a_field_is_what_the_parser_takes_without_it() {
    let mut changed = 0;
    for (_, text, document) in rows(ACCEPTED) {
        let defaulted = with_defaults(&schema_of(kind(&document)), document.clone());
        changed += usize::from(defaulted != document);
        assert_eq!(parse(&defaulted.to_string()), parse(text), "{text}");
    }
    assert!(changed > 0);
}

#[test]
fn every_value_has_a_description() {
    fn look(schema: &Value, path: &str) {
        let has_one = schema["description"].as_str().is_some_and(|text| text.ends_with('.'));
        assert!(has_one || path.ends_with(".metadata"), "{path} lacks a description");
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            look(field, &format!("{path}.{name}"));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(key) {
                look(inner, &format!("{path}[]"));
            }
        }
    }
    for crd in crds() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        look(&schema_of(kind), kind);
    }
}

/// A RateLimitPolicy; the parser may refuse it for its totals.
fn rate_limit_policy() -> impl Strategy<Value = Value> {
    let window =
        (0..100_u32, select(vec!["ms", "s", "m", "h", "d"])).prop_map(|(count, unit)| format!("{count}{unit}"));
    let limit = (1..1_000_001_u32, window, option::of(1..1_000_001_u32), option::of(select(vec!["Client", "All"])));
    vec(limit, 0..3).prop_map(|limits| {
        let limits: Vec<Value> = limits
            .into_iter()
            .enumerate()
            .map(|(number, (requests, window, burst, per))| {
                let mut limit = json!({"name": format!("l{number}"), "requests": requests, "window": window});
                if let Some(burst) = burst {
                    limit["burst"] = burst.into();
                }
                if let Some(per) = per {
                    limit["per"] = per.into();
                }
                limit
            })
            .collect();
        document("RateLimitPolicy", json!({"limits": limits}))
    })
}

fn document(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "policy.weft.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "p", "namespace": "a"}, "spec": spec,
    })
}

proptest! {
    #![proptest_config(common::cases(200))]

    #[test]
    fn every_policy_that_is_read_passes_the_schema_as_it_was_written_and_as_it_is_sent(
        document_in in prop_oneof![common::policy("p".into()).boxed(), rate_limit_policy().boxed()]
    ) {
        let spec = match parse_documents(&document_in.to_string()).remove(0) {
            Ok(Resource::AuthorizationPolicy(policy)) => policy.spec_json(),
            Ok(Resource::RateLimitPolicy(policy)) => policy.spec_json(),
            _ => return Ok(()),
        };
        let schema = schema_of(kind(&document_in));
        prop_assert_eq!(faults(&schema, &document_in), [""; 0]);
        prop_assert_eq!(faults(&schema, &document(kind(&document_in), spec)), [""; 0]);
    }
}
