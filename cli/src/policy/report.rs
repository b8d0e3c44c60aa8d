//! How the outcome of `weft policy test` is told: to people, to programs, to CI.
use std::fmt::Write as _;

use serde::Serialize;
use weft_api::verdict::Verdict;

use crate::kubernetes::output::{Column, Table, counted};

/// All cases.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) passed: usize,
    pub(super) failed: usize,
    cases: Vec<Row>,
}

/// One case.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) name: Option<String>,
    pub(super) call: String,
    pub(super) expected: &'static str,
    pub(super) expected_by: Option<String>,
    /// Which of several workloads behind a Service it is.
    pub(super) workload: Option<String>,
    pub(super) passed: bool,
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

impl Report {
    pub(super) fn new(cases: Vec<Row>) -> Self {
        let passed = cases.iter().filter(|case| case.passed).count();
        Self { passed, failed: cases.len() - passed, cases }
    }
}

impl Row {
    fn title(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.call)
    }

    fn wanted(&self) -> String {
        match &self.expected_by {
            Some(by) => format!("{} by {by}", self.expected),
            None => self.expected.to_owned(),
        }
    }

    /// Why it is not as expected, a line each.
    fn explanation(&self) -> Vec<String> {
        let mut lines = vec![format!("expected {}, but: {}", self.wanted(), self.verdict.because)];
        if let Some(workload) = &self.workload {
            lines.push(format!("at workload {workload}"));
        }
        for policy in self.verdict.trace.iter().filter(|policy| policy.asked) {
            lines
                .extend(policy.lines().into_iter().map(|line| format!("{} ({}) {line}", policy.policy, policy.action)));
        }
        lines
    }
}

/// A table, and what failed.
pub(super) fn text(report: &Report) -> String {
    let columns = ["RESULT", "CALL", "EXPECTED", "DECISION", "BY"];
    let mut table = Table::new(columns.map(Column::Always).to_vec());
    for row in &report.cases {
        let result = if row.passed { "ok" } else { "FAILED" };
        let cells = [result, row.title(), &row.wanted(), &row.verdict.decision, &row.verdict.decider()];
        table.row(cells.map(str::to_owned).to_vec());
    }
    let mut text = table.render(false);
    for row in report.cases.iter().filter(|row| !row.passed) {
        let _ = write!(text, "\n{}:{}: {}\n", row.file, row.line, row.call);
        for line in row.explanation() {
            let _ = writeln!(text, "    {line}");
        }
    }
    let all = counted(report.cases.len(), "case");
    let _ = match report.failed {
        0 => writeln!(text, "\n{all}, all as expected."),
        failed => writeln!(text, "\n{all}, {failed} not as expected."),
    };
    text
}

/// JUnit's XML.
pub(super) fn junit(report: &Report) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"weft policy test\" tests=\"{}\" failures=\"{}\">\n",
        report.cases.len(),
        report.failed
    );
    for row in &report.cases {
        let (class, name) = (escaped(&row.file), escaped(&format!("{} (line {})", row.title(), row.line)));
        let _ = write!(text, "<testcase classname=\"{class}\" name=\"{name}\"");
        if row.passed {
            text.push_str("/>\n");
            continue;
        }
        let explanation = row.explanation();
        let message = escaped(&explanation[0]);
        let _ =
            writeln!(text, "><failure message=\"{message}\">{}</failure></testcase>", escaped(&explanation.join("\n")));
    }
    text.push_str("</testsuite>\n</testsuites>\n");
    text
}

/// XML 1.0 has no way to write most control characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}
