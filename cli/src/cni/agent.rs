//! Wiring of the agent: settings become a socket, a watch, an installed plugin; a signal becomes leaving or pausing.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use weft_proxy::telemetry::{LineSink, log};

use super::host::Host;
use super::pods::Pods;
use super::ready::{self, Readiness};
use super::settings::{AgentArgs, Settings};
use super::{keep, own, serve};

/// Runs the agent until SIGTERM or SIGINT; with `--remove`, takes the plugin away instead.
pub(super) fn main(args: AgentArgs) -> anyhow::Result<()> {
    let settings = Settings::resolve(&args)?;
    let (lines, _log) = LineSink::stdout();
    log::init(&args.log, &lines)?;
    if args.remove {
        return remove(&settings.host);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
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
    let pods = Arc::new(Pods::new(client.clone(), readiness.clone()));
    tokio::select! {
        () = serve::run(socket, pods.clone()) => {}
        () = pods.follow(&settings.node_name) => {}
        () = ready::serve(probes, readiness.clone()) => {}
        () = keep::run(&settings.host, &readiness) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if own::is_leaving(client, &settings.namespace, &settings.daemon_set).await {
        remove(&settings.host)?;
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

fn remove(host: &Host) -> anyhow::Result<()> {
    let (changed, failed) = host.remove();
    for path in changed {
        tracing::info!(path = %path.display(), "the plugin was taken out");
    }
    let failed: Vec<String> = failed.iter().map(ToString::to_string).collect();
    anyhow::ensure!(failed.is_empty(), "the plugin could not be taken out everywhere:\n  - {}", failed.join("\n  - "));
    Ok(())
}
