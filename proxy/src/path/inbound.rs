//! From the network to our application, one connection a call.
//!
//! accept → first bytes → terminate mTLS → authorize → limit → forward → record. What arrives without a mesh identity is
//! judged as such: by address, or by a default that lets anyone in. Nothing is forwarded that policy was not asked about.
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::header::HeaderName;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use weft_api::policy::{HttpRequest, path};
use weft_certs::Peer;

use super::attempt::SendPolicy;
use super::exact::{bad_request, host_of};
use super::http::{
    Broken, FORWARDED_CLIENT_CERT, RequestEnds, begins_websocket, idle_must_close, leave, serve, told_to_leave,
};
use super::record::{Ending, Record, ResponseBody};
use super::respond::{self, Answer};
use super::send::{Forwarding, forward};
use super::{Closing, Worker, own_party, until};
use crate::stage::accept::{self, Accepted, Refused};
use crate::stage::balance::Destination;
use crate::stage::connect::{HttpVersion, Identity};
use crate::stage::detect::{self, Detected, STALL};
use crate::stage::forward::{self as carry, Side};
use crate::stage::frames::Open;
use crate::stage::policy::{self, Caller, Denial, Judged, Permit};
use crate::stage::rate_limit::Limited;
use crate::stage::route::MeshView;
use crate::stage::tls::{self, Carries, Lifetime};
use crate::stage::transport::{Stream, Transport};
use crate::stage::tunnel::Tunnel;
use crate::telemetry::{ConnectionEvent, Direction, Ends, Kind, OpenConnection, Party, Protocol, Refusal, Verdict};

/// Some servers take it for the same field as [`FORWARDED_CLIENT_CERT`] (CGI variables).
const FORWARDED_CLIENT_CERT_UNDERSCORED: HeaderName = HeaderName::from_static("x_forwarded_client_cert");

/// A sidecar's connection without a byte stream for this long is closed. Longer than clients keep idle ones.
const STREAM_TIMEOUT: Duration = Duration::from_secs(120);

/// One connection from the network to our application.
pub async fn handle(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let _open = worker.count();
    let accepted = match accept::original_dst(stream, peer, &worker.own_ports) {
        Ok(accepted) => accepted,
        Err((stream, why)) => {
            refused(&worker, why.label(), None, peer);
            return accept::reset(stream);
        }
    };
    let (peer, target) = (accepted.peer, accepted.original_dst.0);
    if !worker.local.contain(target.ip()) {
        refused(&worker, Refused::NotLocal.label(), None, peer);
        return accept::reset(accepted.stream);
    }
    let arrival = match arrive(accepted, &worker).await {
        Ok(Some(arrival)) => arrival,
        Ok(None) => return,
        Err((label, detail)) => return refused(&worker, label, Some(&detail), peer),
    };
    let identity = worker.identity();
    let connection = Rc::new(Connection {
        application: worker.balancer.application(target),
        ends: ends(&worker.view(), &arrival),
        client_cert: arrival.caller.peer.as_ref().and_then(|peer| forwarded_client_cert(&identity, peer)),
        caller: arrival.caller,
        target,
        peer,
        lifetime: arrival.lifetime,
        closing: Closing::default(),
        identity,
        worker,
    });
    let Arrival { stream, seen, server, .. } = arrival;
    match arrival.content {
        Content::Http1 => connection.http(stream.rewind(seen), HttpVersion::Http1).await,
        Content::Http2 => connection.http(stream.rewind(seen), HttpVersion::Http2).await,
        Content::Streams => connection.streams(stream).await,
        Content::Bytes => connection.bytes(&mut stream.rewind(seen), server).await,
        Content::Unknown => connection.detect(stream, seen, server).await,
    }
}

/// A connection whose caller is known.
struct Arrival {
    stream: Transport,
    seen: BytesMut,
    caller: Caller,
    content: Content,
    lifetime: Lifetime,
    /// The application's side, where it was asked before the caller had spoken.
    server: Option<Stream>,
}

/// What a connection carries, as far as its caller has said.
enum Content {
    Http1,
    Http2,
    Streams,
    /// The application spoke first.
    Bytes,
    Unknown,
}

impl From<Carries> for Content {
    fn from(carries: Carries) -> Self {
        match carries {
            Carries::Http1 => Self::Http1,
            Carries::Http2 => Self::Http2,
            Carries::Streams => Self::Streams,
        }
    }
}

/// How long a caller outside the mesh may be silent before the application is let to speak first. A sidecar begins its
/// handshake at once.
const SILENCE: Duration = Duration::from_millis(100);

/// Finds out whether a sidecar calls, and if so who. `Ok(None)`: the caller left.
async fn arrive(accepted: Accepted, worker: &Worker) -> Result<Option<Arrival>, (&'static str, String)> {
    let Accepted { mut stream, peer, original_dst } = accepted;
    let mut seen = BytesMut::with_capacity(2048);
    let outside = Caller { peer: None, address: peer.ip() };
    let mut server = None;
    let patience = match admit_stream(worker, &outside, original_dst.0.port()).permit {
        Ok(_) => SILENCE,
        Err(_) => tls::HANDSHAKE_TIMEOUT,
    };
    let hello = match tokio::time::timeout(patience, tls::open(&mut stream, &mut seen)).await {
        Ok(opened) => opened,
        Err(_) if patience > SILENCE => return Err(("silent", "no byte came".to_owned())),
        Err(_) => match worker.upstreams.tcp(original_dst.0).await {
            Err(error) => return Err((error.label(), error.to_string())),
            Ok(mut application) => {
                let mut spoken = BytesMut::new();
                let opened = tokio::select! {
                    opened = tls::open(&mut stream, &mut seen) => Some(opened),
                    _ = application.read_buf(&mut spoken) => None,
                };
                server = Some(Transport::Plain(application).rewind(spoken));
                match opened {
                    Some(opened) => opened,
                    None => {
                        let (stream, lifetime) = (Transport::Plain(stream), Lifetime::unbounded());
                        return Ok(Some(Arrival {
                            stream,
                            seen,
                            caller: outside,
                            content: Content::Bytes,
                            lifetime,
                            server,
                        }));
                    }
                }
            }
        },
    };
    match hello {
        Err(_) => Ok(None),
        Ok(None) => {
            let (stream, lifetime) = (Transport::Plain(stream), Lifetime::unbounded());
            Ok(Some(Arrival { stream, seen, caller: outside, content: Content::Unknown, lifetime, server }))
        }
        Ok(Some(hello)) => {
            let identity = worker.identity();
            let secured = tls::terminate(hello, stream, Arc::clone(&identity.server))
                .await
                .map_err(|e| (e.label(), e.to_string()))?;
            Ok(Some(Arrival {
                lifetime: Lifetime::of(&identity.svid, &secured.peer),
                stream: Transport::Server(Box::new(secured.stream)),
                seen: BytesMut::new(),
                caller: Caller { peer: Some(secured.peer), address: peer.ip() },
                content: secured.carries.into(),
                server: None,
            }))
        }
    }
}

/// What policy says of a byte stream of this caller now.
fn admit_stream(worker: &Worker, caller: &Caller, port: u16) -> Judged {
    let view = worker.view();
    policy::admit(&view.config.inbound.policy, caller, port, None)
}

/// Envoy's `x-forwarded-client-cert`, of what the caller's certificate proves.
fn forwarded_client_cert(identity: &Identity, peer: &Peer) -> Option<HeaderValue> {
    let hash: String = peer.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::from_str(&format!("By={};Hash={hash};URI={}", identity.svid.id(), peer.id)).ok()
}

fn ends(view: &MeshView, arrival: &Arrival) -> Ends {
    let inbound = &view.config.inbound;
    let source = match arrival.caller.identity().and_then(|id| id.service_account()) {
        Some((namespace, account)) => Party::new(account, namespace),
        None => Party::unknown(),
    };
    let destination = match inbound.services.first() {
        Some(service) => Party::new(service.name.as_str(), service.namespace.as_str()),
        None => own_party(view),
    };
    Ends {
        direction: Direction::Inbound,
        source,
        destination,
        protocol: Protocol::Tcp,
        tls: arrival.caller.peer.is_some(),
    }
}

fn refused(worker: &Worker, reason: &'static str, detail: Option<&str>, peer: SocketAddr) {
    let refusal =
        Refusal { direction: Direction::Inbound, reason, detail, peer_identity: None, peer_address: Some(peer) };
    worker.telemetry.refused(&refusal);
}

/// A connection on its way to the application.
pub(super) struct Connection {
    pub(super) worker: Rc<Worker>,
    pub(super) identity: Arc<Identity>,
    pub(super) ends: Ends,
    pub(super) caller: Caller,
    pub(super) client_cert: Option<HeaderValue>,
    pub(super) target: SocketAddr,
    pub(super) application: Rc<Destination>,
    pub(super) peer: SocketAddr,
    pub(super) lifetime: Lifetime,
    pub(super) closing: Closing,
}

impl Connection {
    /// A caller outside the mesh, of whom it is not known yet what it speaks.
    async fn detect(self: Rc<Self>, mut stream: Transport, mut seen: BytesMut, mut server: Option<Stream>) {
        // What a byte stream may do decides whether the server may be asked before the caller has spoken.
        let detected = match self.admit_stream().permit {
            Ok(_) if seen.is_empty() => match self.whoever_speaks_first(&mut stream, &mut seen).await {
                Some((detected, connected)) => {
                    server = connected;
                    detected
                }
                None => return,
            },
            // Bytes that policy would refuse may still become HTTP, which it may allow: they are waited for.
            permit => match tokio::time::timeout(
                tls::HANDSHAKE_TIMEOUT,
                detect::first_bytes(&mut stream, &mut seen, permit.is_ok().then_some(STALL)),
            )
            .await
            {
                Ok(Ok(detected)) => detected,
                Ok(Err(_)) => return,
                Err(_) => Detected::Opaque,
            },
        };
        let mut stream = stream.rewind(seen);
        match detected {
            Detected::Http1 => self.http(stream, HttpVersion::Http1).await,
            Detected::Http2 => self.http(stream, HttpVersion::Http2).await,
            Detected::Opaque => self.bytes(&mut stream, server).await,
        }
    }

    /// Byte streams that a sidecar sends one after another. Each is judged, limited and counted as if it had a connection of
    /// its own.
    async fn streams(&self, transport: Transport) {
        let mut tunnel = Tunnel::new(transport, self.target.port());
        while let Some(open) = self.next_stream(&mut tunnel).await {
            match open.undecided {
                false => self.bytes(&mut tunnel, None).await,
                true => {
                    if let Some(server) = self.first_of_stream(&mut tunnel).await {
                        self.bytes(&mut tunnel, server).await;
                    }
                }
            }
            if Instant::now() >= self.lifetime.end || !tunnel.settle().await {
                break;
            }
        }
        if let Some(fault) = tunnel.fault() {
            refused(&self.worker, "bad_frame", Some(&fault.to_string()), self.peer);
        }
        tunnel.close().await;
    }

    /// `None`: there will be no more.
    async fn next_stream(&self, tunnel: &mut Tunnel) -> Option<Open> {
        let mut view = self.worker.view.clone();
        view.mark_unchanged();
        let unused = tunnel.streams() == 0;
        tokio::select! {
            biased;
            open = tunnel.next() => open.ok().flatten(),
            // A client that has just connected has a stream on its way.
            () = told_to_leave(&self.worker, self.lifetime), if !unused => None,
            () = idle_must_close(&self.worker, self.lifetime), if unused => None,
            () = tokio::time::sleep(STREAM_TIMEOUT) => None,
            _ = self.until_forbidden(view) => None,
        }
    }

    /// Waits for the first byte of a stream whose client was silent when it was opened, from either side: where policy would
    /// let bytes pass, the application is let to speak first. `None`: the client took the stream back, or is gone.
    async fn first_of_stream(&self, tunnel: &mut Tunnel) -> Option<Option<Stream>> {
        let (server, patience) = match self.admit_stream().permit {
            Ok(_) => (self.worker.upstreams.tcp(self.target).await.ok(), SILENCE),
            Err(_) => (None, tls::HANDSHAKE_TIMEOUT),
        };
        // A client that waits for the server to speak would wait for ever: it is told that nobody will.
        let Some(server) = server else {
            let first = tokio::time::timeout(patience, tunnel.first()).await;
            return first.unwrap_or(Ok(true)).ok()?.then_some(None);
        };
        let mut peeked = [0];
        tokio::select! {
            biased;
            first = tunnel.first() => if !first.ok()? { return None },
            _ = server.peek(&mut peeked) => {}
            () = until(self.lifetime.end) => return None,
        }
        Some(Some(Transport::Plain(server).rewind(BytesMut::new())))
    }

    fn admit_stream(&self) -> Judged {
        admit_stream(&self.worker, &self.caller, self.target.port())
    }

    /// Connects to the application and waits for the first byte from either side.
    async fn whoever_speaks_first(
        &self,
        stream: &mut Transport,
        seen: &mut BytesMut,
    ) -> Option<(Detected, Option<Stream>)> {
        let mut server = match self.worker.upstreams.tcp(self.target).await {
            Ok(server) => server,
            // The caller's first bytes may still be HTTP, which deserves an answer. One that waits for the server to
            // speak would wait for ever: it is told that nobody listens, as a byte stream is.
            Err(_) => {
                let first = tokio::time::timeout(SILENCE, detect::first_bytes(stream, seen, Some(STALL))).await;
                return first.unwrap_or(Ok(Detected::Opaque)).ok().map(|detected| (detected, None));
            }
        };
        let mut spoken = BytesMut::new();
        tokio::select! {
            biased;
            detected = detect::first_bytes(stream, seen, Some(STALL)) => {
                Some((detected.ok()?, Some(Transport::Plain(server).rewind(spoken))))
            }
            read = server.read_buf(&mut spoken) => {
                read.ok()?;
                Some((Detected::Opaque, Some(Transport::Plain(server).rewind(spoken))))
            }
        }
    }

    /// Carries a byte stream, for as long as policy permits it. It is judged here and not when it was accepted: the
    /// first byte may come long after.
    async fn bytes(&self, caller: &mut impl Side, server: Option<Stream>) {
        let worker = &self.worker;
        let mut view = worker.view.clone();
        view.mark_unchanged();
        let judged = self.admit_stream();
        self.count(&judged);
        let open = worker.telemetry.connection_opened(&self.ends);
        let permitted = match judged.permit {
            Err(denial) => Err(Ending::Denied { policy: denial.policy, reason: denial.explanation }),
            Ok(permit) => match self.limit() {
                Err(limited) => Err(Ending::Limited { policy: limited.policy, limit: limited.limit }),
                Ok(()) => Ok(permit),
            },
        };
        let outcome = match permitted {
            Err(refusal) => {
                caller.cut();
                refusal
            }
            Ok(permit) => tokio::select! {
                ending = self.carry(caller, server, &permit, &open) => ending,
                () = until(self.lifetime.end) => Ending::Failed("certificate_expired"),
                denial = self.until_forbidden(view) => {
                    Ending::Denied { policy: denial.policy, reason: denial.explanation }
                }
            },
        };
        let event = ConnectionEvent {
            outcome: outcome.as_outcome(),
            peer_identity: self.caller.identity().map(|id| id.as_str()),
            peer_address: Some(self.peer),
        };
        open.finish(&event);
    }

    async fn carry(
        &self,
        caller: &mut impl Side,
        server: Option<Stream>,
        permit: &Permit,
        open: &OpenConnection,
    ) -> Ending {
        let server = match server {
            Some(server) => Ok(server),
            None => {
                self.worker.upstreams.tcp(self.target).await.map(|tcp| Transport::Plain(tcp).rewind(BytesMut::new()))
            }
        };
        match server {
            Err(error) => {
                tracing::debug!(%error, "application not reached");
                caller.cut();
                Ending::Failed(error.label())
            }
            Ok(mut server) => {
                let (sent, received) = (|read| open.add_sent(read), |read| open.add_received(read));
                match carry::bytes(caller, &mut server, sent, received, permit).await {
                    Ok(()) => Ending::Forwarded,
                    Err(_) => Ending::Failed("cut"),
                }
            }
        }
    }

    fn count(&self, judged: &Judged) {
        let telemetry = &self.worker.telemetry;
        let verdict = if judged.permit.is_ok() { Verdict::Allow } else { Verdict::Deny };
        telemetry.authorization(verdict, &judged.policy);
        if let Some(shadow) = &judged.shadow {
            telemetry.authorization(Verdict::ShadowDeny, shadow);
        }
    }

    /// Returns once a configuration that is newer than the one seen in `view` forbids what was permitted.
    async fn until_forbidden(&self, mut view: watch::Receiver<Option<Arc<MeshView>>>) -> Box<Denial> {
        loop {
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Err(denial) = self.admit_stream().permit {
                return denial;
            }
        }
    }

    fn limit(&self) -> Result<(), Limited> {
        let limiter = Arc::clone(&self.worker.limiter.borrow());
        if limiter.is_empty() {
            return Ok(());
        }
        let telemetry = &self.worker.telemetry;
        let taken =
            limiter.admit(&self.caller, Instant::now(), |policy, limit| telemetry.rate_limit(false, policy, limit));
        taken.inspect_err(|limited| telemetry.rate_limit(true, &limited.policy, &limited.limit))
    }

    pub(super) async fn http(self: Rc<Self>, stream: Stream, version: HttpVersion) {
        let (worker, closing) = (Rc::clone(&self.worker), self.closing.clone());
        let (lifetime, peer) = (self.lifetime, self.peer);
        let ends = RequestEnds::new(self.ends.clone());
        let handler = move |request: Request<Incoming>| {
            let ends = ends.of(&request);
            Rc::clone(&self).request(request, ends)
        };
        if let Err(Broken { label, error }) = serve(&worker, stream, version, lifetime, closing, handler).await {
            tracing::debug!(%error, "inbound connection ended");
            if let Some(label) = label {
                refused(&worker, label, Some(&error.to_string()), peer);
            }
        }
    }

    /// One request: read unambiguously, judged, limited, forwarded.
    pub(super) async fn request(
        self: Rc<Self>,
        mut request: Request<Incoming>,
        ends: Rc<Ends>,
    ) -> Response<ResponseBody> {
        let grpc = respond::is_grpc(request.headers());
        let host = host_of(&request);
        let mut record = Record::new(
            Rc::clone(&self.worker),
            ends,
            request.method().clone(),
            request.uri().clone(),
            host.as_ref().ok().and_then(Clone::clone),
        );
        record.peer_address = Some(self.peer);
        record.peer_identity = self.caller.identity().cloned();
        record.span = self.worker.telemetry.start_span(Kind::Server, request.headers());
        if let Err(answer) = &host {
            record.ending = Ending::Failed(answer.label);
        }
        let judged = host.and_then(|host| self.judge(&request, host.as_ref(), &mut record));
        let (permit, path) = match judged {
            Ok(judged) => judged,
            Err(answer) => return leave(&self.closing, record.answer(answer.into_response(grpc))),
        };
        self.tell_application(&mut request);
        let to = Forwarding {
            worker: &self.worker,
            identity: &self.identity,
            destination: &self.application,
            policy: SendPolicy::DEFAULT,
            path,
            closing: &self.closing,
            lifetime: self.lifetime,
        };
        forward(to, permit, request, record).await
    }

    /// Policy, then limits. Returns the path to forward where it differs from what was sent: the application receives
    /// what was compared.
    fn judge(
        &self,
        request: &Request<Incoming>,
        host: Option<&HeaderValue>,
        record: &mut Record,
    ) -> Result<(Permit, Option<PathAndQuery>), Answer> {
        let refuse = |record: &mut Record, label, text: &str| {
            record.ending = Ending::Failed(label);
            bad_request(label, text)
        };
        let method = if begins_websocket(request) { &Method::GET } else { request.method() };
        path::check_method(method.as_str()).map_err(|why| refuse(record, why.label(), "the method"))?;
        let sent = request.uri().path();
        let compared =
            path::normalize(sent).map_err(|why| refuse(record, why.label(), "the path has no single reading"))?;
        let host = match host {
            Some(host) => {
                std::str::from_utf8(host.as_bytes()).map_err(|_| refuse(record, "host", "the Host header"))?
            }
            None => "",
        };
        let host = match host.is_empty() {
            true => host.into(),
            false => path::normalize_host(host).map_err(|why| refuse(record, why.label(), "the Host header"))?,
        };
        let http = HttpRequest { method: method.as_str(), path: &compared, host: &host, headers: request.headers() };
        let view = self.worker.view();
        let judged = policy::admit(&view.config.inbound.policy, &self.caller, self.target.port(), Some(http));
        self.count(&judged);
        let permit = judged.permit.map_err(|denial| {
            let answer = Answer::new(StatusCode::FORBIDDEN, "denied", denial.explanation.clone());
            record.ending = Ending::Denied { policy: denial.policy, reason: denial.explanation };
            answer
        })?;
        if let Err(limited) = self.limit() {
            let text = format!("limit {} of RateLimitPolicy {} is exhausted", limited.limit, limited.policy);
            let mut answer = Answer::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", text);
            answer.retry_after = Some(limited.retry_after);
            record.ending = Ending::Limited { policy: limited.policy, limit: limited.limit };
            return Err(answer);
        }
        if compared == sent {
            return Ok((permit, None));
        }
        let target = match request.uri().query() {
            Some(query) => format!("{compared}?{query}"),
            None => compared.into_owned(),
        };
        PathAndQuery::try_from(target)
            .map(|path| (permit, Some(path)))
            .map_err(|_| refuse(record, "path", "the path has no single reading"))
    }

    /// Replaces what the caller may have claimed about itself with what its certificate proves.
    fn tell_application(&self, request: &mut Request<Incoming>) {
        let headers = request.headers_mut();
        headers.remove(FORWARDED_CLIENT_CERT_UNDERSCORED);
        match &self.client_cert {
            Some(value) => headers.insert(FORWARDED_CLIENT_CERT, value.clone()),
            None => headers.remove(FORWARDED_CLIENT_CERT),
        };
    }
}
