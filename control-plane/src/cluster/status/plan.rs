//! What is to be written, and when. Pure.
//!
//! What gets worse by itself must last: each starting pod is a sidecar that has not confirmed yet, and would make every
//! policy that applies to it blink. A mere message, such as a count, is brought up to date now and then.
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::Value;

use super::conditions::{ACCEPTED, TYPES};

/// For how long it must be worse before it is written.
const WORSE_FOR: Duration = Duration::from_secs(15);
/// How often a message is brought up to date.
const MESSAGE_EVERY: Duration = Duration::from_secs(10);

/// How what is to be said differs from what the status says; what is written first comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// The generation or the status of a condition.
    Status,
    /// Something that was true is no longer, and nobody changed the object.
    Worse,
    /// Words alone.
    Words,
}

impl Change {
    /// Whether it is written when it has been so for `since`.
    pub(super) fn is_due(self, since: Duration) -> bool {
        match self {
            Self::Status => true,
            Self::Worse => since >= WORSE_FOR,
            Self::Words => since >= MESSAGE_EVERY,
        }
    }
}

/// Our conditions of a status. What cannot be read is as if it were not there.
pub(super) fn ours(status: &Value) -> Vec<Condition> {
    let all = status["conditions"].as_array().into_iter().flatten();
    all.filter_map(|condition| serde_json::from_value(condition.clone()).ok())
        .filter(|condition: &Condition| TYPES.contains(&condition.type_.as_str()))
        .collect()
}

/// How `wanted` differs from `status`, whose own conditions are `before`. `None`: it says that already.
pub(super) fn change(status: &Value, before: &[Condition], wanted: &[Condition], generation: i64) -> Option<Change> {
    let observed = status["observedGeneration"].as_i64();
    if observed == Some(generation) && before == wanted {
        return None;
    }
    let of = |conditions: &[Condition], type_: &str| -> Option<String> {
        conditions.iter().find(|condition| condition.type_ == type_).map(|condition| condition.status.clone())
    };
    if observed != Some(generation) || before.len() != wanted.len() {
        return Some(Change::Status);
    }
    let changed: Vec<&str> = TYPES.into_iter().filter(|type_| of(before, type_) != of(wanted, type_)).collect();
    if changed.is_empty() {
        return Some(Change::Words);
    }
    let worse = |type_: &&str| *type_ != ACCEPTED && of(before, type_).as_deref() == Some("True");
    Some(if changed.iter().any(worse) && !changed.contains(&ACCEPTED) { Change::Worse } else { Change::Status })
}

/// `status` with our conditions replaced by `wanted`; what others wrote into it stays.
pub(super) fn with(status: &Value, wanted: &[Condition], generation: i64) -> Value {
    let mut status = status.as_object().cloned().unwrap_or_default();
    let others = status.get("conditions").and_then(Value::as_array).into_iter().flatten();
    let others = others.filter(|condition| !condition["type"].as_str().is_some_and(|type_| TYPES.contains(&type_)));
    let wanted = wanted.iter().map(|condition| serde_json::to_value(condition).unwrap_or_default());
    let conditions: Vec<Value> = wanted.chain(others.cloned()).collect();
    status.insert("observedGeneration".to_owned(), generation.into());
    status.insert("conditions".to_owned(), conditions.into());
    Value::Object(status)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::super::conditions::{PROGRAMMED, RESOLVED_REFS};
    use super::*;

    fn condition(type_: &str, status: &str, message: &str) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: "Reason".to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(Timestamp::from_second(1_000).expect("valid")),
            observed_generation: Some(3),
        }
    }

    /// Accepted, ResolvedRefs, Programmed: `TTF`.
    fn all(statuses: &str, message: &str) -> Vec<Condition> {
        let status = |letter| if letter == 'T' { "True" } else { "False" };
        TYPES.iter().zip(statuses.chars()).map(|(type_, letter)| condition(type_, status(letter), message)).collect()
    }

    #[test]
    fn what_somebody_changed_is_written_at_once_what_got_worse_by_itself_must_last() {
        for (case, before, observed, wanted, expected) in [
            ("nothing is written yet", all("", ""), None, all("TTT", "m"), Some(Change::Status)),
            ("it says that already", all("TTT", "m"), Some(3), all("TTT", "m"), None),
            ("another generation", all("TTT", "m"), Some(2), all("TTT", "m"), Some(Change::Status)),
            ("another generation is worse", all("TTT", "m"), Some(2), all("TTF", "m"), Some(Change::Status)),
            ("better", all("TTF", "m"), Some(3), all("TTT", "m"), Some(Change::Status)),
            ("a pod starts", all("TTT", "m"), Some(3), all("TTF", "m"), Some(Change::Worse)),
            ("no workload any more", all("TTT", "m"), Some(3), all("TFF", "m"), Some(Change::Worse)),
            ("not understood any more", all("TTT", "m"), Some(3), all("FTF", "m"), Some(Change::Status)),
            ("another count", all("TTF", "m"), Some(3), all("TTF", "n"), Some(Change::Words)),
        ] {
            let status = observed.map_or(Value::Null, |generation: i64| json!({"observedGeneration": generation}));
            assert_eq!(change(&status, &before, &wanted, 3), expected, "{case}");
        }
    }

    #[test]
    fn nothing_is_written_more_often_than_it_is_worth() {
        for (change, seconds, expected) in [
            (Change::Status, 0, true),
            (Change::Worse, 14, false),
            (Change::Worse, 15, true),
            (Change::Words, 9, false),
            (Change::Words, 10, true),
        ] {
            assert_eq!(change.is_due(Duration::from_secs(seconds)), expected, "{change:?} after {seconds}s");
        }
    }

    #[test]
    fn what_others_wrote_into_a_status_stays() {
        let foreign = json!({"type": "example.org/Checked", "status": "True"});
        let before = json!({"note": 1, "conditions": [foreign, {"type": PROGRAMMED, "status": "False"}, {"type": RESOLVED_REFS}]});
        let after = with(&before, &all("TTT", "m"), 3);
        assert_eq!((&after["note"], &after["observedGeneration"]), (&json!(1), &json!(3)));
        let types: Vec<_> = after["conditions"].as_array().expect("a list").iter().map(|c| c["type"].clone()).collect();
        assert_eq!(types, [ACCEPTED, RESOLVED_REFS, PROGRAMMED, "example.org/Checked"]);
        assert_eq!(ours(&after), all("TTT", "m"));
    }

    #[test]
    fn a_status_that_makes_no_sense_is_replaced() {
        for status in
            [Value::Null, json!("x"), json!({"conditions": "x"}), json!({"conditions": [1, {"type": ACCEPTED}]})]
        {
            assert_eq!(ours(&status), [], "{status}");
            let after = with(&status, &all("TTT", "m"), 3);
            assert_eq!(ours(&after), all("TTT", "m"), "{status}");
        }
    }
}
