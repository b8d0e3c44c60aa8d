//! Wakes a reader when something in its directories may have changed: by the kernel's notices, gathered until they pause,
//! and every few seconds without any, because notices can be lost (network file systems, a replaced directory).
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Notices are gathered until none came for this long.
const PAUSE: Duration = Duration::from_millis(50);
/// Notices are gathered for at most this long.
const LONGEST_GATHERING: Duration = Duration::from_millis(300);

/// Watches directories; survives their absence and replacement.
pub struct Watch {
    watcher: Option<RecommendedWatcher>,
    directories: Vec<Directory>,
    notices: Receiver<()>,
    /// Kept so that `notices` waits even where neither the kernel nor a [`Wake`] can send any.
    _sender: SyncSender<()>,
}

struct Directory {
    path: PathBuf,
    mode: RecursiveMode,
    /// Device and inode of what is being watched at `path`.
    watched: Option<(u64, u64)>,
}

/// Asks the reader to look again now.
#[derive(Clone)]
pub struct Wake(SyncSender<()>);

impl Wake {
    /// Wakes the reader.
    pub fn wake(&self) {
        notice(&self.0);
    }
}

impl Watch {
    /// Watches `directories`, those marked true with everything below. Without notices from the kernel (too few inotify
    /// watches) it still wakes on time-outs.
    pub fn new(directories: &[(&Path, bool)]) -> (Self, Wake) {
        let (sender, notices) = sync_channel(1);
        let wake = Wake(sender.clone());
        let kept = sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            // Reading a file must not be a reason to read it again.
            Ok(event) if is_read(event.kind) => {}
            _ => notice(&sender),
        });
        let watcher = watcher
            .inspect_err(
                |fault| tracing::warn!(%fault, "no notices of changed files; looking every few seconds instead"),
            )
            .ok();
        let directories = directories
            .iter()
            .map(|(path, recursive)| Directory {
                path: (*path).to_owned(),
                mode: if *recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive },
                watched: None,
            })
            .collect();
        let mut watch = Self { watcher, directories, notices, _sender: kept };
        watch.follow();
        (watch, wake)
    }

    /// Waits for notices, at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) {
        if self.notices.recv_timeout(timeout).is_ok() {
            let start = Instant::now();
            while start.elapsed() < LONGEST_GATHERING {
                match self.notices.recv_timeout(PAUSE) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
        }
        self.follow();
    }

    /// Watches what is now at each path.
    fn follow(&mut self) {
        use std::os::unix::fs::MetadataExt as _;
        let Some(watcher) = &mut self.watcher else { return };
        for directory in &mut self.directories {
            let present = std::fs::metadata(&directory.path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
            if present == directory.watched {
                continue;
            }
            if directory.watched.take().is_some() {
                // What was replaced may be gone already.
                let _ = watcher.unwatch(&directory.path);
            }
            if present.is_some() {
                match watcher.watch(&directory.path, directory.mode) {
                    Ok(()) => directory.watched = present,
                    Err(fault) => tracing::debug!(path = %directory.path.display(), %fault, "cannot watch; polling"),
                }
            }
        }
    }
}

fn is_read(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

fn notice(sender: &SyncSender<()>) {
    match sender.try_send(()) {
        // One notice is enough, and without a reader none is needed.
        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
    }
}
