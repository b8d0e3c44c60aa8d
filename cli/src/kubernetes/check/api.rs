//! The API server: whether it answers, its version, its clock.
use k8s_openapi::apimachinery::pkg::version::Info;
use k8s_openapi::jiff::fmt::rfc2822;
use kube::client::Body;

use super::finding::{Finding, Group};
use super::{Seen, unix_now};
use crate::kubernetes::client::{Cluster, UNKNOWN_USER, explain};
use crate::kubernetes::output::span;

/// Sidecars are native: init containers that go on.
const MINIMUM: (u32, u32) = (1, 29);
/// ValidatingAdmissionPolicy, which refuses pods without sidecar while the injector is away, is there from this one.
const RECOMMENDED: (u32, u32) = (1, 30);
/// Seconds; the Date header is in whole ones, and requests take their time.
const SKEW_TOLERATED: i64 = 5;

/// What the API server says of itself.
pub(super) struct ApiFacts {
    pub(super) server: String,
    pub(super) version: Seen<Info>,
    /// Seconds that its clock is ahead of ours at least; negative: behind. `None`: it did not tell.
    pub(super) ahead: Option<i64>,
}

pub(super) async fn look(cluster: &Cluster) -> ApiFacts {
    let asked = unix_now();
    let answer = ask(cluster).await;
    let answered = unix_now();
    let (version, ahead) = match answer {
        Ok((version, date)) => (Ok(version), date.map(|date| ahead(asked, date, answered))),
        Err(fault) => (Err(fault), None),
    };
    ApiFacts { server: cluster.server.clone(), version, ahead }
}

async fn ask(cluster: &Cluster) -> Result<(Info, Option<i64>), String> {
    let request = http::Request::get("/version").body(Body::empty()).expect("a path of ours");
    let response = cluster.client.send(request).await.map_err(|fault| explain(&fault))?;
    let (status, date) = (response.status(), response.headers().get(http::header::DATE).cloned());
    let body = response.into_body().collect_bytes().await.map_err(|fault| explain(&fault))?;
    if !status.is_success() {
        return Err(match status.as_u16() {
            401 => UNKNOWN_USER.to_owned(),
            _ => format!("it answered {status}"),
        });
    }
    let version = serde_json::from_slice(&body).map_err(|fault| format!("what answers is no API server: {fault}"))?;
    let date = date.and_then(|date| rfc2822::parse(date.to_str().ok()?).ok()).map(|date| date.timestamp().as_second());
    Ok((version, date))
}

/// How far a clock is ahead that said `date`, rounded down to whole seconds, between our `asked` and `answered`.
fn ahead(asked: i64, date: i64, answered: i64) -> i64 {
    if date > answered {
        date - answered
    } else if date + 1 < asked {
        date + 1 - asked
    } else {
        0
    }
}

pub(super) fn judge(facts: &ApiFacts) -> Group {
    let mut findings = Vec::new();
    match &facts.version {
        Err(fault) => findings.push(Finding::failure(
            "reachable",
            format!("{}: {fault}", facts.server),
            if fault == UNKNOWN_USER {
                "kubectl auth whoami says whom it knows"
            } else {
                "start the cluster or open the way to it; for another one give --context or --kubeconfig \
                 (kubectl config get-contexts)"
            },
        )),
        Ok(version) => {
            findings.push(Finding::ok("reachable", facts.server.clone()));
            findings.push(judge_version(version));
        }
    }
    match facts.ahead {
        Some(ahead) if ahead.abs() > SKEW_TOLERATED => findings.push(Finding::warning(
            "clock",
            format!(
                "the API server's clock is {} {} this machine's",
                span(ahead.unsigned_abs()),
                if ahead > 0 { "ahead of" } else { "behind" }
            ),
            "set both by NTP (timedatectl status); a control plane whose clock is wrong issues certificates that nobody accepts",
        )),
        Some(_) => findings.push(Finding::ok("clock", "the API server's agrees with this machine's")),
        None => {}
    }
    Group::new("API server", findings)
}

fn judge_version(info: &Info) -> Finding {
    let name = &info.git_version;
    let Some(version) = number(&info.major).zip(number(&info.minor)) else {
        return Finding::warning(
            "version",
            format!("{name} is no version that this program knows"),
            "use 1.29 or later",
        );
    };
    if version < MINIMUM {
        return Finding::failure(
            "version",
            format!("{name} has no native sidecar containers"),
            "upgrade to 1.29 or later",
        );
    }
    if version < RECOMMENDED {
        return Finding::warning(
            "version",
            format!(
                "{name} has no ValidatingAdmissionPolicy: while the injector is away, only namespaces that are labelled \
                 (not annotated) weft.dev/inject=enabled are kept from starting pods outside the mesh"
            ),
            "upgrade to 1.30 or later, or label the namespaces",
        );
    }
    Finding::ok("version", format!("{name} (1.29 or later is needed)"))
}

/// `31` of `31+`, as hosted clusters write it.
fn number(text: &str) -> Option<u32> {
    text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_version_is_judged_by_what_it_lacks() {
        for (major, minor, verdict) in [
            ("1", "28", Verdict::Failure),
            ("1", "29+", Verdict::Warning),
            ("1", "30", Verdict::Ok),
            ("1", "36", Verdict::Ok),
            ("2", "0", Verdict::Ok),
            ("", "", Verdict::Warning),
        ] {
            let info = Info { major: major.into(), minor: minor.into(), ..Info::default() };
            assert_eq!(judge_version(&info).verdict, verdict, "{major}.{minor}");
        }
    }

    #[test]
    fn skew_is_what_rounding_and_the_way_there_cannot_explain() {
        for (asked, date, answered, expected) in
            [(100, 100, 100, 0), (100, 99, 100, 0), (100, 100, 103, 0), (100, 110, 101, 9), (100, 89, 101, -10)]
        {
            assert_eq!(ahead(asked, date, answered), expected, "{asked} {date} {answered}");
        }
    }

    #[test]
    fn the_api_server_is_judged_with_a_remedy_for_each_fault() {
        let server = || "https://one.test:6443/".to_owned();
        let info = || Info { major: "1".into(), minor: "36".into(), git_version: "v1.36.0".into(), ..Info::default() };
        for (version, ahead, verdicts) in [
            (Err("refused".to_owned()), None, vec![("reachable", Verdict::Failure)]),
            (Ok(info()), Some(3), vec![("reachable", Verdict::Ok), ("version", Verdict::Ok), ("clock", Verdict::Ok)]),
            (
                Ok(info()),
                Some(-90),
                vec![("reachable", Verdict::Ok), ("version", Verdict::Ok), ("clock", Verdict::Warning)],
            ),
        ] {
            let group = judge(&ApiFacts { server: server(), version, ahead });
            let seen: Vec<_> = group.findings.iter().map(|finding| (finding.check, finding.verdict)).collect();
            assert_eq!(seen, verdicts);
        }
    }
}
