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
const LONGEST_MESSAGE: usize = 4096;
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
    verdict(Status::False, "Invalid", format!("{error}; {then}"))
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

fn list(names: &[String]) -> String {
    let named = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use weft_api::resource::NamespacedName;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("valid")
    }

    fn key(kind: Kind) -> ResourceKey {
        ResourceKey { kind, name: NamespacedName::new("shop", "callers") }
    }

    fn object(error: Option<&str>) -> Object {
        Object {
            uid: "u".to_owned(),
            generation: 3,
            error: error.map(str::to_owned),
            content: None,
            status: serde_json::Value::Null,
        }
    }

    fn count(workloads: usize, expected: usize, confirmed: usize) -> Programmed {
        let waiting =
            ["a", "b", "c"].iter().take((expected - confirmed).min(3)).map(|name| (*name).to_owned()).collect();
        Programmed { workloads, expected, confirmed, waiting, refused: None }
    }

    fn target(services: &[&str], accounts: &[&str], workloads: u32) -> PolicyTarget {
        PolicyTarget {
            fingerprint: 7,
            missing_services: services.iter().map(|name| (*name).to_owned()).collect(),
            missing_accounts: accounts.iter().map(|name| NamespacedName::new("shop", *name)).collect(),
            workloads: (0..workloads).collect(),
        }
    }

    /// `Accepted=True:Accepted ResolvedRefs=…`, and all messages.
    fn said(kind: Kind, error: Option<&str>, facts: &Facts<'_>) -> (String, String) {
        let all = conditions(&key(kind), &object(error), &[], facts, at(1_000));
        let short = all.iter().map(|c| format!("{}={}:{}", c.type_, c.status, c.reason)).collect::<Vec<_>>().join(" ");
        (short, all.iter().map(|c| c.message.as_str()).collect::<Vec<_>>().join(" | "))
    }

    #[test]
    fn a_policy_s_status_says_whether_it_is_understood_what_is_missing_and_how_far_it_has_come() {
        let policy = Kind::AuthorizationPolicy;
        let refused = Programmed { refused: Some(("b".to_owned(), "no".to_owned())), ..count(3, 3, 2) };
        let silent = ["weft-control-plane-2".to_owned()];
        let none: &[String] = &[];
        for (case, kind, error, target, programmed, silent, expected, words) in [
            (
                "all well",
                policy,
                None,
                Some(target(&[], &[], 7)),
                Some(count(7, 7, 7)),
                none,
                "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs Programmed=True:Programmed",
                "7 of 7 sidecars confirmed",
            ),
            (
                "all well, one silent replica",
                policy,
                None,
                Some(target(&[], &[], 1)),
                Some(count(1, 1, 1)),
                &silent,
                "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs Programmed=True:Programmed",
                "1 of 1 sidecar confirmed",
            ),
            (
                "some have not confirmed",
                policy,
                None,
                Some(target(&[], &[], 7)),
                Some(count(7, 7, 5)),
                none,
                "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs Programmed=False:Pending",
                "5 of 7 sidecars confirmed; waiting for a, b",
            ),
            (
                "many have not confirmed",
                policy,
                None,
                Some(target(&[], &[], 7)),
                Some(count(7, 7, 0)),
                none,
                "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs Programmed=False:Pending",
                "0 of 7 sidecars confirmed; waiting for a, b, c and 4 more",
            ),
            (
                "one refused",
                policy,
                None,
                Some(target(&[], &[], 3)),
                Some(refused),
                none,
                "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs Programmed=False:Refused",
                "b cannot use its configuration and keeps the last: no",
            ),
            (
                "a replica is silent",
                policy,
                None,
                Some(target(&[], &[], 7)),
                Some(count(7, 7, 5)),
                &silent,
                "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs Programmed=Unknown:ReplicaSilent",
                "do not answer: weft-control-plane-2",
            ),
            (
                "nothing to apply to",
                policy,
                None,
                Some(target(&[], &[], 0)),
                Some(count(0, 0, 0)),
                none,
                "Accepted=True:Accepted ResolvedRefs=False:NoWorkload Programmed=False:NoWorkload",
                "correct its targetRefs or selector",
            ),
            (
                "no such Service",
                policy,
                None,
                Some(target(&["ordres"], &[], 0)),
                Some(count(0, 0, 0)),
                none,
                "Accepted=True:Accepted ResolvedRefs=False:TargetNotFound Programmed=False:NoWorkload",
                "no Service ordres in namespace shop",
            ),
            (
                "one Service of two",
                policy,
                None,
                Some(target(&["ordres"], &[], 2)),
                Some(count(2, 2, 2)),
                none,
                "Accepted=True:Accepted ResolvedRefs=False:TargetNotFound Programmed=True:Programmed",
                "no Service ordres",
            ),
            (
                "no such account",
                policy,
                None,
                Some(target(&[], &["ordres"], 2)),
                Some(count(2, 2, 2)),
                none,
                "Accepted=True:Accepted ResolvedRefs=False:ServiceAccountNotFound Programmed=True:Programmed",
                "no ServiceAccount shop/ordres",
            ),
            (
                "no sidecars",
                policy,
                None,
                Some(target(&[], &[], 2)),
                Some(count(2, 0, 0)),
                none,
                "Accepted=True:Accepted ResolvedRefs=True:ResolvedRefs Programmed=False:NoSidecar",
                "weft.dev/inject: enabled",
            ),
            (
                "broken, was good",
                policy,
                Some("spec.action: is missing"),
                Some(target(&[], &[], 2)),
                Some(count(2, 2, 2)),
                none,
                "Accepted=False:Invalid ResolvedRefs=True:ResolvedRefs Programmed=False:Invalid",
                "spec.action: is missing; what was last read without fault stays in force",
            ),
            (
                "broken, never good",
                policy,
                Some("bad"),
                None,
                None,
                none,
                "Accepted=False:Invalid ResolvedRefs=Unknown:Invalid Programmed=False:Invalid",
                "bad; it was never good, so every call in its namespace is refused",
            ),
            (
                "a broken limit, never good",
                Kind::RateLimitPolicy,
                Some("bad"),
                None,
                None,
                none,
                "Accepted=False:Invalid ResolvedRefs=Unknown:Invalid Programmed=False:Invalid",
                "bad; it is left out",
            ),
            (
                "a workload",
                Kind::Workload,
                None,
                None,
                Some(count(1, 1, 1)),
                none,
                "Accepted=True:Accepted Programmed=True:Programmed",
                "1 of 1 sidecar confirmed",
            ),
            (
                "a workload without sidecar",
                Kind::Workload,
                None,
                None,
                Some(count(0, 0, 0)),
                none,
                "Accepted=True:Accepted Programmed=True:NotMeshed",
                "mesh: false",
            ),
            (
                "a workload that stops",
                Kind::Workload,
                None,
                None,
                Some(count(1, 0, 0)),
                none,
                "Accepted=True:Accepted Programmed=False:NoSidecar",
                "stopping",
            ),
            (
                "a workload whose sidecar is away",
                Kind::Workload,
                None,
                None,
                Some(count(1, 1, 0)),
                none,
                "Accepted=True:Accepted Programmed=False:Pending",
                "waiting for a",
            ),
            (
                "a pod's name",
                Kind::Workload,
                Some(NAME_OF_A_POD),
                None,
                Some(count(1, 1, 1)),
                none,
                "Accepted=False:Conflict Programmed=False:Conflict",
                "give this Workload another name",
            ),
        ] {
            let facts = Facts { target: target.as_ref(), programmed, silent };
            let (short, messages) = said(kind, error, &facts);
            assert_eq!(short, expected, "{case}");
            assert!(messages.contains(words), "{case}: {messages}");
        }
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let (key, object) = (key(Kind::AuthorizationPolicy), object(None));
        let target = target(&[], &[], 2);
        let facts = |confirmed| Facts { target: Some(&target), programmed: Some(count(2, 2, confirmed)), silent: &[] };
        let first = conditions(&key, &object, &[], &facts(0), at(1_000));
        let second = conditions(&key, &object, &first, &facts(1), at(2_000));
        assert_ne!(first[2].message, second[2].message);
        assert!(second.iter().all(|condition| condition.last_transition_time == Time(at(1_000))));
        let third = conditions(&key, &object, &second, &facts(2), at(3_000));
        let times: Vec<_> = third.iter().map(|condition| condition.last_transition_time.0.as_second()).collect();
        assert_eq!(times, [1_000, 1_000, 3_000]);
        assert!(third.iter().all(|condition| condition.observed_generation == Some(3)));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "ä".repeat(LONGEST_MESSAGE);
        let all = conditions(&key(Kind::Workload), &object(Some(&long)), &[], &Facts::default(), at(1));
        assert_eq!(all[0].message.len(), LONGEST_MESSAGE);
    }
}
