//! Keeps the plugin installed: after every change in the folder of network configurations, and now and then without one.
//!
//! Another CNI may rewrite its file, or a file that comes first may appear; a pod that starts before the entry is back
//! finds no rules, which `weft-validate` notices. So the way from a change to the entry is short. A program that takes the
//! entry out again and again is not raced: each further round waits longer.
use std::path::Path;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::host::{Compared, Host};
use super::ready::Readiness;

/// Without any notice: notices can be lost, and the folder of plugins gives none.
const ROUND: Duration = Duration::from_secs(10);
/// A writer that takes several steps is given so long to come to its end.
const SETTLE: Duration = Duration::from_millis(20);
/// Changes that follow each other faster than this make the next one wait, at most [`LONGEST_WAIT`].
const CALM: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Installs and re-installs on `host`; never ends.
pub(super) async fn run(host: &Host, readiness: &Readiness) {
    // Kept here too, so that `noticed` waits even where the kernel sends none.
    let (notices, mut noticed) = mpsc::channel(1);
    let _watcher = watch(&host.conf_dir, notices.clone()).inspect_err(
        |fault| tracing::warn!(%fault, "no notices of changed network configurations; looking every 10 s"),
    );
    let (mut compared, mut before) = (Compared::default(), None);
    let (mut wait, mut last_change) = (SETTLE, None::<Instant>);
    loop {
        let state = once(host, &mut compared);
        let calm = last_change.is_none_or(|at| at.elapsed() > CALM);
        if matches!(state, Ok((_, true))) {
            wait = if calm { SETTLE } else { (wait * 2).min(LONGEST_WAIT) };
            last_change = Some(Instant::now());
            if wait == LONGEST_WAIT {
                tracing::warn!("another program keeps taking the plugin out of the network configuration");
            }
        } else if calm {
            wait = SETTLE;
        }
        let state = state.map(|(file, _)| file);
        if before.as_ref() != Some(&state) {
            match &state {
                Ok(file) => tracing::info!(file, "the plugin is in force"),
                Err(why) => tracing::warn!(%why, "the plugin is not in force"),
            }
        }
        readiness.node(state.clone().map(drop));
        before = Some(state);
        if let Ok(Some(())) = timeout(ROUND, noticed.recv()).await {
            sleep(wait).await;
            let _ = noticed.try_recv();
        }
    }
}

/// One round; returns the configuration that the plugin is in, and whether it had to be put there.
fn once(host: &Host, compared: &mut Compared) -> Result<(String, bool), String> {
    let installed = host.install_plugin(compared).map_err(|fault| fault.to_string())?;
    if installed {
        tracing::info!(folder = %host.bin_dir.display(), "the plugin's file was written");
    }
    let (file, changed) = host.insert().map_err(|fault| fault.to_string())?;
    if changed {
        tracing::info!(file, "the plugin was added to the network configuration");
    }
    Ok((file, changed))
}

fn watch(folder: &Path, notices: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| is_read(event.kind)) {
            // One notice is enough.
            let _ = notices.try_send(());
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

fn is_read(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}
