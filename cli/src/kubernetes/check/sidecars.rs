//! The sidecars, as the control plane knows them: connected, in agreement, with a certificate that lives.
use super::Seen;
use super::finding::{Finding, Group};
use crate::kubernetes::control_plane::{Knowledge, WorkloadStatus};
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::output::{counted, some_of, span};

/// Seconds. Certificates are renewed after two thirds of their lifetime at the latest, of which the shortest is 5 minutes.
const CERTIFICATE_LEFT: i64 = 60;
/// Seconds that a sidecar may be away: it comes back by itself, and serves meanwhile.
const AWAY_TOLERATED: u64 = 30;

pub(super) fn judge(pods: &Seen<Vec<PodFacts>>, knowledge: &Seen<Knowledge>, now: i64) -> Group {
    const GROUP: &str = "Sidecars";
    let pods = match pods {
        Ok(pods) => pods,
        Err(why) => return Group::new(GROUP, vec![Finding::unseen("sidecars", why)]),
    };
    let knowledge = match knowledge {
        Ok(knowledge) => knowledge,
        Err(why) => return Group::new(GROUP, vec![Finding::unseen("sidecars", why)]),
    };
    let mut findings = Vec::new();
    if !knowledge.silent.is_empty() {
        let silent: Vec<String> = knowledge.silent.iter().map(|(replica, why)| format!("{replica} ({why})")).collect();
        let detail = format!("replicas that did not say what they know: {}", some_of(&silent));
        findings.push(Finding::warning(
            "control plane",
            detail,
            "you must be allowed to get and create pods/portforward in its namespace, and the replica must run",
        ));
    }
    if knowledge.answered == 0 {
        return Group::new(GROUP, findings);
    }
    // One that starts is not missed yet.
    let sidecars: Vec<(String, Option<&WorkloadStatus>)> = pods
        .iter()
        .filter(|pod| pod.alive && pod.sidecar.as_ref().is_some_and(|sidecar| sidecar.started))
        .map(|pod| (pod.key(), knowledge.workloads.get(&pod.key()).map(|(status, _)| status)))
        .collect();
    findings.push(connected(&sidecars, knowledge.silent.is_empty()));
    findings.push(agreed(&sidecars));
    findings.push(certified(&sidecars, now));
    Group::new(GROUP, findings)
}

fn connected(sidecars: &[(String, Option<&WorkloadStatus>)], all_answered: bool) -> Finding {
    const CHECK: &str = "connected";
    let away: Vec<String> = sidecars
        .iter()
        .filter_map(|(name, status)| match status {
            None => Some(format!("{name} (unknown to the control plane)")),
            Some(status) if status.connected || status.draining => None,
            Some(status) => match status.disconnected_for {
                Some(seconds) if seconds <= AWAY_TOLERATED => None,
                Some(seconds) => Some(format!("{name} (away for {})", span(seconds))),
                None => Some(format!("{name} (never came)")),
            },
        })
        .collect();
    if away.is_empty() {
        return Finding::ok(CHECK, counted(sidecars.len(), "sidecar"));
    }
    let detail = format!("{} not connected: {}", counted(away.len(), "sidecar"), some_of(&away));
    let remedy = "they serve what they were told last, and cannot renew certificates; see why: \
                  kubectl -n NAMESPACE logs POD -c weft-proxy; a NetworkPolicy may cut off port 4280 of the control plane";
    // A replica that did not answer may have them.
    if all_answered { Finding::failure(CHECK, detail, remedy) } else { Finding::warning(CHECK, detail, remedy) }
}

fn agreed(sidecars: &[(String, Option<&WorkloadStatus>)]) -> Finding {
    const CHECK: &str = "configuration";
    let known = || sidecars.iter().filter_map(|(name, status)| Some((name, (*status)?)));
    let refused: Vec<String> =
        known().filter_map(|(name, status)| Some(format!("{name} ({})", status.error.as_ref()?))).collect();
    if !refused.is_empty() {
        return Finding::failure(
            CHECK,
            format!(
                "{} refused the last update and keep what they had: {}",
                counted(refused.len(), "sidecar"),
                some_of(&refused)
            ),
            "compare versions of sidecar and control plane (weft get workloads); restart pods with an old sidecar",
        );
    }
    let behind: Vec<&str> = known()
        .filter(|(_, status)| status.connected && status.version != status.confirmed)
        .map(|(name, _)| name.as_str())
        .collect();
    if behind.is_empty() {
        return Finding::ok(CHECK, "every connected sidecar has confirmed its configuration");
    }
    Finding::warning(
        CHECK,
        format!("{} not confirmed the last update yet: {}", has(behind.len()), some_of(&behind)),
        "check again in a minute; if it stays, read the sidecar's log: kubectl -n NAMESPACE logs POD -c weft-proxy",
    )
}

fn has(sidecars: usize) -> String {
    format!("{} {}", counted(sidecars, "sidecar"), if sidecars == 1 { "has" } else { "have" })
}

fn certified(sidecars: &[(String, Option<&WorkloadStatus>)], now: i64) -> Finding {
    const CHECK: &str = "certificates";
    let mut soonest = None;
    let mut short = Vec::new();
    let mut expired = false;
    for (name, status) in sidecars {
        let expiry = status.and_then(|status| status.certificate_expiry).and_then(|expiry| i64::try_from(expiry).ok());
        let Some(expiry) = expiry else { continue };
        let left = expiry - now;
        soonest = Some(soonest.unwrap_or(left).min(left));
        if left <= 0 {
            expired = true;
            short.push(format!("{name} (expired {} ago)", span(left.unsigned_abs())));
        } else if left < CERTIFICATE_LEFT {
            short.push(format!("{name} ({})", span(left.unsigned_abs())));
        }
    }
    let remedy = "renewal fails; see why: kubectl -n NAMESPACE logs POD -c weft-proxy, and the control plane's log: clocks, \
                  TokenReview, a service account that was deleted";
    match (short.is_empty(), expired, soonest) {
        (false, true, _) => Finding::failure(CHECK, some_of(&short), remedy),
        (false, false, _) => Finding::warning(CHECK, format!("about to expire: {}", some_of(&short)), remedy),
        (true, _, Some(left)) => Finding::ok(CHECK, format!("the first expires in {}", span(left.unsigned_abs()))),
        (true, _, None) => Finding::ok(CHECK, "none yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::kubernetes::objects::SidecarFacts;

    fn pod() -> PodFacts {
        PodFacts {
            namespace: "shop".into(),
            name: "orders-1".into(),
            alive: true,
            sidecar: Some(SidecarFacts { started: true, ..SidecarFacts::default() }),
            ..PodFacts::default()
        }
    }

    fn well() -> WorkloadStatus {
        WorkloadStatus {
            name: "shop/orders-1".into(),
            connected: true,
            version: Some(7),
            confirmed: Some(7),
            certificate_expiry: Some(2_000),
            ..WorkloadStatus::default()
        }
    }

    fn knowledge(status: Option<WorkloadStatus>) -> Knowledge {
        let workloads = status.map(|status| (status.name.clone(), (status, None))).into_iter().collect();
        Knowledge { workloads, silent: vec![], answered: 1 }
    }

    fn not_well(group: &Group) -> Vec<(&'static str, Verdict)> {
        let findings = group.findings.iter().filter(|finding| finding.verdict != Verdict::Ok);
        findings.map(|finding| (finding.check, finding.verdict)).collect()
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_sidecar_is_its_own_line() {
        use Verdict::{Failure, Warning};
        let away = |seconds| WorkloadStatus { connected: false, disconnected_for: seconds, ..well() };
        for (case, status, expected) in [
            ("well", Some(well()), vec![]),
            ("unknown", None, vec![("connected", Failure)]),
            ("never came", Some(away(None)), vec![("connected", Failure)]),
            ("away for a moment", Some(away(Some(5))), vec![]),
            ("away for long", Some(away(Some(600))), vec![("connected", Failure)]),
            ("draining", Some(WorkloadStatus { draining: true, ..away(Some(600)) }), vec![]),
            ("behind", Some(WorkloadStatus { confirmed: Some(6), ..well() }), vec![("configuration", Warning)]),
            ("refused", Some(WorkloadStatus { error: Some("no".into()), ..well() }), vec![("configuration", Failure)]),
            (
                "expired",
                Some(WorkloadStatus { certificate_expiry: Some(900), ..well() }),
                vec![("certificates", Failure)],
            ),
            (
                "about to expire",
                Some(WorkloadStatus { certificate_expiry: Some(1_030), ..well() }),
                vec![("certificates", Warning)],
            ),
        ] {
            assert_eq!(not_well(&judge(&Ok(vec![pod()]), &Ok(knowledge(status)), 1_000)), expected, "{case}");
        }
    }

    #[test]
    fn a_replica_that_is_silent_may_have_the_sidecars_that_are_missed() {
        let knowledge = Knowledge { silent: vec![("b".into(), "no answer".into())], ..knowledge(None) };
        assert_eq!(
            not_well(&judge(&Ok(vec![pod()]), &Ok(knowledge), 1_000)),
            [("control plane", Verdict::Warning), ("connected", Verdict::Warning)]
        );
    }

    #[test]
    fn sidecars_that_start_are_not_missed() {
        let starting = PodFacts { sidecar: Some(SidecarFacts::default()), ..pod() };
        assert_eq!(not_well(&judge(&Ok(vec![starting]), &Ok(knowledge(None)), 1_000)), []);
    }
}
