//! `weft policy`: tries policies out on calls before they are in force, and explains those that are.
//!
//! All commands judge with the engine that the sidecars run, on what the control plane's own code compiles for a workload.
//! Nothing here changes a cluster or a file.
use std::process::ExitCode;

use clap::Subcommand;

mod ask;
mod calls;
mod certain;
mod diff;
mod explain;
mod judge;
mod mesh;
mod report;
mod suggest;
mod test;

/// Subcommands of `weft policy`.
#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Judge a table of calls by the policies of a directory: exit code 0 all as expected, 1 not, 2 the files are faulty.
    Test(test::TestArgs),
    /// Ask a running sidecar what it decides of a call and why, or why it refused the last ones.
    Explain(explain::ExplainArgs),
    /// Show the calls that sidecars judged in the last hours.
    Calls(calls::CallsArgs),
    /// Show what the policies of a directory would newly refuse or allow of the calls of the last hours.
    Diff(diff::DiffArgs),
    /// Print the least policies that allow the calls of the last hours.
    Suggest(suggest::SuggestArgs),
}

/// Runs a subcommand.
pub(crate) fn main(command: &PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Test(args) => test::main(args),
        PolicyCommand::Explain(args) => explain::main(args),
        PolicyCommand::Calls(args) => calls::main(args),
        PolicyCommand::Diff(args) => diff::main(args),
        PolicyCommand::Suggest(args) => suggest::main(args),
    }
}

/// The files or settings cannot be used: nothing was judged.
fn faulty(faults: &[String]) -> ExitCode {
    for fault in faults {
        eprintln!("weft: {fault}");
    }
    ExitCode::from(2)
}
