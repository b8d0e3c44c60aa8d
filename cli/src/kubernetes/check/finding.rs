//! What was found: lines with a verdict, in groups, each that is not well with its remedy.
use serde::Serialize;

use crate::kubernetes::client::NO_SUCH_KIND;
use crate::kubernetes::output::printable;

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Well.
    Ok,
    /// Worth a look, or could not be looked at.
    Warning,
    /// Not well.
    Failure,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Its name, the same in every run and version.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, detail: detail.into(), remedy: None }
    }

    pub(super) fn warning(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn failure(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Failure, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    /// It could not be looked at.
    pub(super) fn unseen(check: &'static str, why: &str) -> Self {
        let remedy = if why.contains("forbidden") {
            "run this as a user who may see it (--as, --user, --context)"
        } else if why.ends_with(NO_SUCH_KIND) {
            "install or repair Weft; see the group Control plane"
        } else {
            "mend what the message names, then check again"
        };
        Self::warning(check, format!("could not be looked at: {why}"), remedy)
    }
}

/// Findings about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Group {
    pub(super) group: &'static str,
    pub(super) findings: Vec<Finding>,
}

impl Group {
    pub(super) fn new(group: &'static str, findings: Vec<Finding>) -> Self {
        Self { group, findings }
    }
}

/// All findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    failures: usize,
    warnings: usize,
    groups: Vec<Group>,
}

impl Report {
    pub(super) fn of(groups: Vec<Group>) -> Self {
        let count = |verdict: Verdict| {
            groups.iter().flat_map(|group| &group.findings).filter(|finding| finding.verdict == verdict).count()
        };
        Self { failures: count(Verdict::Failure), warnings: count(Verdict::Warning), groups }
    }

    /// Whether nothing failed, and if it is `strict` nothing is doubtful.
    pub(super) fn is_well(&self, strict: bool) -> bool {
        self.failures == 0 && !(strict && self.warnings > 0)
    }

    /// As text; `quiet`: only what is not well.
    pub(super) fn render(&self, quiet: bool) -> String {
        let mut text = String::new();
        for group in &self.groups {
            let shown: Vec<&Finding> =
                group.findings.iter().filter(|finding| !quiet || finding.verdict != Verdict::Ok).collect();
            if shown.is_empty() {
                continue;
            }
            text.push_str(&format!("{}\n", group.group));
            for finding in shown {
                let mark = match finding.verdict {
                    Verdict::Ok => '✓',
                    Verdict::Warning => '!',
                    Verdict::Failure => '✗',
                };
                text.push_str(&format!("  {mark} {}: {}\n", finding.check, printable(&finding.detail)));
                if let Some(remedy) = &finding.remedy {
                    text.push_str(&format!("      {}\n", printable(remedy)));
                }
            }
            text.push('\n');
        }
        text.push_str(&match (self.failures, self.warnings) {
            (0, 0) => "All is well.\n".to_owned(),
            (failures, warnings) => format!(
                "{failures} {}, {warnings} {}.\n",
                if failures == 1 { "failure" } else { "failures" },
                if warnings == 1 { "warning" } else { "warnings" },
            ),
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::of(vec![
            Group::new("Nodes", vec![Finding::ok("kernel", "5.15")]),
            Group::new(
                "Certificates",
                vec![
                    Finding::failure("ca", "it has expired", "replace it"),
                    Finding::warning("webhook", "29 days are left", "wait"),
                ],
            ),
        ])
    }

    #[test]
    fn a_report_shows_each_remedy_under_its_finding() {
        let text = report().render(false);
        assert_eq!(
            text,
            "Nodes\n  ✓ kernel: 5.15\n\nCertificates\n  ✗ ca: it has expired\n      replace it\n  ! webhook: 29 days are \
             left\n      wait\n\n1 failure, 1 warning.\n"
        );
        assert!(!report().render(true).contains("Nodes"), "a group that is well is left out when quiet");
    }

    #[test]
    fn warnings_fail_only_a_strict_check() {
        let warned = Report::of(vec![Group::new("Nodes", vec![Finding::unseen("kernel", "forbidden")])]);
        assert_eq!((warned.is_well(false), warned.is_well(true), report().is_well(false)), (true, false, false));
    }

    #[test]
    fn programs_read_verdicts_in_words() {
        let json = serde_json::to_value(report()).expect("JSON");
        assert_eq!(json["failures"], 1);
        assert_eq!(
            json["groups"][1]["findings"][0],
            serde_json::json!({"check": "ca", "verdict": "failure", "detail": "it has expired", "remedy": "replace it"})
        );
        assert_eq!(json["groups"][0]["findings"][0].get("remedy"), None);
    }
}
