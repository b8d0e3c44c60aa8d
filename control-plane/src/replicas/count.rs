//! How many sidecars run a policy: the sum over all replicas' reports. Pure.
//!
//! Counted is what can be relied on. A sidecar counts when it runs what its replica has for it and that replica has this
//! very content of the policy. One that seems to listen to two replicas (it moved, and one has not noticed) counts only if
//! both say so.
use std::collections::BTreeMap;
use std::sync::Arc;

use weft_api::report::{Report, SidecarReport};
use weft_api::resource::NamespacedName;

use crate::publish::WorkloadStatus;
use crate::publish::programmed::{PolicyTarget, Targets, policy_name};
use crate::source::ResourceKey;

/// Sidecars that are named among those that have not confirmed.
const NAMED: usize = 3;

/// How far a resource has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// Workloads that it applies to.
    pub workloads: usize,
    /// Sidecars that are to run it.
    pub expected: usize,
    /// Sidecars that do.
    pub confirmed: usize,
    /// Some of those that do not, by name.
    pub waiting: Vec<String>,
    /// One that refused what it was told, and why.
    pub refused: Option<(String, String)>,
}

/// The sidecars of all workloads, as all replicas see them.
pub struct Sidecars<'a> {
    targets: &'a Targets,
    reports: &'a [Arc<Report>],
    /// For each of [`Targets::workloads`].
    seen: Vec<Seen<'a>>,
}

#[derive(Clone, Default)]
struct Seen<'a> {
    /// Where it is connected: the place of the report.
    at: Vec<(usize, &'a SidecarReport)>,
    /// It said goodbye, and is connected nowhere.
    gone: bool,
}

impl<'a> Sidecars<'a> {
    /// Puts the reports together.
    pub fn new(targets: &'a Targets, reports: &'a [Arc<Report>]) -> Self {
        let mut seen = vec![Seen::default(); targets.workloads.len()];
        for (place, report) in reports.iter().enumerate() {
            for (name, row) in &report.sidecars {
                let Ok(workload) = targets.workloads.binary_search_by(|workload| workload.name.cmp(name)) else {
                    continue;
                };
                let seen = &mut seen[workload];
                if row.connected {
                    seen.at.push((place, row));
                }
                seen.gone |= row.draining && !row.connected;
            }
        }
        for seen in &mut seen {
            seen.gone &= seen.at.is_empty();
        }
        Self { targets, reports, seen }
    }

    /// How far the policy `key` has come, where it is in force.
    pub fn of_policy(&self, key: &ResourceKey) -> Option<Programmed> {
        let target: &PolicyTarget = self.targets.policies.get(key)?;
        let name = policy_name(key);
        let has = |report: &Arc<Report>| report.policies.get(&name) == Some(&target.fingerprint);
        let up_to_date: Vec<bool> = self.reports.iter().map(has).collect();
        let mut programmed = Programmed { workloads: target.workloads.len(), ..Default::default() };
        for place in &target.workloads {
            self.add(*place as usize, &up_to_date, &mut programmed);
        }
        Some(programmed)
    }

    /// How far the workload called `name` has come, where there is one: its own sidecar. One without a sidecar counts as
    /// no workload.
    pub fn of_workload(&self, name: &NamespacedName) -> Option<Programmed> {
        let place = self.targets.workloads.binary_search_by(|workload| workload.name.cmp(name)).ok()?;
        let workloads = usize::from(self.targets.workloads[place].mesh);
        let mut programmed = Programmed { workloads, ..Default::default() };
        self.add(place, &vec![true; self.reports.len()], &mut programmed);
        Some(programmed)
    }

    fn add(&self, place: usize, up_to_date: &[bool], programmed: &mut Programmed) {
        let (Some(workload), Some(seen)) = (self.targets.workloads.get(place), self.seen.get(place)) else { return };
        if !workload.mesh || seen.gone {
            return;
        }
        programmed.expected += 1;
        let confirmed = !seen.at.is_empty() && seen.at.iter().all(|(report, row)| row.current && up_to_date[*report]);
        if confirmed {
            programmed.confirmed += 1;
            return;
        }
        if programmed.waiting.len() < NAMED {
            programmed.waiting.push(workload.name.name.clone());
        }
        if programmed.refused.is_none() {
            let why = seen.at.iter().find_map(|(_, row)| row.error.clone());
            programmed.refused = why.map(|why| (workload.name.name.clone(), why));
        }
    }

    /// The sidecars that refused what they were told last, and why.
    pub fn refusals(&self) -> impl Iterator<Item = (&'a NamespacedName, &'a str)> {
        let targets = self.targets;
        self.seen.iter().zip(&targets.workloads).filter_map(|(seen, workload)| {
            let why = seen.at.iter().find_map(|(_, row)| row.error.as_deref())?;
            Some((&workload.name, why))
        })
    }
}

/// The rows of `/workloads` with what other replicas know better: each workload as the replica sees it that it listens to.
pub fn merged(mut own: Vec<WorkloadStatus>, others: &[Arc<Report>], now: u64) -> Vec<WorkloadStatus> {
    let mut better: BTreeMap<String, &SidecarReport> = BTreeMap::new();
    for (name, row) in others.iter().flat_map(|report| &report.sidecars) {
        let known = better.entry(name.to_string()).or_insert(row);
        if newer(row, known.connected, known.disconnected_since) {
            *known = row;
        }
    }
    for status in &mut own {
        let Some(row) = better.get(&status.name) else { continue };
        let since = status.disconnected_for.map(|seconds| now.saturating_sub(seconds));
        let unknown_here = status.version.is_none();
        if unknown_here || newer(row, status.connected, since) {
            status.connected = row.connected;
            status.draining = row.draining;
            status.version = row.version;
            status.confirmed = row.confirmed;
            status.certificate_expiry = Some(row.certificate_expiry);
            status.disconnected_for = row.disconnected_since.map(|since| now.saturating_sub(since));
            status.error = row.error.clone();
        }
    }
    own
}

/// Whether `row` knows more than one that is `connected`, or has been away `since`.
fn newer(row: &SidecarReport, connected: bool, since: Option<u64>) -> bool {
    !connected && (row.connected || row.disconnected_since > since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::programmed::TargetWorkload;
    use crate::source::Kind;

    const FINGERPRINT: u64 = 7;

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("shop", name)
    }

    fn key() -> ResourceKey {
        ResourceKey { kind: Kind::AuthorizationPolicy, name: name("callers") }
    }

    /// Workloads a, b, c have a sidecar, d has none; the policy applies to all.
    fn targets() -> Targets {
        let workload = |text: &str| TargetWorkload { name: name(text), mesh: text != "d" };
        let target = PolicyTarget { fingerprint: FINGERPRINT, workloads: vec![0, 1, 2, 3], ..Default::default() };
        Targets { workloads: ["a", "b", "c", "d"].map(workload).to_vec(), policies: [(key(), target)].into() }
    }

    /// `a+ b- c~ a! a.`: runs the present content, does not, said goodbye, refused it, is away.
    fn report(fingerprint: u64, rows: &str) -> Arc<Report> {
        let row = |text: &str| {
            let (workload, state) = text.split_at(1);
            let sidecar = SidecarReport {
                connected: matches!(state, "+" | "-" | "!"),
                current: state == "+",
                draining: state == "~",
                error: (state == "!").then(|| "no".to_owned()),
                ..Default::default()
            };
            (name(workload), sidecar)
        };
        let sidecars = rows.split_whitespace().map(row).collect();
        Arc::new(Report { revision: 1, sidecars, policies: [(policy_name(&key()), fingerprint)].into() })
    }

    #[test]
    fn a_sidecar_counts_when_its_replica_has_this_content_and_it_runs_it() {
        const OLD: u64 = 6;
        for (case, reports, expected, confirmed, waiting) in [
            ("all here", vec![report(FINGERPRINT, "a+ b+ c+")], 3, 3, ""),
            ("over two replicas", vec![report(FINGERPRINT, "a+"), report(FINGERPRINT, "b+ c+")], 3, 3, ""),
            ("one has not confirmed", vec![report(FINGERPRINT, "a+ b- c+")], 3, 2, "b"),
            ("one is away", vec![report(FINGERPRINT, "a+ b. c+")], 3, 2, "b"),
            ("one was never seen", vec![report(FINGERPRINT, "a+ c+")], 3, 2, "b"),
            ("one said goodbye", vec![report(FINGERPRINT, "a+ b~ c+")], 2, 2, ""),
            (
                "it said goodbye and came back elsewhere",
                vec![report(FINGERPRINT, "a+ b~ c+"), report(FINGERPRINT, "b+")],
                3,
                3,
                "",
            ),
            ("it moved", vec![report(FINGERPRINT, "a. b+ c+"), report(FINGERPRINT, "a+")], 3, 3, ""),
            ("it moved unnoticed", vec![report(FINGERPRINT, "a+ b+ c+"), report(FINGERPRINT, "a-")], 3, 2, "a"),
            ("a replica lags behind", vec![report(FINGERPRINT, "a+"), report(OLD, "b+ c+")], 3, 1, "b,c"),
            ("nobody knows anything", vec![report(FINGERPRINT, "")], 3, 0, "a,b,c"),
            ("a workload that is gone", vec![report(FINGERPRINT, "a+ b+ c+ x-")], 3, 3, ""),
            ("no report", vec![], 3, 0, "a,b,c"),
        ] {
            let targets = targets();
            let programmed = Sidecars::new(&targets, &reports).of_policy(&key()).expect("in force");
            assert_eq!((programmed.expected, programmed.confirmed), (expected, confirmed), "{case}");
            assert_eq!(programmed.waiting.join(","), waiting, "{case}");
            assert_eq!(programmed.workloads, 4, "{case}");
        }
    }

    #[test]
    fn who_refused_is_named() {
        let (targets, reports) = (targets(), [report(FINGERPRINT, "a+ b! c-")]);
        let sidecars = Sidecars::new(&targets, &reports);
        let refused = Some(("b".to_owned(), "no".to_owned()));
        assert_eq!(sidecars.of_policy(&key()).expect("in force").refused, refused);
        assert_eq!(sidecars.refusals().collect::<Vec<_>>(), [(&name("b"), "no")]);
        assert_eq!(sidecars.of_workload(&name("b")).expect("known").refused, refused);
    }

    #[test]
    fn what_is_not_in_force_has_no_count() {
        let targets = Targets::default();
        let sidecars = Sidecars::new(&targets, &[]);
        assert_eq!(sidecars.of_policy(&key()), None);
        assert_eq!(sidecars.of_workload(&name("a")), None);
    }

    #[test]
    fn a_workload_is_shown_as_the_replica_sees_it_that_it_listens_to() {
        let status = |connected, version, disconnected_for| WorkloadStatus {
            name: "shop/a".to_owned(),
            connected,
            draining: false,
            version,
            confirmed: version,
            certificate_expiry: version,
            disconnected_for,
            error: None,
        };
        let row = |connected, since| SidecarReport {
            connected,
            version: Some(9),
            disconnected_since: since,
            ..Default::default()
        };
        let (here, there) = (Some(1), Some(9));
        for (case, own, others, expected) in [
            ("only here", status(true, here, None), vec![], here),
            ("only there", status(false, None, None), vec![row(true, None)], there),
            ("here, was there", status(true, here, None), vec![row(false, Some(990))], here),
            ("there, was here", status(false, here, Some(10)), vec![row(true, None)], there),
            ("was here, then there", status(false, here, Some(10)), vec![row(false, Some(995))], there),
            ("was there, then here", status(false, here, Some(10)), vec![row(false, Some(980))], here),
            ("there, was elsewhere", status(false, None, None), vec![row(true, None), row(false, Some(1))], there),
        ] {
            let report = |row| Arc::new(Report { sidecars: [(name("a"), row)].into(), ..Default::default() });
            let others: Vec<_> = others.into_iter().map(report).collect();
            assert_eq!(merged(vec![own], &others, 1000)[0].version, expected, "{case}");
        }
    }
}
