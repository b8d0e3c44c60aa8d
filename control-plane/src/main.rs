//! The `weft-control-plane` binary: the control plane, and join tokens for it.
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_control_plane::{Args, TokenCreateArgs};

#[derive(Parser)]
#[command(name = "weft-control-plane", version, about = "Weft's control plane", args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Option<Args>,
}

#[derive(Subcommand)]
enum Command {
    /// Prints a join token, with which a sidecar proves its identity.
    TokenCreate(TokenCreateArgs),
    /// Checks that no line of the audit log is missing or altered.
    AuditVerify {
        /// State directory of the control plane.
        #[arg(long, env = "WEFT_STATE", default_value = "/var/lib/weft")]
        state: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match CommandLine::parse() {
        CommandLine { command: Some(Command::TokenCreate(args)), .. } => {
            weft_control_plane::create_token(&args).map(|token| println!("{token}"))
        }
        CommandLine { command: Some(Command::AuditVerify { state }), .. } => {
            weft_control_plane::verify_audit(&state).map(|found| println!("{found}"))
        }
        CommandLine { args: Some(args), .. } => weft_control_plane::main(args),
        CommandLine { .. } => {
            Err(anyhow::anyhow!("--resources is missing; give the directory of the mesh's YAML files"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("weft-control-plane: {fault:#}");
            ExitCode::FAILURE
        }
    }
}
