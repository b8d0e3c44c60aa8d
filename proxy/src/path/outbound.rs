//! From our application to the network, one connection a call.
//!
//! accept → original destination → route → detect → balance → originate mTLS → forward → record. A destination of the mesh
//! is reached by mTLS as the identity that the control plane named, or not at all; what is outside passes as it is.
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpStream;
use weft_api::workload::{Endpoint, ProtocolHint};

use super::attempt::SendPolicy;
use super::exact::host_of;
use super::http::{Broken, RequestEnds, leave, serve};
use super::record::{Ending, Record, ResponseBody};
use super::respond;
use super::routed::{self, Hop};
use super::send::{Forwarding, forward};
use super::{Closing, Worker, own_party, until};
use crate::stage::accept::{self, OriginalDst};
use crate::stage::balance::{Chosen, Destination, Family, Full, Open, Target, Tried};
use crate::stage::connect::{Carrier, ConnectError, HttpVersion};
use crate::stage::detect::{self, Detected, STALL};
use crate::stage::forward as carry;
use crate::stage::frames::FrameError;
use crate::stage::policy::Permit;
use crate::stage::route::Route;
use crate::stage::tls::Lifetime;
use crate::stage::transport::{Stream, Transport};
use crate::stage::tunnel::Tunnel;
use crate::telemetry::{
    ConnectionEvent, Direction, Ends, Kind, OpenConnection, Party, Protocol, Refusal, TrafficEvent,
};

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

/// What is to be called. Of a connection that is older than the configuration it may be gone: then nobody is there.
fn destination_of(worker: &Worker, route: &Route, original: OriginalDst) -> Rc<Destination> {
    match route {
        Route::Service { service, port } => worker.balancer.service(service, *port, Some(Family::of(original.0.ip()))),
        Route::Workload { endpoint, .. } => worker.balancer.address(endpoint),
        Route::Outside | Route::NoSuchPort => worker.balancer.nowhere(),
    }
}

fn refused(worker: &Worker, reason: &'static str, peer: SocketAddr) {
    let refusal =
        Refusal { direction: Direction::Outbound, reason, detail: None, peer_identity: None, peer_address: Some(peer) };
    worker.telemetry.refused(&refusal);
}

fn bad_frame(worker: &Worker, fault: FrameError, endpoint: &Endpoint) {
    worker.telemetry.refused(&Refusal {
        direction: Direction::Outbound,
        reason: "bad_frame",
        detail: Some(&fault.to_string()),
        peer_identity: endpoint.identity.as_ref().map(|id| id.as_str()),
        peer_address: Some(endpoint.address),
    });
}

/// Ends what is left of a stream, then keeps its connection for the next one.
async fn keep(mut tunnel: Tunnel, lifetime: Lifetime, chosen: Chosen) {
    if tunnel.settle().await {
        chosen.target.pool.tunnels.keep(tunnel, lifetime);
    }
}

/// A connection on its way out.
pub(super) struct Connection {
    pub(super) worker: Rc<Worker>,
    pub(super) ends: Ends,
    pub(super) original: OriginalDst,
    pub(super) peer: SocketAddr,
    pub(super) closing: Closing,
}

/// The server's side of a byte stream, secured if the endpoint has an identity.
struct Opened {
    carrier: Carrier,
    lifetime: Lifetime,
    /// The endpoint, and its place among the connections; both are free again when the stream ends.
    held: Option<(Chosen, Open)>,
}

impl Connection {
    /// To an address that is not of the mesh: bytes, as they are.
    async fn pass_through(&self, stream: TcpStream) {
        let OriginalDst(address) = self.original;
        let server = self.worker.upstreams.tcp(address).await;
        let server = server.map(|tcp| Opened {
            carrier: Carrier::Own(Transport::Plain(tcp).rewind(BytesMut::new())),
            lifetime: Lifetime::unbounded(),
            held: None,
        });
        self.bytes(Transport::Plain(stream).rewind(BytesMut::new()), server, &Route::Outside).await;
    }

    /// To a service or workload that the control plane knows.
    async fn to_mesh(self: Rc<Self>, mut stream: TcpStream, route: &Route) {
        let mut seen = BytesMut::new();
        let detected = match route.protocol() {
            ProtocolHint::Http1 => Detected::Http1,
            ProtocolHint::Http2 => Detected::Http2,
            ProtocolHint::Opaque => Detected::Opaque,
            ProtocolHint::Detect if self.worker.server_first.contains(self.original.0) => {
                return self.undecided(stream, seen, route).await;
            }
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
                let server = self.open(route, false).await;
                self.bytes(stream, server, route).await;
            }
        }
    }

    /// The application is silent: a stream is opened all the way, and whichever side speaks first decides.
    async fn undecided(self: Rc<Self>, mut stream: TcpStream, mut seen: BytesMut, route: &Route) {
        let connection = Rc::clone(&self);
        let opening = connection.open(route, true);
        tokio::pin!(opening);
        let mut opened = None;
        let first = tokio::select! {
            biased;
            first = detect::first_bytes(&mut stream, &mut seen, Some(STALL)) => first.map(Some),
            done = &mut opening => match done {
                Err(error) => {
                    let caller = Transport::Plain(stream).rewind(seen);
                    return self.bytes(caller, Err(error), route).await;
                }
                Ok(mut server) => {
                    let first = tokio::select! {
                        biased;
                        first = detect::first_bytes(&mut stream, &mut seen, Some(STALL)) => first.map(Some),
                        // What becomes of it is seen when it is carried.
                        _ = server.carrier.first() => Ok(None),
                    };
                    opened = Some(server);
                    first
                }
            },
        };
        let caller = Transport::Plain(stream).rewind(seen);
        let known = &self.worker.server_first;
        match first {
            Err(_) => {
                self.withdraw(opened);
                caller.into_parts().1.reset();
            }
            Ok(Some(Detected::Http1)) => {
                self.withdraw(opened);
                known.forget(self.original.0);
                self.http(caller, HttpVersion::Http1).await;
            }
            Ok(Some(Detected::Http2)) => {
                self.withdraw(opened);
                known.forget(self.original.0);
                self.http(caller, HttpVersion::Http2).await;
            }
            Ok(Some(Detected::Opaque)) => {
                known.forget(self.original.0);
                let server = match opened {
                    Some(server) => Ok(server),
                    None => opening.await,
                };
                self.bytes(caller, server, route).await;
            }
            Ok(None) => {
                known.remember(self.original.0);
                if let Some(server) = opened {
                    self.bytes(caller, Ok(server), route).await;
                }
            }
        }
    }

    /// Takes back a stream on which nothing was said.
    fn withdraw(&self, opened: Option<Opened>) {
        if let Some(Opened { carrier: Carrier::Framed(tunnel), lifetime, held: Some((chosen, _)) }) = opened {
            tokio::task::spawn_local(keep(tunnel, lifetime, chosen));
        }
    }

    /// Opens a byte stream to one endpoint after another until one is reached.
    async fn open(&self, route: &Route, undecided: bool) -> Result<Opened, ConnectError> {
        let worker = &self.worker;
        let destination = destination_of(worker, route, self.original);
        let Some(room) = destination.connection() else {
            self.count(TrafficEvent::Shed(Full::Connections.label()));
            return Err(ConnectError::Full(Full::Connections));
        };
        let (identity, patience) = (worker.identity(), destination.traffic().connect_timeout);
        let mut tried = Tried::default();
        let mut last = None;
        while let Some(mut chosen) = destination.choose(&tried, Instant::now()) {
            let opening = Instant::now();
            let opened = worker.upstreams.stream(&chosen.target, undecided, &identity, patience).await;
            let now = Instant::now();
            let ejection = match &opened {
                Ok(_) => chosen.succeeded(now, now - opening),
                Err(_) => chosen.unreachable(now),
            };
            if let Some(ejection) = ejection {
                self.count(TrafficEvent::Ejected(ejection.reason.as_str()));
            }
            match opened {
                Ok((carrier, lifetime)) => return Ok(Opened { carrier, lifetime, held: Some((chosen, room)) }),
                Err(error) => {
                    tracing::debug!(%error, "endpoint not reached");
                    tried.add(&chosen.target);
                    last = Some(error);
                }
            }
            if tried.is_full() {
                break;
            }
        }
        Err(last.unwrap_or_else(|| {
            let none = std::io::Error::new(std::io::ErrorKind::NotFound, "the service has no endpoint");
            ConnectError::Tcp(self.original.0, none)
        }))
    }

    fn count(&self, event: TrafficEvent) {
        self.worker.telemetry.traffic(event, &self.ends.destination);
    }

    /// Carries one byte stream both ways, and reports it.
    async fn bytes(&self, caller: Stream, server: Result<Opened, ConnectError>, route: &Route) {
        let held = server.as_ref().ok().and_then(|opened| opened.held.as_ref());
        let tls = held.map_or(self.ends.tls, |(chosen, _)| chosen.target.endpoint.identity.is_some());
        let open = self.worker.telemetry.connection_opened(&Ends { tls, ..self.ends.clone() });
        let (outcome, target) = self.carry(caller, server, route, &open).await;
        let event = ConnectionEvent {
            outcome: outcome.as_outcome(),
            peer_identity: target.as_ref().and_then(|to| to.endpoint.identity.as_ref()).map(|id| id.as_str()),
            peer_address: Some(target.as_ref().map_or(self.original.0, |to| to.endpoint.address)),
        };
        open.finish(&event);
    }

    /// Carries bytes until both sides are done. A stream that crossed with the orderly end of a kept connection is opened
    /// again elsewhere: nothing of it was carried out. The permit is the destination's to give: its sidecar judges before it
    /// forwards.
    async fn carry(
        &self,
        mut caller: Stream,
        mut server: Result<Opened, ConnectError>,
        route: &Route,
        open: &OpenConnection,
    ) -> (Ending, Option<Rc<Target>>) {
        // Of bytes that are read a second time.
        let counted = Cell::new(0);
        let sent = |read: u64| {
            let again = read.min(counted.get());
            counted.set(counted.get() - again);
            open.add_sent(read - again);
        };
        let received = |read| open.add_received(read);
        let permit = Permit::of_destination();
        loop {
            let Opened { mut carrier, lifetime, held } = match server {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::debug!(%error, "destination not reached");
                    caller.into_parts().1.reset();
                    return (Ending::Failed(error.label()), None);
                }
            };
            let carried = async {
                match &mut carrier {
                    Carrier::Own(server) => carry::bytes(&mut caller, server, sent, received, &permit).await,
                    Carrier::Framed(server) => carry::bytes(&mut caller, server, sent, received, &permit).await,
                }
            };
            let ending = tokio::select! {
                done = carried => if done.is_ok() { Ending::Forwarded } else { Ending::Failed("cut") },
                () = until(lifetime.end) => Ending::Failed("certificate_expired"),
            };
            let target = held.as_ref().map(|(chosen, _)| Rc::clone(&chosen.target));
            let (Carrier::Framed(mut tunnel), Some((chosen, room))) = (carrier, held) else { return (ending, target) };
            if let Ending::Failed("cut") = ending
                && let Some(unopened) = tunnel.take_unopened()
            {
                counted.set(unopened.len() as u64);
                drop(room);
                accept::reset_no_more(caller.get_ref().tcp());
                caller = caller.unread(&unopened);
                server = self.open(route, false).await;
                continue;
            }
            if let Some(fault) = tunnel.fault() {
                bad_frame(&self.worker, fault, &chosen.target.endpoint);
            }
            match &ending {
                // Nothing is left to be waited for.
                Ending::Forwarded => keep(tunnel, lifetime, chosen).await,
                Ending::Failed("certificate_expired") => {}
                _ => drop(tokio::task::spawn_local(keep(tunnel, lifetime, chosen))),
            }
            return (ending, target);
        }
    }

    pub(super) async fn http(self: Rc<Self>, stream: Stream, version: HttpVersion) {
        let (worker, closing, peer) = (Rc::clone(&self.worker), self.closing.clone(), self.peer);
        let ends = RequestEnds::new(self.ends.clone());
        let handler = move |request: Request<Incoming>| {
            let ends = ends.of(&request);
            Rc::clone(&self).request(request, ends)
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
    pub(super) async fn request(self: Rc<Self>, request: Request<Incoming>, ends: Rc<Ends>) -> Response<ResponseBody> {
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
        if let Route::Service { service, port } = &route
            && let Some(routes) = view.routes(service, *port)
        {
            let port = service.ports[*port].port;
            let hop = Hop { worker: &self.worker, view: &view, routes, port, closing: &self.closing };
            // Boxed: what has no routes does not carry the room that these need.
            return Box::pin(routed::request(hop, Permit::of_destination(), request, record)).await;
        }
        let destination = destination_of(&self.worker, &route, self.original);
        let to = Forwarding {
            worker: &self.worker,
            identity: &self.worker.identity(),
            destination: &destination,
            policy: SendPolicy::DEFAULT,
            path: None,
            closing: &self.closing,
            lifetime: Lifetime::unbounded(),
        };
        forward(to, Permit::of_destination(), request, record).await
    }
}
