//! Versions: this program's, the control plane's and the sidecars'. One minor version apart works, so that an upgrade can
//! take its time: the control plane first, sidecars as pods restart.
use std::collections::{BTreeMap, BTreeSet};

use super::Seen;
use super::finding::{Finding, Group};
use crate::kubernetes::names::VERSION;
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::output::{counted, some_of};

/// Major and minor version; patches are always compatible.
type Minor = (u64, u64);

pub(super) fn judge(replicas: &Seen<Vec<PodFacts>>, pods: &Seen<Vec<PodFacts>>) -> Group {
    let mut findings = Vec::new();
    let replicas = match replicas {
        Ok(replicas) => replicas.as_slice(),
        Err(why) => {
            findings.push(Finding::unseen("control plane", why));
            &[]
        }
    };
    let served: BTreeSet<&str> = replicas.iter().filter_map(|replica| replica.version.as_deref()).collect();
    if served.len() > 1 {
        let served: Vec<&str> = served.iter().copied().collect();
        findings.push(Finding::warning(
            "control plane",
            format!("its replicas are of different versions: {}", some_of(&served)),
            "wait for the upgrade to end: kubectl -n weft-system rollout status deployment weft-control-plane",
        ));
    }
    let newest = served.iter().copied().max_by_key(|version| minor(version));
    match newest {
        Some(version) => findings.push(command_line(version)),
        None => {
            findings.push(Finding::ok("command line", format!("{VERSION}, and no control plane to compare it with")))
        }
    }
    match pods {
        Err(why) => findings.push(Finding::unseen("sidecars", why)),
        Ok(pods) => findings.extend(newest.map(|version| sidecars(version, pods))),
    }
    Group::new("Versions", findings)
}

fn command_line(control_plane: &str) -> Finding {
    match apart(VERSION, control_plane) {
        Some(0) => Finding::ok("command line", format!("{VERSION}, control plane {control_plane}")),
        Some(1 | -1) => Finding::ok(
            "command line",
            format!("{VERSION}, control plane {control_plane}: one minor version apart, which works"),
        ),
        Some(_) => Finding::warning(
            "command line",
            format!("{VERSION}, but the control plane is {control_plane}"),
            "use the command line of the control plane's version: what is told here may be wrong",
        ),
        None => Finding::warning(
            "command line",
            format!("{VERSION}, but the control plane is '{control_plane}', which is no version"),
            "compare the two yourself; give images the tag of their version",
        ),
    }
}

fn sidecars(control_plane: &str, pods: &[PodFacts]) -> Finding {
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.alive) {
        if let Some(sidecar) = &pod.sidecar {
            versions.entry(sidecar.version.as_deref().unwrap_or("unknown")).or_default().push(pod.key());
        }
    }
    let of = |wanted: &dyn Fn(i64) -> bool| -> Vec<String> {
        versions
            .iter()
            .filter(|(version, _)| apart(version, control_plane).is_some_and(wanted))
            .map(|(version, pods)| format!("{} with {version} ({})", counted(pods.len(), "pod"), some_of(pods)))
            .collect()
    };
    let (newer, too_old, older) = (of(&|apart| apart > 0), of(&|apart| apart < -1), of(&|apart| apart == -1));
    if !newer.is_empty() {
        return Finding::failure(
            "sidecars",
            format!("newer than the control plane {control_plane}: {}", some_of(&newer)),
            "upgrade the control plane first: helm upgrade weft charts/weft --namespace weft-system",
        );
    }
    if !too_old.is_empty() {
        return Finding::failure(
            "sidecars",
            format!("more than one minor version older than the control plane {control_plane}: {}", some_of(&too_old)),
            "restart them: kubectl -n NAMESPACE rollout restart deployment,statefulset,daemonset",
        );
    }
    if !older.is_empty() {
        return Finding::warning(
            "sidecars",
            format!("one minor version older than the control plane {control_plane}: {}", some_of(&older)),
            "before the next upgrade restart them: kubectl -n NAMESPACE rollout restart deployment,statefulset,daemonset",
        );
    }
    let count: usize = versions.values().map(Vec::len).sum();
    let names: Vec<&str> = versions.keys().copied().collect();
    if count == 0 {
        return Finding::ok("sidecars", "there is none yet");
    }
    Finding::ok("sidecars", format!("{} with {}", counted(count, "pod"), some_of(&names)))
}

/// Minor versions that `version` is newer than `than`; other major versions are far apart. `None`: no version.
fn apart(version: &str, than: &str) -> Option<i64> {
    let ((major, minor), (than_major, than_minor)) = (minor(version)?, minor(than)?);
    let far = 1_000 * (i64::try_from(major).ok()? - i64::try_from(than_major).ok()?);
    Some(far + i64::try_from(minor).ok()? - i64::try_from(than_minor).ok()?)
}

fn minor(version: &str) -> Option<Minor> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::kubernetes::objects::SidecarFacts;

    fn pod(version: Option<&str>) -> PodFacts {
        let sidecar = SidecarFacts { version: version.map(str::to_owned), ..SidecarFacts::default() };
        PodFacts { name: "a".into(), alive: true, sidecar: Some(sidecar), ..PodFacts::default() }
    }

    #[test]
    fn sidecars_may_be_one_minor_version_behind() {
        for (sidecars, verdict) in [
            (vec![], Verdict::Ok),
            (vec!["0.3.0", "0.3.7"], Verdict::Ok),
            (vec!["0.3.0", "0.2.9"], Verdict::Warning),
            (vec!["0.1.0"], Verdict::Failure),
            (vec!["0.4.0"], Verdict::Failure),
            (vec!["1.0.0"], Verdict::Failure),
            (vec!["dev"], Verdict::Ok),
        ] {
            let pods: Vec<PodFacts> = sidecars.iter().map(|version| pod(Some(version))).collect();
            assert_eq!(super::sidecars("0.3.1", &pods).verdict, verdict, "{sidecars:?}");
        }
    }

    #[test]
    fn the_control_plane_is_compared_with_this_program() {
        let (major, own) = minor(VERSION).expect("our own version");
        for (control_plane, verdict) in [
            (VERSION.to_owned(), Verdict::Ok),
            (format!("{major}.{}.0", own + 1), Verdict::Ok),
            (format!("{major}.{}.0", own + 2), Verdict::Warning),
            ("latest".to_owned(), Verdict::Warning),
        ] {
            assert_eq!(command_line(&control_plane).verdict, verdict, "{control_plane}");
        }
    }

    #[test]
    fn replicas_of_two_versions_are_an_upgrade_under_way() {
        let replica = |version: &str| PodFacts { version: Some(version.into()), ..PodFacts::default() };
        let group = judge(&Ok(vec![replica(VERSION), replica("0.0.9")]), &Ok(vec![]));
        let verdicts: Vec<_> = group.findings.iter().map(|finding| (finding.check, finding.verdict)).collect();
        assert_eq!(
            verdicts,
            [("control plane", Verdict::Warning), ("command line", Verdict::Ok), ("sidecars", Verdict::Ok)]
        );
    }
}
