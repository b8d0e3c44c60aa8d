//! Promises about what is found of an installation.
use super::super::finding::Verdict;
use super::*;

fn crds() -> Vec<CrdFacts> {
    let crd = |name: &str| CrdFacts {
        name: name.into(),
        established: true,
        versions: vec![API_VERSION.into()],
        weft: Some("0.1.0".into()),
        release: Some("weft".into()),
    };
    policy_kinds::ALL.iter().map(|kind| crd(kind.plural)).collect()
}

fn deployment_of(wanted: i32, ready: i32) -> DeploymentFacts {
    DeploymentFacts { namespace: "weft-system".into(), wanted, ready, updated: wanted }
}

fn facts(crds: Vec<CrdFacts>, deployments: Vec<DeploymentFacts>, leases: Vec<LeaseFacts>) -> InstallFacts {
    InstallFacts { crds: Ok(crds), deployments: Ok(deployments), leases: Ok(leases), release: Ok(None) }
}

fn lease(renewed: Option<i64>) -> LeaseFacts {
    LeaseFacts { namespace: "weft-system".into(), holder: Some("weft-1".into()), renewed, duration: 15 }
}

fn replica(ready: bool) -> PodFacts {
    PodFacts { name: "weft-1".into(), namespace: "weft-system".into(), ready, ..PodFacts::default() }
}

fn verdicts(group: &Group) -> Vec<(&'static str, Verdict)> {
    group.findings.iter().map(|finding| (finding.check, finding.verdict)).collect()
}

#[test]
fn what_is_installed_is_judged_part_by_part() {
    use Verdict::{Failure, Ok as Well, Warning};
    let pending = {
        let mut crds = crds();
        crds[0].established = false;
        crds
    };
    let ready = || vec![replica(true)];
    let deployment = deployment_of;
    for (case, facts, replicas, expected) in [
        ("nothing", facts(vec![], vec![], vec![]), vec![], vec![("kinds", Failure), ("deployment", Failure)]),
        (
            "all",
            facts(crds(), vec![deployment(2, 2)], vec![lease(Some(990))]),
            ready(),
            vec![("kinds", Well), ("deployment", Well), ("replicas", Well), ("leader", Well)],
        ),
        (
            "a kind is not established, a replica is away",
            facts(pending, vec![deployment(2, 1)], vec![lease(Some(990))]),
            vec![replica(true), replica(false)],
            vec![("kinds", Failure), ("deployment", Warning), ("replicas", Warning), ("leader", Well)],
        ),
        (
            "no replica is ready and the leader is gone",
            facts(crds(), vec![deployment(1, 0)], vec![lease(Some(900))]),
            vec![replica(false)],
            vec![("kinds", Well), ("deployment", Failure), ("replicas", Failure), ("leader", Failure)],
        ),
        (
            "scaled to nothing",
            facts(crds(), vec![deployment(0, 0)], vec![]),
            vec![],
            vec![("kinds", Well), ("deployment", Failure), ("replicas", Failure), ("leader", Failure)],
        ),
        (
            "two meshes",
            facts(crds(), vec![deployment(1, 1), deployment(1, 1)], vec![lease(Some(1_000))]),
            ready(),
            vec![("kinds", Well), ("deployment", Failure), ("replicas", Well), ("leader", Well)],
        ),
    ] {
        assert_eq!(verdicts(&judge_after(&facts, &Ok(replicas), "weft-system", 1_000)), expected, "{case}");
    }
}

#[test]
fn what_an_installation_would_meet_is_judged_before_it() {
    use Verdict::{Failure, Ok as Well, Warning};
    let release = |name: &str, namespace: &str| Ok(Some((name.to_owned(), namespace.to_owned())));
    let foreign = crds().into_iter().map(|crd| CrdFacts { release: None, ..crd }).collect::<Vec<_>>();
    let newer = crds().into_iter().map(|crd| CrdFacts { versions: vec!["v2".into()], ..crd }).collect::<Vec<_>>();
    for (case, release, crds, expected) in [
        ("an empty cluster", Ok(None), vec![], [("installed", Well), ("kinds", Well)]),
        ("an upgrade", release("weft", "weft-system"), crds(), [("installed", Warning), ("kinds", Well)]),
        ("another namespace", release("weft", "mesh"), crds(), [("installed", Failure), ("kinds", Well)]),
        ("what was left behind", release("", ""), foreign, [("installed", Failure), ("kinds", Failure)]),
        ("another version", Ok(None), newer, [("installed", Well), ("kinds", Failure)]),
        ("no permission", Err("forbidden".to_owned()), vec![], [("installed", Warning), ("kinds", Well)]),
    ] {
        let facts = InstallFacts { release, ..facts(crds, vec![], vec![]) };
        assert_eq!(verdicts(&judge_before(&facts, "weft-system")), expected, "{case}");
    }
}

#[test]
fn what_may_not_be_seen_is_a_warning_that_says_so() {
    let facts = InstallFacts {
        crds: Err("you may not".into()),
        deployments: Err("you may not".into()),
        leases: Err("you may not".into()),
        release: Err("you may not".into()),
    };
    let group = judge_after(&facts, &Err("you may not".into()), "weft-system", 0);
    assert!(
        group
            .findings
            .iter()
            .all(|finding| finding.verdict == Verdict::Warning && finding.detail.contains("you may not"))
    );
}
