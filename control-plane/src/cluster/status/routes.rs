//! The status of a route: `status.parents`, one entry for each Service that it is attached to (Gateway API). Pure.
//!
//! Other controllers write into the same list, each for its own parents: their entries, and parents that are no Services, are
//! left as they are.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use weft_api::resource::ParentRef;

use super::conditions::{ACCEPTED, LONGEST_MESSAGE, RESOLVED_REFS, list};
use super::plan::Change;
use crate::compile::routes::{Attached, ParentState, RouteState};
use crate::source::kubernetes::objects::Object;

/// Who writes, for those who read `status.parents`.
const CONTROLLER: &str = "weft.dev/mesh";
/// Some rules of an accepted route cannot be done.
const PARTIALLY_INVALID: &str = "PartiallyInvalid";
/// Entries that the API takes.
const MAX_PARENTS: usize = 32;

/// What the status says of one parent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parent {
    reference: Value,
    pub(super) conditions: Vec<Condition>,
}

/// What is to be said of the Services that the route is attached to. `state`: how the version that is in force fares.
/// `before`: what is said now, from which conditions that did not change keep their time.
pub(super) fn wanted(object: &Object, state: Option<&RouteState>, before: &[Parent], now: Timestamp) -> Vec<Parent> {
    let Some(route) = &object.route else { return before.to_vec() };
    let services = route.parents.iter().filter(|parent| parent.service(&route.name.namespace).is_some());
    services
        .map(|parent| {
            let reference = reference(parent);
            let old = before.iter().find(|old| old.reference == reference);
            let verdicts = verdicts(object, state, parent);
            let condition = |(type_, Verdict { status, reason, message }): (&str, Verdict)| {
                let known = old.into_iter().flat_map(|old| &old.conditions);
                let same = known.into_iter().find(|known| known.type_ == type_ && known.status == status);
                Condition {
                    type_: type_.to_owned(),
                    status: status.to_owned(),
                    reason: reason.to_owned(),
                    message: message[..message.floor_char_boundary(LONGEST_MESSAGE)].to_owned(),
                    last_transition_time: same.map_or(Time(now), |known| known.last_transition_time.clone()),
                    observed_generation: Some(object.generation),
                }
            };
            Parent { reference, conditions: verdicts.into_iter().map(condition).collect() }
        })
        .collect()
}

/// Our entries of a status. What cannot be read is as if it were not there.
pub(super) fn ours(status: &Value) -> Vec<Parent> {
    let entries = status["parents"].as_array().into_iter().flatten().filter(|entry| is_ours(entry));
    let conditions = |entry: &Value| serde_json::from_value(entry["conditions"].clone()).unwrap_or_default();
    entries.map(|entry| Parent { reference: entry["parentRef"].clone(), conditions: conditions(entry) }).collect()
}

/// How `wanted` differs from what our entries say. `None`: they say that already.
pub(super) fn change(before: &[Parent], wanted: &[Parent]) -> Option<Change> {
    if before == wanted {
        return None;
    }
    let said = |parents: &[Parent]| -> Vec<_> {
        let all = parents.iter().map(|Parent { reference, conditions }| {
            let conditions = conditions.iter().map(|condition| {
                let Condition { type_, status, reason, observed_generation, .. } = condition;
                (type_.clone(), status.clone(), reason.clone(), *observed_generation)
            });
            (reference.clone(), conditions.collect::<Vec<_>>())
        });
        all.collect()
    };
    Some(if said(before) == said(wanted) { Change::Words } else { Change::Status })
}

/// `status` with our entries replaced by `wanted`.
pub(super) fn with(status: &Value, wanted: &[Parent]) -> Value {
    let mut status = status.as_object().cloned().unwrap_or_default();
    let others = status.get("parents").and_then(Value::as_array).into_iter().flatten();
    let others = others.filter(|entry| !is_ours(entry)).cloned();
    let ours = wanted.iter().map(|Parent { reference, conditions }| {
        json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions})
    });
    let parents: Vec<Value> = others.chain(ours).take(MAX_PARENTS).collect();
    status.insert("parents".to_owned(), parents.into());
    Value::Object(status)
}

fn is_ours(entry: &Value) -> bool {
    entry["controllerName"] == CONTROLLER
}

/// The parent as it stands in the route.
fn reference(parent: &ParentRef) -> Value {
    let ParentRef { group, kind, namespace, name, section_name, port } = parent;
    let mut reference = json!({"group": group, "kind": kind, "name": name});
    for (key, value) in [("namespace", namespace), ("sectionName", section_name)] {
        if let Some(value) = value {
            reference[key] = value.as_str().into();
        }
    }
    if let Some(port) = port {
        reference["port"] = (*port).into();
    }
    reference
}

struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn verdict(status: &'static str, reason: &'static str, message: impl Into<String>) -> Verdict {
    Verdict { status, reason, message: message.into() }
}

fn verdicts(object: &Object, state: Option<&RouteState>, parent: &ParentRef) -> Vec<(&'static str, Verdict)> {
    if let Some(error) = &object.error {
        let then = match state {
            Some(_) => "what was last read without fault stays in force",
            None => "it is left out",
        };
        let why = format!("{}; {then}", error.trim_end_matches('.'));
        let unknown = "it must be understood before its references can be looked up";
        return vec![
            (ACCEPTED, verdict("False", "UnsupportedValue", why)),
            (RESOLVED_REFS, verdict("Unknown", "Pending", unknown)),
        ];
    }
    let of_parent = state.into_iter().flat_map(|state| state.parents.iter().map(move |found| (state, found)));
    let Some((state, found)) = of_parent.into_iter().find(|(_, found)| found.parent == *parent) else {
        return Vec::new();
    };
    let accepted = accepted(state, found);
    let dropped = accepted.status == "True" && !state.refused_rules.is_empty();
    let mut verdicts = vec![(ACCEPTED, accepted), (RESOLVED_REFS, resolved_refs(found))];
    if dropped {
        let why = format!("Dropped Rule: {}; requests that it matches get 500", list(&state.refused_rules));
        verdicts.push((PARTIALLY_INVALID, verdict("True", "UnsupportedValue", why)));
    }
    verdicts
}

fn accepted(state: &RouteState, found: &ParentState) -> Verdict {
    let parent = &found.parent;
    let name = parent.service(&state.route.name.namespace).map(|name| name.to_string()).unwrap_or_default();
    match found.attached {
        Attached::Yes if !state.refused_rules.is_empty() && state.refused_rules.len() == state.route.rules.len() => {
            let why = format!("none of its rules can be done, and requests get 500: {}", list(&state.refused_rules));
            verdict("False", "UnsupportedValue", why)
        }
        Attached::Yes => verdict("True", "Accepted", "it holds for calls to the Service"),
        Attached::NoService => verdict(
            "False",
            "NoMatchingParent",
            format!("there is no Service {name}; correct parentRefs, or create it"),
        ),
        Attached::NoAddress => {
            let why = format!("Service {name} has no address of its own, so calls go to its pods and not to it");
            verdict("False", "NoMatchingParent", why)
        }
        Attached::NoPort => {
            let why = format!("Service {name} has no TCP port that parentRefs names; correct port or sectionName");
            verdict("False", "NoMatchingParent", why)
        }
        Attached::Opaque => {
            let why =
                format!("the port of Service {name} is declared to speak no HTTP; correct its appProtocol or name");
            verdict("False", "UnsupportedProtocol", why)
        }
        Attached::Conflict => {
            let why = format!("a GRPCRoute holds at the port of Service {name}, and no HTTPRoute beside it");
            verdict("False", "Conflicted", why)
        }
        Attached::TooMany => {
            let why = format!("Service {name} has too many or too large routes, of which the oldest hold; merge some");
            verdict("False", "UnsupportedValue", why)
        }
    }
}

fn resolved_refs(found: &ParentState) -> Verdict {
    let Some((reason, _)) = found.faults.first() else {
        return verdict("True", "ResolvedRefs", "all backends exist");
    };
    let mut words: Vec<String> = Vec::new();
    for (_, why) in &found.faults {
        if !words.contains(why) {
            words.push(why.clone());
        }
    }
    verdict("False", reason, list(&words))
}

#[cfg(test)]
mod tests;
