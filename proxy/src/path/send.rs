//! The sending half of the per-request stack: make a request ready for the next hop, send it ([`super::attempt`]), follow its
//! answer.
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::attempt::{SendPolicy, Sent, send};
use super::exact::upgrade_of;
use super::http::{FORWARDED_CLIENT_CERT, begins_websocket, leave};
use super::record::{Ending, Record, ResponseBody};
use super::respond::{self, Answer};
use super::{Closing, Worker};
use crate::stage::balance::{Chosen, Destination};
use crate::stage::body::{RequestBody, Wait};
use crate::stage::connect::{HttpVersion, Identity};
use crate::stage::policy::Permit;
use crate::stage::pool::Sender;
use crate::stage::tls::Lifetime;

/// Removes what concerns one connection only (RFC 9110 section 7.6.1), keeping `te: trailers` and the framing.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most requests have none of them: one look at the names instead of a search for each.
    let concerned = |name: &HeaderName| {
        matches!(name.as_str(), "connection" | "upgrade" | "keep-alive" | "proxy-connection" | "http2-settings" | "te")
    };
    if !headers.keys().any(concerned) {
        return;
    }
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
    pub(crate) destination: &'a Rc<Destination>,
    /// How long it may take, and when it is sent again.
    pub(crate) policy: SendPolicy<'a>,
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
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    let grpc = respond::is_grpc(request.headers());
    let version = if request.version() == Version::HTTP_2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
    let upgrade = upgrade_of(request.headers(), request.version());
    let switches = upgrade.is_some() || begins_websocket(&request);
    let caller_side = switches.then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    strip_hop_by_hop(&mut head.headers);
    prepare(&mut head, version, upgrade.as_ref(), to.path.clone(), record.host.as_ref());
    if let Some(span) = &record.span {
        span.inject(&mut head.headers);
    }
    let outgoing =
        Request::from_parts(head, RequestBody::incoming(body, &record.request_body, wait_for(to.worker, grpc)));
    let sent = send(&to, outgoing, version, &mut record).await;
    finish(&to, sent, caller_side, grpc, record)
}

/// How long a piece of a request's body may not come. A gRPC stream may be quiet for as long as it likes.
pub(crate) fn wait_for(worker: &Worker, grpc: bool) -> Wait {
    Wait::most(worker.stall.filter(|_| !grpc))
}

/// The head as it goes on: the next hop's target form and version. Hop-by-hop fields were stripped.
pub(crate) fn prepare(
    head: &mut Parts,
    version: HttpVersion,
    upgrade: Option<&HeaderValue>,
    path: Option<PathAndQuery>,
    host: Option<&HeaderValue>,
) {
    if let Some(upgrade) = upgrade {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, upgrade.clone());
    }
    let path = path.or_else(|| head.uri.path_and_query().cloned()).unwrap_or_else(|| PathAndQuery::from_static("/"));
    match version {
        HttpVersion::Http1 => {
            // An absolute target becomes the origin form; its authority wins over Host (RFC 9112 section 3.2.2).
            if let Some(host) = host.filter(|_| head.uri.authority().is_some()) {
                head.headers.insert(HOST, host.clone());
            }
            head.uri = Uri::from(path);
            head.version = Version::HTTP_11;
        }
        HttpVersion::Http2 => {
            let mut uri = std::mem::take(&mut head.uri).into_parts();
            // One name for the host: what was judged (RFC 9113 section 8.3.1).
            if let Some(host) = host.filter(|_| uri.authority.is_none()) {
                uri.authority = Authority::from_maybe_shared(host.clone()).ok();
                uri.scheme = Some(Scheme::HTTP);
            }
            head.headers.remove(HOST);
            uri.path_and_query = Some(path);
            if let Ok(uri) = Uri::from_parts(uri) {
                head.uri = uri;
            }
            head.version = Version::HTTP_2;
        }
    }
}

/// Turns what came back into the caller's answer.
pub(crate) fn finish(
    to: &Forwarding<'_>,
    sent: Sent,
    caller_side: Option<OnUpgrade>,
    grpc: bool,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    let response = match (sent, caller_side) {
        (Ok((response, sender, chosen)), Some(caller_side)) if has_switched(&response) => {
            return record.answer(switch(to, response, caller_side, sender, chosen));
        }
        (Ok((response, ..)), None) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            record.ending = Ending::Failed("bad_answer");
            Answer::new(StatusCode::BAD_GATEWAY, "bad_answer", "the server switched protocols without being asked")
                .into_response(grpc)
        }
        (Ok((mut response, sender, chosen)), _) => {
            strip_hop_by_hop(response.headers_mut());
            // The version is of this connection, whatever the server speaks (RFC 9110 section 2.5).
            if response.version() == Version::HTTP_10 {
                *response.version_mut() = Version::HTTP_11;
            }
            let patience = to.destination.traffic().idle_timeout;
            response.map(|body| ResponseBody::upstream(body, sender, chosen, patience))
        }
        (Err(answer), _) => {
            record.ending = Ending::Failed(answer.label);
            match answer.reset {
                // Dropped, the record reports that there was no answer.
                Some(reason) => return respond::reset(reason),
                None => answer.into_response(grpc),
            }
        }
    };
    leave(to.closing, record.answer(response))
}

/// Whether the server took up what the request asked its connection to become: over HTTP/1 by 101, over HTTP/2 by 200.
fn has_switched(response: &Response<Incoming>) -> bool {
    match response.version() {
        Version::HTTP_2 => response.status() == StatusCode::OK,
        _ => response.status() == StatusCode::SWITCHING_PROTOCOLS,
    }
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
