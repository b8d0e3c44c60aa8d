//! What each policy says of one call, for people: the rule that matched, or the first field that did not.
//!
//! Nothing is judged here a second time. Each field is asked for by compiling a policy with that field alone, so whatever
//! the engine knows is explained, in the engine's own words. Unlike a [`Decision`], a trace holds parts of the call: it is
//! for whoever asked about that call, not for logs. It is slow, and never on the way of a request.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::compiled::{Call, CompiledPolicy, Effect};
use super::{AppliedPolicy, Decision, HttpRequest, PolicySet, Reason, Source};
use crate::resource::node::At;
use crate::resource::{AuthorizationPolicy, NamespacedName, parse_text};

/// Values of a list that are shown.
const SHOWN: usize = 5;
/// Items of `from` or `to` whose fault is told.
const ITEMS: usize = 3;

/// What one policy says of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTrace {
    /// `namespace/name`.
    pub policy: String,
    /// `Allow`, `Deny`, …, or `Unreadable`.
    pub action: String,
    /// `Enforce`, `Shadow`, ….
    pub mode: String,
    /// Whether it was its turn: it is in force, and no policy before it had decided.
    pub asked: bool,
    /// Why it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// Its rules up to the first that matches; none: it has none, or cannot be read.
    pub rules: Vec<RuleTrace>,
}

/// What one rule says of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleTrace {
    /// Counted from 0.
    pub rule: usize,
    /// Whether it matches.
    pub matched: bool,
    /// The first field that does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

impl PolicyTrace {
    /// The rule that matches.
    pub fn matched(&self) -> Option<usize> {
        self.rules.iter().find(|rule| rule.matched).map(|rule| rule.rule)
    }

    /// What it says, as one line for each rule, or one for the whole.
    pub fn lines(&self) -> Vec<String> {
        if let Some(why) = &self.unreadable {
            return vec![format!("cannot be read, so it refuses every call: {why}")];
        }
        if self.rules.is_empty() {
            let all = if self.action == "Allow" {
                "has no rules: it allows nothing"
            } else {
                "has no rules: it holds for every call"
            };
            return vec![all.to_owned()];
        }
        let line = |rule: &RuleTrace| match &rule.because {
            _ if rule.matched => format!("rule {}: matches", rule.rule),
            Some(because) => format!("rule {}: {because}", rule.rule),
            None => format!("rule {}: does not match", rule.rule),
        };
        self.rules.iter().map(line).collect()
    }
}

/// What each policy of `set` says of a call, in the order in which they are asked.
pub fn trace(set: &PolicySet, source: Source<'_>, port: u16, http: Option<HttpRequest<'_>>) -> Vec<PolicyTrace> {
    let call = Call { source, port, http };
    let mut policies: Vec<(Effect, &AppliedPolicy)> =
        set.policies().iter().map(|policy| (CompiledPolicy::new(policy).effect, policy)).collect();
    policies.sort_by_key(|(effect, _)| *effect);
    let decision = set.decide(source, port, http);
    let denied = decision.reason == Reason::DeniedIdentity;
    let mut decided = denied;
    let mut traces = Vec::with_capacity(policies.len());
    for (_, policy) in policies {
        let mut told = of_policy(policy, &call);
        told.asked = !decided && matches!(told.mode.as_str(), "Enforce" | "");
        decided |= told.asked && decides(&decision, policy.name());
        traces.push(told);
    }
    traces
}

fn decides(decision: &Decision<'_>, policy: &NamespacedName) -> bool {
    decision.policy == Some(policy) && decision.reason != Reason::NoRuleMatched
}

fn of_policy(policy: &AppliedPolicy, call: &Call<'_>) -> PolicyTrace {
    let name = policy.name().to_string();
    let readable = match policy {
        AppliedPolicy::Unreadable { why, .. } => {
            let (action, mode) = ("Unreadable".to_owned(), String::new());
            return PolicyTrace {
                policy: name,
                action,
                mode,
                asked: true,
                unreadable: Some(why.clone()),
                rules: Vec::new(),
            };
        }
        AppliedPolicy::Readable(readable) => readable,
    };
    let spec = readable.spec_json();
    let probe = Probe { name: &readable.name, spec: &spec, call };
    let matching = CompiledPolicy::new(policy).matching_rule(call);
    let rules = spec["rules"].as_array().map_or(&[][..], Vec::as_slice);
    let rules = rules.iter().enumerate().take(matching.map_or(usize::MAX, |rule| rule + 1)).map(|(rule, json)| {
        let matched = matching == Some(rule);
        RuleTrace { rule, matched, because: if matched { None } else { probe.because(json) } }
    });
    let word = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    PolicyTrace {
        policy: name,
        action: word("action"),
        mode: word("mode"),
        asked: true,
        unreadable: None,
        rules: rules.collect(),
    }
}

/// Asks the engine for parts of a policy.
struct Probe<'a> {
    name: &'a NamespacedName,
    spec: &'a Value,
    call: &'a Call<'a>,
}

impl Probe<'_> {
    /// Whether a policy that had `rule` alone would match. `None`: that is no policy.
    fn matches(&self, rule: Value) -> Option<bool> {
        let mut spec = self.spec.clone();
        spec["rules"] = json!([rule]);
        let node = parse_text(&spec.to_string(), 0).ok()?;
        let policy = AuthorizationPolicy::parse_spec(self.name.clone(), &At::new("spec", &node)).ok()?;
        let policy = CompiledPolicy::new(&AppliedPolicy::Readable(policy.into()));
        Some(policy.matching_rule(self.call).is_some())
    }

    /// The first part of a rule that does not match.
    fn because(&self, rule: &Value) -> Option<String> {
        let items = |part: &str| rule[part].as_array().filter(|items| !items.is_empty());
        for part in ["from", "to"] {
            if let Some(items) = items(part)
                && self.matches(json!({ part: items })) == Some(false)
            {
                return Some(self.of_items(part, items));
            }
        }
        let conditions = items("when")?;
        let failing =
            conditions.iter().find(|condition| self.matches(json!({ "when": [condition] })) == Some(false))?;
        Some(self.condition(failing))
    }

    fn of_items(&self, part: &str, items: &[Value]) -> String {
        let told = items.iter().take(ITEMS).map(|item| self.of_item(part, item));
        let mut told: Vec<String> = match items.len() {
            1 => told.collect(),
            _ => told.enumerate().map(|(index, fault)| format!("{part}[{index}]: {fault}")).collect(),
        };
        if items.len() > ITEMS {
            told.push(format!("and so on for {} more", items.len() - ITEMS));
        }
        told.join("; ")
    }

    /// The first field of an item that does not match by itself.
    fn of_item(&self, part: &str, item: &Value) -> String {
        let nothing = Map::new();
        let fields = item.as_object().unwrap_or(&nothing);
        let failing = fields
            .iter()
            .find(|(field, value)| self.matches(json!({ part: [{ field.as_str(): value }] })) == Some(false));
        match failing {
            Some((field, value)) => self.field(field, value),
            None => format!("{part} does not match"),
        }
    }

    fn field(&self, field: &str, value: &Value) -> String {
        let list = listed(value);
        let (field, relation) = match field.strip_prefix("not") {
            Some(rest) => (format!("{}{}", rest[..1].to_ascii_lowercase(), &rest[1..]), "is in"),
            None => (field.to_owned(), "is not in"),
        };
        let (what, sent) = match field.as_str() {
            "serviceAccounts" | "identities" => ("caller", self.caller()),
            "namespaces" => ("caller", self.caller()),
            "ipBlocks" if self.call.source.identity.is_some() => {
                return format!("the caller has a mesh identity, and ipBlocks {list} are for callers without one");
            }
            "ipBlocks" => ("address", Some(self.call.source.address.to_string())),
            "ports" => ("port", Some(self.call.port.to_string())),
            "methods" => ("method", self.call.http.map(|http| http.method.to_owned())),
            "paths" | "grpc" => ("path", self.call.http.map(|http| http.path.to_owned())),
            "hosts" => ("host", self.call.http.map(|http| http.host.to_owned())),
            _ => return format!("{field} {list} do not match"),
        };
        match sent {
            Some(sent) => format!("{what} {sent} {relation} {list}"),
            None if what == "caller" => format!("the caller has no mesh identity; {field} are {list}"),
            None => format!("a byte stream has no {what}; {field} are {list}"),
        }
    }

    fn caller(&self) -> Option<String> {
        let id = self.call.source.identity?;
        Some(id.service_account().map_or_else(|| id.to_string(), |(namespace, name)| format!("{namespace}/{name}")))
    }

    fn condition(&self, condition: &Value) -> String {
        let shown = |what: &str, name: &str, values: Vec<String>| {
            let wanted: Vec<String> = ["in", "contains", "notIn", "notContains"]
                .into_iter()
                .filter(|operator| !condition[*operator].is_null())
                .map(|operator| format!("{operator} {}", listed(&condition[operator])))
                .collect();
            match values.is_empty() {
                true => format!("{what} {name} is absent; wanted {}", wanted.join(", ")),
                false => format!("{what} {name} is {}; wanted {}", values.join(", "), wanted.join(", ")),
            }
        };
        let Some(http) = self.call.http else { return "a byte stream has neither headers nor claims".to_owned() };
        if let Some(name) = condition["header"].as_str() {
            let values = http.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            return shown("header", name, values.map(|value| value.into_owned()).collect());
        }
        match condition["claim"].as_str() {
            Some(_) if http.claims.is_none() => "the request has no verified token".to_owned(),
            Some(name) => {
                let claims = http.claims.into_iter();
                shown(
                    "claim",
                    name,
                    claims.flat_map(|claims| claims.values(name)).map(|value| value.into_owned()).collect(),
                )
            }
            None => format!("the condition {condition} does not hold"),
        }
    }
}

/// `[a, b]`, or the one text.
fn listed(value: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let Some(items) = value.as_array() else { return text(value) };
    let mut shown: Vec<String> = items.iter().take(SHOWN).map(text).collect();
    if items.len() > SHOWN {
        shown.push(format!("… {} more", items.len() - SHOWN));
    }
    format!("[{}]", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use http::HeaderMap;
    use weft_certs::SpiffeId;

    use super::*;
    use crate::resource::{DefaultPolicy, Resource, parse_documents};

    fn set(specs: &[(&str, &str)]) -> PolicySet {
        let policies = specs.iter().map(|(name, spec)| {
            let text = format!(
                "{{apiVersion: policy.weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {name}, \
                 namespace: shop}}, spec: {spec}}}"
            );
            match parse_documents(&text).pop() {
                Some(Ok(Resource::AuthorizationPolicy(policy))) => AppliedPolicy::Readable(Arc::new(policy)),
                other => panic!("{other:?}"),
            }
        });
        PolicySet::compile(DefaultPolicy::Deny, Arc::default(), policies.collect::<Vec<_>>())
    }

    /// What is said of `POST /stock/1` by shop/users.
    fn told(specs: &[(&str, &str)]) -> Vec<PolicyTrace> {
        let identity = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/users").expect("valid");
        let source = Source { identity: Some(&identity), address: IpAddr::from([10, 0, 0, 1]) };
        let headers = HeaderMap::from_iter([("x-tenant".parse().expect("a name"), "red".parse().expect("a value"))]);
        let http = HttpRequest { method: "POST", path: "/stock/1", host: "inventory", headers: &headers, claims: None };
        trace(&set(specs), source, 8080, Some(http))
    }

    #[test]
    fn the_first_field_that_does_not_match_is_named_with_what_came_and_what_was_wanted() {
        for (rule, expected) in [
            (
                "{from: [{serviceAccounts: [orders, batch/nightly]}]}",
                "caller shop/users is not in [shop/orders, batch/nightly]",
            ),
            ("{from: [{namespaces: [batch]}]}", "caller shop/users is not in [batch]"),
            (
                "{from: [{ipBlocks: [10.0.0.0/8]}]}",
                "the caller has a mesh identity, and ipBlocks [10.0.0.0/8] are for callers without one",
            ),
            ("{to: [{methods: [GET]}]}", "method POST is not in [GET]"),
            ("{to: [{ports: [80, 81, 82, 83, 84, 85]}]}", "port 8080 is not in [80, 81, 82, 83, 84, … 1 more]"),
            ("{to: [{methods: [POST], paths: [/users]}]}", "path /stock/1 is not in [/users]"),
            ("{to: [{hosts: [orders]}]}", "host inventory is not in [orders]"),
            (
                "{to: [{methods: [GET]}, {paths: [/users]}]}",
                "to[0]: method POST is not in [GET]; to[1]: path /stock/1 is not in [/users]",
            ),
            ("{from: [{serviceAccounts: [users]}], to: [{methods: [GET]}]}", "method POST is not in [GET]"),
            ("{when: [{header: x-tenant, in: [blue]}]}", "header x-tenant is red; wanted in [blue]"),
            ("{when: [{header: x-tenant, in: [red]}, {header: x-b, in: [c]}]}", "header x-b is absent; wanted in [c]"),
        ] {
            let traces = told(&[("p", &format!("{{action: Allow, rules: [{rule}]}}"))]);
            assert_eq!(
                traces[0].rules,
                [RuleTrace { rule: 0, matched: false, because: Some(expected.into()) }],
                "{rule}"
            );
        }
    }

    #[test]
    fn policies_stand_in_the_order_in_which_they_are_asked_and_none_is_asked_behind_the_one_that_decides() {
        let all = "{action: Allow, rules: [{}]}";
        let traces = told(&[
            ("a", all),
            ("b", all),
            ("c", "{action: Deny, rules: [{to: [{methods: [DELETE]}]}]}"),
            ("d", "{action: Deny, mode: Shadow}"),
        ]);
        let names: Vec<(&str, bool)> = traces.iter().map(|told| (told.policy.as_str(), told.asked)).collect();
        assert_eq!(names, [("shop/c", true), ("shop/d", false), ("shop/a", true), ("shop/b", false)]);
        assert_eq!(traces[2].matched(), Some(0));
        assert_eq!(traces[0].lines(), ["rule 0: method POST is not in [DELETE]"]);
        assert_eq!(traces[1].lines(), ["has no rules: it holds for every call"]);
    }

    #[test]
    fn a_byte_stream_is_told_which_field_it_does_not_have() {
        let source = Source { identity: None, address: IpAddr::from([10, 0, 0, 1]) };
        for (rule, expected) in [
            ("{to: [{methods: [GET]}]}", "a byte stream has no method; methods are [GET]"),
            ("{from: [{serviceAccounts: [a]}]}", "the caller has no mesh identity; serviceAccounts are [shop/a]"),
            ("{when: [{header: x-b, in: [c]}]}", "a byte stream has neither headers nor claims"),
        ] {
            let set = set(&[("p", &format!("{{action: Allow, rules: [{rule}]}}"))]);
            let traces = trace(&set, source, 8080, None);
            assert_eq!(traces[0].rules[0].because.as_deref(), Some(expected), "{rule}");
        }
    }
}
