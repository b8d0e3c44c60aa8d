//! Where log lines go: one bounded queue, one writer thread, standard output.
//!
//! Both the sidecar's own log and the access log are JSON lines, fit for Fluent Bit and Loki; those of the access log
//! have a field `kind`, the others a field `level`. Whoever logs never waits: when nobody reads the output the queue fills, and
//! what comes after is dropped and counted.
use std::io::Write;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait for the writer. At about 1 KiB a line this bounds the memory of an unread log to 2 MiB.
const QUEUED_LINES: usize = 2048;

/// Takes whole lines and never blocks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LineSink {
    queue: NonBlocking,
}

/// Writes what is still queued when dropped, for at most about a second. Keep it until the end of `main`.
#[derive(Debug)]
#[must_use = "dropping it ends the log"]
pub struct LogGuard {
    _worker: WorkerGuard,
}

/// How many lines were lost.
#[derive(Clone, Debug)]
pub(super) struct DroppedLines(ErrorCounter);

impl DroppedLines {
    pub(super) fn get(&self) -> u64 {
        self.0.dropped_lines() as u64
    }
}

impl LineSink {
    /// A sink that writes to `output` on a thread of its own.
    pub fn new(output: impl Write + Send + 'static) -> (Self, LogGuard) {
        let (queue, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUED_LINES)
            .thread_name("weft-log")
            .finish(output);
        (Self { queue }, LogGuard { _worker: worker })
    }

    /// A sink on standard output.
    pub fn stdout() -> (Self, LogGuard) {
        Self::new(std::io::stdout())
    }

    /// Queues `line`, which ends with a line break.
    pub(super) fn write(&self, line: &[u8]) {
        // A full queue is not an error here: the sink counts it.
        let _ = self.queue.clone().write_all(line);
    }

    pub(super) fn dropped_lines(&self) -> DroppedLines {
        DroppedLines(self.queue.error_counter())
    }
}

/// A level that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "log level `{given}`: {fault}; write error, warn, info, debug or trace, or directives such as `info,weft_proxy=debug`"
)]
pub struct LogLevelError {
    given: String,
    fault: String,
}

/// Makes `sink` the destination of the sidecar's own log, process-wide.
///
/// `level` is a level or a list of directives (`info,weft_proxy=debug`). A second call keeps the first set-up.
pub fn init(level: &str, sink: &LineSink) -> Result<(), LogLevelError> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|fault| LogLevelError { given: level.into(), fault: fault.to_string() })?;
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(sink.queue.clone());
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Ok(())
}
