//! `weft policy test`: a table of calls with expected decisions, judged by the policies of a directory.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use weft_api::case::{Case, parse_cases};
use weft_api::resource::ResourceError;

use super::faulty;
use super::judge::{judge, summary};
use super::mesh::{Mesh, ResourcesArgs};
use super::report::{self, Report, Row};
use crate::kubernetes::print;

/// Arguments of `weft policy test`.
#[derive(Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    resources: ResourcesArgs,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Format,
    /// Files with cases: `call: {from, to, port, method, path, host, headers, claims}`, `expect: allowed`, `by: POLICY`.
    #[arg(required = true, value_name = "TESTS.yaml")]
    tests: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line a case, and why those that failed did.
    Text,
    /// JSON.
    Json,
    /// JUnit's XML, which CI systems show.
    Junit,
}

/// Reads, judges and reports.
pub(crate) fn main(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let mesh = match Mesh::read(&args.resources) {
        Ok(mesh) => mesh,
        Err(faults) => return Ok(faulty(&faults)),
    };
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for path in &args.tests {
        let file = path.display().to_string();
        let text = match std::fs::read_to_string(path).with_context(|| file.clone()) {
            Ok(text) => text,
            Err(fault) => {
                faults.push(format!("{fault:#}"));
                continue;
            }
        };
        for (document, case) in parse_cases(&text) {
            match case
                .map_err(|fault| (fault.line, ResourceError { line: 0, ..fault }.to_string()))
                .and_then(|case| run(&mesh, &file, &case).map_err(|fault| (case.line, fault)))
            {
                Ok(row) => rows.push(row),
                Err((line, fault)) => faults.push(format!("{file}:{line}: document {document}: {fault}")),
            }
        }
    }
    if !faults.is_empty() {
        return Ok(faulty(&faults));
    }
    let report = Report::new(rows);
    print(&match args.output {
        Format::Text => report::text(&report),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
        Format::Junit => report::junit(&report),
    })?;
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One case. Where several workloads stand behind the Service that is called, all must do what is expected.
fn run(mesh: &Mesh, file: &str, case: &Case) -> Result<Row, String> {
    let verdicts = judge(mesh, &case.call)?;
    let by = case.by.as_deref();
    let is_by = |decider: &str| {
        by.is_none_or(|by| decider == by || decider.strip_prefix(case.call.to.namespace()) == Some(&format!("/{by}")))
    };
    let failing =
        verdicts.iter().find(|(_, verdict)| !(verdict.decision == case.expect.as_str() && is_by(&verdict.by)));
    let passed = failing.is_none();
    let several = verdicts.len() > 1;
    let Some((target, verdict)) = failing.or(verdicts.first()) else {
        return Err("the call reaches no workload".to_owned());
    };
    Ok(Row {
        file: file.to_owned(),
        line: case.line,
        name: case.name.clone(),
        call: summary(&case.call),
        expected: case.expect.as_str(),
        expected_by: case.by.clone(),
        workload: several.then(|| target.name.clone()),
        passed,
        verdict: verdict.clone(),
    })
}
