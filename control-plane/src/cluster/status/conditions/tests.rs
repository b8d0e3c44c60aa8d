//! One row for each thing that a status can say.
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
        route: None,
        status: serde_json::Value::Null,
    }
}

fn count(workloads: usize, expected: usize, confirmed: usize) -> Programmed {
    let waiting = ["a", "b", "c"].iter().take((expected - confirmed).min(3)).map(|name| (*name).to_owned()).collect();
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
