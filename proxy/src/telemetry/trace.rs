//! Spans: one for the client's side and one for the server's side of each hop.
//!
//! A span is a few numbers until its request ends. Only then is it decided whether it is exported: what was sampled is,
//! and what ended badly (refused, limited, failed, 5xx, slower than the route's own 99th percentile) is too, whatever
//! the ratio says, within a budget. Nothing here waits: a span that the exporter's queue does not take is dropped and
//! counted.
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::TelemetryError;
use super::context::{self, Incoming};
use super::event::{Outcome, Party, RequestEvent, TraceIds};
use super::export::{self, Exporter, OtlpSettings, SpanRecord};
use super::metrics::Metrics;
use super::rate::TokenBucket;

/// Unsampled spans that are exported all the same because they ended badly, a second and worker.
const FORCED_A_SECOND: u32 = 50;

/// Which side of a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Outbound: we call for our application.
    Client,
    /// Inbound: our application is called.
    Server,
}

/// A span whose request is under way. Dropping it unfinished discards it.
#[derive(Debug)]
pub struct ActiveSpan {
    kind: Kind,
    ids: TraceIds,
    sampled: bool,
    start: SystemTime,
    incoming: Box<Incoming>,
}

impl ActiveSpan {
    /// Its ids.
    pub fn ids(&self) -> TraceIds {
        self.ids
    }

    /// Makes this span the parent of the next hop: sets `traceparent`, and brings `b3` fields up to date where present.
    /// `tracestate` that is malformed or beyond the standard's limits, and `baggage` beyond 8192 bytes, are removed.
    pub fn inject(&self, headers: &mut HeaderMap) {
        context::inject(self.ids, self.incoming.parent, self.sampled, &self.incoming, headers);
    }
}

/// Tracing of a process: the exporter and the ratio.
#[derive(Debug)]
pub(super) struct Tracing {
    exporter: Arc<Exporter>,
    /// A trace that starts here is sampled if the lower 63 bits of its id are below.
    threshold: u64,
}

impl Tracing {
    pub(super) fn start(
        settings: OtlpSettings,
        workload: &Party,
        metrics: Arc<Metrics>,
    ) -> Result<Self, TelemetryError> {
        let ratio = settings.sampling_ratio;
        if !(0.0..=1.0).contains(&ratio) {
            return Err(TelemetryError::SamplingRatio(ratio));
        }
        let threshold = (ratio * (1u64 << 63) as f64) as u64;
        Ok(Self { exporter: Arc::new(export::start(&settings, workload, metrics)?), threshold })
    }

    pub(super) fn source(&self) -> SpanSource {
        SpanSource {
            exporter: self.exporter.clone(),
            threshold: self.threshold,
            random: RefCell::new(SmallRng::from_os_rng()),
            forced: RefCell::new(TokenBucket::new(FORCED_A_SECOND, FORCED_A_SECOND, Instant::now())),
        }
    }

    pub(super) async fn flush(&self, limit: Duration) {
        self.exporter.flush(limit).await;
    }
}

/// Where one worker's spans come from.
#[derive(Debug)]
pub(super) struct SpanSource {
    exporter: Arc<Exporter>,
    threshold: u64,
    random: RefCell<SmallRng>,
    forced: RefCell<TokenBucket>,
}

impl SpanSource {
    pub(super) fn start(&self, kind: Kind, headers: &HeaderMap) -> ActiveSpan {
        let incoming = context::extract(headers);
        let mut random = self.random.borrow_mut();
        let span_id = random.random_range(1..=u64::MAX);
        let trace_id = incoming.parent.map_or_else(|| random.random_range(1..=u128::MAX), |parent| parent.trace_id);
        let by_ratio = (trace_id as u64 & (u64::MAX >> 1)) < self.threshold;
        ActiveSpan {
            kind,
            ids: TraceIds { trace_id, span_id },
            sampled: incoming.sampled.unwrap_or(by_ratio),
            start: SystemTime::now(),
            incoming: Box::new(incoming),
        }
    }

    pub(super) fn finish(&self, span: ActiveSpan, event: &RequestEvent<'_>, slow: bool) {
        let forced = |bucket: &RefCell<TokenBucket>| bucket.borrow_mut().take(Instant::now());
        if span.sampled || ((slow || ended_badly(event)) && forced(&self.forced)) {
            self.exporter.export(SpanRecord {
                kind: span.kind,
                ids: span.ids,
                parent: span.incoming.parent.map(|parent| parent.span_id),
                tracestate: &span.incoming.tracestate,
                start: span.start,
                event,
            });
        }
    }
}

/// Whether an operator would want to see it: refused, limited, failed, a server's error.
pub(super) fn ended_badly(event: &RequestEvent<'_>) -> bool {
    let failed = matches!(event.outcome, Outcome::Denied { .. } | Outcome::Limited { .. } | Outcome::Failed { .. });
    failed || event.status >= 500 || event.grpc_status.is_some_and(is_server_error)
}

/// gRPC codes that OpenTelemetry's conventions count as the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED,
/// INTERNAL, UNAVAILABLE, DATA_LOSS.
pub(super) fn is_server_error(code: u16) -> bool {
    matches!(code, 2 | 4 | 12 | 13 | 14 | 15)
}
