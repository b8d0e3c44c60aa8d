//! `weft`: one binary that can run everything, on a laptop, an edge host or a server.
mod cni;
mod crds;
mod demo;
mod inject;
mod kubernetes;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
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
    /// Check a cluster before (`--pre`) and after installing Weft: each failure with its remedy.
    Check(Box<kubernetes::check::CheckArgs>),
    /// Show what the mesh of a cluster is doing.
    Get(Box<kubernetes::get::GetArgs>),
    /// Versions of this program, the control plane and the sidecars.
    Version(Box<kubernetes::version::VersionArgs>),
    /// Print a shell's completions of this command line.
    Completion {
        /// The shell.
        shell: Shell,
    },
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
    Crds(crds::CrdsArgs),
    /// Install the CNI plugin on this node, keep it there and answer its questions.
    CniAgent(cni::AgentArgs),
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
    // By this name a container runtime calls it, one thread and no flags.
    if cni::is_plugin() {
        return cni::plugin();
    }
    // The lab runs this program again for its own duties, before any thread exists.
    weft_loadtests::lab::init();
    weft_certs::install_crypto_provider();
    match run(parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What `kubectl weft` runs: this program under another name.
const KUBECTL_PLUGIN: &str = "kubectl-weft";

/// The command line. As a plugin of kubectl it is shown as one types it.
fn command_line() -> clap::Command {
    let called = std::env::args_os().next().map(PathBuf::from);
    let command = Cli::command();
    match called.as_deref().and_then(std::path::Path::file_stem) {
        Some(name) if name == KUBECTL_PLUGIN => command.bin_name("kubectl weft").display_name("kubectl weft"),
        _ => command,
    }
}

fn parse() -> Cli {
    Cli::from_arg_matches(&command_line().get_matches()).unwrap_or_else(|fault| fault.exit())
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(args) => return kubernetes::check::main(&args),
        Command::Get(args) => return kubernetes::get::main(&args),
        Command::Version(args) => return kubernetes::version::main(&args),
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut text);
            kubernetes::print(&String::from_utf8_lossy(&text))?;
        }
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
        Command::Crds(args) => crds::main(&args)?,
        Command::CniAgent(args) => cni::agent(args)?,
        Command::Inject(args) => return inject::main(&args),
        Command::Demo(args) => return demo::main(&args),
        Command::DemoApp(args) => demo::apps::main(&args)?,
        Command::Audit(AuditCommand::Verify { state }) => println!("{}", weft_control_plane::verify_audit(&state)?),
        Command::Token(TokenCommand::Create(args)) => println!("{}", weft_control_plane::create_token(&args)?),
    }
    Ok(ExitCode::SUCCESS)
}
