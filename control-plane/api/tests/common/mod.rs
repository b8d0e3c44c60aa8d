//! Random policies and calls from a small vocabulary, so that they often meet. Policies are made as JSON and read by the
//! parser under test; what they mean is worked out by a reference that sees the JSON alone.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
use std::net::IpAddr;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};
use weft_api::policy::AppliedPolicy;
use weft_api::resource::{AuthorizationPolicy, Resource, parse_documents};

pub mod schema;

pub const IDENTITIES: &[&str] = &[
    "spiffe://mesh.test/ns/a/sa/x",
    "spiffe://mesh.test/ns/a/sa/y",
    "spiffe://mesh.test/ns/a/sa/xy",
    "spiffe://mesh.test/ns/b/sa/x",
    "spiffe://mesh.test/ns/b/sa/y",
    "spiffe://mesh.test/ns/ab/sa/x",
    "spiffe://mesh.test/other/a/x",
    "spiffe://mesh.test/ns/a/sa/x/deeper",
    "spiffe://mesh.test2/ns/a/sa/x",
];

/// A call: everything that is judged.
#[derive(Clone, Debug)]
pub struct Call {
    pub identity: Option<String>,
    pub address: IpAddr,
    pub port: u16,
    pub http: Option<Http>,
}

#[derive(Clone, Debug)]
pub struct Http {
    pub method: String,
    pub path: String,
    pub host: String,
    pub headers: Vec<(String, String)>,
}

impl Http {
    pub fn header_map(&self) -> http::HeaderMap {
        let mut map = http::HeaderMap::new();
        for (name, value) in &self.headers {
            map.append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                http::HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }
}

fn texts(words: &'static [&'static str]) -> impl Strategy<Value = Option<Vec<&'static str>>> {
    option::weighted(0.5, subsequence(words, 1..=words.len().min(3)))
}

fn put(object: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object.insert(key.into(), value.into());
    }
}

fn caller() -> impl Strategy<Value = Value> {
    let with_identity = (
        texts(&["x", "b/x", "a/y", "ab/x"]),
        texts(&["a", "b"]),
        texts(&[
            "spiffe://mesh.test/ns/a/sa/x",
            "spiffe://mesh.test/ns/a/*",
            "spiffe://mesh.test/ns/*/sa/x",
            "spiffe://mesh.test/ns/*/sa/x*",
            "spiffe://mesh.test/ns/a/sa/x*",
            "spiffe://mesh.test/*/*/x",
            "spiffe://mesh.test/*",
            "*",
        ]),
    )
        .prop_filter_map("an item needs a field", |(accounts, namespaces, identities)| {
            let mut caller = Map::new();
            put(&mut caller, "serviceAccounts", accounts);
            put(&mut caller, "namespaces", namespaces);
            put(&mut caller, "identities", identities);
            (!caller.is_empty()).then_some(Value::Object(caller))
        });
    // More than eight accounts, so that lookups are by hash too.
    let many = Just(json!({"serviceAccounts": ["q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8", "q9", "b/y"]}));
    let blocks = subsequence(vec!["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "fd00::/8"], 1..=2)
        .prop_map(|blocks| json!({"ipBlocks": blocks}));
    prop_oneof![6 => with_identity, 1 => many, 2 => blocks]
}

pub const PATTERNS: &[&str] = &[
    "/",
    "/*",
    "*",
    "/a",
    "/a*",
    "/a/*",
    "/a/b",
    "/a/b*",
    "/{x}",
    "/{x}/b",
    "/a/{x}",
    "/{x}/*",
    "/a/{x}/*",
    "/{x}/{y}",
    "/a/{x}/b*",
    "/ab",
    "/a;p",
    "/.*",
];

fn operation() -> impl Strategy<Value = Value> {
    (
        option::weighted(0.3, subsequence(vec![80, 81], 1..=1)),
        texts(&["GET", "POST"]),
        texts(PATTERNS),
        texts(&["h.test", "*.h.test", "*.test", "10.0.0.1"]),
    )
        .prop_filter_map("an item needs a field", |(ports, methods, paths, hosts)| {
            let mut operation = Map::new();
            put(&mut operation, "ports", ports);
            put(&mut operation, "methods", methods);
            put(&mut operation, "paths", paths);
            put(&mut operation, "hosts", hosts);
            (!operation.is_empty()).then_some(Value::Object(operation))
        })
}

fn condition() -> impl Strategy<Value = Value> {
    (select(vec!["x-role", "X-Tenant"]), subsequence(vec!["admin", "user", "a b"], 1..=2))
        .prop_map(|(header, values)| json!({"header": header, "in": values}))
}

fn rule() -> impl Strategy<Value = Value> {
    let some = |strategy: BoxedStrategy<Value>| option::weighted(0.5, vec(strategy, 1..3));
    (some(caller().boxed()), some(operation().boxed()), option::weighted(0.25, vec(condition(), 1..3))).prop_map(
        |(from, to, when)| {
            let mut rule = Map::new();
            put(&mut rule, "from", from);
            put(&mut rule, "to", to);
            put(&mut rule, "when", when);
            Value::Object(rule)
        },
    )
}

/// An AuthorizationPolicy of namespace `a`, called `name`, as a JSON document.
pub fn policy(name: String) -> impl Strategy<Value = Value> {
    let action = select(vec!["Allow", "Deny"]);
    let mode = prop_oneof![2 => Just(None), 1 => Just(Some("Enforce")), 1 => Just(Some("Shadow"))];
    let target = select(vec![
        None,
        Some(("targetRefs", json!([{"kind": "Service", "name": "s1"}, {"kind": "Service", "name": "s2"}]))),
        Some(("selector", json!({"matchLabels": {"app": "a", "weft.dev/tier": "x.y_z"}}))),
    ]);
    (action, mode, target, option::weighted(0.9, vec(rule(), 0..3))).prop_map(move |(action, mode, target, rules)| {
        let mut spec = Map::new();
        put(&mut spec, "action", Some(action));
        put(&mut spec, "mode", mode);
        put(&mut spec, "rules", rules);
        if let Some((key, value)) = target {
            spec.insert(key.into(), value);
        }
        json!({
            "apiVersion": "policy.weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "a"}, "spec": spec,
        })
    })
}

/// Up to four policies with different names.
pub fn policies() -> impl Strategy<Value = Vec<Value>> {
    (0..=4_usize).prop_flat_map(|count| (0..count).map(|number| policy(format!("p{number}"))).collect::<Vec<_>>())
}

pub fn parse_policy(document: &Value) -> Arc<AuthorizationPolicy> {
    match parse_documents(&document.to_string()).remove(0) {
        Ok(Resource::AuthorizationPolicy(policy)) => Arc::new(policy),
        other => panic!("{document} gave {other:?}"),
    }
}

pub fn applied(documents: &[Value]) -> Vec<AppliedPolicy> {
    documents.iter().map(|document| AppliedPolicy::Readable(parse_policy(document))).collect()
}

/// A path as it comes from the network: often near what patterns say, sometimes anything.
pub fn raw_path() -> impl Strategy<Value = String> {
    let near = vec(
        select(vec![
            "/", "a", "b", "ab", ".", "..", ";p", "%61", "%62", "%2e", "%2E", "%2f", "%5C", "%00", "%zz", "%25",
            "%c0%ae", "//", "\\", "?", "#", "~", "%7e", "%3b", "é", " ", "/a", "/b", "/a/b",
        ]),
        0..7,
    )
    .prop_map(|parts| format!("/{}", parts.concat()));
    prop_oneof![8 => near, 1 => "[/.%;a-b2eEfF5cC0]{0,12}", 1 => any::<String>()]
}

pub fn http(path: impl Strategy<Value = String>) -> impl Strategy<Value = Http> {
    let header = (
        select(vec!["x-role", "x-tenant"]),
        select(vec!["admin", "user", "other", "user,admin", " admin ", "user, ,admin", "", ",", "a b", "Admin"]),
    )
        .prop_map(|(name, value)| (name.to_owned(), value.to_owned()));
    (
        select(vec!["GET", "POST", "PUT"]).prop_map(str::to_owned),
        path,
        select(vec!["h.test", "x.h.test", "x.y.h.test", "test", "xh.test", "10.0.0.1", ""]).prop_map(str::to_owned),
        vec(header, 0..4),
    )
        .prop_map(|(method, path, host, headers)| Http { method, path, host, headers })
}

pub fn call(path: impl Strategy<Value = String>) -> impl Strategy<Value = Call> {
    (
        option::weighted(0.8, select(IDENTITIES)),
        select(vec!["10.1.2.3", "10.2.0.1", "192.0.2.1", "fd00::1", "fe80::1"]),
        select(vec![80_u16, 81, 82]),
        option::weighted(0.85, http(path)),
    )
        .prop_map(|(identity, address, port, http)| Call {
            identity: identity.map(str::to_owned),
            address: address.parse().unwrap(),
            port,
            http,
        })
}

/// The configuration of a property test: `PROPTEST_CASES`, else `cases`.
pub fn cases(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
