//! The recording rules and alerts of the chart.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::prometheus::promtool;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/weft");

#[derive(Deserialize)]
struct File {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

/// A rule: either of the names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rule {
    pub alert: String,
    pub record: String,
    pub expr: String,
    labels: Labels,
    annotations: Annotations,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Labels {
    severity: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    summary: String,
    description: String,
    runbook: String,
}

/// The file of rules.
pub fn file() -> PathBuf {
    Path::new(CHART).join("files/rules/weft.yaml")
}

pub fn read() -> Result<Vec<Rule>> {
    let file: File = serde_saphyr::from_str(&std::fs::read_to_string(file())?)?;
    Ok(file.groups.into_iter().flat_map(|group| group.rules).collect())
}

/// Whoever is woken finds out why, and what to do.
pub fn are_documented() -> Result<()> {
    let runbook = std::fs::read_to_string(Path::new(CHART).join("RUNBOOK.md"))?;
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alerts: Vec<Rule> = read()?.into_iter().filter(|rule| !rule.alert.is_empty()).collect();
    for Rule { alert, labels, annotations, .. } in &alerts {
        ensure!(["critical", "warning", "info"].contains(&labels.severity.as_str()), "{alert}: {}", labels.severity);
        ensure!(!annotations.summary.is_empty() && !annotations.description.is_empty(), "{alert} says nothing");
        let anchor = format!("charts/weft/RUNBOOK.md#{}", alert.to_lowercase());
        ensure!(annotations.runbook == anchor, "{alert}: {} instead of {anchor}", annotations.runbook);
        ensure!(sections.contains(alert.as_str()), "{alert} has no section in the runbook");
    }
    let known: BTreeSet<&str> = alerts.iter().map(|rule| rule.alert.as_str()).collect();
    let unknown: Vec<_> =
        sections.iter().filter(|section| section.starts_with("Weft") && !known.contains(**section)).collect();
    ensure!(unknown.is_empty(), "sections of alerts that are not there: {unknown:?}");
    Ok(())
}

/// By promtool: valid, and each alert comes when it should and not otherwise.
pub fn keep_their_unit_tests() -> Result<()> {
    let tests = Path::new(CHART).join("ci/rules-test.yaml");
    let text = std::fs::read_to_string(&tests)?;
    for rule in read()? {
        let tested = text.contains(&format!("alertname=\"{}\"", rule.alert)) || rule.alert.is_empty();
        ensure!(tested, "{} has no unit test", rule.alert);
    }
    for (arguments, file) in [(["check", "rules"], file()), (["test", "rules"], tests)] {
        let output =
            Command::new(promtool().context("it was there a moment ago")?).args(arguments).arg(file).output()?;
        let text = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&text));
    }
    Ok(())
}
