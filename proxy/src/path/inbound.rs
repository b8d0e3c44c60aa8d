//! From the network to our application, one connection a call.
//!
//! accept → first bytes → terminate mTLS → authorize → limit → forward → record. What arrives without a mesh identity is
//! judged as such: by address, or by a default that lets anyone in. Nothing is forwarded that policy was not asked about.
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::HeaderName;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use weft_certs::Peer;

use super::attempt::SendPolicy;
use super::exact::host_of;
use super::http::{Broken, FORWARDED_CLIENT_CERT, RequestEnds, leave, serve};
use super::judge::admit_stream;
use super::observe::keep_refusal;
use super::record::{Ending, Record, ResponseBody};
use super::respond;
use super::send::{Forwarding, forward};
use super::{Closing, Worker, own_party};
use crate::stage::accept::{self, Accepted, Refused};
use crate::stage::balance::Destination;
use crate::stage::connect::{HttpVersion, Identity};
use crate::stage::detect::{self, Detected, STALL};
use crate::stage::policy::Caller;
use crate::stage::route::MeshView;
use crate::stage::tls::{self, Carries, Lifetime};
use crate::stage::transport::{Stream, Transport};
use crate::telemetry::{Direction, Ends, Kind, Party, Protocol, Refusal};

/// Some servers take it for the same field as [`FORWARDED_CLIENT_CERT`] (CGI variables).
const FORWARDED_CLIENT_CERT_UNDERSCORED: HeaderName = HeaderName::from_static("x_forwarded_client_cert");

/// One connection from the network to our application. Its phases are boxed: a connection that waits, perhaps for hours,
/// holds the memory of its own phase and not of the largest.
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
    let arrival = match Box::pin(arrive(accepted, &worker)).await {
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
        Content::Http1 => Box::pin(connection.http(stream.rewind(seen), HttpVersion::Http1)).await,
        Content::Http2 => Box::pin(connection.http(stream.rewind(seen), HttpVersion::Http2)).await,
        Content::Streams => Box::pin(connection.streams(stream)).await,
        Content::Bytes => Box::pin(connection.bytes(&mut stream.rewind(seen), server)).await,
        Content::Unknown => Box::pin(connection.detect(stream, seen, server)).await,
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
pub(super) const SILENCE: Duration = Duration::from_millis(100);

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

pub(super) fn refused(worker: &Worker, reason: &'static str, detail: Option<&str>, peer: SocketAddr) {
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
            Detected::Http1 => Box::pin(self.http(stream, HttpVersion::Http1)).await,
            Detected::Http2 => Box::pin(self.http(stream, HttpVersion::Http2)).await,
            Detected::Opaque => Box::pin(self.bytes(&mut stream, server)).await,
        }
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
            Err(answer) => {
                keep_refusal(&self, &record, &answer);
                return leave(&self.closing, record.answer(answer.into_response(grpc)));
            }
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
