//! `weft policy`: tries policies out on calls before they are in force, and explains those that are.
//!
//! All commands judge with the engine that the sidecars run, on what the control plane's own code compiles for a workload.
//! Nothing here changes a cluster or a file.
use std::process::ExitCode;

use clap::Subcommand;

mod judge;
mod mesh;
mod report;
mod test;

/// Subcommands of `weft policy`.
#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Judge a table of calls by the policies of a directory: exit code 0 all as expected, 1 not, 2 the files are faulty.
    Test(test::TestArgs),
}

/// Runs a subcommand.
pub(crate) fn main(command: &PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Test(args) => test::main(args),
    }
}

/// The files or settings cannot be used: nothing was judged.
fn faulty(faults: &[String]) -> ExitCode {
    for fault in faults {
        eprintln!("weft: {fault}");
    }
    ExitCode::from(2)
}
