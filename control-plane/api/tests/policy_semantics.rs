//! What policies mean: golden tables for what a user must be able to rely on.
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use weft_api::policy::{AppliedPolicy, Decision, HttpRequest, Label, PolicySet, Reason, Source};
use weft_api::resource::{DefaultPolicy, NamespacedName, Resource, parse_documents};
use weft_certs::SpiffeId;

fn policy(name: &str, spec: &str) -> AppliedPolicy {
    let text = format!(
        "{{apiVersion: policy.weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {spec}}}"
    );
    match parse_documents(&text).remove(0) {
        Ok(Resource::AuthorizationPolicy(policy)) => AppliedPolicy::Readable(Arc::new(policy)),
        other => panic!("{other:?}"),
    }
}
fn unreadable(name: &str) -> AppliedPolicy {
    AppliedPolicy::Unreadable { name: NamespacedName::new("shop", name), why: "a field from the future".into() }
}
fn set(default: DefaultPolicy, policies: impl IntoIterator<Item = AppliedPolicy>) -> PolicySet {
    PolicySet::compile(default, Arc::default(), policies)
}

/// Who calls, in tables: a service account of `shop`, an identity, or an address.
fn source(who: &str) -> (Option<SpiffeId>, IpAddr) {
    match who.parse() {
        Ok(address) => (None, address),
        Err(_) if who.starts_with("spiffe:") => (Some(SpiffeId::parse(who).unwrap()), [10, 0, 0, 1].into()),
        Err(_) => {
            (Some(SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{who}")).unwrap()), [10, 0, 0, 1].into())
        }
    }
}
/// `""`: a byte stream, else `METHOD host path`.
fn decide<'s>(set: &'s PolicySet, who: &str, port: u16, request: &str) -> Decision<'s> {
    let (id, address) = source(who);
    let source = Source { identity: id.as_ref(), address };
    let headers = HeaderMap::new();
    let words: Vec<&str> = request.split(' ').collect();
    match words[..] {
        [method, host, path] => {
            set.decide(source, port, Some(HttpRequest { method, path, host, headers: &headers, claims: None }))
        }
        _ => set.decide(source, port, None),
    }
}

#[test]
fn without_policies_the_default_of_the_namespace_decides() {
    let rows = [
        (DefaultPolicy::Deny, false, false),
        (DefaultPolicy::Authenticated, true, false),
        (DefaultPolicy::Allow, true, true),
    ];
    for (default, authenticated, anonymous) in rows {
        let set = set(default, []);
        for (who, expected) in [("orders", authenticated), ("10.0.0.9", anonymous)] {
            let decision = decide(&set, who, 80, "GET a.test /");
            assert_eq!((decision.allowed, decision.reason), (expected, Reason::Default), "{default:?} {who}");
            assert_eq!(decision.is_unlisted(), expected);
            assert_eq!(decision.label().to_string(), "default");
        }
    }
}

#[test]
fn empty_and_absent_mean_what_the_documentation_says() {
    // Spec, then whether a caller with identity and one without pass under the default `allow`.
    let rows = [
        ("{action: Allow}", false, false),
        ("{action: Allow, rules: []}", false, false),
        ("{action: Allow, rules: [{}]}", true, true),
        ("{action: Allow, rules: [{from: [{namespaces: [shop]}]}]}", true, false),
        ("{action: Allow, rules: [{from: [{identities: ['*']}]}]}", true, false),
        ("{action: Allow, rules: [{from: [{ipBlocks: [0.0.0.0/0]}]}]}", false, true),
        ("{action: Deny}", false, false),
        ("{action: Deny, rules: []}", false, false),
        ("{action: Deny, rules: [{}]}", false, false),
        ("{action: Deny, rules: [{from: [{namespaces: [shop]}]}]}", false, true),
        ("{action: Deny, rules: [{from: [{ipBlocks: [0.0.0.0/0]}]}]}", true, false),
        ("{action: Deny, mode: Shadow}", true, true),
        ("{action: Allow, mode: Shadow}", true, true),
    ];
    for (spec, with_identity, without) in rows {
        let set = set(DefaultPolicy::Allow, [policy("p", spec)]);
        for (who, expected) in [("orders", with_identity), ("10.0.0.9", without)] {
            for request in ["", "GET a.test /"] {
                assert_eq!(decide(&set, who, 80, request).allowed, expected, "{spec} {who} {request:?}");
            }
        }
    }
}

#[test]
fn deny_wins_over_allow_and_a_denied_identity_over_all() {
    let allow = || policy("a", "{action: Allow, rules: [{}]}");
    let deny = || policy("z", "{action: Deny, rules: [{to: [{ports: [9]}]}, {from: [{serviceAccounts: [orders]}]}]}");
    let decided = set(DefaultPolicy::Allow, [allow(), deny()]);
    let decision = decide(&decided, "orders", 80, "");
    assert_eq!((decision.allowed, decision.reason), (false, Reason::Rule(1)));
    assert_eq!(decision.label(), Label::Policy(&NamespacedName::new("shop", "z")));
    assert!(decide(&decided, "users", 80, "").allowed);

    let denied = Arc::new(vec![SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/users").unwrap()]);
    let decided = decided.with_denied(denied);
    let decision = decide(&decided, "users", 80, "");
    assert_eq!((decision.allowed, decision.reason), (false, Reason::DeniedIdentity));
    assert_eq!(decision.label().to_string(), "denied-identities");

    let decided = set(DefaultPolicy::Allow, [allow(), unreadable("u")]);
    assert_eq!(decide(&decided, "users", 80, "").reason, Reason::Unreadable);
}

#[test]
fn once_an_allow_policy_applies_what_it_does_not_match_is_refused() {
    let set = set(
        DefaultPolicy::Allow,
        [policy("b", "{action: Allow, rules: [{to: [{ports: [80]}]}]}"), policy("a", "{action: Allow}")],
    );
    assert!(decide(&set, "orders", 80, "").allowed);
    let decision = decide(&set, "orders", 81, "");
    assert_eq!((decision.allowed, decision.reason), (false, Reason::NoRuleMatched));
    assert_eq!(decision.label().to_string(), "shop/a");
}

#[test]
fn bytes_that_were_not_judged_as_http_never_pass_where_http_is_restricted() {
    let rows = [
        // An Allow rule with HTTP fields does not speak of bytes; a Deny rule does, whatever the fields.
        ("Allow", "{to: [{paths: ['*']}]}", false),
        ("Allow", "{to: [{methods: [GET]}]}", false),
        ("Allow", "{to: [{hosts: [a.test]}]}", false),
        ("Allow", "{when: [{header: x, in: [a]}]}", false),
        ("Allow", "{to: [{ports: [80]}]}", true),
        ("Allow", "{to: [{paths: ['*']}, {ports: [80]}]}", true),
        ("Deny", "{to: [{paths: [/a]}]}", false),
        ("Deny", "{to: [{methods: [GET]}]}", false),
        ("Deny", "{to: [{hosts: [a.test]}]}", false),
        ("Deny", "{when: [{header: x, in: [a]}]}", false),
        ("Deny", "{to: [{paths: [/a], ports: [81]}]}", true),
        ("Deny", "{from: [{serviceAccounts: [users]}], to: [{paths: [/a]}]}", true),
    ];
    for (action, rule, expected) in rows {
        let set = set(DefaultPolicy::Allow, [policy("p", &format!("{{action: {action}, rules: [{rule}]}}"))]);
        assert_eq!(decide(&set, "orders", 80, "").allowed, expected, "{action} {rule}");
    }
}

#[test]
fn the_fields_of_an_item_must_all_hold_and_items_are_alternatives() {
    let rule = "{from: [{serviceAccounts: [orders], identities: ['spiffe://cluster.local/*']}, {namespaces: [bank]}],
                 to: [{ports: [80], methods: [GET], paths: ['/stock/*'], hosts: [inventory.shop.svc]}, {ports: [9090]}]}";
    let set = set(DefaultPolicy::Deny, [policy("p", &format!("{{action: Allow, rules: [{rule}]}}"))]);
    let rows = [
        ("orders", 80, "GET inventory.shop.svc /stock/7", true),
        ("orders", 80, "GET inventory.shop.svc /stock/", true),
        ("orders", 80, "GET inventory.shop.svc /stock", false),
        ("orders", 80, "PUT inventory.shop.svc /stock/7", false),
        ("orders", 80, "GET other.shop.svc /stock/7", false),
        ("orders", 81, "GET inventory.shop.svc /stock/7", false),
        ("orders", 9090, "PUT other.shop.svc /", true),
        ("orders", 9090, "", true),
        ("users", 9090, "", false),
        ("spiffe://cluster.local/ns/bank/sa/any", 9090, "", true),
        ("spiffe://other.mesh/ns/shop/sa/users", 9090, "", false),
        ("10.0.0.9", 9090, "", false),
    ];
    for (who, port, request, expected) in rows {
        assert_eq!(decide(&set, who, port, request).allowed, expected, "{who} {port} {request}");
    }
}

#[test]
fn patterns_match_what_the_documentation_says_and_nothing_more() {
    use weft_api::policy::pattern::{HostPattern, IdentityPattern, PathPattern};
    let paths: &[(&str, &[&str], &[&str])] = &[
        ("/a", &["/a"], &["/a/", "/A", "/ab", "/", "/a;x"]),
        ("/a*", &["/a", "/ab", "/a/b", "/a;x"], &["/", "/A", "/b/a"]),
        ("/a/*", &["/a/", "/a/b", "/a/b/c"], &["/a", "/ab"]),
        ("/*", &["/", "/a", "/a/b"], &["*"]),
        ("*", &["/", "/a/b", "*"], &[]),
        ("/.*", &["/.git", "/.well-known/x"], &["/a", "/a/.git"]),
        ("/i/{id}", &["/i/7", "/i/a.b"], &["/i/", "/i", "/i/7/", "/i/7/8"]),
        ("/i/{id}/*", &["/i/7/", "/i/7/8/9"], &["/i/7", "/i//"]),
        ("/{a}/x/{b}", &["/1/x/2"], &["/1/y/2", "/1/x/"]),
    ];
    for (pattern, matching, others) in paths {
        let parsed = PathPattern::parse(pattern).unwrap();
        assert_eq!(parsed.to_string(), *pattern);
        matching.iter().for_each(|path| assert!(parsed.matches(path), "{pattern} {path}"));
        others.iter().for_each(|path| assert!(!parsed.matches(path), "{pattern} {path}"));
    }
    let hosts: &[(&str, &[&str], &[&str])] = &[
        ("A.test", &["a.test"], &["b.a.test", "a.test.x", "xa.test"]),
        ("*.a.test", &["b.a.test", "c.b.a.test"], &["a.test", "xa.test", ".a.test"]),
        ("10.0.0.1", &["10.0.0.1"], &["10.0.0.11"]),
        ("[::1]", &["[::1]"], &["::1"]),
    ];
    for (pattern, matching, others) in hosts {
        let parsed = HostPattern::parse(pattern).unwrap();
        matching.iter().for_each(|host| assert!(parsed.matches(host), "{pattern} {host}"));
        others.iter().for_each(|host| assert!(!parsed.matches(host), "{pattern} {host}"));
    }
    let identities: &[(&str, &[&str], &[&str])] = &[
        ("*", &["spiffe://a/b", "spiffe://c/ns/d/sa/e"], &[]),
        ("spiffe://a/ns/b/sa/c", &["spiffe://a/ns/b/sa/c"], &["spiffe://a/ns/b/sa/cc", "spiffe://a/ns/b/sa/C"]),
        (
            "spiffe://a/ns/b/*",
            &["spiffe://a/ns/b/sa/c", "spiffe://a/ns/b/x"],
            &["spiffe://a/ns/b", "spiffe://aa/ns/b/x"],
        ),
        ("spiffe://a/ns/b/sa/c*", &["spiffe://a/ns/b/sa/c", "spiffe://a/ns/b/sa/cd"], &["spiffe://a/ns/b/sa/d"]),
        ("spiffe://a/ns/*/sa/c", &["spiffe://a/ns/b/sa/c"], &["spiffe://a/ns/b/x/sa/c", "spiffe://b/ns/b/sa/c"]),
        ("spiffe://a/*/*/sa/*", &["spiffe://a/x/y/sa/z"], &["spiffe://a/x/sa/z"]),
    ];
    for (pattern, matching, others) in identities {
        let parsed = IdentityPattern::parse(pattern).unwrap();
        let id = |id: &str| SpiffeId::parse(id).unwrap();
        matching.iter().for_each(|uri| assert!(parsed.matches(&id(uri)), "{pattern} {uri}"));
        others.iter().for_each(|uri| assert!(!parsed.matches(&id(uri)), "{pattern} {uri}"));
    }
}

#[test]
fn a_shadow_policy_changes_nothing_and_says_what_it_would_do() {
    let set = set(
        DefaultPolicy::Allow,
        [policy("s", "{action: Deny, mode: Shadow, rules: [{from: [{serviceAccounts: [users]}]}]}")],
    );
    let shadow = |who: &str| {
        let (id, address) = source(who);
        set.shadow(Source { identity: id.as_ref(), address }, 80, None).expect("there is a shadow policy").to_string()
    };
    assert!(decide(&set, "users", 80, "").allowed && decide(&set, "orders", 80, "").allowed);
    assert_eq!(shadow("users"), "refused by rules[0] of AuthorizationPolicy shop/s");
    assert!(shadow("orders").starts_with("allowed"));
    let enforced = PolicySet::compile(DefaultPolicy::Allow, Arc::default(), [policy("s", "{action: Deny}")]);
    let source = Source { identity: None, address: [10, 0, 0, 1].into() };
    assert_eq!(enforced.shadow(source, 80, None), None);
}

#[test]
fn a_decision_explains_itself_in_one_sentence() {
    let sets = [
        (set(DefaultPolicy::Deny, []), "refused by the namespace's default: no policy speaks of this call"),
        (set(DefaultPolicy::Allow, []), "allowed by the namespace's default: no policy speaks of this call"),
        (
            set(DefaultPolicy::Deny, [policy("p", "{action: Allow, rules: [{to: [{ports: [1]}]}, {}]}")]),
            "allowed by rules[1] of AuthorizationPolicy shop/p",
        ),
        (
            set(DefaultPolicy::Deny, [policy("p", "{action: Deny}")]),
            "refused by AuthorizationPolicy shop/p, which refuses every call",
        ),
        (
            set(DefaultPolicy::Allow, [policy("p", "{action: Allow}")]),
            "refused: no rule of the Allow policies that apply here matches (the first is shop/p)",
        ),
        (
            set(DefaultPolicy::Allow, [unreadable("u")]),
            "refused by policy shop/u, which this version cannot read and therefore refuses every call",
        ),
        (
            set(DefaultPolicy::Allow, []).with_denied(Arc::new(vec![source("orders").0.unwrap()])),
            "refused: the caller's identity is on the list of denied identities",
        ),
    ];
    for (set, expected) in &sets {
        assert_eq!(decide(set, "orders", 80, "GET secret.test /secret").explain(), *expected);
    }
}

#[test]
fn six_policies_in_every_order_decide_and_compare_alike() {
    let policies = [
        policy("a", "{action: Allow, rules: [{to: [{paths: ['/public/*']}]}]}"),
        policy("b", "{action: Allow, rules: [{from: [{serviceAccounts: [orders]}]}]}"),
        policy("c", "{action: Deny, rules: [{to: [{paths: ['/admin*']}]}]}"),
        policy("d", "{action: Deny, mode: Shadow, rules: [{to: [{ports: [81]}]}]}"),
        policy("e", "{action: Deny, rules: [{from: [{serviceAccounts: [users]}]}]}"),
        // The same name twice, as only a faulty source gives it.
        policy("a", "{action: Allow, rules: [{to: [{ports: [81]}]}]}"),
    ];
    let calls: Vec<(&str, u16, String)> = ["orders", "users", "other", "10.0.0.9"]
        .into_iter()
        .flat_map(|who| [80, 81].map(|port| (who, port)))
        .flat_map(|(who, port)| ["/", "/public/a", "/admin"].map(|path| (who, port, format!("GET a.test {path}"))))
        .collect();
    let first = set(DefaultPolicy::Authenticated, policies.clone());
    let expected: Vec<String> =
        calls.iter().map(|(who, port, call)| decide(&first, who, *port, call).explain()).collect();
    assert!(
        expected.iter().any(|text| text.starts_with("allowed"))
            && expected.iter().any(|text| text.starts_with("refused"))
    );
    let mut orders = 0;
    permutations(&mut [0, 1, 2, 3, 4, 5], 6, &mut |order| {
        orders += 1;
        let set = set(DefaultPolicy::Authenticated, order.iter().map(|index| policies[*index].clone()));
        assert_eq!(set, first);
        for ((who, port, call), expected) in calls.iter().zip(&expected) {
            assert_eq!(decide(&set, who, *port, call).explain(), *expected, "{order:?}");
        }
    });
    assert_eq!(orders, 720);
}

/// Heap's algorithm.
fn permutations(items: &mut [usize; 6], length: usize, visit: &mut impl FnMut(&[usize; 6])) {
    if length == 1 {
        return visit(items);
    }
    for index in 0..length {
        permutations(items, length - 1, visit);
        let other = if length.is_multiple_of(2) { index } else { 0 };
        items.swap(other, length - 1);
    }
}
