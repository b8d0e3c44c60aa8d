//! Async code in a pod: a thread in the pod's namespaces with a runtime of its own.

use super::namespace::Namespace;
use super::{Error, Result};
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;
use tokio::sync::watch;

type Outcome<T> = thread::Result<Option<T>>;

/// Async code that runs in a pod in the background. Dropping it ends it at its next `.await`.
#[derive(Debug)]
pub struct Task<T> {
    outcome: Receiver<Outcome<T>>,
    /// Dropped to end the task.
    stop: Option<watch::Sender<()>>,
}

impl<T: Send + 'static> Task<T> {
    /// Waits for the end and returns the result.
    ///
    /// # Errors
    /// The lab was dropped before.
    ///
    /// # Panics
    /// With the task's own panic, if it panicked.
    pub fn join(self) -> Result<T> {
        finished(self.outcome.recv().ok())
    }

    /// Waits at most `timeout`; `None` if the task is still running then, which ends it.
    ///
    /// # Errors
    /// The lab was dropped before.
    ///
    /// # Panics
    /// With the task's own panic, if it panicked.
    pub fn join_timeout(self, timeout: Duration) -> Result<Option<T>> {
        match self.outcome.recv_timeout(timeout) {
            Ok(outcome) => finished(Some(outcome)).map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => finished(None),
        }
    }

    /// Ends the task and waits until its sockets are closed. `None` if it had no result yet.
    ///
    /// # Panics
    /// With the task's own panic, if it panicked.
    pub fn stop(mut self) -> Option<T> {
        self.stop = None;
        match self.outcome.recv() {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => None,
        }
    }
}

fn finished<T>(outcome: Option<Outcome<T>>) -> Result<T> {
    match outcome {
        Some(Ok(Some(result))) => Ok(result),
        Some(Err(panic)) => resume_unwind(panic),
        Some(Ok(None)) | None => {
            Err(Error::new("wait for a task", io::Error::new(io::ErrorKind::NotConnected, "the lab has ended")))
        }
    }
}

/// Starts `make()` on a thread of `namespace`. It ends when `ended` closes.
pub(crate) fn start<T, F>(
    namespace: &Namespace,
    mut ended: watch::Receiver<()>,
    make: impl FnOnce() -> F + Send + 'static,
) -> Result<Task<T>>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (stop, mut stopped) = watch::channel(());
    let (sender, outcome) = channel();
    namespace.thread("task", move || {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime needs an epoll descriptor only");
            let local = tokio::task::LocalSet::new();
            let result = local.block_on(&runtime, async {
                tokio::select! {
                    biased;
                    _ = ended.changed() => None,
                    _ = stopped.changed() => None,
                    result = make() => Some(result),
                }
            });
            drop(local);
            // A name lookup may still hold a thread.
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        }));
        let _ = sender.send(result);
    })?;
    Ok(Task { outcome, stop: Some(stop) })
}
