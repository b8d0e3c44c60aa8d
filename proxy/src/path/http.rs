//! The receiving half of the per-request stack that inbound and outbound share: serve a connection, read what a request
//! says of its host. [`super::send`] takes it from there.
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol as Protocol8441;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::record::ResponseBody;
use super::respond::{self, Answer, Reset};
use super::{Closing, Phase, Worker, until};
use crate::stage::body;
use crate::stage::connect::{HttpVersion, LocalExecutor};
use crate::stage::tls::Lifetime;
use crate::stage::transport::Stream;
use crate::telemetry::{Ends, Protocol};

/// Who the caller is, to the application (Envoy's format).
pub(crate) const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// A connection without a request for this long is closed; also bounds a header section. Longer than clients keep idle
/// connections, so that none is closed under a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Most header fields of a request.
const MOST_HEADERS: usize = 100;
/// Streams that one HTTP/2 connection may have open.
const MOST_STREAMS: u32 = 250;
/// Largest header section of an HTTP/2 request.
const LARGEST_HEADERS: u32 = 64 * 1024;

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
) -> hyper::Result<()>
where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move {
            let answer = answer.await;
            match answer.extensions().get::<Reset>() {
                Some(Reset(reason)) => Err(h2::Error::from(*reason)),
                None => Ok(answer),
            }
        }
    });
    let io = TokioIo::new(stream);
    match version {
        HttpVersion::Http1 => {
            // hyper keeps room for one answer's future with the connection: between two requests it shall be a pointer.
            let service = service_fn(move |request| Box::pin(service.call(request)));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_TIMEOUT)
                .max_buf_size(body::HTTP1_BUFFER)
                .max_headers(MOST_HEADERS)
                .half_close(true)
                .auto_date_header(false)
                .serve_connection(io, service)
                .with_upgrades();
            let mut connection = Box::pin(connection);
            tokio::select! {
                done = connection.as_mut() => return done,
                () = told_to_leave(worker, lifetime) => closing.set(),
            }
            tokio::select! {
                done = connection.as_mut() => return done,
                () = idle_must_close(worker, lifetime) => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                done = connection.as_mut() => done,
                () = until(lifetime.end) => Ok(()),
            }
        }
        HttpVersion::Http2 => {
            let connection = http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .max_concurrent_streams(MOST_STREAMS)
                .max_header_list_size(LARGEST_HEADERS)
                .initial_stream_window_size(body::H2_STREAM_WINDOW)
                .initial_connection_window_size(body::H2_CONNECTION_WINDOW)
                .max_send_buf_size(body::H2_SEND_BUFFER)
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(10))
                .auto_date_header(false)
                .enable_connect_protocol()
                .serve_connection(io, service);
            let mut connection = Box::pin(connection);
            tokio::select! {
                done = connection.as_mut() => return done,
                // GOAWAY is sent twice (RFC 9113 section 6.8): no stream on its way is lost.
                () = told_to_leave(worker, lifetime) => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                done = connection.as_mut() => done,
                () = until(lifetime.end) => Ok(()),
            }
        }
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

/// The host that a request names: of HTTP/2 and absolute targets the authority, else the one `Host` line.
///
/// RFC 9112 section 3.2: none, several, or an empty one in HTTP/1.1 is a fault of the request.
pub(crate) fn host_of<B>(request: &Request<B>) -> Result<Option<HeaderValue>, Answer> {
    let mut lines = request.headers().get_all(HOST).iter();
    let (line, more) = (lines.next(), lines.next());
    if more.is_some() {
        return Err(bad_request("host", "more than one Host header"));
    }
    if request.uri().authority().is_some() && request.uri().scheme().is_none() && request.method() != Method::CONNECT {
        return Err(bad_request("target", "the request target does not begin with a slash"));
    }
    if let Some(authority) = request.uri().authority() {
        return Ok(HeaderValue::from_str(authority.as_str()).ok());
    }
    match line {
        Some(host) => Ok(Some(host.clone())),
        None if request.version() < Version::HTTP_11 => Ok(None),
        None => Err(bad_request("host", "no Host header")),
    }
}

pub(crate) fn bad_request(label: &'static str, text: &str) -> Answer {
    Answer::new(StatusCode::BAD_REQUEST, label, format!("the request is ambiguous or malformed: {text}"))
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
