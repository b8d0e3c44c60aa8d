//! Promises of tracing, against a real OTLP receiver in this process.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use super::tests::{ends, event};
use super::*;

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.lock().expect("not poisoned").push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let service = TraceServiceServer::new(collector.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().expect("not poisoned");
        let scopes = requests.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn resource(&self, name: &str) -> Option<String> {
        let requests = self.0.lock().expect("not poisoned");
        let resource = requests.first()?.resource_spans.first()?.resource.as_ref()?;
        let value = resource.attributes.iter().find(|pair| pair.key == name)?.value.as_ref()?.value.as_ref()?;
        match value {
            Value::StringValue(text) => Some(text.clone()),
            _ => None,
        }
    }
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    let value = span.attributes.iter().find(|pair| pair.key == name)?.value.as_ref()?.value.as_ref()?;
    Some(match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => format!("{other:?}"),
    })
}

fn telemetry(collector: SocketAddr, sampling_ratio: f64) -> Arc<Telemetry> {
    let (lines, _guard) = LineSink::new(std::io::sink());
    let settings = TelemetrySettings {
        workload: Party::new("inventory", "shop"),
        series_budget: DEFAULT_SERIES_BUDGET,
        access_log: AccessLogMode::Off,
        otlp: Some(OtlpSettings { endpoint: format!("http://{collector}"), sampling_ratio, mark: None }),
    };
    Telemetry::new(settings, lines).expect("valid settings")
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_hop_is_two_spans_the_server_s_a_child_of_the_client_s() {
    let (collector, address) = Collector::start().await;
    let telemetry = telemetry(address, 1.0);
    let worker = telemetry.worker();
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().expect("a value"));
    headers.insert("tracestate", "vendor=1".parse().expect("a value"));

    let client = worker.start_span(Kind::Client, &headers).expect("tracing is on");
    client.inject(&mut headers);
    let server = worker.start_span(Kind::Server, &headers).expect("tracing is on");
    server.inject(&mut headers);
    let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{:016x}-01", server.ids().span_id);
    assert_eq!(headers["traceparent"], expected, "the application continues the server's span");

    let inbound = Ends { protocol: Protocol::Grpc, ..ends("orders") };
    let denied = Outcome::Denied { policy: "shop/inventory", reason: "no rule matched" };
    let refused = RequestEvent {
        method: "POST",
        path: "/shop.Inventory/Reserve",
        grpc_status: Some(7),
        outcome: denied,
        ..event(&inbound)
    };
    worker.request(&refused, Some(server));
    let outbound = Ends { direction: Direction::Outbound, ..inbound.clone() };
    worker.request(&RequestEvent { ends: &outbound, outcome: Outcome::Forwarded, ..refused }, Some(client));
    telemetry.flush(PATIENCE).await;

    let spans = collector.spans();
    let of = |kind: SpanKind| spans.iter().find(|span| span.kind == kind as i32).expect("both kinds");
    let (client, server) = (of(SpanKind::Client), of(SpanKind::Server));
    assert_eq!(spans.len(), 2);
    assert_eq!(client.trace_id, server.trace_id);
    assert_eq!(client.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert_eq!(server.parent_span_id, client.span_id);
    assert_eq!((client.trace_state.as_str(), client.name.as_str()), ("vendor=1", "shop.Inventory/Reserve"));
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("url.path", "/shop.Inventory/Reserve"),
        ("server.address", "inventory.shop.svc"),
        ("network.protocol.version", "2"),
        ("network.peer.address", "10.0.0.7"),
        ("network.peer.port", "40000"),
        ("rpc.system", "grpc"),
        ("rpc.service", "shop.Inventory"),
        ("rpc.method", "Reserve"),
        ("rpc.grpc.status_code", "7"),
        ("weft.mtls", "true"),
        ("weft.source.name", "orders"),
        ("weft.peer.identity", "spiffe://cluster.local/ns/shop/sa/orders"),
        ("weft.decision", "denied"),
        ("weft.policy", "shop/inventory"),
        ("weft.reason", "no rule matched"),
    ] {
        assert_eq!(attribute(server, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(attribute(client, "error.type").as_deref(), Some("7"));
    assert_eq!(client.status.as_ref().map(|status| status.code), Some(StatusCode::Error as i32));
    assert_eq!(attribute(server, "error.type"), None, "a refusal is the caller's fault, not the server's");
    assert_eq!(collector.resource("service.name").as_deref(), Some("inventory"));
    assert_eq!(collector.resource("service.namespace").as_deref(), Some("shop"));
}

#[tokio::test]
async fn the_caller_decides_on_sampling_and_what_ends_badly_is_exported_all_the_same() {
    let (collector, address) = Collector::start().await;
    let telemetry = telemetry(address, 0.0);
    let worker = telemetry.worker();
    let caller = ends("orders");
    let parent = |flags: &str| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
    for (name, traceparent, status, outcome, exported) in [
        ("/root", None, 200, Outcome::Forwarded, false),
        ("/unsampled", Some(parent("00")), 200, Outcome::Forwarded, false),
        ("/sampled", Some(parent("01")), 200, Outcome::Forwarded, true),
        ("/not-found", Some(parent("00")), 404, Outcome::Forwarded, false),
        ("/error", Some(parent("00")), 500, Outcome::Forwarded, true),
        ("/denied", None, 403, Outcome::Denied { policy: "p", reason: "r" }, true),
        ("/limited", None, 429, Outcome::Limited { policy: "p", limit: "l" }, true),
        ("/failed", None, 503, Outcome::Failed { reason: "refused" }, true),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(value) = &traceparent {
            headers.insert("traceparent", value.parse().expect("a value"));
        }
        let span = worker.start_span(Kind::Server, &headers).expect("tracing is on");
        span.inject(&mut headers);
        let flag = if traceparent.is_some_and(|value| value.ends_with('1')) { "-01" } else { "-00" };
        assert!(headers["traceparent"].to_str().is_ok_and(|value| value.ends_with(flag)), "{name}: {headers:?}");
        worker.request(&RequestEvent { path: name, status, outcome, ..event(&caller) }, Some(span));
        telemetry.flush(PATIENCE).await;
        let seen = collector.spans().iter().any(|span| attribute(span, "url.path").as_deref() == Some(name));
        assert_eq!(seen, exported, "{name}");
    }
}

#[tokio::test]
async fn a_request_slower_than_its_route_is_used_to_is_exported() {
    let (collector, address) = Collector::start().await;
    let telemetry = telemetry(address, 0.0);
    let worker = telemetry.worker();
    let caller = ends("orders");
    let request = |duration: u64| {
        let span = worker.start_span(Kind::Server, &HeaderMap::new());
        worker.request(&RequestEvent { duration: Duration::from_millis(duration), ..event(&caller) }, span);
    };
    (0..512).for_each(|_| request(3));
    telemetry.flush(PATIENCE).await;
    assert_eq!(collector.spans().len(), 0, "what is usual is left to the ratio");
    request(900);
    telemetry.flush(PATIENCE).await;
    assert_eq!(collector.spans().len(), 1);
}

#[tokio::test]
async fn a_ratio_samples_about_its_share_of_new_traces() {
    let (_collector, address) = Collector::start().await;
    let telemetry = telemetry(address, 0.25);
    let worker = telemetry.worker();
    let sampled = (0..4_000).filter(|_| {
        let mut headers = HeaderMap::new();
        worker.start_span(Kind::Server, &headers).expect("tracing is on").inject(&mut headers);
        headers["traceparent"].to_str().is_ok_and(|value| value.ends_with("-01"))
    });
    // Ten standard deviations either way.
    assert!((727..1_273).contains(&sampled.count()));
}

#[tokio::test]
async fn a_collector_that_hangs_costs_spans_and_never_time() {
    // Accepts connections (in the backlog) and never says a word.
    let hanging = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let telemetry = telemetry(hanging.local_addr().expect("bound"), 1.0);
    let worker = telemetry.worker();
    let caller = ends("orders");
    // That this loop ends is the promise.
    for _ in 0..10_000 {
        let span = worker.start_span(Kind::Server, &HeaderMap::new());
        worker.request(&event(&caller), span);
    }
    let text = telemetry.encode();
    let dropped = text.lines().find_map(|line| line.strip_prefix("weft_spans_dropped_total ")).expect("a counter");
    assert!(dropped.parse::<u64>().expect("a number") >= 10_000 - 2 * 2_048 - 512, "{dropped}");
    assert!(text.contains("weft_spans_exported_total 0\n"), "{text}");
}

#[test]
fn without_a_collector_no_span_is_made() {
    let (lines, _guard) = LineSink::new(std::io::sink());
    let settings = TelemetrySettings {
        workload: Party::new("inventory", "shop"),
        series_budget: DEFAULT_SERIES_BUDGET,
        access_log: AccessLogMode::Off,
        otlp: None,
    };
    let worker = Telemetry::new(settings, lines).expect("valid settings").worker();
    assert!(worker.start_span(Kind::Server, &HeaderMap::new()).is_none());
}
