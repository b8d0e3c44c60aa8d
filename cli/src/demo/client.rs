//! A client that looks at a mesh from the inside: it calls, makes load and keeps a ledger of it, or watches the wire.
//!
//! Run by the hidden subcommand `weft demo-client`, in pods of the end-to-end test, whose image has no shell. It knows
//! nothing of the mesh. What it counts it prints as one line of JSON, each second anew, so that whoever reads its log
//! has the whole ledger in the last line.
mod ledger;
mod wire;

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use http::{Method, Uri};

use super::http::Client;

/// Flags of `weft demo-client`.
#[derive(Args, Debug)]
pub(crate) struct ClientArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Calls once and prints the status and the body; exit code 1 without an answer.
    Call {
        /// The method.
        #[arg(long, default_value = "GET")]
        method: Method,
        /// `http://HOST[:PORT]/PATH`.
        url: Uri,
    },
    /// Makes load until it is told to stop, and keeps a ledger.
    Load(LoadArgs),
    /// Counts the frames between two addresses, and those with a text in the clear, until it is told to stop.
    Watch(WatchArgs),
}

/// What load to make.
#[derive(Args, Debug)]
struct LoadArgs {
    /// `http://HOST[:PORT]/PATH`.
    url: Uri,
    /// The method.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// Requests a second. Without: as fast as answers come.
    #[arg(long)]
    rate: Option<f64>,
    /// Connections that are kept open.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Ends by itself after so many requests.
    #[arg(long)]
    requests: Option<u64>,
}

/// What to watch for.
#[derive(Args, Clone, Debug)]
struct WatchArgs {
    /// One end of the connections.
    one: IpAddr,
    /// The other end.
    other: IpAddr,
    /// What must not, or must, be readable.
    #[arg(long)]
    text: String,
}

/// How often a ledger is printed.
const PRINT: Duration = Duration::from_secs(1);

/// Does what is asked for. The exit code of a call says whether there was an answer, whatever its status.
///
/// # Errors
/// What cannot be done at all.
pub(crate) fn main(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match &args.what {
        What::Call { method, url } => runtime.block_on(call(method, url)),
        What::Load(args) => runtime.block_on(ledger::keep(args)).map(|()| ExitCode::SUCCESS),
        What::Watch(args) => runtime.block_on(wire::watch(args)).map(|()| ExitCode::SUCCESS),
    }
}

async fn call(method: &Method, url: &Uri) -> anyhow::Result<ExitCode> {
    let authority = url.authority().context("write http://HOST[:PORT]/PATH")?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    match Client::default().call(method.clone(), authority.as_str(), path).await {
        Ok(answer) => {
            println!("{} {}", answer.status, answer.body.trim());
            Ok(ExitCode::SUCCESS)
        }
        Err(fault) => {
            println!("no answer: {fault}");
            Ok(ExitCode::FAILURE)
        }
    }
}
