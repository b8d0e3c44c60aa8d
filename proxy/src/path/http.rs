//! The receiving half of the per-request stack that inbound and outbound share: serve a connection.
//! [`super::exact`] reads what a request says of itself, [`super::send`] takes it from there.
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::header::{CONNECTION, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol as Protocol8441;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::exact::{self, upgrade_of};
use super::record::ResponseBody;
use super::respond::{self, Reset};
use super::{Closing, Phase, Worker, until};
use crate::stage::connect::HttpVersion;
use crate::stage::http1_guard::Http1Guard;
use crate::stage::http2_guard::Http2Guard;
use crate::stage::http2_streams::Streams;
use crate::stage::quiet::Quiet;
use crate::stage::tls::Lifetime;
use crate::stage::transport::Stream;
use crate::stage::{accept, body};
use crate::telemetry::{Ends, Protocol};

/// Who the caller is, to the application (Envoy's format).
pub(crate) const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// A connection without a request for this long is closed; also bounds a header section. Longer than clients keep idle
/// connections, so that none is closed under a request.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Streams that one HTTP/2 connection may have open.
const MOST_STREAMS: u32 = 250;
/// Streams of one HTTP/2 connection that we may reset for a fault of the other side before it is ended.
const MOST_LOCAL_RESETS: usize = 100;
/// Largest header section of an HTTP/2 request.
const LARGEST_HEADERS: u32 = 64 * 1024;

/// How a connection ended that did not end well.
#[derive(Debug)]
pub(crate) struct Broken {
    /// Of a caller that did not keep to the protocol: a stable word. None where the network or the peer just went away.
    pub(crate) label: Option<&'static str>,
    pub(crate) error: hyper::Error,
}

/// Serves one connection's requests until it ends, its certificate does, or the sidecar stops.
///
/// A connection that is to end asks its caller to leave first (`Connection: close`, GOAWAY), then closes when idle, and
/// is cut at the end of its lifetime.
pub(crate) async fn serve<H, F>(
    worker: &Worker,
    stream: Stream,
    version: HttpVersion,
    lifetime: Lifetime,
    closing: Closing,
    handler: H,
) -> Result<(), Broken>
where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    accept::limit_stall(stream.get_ref().tcp(), worker.stall);
    match version {
        HttpVersion::Http1 => serve_http1(worker, stream, lifetime, closing, handler).await,
        HttpVersion::Http2 => serve_http2(worker, stream, lifetime, handler).await,
    }
}

async fn serve_http1<H, F>(
    worker: &Worker,
    stream: Stream,
    lifetime: Lifetime,
    closing: Closing,
    handler: H,
) -> Result<(), Broken>
where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let guard = Http1Guard::new(stream);
    let told = guard.told();
    let heard = guard.told();
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(fault) = heard.next_request() {
            request.extensions_mut().insert(fault);
        }
        let switches = upgrade_of(request.headers(), request.version()).is_some();
        heard.switches(switches);
        // Boxed where it begins: hyper keeps room for it with every connection, and moves it there.
        let answer = Box::pin(handler(request));
        async move {
            let mut answer = answer.await;
            // What follows a request to switch was not looked at: it is another protocol's, or nobody's.
            if exact::ends_connection(&answer) || (switches && answer.status() != StatusCode::SWITCHING_PROTOCOLS) {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            unless_reset(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(body::HTTP1_BUFFER)
        .max_header_size(body::HTTP1_BUFFER)
        // At most 100 header fields, hyper's default: set to the same, it would fill a table for each request.
        .half_close(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(guard), service)
        .with_upgrades();
    let mut connection = Box::pin(connection);
    let served = async {
        tokio::select! {
            biased;
            done = connection.as_mut() => return done,
            () = Quiet::new(told_to_leave(worker, lifetime)) => closing.set(),
        }
        tokio::select! {
            done = connection.as_mut() => return done,
            () = idle_must_close(worker, lifetime) => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            done = connection.as_mut() => done,
            () = until(lifetime.end) => Ok(()),
        }
    };
    served.await.map_err(|error| {
        let malformed = error.is_parse().then_some("malformed_http");
        Broken { label: if told.was_slow() { Some("slow_header") } else { malformed }, error }
    })
}

async fn serve_http2<H, F>(worker: &Worker, stream: Stream, lifetime: Lifetime, handler: H) -> Result<(), Broken>
where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let guard = Http2Guard::new(stream);
    let verdict = guard.verdict();
    let streams = Streams::new(worker.stall);
    let opening = streams.clone();
    let service = service_fn(move |request| {
        let stall = opening.open();
        // Boxed where it begins: hyper keeps room for it with every connection, and moves it there.
        let answer = Box::pin(handler(request));
        async move { unless_reset(answer.await).map(|answer| answer.map(|body| stall.follow(body))) }
    });
    let connection = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LARGEST_HEADERS)
        .initial_stream_window_size(body::H2_STREAM_WINDOW)
        .initial_connection_window_size(body::H2_CONNECTION_WINDOW)
        .max_send_buf_size(body::H2_SEND_BUFFER)
        .max_local_error_reset_streams(MOST_LOCAL_RESETS)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .auto_date_header(false)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(guard), service);
    let mut connection = Box::pin(connection);
    let served = async {
        tokio::select! {
            biased;
            done = connection.as_mut() => return done,
            // GOAWAY is sent twice (RFC 9113 section 6.8): no stream on its way is lost.
            () = Quiet::new(told_to_leave(worker, lifetime)) => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            done = connection.as_mut() => done,
            () = until(lifetime.end) => Ok(()),
        }
    };
    served.await.map_err(|error| Broken { label: verdict.label().or_else(|| http2_fault(&error)), error })
}

/// The answer, unless it is to be a reset of its stream.
fn unless_reset<B>(answer: Response<B>) -> Result<Response<B>, h2::Error> {
    match answer.extensions().get::<Reset>() {
        Some(Reset(reason)) => Err((*reason).into()),
        None => Ok(answer),
    }
}

/// What HTTP/2 itself ended a connection for.
fn http2_fault(error: &hyper::Error) -> Option<&'static str> {
    let error = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    if error.is_io() || error.is_remote() {
        return None;
    }
    match error.reason()? {
        h2::Reason::NO_ERROR => None,
        h2::Reason::ENHANCE_YOUR_CALM => Some("http2_flood"),
        _ => Some("malformed_http"),
    }
}

/// The connection shall take no more than what is under way: its certificate nears its end, or the sidecar stops.
pub(crate) async fn told_to_leave(worker: &Worker, lifetime: Lifetime) {
    let mut phase = worker.phase.clone();
    tokio::select! {
        () = until(lifetime.drain) => {}
        _ = phase.wait_for(|phase| *phase > Phase::Serving) => {}
    }
}

pub(crate) async fn idle_must_close(worker: &Worker, lifetime: Lifetime) {
    let mut phase = worker.phase.clone();
    let before_end = lifetime.end.checked_sub(Duration::from_millis(100)).unwrap_or(lifetime.end);
    tokio::select! {
        () = until(before_end) => {}
        _ = phase.wait_for(|phase| *phase > Phase::Draining) => {}
    }
}

/// What a request is spoken in, as a label.
fn protocol_of<B>(request: &Request<B>) -> Protocol {
    match request.version() {
        Version::HTTP_2 if respond::is_grpc(request.headers()) => Protocol::Grpc,
        Version::HTTP_2 => Protocol::Http2,
        _ => Protocol::Http1,
    }
}

/// The ends of one connection's requests: their protocol is known only once there is a request.
pub(crate) struct RequestEnds {
    connection: Ends,
    known: RefCell<Option<Rc<Ends>>>,
}

impl RequestEnds {
    pub(crate) fn new(connection: Ends) -> Self {
        Self { connection, known: RefCell::default() }
    }

    pub(crate) fn of<B>(&self, request: &Request<B>) -> Rc<Ends> {
        let protocol = protocol_of(request);
        let mut known = self.known.borrow_mut();
        match known.as_ref().filter(|ends| ends.protocol == protocol) {
            Some(ends) => Rc::clone(ends),
            None => Rc::clone(known.insert(Rc::new(Ends { protocol, ..self.connection.clone() }))),
        }
    }
}

/// Whether a request begins a WebSocket over HTTP/2 (RFC 8441). It is judged as the GET that it is over HTTP/1.
pub(crate) fn begins_websocket<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT
        && request.extensions().get::<Protocol8441>().is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Whether a request is a CONNECT that is not carried: every one but a WebSocket's.
pub(crate) fn is_tunnel<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT && !begins_websocket(request)
}

/// Asks an HTTP/1 caller to leave when its connection is to end.
pub(crate) fn leave(closing: &Closing, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if closing.get() && response.version() != Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
