//! `weft`: one binary that can run everything, on a laptop, an edge host or a server.
mod demo;
mod inject;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use weft_proxy::config::{ProxyArgs, Settings};
use weft_proxy::redirect;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Weft, a lightweight service mesh.
#[derive(Parser)]
#[command(name = "weft", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane on a directory of YAML.
    ControlPlane(weft_control_plane::Args),
    /// Run a sidecar, or write the rules that redirect connections to it.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Proxy(Box<ProxyCommand>),
    /// Join tokens, with which sidecars prove their identity.
    #[command(subcommand)]
    Token(TokenCommand),
    /// The control plane's audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Put sidecars into the pod templates of YAML files, as the webhook would into their pods.
    Inject(inject::InjectArgs),
    /// Build a whole mesh on this machine, without root, put it under load and watch it keep its promises.
    Demo(demo::DemoArgs),
    /// Run an application of the demo.
    #[command(hide = true)]
    DemoApp(demo::apps::AppArgs),
}

#[derive(Args)]
struct ProxyCommand {
    #[command(subcommand)]
    command: Option<ProxySubcommand>,
    #[command(flatten)]
    proxy: Option<ProxyArgs>,
}

#[derive(Subcommand)]
enum ProxySubcommand {
    /// Write (or remove) the rules that redirect this network namespace's connections to the sidecar.
    Init(redirect::InitArgs),
    /// Prove that this network namespace's connections are redirected, before the sidecar starts.
    Validate(redirect::ValidateArgs),
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Print a join token for one service account.
    Create(weft_control_plane::TokenCreateArgs),
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Check that no line of the audit log is missing or altered.
    Verify {
        /// State directory of the control plane.
        #[arg(long, env = "WEFT_STATE")]
        state: PathBuf,
    },
}

fn main() -> ExitCode {
    // The lab runs this program again for its own duties, before any thread exists.
    weft_loadtests::lab::init();
    weft_certs::install_crypto_provider();
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::ControlPlane(args) => weft_control_plane::main(args)?,
        Command::Proxy(proxy) => match *proxy {
            ProxyCommand { command: Some(ProxySubcommand::Init(args)), .. } => {
                println!("{}", redirect::run_init(&args)?)
            }
            ProxyCommand { command: Some(ProxySubcommand::Validate(args)), .. } => {
                println!("{}", redirect::run_validate(&args)?)
            }
            ProxyCommand { proxy: Some(args), .. } => weft_proxy::app::run(Settings::resolve(args)?)?,
            ProxyCommand { .. } => anyhow::bail!("nothing to run: see `weft proxy --help`"),
        },
        Command::Inject(args) => return inject::main(&args),
        Command::Demo(args) => return demo::main(&args),
        Command::DemoApp(args) => demo::apps::main(&args)?,
        Command::Audit(AuditCommand::Verify { state }) => println!("{}", weft_control_plane::verify_audit(&state)?),
        Command::Token(TokenCommand::Create(args)) => println!("{}", weft_control_plane::create_token(&args)?),
    }
    Ok(ExitCode::SUCCESS)
}
