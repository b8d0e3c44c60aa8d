//! The access log: one JSON line a request, byte stream or refusal.
//!
//! Fields, all optional but `time`, `kind`, `direction` and `outcome`: `protocol`, `source`, `source_namespace`,
//! `destination`, `destination_namespace`, `tls`, `peer` (SPIFFE ID), `peer_address`, `method`, `path`, `host`, `status`,
//! `grpc_status`, `retries`, `duration_ms`, `overhead_ms`, `request_bytes`, `response_bytes` (for byte streams: sent and received),
//! `route`, `policy`, `limit`, `reason`, `detail`, `trace_id`, `span_id`, `suppressed` (how many refusals went unlogged since the
//! last that was). `kind` is `access`.
//!
//! It never holds a header's value, a query string or a body. What stems from a request is cut and escaped.
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer};

use super::event::{ConnectionEvent, Ends, Outcome, Refusal, RequestEvent, TraceIds};
use super::log::LineSink;
use super::metrics::Metrics;
use super::rate::TokenBucket;
use super::text::bounded;
use super::trace::ended_badly;

/// Refusals logged a second and worker on average, and at once.
const REFUSALS_A_SECOND: u32 = 20;
const REFUSALS_BURST: u32 = 100;
/// Longest text from a request, in bytes.
const TEXT_MAX: usize = 512;

/// What gets a line. Refused and limited calls do in every mode; unless the mode is `All` these are rate-bounded (20 a
/// second and worker after a burst of 100), and the next one logged says how many were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessLogMode {
    /// Refused and limited calls only.
    Off,
    /// Also what failed: no answer, 5xx, a gRPC code that is the server's fault.
    #[default]
    Errors,
    /// Every request and connection.
    All,
}

/// One worker's access log.
#[derive(Debug)]
pub(super) struct AccessLog {
    mode: AccessLogMode,
    lines: LineSink,
    metrics: Arc<Metrics>,
    refusals: RefCell<TokenBucket>,
    suppressed: Cell<u64>,
}

/// Text from a request.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&bounded(self.0, TEXT_MAX))
    }
}

/// A line, in the order of its fields.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    kind: &'static str,
    direction: &'static str,
    outcome: &'static str,
    #[serde(flatten)]
    ends: Option<EndsFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_address: Option<SocketAddr>,
    #[serde(flatten)]
    request: Option<RequestFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_bytes: Option<u64>,
    #[serde(flatten)]
    decision: Decision<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suppressed: Option<u64>,
}

#[derive(Serialize)]
struct EndsFields<'a> {
    protocol: &'static str,
    source: Text<'a>,
    source_namespace: Text<'a>,
    destination: Text<'a>,
    destination_namespace: Text<'a>,
    tls: bool,
}

#[derive(Serialize)]
struct RequestFields<'a> {
    method: Text<'a>,
    path: Text<'a>,
    host: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
}

#[derive(Default, Serialize)]
struct Decision<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Text<'a>>,
}

impl AccessLog {
    pub(super) fn new(mode: AccessLogMode, lines: LineSink, metrics: Arc<Metrics>) -> Self {
        let refusals = RefCell::new(TokenBucket::new(REFUSALS_A_SECOND, REFUSALS_BURST, Instant::now()));
        Self { mode, lines, metrics, refusals, suppressed: Cell::new(0) }
    }

    pub(super) fn request(&self, event: &RequestEvent<'_>, trace: Option<TraceIds>) {
        if !self.wants(event.outcome.is_refusal(), || ended_badly(event)) {
            return;
        }
        self.write(Line {
            ends: Some(EndsFields::of(event.ends)),
            peer: event.peer_identity.map(Text),
            peer_address: event.peer_address,
            request: Some(RequestFields {
                method: Text(event.method),
                path: Text(event.path.split(['?', '#']).next().unwrap_or_default()),
                host: Text(event.host),
                status: (event.status != 0).then_some(event.status),
                grpc_status: event.grpc_status,
                route: event.route.map(Text),
                retries: (event.retries != 0).then_some(event.retries),
            }),
            duration_ms: Some(millis(event.duration)),
            overhead_ms: event.overhead.map(millis),
            request_bytes: Some(event.request_bytes),
            response_bytes: Some(event.response_bytes),
            decision: Decision::of(event.outcome),
            trace_id: trace.map(|ids| format!("{:032x}", ids.trace_id)),
            span_id: trace.map(|ids| format!("{:016x}", ids.span_id)),
            ..Line::new(event.ends.direction.as_str(), event.outcome.as_str())
        });
    }

    pub(super) fn connection(
        &self,
        ends: &Ends,
        event: &ConnectionEvent<'_>,
        duration: Duration,
        sent: u64,
        received: u64,
    ) {
        if !self.wants(event.outcome.is_refusal(), || matches!(event.outcome, Outcome::Failed { .. })) {
            return;
        }
        self.write(Line {
            ends: Some(EndsFields::of(ends)),
            peer: event.peer_identity.map(Text),
            peer_address: event.peer_address,
            duration_ms: Some(millis(duration)),
            request_bytes: Some(sent),
            response_bytes: Some(received),
            decision: Decision::of(event.outcome),
            ..Line::new(ends.direction.as_str(), event.outcome.as_str())
        });
    }

    pub(super) fn refused(&self, refusal: &Refusal<'_>) {
        if !self.wants(true, || true) {
            return;
        }
        self.write(Line {
            peer: refusal.peer_identity.map(Text),
            peer_address: refusal.peer_address,
            decision: Decision { reason: Some(Text(refusal.reason)), ..Decision::default() },
            detail: refusal.detail.map(Text),
            ..Line::new(refusal.direction.as_str(), "refused")
        });
    }

    fn wants(&self, refusal: bool, failed: impl Fn() -> bool) -> bool {
        match self.mode {
            AccessLogMode::All => true,
            _ if refusal => {
                let allowed = self.refusals.borrow_mut().take(Instant::now());
                if !allowed {
                    self.suppressed.set(self.suppressed.get() + 1);
                    self.metrics.state.log_lines_suppressed.fetch_add(1, Ordering::Relaxed);
                }
                allowed
            }
            AccessLogMode::Errors => failed(),
            AccessLogMode::Off => false,
        }
    }

    fn write(&self, mut line: Line<'_>) {
        line.suppressed = Some(self.suppressed.take()).filter(|count| *count > 0);
        let mut bytes = Vec::with_capacity(512);
        if serde_json::to_writer(&mut bytes, &line).is_ok() {
            bytes.push(b'\n');
            self.lines.write(&bytes);
        }
    }
}

impl Line<'_> {
    fn new(direction: &'static str, outcome: &'static str) -> Self {
        Self {
            time: timestamp(SystemTime::now()),
            kind: "access",
            direction,
            outcome,
            ends: None,
            peer: None,
            peer_address: None,
            request: None,
            duration_ms: None,
            overhead_ms: None,
            request_bytes: None,
            response_bytes: None,
            decision: Decision::default(),
            detail: None,
            trace_id: None,
            span_id: None,
            suppressed: None,
        }
    }
}

impl<'a> EndsFields<'a> {
    fn of(ends: &'a Ends) -> Self {
        Self {
            protocol: ends.protocol.as_str(),
            source: Text(&ends.source.name),
            source_namespace: Text(&ends.source.namespace),
            destination: Text(&ends.destination.name),
            destination_namespace: Text(&ends.destination.namespace),
            tls: ends.tls,
        }
    }
}

impl<'a> Decision<'a> {
    fn of(outcome: Outcome<'a>) -> Self {
        let (policy, limit, reason) = match outcome {
            Outcome::Denied { policy, reason } => (Some(policy), None, Some(reason)),
            Outcome::Limited { policy, limit } => (Some(policy), Some(limit), None),
            Outcome::Failed { reason } => (None, None, Some(reason)),
            Outcome::Forwarded | Outcome::Cancelled => (None, None, None),
        };
        Self { policy: policy.map(Text), limit: limit.map(Text), reason: reason.map(Text) }
    }
}

/// Milliseconds with three digits after the point.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// RFC 3339 with milliseconds, UTC.
fn timestamp(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}
