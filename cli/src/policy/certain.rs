//! Judges an observed call, of which the mesh keeps the kind alone: neither hosts nor headers nor claims nor addresses, and
//! of paths the template.
//!
//! Where a policy looks at what was not kept, the call is judged twice: once as if all of that spoke for it, once as if all
//! of it spoke against it. Only where both agree the answer is certain.
use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};
use weft_api::observation::{CallRecord, ID};
use weft_api::policy::pattern::PathPattern;
use weft_api::policy::{AppliedPolicy, Decision, HttpRequest, PolicySet, Reason, Source};
use weft_api::resource::{API_VERSION, Resource, parse_documents};
use weft_certs::SpiffeId;

use super::calls::is_outside;
use super::mesh::Target;

/// What becomes of an observed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    /// Whether it passes; `None`: that depends on what was not kept.
    pub(super) allowed: Option<bool>,
    /// The policy that decides, with its rule.
    pub(super) by: String,
}

/// Judges a call by the policies of a workload.
pub(super) fn judge(target: &Target, row: &CallRecord) -> Judgement {
    let policy = &target.inbound.policy;
    let plain = decide(policy, row, |decision| (decision.allowed, decider(decision)));
    let view = View { outside: is_outside(row), path: row.call.path.as_deref(), is_request: row.call.method.is_some() };
    let as_if = |spoken_for| {
        let set = view.read(policy, spoken_for);
        decide(&set, row, |decision| (decision.allowed, decider(decision)))
    };
    let ((best, best_by), (worst, worst_by)) = (as_if(true), as_if(false));
    match best == worst {
        true => Judgement { allowed: Some(best), by: if plain.0 == best { plain.1 } else { best_by } },
        false => Judgement { allowed: None, by: format!("{best_by} or {worst_by}") },
    }
}

fn decide<T>(policy: &PolicySet, row: &CallRecord, told: impl Fn(&Decision<'_>) -> T) -> T {
    let identity = SpiffeId::parse(&row.call.source).ok();
    let source = Source { identity: identity.as_ref(), address: [0, 0, 0, 0].into() };
    let headers = HeaderMap::new();
    let http = row.call.method.as_deref().map(|method| {
        // A path that is not known matches no pattern by chance: no request has this one.
        let path = row.call.path.as_deref().unwrap_or("");
        HttpRequest { method, path, host: "", headers: &headers, claims: None }
    });
    told(&policy.decide(source, row.call.port, http))
}

fn decider(decision: &Decision<'_>) -> String {
    match decision.reason {
        Reason::Rule(rule) => format!("{} rule {rule}", decision.label()),
        _ => decision.label().to_string(),
    }
}

/// What is known of a call.
struct View<'a> {
    outside: bool,
    path: Option<&'a str>,
    is_request: bool,
}

impl View<'_> {
    /// The policies with what the call leaves open read in its favour, or against it.
    fn read(&self, policy: &PolicySet, in_favour: bool) -> PolicySet {
        let policies = policy.policies().iter().map(|applied| match applied {
            AppliedPolicy::Readable(readable) => {
                let mut spec = readable.spec_json();
                // In favour: Allow rules match where they may, all others do not.
                let may_match = (spec["action"] == "Allow") == in_favour;
                if let Some(rules) = spec["rules"].as_array() {
                    // A Deny policy without rules refuses everything: one whose rules all went is left out.
                    let had_rules = !rules.is_empty();
                    let rules: Vec<Value> = rules.iter().filter_map(|rule| self.rule(rule, may_match)).collect();
                    if had_rules && rules.is_empty() && spec["action"] != "Allow" {
                        spec["mode"] = "Shadow".into();
                    }
                    spec["rules"] = rules.into();
                }
                let document = json!({
                    "apiVersion": API_VERSION,
                    "kind": "AuthorizationPolicy",
                    "metadata": {"namespace": readable.name.namespace, "name": readable.name.name},
                    "spec": spec,
                });
                match parse_documents(&document.to_string()).pop() {
                    Some(Ok(Resource::AuthorizationPolicy(policy))) => AppliedPolicy::Readable(Arc::new(policy)),
                    // What cannot be read otherwise is asked as it is.
                    _ => applied.clone(),
                }
            }
            unreadable => unreadable.clone(),
        });
        PolicySet::compile(policy.default_policy(), Arc::clone(policy.denied()), policies.collect::<Vec<_>>())
    }

    /// A rule as it is read. `None`: it does not match. Rules keep their places, so that they are named rightly.
    fn rule(&self, rule: &Value, may_match: bool) -> Option<Value> {
        let mut read = rule.clone();
        if self.is_request && rule["when"].as_array().is_some_and(|when| !when.is_empty()) {
            if !may_match {
                return None;
            }
            read.as_object_mut()?.remove("when");
        }
        for part in ["from", "to"] {
            let Some(items) = rule[part].as_array() else { continue };
            let items: Vec<Value> = items.iter().filter_map(|item| self.item(item, may_match)).collect();
            if items.is_empty() {
                return None;
            }
            // An item that says nothing any more means any.
            if items.iter().any(|item| item.as_object().is_some_and(serde_json::Map::is_empty)) {
                read.as_object_mut()?.remove(part);
            } else {
                read[part] = items.into();
            }
        }
        Some(read)
    }

    fn item(&self, item: &Value, may_match: bool) -> Option<Value> {
        let mut read = item.clone();
        let fields = read.as_object_mut()?;
        let unknown = |field: &str| match field {
            "ipBlocks" | "notIpBlocks" => self.outside,
            "hosts" | "notHosts" => self.is_request,
            "paths" | "notPaths" | "grpc" => self.is_request && self.path.is_none(),
            _ => false,
        };
        let open: Vec<String> = fields.keys().filter(|field| unknown(field)).cloned().collect();
        if !open.is_empty() && !may_match {
            return None;
        }
        for field in open {
            fields.remove(&field);
        }
        if let Some(template) = self.path.filter(|path| path.contains(ID)) {
            for (field, wanted) in [("paths", may_match), ("notPaths", !may_match)] {
                let Some(patterns) = fields.get(field).and_then(Value::as_array) else { continue };
                let read: Vec<Value> = patterns.iter().filter_map(|pattern| path(pattern, template, wanted)).collect();
                match (read.is_empty(), field) {
                    (true, "paths") => return None,
                    (true, _) => drop(fields.remove(field)),
                    (false, _) => drop(fields.insert(field.to_owned(), read.into())),
                }
            }
        }
        Some(read)
    }
}

/// A pattern as it is read of a template: one that takes some of its paths and not all takes all, or none.
fn path(pattern: &Value, template: &str, wanted: bool) -> Option<Value> {
    let text = pattern.as_str()?;
    let takes_all = PathPattern::parse(text).is_ok_and(|pattern| pattern.matches(template));
    if takes_all || !takes_some(text, template) {
        return Some(pattern.clone());
    }
    wanted.then(|| template.into())
}

/// Whether some path of `template` matches the pattern.
fn takes_some(pattern: &str, template: &str) -> bool {
    let (literal, open) = pattern.strip_suffix('*').map_or((pattern, false), |literal| (literal, true));
    let mut segments = template.split('/');
    let mut patterns = literal.split('/').peekable();
    while let Some(pattern) = patterns.next() {
        let Some(segment) = segments.next() else { return false };
        if open && patterns.peek().is_none() {
            return segment == ID || segment.starts_with(pattern);
        }
        let either = segment == ID && !pattern.is_empty() || pattern.starts_with('{') && !segment.is_empty();
        if !either && segment != pattern {
            return false;
        }
    }
    segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_takes_some_paths_of_a_template_is_known_to() {
        for (pattern, template, expected) in [
            ("/stock/4711", "/stock/{id}", true),
            ("/stock/*", "/stock/{id}", true),
            ("/stock/4*", "/stock/{id}", true),
            ("/stock/{sku}", "/stock/{id}", true),
            ("/users/4711", "/stock/{id}", false),
            ("/stock", "/stock/{id}", false),
            ("/stock/4711/price", "/stock/{id}", false),
            ("/stock/", "/stock/{id}", false),
        ] {
            assert_eq!(takes_some(pattern, template), expected, "{pattern} {template}");
        }
    }
}
