//! What the sidecar tells about itself: metrics, traces, the access log and its own log.
//!
//! Telemetry never slows the data path and never fails it: a worker writes to cells of its own, everything else goes
//! through bounded queues whose overflow is dropped and counted. Prometheus and OpenTelemetry are named only below here.
//!
//! Way in: [`Telemetry::new`] once a process, [`Telemetry::worker`] once a worker, then an event a request or connection.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

mod access_log;
mod calls;
mod cells;
mod context;
mod event;
mod export;
pub mod log;
mod metrics;
mod process;
mod rate;
mod refusals;
mod series;
mod text;
mod trace;
mod worker;

pub use access_log::AccessLogMode;
pub use calls::JudgedCall;
pub use event::{
    ConnectionEvent, Direction, Ends, Outcome, Party, Protocol, Refusal, RequestEvent, TraceIds, TrafficEvent, Verdict,
};
pub use export::OtlpSettings;
pub use log::{LineSink, LogGuard};
pub use refusals::RefusedCall;
pub use trace::{ActiveSpan, Kind};
pub use worker::{OpenConnection, WorkerTelemetry};

/// Most sample lines that `/metrics` shows, unless set otherwise.
pub const DEFAULT_SERIES_BUDGET: usize = 2_000;

/// The media type of [`Telemetry::encode`].
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of [`Telemetry::encode_classic`].
pub const CLASSIC_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How telemetry is set up.
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// The workload beside this sidecar: names the service in traces.
    pub workload: Party,
    /// Most sample lines in `/metrics`; label sets beyond are counted as `other`. Under about 250 it has no effect:
    /// that much the sidecar needs for itself.
    pub series_budget: usize,
    /// Which requests and connections get a line; refused and limited ones always do.
    pub access_log: AccessLogMode,
    /// Where spans go; `None`: no tracing at all, trace headers pass untouched.
    pub otlp: Option<OtlpSettings>,
}

/// A set-up that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The collector's address.
    #[error("OTLP endpoint `{endpoint}`: {fault}; write http://HOST:4317 (gRPC)")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The sampling ratio.
    #[error("trace sampling ratio {0} is not between 0 and 1")]
    SamplingRatio(f64),
    /// The thread that exports spans.
    #[error("cannot start the thread that exports spans: {0}")]
    Thread(#[from] std::io::Error),
}

/// All telemetry of a process. Shared; the setters are for the control thread.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Arc<metrics::Metrics>,
    access_log: AccessLogMode,
    lines: LineSink,
    tracing: Option<trace::Tracing>,
    workers: AtomicU32,
    calls: calls::Calls,
    refusals: refusals::Refusals,
}

impl Telemetry {
    /// Sets telemetry up; `lines` receives the access log.
    pub fn new(settings: TelemetrySettings, lines: LineSink) -> Result<Arc<Self>, TelemetryError> {
        let metrics = Arc::new(metrics::Metrics::new(settings.series_budget, lines.dropped_lines()));
        let tracing = match settings.otlp {
            Some(otlp) => Some(trace::Tracing::start(otlp, &settings.workload, metrics.clone())?),
            None => None,
        };
        Ok(Arc::new(Self {
            metrics,
            access_log: settings.access_log,
            lines,
            tracing,
            workers: AtomicU32::new(0),
            calls: calls::Calls::default(),
            refusals: refusals::Refusals::default(),
        }))
    }

    /// The part that one worker thread uses. It stays on that thread.
    pub fn worker(self: &Arc<Self>) -> WorkerTelemetry {
        WorkerTelemetry::new(self.clone(), self.workers.fetch_add(1, Ordering::Relaxed))
    }

    /// All metrics as OpenMetrics text ([`OPEN_METRICS`]).
    pub fn encode(&self) -> String {
        self.metrics.encode()
    }

    /// All metrics in the older Prometheus text format ([`CLASSIC_TEXT`]).
    pub fn encode_classic(&self) -> String {
        metrics::classic(&self.metrics.encode())
    }

    /// The calls that were judged since this was asked last.
    pub fn take_calls(&self) -> weft_api::observation::Observations {
        self.calls.take(std::time::Instant::now())
    }

    /// The last `most` calls that were refused or limited, the newest first.
    pub fn refusals(&self, most: usize) -> serde_json::Value {
        serde_json::to_value(self.refusals.last(most)).unwrap_or_default()
    }

    /// The end of validity of the certificate in use.
    pub fn set_certificate_expiry(&self, not_after: SystemTime) {
        self.metrics.state.certificate_expiry.store(metrics::unix_seconds(not_after), Ordering::Relaxed);
    }

    /// Whether the stream to the control plane stands.
    pub fn set_control_plane_connected(&self, connected: bool) {
        self.metrics.state.control_plane_connected.store(connected, Ordering::Relaxed);
    }

    /// Whether the last probe of the redirect rules was captured; the gauge is absent before the first.
    pub fn set_capture_works(&self, works: bool) {
        let found = if works { metrics::CAPTURE_WORKS } else { metrics::CAPTURE_BROKEN };
        self.metrics.state.capture.store(found, Ordering::Relaxed);
    }

    /// A certificate was asked for; `success`: and received.
    pub fn certificate_renewed(&self, success: bool) {
        self.metrics.state.renewals.count(success);
    }

    /// An update was applied and is in force.
    pub fn config_applied(&self, version: u64) {
        self.metrics.state.config_version.store(version, Ordering::Relaxed);
        self.metrics.state.config_updates.count(true);
    }

    /// An update was refused; the last good one stays in force.
    pub fn config_refused(&self) {
        self.metrics.state.config_updates.count(false);
    }

    /// Delivers the spans that still wait, for at most `limit`. Call it once, after the last worker has ended.
    pub async fn flush(&self, limit: std::time::Duration) {
        if let Some(tracing) = &self.tracing {
            tracing.flush(limit).await;
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace_tests;
