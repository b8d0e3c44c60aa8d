//! The sidecar's binary: `weft-proxy` runs it, `weft-proxy init` writes the redirect rules, `weft-proxy validate` proves
//! that they are at work.
use clap::{Parser, Subcommand};
use weft_proxy::config::{ProxyArgs, Settings};
use weft_proxy::redirect;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Weft's sidecar.
#[derive(Parser)]
#[command(name = "weft-proxy", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    proxy: Option<ProxyArgs>,
}

#[derive(Subcommand)]
enum Command {
    /// Write (or remove) the rules that redirect this network namespace's connections to the sidecar.
    Init(redirect::InitArgs),
    /// Prove that this network namespace's connections are redirected, before the sidecar starts.
    Validate(redirect::ValidateArgs),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match (cli.command, cli.proxy) {
        (Some(Command::Init(args)), _) => {
            println!("{}", redirect::run_init(&args)?);
            Ok(())
        }
        (Some(Command::Validate(args)), _) => {
            println!("{}", redirect::run_validate(&args)?);
            Ok(())
        }
        (None, Some(args)) => weft_proxy::app::run(Settings::resolve(args)?),
        (None, None) => anyhow::bail!("nothing to do: see --help"),
    }
}
