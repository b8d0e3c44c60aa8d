//! What the status of one of Weft's own objects says. Pure: what is known, and the clock, are arguments.
//!
//! `Accepted`: whether it can be understood. `ResolvedRefs`: whether all exists that it refers to (policies only).
//! `Programmed`: whether all sidecars that are to run it confirmed that they do. What cannot be relied on is never `True`.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::publish::programmed::PolicyTarget;
use crate::replicas::count::Programmed;
use crate::source::kubernetes::NAME_OF_A_POD;
use crate::source::kubernetes::objects::Object;
use crate::source::{Kind, ResourceKey};

/// Types of the conditions, in the order they are written.
pub(super) const ACCEPTED: &str = "Accepted";
pub(super) const RESOLVED_REFS: &str = "ResolvedRefs";
pub(super) const PROGRAMMED: &str = "Programmed";
pub(super) const TYPES: [&str; 3] = [ACCEPTED, RESOLVED_REFS, PROGRAMMED];

/// What a message may be long.
pub(super) const LONGEST_MESSAGE: usize = 4096;
/// Names that a message lists; of more it only says how many.
const NAMED: usize = 5;

/// What is known of an object beyond itself.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// What the policy applies to; `None`: nothing of it is in force, or it is no policy.
    pub target: Option<&'a PolicyTarget>,
    /// How far it has come; `None`: nothing of it is in force.
    pub programmed: Option<Programmed>,
    /// Replicas that did not say how their sidecars fare.
    pub silent: &'a [String],
}

/// What the status is to say now. `before` is what it says, from which conditions that did not change keep their time.
pub fn conditions(
    key: &ResourceKey,
    object: &Object,
    before: &[Condition],
    facts: &Facts<'_>,
    now: Timestamp,
) -> Vec<Condition> {
    let is_policy = key.kind != Kind::Workload;
    let verdicts = [
        Some((ACCEPTED, accepted(key, object, facts))),
        is_policy.then(|| (RESOLVED_REFS, resolved_refs(key, facts))),
        Some((PROGRAMMED, programmed(key, object, facts))),
    ];
    let condition = |(type_, Verdict { status, reason, message }): (&str, Verdict)| {
        let same = before.iter().find(|before| before.type_ == type_ && before.status == status.as_str());
        Condition {
            type_: type_.to_owned(),
            status: status.as_str().to_owned(),
            reason: reason.to_owned(),
            message: message[..message.floor_char_boundary(LONGEST_MESSAGE)].to_owned(),
            last_transition_time: same.map_or(Time(now), |before| before.last_transition_time.clone()),
            observed_generation: Some(object.generation),
        }
    };
    verdicts.into_iter().flatten().map(condition).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

struct Verdict {
    status: Status,
    reason: &'static str,
    message: String,
}

fn verdict(status: Status, reason: &'static str, message: impl Into<String>) -> Verdict {
    Verdict { status, reason, message: message.into() }
}

fn accepted(key: &ResourceKey, object: &Object, facts: &Facts<'_>) -> Verdict {
    let Some(error) = &object.error else { return verdict(Status::True, "Accepted", "it is understood") };
    if error == NAME_OF_A_POD {
        return verdict(Status::False, "Conflict", error.as_str());
    }
    let then = match key.kind {
        _ if facts.programmed.is_some() => "what was last read without fault stays in force",
        Kind::AuthorizationPolicy => "it was never good, so every call in its namespace is refused",
        _ => "it is left out",
    };
    verdict(Status::False, "Invalid", format!("{}; {then}", error.trim_end_matches('.')))
}

fn resolved_refs(key: &ResourceKey, facts: &Facts<'_>) -> Verdict {
    let Some(target) = facts.target else {
        return verdict(Status::Unknown, "Invalid", "it must be understood before its references can be looked up");
    };
    let namespace = &key.name.namespace;
    if !target.missing_services.is_empty() {
        let missing = list(&target.missing_services);
        return verdict(
            Status::False,
            "TargetNotFound",
            format!("there is no Service {missing} in namespace {namespace}; correct targetRefs, or create it"),
        );
    }
    if target.workloads.is_empty() {
        return verdict(
            Status::False,
            "NoWorkload",
            "it applies to no workload; correct its targetRefs or selector, or the labels of the pods",
        );
    }
    if !target.missing_accounts.is_empty() {
        let missing: Vec<String> = target.missing_accounts.iter().map(ToString::to_string).collect();
        let missing = list(&missing);
        return verdict(
            Status::False,
            "ServiceAccountNotFound",
            format!("there is no ServiceAccount {missing}; correct serviceAccounts, or create it"),
        );
    }
    verdict(Status::True, "ResolvedRefs", "all that it refers to exists")
}

fn programmed(key: &ResourceKey, object: &Object, facts: &Facts<'_>) -> Verdict {
    let Some(programmed) = &facts.programmed else {
        return verdict(Status::False, "Invalid", "no sidecar runs it");
    };
    let Programmed { workloads, expected, confirmed, .. } = *programmed;
    let count = format!("{confirmed} of {expected} {}", if expected == 1 { "sidecar" } else { "sidecars" });
    if object.error.as_deref() == Some(NAME_OF_A_POD) {
        return verdict(Status::False, "Conflict", "no sidecar runs it");
    }
    if object.error.is_some() {
        let message = format!("this generation is not in force; {count} confirmed what was last read without fault");
        return verdict(Status::False, "Invalid", message);
    }
    match (key.kind, workloads, expected) {
        (Kind::Workload, 0, _) => {
            return verdict(Status::True, "NotMeshed", "it is declared without a sidecar (mesh: false)");
        }
        (Kind::Workload, _, 0) => return verdict(Status::False, "NoSidecar", "its sidecar is stopping"),
        (_, 0, _) => return verdict(Status::False, "NoWorkload", "it applies to no workload, so no sidecar runs it"),
        (_, _, 0) => {
            let message = format!(
                "none of the {workloads} workloads that it applies to has a sidecar, so nothing enforces it; annotate \
                 their namespace with weft.dev/inject: enabled, and restart them"
            );
            return verdict(Status::False, "NoSidecar", message);
        }
        _ => {}
    }
    if confirmed == expected {
        return verdict(Status::True, "Programmed", format!("{count} confirmed"));
    }
    if let Some((workload, why)) = &programmed.refused {
        let message = format!("{count} confirmed; {workload} cannot use its configuration and keeps the last: {why}");
        return verdict(Status::False, "Refused", message);
    }
    if !facts.silent.is_empty() {
        let silent = list(facts.silent);
        let message =
            format!("{count} confirmed; not counted are those of control plane replicas that do not answer: {silent}");
        return verdict(Status::Unknown, "ReplicaSilent", message);
    }
    let more = (expected - confirmed).saturating_sub(programmed.waiting.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    verdict(Status::False, "Pending", format!("{count} confirmed; waiting for {}{more}", programmed.waiting.join(", ")))
}

pub(super) fn list(names: &[String]) -> String {
    let named = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
