//! From our application to the network, one connection a call.
//!
//! accept → original destination → route → detect → balance → originate mTLS → forward → record. A destination of the mesh
//! is reached by mTLS as the identity that the control plane named, or not at all; what is outside passes as it is.
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use weft_api::workload::{Endpoint, ProtocolHint};

use super::exact::host_of;
use super::http::{Broken, Forwarding, RequestEnds, forward, leave, serve};
use super::record::{Ending, Record, ResponseBody};
use super::respond;
use super::{Closing, Worker, own_party, until};
use crate::stage::accept::{self, OriginalDst};
use crate::stage::balance::Chosen;
use crate::stage::connect::{ConnectError, HttpVersion};
use crate::stage::detect::{self, Detected, STALL};
use crate::stage::forward as carry;
use crate::stage::policy::Permit;
use crate::stage::route::Route;
use crate::stage::tls::{Carries, Lifetime};
use crate::stage::transport::{Stream, Transport};
use crate::telemetry::{ConnectionEvent, Direction, Ends, Kind, Party, Protocol, Refusal};

/// How long an application may be silent before its connection is opened to the server all the way, so that a server
/// that speaks first is heard. Clients that speak first do so well within it.
const HEAD_START: Duration = Duration::from_millis(2);

/// One connection from our application to the network.
pub async fn handle(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let _open = worker.count();
    let accepted = match accept::original_dst(stream, peer, &[]) {
        Ok(accepted) => accepted,
        Err((stream, why)) => {
            refused(&worker, why.label(), peer);
            return accept::reset(stream);
        }
    };
    let original = accepted.original_dst;
    let view = worker.view();
    let route = view.route(original);
    let destination = route.destination();
    let connection = Rc::new(Connection {
        ends: Ends {
            direction: Direction::Outbound,
            source: own_party(&view),
            destination: Party::new(destination.name, destination.namespace),
            protocol: Protocol::Tcp,
            tls: route.is_secured(),
        },
        original,
        peer: accepted.peer,
        closing: Closing::default(),
        worker,
    });
    match &route {
        Route::NoSuchPort => {
            refused(&connection.worker, "no_such_port", peer);
            accept::reset(accepted.stream);
        }
        Route::Outside => connection.pass_through(accepted.stream).await,
        Route::Service { .. } | Route::Workload { .. } => connection.to_mesh(accepted.stream, &route).await,
    }
}

fn refused(worker: &Worker, reason: &'static str, peer: SocketAddr) {
    let refusal =
        Refusal { direction: Direction::Outbound, reason, detail: None, peer_identity: None, peer_address: Some(peer) };
    worker.telemetry.refused(&refusal);
}

/// A connection on its way out.
struct Connection {
    worker: Rc<Worker>,
    ends: Ends,
    original: OriginalDst,
    peer: SocketAddr,
    closing: Closing,
}

/// The server's side of a byte stream, secured if the endpoint has an identity.
struct Opened {
    stream: Stream,
    lifetime: Lifetime,
    chosen: Option<Chosen>,
}

impl Connection {
    /// To an address that is not of the mesh: bytes, as they are.
    async fn pass_through(&self, stream: TcpStream) {
        let OriginalDst(address) = self.original;
        let server = self.worker.upstreams.tcp(address).await;
        let server = server.map(|tcp| Opened {
            stream: Transport::Plain(tcp).rewind(BytesMut::new()),
            lifetime: Lifetime::unbounded(),
            chosen: None,
        });
        self.bytes(Transport::Plain(stream).rewind(BytesMut::new()), server).await;
    }

    /// To a service or workload that the control plane knows.
    async fn to_mesh(self: Rc<Self>, mut stream: TcpStream, route: &Route) {
        let mut seen = BytesMut::new();
        let detected = match route.protocol() {
            ProtocolHint::Http1 => Detected::Http1,
            ProtocolHint::Http2 => Detected::Http2,
            ProtocolHint::Opaque => Detected::Opaque,
            ProtocolHint::Detect => {
                match tokio::time::timeout(HEAD_START, detect::first_bytes(&mut stream, &mut seen, Some(STALL))).await {
                    Ok(Ok(detected)) => detected,
                    Ok(Err(_)) => return,
                    Err(_) => return self.undecided(stream, seen, route).await,
                }
            }
        };
        let stream = Transport::Plain(stream).rewind(seen);
        match detected {
            Detected::Http1 => self.http(stream, HttpVersion::Http1).await,
            Detected::Http2 => self.http(stream, HttpVersion::Http2).await,
            Detected::Opaque => {
                let server = self.open(route, Carries::Opaque).await;
                self.bytes(stream, server).await;
            }
        }
    }

    /// The application is silent: the connection is opened all the way, and whichever side speaks first decides.
    async fn undecided(self: Rc<Self>, mut stream: TcpStream, mut seen: BytesMut, route: &Route) {
        let connection = Rc::clone(&self);
        let opening = connection.open(route, Carries::Undecided);
        tokio::pin!(opening);
        let mut opened = None;
        let first = tokio::select! {
            biased;
            first = detect::first_bytes(&mut stream, &mut seen, Some(STALL)) => first.map(Some),
            done = &mut opening => match done {
                Err(error) => {
                    let caller = Transport::Plain(stream).rewind(seen);
                    return self.bytes(caller, Err(error)).await;
                }
                Ok(mut server) => {
                    let (unread, mut transport) = server.stream.into_parts();
                    let mut spoken = BytesMut::from(&unread[..]);
                    let first = tokio::select! {
                        biased;
                        first = detect::first_bytes(&mut stream, &mut seen, Some(STALL)) => first.map(Some),
                        read = transport.read_buf(&mut spoken) => read.map(|_| None),
                    };
                    server.stream = transport.rewind(spoken);
                    opened = Some(server);
                    first
                }
            },
        };
        let caller = Transport::Plain(stream).rewind(seen);
        match first {
            Err(_) => caller.into_parts().1.reset(),
            // The connection that was opened meanwhile serves the first request.
            Ok(Some(Detected::Http1)) => {
                if let Some(Opened { stream, lifetime, chosen: Some(chosen) }) = opened {
                    let _ = self.worker.upstreams.adopt(&chosen.endpoint, stream, lifetime).await;
                }
                self.http(caller, HttpVersion::Http1).await;
            }
            Ok(Some(Detected::Http2)) => self.http(caller, HttpVersion::Http2).await,
            Ok(Some(Detected::Opaque) | None) => {
                let server = match opened {
                    Some(server) => Ok(server),
                    None => opening.await,
                };
                self.bytes(caller, server).await;
            }
        }
    }

    /// Opens a connection for bytes to one endpoint after another until one is reached.
    async fn open(&self, route: &Route, carries: Carries) -> Result<Opened, ConnectError> {
        let worker = &self.worker;
        let identity = worker.identity();
        let mut tried = Vec::new();
        let mut last = None;
        while let Some(chosen) = worker.balancer.choose(route.endpoints(), &tried) {
            match worker.upstreams.stream(&chosen.endpoint, carries, &identity).await {
                Ok((stream, lifetime)) => {
                    chosen.succeeded();
                    return Ok(Opened { stream, lifetime, chosen: Some(chosen) });
                }
                Err(error) => {
                    tracing::debug!(%error, "endpoint not reached");
                    chosen.failed();
                    tried.push(chosen.endpoint.clone());
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let none = std::io::Error::new(std::io::ErrorKind::NotFound, "the service has no endpoint");
            ConnectError::Tcp(self.original.0, none)
        }))
    }

    /// Carries bytes both ways. The permit is the destination's to give: its sidecar judges before it forwards.
    async fn bytes(&self, caller: Stream, server: Result<Opened, ConnectError>) {
        let chosen = server.as_ref().ok().and_then(|opened| opened.chosen.as_ref());
        let tls = chosen.map_or(self.ends.tls, |chosen| chosen.endpoint.identity.is_some());
        let open = Rc::new(self.worker.telemetry.connection_opened(&Ends { tls, ..self.ends.clone() }));
        let (outcome, endpoint) = match server {
            Err(error) => {
                tracing::debug!(%error, "destination not reached");
                caller.into_parts().1.reset();
                (Ending::Failed(error.label()), None)
            }
            Ok(Opened { stream, lifetime, chosen }) => {
                let (sent, received) = (Rc::clone(&open), Rc::clone(&open));
                let permit = Permit::of_destination();
                let carried =
                    carry::bytes(caller, stream, move |n| sent.add_sent(n), move |n| received.add_received(n), &permit);
                let ending = tokio::select! {
                    done = carried => if done.is_ok() { Ending::Forwarded } else { Ending::Failed("cut") },
                    () = until(lifetime.end) => Ending::Failed("certificate_expired"),
                };
                (ending, chosen.map(|chosen| chosen.endpoint.clone()))
            }
        };
        let event = ConnectionEvent {
            outcome: outcome.as_outcome(),
            peer_identity: endpoint.as_ref().and_then(|e| e.identity.as_ref()).map(|id| id.as_str()),
            peer_address: Some(endpoint.as_ref().map_or(self.original.0, |e| e.address)),
        };
        if let Some(open) = Rc::into_inner(open) {
            open.finish(&event);
        }
    }

    async fn http(self: Rc<Self>, stream: Stream, version: HttpVersion) {
        let (worker, closing, peer) = (Rc::clone(&self.worker), self.closing.clone(), self.peer);
        let ends = RequestEnds::new(self.ends.clone());
        let handler = move |request: Request<Incoming>| {
            let (connection, ends) = (Rc::clone(&self), ends.of(&request));
            async move { connection.request(request, ends).await }
        };
        let served = serve(&worker, stream, version, Lifetime::unbounded(), closing, handler).await;
        if let Err(Broken { label, error }) = served {
            tracing::debug!(%error, "outbound connection ended");
            if let Some(label) = label {
                refused(&worker, label, peer);
            }
        }
    }

    /// One request, to whichever endpoint is less loaded now.
    async fn request(self: Rc<Self>, request: Request<Incoming>, ends: Rc<Ends>) -> Response<ResponseBody> {
        let grpc = respond::is_grpc(request.headers());
        let host = host_of(&request);
        let mut record = Record::new(
            Rc::clone(&self.worker),
            ends,
            request.method().clone(),
            request.uri().clone(),
            host.as_ref().ok().and_then(Clone::clone),
        );
        record.span = self.worker.telemetry.start_span(Kind::Client, request.headers());
        if let Err(answer) = host {
            record.ending = Ending::Failed(answer.label);
            return leave(&self.closing, record.answer(answer.into_response(grpc)));
        }
        let view = self.worker.view();
        let route = view.route(self.original);
        let endpoints: &[Endpoint] = route.endpoints();
        let to = Forwarding {
            worker: &self.worker,
            identity: &self.worker.identity(),
            endpoints,
            path: None,
            closing: &self.closing,
            lifetime: Lifetime::unbounded(),
        };
        forward(to, Permit::of_destination(), request, record).await
    }
}
