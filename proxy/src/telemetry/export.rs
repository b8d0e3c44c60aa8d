//! Carries finished spans to an OpenTelemetry collector, over OTLP gRPC.
//!
//! Workers put spans into a bounded queue without waking anybody; one thread empties it five times a second. A collector
//! that is slow, hangs or is away costs spans (counted), never a worker's time and never more memory than the queue.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use hyper_util::rt::TokioIo;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;

use super::TelemetryError;
use super::event::{Direction, Outcome, Party, Protocol, RequestEvent, TraceIds};
use super::metrics::Metrics;
use super::text::bounded;
use super::trace::{Kind, is_server_error};

/// Spans that may wait; at about 2 KiB each this bounds their memory to 4 MiB.
const QUEUED_SPANS: usize = 2048;
/// Spans in one request to the collector.
const BATCH: usize = 512;
/// How often the queue is emptied: no wake-up a span.
const INTERVAL: Duration = Duration::from_millis(200);
/// After this a request to the collector is given up and its spans are counted as dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest text attribute that stems from a request, in bytes.
const ATTRIBUTE_MAX: usize = 256;

/// Where spans go and which.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpSettings {
    /// The collector's OTLP gRPC address, `http://host:4317`.
    pub endpoint: String,
    /// Share of traces that start here and are sampled, 0 to 1; a caller's decision goes before it.
    pub sampling_ratio: f64,
    /// Mark of the sockets to the collector, where the redirect rules tell the proxy by mark: without it the export
    /// would itself pass through the sidecar and make spans for ever.
    pub mark: Option<u32>,
}

/// A finished span, borrowed from the request that ends.
#[derive(Debug)]
pub(super) struct SpanRecord<'a> {
    pub(super) kind: Kind,
    pub(super) ids: TraceIds,
    pub(super) parent: Option<u64>,
    pub(super) tracestate: &'a [HeaderValue],
    pub(super) start: SystemTime,
    pub(super) event: &'a RequestEvent<'a>,
}

/// The queue's entry.
#[derive(Debug)]
pub(super) struct Exporter {
    spans: mpsc::Sender<SpanData>,
    flush: mpsc::Sender<oneshot::Sender<()>>,
    metrics: Arc<Metrics>,
}

/// Starts the exporting thread. It ends when the last [`Exporter`] is dropped.
pub(super) fn start(
    settings: &OtlpSettings,
    workload: &Party,
    metrics: Arc<Metrics>,
) -> Result<Exporter, TelemetryError> {
    let wrong = |fault: String| TelemetryError::Endpoint { endpoint: settings.endpoint.clone(), fault };
    let uri: http::Uri = settings.endpoint.parse().map_err(|fault: http::uri::InvalidUri| wrong(fault.to_string()))?;
    match uri.scheme_str() {
        Some("http") if uri.authority().is_some() => {}
        Some("https") => return Err(wrong("TLS to the collector is not supported".into())),
        _ => return Err(wrong("not an http address".into())),
    }
    let (resource, mark) = (resource(workload), settings.mark);
    let (spans, queue) = mpsc::channel(QUEUED_SPANS);
    let (flush, flushes) = mpsc::channel(1);
    let (built, outcome) = std::sync::mpsc::channel();
    let thread_metrics = metrics.clone();
    std::thread::Builder::new().name("weft-otlp".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(fault) => return drop(built.send(Err(fault.to_string()))),
        };
        runtime.block_on(async move {
            let builder = SpanExporter::builder().with_tonic().with_timeout(EXPORT_TIMEOUT);
            let mut exporter = match builder.with_channel(channel(uri, mark)).build() {
                Ok(exporter) => exporter,
                Err(fault) => return drop(built.send(Err(fault.to_string()))),
            };
            exporter.set_resource(&resource);
            let _ = built.send(Ok(()));
            run(exporter, queue, flushes, &thread_metrics).await;
        });
    })?;
    outcome.recv().unwrap_or_else(|_| Err("the exporting thread ended".into())).map_err(wrong)?;
    Ok(Exporter { spans, flush, metrics })
}

/// A channel that connects when first used, and again whenever it must.
fn channel(uri: http::Uri, mark: Option<u32>) -> Channel {
    let connector = tower::service_fn(move |uri: http::Uri| async move {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the collector's name has no address");
        for address in tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80))).await? {
            match connect(address, mark).await {
                Ok(stream) => return Ok(TokioIo::new(stream)),
                Err(fault) => last = fault,
            }
        }
        Err::<TokioIo<TcpStream>, io::Error>(last)
    });
    Channel::builder(uri).connect_timeout(EXPORT_TIMEOUT).timeout(EXPORT_TIMEOUT).connect_with_connector_lazy(connector)
}

async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn run(
    exporter: SpanExporter,
    mut queue: mpsc::Receiver<SpanData>,
    mut flushes: mpsc::Receiver<oneshot::Sender<()>>,
    metrics: &Metrics,
) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reported = false;
    loop {
        let asked = tokio::select! {
            asked = flushes.recv() => match asked {
                Some(asked) => Some(asked),
                None => return,
            },
            _ = tick.tick() => None,
        };
        while let batch = next_batch(&mut queue)
            && !batch.is_empty()
        {
            let spans = batch.len() as u64;
            // The exporter's own timeout covers the call; this one also covers whatever it does around it.
            let sent = match tokio::time::timeout(EXPORT_TIMEOUT * 2, exporter.export(batch)).await {
                Ok(sent) => sent.map_err(|fault| fault.to_string()),
                Err(_) => Err("timed out".into()),
            };
            match sent {
                Ok(()) => {
                    reported = false;
                    metrics.state.spans_exported.fetch_add(spans, Ordering::Relaxed);
                }
                Err(fault) => {
                    metrics.state.spans_dropped.fetch_add(spans, Ordering::Relaxed);
                    // Once an outage, not once a batch.
                    if !std::mem::replace(&mut reported, true) {
                        tracing::warn!(%fault, "the trace collector does not take spans; they are dropped and counted");
                    }
                }
            }
        }
        if let Some(asked) = asked {
            let _ = asked.send(());
        }
    }
}

fn next_batch(queue: &mut mpsc::Receiver<SpanData>) -> Vec<SpanData> {
    std::iter::from_fn(|| queue.try_recv().ok()).take(BATCH).collect()
}

fn resource(workload: &Party) -> Resource {
    let text = |value: &Arc<str>| value.to_string();
    let mut attributes = vec![
        KeyValue::new("service.name", text(&workload.name)),
        KeyValue::new("service.namespace", text(&workload.namespace)),
        KeyValue::new("k8s.namespace.name", text(&workload.namespace)),
        KeyValue::new("weft.version", env!("CARGO_PKG_VERSION")),
    ];
    if let Some(host) = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()) {
        // In a pod the host's name is the pod's.
        attributes.push(KeyValue::new("service.instance.id", host.clone()));
        attributes.push(KeyValue::new("k8s.pod.name", host));
    }
    Resource::builder_empty().with_attributes(attributes).build()
}

impl Exporter {
    /// Queues a span, or drops and counts it.
    pub(super) fn export(&self, record: SpanRecord<'_>) {
        // A full queue is noticed before the span is built: under overload dropping must be the cheap way.
        match self.spans.try_reserve() {
            Ok(place) => place.send(span_data(&record)),
            Err(_) => drop(self.metrics.state.spans_dropped.fetch_add(1, Ordering::Relaxed)),
        }
    }

    pub(super) async fn flush(&self, limit: Duration) {
        let (done, finished) = oneshot::channel();
        let delivered = async {
            if self.flush.send(done).await.is_ok() {
                let _ = finished.await;
            }
        };
        let _ = tokio::time::timeout(limit, delivered).await;
    }
}

fn span_data(record: &SpanRecord<'_>) -> SpanData {
    let event = record.event;
    let span_kind = match record.kind {
        Kind::Client => SpanKind::Client,
        Kind::Server => SpanKind::Server,
    };
    let state = record.tracestate.iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(record.ids.trace_id.to_be_bytes()),
            SpanId::from_bytes(record.ids.span_id.to_be_bytes()),
            TraceFlags::SAMPLED,
            false,
            state.parse::<TraceState>().unwrap_or_default(),
        ),
        parent_span_id: record.parent.map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.to_be_bytes())),
        parent_span_is_remote: record.parent.is_some(),
        span_kind,
        name: name(event).into(),
        start_time: record.start,
        end_time: SystemTime::now().max(record.start),
        attributes: attributes(record.kind, event),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: status(record.kind, event),
        instrumentation_scope: InstrumentationScope::builder("weft-proxy")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

/// `package.Service/Method` for gRPC, else the method: names of low cardinality, as the conventions ask.
fn name(event: &RequestEvent<'_>) -> String {
    match grpc_names(event) {
        Some((service, method)) => format!("{}/{}", bounded(service, ATTRIBUTE_MAX), bounded(method, ATTRIBUTE_MAX)),
        None => match known_method(event.method) {
            "_OTHER" => "HTTP".into(),
            method => method.into(),
        },
    }
}

fn grpc_names<'a>(event: &RequestEvent<'a>) -> Option<(&'a str, &'a str)> {
    if event.ends.protocol != Protocol::Grpc {
        return None;
    }
    event.path.strip_prefix('/')?.split('?').next()?.split_once('/')
}

/// The conventions' list of methods; anything else is `_OTHER`, with the original beside it.
fn known_method(method: &str) -> &str {
    match method {
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH" | "QUERY" => method,
        _ => "_OTHER",
    }
}

/// OpenTelemetry semantic conventions for HTTP and RPC spans; what they do not cover is under `weft.`.
fn attributes(kind: Kind, event: &RequestEvent<'_>) -> Vec<KeyValue> {
    let ends = event.ends;
    let text = |key: &'static str, value: &str| KeyValue::new(key, bounded(value, ATTRIBUTE_MAX).into_owned());
    let path = event.path.split(['?', '#']).next().unwrap_or_default();
    let mut out = Vec::with_capacity(24);
    out.push(KeyValue::new("http.request.method", known_method(event.method).to_owned()));
    if known_method(event.method) == "_OTHER" {
        out.push(text("http.request.method_original", event.method));
    }
    out.push(text("url.path", path));
    out.push(KeyValue::new("url.scheme", "http"));
    out.push(text("server.address", event.host));
    out.push(KeyValue::new("network.protocol.name", "http"));
    out.push(KeyValue::new("network.protocol.version", if ends.protocol == Protocol::Http1 { "1.1" } else { "2" }));
    if event.status != 0 {
        out.push(KeyValue::new("http.response.status_code", i64::from(event.status)));
    }
    if let Some((service, method)) = grpc_names(event) {
        out.push(KeyValue::new("rpc.system", "grpc"));
        out.push(text("rpc.service", service));
        out.push(text("rpc.method", method));
    }
    if let Some(code) = event.grpc_status {
        out.push(KeyValue::new("rpc.grpc.status_code", i64::from(code)));
    }
    if let Some(peer) = event.peer_address {
        out.push(KeyValue::new("network.peer.address", peer.ip().to_canonical().to_string()));
        out.push(KeyValue::new("network.peer.port", i64::from(peer.port())));
        if kind == Kind::Server {
            out.push(KeyValue::new("client.address", peer.ip().to_canonical().to_string()));
        }
    }
    out.push(KeyValue::new("http.request.body.size", saturated(event.request_bytes)));
    if event.retries > 0 {
        out.push(KeyValue::new("http.request.resend_count", i64::from(event.retries)));
    }
    out.push(KeyValue::new("http.response.body.size", saturated(event.response_bytes)));
    out.push(KeyValue::new("weft.direction", ends.direction.as_str()));
    out.push(KeyValue::new("weft.mtls", ends.tls));
    for (key, value) in [
        ("weft.source.name", &ends.source.name),
        ("weft.source.namespace", &ends.source.namespace),
        ("weft.destination.name", &ends.destination.name),
        ("weft.destination.namespace", &ends.destination.namespace),
    ] {
        out.push(KeyValue::new(key, value.to_string()));
    }
    if let Some(identity) = event.peer_identity {
        out.push(text("weft.peer.identity", identity));
    }
    if let Some(route) = event.route {
        out.push(text("weft.route", route));
    }
    out.push(KeyValue::new("weft.decision", event.outcome.as_str()));
    match event.outcome {
        Outcome::Denied { policy, reason } => {
            out.push(text("weft.policy", policy));
            out.push(text("weft.reason", reason));
        }
        Outcome::Limited { policy, limit } => {
            out.push(text("weft.policy", policy));
            out.push(text("weft.limit", limit));
        }
        Outcome::Failed { reason } => out.push(text("weft.reason", reason)),
        Outcome::Forwarded | Outcome::Cancelled => {}
    }
    if let Some(overhead) = event.overhead {
        out.push(KeyValue::new("weft.overhead_us", saturated(u64::try_from(overhead.as_micros()).unwrap_or(u64::MAX))));
    }
    if let Some(kind) = error_type(kind, event) {
        out.push(KeyValue::new("error.type", kind));
    }
    out
}

fn saturated(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// HTTP conventions: 5xx is an error on both sides, 4xx only on the client's; gRPC: any code but OK on the client's.
fn error_type(kind: Kind, event: &RequestEvent<'_>) -> Option<String> {
    if let Outcome::Denied { .. } | Outcome::Limited { .. } | Outcome::Failed { .. } | Outcome::Cancelled =
        event.outcome
        && event.status == 0
    {
        return Some(event.outcome.as_str().into());
    }
    if let Some(code) = event.grpc_status.filter(|code| match kind {
        Kind::Client => *code != 0,
        Kind::Server => is_server_error(*code),
    }) {
        return Some(code.to_string());
    }
    let first_error = if kind == Kind::Client { 400 } else { 500 };
    (event.status >= first_error).then(|| event.status.to_string())
}

fn status(kind: Kind, event: &RequestEvent<'_>) -> Status {
    if error_type(kind, event).is_none() {
        return Status::Unset;
    }
    match event.outcome {
        Outcome::Denied { policy, .. } => Status::error(format!("denied by {}", bounded(policy, ATTRIBUTE_MAX))),
        Outcome::Limited { policy, .. } => Status::error(format!("limited by {}", bounded(policy, ATTRIBUTE_MAX))),
        Outcome::Failed { reason } => Status::error(bounded(reason, ATTRIBUTE_MAX).into_owned()),
        Outcome::Cancelled => Status::error("cancelled"),
        Outcome::Forwarded => Status::error(""),
    }
}

impl From<Direction> for Kind {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Inbound => Self::Server,
            Direction::Outbound => Self::Client,
        }
    }
}
