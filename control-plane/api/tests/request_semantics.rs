//! Paths, hosts, methods and headers as attackers write them: none gets past the policy that speaks of its plain form.
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use weft_api::policy::path::{Ambiguous, check_method, normalize, normalize_host};
use weft_api::policy::{AppliedPolicy, HttpRequest, PolicySet, Source};
use weft_api::resource::{DefaultPolicy, Resource, parse_documents};
use weft_certs::SpiffeId;

/// Client may read the public part; nobody may reach what is below `/admin`, nor the host `secret.test`.
const POLICIES: &str = r"
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: public, namespace: shop}
spec:
  action: Allow
  rules:
  - from: [{serviceAccounts: [client]}]
    to: [{paths: ['/public/*'], methods: [GET]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  action: Deny
  rules:
  - to: [{paths: ['/admin*']}]
  - to: [{hosts: [secret.test]}]
  - when: [{header: x-role, in: [admin]}]
";

#[derive(Debug, PartialEq)]
enum Outcome {
    /// Passes, and the application sees this path.
    Passes(&'static str),
    Refused,
    BadRequest(&'static str),
}
use Outcome::{BadRequest, Passes, Refused};

fn policies(text: &str, default: DefaultPolicy) -> PolicySet {
    let policies = parse_documents(text).into_iter().map(|document| match document {
        Ok(Resource::AuthorizationPolicy(policy)) => AppliedPolicy::Readable(Arc::new(policy)),
        other => panic!("{other:?}"),
    });
    PolicySet::compile(default, Arc::default(), policies)
}

fn judge(
    set: &PolicySet,
    method: &str,
    host: &str,
    path: &str,
    headers: &HeaderMap,
) -> Result<(bool, String), Ambiguous> {
    check_method(method)?;
    let (host, path) = (normalize_host(host)?, normalize(path)?);
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/client").unwrap();
    let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
    let http = HttpRequest { method, path: &path, host: &host, headers, claims: None };
    Ok((set.decide(source, 8080, Some(http)).allowed, path.into_owned()))
}

fn check(set: &PolicySet, method: &str, host: &str, path: &str, headers: &HeaderMap, expected: &Outcome) {
    let context = format!("{method} {host} {path:?} {headers:?}");
    match (judge(set, method, host, path, headers), expected) {
        (Ok((true, seen)), Passes(path)) => assert_eq!(seen, *path, "{context}"),
        (Ok((false, _)), Refused) => {}
        (Err(fault), BadRequest(label)) => assert_eq!(fault.label(), *label, "{context}"),
        (outcome, _) => panic!("{context}: {outcome:?}, expected {expected:?}"),
    }
}

#[test]
fn a_path_is_judged_as_the_application_reads_it() {
    let set = policies(POLICIES, DefaultPolicy::Deny);
    let rows: &[(u8, &str, Outcome)] = &[
        (0, "/public/a", Passes("/public/a")),
        (0, "/public/a%20b", Passes("/public/a%20b")),
        (0, "/other", Refused),
        (0, "", Refused),
        (0, "*", Refused),
        (1, "/public/../admin", Refused),
        (1, "/public/./../admin", Refused),
        (1, "/a/b/../../admin", Refused),
        (1, "/../../admin", Refused),
        (1, "/x/../public/./a/.", Passes("/public/a/")),
        (1, "/public/a/..", Passes("/public/")),
        (2, "/public/%2e%2e/admin", Refused),
        (2, "/public/%2E./admin", Refused),
        (2, "/%2e/admin", Refused),
        (3, "//admin", Refused),
        (3, "/admin//x", Refused),
        (3, "///admin", Refused),
        (3, "//public///a", Passes("/public/a")),
        (4, "/%2fadmin", BadRequest("encoded_slash")),
        (4, "/public%2f..%2fadmin", BadRequest("encoded_slash")),
        (4, "/%2Fadmin", BadRequest("encoded_slash")),
        (5, "/public\\..\\admin", BadRequest("backslash")),
        (5, "/%5cadmin", BadRequest("backslash")),
        (6, "/%61dmin", Refused),
        (6, "/adm%69n", Refused),
        (6, "/publi%63/%7eme", Passes("/public/~me")),
        (7, "/%252e%252e/admin", Refused),
        (7, "/%25%32%66admin", Refused),
        (7, "/public/%252e%252e/x", Passes("/public/%252e%252e/x")),
        (7, "/public/%25%32%66x", Passes("/public/%252fx")),
        (8, "/admin%00", BadRequest("nul")),
        (8, "/public%00/../admin", BadRequest("nul")),
        (9, "/admin%zz", BadRequest("bad_escape")),
        (9, "/admin%", BadRequest("bad_escape")),
        (9, "/admin%2", BadRequest("bad_escape")),
        (9, "/admin%+1", BadRequest("bad_escape")),
        (10, "/%c0%ae%c0%ae/admin", Refused),
        (10, "/%c0%afadmin", Refused),
        (10, "/public/%c0%ae%c0%ae/admin", Passes("/public/%C0%AE%C0%AE/admin")),
        (11, "/public/é", BadRequest("bad_byte")),
        (11, "/public/\u{80}", BadRequest("bad_byte")),
        (11, "/public/\u{7f}", BadRequest("bad_byte")),
        (11, "/public/\t", BadRequest("bad_byte")),
        (11, "/public/a b", BadRequest("bad_byte")),
        (11, "public/a", BadRequest("bad_byte")),
        (12, "/admin?x=1", Refused),
        (12, "/admin?", Refused),
        (12, "/admin?/public/", Refused),
        (12, "/public/a?/../../admin", Passes("/public/a")),
        (13, "/admin#x", Refused),
        (13, "/user#section1", Refused),
        (13, "/public/a#/../../admin", Passes("/public/a")),
        (14, "/ADMIN", Refused),
        (14, "/Admin", Refused),
        (14, "/Public/a", Refused),
        (15, "/admin;a=b", Refused),
        (15, "/admin;/x", Refused),
        (15, "/public/a;v=1", Passes("/public/a;v=1")),
        (15, "/public/..;/admin", BadRequest("path_parameter")),
        (15, "/public/.;/a", BadRequest("path_parameter")),
        (15, "/public/%2e%2e;x/admin", BadRequest("path_parameter")),
        (15, "/;x/admin", BadRequest("path_parameter")),
        (15, "/public/;jsessionid=1", Passes("/public/;jsessionid=1")),
    ];
    for (row, path, expected) in rows {
        eprintln!("row {row}: {path}");
        check(&set, "GET", "allowed.test", path, &HeaderMap::new(), expected);
    }
}

#[test]
fn a_host_is_judged_in_lower_case_without_port_and_dot() {
    let set = policies(POLICIES, DefaultPolicy::Deny);
    let long_label = format!("{}.test", "a".repeat(300));
    let long_name = "a.".repeat(130);
    let rows: &[(u8, &str, Outcome)] = &[
        (0, "allowed.test", Passes("/public/a")),
        (0, "under_score.test", Passes("/public/a")),
        (0, "[::1]:80", Passes("/public/a")),
        (0, "10.0.0.1:80", Passes("/public/a")),
        (16, "SECRET.test", Refused),
        (16, "Secret.Test", Refused),
        (17, "secret.test:80", Refused),
        (17, "secret.test:8080", Refused),
        (17, "secret.test:65535", Refused),
        (17, "secret.test:", Refused),
        (17, "secret.test:65536", BadRequest("host")),
        (17, "secret.test:80:80", BadRequest("host")),
        (17, "secret.test:+80", BadRequest("host")),
        (18, "secret.test.", Refused),
        (18, "secret.test.:80", Refused),
        (18, "secret.test..", BadRequest("host")),
        (20, "", BadRequest("host")),
        (20, ":80", BadRequest("host")),
        (20, ".", BadRequest("host")),
        (21, "a/b", BadRequest("host")),
        (21, "u@a", BadRequest("host")),
        (21, "a, b", BadRequest("host")),
        (21, "a b", BadRequest("host")),
        (21, "a%2eb", BadRequest("host")),
        (21, "secret.test\0", BadRequest("host")),
        (21, "é.test", BadRequest("host")),
        (21, &long_label, BadRequest("host")),
        (21, &long_name, BadRequest("host")),
        (21, "xn--", BadRequest("host")),
        (21, "xn---", BadRequest("host")),
        (21, "xn--secret-", BadRequest("host")),
        (21, "xn--99999999", BadRequest("host")),
        (21, "XN--a-ecp.ru", Passes("/public/a")),
        (21, "xn--bcher-kva.test", Passes("/public/a")),
        (21, "xn--p1ai", Passes("/public/a")),
        (21, "xn--fiqs8s", Passes("/public/a")),
        (21, "127.1", BadRequest("host")),
        (21, "0x7f000001", BadRequest("host")),
        (21, "2130706433", BadRequest("host")),
        (21, "127.0.0.01", BadRequest("host")),
        (21, "[::1", BadRequest("host")),
        (21, "[fe80::1%25eth0]", BadRequest("host")),
    ];
    for (row, host, expected) in rows {
        eprintln!("row {row}: {host}");
        check(&set, "GET", host, "/public/a", &HeaderMap::new(), expected);
    }
    assert_eq!(normalize_host("[0:0:0:0:0:0:0:1]:80").unwrap(), "[::1]");
}

#[test]
fn a_method_in_lower_case_or_beyond_64_bytes_is_a_bad_request() {
    let set = policies(POLICIES, DefaultPolicy::Deny);
    let (most, too_long, kilobyte) = ("M".repeat(64), "M".repeat(65), "M".repeat(1024));
    let rows: &[(u8, &str, Outcome)] = &[
        (0, "GET", Passes("/public/a")),
        (22, "get", BadRequest("method")),
        (22, "Get", BadRequest("method")),
        (23, "FOO", Refused),
        (23, "M-SEARCH", Refused),
        (23, &most, Refused),
        (23, &too_long, BadRequest("method")),
        (23, &kilobyte, BadRequest("method")),
        (23, "", BadRequest("method")),
        (23, "GET /", BadRequest("method")),
    ];
    for (row, method, expected) in rows {
        eprintln!("row {row}: {method}");
        check(&set, method, "allowed.test", "/public/a", &HeaderMap::new(), expected);
    }
}

#[test]
fn every_value_of_every_line_of_a_header_is_judged() {
    let set = policies(POLICIES, DefaultPolicy::Deny);
    let rows: &[(&[&[u8]], Outcome)] = &[
        (&[], Passes("/public/a")),
        (&[b"user"], Passes("/public/a")),
        (&[b"user", b"admin"], Refused),
        (&[b"admin", b"user"], Refused),
        (&[b"user,admin"], Refused),
        (&[b"user,\tadmin "], Refused),
        (&[b",,admin,,"], Refused),
        (&[b"\xff,admin"], Refused),
        (&[b"administrator"], Passes("/public/a")),
    ];
    for (lines, expected) in rows {
        let mut headers = HeaderMap::new();
        for line in *lines {
            headers.append("X-RoLe", HeaderValue::from_bytes(line).unwrap());
        }
        check(&set, "GET", "allowed.test", "/public/a", &headers, expected);
    }
}

#[test]
fn an_allow_rule_needs_every_value_of_its_header_to_be_listed() {
    let set = policies(
        "{apiVersion: policy.weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: blue, namespace: shop},
          spec: {action: Allow, rules: [{when: [{header: x-tenant, in: [blue, green]}]}]}}",
        DefaultPolicy::Deny,
    );
    let rows: &[(&[&str], Outcome)] = &[
        (&[], Refused),
        (&[""], Refused),
        (&["blue"], Passes("/")),
        (&["blue", "green"], Passes("/")),
        (&["blue, red"], Refused),
        (&["blue", "red"], Refused),
        (&["Blue"], Refused),
    ];
    for (lines, expected) in rows {
        let mut headers = HeaderMap::new();
        for line in *lines {
            headers.append("x-tenant", HeaderValue::from_str(line).unwrap());
        }
        check(&set, "GET", "allowed.test", "/", &headers, expected);
    }
}

#[test]
fn a_path_in_normal_form_is_not_copied() {
    for path in ["/", "/a", "/a/b.c/d-e_f~g/", "/a/..b", "/%20", "*"] {
        let normal = normalize(path).unwrap();
        assert!(matches!(normal, std::borrow::Cow::Borrowed(_)), "{path}");
        assert_eq!(normal, path);
    }
}

#[test]
fn a_deny_rule_also_sees_the_path_without_parameters() {
    let deny = |pattern: &str| {
        let text = format!(
            "{{apiVersion: policy.weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: d, namespace: shop}},
              spec: {{action: Deny, rules: [{{to: [{{paths: ['{pattern}']}}]}}]}}}}"
        );
        policies(&text, DefaultPolicy::Allow)
    };
    let rows: &[(&str, &str, Outcome)] = &[
        ("/admin", "/admin;a=b", Refused),
        ("/admin/*", "/admin;a=b/users", Refused),
        ("/items/{id}", "/items;x/7;y", Refused),
        ("/admin*", "/public;/admin", Passes("/public;/admin")),
        ("/admin", "/admin/", Passes("/admin/")),
    ];
    for (pattern, path, expected) in rows {
        check(&deny(pattern), "GET", "a.test", path, &HeaderMap::new(), expected);
    }
}
