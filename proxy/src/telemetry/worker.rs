//! The part of telemetry that lives on one worker thread.
//!
//! An event costs one look-up in a table of this thread and a few additions to cells of this thread. Strings are made
//! only for events that are logged or traced.
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use http::HeaderMap;

use super::Telemetry;
use super::access_log::AccessLog;
use super::calls::{JudgedCall, WorkerCalls};
use super::cells::{Cells, OVERHEAD, REQUEST_DURATION};
use super::event::{ConnectionEvent, Direction, Ends, Outcome, Party, Refusal, RequestEvent, TrafficEvent, Verdict};
use super::refusals::RefusedCall;
use super::series::{Labels, Series, Status, tcp};
use super::trace::{ActiveSpan, Kind, SpanSource};

/// Entries of a worker's tables before they are emptied: far beyond any budget, so only names that come and go with
/// the mesh's life reach it.
const CACHED: usize = 8192;

/// Telemetry of one worker. Cheap to clone; stays on its thread.
#[derive(Clone, Debug)]
pub struct WorkerTelemetry(Rc<Worker>);

/// A worker's own counters by key.
type Table<K> = HashMap<K, Arc<Cells>>;

/// Whether limited, policy, limit.
type LimitName = (bool, Arc<str>, Arc<str>);

/// The `status` and `grpc_status` of a response.
type Answer = (Status, Option<u16>);

#[derive(Debug)]
struct Worker {
    shared: Arc<Telemetry>,
    id: u32,
    /// Of the series table, when the tables below were last emptied.
    epoch: Cell<u64>,
    overhead: [Arc<Cells>; 2],
    ends: RefCell<HashMap<Ends, Rc<EndsCells>>>,
    authorization: RefCell<Table<(Verdict, Arc<str>)>>,
    rate_limit: RefCell<Table<LimitName>>,
    refused: RefCell<Table<(Direction, &'static str)>>,
    traffic: RefCell<Table<(TrafficEvent, Party)>>,
    calls: WorkerCalls,
    log: AccessLog,
    spans: Option<SpanSource>,
}

/// What one pair of ends is counted in.
#[derive(Debug)]
struct EndsCells {
    labels: Labels,
    duration: OnceCell<Arc<Cells>>,
    tcp: OnceCell<Arc<Cells>>,
    /// Few pairs of status and gRPC status occur between two ends: a scan beats a hash.
    requests: RefCell<Vec<(Answer, Arc<Cells>)>>,
    observed: Cell<u32>,
    slow: Cell<Option<Duration>>,
}

/// A look-up key for two borrowed strings.
#[derive(Hash)]
struct LimitKey<'a>(bool, &'a str, &'a str);

impl hashbrown::Equivalent<LimitName> for LimitKey<'_> {
    fn equivalent(&self, key: &LimitName) -> bool {
        self.0 == key.0 && self.1 == &*key.1 && self.2 == &*key.2
    }
}

#[derive(Hash)]
struct PolicyKey<'a>(Verdict, &'a str);

impl hashbrown::Equivalent<(Verdict, Arc<str>)> for PolicyKey<'_> {
    fn equivalent(&self, key: &(Verdict, Arc<str>)) -> bool {
        self.0 == key.0 && self.1 == &*key.1
    }
}

impl WorkerTelemetry {
    pub(super) fn new(shared: Arc<Telemetry>, id: u32) -> Self {
        let overhead = [(); 2].map(|()| Arc::new(Cells::new(OVERHEAD.slots())));
        shared.metrics.overhead.lock().unwrap_or_else(PoisonError::into_inner).push(overhead.clone());
        let log = AccessLog::new(shared.access_log, shared.lines.clone(), shared.metrics.clone());
        let spans = shared.tracing.as_ref().map(|tracing| tracing.source());
        Self(Rc::new(Worker {
            shared,
            id,
            epoch: Cell::new(0),
            overhead,
            ends: RefCell::default(),
            authorization: RefCell::default(),
            rate_limit: RefCell::default(),
            refused: RefCell::default(),
            traffic: RefCell::default(),
            calls: WorkerCalls::default(),
            log,
            spans,
        }))
    }

    /// Starts a span that continues the trace in `headers`; `None` when tracing is off.
    pub fn start_span(&self, kind: Kind, headers: &HeaderMap) -> Option<ActiveSpan> {
        Some(self.0.spans.as_ref()?.start(kind, headers))
    }

    /// Counts a finished request, logs it if the mode says so, and finishes its span.
    pub fn request(&self, event: &RequestEvent<'_>, span: Option<ActiveSpan>) {
        let worker = self.0.current();
        let ends = worker.ends(event.ends);
        let slow = ends.count(worker, event);
        if let Some(overhead) = event.overhead {
            OVERHEAD.observe(&worker.overhead[event.ends.direction as usize], overhead);
        }
        worker.log.request(event, span.as_ref().map(ActiveSpan::ids));
        if let (Some(spans), Some(span)) = (&worker.spans, span) {
            spans.finish(span, event, slow);
        }
    }

    /// Counts a byte stream as open until the returned value is finished or dropped.
    pub fn connection_opened(&self, ends: &Ends) -> OpenConnection {
        let worker = self.0.current();
        let known = worker.ends(ends);
        let cells = known.tcp.get_or_init(|| worker.cells(Series::Tcp(known.labels.clone()))).clone();
        cells.add(tcp::OPENED, 1);
        OpenConnection {
            worker: self.clone(),
            ends: ends.clone(),
            cells,
            since: std::time::Instant::now(),
            sent: Cell::new(0),
            received: Cell::new(0),
        }
    }

    /// Counts and logs a connection that was refused before it had ends.
    pub fn refused(&self, refusal: &Refusal<'_>) {
        let worker = self.0.current();
        let key = (refusal.direction, refusal.reason);
        let mut refused = worker.refused.borrow_mut();
        refused
            .entry(key)
            .or_insert_with(|| {
                let series = Series::Refused { direction: refusal.direction, reason: refusal.reason.into() };
                worker.cells(series)
            })
            .add(0, 1);
        drop(refused);
        worker.log.refused(refusal);
    }

    /// Counts what was done about a destination in trouble.
    pub fn traffic(&self, event: TrafficEvent, destination: &Party) {
        let worker = self.0.current();
        let mut table = worker.traffic.borrow_mut();
        let key = (event, destination.clone());
        if let Some(cells) = table.get(&key) {
            return cells.add(0, 1);
        }
        let cells = worker.cells(Series::Traffic { event, destination: destination.clone() });
        cells.add(0, 1);
        remember(&mut table, key, cells);
    }

    /// Counts a decision of authorization; `policy` is `namespace/name` or the word for the namespace's default.
    pub fn authorization(&self, verdict: Verdict, policy: &str) {
        let worker = self.0.current();
        let mut table = worker.authorization.borrow_mut();
        if let Some(cells) = table.get(&PolicyKey(verdict, policy)) {
            return cells.add(0, 1);
        }
        let policy: Arc<str> = policy.into();
        let cells = worker.cells(Series::Authorization { verdict, policy: policy.clone() });
        cells.add(0, 1);
        remember(&mut table, (verdict, policy), cells);
    }

    /// Counts a call that was judged, for those who write policies.
    pub fn judged(&self, call: JudgedCall<'_>) {
        self.0.calls.count(&self.0.shared.calls, call);
    }

    /// Keeps a call that was refused, for those who ask why.
    pub fn keep_refusal(&self, call: &RefusedCall<'_>) {
        self.0.shared.refusals.keep(call);
    }

    /// Counts a copy of a request that a route's mirror asked for; `answered`: whatever its status.
    pub fn mirrored(&self, answered: bool) {
        self.0.shared.metrics.state.mirrored.count(answered);
    }

    /// Counts a decision of a rate limit.
    pub fn rate_limit(&self, limited: bool, policy: &str, limit: &str) {
        let worker = self.0.current();
        let mut table = worker.rate_limit.borrow_mut();
        if let Some(cells) = table.get(&LimitKey(limited, policy, limit)) {
            return cells.add(0, 1);
        }
        let (policy, limit): (Arc<str>, Arc<str>) = (policy.into(), limit.into());
        let series = Series::RateLimit { limited, policy: policy.clone(), limit: limit.clone() };
        let cells = worker.cells(series);
        cells.add(0, 1);
        remember(&mut table, (limited, policy, limit), cells);
    }
}

fn remember<K: Eq + std::hash::Hash, V>(table: &mut HashMap<K, V>, key: K, value: V) {
    if table.len() >= CACHED {
        table.clear();
    }
    table.insert(key, value);
}

impl Worker {
    /// Itself, without what the series table has asked to let go of.
    fn current(&self) -> &Self {
        let epoch = self.shared.metrics.series.epoch();
        if self.epoch.replace(epoch) != epoch {
            self.ends.borrow_mut().clear();
            self.authorization.borrow_mut().clear();
            self.rate_limit.borrow_mut().clear();
            self.refused.borrow_mut().clear();
            self.traffic.borrow_mut().clear();
        }
        self
    }

    fn cells(&self, series: Series) -> Arc<Cells> {
        self.shared.metrics.series.cells(self.id, series)
    }

    fn ends(&self, ends: &Ends) -> Rc<EndsCells> {
        let mut table = self.ends.borrow_mut();
        if let Some(found) = table.get(ends) {
            return found.clone();
        }
        let cells = Rc::new(EndsCells {
            labels: Labels::Of(ends.clone()),
            duration: OnceCell::new(),
            tcp: OnceCell::new(),
            requests: RefCell::default(),
            observed: Cell::new(0),
            slow: Cell::new(None),
        });
        remember(&mut table, ends.clone(), cells.clone());
        cells
    }
}

impl EndsCells {
    /// Counts a request; says whether it took longer than these ends are used to.
    fn count(&self, worker: &Worker, event: &RequestEvent<'_>) -> bool {
        let duration = self.duration.get_or_init(|| worker.cells(Series::Duration(self.labels.clone())));
        let slow = self.slower_than_usual(duration, event.duration);
        REQUEST_DURATION.observe(duration, event.duration);
        // gRPC clients read a code that the standard does not know as UNKNOWN; so does the label.
        let grpc_status = event.grpc_status.map(|code| if code <= 16 { code } else { 2 });
        let key = (Status::of(event.status), grpc_status);
        let mut requests = self.requests.borrow_mut();
        if let Some((_, cells)) = requests.iter().find(|(known, _)| *known == key) {
            cells.add(0, 1);
            return slow;
        }
        let cells = worker.cells(Series::Requests { ends: self.labels.clone(), status: key.0, grpc_status });
        cells.add(0, 1);
        requests.push((key, cells));
        slow
    }

    /// Whether `latest` is beyond the 99th percentile of what these ends are used to, by bucket.
    fn slower_than_usual(&self, duration: &Cells, latest: Duration) -> bool {
        let observed = self.observed.get().wrapping_add(1);
        self.observed.set(observed);
        if observed.is_multiple_of(256) {
            self.slow.set(REQUEST_DURATION.p99(duration));
        }
        self.slow.get().is_some_and(|slow| latest > slow)
    }
}

/// An open byte stream. Its bytes are counted as they are reported, its end when it is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    worker: WorkerTelemetry,
    ends: Ends,
    cells: Arc<Cells>,
    since: std::time::Instant,
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl OpenConnection {
    /// Bytes passed on from source to destination.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        self.cells.add(tcp::SENT, bytes);
    }

    /// Bytes passed back from destination to source.
    pub fn add_received(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        self.cells.add(tcp::RECEIVED, bytes);
    }

    /// Counts the end, and logs it if the mode says so.
    pub fn finish(self, event: &ConnectionEvent<'_>) {
        self.worker.0.log.connection(&self.ends, event, self.since.elapsed(), self.sent.get(), self.received.get());
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.cells.add(tcp::CLOSED, 1);
    }
}

impl Outcome<'_> {
    /// Whether the access log shows it whatever its mode.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Limited { .. })
    }
}
