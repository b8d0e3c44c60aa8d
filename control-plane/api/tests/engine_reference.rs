//! The engine against a reference that is written from the documentation alone, without thought of speed: it reads the
//! policies' JSON, copies whatever it likes, and shares no code with the engine.
mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use common::{Call, Http, applied, call, cases, policies, raw_path};
use proptest::prelude::*;
use serde_json::Value;
use weft_api::policy::path::{Ambiguous, normalize};
use weft_api::policy::{HttpRequest, PolicySet, Reason, Source};
use weft_api::resource::DefaultPolicy;
use weft_certs::SpiffeId;

/// What the reference says: allowed, policy, reason.
type Verdict = (bool, Option<String>, Reason);

mod reference {
    use super::*;

    /// All faults of a path, or its normal form.
    pub(super) fn normalize(raw: &str) -> Result<String, Vec<Ambiguous>> {
        let raw = raw.split(['?', '#']).next().unwrap();
        if raw.is_empty() {
            return Ok("/".into());
        }
        if raw == "*" {
            return Ok("*".into());
        }
        let mut faults = Vec::new();
        if !raw.starts_with('/') {
            faults.push(Ambiguous::BadByte);
        }
        let mut decoded = String::new();
        let mut characters: Vec<char> = raw.chars().collect();
        characters.reverse();
        while let Some(character) = characters.pop() {
            if character == '%' {
                let digits: String = characters.iter().rev().take(2).collect();
                let value = (digits.len() == 2 && !digits.starts_with('+')).then(|| u8::from_str_radix(&digits, 16));
                match value {
                    Some(Ok(0)) => faults.push(Ambiguous::Nul),
                    Some(Ok(b'/')) => faults.push(Ambiguous::EncodedSlash),
                    Some(Ok(b'\\')) => faults.push(Ambiguous::Backslash),
                    Some(Ok(value)) => {
                        let value = char::from(value);
                        match value {
                            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' | '~' => decoded.push(value),
                            _ => decoded.push_str(&format!("%{}", digits.to_uppercase())),
                        }
                        characters.truncate(characters.len() - 2);
                    }
                    _ => faults.push(Ambiguous::BadEscape),
                }
            } else if character == '\\' {
                faults.push(Ambiguous::Backslash);
            } else if !('!'..='~').contains(&character) {
                faults.push(Ambiguous::BadByte);
            } else {
                decoded.push(character);
            }
        }
        while decoded.contains("//") {
            decoded = decoded.replace("//", "/");
        }
        let segments: Vec<&str> = decoded.split('/').skip(1).collect();
        let mut kept: Vec<&str> = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let last = index + 1 == segments.len();
            let name = segment.split(';').next().unwrap();
            if segment.contains(';') && (name == "." || name == ".." || (name.is_empty() && !last)) {
                faults.push(Ambiguous::PathParameter);
            }
            match *segment {
                "." | ".." => {
                    if *segment == ".." {
                        kept.pop();
                    }
                    if last {
                        kept.push("");
                    }
                }
                _ => kept.push(segment),
            }
        }
        if faults.is_empty() { Ok(format!("/{}", kept.join("/"))) } else { Err(faults) }
    }

    fn path_matches(pattern: &str, path: &str) -> bool {
        if pattern == "*" {
            return true;
        }
        match pattern.chars().next() {
            None => path.is_empty(),
            Some('{') => {
                let after = &pattern[pattern.find('}').unwrap() + 1..];
                let length = path.find('/').unwrap_or(path.len());
                length > 0 && path_matches(after, &path[length..])
            }
            Some(character) => {
                path.starts_with(character)
                    && path_matches(&pattern[character.len_utf8()..], &path[character.len_utf8()..])
            }
        }
    }

    fn without_parameters(path: &str) -> String {
        let segments: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap()).collect();
        segments.join("/")
    }

    fn identity_matches(pattern: &str, id: &str) -> bool {
        if pattern == "*" {
            return true;
        }
        fn here(pattern: &str, at_segment: bool, id: &str) -> bool {
            if pattern == "*" {
                return true;
            }
            match pattern.chars().next() {
                None => id.is_empty(),
                Some('*') if at_segment && pattern[1..].starts_with('/') => {
                    let length = id.find('/').unwrap_or(id.len());
                    length > 0 && here(&pattern[1..], false, &id[length..])
                }
                Some(character) => id.starts_with(character) && here(&pattern[1..], character == '/', &id[1..]),
            }
        }
        here(pattern, true, id)
    }

    fn host_matches(pattern: &str, host: &str) -> bool {
        match pattern.strip_prefix('*') {
            Some(suffix) => host.ends_with(suffix) && host != suffix,
            None => pattern == host,
        }
    }

    fn in_block(block: &str, address: IpAddr) -> bool {
        match (block, address) {
            ("10.0.0.0/8", IpAddr::V4(v4)) => v4.octets()[0] == 10,
            ("10.1.0.0/16", IpAddr::V4(v4)) => v4.octets()[..2] == [10, 1],
            ("10.1.2.3", IpAddr::V4(v4)) => v4 == Ipv4Addr::new(10, 1, 2, 3),
            ("fd00::/8", IpAddr::V6(v6)) => v6.octets()[0] == 0xfd,
            _ => false,
        }
    }

    fn list(object: &Value, key: &str) -> Option<Vec<String>> {
        let items = object.get(key)?.as_array().unwrap();
        Some(items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect())
    }

    fn caller_matches(caller: &Value, call: &Call) -> bool {
        if let Some(blocks) = list(caller, "ipBlocks") {
            return call.identity.is_none() && blocks.iter().any(|block| in_block(block, call.address));
        }
        let Some(id) = &call.identity else { return false };
        let words: Vec<&str> = id.splitn(4, '/').nth(3).unwrap().split('/').collect();
        let account = match words[..] {
            ["ns", namespace, "sa", name] => Some((namespace.to_owned(), format!("{namespace}/{name}"))),
            _ => None,
        };
        let accounts = list(caller, "serviceAccounts").is_none_or(|accounts| {
            let full = |name: &String| if name.contains('/') { name.clone() } else { format!("a/{name}") };
            account.as_ref().is_some_and(|(_, account)| accounts.iter().any(|name| full(name) == *account))
        });
        let namespaces = list(caller, "namespaces")
            .is_none_or(|namespaces| account.as_ref().is_some_and(|(namespace, _)| namespaces.contains(namespace)));
        let identities = list(caller, "identities")
            .is_none_or(|patterns| patterns.iter().any(|pattern| identity_matches(pattern, id)));
        accounts && namespaces && identities
    }

    fn operation_matches(operation: &Value, call: &Call, deny: bool) -> bool {
        if list(operation, "ports").is_some_and(|ports| !ports.contains(&call.port.to_string())) {
            return false;
        }
        let (methods, paths, hosts) = (list(operation, "methods"), list(operation, "paths"), list(operation, "hosts"));
        let Some(Http { method, path, host, .. }) = &call.http else {
            return deny || (methods.is_none() && paths.is_none() && hosts.is_none());
        };
        methods.is_none_or(|methods| methods.contains(method))
            && paths.is_none_or(|patterns| {
                patterns.iter().any(|pattern| {
                    path_matches(pattern, path) || (deny && path_matches(pattern, &without_parameters(path)))
                })
            })
            && hosts.is_none_or(|patterns| patterns.iter().any(|pattern| host_matches(pattern, host)))
    }

    fn condition_matches(condition: &Value, call: &Call, deny: bool) -> bool {
        let Some(http) = &call.http else { return deny };
        let name = condition["header"].as_str().unwrap().to_lowercase();
        let wanted = list(condition, "in").unwrap();
        let lines: Vec<&str> =
            http.headers.iter().filter(|(header, _)| *header == name).map(|(_, value)| value.as_str()).collect();
        let joined = lines.join(",");
        let values: Vec<&str> = joined.split(',').map(str::trim).filter(|value| !value.is_empty()).collect();
        let hits = values.iter().filter(|value| wanted.iter().any(|wanted| wanted == *value)).count();
        if deny { hits > 0 } else { hits > 0 && hits == values.len() }
    }

    fn rule_matches(rule: &Value, call: &Call, deny: bool) -> bool {
        let items = |key: &str| rule.get(key).map(|list| list.as_array().unwrap().clone());
        items("from").is_none_or(|from| from.iter().any(|caller| caller_matches(caller, call)))
            && items("to").is_none_or(|to| to.iter().any(|operation| operation_matches(operation, call, deny)))
            && items("when").is_none_or(|when| when.iter().all(|condition| condition_matches(condition, call, deny)))
    }

    pub(super) fn decide(
        documents: &[Value],
        default: DefaultPolicy,
        denied: &[SpiffeId],
        call: &Call,
        with_shadow: bool,
    ) -> Verdict {
        if call.identity.as_ref().is_some_and(|id| denied.iter().any(|denied| denied.as_str() == id)) {
            return (false, None, Reason::DeniedIdentity);
        }
        let mut documents = documents.to_vec();
        documents.sort_by_key(|document| document["metadata"]["name"].as_str().unwrap().to_owned());
        documents.retain(|document| with_shadow || document["spec"].get("mode") != Some(&Value::from("Shadow")));
        let named = |document: &Value| Some(format!("a/{}", document["metadata"]["name"].as_str().unwrap()));
        let of = |action: &str| {
            let chosen: Vec<&Value> =
                documents.iter().filter(|document| document["spec"]["action"] == action).collect();
            chosen
        };
        for document in of("Deny") {
            let rules = document["spec"].get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
            if rules.is_empty() {
                return (false, named(document), Reason::NoRules);
            }
            if let Some(rule) = rules.iter().position(|rule| rule_matches(rule, call, true)) {
                return (false, named(document), Reason::Rule(rule));
            }
        }
        for document in of("Allow") {
            let rules = document["spec"].get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
            if let Some(rule) = rules.iter().position(|rule| rule_matches(rule, call, false)) {
                return (true, named(document), Reason::Rule(rule));
            }
        }
        if let Some(first) = of("Allow").first() {
            return (false, named(first), Reason::NoRuleMatched);
        }
        let allowed = match default {
            DefaultPolicy::Deny => false,
            DefaultPolicy::Authenticated => call.identity.is_some(),
            DefaultPolicy::Allow => true,
        };
        (allowed, None, Reason::Default)
    }
}

fn engine(set: &PolicySet, call: &Call, with_shadow: bool) -> Option<Verdict> {
    let identity = call.identity.as_ref().map(|id| SpiffeId::parse(id).unwrap());
    let source = Source { identity: identity.as_ref(), address: call.address };
    let headers = call.http.as_ref().map(Http::header_map).unwrap_or_default();
    let http = call.http.as_ref().map(|http| HttpRequest {
        method: &http.method,
        path: &http.path,
        host: &http.host,
        headers: &headers,
        claims: None,
    });
    let decision = if with_shadow { set.shadow(source, call.port, http)? } else { set.decide(source, call.port, http) };
    Some((decision.allowed, decision.policy.map(ToString::to_string), decision.reason))
}

fn default_policy() -> impl Strategy<Value = DefaultPolicy> {
    proptest::sample::select(vec![DefaultPolicy::Deny, DefaultPolicy::Authenticated, DefaultPolicy::Allow])
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn the_engine_decides_and_explains_as_the_reference_does(
        documents in policies(),
        default in default_policy(),
        deny_one in proptest::bool::weighted(0.1),
        mut call in call(raw_path()),
    ) {
        if let Some(http) = &mut call.http {
            match (normalize(&http.path), reference::normalize(&http.path)) {
                (Ok(path), Ok(expected)) => {
                    prop_assert_eq!(&*path, &expected);
                    http.path = expected;
                }
                (Err(fault), Err(faults)) => {
                    prop_assert!(faults.contains(&fault), "{:?} is none of {:?}", fault, faults);
                    http.path = "/a".into();
                }
                (ours, theirs) => prop_assert!(false, "{ours:?} but the reference says {theirs:?}"),
            }
        }
        let denied = if deny_one { vec![SpiffeId::parse(common::IDENTITIES[0]).unwrap()] } else { Vec::new() };
        let set = PolicySet::compile(default, Arc::new(denied.clone()), applied(&documents));
        let expected = reference::decide(&documents, default, &denied, &call, false);
        prop_assert_eq!(engine(&set, &call, false), Some(expected));
        let any_shadow = documents.iter().any(|document| document["spec"].get("mode") == Some(&Value::from("Shadow")));
        let expected = any_shadow.then(|| reference::decide(&documents, default, &denied, &call, true));
        prop_assert_eq!(engine(&set, &call, true), expected);
    }

    #[test]
    fn normalizing_twice_gives_what_normalizing_once_gave(raw in raw_path()) {
        if let Ok(once) = normalize(&raw) {
            prop_assert_eq!(normalize(&once), Ok(once.clone()));
            prop_assert!(once == "*" || once.starts_with('/'));
            prop_assert!(!once.contains("//") && !once.split('/').any(|segment| segment == "." || segment == ".."));
        }
    }

    #[test]
    fn normalizing_a_host_twice_gives_what_normalizing_once_gave(raw in "[a-zA-Z0-9._:\\[\\]x-]{0,20}|xn--[a-z0-9-]{0,10}") {
        if let Ok(once) = weft_api::policy::path::normalize_host(&raw) {
            prop_assert_eq!(weft_api::policy::path::normalize_host(&once), Ok(once.clone()));
        }
    }
}
