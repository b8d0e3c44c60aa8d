//! The per-request stack that inbound and outbound share: serve a connection, clean a request's headers, send it, follow
//! its answer.
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use weft_api::workload::Endpoint;

use super::exact::{self, upgrade_of};
use super::record::{Ending, Record, ResponseBody};
use super::respond::{self, Answer};
use super::{Closing, Phase, Worker, until};
use crate::stage::accept;
use crate::stage::balance::Chosen;
use crate::stage::body::{self, Progress, RequestBody, Wait};
use crate::stage::connect::{ConnectError, HttpVersion, Identity, Sender};
use crate::stage::http1_guard::Http1Guard;
use crate::stage::http2_guard::Http2Guard;
use crate::stage::http2_streams::Streams;
use crate::stage::policy::Permit;
use crate::stage::tls::Lifetime;
use crate::stage::transport::Stream;
use crate::telemetry::{Direction, Ends, Protocol};

/// Who the caller is, to the application (Envoy's format).
pub(crate) const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// A connection without a request for this long is closed; also bounds a header section. Longer than clients keep idle
/// connections, so that none is closed under a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Most header fields of a request.
const MOST_HEADERS: usize = 100;
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
        let answer = handler(request);
        async move {
            let mut answer = answer.await;
            // What follows a request to switch was not looked at: it is another protocol's, or nobody's.
            if exact::ends_connection(&answer) || (switches && answer.status() != StatusCode::SWITCHING_PROTOCOLS) {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(body::HTTP1_BUFFER)
        .max_header_size(body::HTTP1_BUFFER)
        .max_headers(MOST_HEADERS)
        .half_close(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(guard), service)
        .with_upgrades();
    tokio::pin!(connection);
    let served = async {
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
        let answer = handler(request);
        async move { Ok::<_, std::convert::Infallible>(answer.await.map(|body| stall.follow(body))) }
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
        .serve_connection(TokioIo::new(guard), service);
    tokio::pin!(connection);
    let served = async {
        tokio::select! {
            done = connection.as_mut() => return done,
            // GOAWAY is sent twice (RFC 9113 section 6.8): no stream on its way is lost.
            () = told_to_leave(worker, lifetime) => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            done = connection.as_mut() => done,
            () = until(lifetime.end) => Ok(()),
        }
    };
    served.await.map_err(|error| Broken { label: verdict.label().or_else(|| http2_fault(&error)), error })
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
async fn told_to_leave(worker: &Worker, lifetime: Lifetime) {
    let mut phase = worker.phase.clone();
    tokio::select! {
        () = until(lifetime.drain) => {}
        _ = phase.wait_for(|phase| *phase > Phase::Serving) => {}
    }
}

async fn idle_must_close(worker: &Worker, lifetime: Lifetime) {
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

/// Removes what concerns one connection only (RFC 9110 section 7.6.1), keeping `te: trailers` and the framing.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    const FIXED: [HeaderName; 4] = [
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("http2-settings"),
    ];
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|b| *b == b','))
            .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
            // A caller must not have us drop what frames or routes its request, nor what we say of who it is.
            .filter(|name| ![TRANSFER_ENCODING, CONTENT_LENGTH, HOST, TE, FORWARDED_CLIENT_CERT].contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in FIXED {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
}

/// Where a request goes and what it takes along.
pub(crate) struct Forwarding<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) identity: &'a Arc<Identity>,
    /// Where it may be sent; one after another is tried while no byte of it was sent.
    pub(crate) endpoints: &'a [Endpoint],
    /// Path and query to send instead of the request's own.
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) closing: &'a Closing,
    /// Of the caller's connection.
    pub(crate) lifetime: Lifetime,
}

/// Sends a request to one of the endpoints and returns the answer, reported by `record` when its last byte was sent.
/// Demands a [`Permit`]: skipping policy does not compile.
pub(crate) async fn forward(
    to: Forwarding<'_>,
    _permit: Permit,
    mut request: Request<Incoming>,
    mut record: Record,
) -> Response<ResponseBody> {
    let grpc = respond::is_grpc(request.headers());
    let version = if request.version() == Version::HTTP_2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
    let upgrade = upgrade_of(request.headers(), request.version());
    let caller_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let mut outgoing =
        prepare(request, version, upgrade.as_ref(), to.path.clone(), &record.request_body, record.host.as_ref());
    // A gRPC stream may be quiet for as long as it likes.
    if let RequestBody::Incoming { wait, .. } = outgoing.body_mut()
        && !grpc
    {
        *wait = Wait::most(to.worker.stall);
    }
    if let Some(span) = &record.span {
        span.inject(outgoing.headers_mut());
    }
    let sent = send(&to, outgoing, version, &mut record).await;
    finish(&to, sent, caller_side, grpc, record)
}

/// The request as it goes on: own target form and framing, no hop-by-hop fields.
fn prepare(
    request: Request<Incoming>,
    version: HttpVersion,
    upgrade: Option<&HeaderValue>,
    path: Option<PathAndQuery>,
    progress: &Rc<Progress>,
    host: Option<&HeaderValue>,
) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    if let Some(upgrade) = upgrade {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, upgrade.clone());
    }
    let path = path.or_else(|| parts.uri.path_and_query().cloned()).unwrap_or_else(|| PathAndQuery::from_static("/"));
    match version {
        HttpVersion::Http1 => {
            // An absolute target becomes the origin form; its authority wins over Host (RFC 9112 section 3.2.2).
            if let Some(host) = host.filter(|_| parts.uri.authority().is_some()) {
                parts.headers.insert(HOST, host.clone());
            }
            parts.uri = Uri::from(path);
            parts.version = Version::HTTP_11;
        }
        HttpVersion::Http2 => {
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            // One name for the host: what was judged (RFC 9113 section 8.3.1).
            if let Some(host) = host.filter(|_| uri.authority.is_none()) {
                uri.authority = Authority::from_maybe_shared(host.clone()).ok();
            }
            // Schemes have no case (RFC 3986 section 3.1).
            let https = uri.scheme.as_ref().is_some_and(|scheme| scheme.as_str().eq_ignore_ascii_case("https"));
            uri.scheme = Some(if https { Scheme::HTTPS } else { Scheme::HTTP });
            parts.headers.remove(HOST);
            uri.path_and_query = Some(path);
            if let Ok(uri) = Uri::from_parts(uri) {
                parts.uri = uri;
            }
        }
    }
    let body = match body.is_end_stream() {
        true => RequestBody::Empty,
        false => RequestBody::Incoming { inner: body, progress: Rc::clone(progress), wait: Wait::default() },
    };
    Request::from_parts(parts, body)
}

type Sent = Result<(Response<Incoming>, Sender, Chosen), Answer>;

/// Sends to one endpoint after another while nothing of the request was sent; repeats once what is safe to repeat when a
/// kept connection turns out to be closed.
async fn send(to: &Forwarding<'_>, request: Request<RequestBody>, version: HttpVersion, record: &mut Record) -> Sent {
    let worker = to.worker;
    let mut tried: Vec<Endpoint> = Vec::new();
    let mut last: Option<Answer> = None;
    let mut request = request;
    let mut fresh_only = false;
    loop {
        let Some(chosen) = worker.balancer.choose(to.endpoints, &tried) else {
            return Err(last.unwrap_or_else(|| {
                Answer::new(StatusCode::SERVICE_UNAVAILABLE, "no_endpoints", "the service has no endpoint")
            }));
        };
        if record.ends.direction == Direction::Outbound {
            record.goes_to(&chosen.endpoint);
        }
        let connecting = Instant::now();
        let connected = worker.upstreams.http(&chosen.endpoint, version, to.identity, fresh_only).await;
        record.waited += connecting.elapsed();
        let mut sender = match connected {
            Ok(sender) => sender,
            Err(error) => {
                tracing::debug!(%error, "endpoint not reached");
                chosen.failed();
                last = Some(unreachable(&error));
                tried.push(chosen.endpoint.clone());
                continue;
            }
        };
        let copy = repeatable(&request, &sender);
        let asked = Instant::now();
        let answer = sender.send(request).await;
        record.waited += asked.elapsed();
        match answer {
            Ok(response) => {
                chosen.succeeded();
                return Ok((response, sender, chosen));
            }
            Err(mut error) => {
                if let Some(failure) = record.request_body.failure.get() {
                    return Err(exact::body_failed(failure));
                }
                let reused = sender.is_reused();
                match error.take_message().or(copy) {
                    // Not sent, or sent on a kept connection and safe to repeat: once more on a connection of its own.
                    Some(unsent) if reused && !fresh_only => {
                        request = unsent;
                        sender.discard();
                        fresh_only = true;
                    }
                    Some(unsent) => {
                        request = unsent;
                        chosen.failed();
                        tried.push(chosen.endpoint.clone());
                        last = Some(no_answer(error.error()));
                    }
                    None => return Err(no_answer(error.error())),
                }
            }
        }
    }
}

/// A copy of a request that may be repeated when a kept HTTP/1 connection closes without an answer: without body,
/// idempotent (RFC 9110 section 9.2.2). HTTP/2 says which requests were not processed; a stream that the server reset is
/// its answer.
fn repeatable(request: &Request<RequestBody>, sender: &Sender) -> Option<Request<RequestBody>> {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::DELETE | Method::PUT
    );
    if matches!(sender, Sender::Http2(_))
        || !sender.is_reused()
        || !idempotent
        || !matches!(request.body(), RequestBody::Empty)
        || request.headers().contains_key(UPGRADE)
    {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn unreachable(error: &ConnectError) -> Answer {
    let status = if error.label() == "connect_timeout" { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
    Answer::new(status, error.label(), error.to_string())
}

fn no_answer(error: &hyper::Error) -> Answer {
    let label = if error.is_parse() { "bad_answer" } else { "no_answer" };
    Answer::new(
        StatusCode::BAD_GATEWAY,
        label,
        format!("the server ended the connection without a valid answer: {error}"),
    )
}

/// Turns what came back into the caller's answer.
fn finish(
    to: &Forwarding<'_>,
    sent: Sent,
    caller_side: Option<OnUpgrade>,
    grpc: bool,
    mut record: Record,
) -> Response<ResponseBody> {
    let response = match (sent, caller_side) {
        (Ok((response, sender, chosen)), Some(caller_side)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            return record.answer(switch(to, response, caller_side, sender, chosen));
        }
        (Ok((response, ..)), None) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            record.ending = Ending::Failed("bad_answer");
            Answer::new(StatusCode::BAD_GATEWAY, "bad_answer", "the server switched protocols without being asked")
                .into_response(grpc)
        }
        (Ok((mut response, sender, chosen)), _) => {
            strip_hop_by_hop(response.headers_mut());
            response.map(|body| ResponseBody::upstream(body, sender, chosen))
        }
        (Err(answer), _) => {
            record.ending = Ending::Failed(answer.label);
            answer.into_response(grpc)
        }
    };
    leave(to.closing, record.answer(response))
}

/// Asks an HTTP/1 caller to leave when its connection is to end.
pub(crate) fn leave(closing: &Closing, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if closing.get() && response.version() != Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The server switched protocols: both connections become byte streams, joined until both are done or the first of their
/// certificates ends.
fn switch(
    to: &Forwarding<'_>,
    mut response: Response<Incoming>,
    caller_side: OnUpgrade,
    sender: Sender,
    chosen: Chosen,
) -> Response<ResponseBody> {
    let server_side = hyper::upgrade::on(&mut response);
    let end = to.lifetime.end.min(sender.end());
    let open = to.worker.count();
    tokio::task::spawn_local(async move {
        let _held = (chosen, open);
        if let (Ok(caller), Ok(server)) = tokio::join!(caller_side, server_side) {
            let (mut caller, mut server) = (TokioIo::new(caller), TokioIo::new(server));
            let joined = tokio::io::copy_bidirectional(&mut caller, &mut server);
            let _ = tokio::time::timeout_at(end.into(), joined).await;
        }
    });
    let (parts, _) = response.into_parts();
    Response::from_parts(parts, ResponseBody::local(Default::default()))
}
