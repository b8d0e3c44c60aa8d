//! What one sidecar has in force, beside what is declared for its pod.
//!
//! The engine's own parser and targeting say what is declared, so the two sides differ only where the sidecar has not been
//! told yet, or was told by another version.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_api::resource::{NamespacedName, RateLimit, Resource, Subject, parse_documents};

use super::policies::PolicyFacts;
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::output::{Column, Table};
use crate::kubernetes::policy_kinds::{AUTHORIZATION, RATE_LIMIT};

/// `/config` of a sidecar, as far as it is of use here.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct SidecarConfig {
    identity: Option<Identity>,
    configuration: Option<Configuration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Identity {
    spiffe_id: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Configuration {
    default_policy: Option<String>,
    /// Absent from sidecars that do not show it.
    policies: Option<Vec<Policy>>,
    #[serde(default)]
    rate_limits: Vec<Limit>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Policy {
    name: String,
    spec: Option<Value>,
    unreadable: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Limit {
    policy: String,
    limit: String,
    requests: u32,
    window_ms: u64,
    burst: u32,
    #[serde(default)]
    per: String,
}

impl Limit {
    fn of(limit: &RateLimit) -> Self {
        Self {
            policy: limit.policy.to_string(),
            limit: limit.name.clone(),
            requests: limit.requests,
            window_ms: limit.window.as_millis().try_into().unwrap_or(u64::MAX),
            burst: limit.burst,
            per: format!("{:?}", limit.per),
        }
    }
}

impl Configuration {
    /// The limits of one policy, in order.
    fn limits_of(&self, policy: &str) -> Vec<Limit> {
        let mut limits: Vec<Limit> = self.rate_limits.iter().filter(|limit| limit.policy == policy).cloned().collect();
        limits.sort();
        limits
    }
}

impl SidecarConfig {
    pub(super) fn identity(&self) -> Option<String> {
        self.identity.as_ref().map(|identity| identity.spiffe_id.clone())
    }

    pub(super) fn default_policy(&self) -> Option<String> {
        self.configuration.as_ref().and_then(|configuration| configuration.default_policy.clone())
    }
}

/// How a policy stands at a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum State {
    /// As it is declared.
    #[serde(rename = "yes")]
    Yes,
    /// Another version of it: the sidecar has not been told of the change, or the change was not accepted.
    #[serde(rename = "outdated")]
    Outdated,
    /// Declared for the pod, not at the sidecar.
    #[serde(rename = "no")]
    No,
    /// At the sidecar, no longer declared for the pod.
    #[serde(rename = "removed")]
    Removed,
    /// At the sidecar, which cannot read it and refuses every call.
    #[serde(rename = "unreadable")]
    Unreadable,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InForce {
    kind: &'static str,
    /// `namespace/name`.
    policy: String,
    in_force: State,
    effect: String,
    accepted: Option<String>,
    message: Option<String>,
    /// As the sidecar has it.
    spec: Option<Value>,
}

type Rows = BTreeMap<(&'static str, String), InForce>;

/// Every policy that either side has.
pub(super) fn compare(
    config: &SidecarConfig,
    declared: &[PolicyFacts],
    pod: &PodFacts,
    services: &[NamespacedName],
) -> Vec<InForce> {
    let nothing = Configuration::default();
    let configuration = config.configuration.as_ref().unwrap_or(&nothing);
    let subject = Subject { namespace: &pod.namespace, labels: &pod.labels, services };
    let mut rows = at_sidecar(configuration);
    for policy in declared {
        lay_beside(&mut rows, policy, &judge(policy, subject, configuration));
    }
    rows.into_values().collect()
}

/// What the sidecar has; whether it is declared too is not known yet.
fn at_sidecar(configuration: &Configuration) -> Rows {
    let mut rows = Rows::new();
    let mut put = |kind, policy: &str, in_force, message, spec: Option<Value>, effect| {
        let row = InForce { kind, policy: policy.to_owned(), in_force, effect, accepted: None, message, spec };
        rows.insert((kind, policy.to_owned()), row);
    };
    for policy in configuration.policies.iter().flatten() {
        let in_force = if policy.unreadable.is_some() { State::Unreadable } else { State::Removed };
        let effect = policy.spec.as_ref().map(effect).unwrap_or_default();
        put(AUTHORIZATION.kind, &policy.name, in_force, policy.unreadable.clone(), policy.spec.clone(), effect);
    }
    for policy in configuration.rate_limits.iter().map(|limit| &limit.policy).collect::<BTreeSet<_>>() {
        let limits = configuration.limits_of(policy);
        let spec = limits.iter().map(limit_json).collect();
        put(RATE_LIMIT.kind, policy, State::Removed, None, Some(spec), limits_effect(&limits));
    }
    rows
}

/// A declared policy, judged by the engine.
struct Declared {
    applies: bool,
    /// Whether the sidecar has just this.
    same: bool,
    effect: String,
    spec: Option<Value>,
    fault: Option<String>,
}

fn judge(policy: &PolicyFacts, subject: Subject<'_>, configuration: &Configuration) -> Declared {
    let (namespace, name) = (&policy.namespace, &policy.name);
    match parse(&policy.kind, namespace, name, &policy.spec) {
        Ok(Resource::AuthorizationPolicy(parsed)) => {
            let spec = parsed.spec_json();
            let there = configuration.policies.iter().flatten().find(|there| there.name == parsed.name.to_string());
            let there = there.and_then(|there| parse(&policy.kind, namespace, name, there.spec.as_ref()?).ok());
            Declared {
                applies: parsed.applies_to(subject),
                effect: effect(&spec),
                spec: Some(spec),
                same: there == Some(Resource::AuthorizationPolicy(parsed)),
                fault: None,
            }
        }
        Ok(Resource::RateLimitPolicy(parsed)) => {
            let mut wanted: Vec<Limit> = parsed.rate_limits().map(|limit| Limit::of(&limit)).collect();
            wanted.sort();
            Declared {
                applies: parsed.applies_to(subject),
                same: wanted == configuration.limits_of(&parsed.name.to_string()),
                effect: limits_effect(&wanted),
                spec: None,
                fault: None,
            }
        }
        // It cannot be in force as it is declared; whether an earlier version of it is, the sidecar knows.
        unusable => Declared { applies: true, same: false, effect: String::new(), spec: None, fault: unusable.err() },
    }
}

fn lay_beside(rows: &mut Rows, policy: &PolicyFacts, declared: &Declared) {
    let Some(kind) = [AUTHORIZATION.kind, RATE_LIMIT.kind].into_iter().find(|kind| *kind == policy.kind) else {
        return;
    };
    let name = format!("{}/{}", policy.namespace, policy.name);
    let condition = policy.condition("Accepted");
    let accepted = condition.map(|(status, _)| status.to_owned());
    let refusal = condition.filter(|(status, _)| *status != "True").map(|(_, message)| message.to_owned());
    let message = refusal.or_else(|| declared.fault.clone());
    match rows.get_mut(&(kind, name.clone())) {
        Some(row) => {
            row.accepted = accepted;
            row.message = row.message.take().or(message);
            if row.in_force != State::Unreadable && declared.applies {
                row.in_force = if declared.same { State::Yes } else { State::Outdated };
            }
        }
        None if declared.applies => {
            let (effect, spec) = (declared.effect.clone(), declared.spec.clone());
            let row = InForce { kind, policy: name.clone(), in_force: State::No, effect, accepted, message, spec };
            rows.insert((kind, name), row);
        }
        None => {}
    }
}

fn parse(kind: &str, namespace: &str, name: &str, spec: &Value) -> Result<Resource, String> {
    let document = json!({
        "apiVersion": weft_api::resource::API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    });
    let parsed = parse_documents(&document.to_string()).pop();
    parsed.ok_or("it is empty")?.map_err(|fault| fault.to_string())
}

fn effect(spec: &Value) -> String {
    let rules = spec["rules"].as_array().map_or(0, Vec::len);
    let mode =
        spec["mode"].as_str().filter(|mode| *mode != "Enforce").map(|mode| format!(" ({mode})")).unwrap_or_default();
    format!("{}{mode}, {}", spec["action"].as_str().unwrap_or("?"), crate::kubernetes::output::counted(rules, "rule"))
}

fn limits_effect(limits: &[Limit]) -> String {
    let limit = |limit: &Limit| format!("{} {} per {}", limit.limit, limit.requests, millis(limit.window_ms));
    limits.iter().map(limit).collect::<Vec<_>>().join(", ")
}

fn millis(millis: u64) -> String {
    if millis.is_multiple_of(1_000) { format!("{}s", millis / 1_000) } else { format!("{millis}ms") }
}

fn limit_json(limit: &Limit) -> Value {
    json!({"name": limit.limit, "requests": limit.requests, "window": format!("{}ms", limit.window_ms), "burst": limit.burst, "per": limit.per})
}

pub(super) fn table(rows: &[InForce]) -> Table {
    let mut table = Table::new(vec![
        Column::Always("KIND"),
        Column::Always("POLICY"),
        Column::Always("IN FORCE"),
        Column::Always("EFFECT"),
        Column::Always("ACCEPTED"),
        Column::Always("MESSAGE"),
        Column::Wide("SPEC"),
    ]);
    for row in rows {
        let in_force = match row.in_force {
            State::Yes => "yes",
            State::Outdated => "outdated",
            State::No => "no",
            State::Removed => "removed",
            State::Unreadable => "unreadable",
        };
        table.row(vec![
            row.kind.to_owned(),
            row.policy.clone(),
            in_force.to_owned(),
            row.effect.clone(),
            row.accepted.clone().unwrap_or_default(),
            row.message.clone().unwrap_or_default(),
            row.spec.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(kind: &str, name: &str, spec: Value) -> PolicyFacts {
        PolicyFacts::of(&json!({
            "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
            "status": {"conditions": [{"type": "Accepted", "status": "True", "message": ""}]},
        }))
    }

    fn allow(method: &str) -> Value {
        json!({"action": "Allow", "rules": [{"to": [{"methods": [method]}]}]})
    }

    /// The spec as a sidecar shows it: parsed, and written out whole.
    fn at_sidecar(name: &str, spec: Value) -> Value {
        match parse("AuthorizationPolicy", "shop", name, &spec).expect("valid") {
            Resource::AuthorizationPolicy(policy) => {
                json!({"name": policy.name.to_string(), "spec": policy.spec_json()})
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_sidecars_word_and_the_declared_are_laid_side_by_side() {
        let config: SidecarConfig = serde_json::from_value(json!({
            "identity": {"spiffe_id": "spiffe://cluster.local/ns/shop/sa/inventory"},
            "configuration": {
                "default_policy": "deny",
                "policies": [
                    at_sidecar("same", allow("GET")),
                    at_sidecar("changed", allow("GET")),
                    at_sidecar("gone", allow("GET")),
                    at_sidecar("moved", allow("GET")),
                    {"name": "shop/newer", "unreadable": "unknown field"},
                ],
                "rate_limits": [
                    {"policy": "shop/fair", "limit": "all", "requests": 5, "window_ms": 1000, "burst": 5, "per": "All"},
                    {"policy": "shop/tight", "limit": "all", "requests": 5, "window_ms": 1000, "burst": 5, "per": "All"},
                ],
            },
        }))
        .expect("a configuration");
        let limit = |requests| json!({"limits": [{"name": "all", "requests": requests, "window": "1s"}]});
        let elsewhere = json!({"action": "Allow", "targetRefs": [{"kind": "Service", "name": "orders"}]});
        let of_service = json!({"action": "Deny", "targetRefs": [{"kind": "Service", "name": "inventory"}]});
        let declared = [
            declared("AuthorizationPolicy", "same", allow("GET")),
            declared("AuthorizationPolicy", "changed", allow("POST")),
            declared("AuthorizationPolicy", "moved", elsewhere.clone()),
            declared("AuthorizationPolicy", "elsewhere", elsewhere),
            declared("AuthorizationPolicy", "fresh", of_service),
            declared("AuthorizationPolicy", "newer", allow("GET")),
            declared("AuthorizationPolicy", "wrong", json!({"action": "Perhaps"})),
            declared("RateLimitPolicy", "fair", limit(5)),
            declared("RateLimitPolicy", "tight", limit(1)),
        ];
        let pod = PodFacts { namespace: "shop".into(), name: "inventory-1".into(), ..PodFacts::default() };
        let rows = compare(&config, &declared, &pod, &[NamespacedName::new("shop", "inventory")]);
        let states: Vec<(&str, State)> = rows.iter().map(|row| (row.policy.as_str(), row.in_force)).collect();
        assert_eq!(
            states,
            [
                ("shop/changed", State::Outdated),
                ("shop/fresh", State::No),
                ("shop/gone", State::Removed),
                ("shop/moved", State::Removed),
                ("shop/newer", State::Unreadable),
                ("shop/same", State::Yes),
                ("shop/wrong", State::No),
                ("shop/fair", State::Yes),
                ("shop/tight", State::Outdated),
            ]
        );
        let wrong = rows.iter().find(|row| row.policy == "shop/wrong").expect("shown");
        assert!(wrong.message.as_ref().is_some_and(|message| message.contains("Perhaps")), "{wrong:?}");
        assert_eq!(config.default_policy().as_deref(), Some("deny"));
        assert!(table(&rows).render(false).contains("all 5 per 1s"), "{}", table(&rows).render(false));
    }

    #[test]
    fn a_sidecar_without_configuration_has_nothing_in_force() {
        let config: SidecarConfig =
            serde_json::from_value(json!({"identity": null, "configuration": null})).expect("valid");
        let pod = PodFacts { namespace: "shop".into(), ..PodFacts::default() };
        let rows = compare(&config, &[declared("AuthorizationPolicy", "p", allow("GET"))], &pod, &[]);
        assert_eq!(rows.iter().map(|row| row.in_force).collect::<Vec<_>>(), [State::No]);
        assert_eq!((config.identity(), config.default_policy()), (None, None));
    }
}
