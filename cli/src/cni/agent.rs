//! Wiring of the agent: settings become a socket, a watch, an installed plugin; a signal becomes leaving or pausing.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use weft_proxy::telemetry::{LineSink, log};

use super::host::Host;
use super::pods::Pods;
use super::ready::{self, Readiness};
use super::settings::{AgentArgs, Settings};
use super::{PLUGIN, keep, own, serve};

/// What the container runtime has begun with the plugin, or begins before it has read its configuration again, is given so
/// long to find the plugin's file.
const BEFORE_REMOVAL: Duration = Duration::from_secs(2);

/// Runs the agent until SIGTERM or SIGINT; with `--remove`, takes the plugin away instead.
pub(super) fn main(args: AgentArgs) -> anyhow::Result<()> {
    let settings = Settings::resolve(&args)?;
    let (lines, _log) = LineSink::stdout();
    log::init(&args.log, &lines)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if args.remove {
        return runtime.block_on(remove(&settings.host, true));
    }
    runtime.block_on(run(&settings))
}

async fn run(settings: &Settings) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let client = Client::try_default().await.context("there is no way to the API server")?;
    let readiness = Readiness::starting();
    let probes = TcpListener::bind(settings.listen).await.with_context(|| format!("--listen {}", settings.listen))?;
    // Before the plugin is installed: from then on it asks.
    let socket = serve::bind(&settings.socket).with_context(|| format!("--socket {}", settings.socket.display()))?;
    let own_socket = inode(&settings.socket);
    let pods = Arc::new(Pods::new(client.clone(), readiness.clone(), settings.delete_stuck_pods));
    let leaving = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Meanwhile questions are answered.
        own::is_leaving(client, &settings.namespace, &settings.daemon_set).await
    };
    let leaving = tokio::select! {
        leaving = leaving => leaving,
        () = serve::run(socket, pods.clone()) => anyhow::bail!("the socket is closed"),
        () = pods.follow(&settings.node_name) => anyhow::bail!("the watch of pods has ended"),
        () = ready::serve(probes, readiness.clone()) => anyhow::bail!("the port of /ready is closed"),
        () = keep::run(&settings.host, &readiness) => anyhow::bail!("the folders are not watched any more"),
    };
    if leaving {
        remove(&settings.host, !pods.are_on_cri_o()).await?;
    } else {
        tracing::info!("stopping; the plugin stays, and pods wait for the next agent");
    }
    // The next agent may have put its own there.
    if inode(&settings.socket) == own_socket {
        let _ = fs::remove_file(&settings.socket);
    }
    Ok(())
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// Takes the plugin off the node, its file only if `whole`.
async fn remove(host: &Host, whole: bool) -> anyhow::Result<()> {
    let (changed, failed) = host.take_out();
    for path in changed {
        tracing::info!(path = %path.display(), "the plugin was taken out");
    }
    let failed: Vec<String> = failed.iter().map(ToString::to_string).collect();
    anyhow::ensure!(failed.is_empty(), "the plugin could not be taken out everywhere:\n  - {}", failed.join("\n  - "));
    if !whole {
        let file = host.bin_dir.join(PLUGIN);
        tracing::info!(
            file = %file.display(),
            "left there: CRI-O needs it to end the pods that were started with it; it does nothing else"
        );
        return Ok(());
    }
    sleep(BEFORE_REMOVAL).await;
    host.remove_plugin()?;
    Ok(())
}
