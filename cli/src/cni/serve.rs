//! The agent's socket: one question and one answer a connection.
//!
//! Only root may connect. A caller that dawdles or says nothing that can be understood costs its own connection only.
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::pods::Pods;
use super::wire::{Answer, LINE_BYTES, Question, line};

/// Connections at a time; more wait. A node starts a few pods at once.
const CONNECTIONS: usize = 64;
/// How long one connection may last: less than the plugin waits, so that it hears why.
const CONNECTION: Duration = Duration::from_secs(12);
/// Rest after `accept` failed.
const REST: Duration = Duration::from_millis(100);

/// Listens at `path`, in the place of what was there. At no moment may anybody but this user connect.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
    fs::rename(&beside, path)?;
    Ok(listener)
}

/// Answers on `listener`; never ends.
pub(super) async fn run(listener: UnixListener, pods: Arc<Pods>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(fault) => {
                tracing::warn!(%fault, "cannot accept a question");
                sleep(REST).await;
                continue;
            }
        };
        let pods = pods.clone();
        connections.spawn(async move {
            let _permit = permit;
            match timeout(CONNECTION, serve(stream, &pods)).await {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => tracing::warn!(%fault, "a question was not answered"),
                Err(_) => tracing::warn!("a question was not answered in time"),
            }
        });
    }
}

async fn serve(stream: UnixStream, pods: &Pods) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut text = String::new();
    BufReader::new(reader.take(LINE_BYTES)).read_line(&mut text).await?;
    let question: Question = serde_json::from_str(&text)?;
    let answer = pods.answer(&question).await;
    let (namespace, pod) = (&question.namespace, &question.name);
    match &answer {
        Answer::Pass => tracing::debug!(namespace, pod, "left alone"),
        Answer::Redirect(_) => tracing::info!(namespace, pod, "to be redirected"),
        Answer::Invalid { reason } => tracing::warn!(namespace, pod, reason, "not to be started"),
        Answer::Unknown { reason } => tracing::warn!(namespace, pod, reason, "not known yet"),
    }
    writer.write_all(&line(&answer)?).await
}
