//! `weft policy diff`: what the policies of a directory would change for the calls that were seen.
use std::collections::{BTreeSet, HashMap};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use weft_api::observation::Destination;

use super::calls::{self, SourceArgs};
use super::certain;
use super::faulty;
use super::mesh::{Mesh, ResourcesArgs, Target};
use crate::kubernetes::output::{Column, Format, Table, counted, machine};
use crate::kubernetes::print;

/// Arguments of `weft policy diff`.
#[derive(Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    resources: ResourcesArgs,
    #[command(flatten)]
    calls: SourceArgs,
    /// End with exit code 1 if there is a change of this kind; may be repeated.
    #[arg(long, value_enum, value_name = "CHANGE")]
    fail_on: Vec<Change>,
    /// Form of the answer, instead of a table.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// What changes for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    /// It passed, and would be refused.
    Refused,
    /// It depends on what is not kept of calls: host, headers, claims, address.
    Depends,
    /// It was refused, and would pass.
    Allowed,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    change: Change,
    calls: u64,
    source: String,
    call: String,
    destination: String,
    before: String,
    after: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Diff {
    hours: u32,
    changes: Vec<Row>,
    /// Calls that the directory judges as they were judged.
    unchanged: u64,
    /// Calls to namespaces that the directory does not speak of.
    not_judged: u64,
    not_judged_namespaces: BTreeSet<String>,
}

/// Reads, judges and prints.
pub(crate) fn main(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let mesh = match Mesh::read(&args.resources) {
        Ok(mesh) => mesh,
        Err(faults) => return Ok(faulty(&faults)),
    };
    let list = match args.calls.read() {
        Ok(list) => list,
        Err(fault) => return Ok(faulty(&[format!("{fault:#}")])),
    };
    let mut diff = Diff {
        hours: list.hours,
        changes: Vec::new(),
        unchanged: 0,
        not_judged: 0,
        not_judged_namespaces: BTreeSet::new(),
    };
    let mut targets: HashMap<&Destination, Target> = HashMap::new();
    for row in &list.calls {
        if !mesh.speaks_of(&row.destination.namespace) {
            diff.not_judged = diff.not_judged.saturating_add(row.count);
            diff.not_judged_namespaces.insert(row.destination.namespace.clone());
            continue;
        }
        let target = targets.entry(&row.destination).or_insert_with(|| mesh.observed(&row.destination));
        let after = certain::judge(target, row);
        let change = match (row.call.decision.passed(), after.allowed) {
            (true, Some(false)) => Change::Refused,
            (false, Some(true)) => Change::Allowed,
            (_, None) => Change::Depends,
            _ => {
                diff.unchanged = diff.unchanged.saturating_add(row.count);
                continue;
            }
        };
        let word = match after.allowed {
            Some(true) => "allowed",
            Some(false) => "refused",
            None => "depends",
        };
        diff.changes.push(Row {
            change,
            calls: row.count,
            source: calls::source(row),
            call: calls::what(row),
            destination: calls::destination(row),
            before: format!("{} by {}", row.call.decision.as_str(), calls::decider(row)),
            after: format!("{word} by {}", after.by),
        });
    }
    diff.changes.sort_by(|one, other| {
        (one.change, std::cmp::Reverse(one.calls), &one.destination, &one.source, &one.call).cmp(&(
            other.change,
            std::cmp::Reverse(other.calls),
            &other.destination,
            &other.source,
            &other.call,
        ))
    });
    print(&match args.output {
        Some(format) => machine(&diff, format)?,
        None => text(&diff),
    })?;
    let fails = diff.changes.iter().any(|row| args.fail_on.contains(&row.change));
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(diff: &Diff) -> String {
    let mut text = String::new();
    if !diff.changes.is_empty() {
        let columns = ["NEWLY", "CALLS", "SOURCE", "CALL", "DESTINATION", "BEFORE", "AFTER"];
        let mut table = Table::new(columns.map(Column::Always).to_vec());
        for row in &diff.changes {
            let newly = match row.change {
                Change::Refused => "refused",
                Change::Allowed => "allowed",
                Change::Depends => "depends",
            };
            let cells =
                [newly, &row.calls.to_string(), &row.source, &row.call, &row.destination, &row.before, &row.after];
            table.row(cells.map(str::to_owned).to_vec());
        }
        text = format!("{}\n", table.render(false));
    }
    let of = |change| diff.changes.iter().filter(|row| row.change == change).map(|row| row.calls).sum::<u64>();
    text += &format!(
        "Of the calls of the last {} h: {} newly refused, {} newly allowed, {} that depend on what is not kept, {} as before.\n",
        diff.hours,
        of(Change::Refused),
        of(Change::Allowed),
        of(Change::Depends),
        diff.unchanged
    );
    if diff.not_judged > 0 {
        let namespaces: Vec<&str> = diff.not_judged_namespaces.iter().map(String::as_str).collect();
        let many = counted(usize::try_from(diff.not_judged).unwrap_or(usize::MAX), "call");
        text += &format!(
            "Not judged: {many} to namespaces that the directory does not speak of: {}.\n",
            namespaces.join(", ")
        );
    }
    text
}
