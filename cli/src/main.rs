//! `weft`: one binary that can run everything, on a laptop, an edge host or a server.
mod cni;
mod completion;
mod crds;
mod demo;
mod inject;
mod kubernetes;
mod policy;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
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
    ControlPlane(Box<weft_control_plane::Args>),
    /// Run a sidecar, or write the rules that redirect connections to it.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Proxy(Box<ProxyCommand>),
    /// Join tokens, with which sidecars prove their identity.
    #[command(subcommand)]
    Token(TokenCommand),
    /// The control plane's audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Try policies out on calls before they are in force, and explain those that are.
    #[command(subcommand)]
    Policy(Box<policy::PolicyCommand>),
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
    /// Look at a mesh from the inside: call, make load, watch the wire.
    #[command(hide = true)]
    DemoClient(demo::client::ClientArgs),
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
    let done = match called_as(std::env::args_os().next()) {
        CalledAs::Weft => parsed(Cli::command()).and_then(|cli| run(cli.command)),
        CalledAs::KubectlPlugin => parsed(as_plugin(Cli::command())).and_then(|cli| run(cli.command)),
        CalledAs::KubectlCompletion => {
            let words: Vec<String> = std::env::args().skip(1).collect();
            kubernetes::print(&completion::for_kubectl(&Cli::command(), &words)).map(|()| ExitCode::SUCCESS)
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The name that this program was started under: links to it are plugins of kubectl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CalledAs {
    Weft,
    /// `kubectl weft …`.
    KubectlPlugin,
    /// kubectl asks what may follow.
    KubectlCompletion,
}

fn called_as(name: Option<OsString>) -> CalledAs {
    let name = name.map(PathBuf::from);
    match name.as_deref().and_then(Path::file_stem).and_then(OsStr::to_str) {
        Some("kubectl-weft") => CalledAs::KubectlPlugin,
        Some("kubectl_complete-weft") => CalledAs::KubectlCompletion,
        _ => CalledAs::Weft,
    }
}

/// Shown as one types it.
fn as_plugin(command: clap::Command) -> clap::Command {
    command.bin_name("kubectl weft").display_name("kubectl weft")
}

fn parsed(command: clap::Command) -> anyhow::Result<Cli> {
    Ok(Cli::from_arg_matches(&command.get_matches())?)
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(args) => return kubernetes::check::main(&args),
        Command::Get(args) => return kubernetes::get::main(&args),
        Command::Version(args) => return kubernetes::version::main(&args),
        Command::Completion { shell } => kubernetes::print(&completion::script(shell, Cli::command()))?,
        Command::ControlPlane(args) => weft_control_plane::main(*args)?,
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
        Command::Policy(command) => return policy::main(&command),
        Command::Crds(args) => crds::main(&args)?,
        Command::CniAgent(args) => cni::agent(args)?,
        Command::Inject(args) => return inject::main(&args),
        Command::Demo(args) => return demo::main(&args),
        Command::DemoApp(args) => demo::apps::main(&args)?,
        Command::DemoClient(args) => return demo::client::main(&args),
        Command::Audit(AuditCommand::Verify { state }) => println!("{}", weft_control_plane::verify_audit(&state)?),
        Command::Token(TokenCommand::Create(args)) => println!("{}", weft_control_plane::create_token(&args)?),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn links_to_the_program_are_plugins_of_kubectl() {
        for (name, expected) in [
            ("weft", CalledAs::Weft),
            ("/usr/local/bin/kubectl-weft", CalledAs::KubectlPlugin),
            ("kubectl-weft.exe", CalledAs::KubectlPlugin),
            ("/opt/kubectl_complete-weft", CalledAs::KubectlCompletion),
            ("", CalledAs::Weft),
        ] {
            assert_eq!(called_as(Some(name.into())), expected, "{name}");
        }
        assert_eq!(called_as(None), CalledAs::Weft);
        let help = as_plugin(Cli::command()).try_get_matches_from(["kubectl-weft", "get", "--help"]);
        let help = help.expect_err("help").to_string();
        assert!(help.contains("Usage: kubectl weft get"), "{help}");
    }

    #[test]
    fn commands_on_a_cluster_take_the_flags_of_kubectl() {
        for (line, valid) in [
            ("weft check --pre --strict -o json -n mesh --context a --kubeconfig /x --request-timeout 5", true),
            ("weft check -o wide", false),
            ("weft get workloads -A -o wide", true),
            ("weft get workloads orders-1 -n shop -l app=orders --cluster c --user u", true),
            ("weft get workloads -A -n shop", false),
            ("weft get edges --over 10s -o yaml", true),
            ("weft get edges --over soon", false),
            ("weft get policies --pod orders-1 -n shop", true),
            ("weft get policies deploy/orders", true),
            ("weft get policies readers --pod orders-1", false),
            ("weft get", false),
            ("weft version --client -o json", true),
            ("weft version --as admin --as-group ops", true),
            ("weft version --as-group ops", false),
            ("weft policy test --resources d t.yaml u.yaml -o junit", true),
            ("weft policy test --resources d", false),
            ("weft policy explain pod/a --from shop/orders --port 80 --method GET --path /a -n shop", true),
            ("weft policy explain --admin 127.0.0.1:4291 --last 10", true),
            ("weft policy explain --from shop/orders", false),
            ("weft policy explain pod/a", false),
            ("weft policy explain pod/a --from shop/orders --last 10", false),
            ("weft policy calls --control-plane 127.0.0.1:4291 -o json", true),
            ("weft policy calls --hours 25", false),
            ("weft policy diff --resources d --calls c.json --fail-on refused", true),
            ("weft policy diff --calls c.json", false),
            ("weft policy suggest --include-outside -n shop", true),
            ("weft completion zsh", true),
            ("weft completion korn", false),
        ] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).is_ok(), valid, "{line}");
        }
    }
}
