//! Every request is reported: metrics, access log, and a span at each end of a hop.
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use weft_loadtests::lab::{PodSpec, testing::Test};
use weft_loadtests::mesh::{Mesh, MeshOptions, WorkloadSpec, eventually, get};

use crate::fixture::{PATIENCE, Pair, SERVER_SERVICE, SERVICE, WEFT, seen, serve_http, settle};

pub const TESTS: &[Test] = &[
    ("each_hop_has_one_client_and_one_server_span_of_one_trace", spans),
    ("each_request_has_one_json_line_in_the_access_log_at_each_end", access_log),
];

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        self.0.lock().expect("not poisoned").extend(spans);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collect(listener: StdListener, collector: Collector) -> Result<()> {
    listener.set_nonblocking(true)?;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
    Ok(tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector))
        .serve_with_incoming(incoming)
        .await?)
}

fn spans() -> Result<()> {
    let mut options = MeshOptions::new(WEFT);
    // The collector is not of the mesh, and the lab tells the sidecar by its mark, which the exporter's sockets lack:
    // they pass through the sidecar like the application's.
    options
        .proxy_arguments
        .extend(["--otlp-endpoint", "http://10.77.100.1:4317", "--trace-ratio", "1"].map(String::from));
    let mesh = Mesh::start("spans", options)?;
    mesh.write("server.yaml", SERVER_SERVICE)?;
    let collector_pod = mesh.lab.pod(PodSpec::new("collector").address(std::net::Ipv4Addr::new(10, 77, 100, 1)))?;
    let listener = collector_pod.listen(4317)?;
    let collector = Collector::default();
    let received = collector.clone();
    let _collector = collector_pod.start(move || collect(listener, received))?;
    let server = mesh.pod(WorkloadSpec::new("server-1", "server"))?;
    let client = mesh.pod(WorkloadSpec::new("client-1", "client"))?;
    settle(&mesh, &[&client])?;
    let _app = serve_http(&server)?;
    let (status, body) = get(&client.pod, (SERVICE, 80).into(), "/traced")?;
    ensure!(status == 200, "{status} {body}");
    let request = seen(&body)?;
    let traceparent = request.header("traceparent").context("the application gets the trace")?.to_owned();
    eventually("two spans are exported", PATIENCE, || Ok(collector.0.lock().expect("not poisoned").len() >= 2))?;
    let spans = collector.0.lock().expect("not poisoned").clone();
    ensure!(spans.len() == 2, "{spans:?}");
    let of =
        |kind: SpanKind| spans.iter().find(|span| span.kind == kind as i32).with_context(|| format!("no {kind:?}"));
    let (outbound, inbound) = (of(SpanKind::Client)?, of(SpanKind::Server)?);
    ensure!(outbound.trace_id == inbound.trace_id && inbound.parent_span_id == outbound.span_id, "{spans:?}");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    ensure!(traceparent == format!("00-{}-{}-01", hex(&inbound.trace_id), hex(&inbound.span_id)), "{traceparent}");
    Ok(())
}

fn access_log() -> Result<()> {
    let pair = Pair::start("logs")?;
    let _app = pair.serve_http()?;
    ensure!(pair.get("/logged?secret=sealed-letter")?.0 == 200);
    for pod in [&pair.client, &pair.server] {
        let line = pod.sidecar()?.wait_for_line(|line| line.contains("/logged"), PATIENCE)?;
        let line: serde_json::Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        ensure!(line["status"] == 200 && line["source"] == "client" && line["destination"] == "server", "{line}");
        ensure!(!line.to_string().contains("sealed-letter"), "the query string is not logged: {line}");
    }
    Ok(())
}
