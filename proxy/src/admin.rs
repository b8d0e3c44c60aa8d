//! The admin port: what may be asked of a running sidecar.
//!
//! `/metrics`, `/ready` and `/live` answer anybody, and so does `/probe/…`, by which the kubelet has the application
//! checked (see [`crate::probe`]). `/config`, `/explain` and `/refusals` reveal the sidecar's state and answer loopback only, and only
//! under a loopback name (a browser that was sent here by a foreign page names that page's host). Nothing here changes
//! state. Paths are matched byte for byte, methods are GET and HEAD, header fields must
//! arrive within 2 s and fit in 8 KiB: the port is open to the pod's network and must be dull to attack.
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use weft_api::probe::PATH_PREFIX;

use crate::probe::Prober;
use crate::telemetry::{CLASSIC_TEXT, OPEN_METRICS, Telemetry};

/// How long a client may take over the header fields of a request, the first and each that follows.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may last, but for the time that a check of the application is given; a scraper that keeps
/// connections reconnects.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(30);
/// Header fields of a request in bytes, request line included.
const HEADER_BYTES: usize = 8 * 1024;
const HEADER_FIELDS: usize = 64;
/// Connections at a time; one more is closed at once.
const CONNECTIONS: usize = 256;
/// Of them from one address, so that no neighbour keeps the kubelet out.
const CONNECTIONS_OF_AN_ADDRESS: usize = 64;
/// With more connections than this, scrapes share a text that is at most [`SHARED_FOR`] old: slow readers then cannot
/// make the sidecar hold a text for each of them.
const SCRAPES_APART: usize = 8;
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Whether the sidecar serves, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What is missing, in words for an operator; empty: ready.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Ready.
    pub fn ready() -> Self {
        Self::default()
    }

    /// Not ready, for one reason.
    pub fn waiting(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()] }
    }

    /// Whether nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Answers `/config`: the configuration in force, without key material or tokens.
pub type ConfigProvider = Box<dyn Fn() -> Value + Send + Sync>;

/// Answers `/explain`: takes the decoded query parameters; an error says what to ask instead and becomes a 400.
pub type ExplainProvider = Box<dyn Fn(&BTreeMap<String, String>) -> Result<Value, String> + Send + Sync>;

/// What the admin port knows.
pub struct Admin {
    telemetry: Arc<Telemetry>,
    readiness: watch::Receiver<Readiness>,
    config: ConfigProvider,
    explain: ExplainProvider,
    prober: Prober,
    shared: Mutex<Option<(Instant, bool, Bytes)>>,
    permits: Arc<Semaphore>,
    /// Open connections by address.
    peers: Mutex<HashMap<IpAddr, usize>>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

impl Admin {
    /// Puts together what the port answers with.
    pub fn new(
        telemetry: Arc<Telemetry>,
        readiness: watch::Receiver<Readiness>,
        config: ConfigProvider,
        explain: ExplainProvider,
        prober: Prober,
    ) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        Arc::new(Self {
            telemetry,
            readiness,
            config,
            explain,
            prober,
            shared: Mutex::default(),
            permits,
            peers: Mutex::default(),
        })
    }

    fn answer<B>(&self, peer: IpAddr, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = match request.uri().authority() {
            None => request.uri().path(),
            // The absolute form is for proxies, which this is not.
            Some(_) => "",
        };
        let private = matches!(path, "/config" | "/explain" | "/refusals");
        if !private && !matches!(path, "/metrics" | "/ready" | "/live") {
            return refusal(
                StatusCode::NOT_FOUND,
                "no such page; there are /metrics, /ready, /live, /config, /explain and /refusals",
            );
        }
        if private && !peer.to_canonical().is_loopback() {
            return refusal(StatusCode::FORBIDDEN, "answered on loopback only: ask from inside the pod");
        }
        if private && !names_loopback(request) {
            return refusal(StatusCode::FORBIDDEN, "the Host field must be localhost or a loopback address");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD; nothing here changes state");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => self.metrics(request),
            "/ready" => {
                let readiness = self.readiness.borrow().clone();
                let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                json_response(status, &json!({"ready": readiness.is_ready(), "reasons": readiness.reasons}))
            }
            "/config" => json_response(StatusCode::OK, &(self.config)()),
            "/explain" => match (self.explain)(&parameters(request.uri().query().unwrap_or_default())) {
                Ok(explanation) => json_response(StatusCode::OK, &explanation),
                Err(reason) => refusal(StatusCode::BAD_REQUEST, &reason),
            },
            "/refusals" => {
                let asked = parameters(request.uri().query().unwrap_or_default());
                match asked.get("last").map_or(Ok(usize::MAX), |last| last.parse()) {
                    Ok(last) => json_response(StatusCode::OK, &self.telemetry.refusals(last)),
                    Err(_) => refusal(StatusCode::BAD_REQUEST, "last is not a number"),
                }
            }
            _ => json_response(StatusCode::OK, &json!({"live": true})),
        }
    }

    /// Has the application checked. `None`: the check is one of those whose failure the kubelet knows by the absence of
    /// an answer.
    async fn probe<B>(
        &self,
        local: IpAddr,
        request: &Request<B>,
        deadline: &Deadline,
    ) -> Option<Response<Full<Bytes>>> {
        let key = request.uri().path_and_query().and_then(|path| path.as_str().strip_prefix(PATH_PREFIX));
        let declared = key.filter(|_| request.uri().authority().is_none()).and_then(|key| self.prober.find(key));
        let Some(asked) = declared else {
            return Some(refusal(StatusCode::NOT_FOUND, "no such check was declared when the pod was made"));
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Some(refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD"));
        }
        if local.to_canonical().is_loopback() {
            let reason = "ask on the pod's own address, as the kubelet does: what it is asked on is what is checked";
            return Some(refusal(StatusCode::BAD_REQUEST, reason));
        }
        deadline.extend(asked.timeout());
        match self.prober.perform(asked, local.to_canonical(), request.headers().get(USER_AGENT)).await {
            Ok(()) => Some(json_response(StatusCode::OK, &json!({"ok": true}))),
            Err(_) if asked.is_handler() => None,
            Err(failure) => {
                let status = failure.status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                Some(refusal(status, &failure.reason))
            }
        }
    }

    fn metrics<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let accepts =
            |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("application/openmetrics-text"));
        let open = request.headers().get_all(ACCEPT).iter().any(accepts);
        let crowded = CONNECTIONS - self.permits.available_permits() > SCRAPES_APART;
        let now = Instant::now();
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match &*shared {
            Some((made, form, text)) if crowded && *form == open && now.duration_since(*made) < SHARED_FOR => {
                text.clone()
            }
            _ => {
                let text = if open { self.telemetry.encode() } else { self.telemetry.encode_classic() };
                let text = Bytes::from(text);
                *shared = crowded.then(|| (now, open, text.clone()));
                text
            }
        };
        drop(shared);
        response(StatusCode::OK, if open { OPEN_METRICS } else { CLASSIC_TEXT }, text)
    }
}

/// Serves `listener` until dropped; open connections end with it. Needs a tokio runtime with I/O and time.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let mut connections = JoinSet::new();
    let mut reported = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(fault) => {
                // Out of descriptors, most likely: trying again at once would burn a processor, and so would a line
                // for each attempt.
                if !std::mem::replace(&mut reported, true) {
                    tracing::warn!(%fault, "the admin port cannot accept connections");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        reported = false;
        if let Ok(permit) = admin.permits.clone().try_acquire_owned()
            && let Some(counted) = Counted::new(&admin, peer.ip())
        {
            connections.spawn(async move {
                serve_connection(stream, peer.ip(), &counted.admin).await;
                drop(permit);
            });
        }
    }
}

/// A connection that is counted for its address until dropped.
struct Counted {
    admin: Arc<Admin>,
    peer: IpAddr,
}

impl Counted {
    /// `None`: the address has as many as it may.
    fn new(admin: &Arc<Admin>, peer: IpAddr) -> Option<Self> {
        let mut peers = admin.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let open = peers.entry(peer).or_default();
        if *open >= CONNECTIONS_OF_AN_ADDRESS {
            return None;
        }
        *open += 1;
        Some(Self { admin: Arc::clone(admin), peer })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut peers = self.admin.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = peers.get_mut(&self.peer) {
            *open -= 1;
            if *open == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, peer: IpAddr, admin: &Admin) {
    let Ok(local) = stream.local_addr() else { return };
    let deadline = Deadline::new();
    let service = service_fn(|request| {
        let deadline = &deadline;
        async move {
            if request.uri().path().starts_with(PATH_PREFIX) {
                return admin.probe(local.ip(), &request, deadline).await.ok_or(NoAnswer);
            }
            Ok(admin.answer(peer, &request))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADER_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // How such a connection ends is the client's affair.
        _ = connection => {}
        () = deadline.passed() => {}
    }
}

/// Ends a connection in place of an answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer is the answer")]
struct NoAnswer;

/// When a connection ends at the latest.
struct Deadline(watch::Sender<Instant>);

impl Deadline {
    fn new() -> Self {
        Self(watch::Sender::new(Instant::now() + CONNECTION_LIFETIME))
    }

    /// Leaves time for something that takes up to `time` from now.
    fn extend(&self, time: Duration) {
        let needed = Instant::now() + time + HEADER_TIMEOUT;
        self.0.send_if_modified(|end| std::mem::replace(end, needed.max(*end)) < needed);
    }

    async fn passed(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let end = *changes.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(end.into()) => return,
                _ = changes.changed() => {}
            }
        }
    }
}

/// Whether the client asked for this host under a loopback name. HTTP/1.0 clients may leave the field out.
fn names_loopback<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    let Some(host) = hosts.next() else { return request.version() == http::Version::HTTP_10 };
    let authority = host.to_str().ok().and_then(|text| text.parse::<http::uri::Authority>().ok());
    let Some(authority) = authority.filter(|_| hosts.next().is_none()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Query parameters with percent escapes decoded; the last of a repeated name counts.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let bytes = text.as_bytes();
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let digits = text.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
            match (bytes[at], digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    at += 3;
                    continue;
                }
                (b'+', _) => out.push(b' '),
                (byte, _) => out.push(byte),
            }
            at += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn refusal(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    json_response(status, &json!({"error": reason}))
}

fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    response(status, "application/json", Bytes::from(format!("{value:#}\n")))
}

fn response(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
