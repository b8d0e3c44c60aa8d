//! One worker's kept connections to one endpoint, and requests on them.
//!
//! HTTP/1: a connection serves one request at a time and comes back when the answer was read. HTTP/2: a connection serves as
//! many as the other side allows, then another is opened.
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};

use super::balance::Connections;
use super::body::RequestBody;
use super::connect::HttpVersion;
use super::expect::Expectation;
use super::tls::Lifetime;
use super::tunnels::Tunnels;

/// An idle connection is closed by us before the other side would close it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept for one endpoint.
const MOST_IDLE: usize = 256;
/// Streams on a connection whose other side has not said yet how many it takes (RFC 9113 section 6.5.2 asks for at least
/// as many).
pub(super) const STREAMS_AT_FIRST: usize = 100;

/// Kept connections.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    /// Kept for the next byte stream.
    pub tunnels: Tunnels,
    /// Held while an HTTP/2 connection is being made, so that those who wait share it.
    pub(super) making: tokio::sync::Mutex<()>,
    /// Streams that the endpoint took on a connection the last time that it said so.
    streams: Cell<Option<usize>>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    lifetime: Lifetime,
    since: Instant,
    connections: Rc<Connections>,
}

/// An HTTP/2 connection that many requests share.
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    lifetime: Lifetime,
    /// Streams that the other side takes.
    most: Rc<Cell<usize>>,
    active: Cell<usize>,
    /// Turned on when it took no more requests.
    spent: Cell<bool>,
    idle_since: Cell<Instant>,
    connections: Rc<Connections>,
}

impl Shared {
    fn usable(&self, now: Instant) -> bool {
        !self.spent.get() && !self.sender.is_closed() && now < self.lifetime.retire
    }

    fn has_room(&self) -> bool {
        self.active.get() < self.most.get()
    }
}

impl Pool {
    /// A kept HTTP/1 connection.
    pub(super) fn take_idle(self: &Rc<Self>, now: Instant) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        while let Some(kept) = idle.pop() {
            if kept.usable(now) {
                let Idle { sender, lifetime, connections, .. } = kept;
                return Some(Sender::Http1(Lease {
                    pool: Rc::clone(self),
                    sender,
                    lifetime,
                    reused: true,
                    expectation: None,
                    connections,
                }));
            }
        }
        None
    }

    /// Whether there is a kept connection with room for a request.
    pub(super) fn has_room(&self, version: HttpVersion, now: Instant) -> bool {
        match version {
            HttpVersion::Http1 => self.idle.borrow().iter().any(|kept| kept.usable(now)),
            HttpVersion::Http2 => self.shared.borrow().iter().any(|shared| shared.usable(now) && shared.has_room()),
        }
    }

    /// A stream of an HTTP/2 connection that has one to spare.
    pub(super) fn share(self: &Rc<Self>, now: Instant) -> Option<Sender> {
        let mut all = self.shared.borrow_mut();
        all.retain(|shared| shared.usable(now));
        let shared = all.iter().find(|shared| shared.has_room())?;
        self.streams.set(Some(shared.most.get()).filter(|most| *most != STREAMS_AT_FIRST).or(self.streams.get()));
        Some(SharedLease::on(shared))
    }

    /// Streams to open on a new connection until its other side says how many it takes.
    pub(super) fn streams_at_first(&self) -> usize {
        self.streams.get().unwrap_or(STREAMS_AT_FIRST).min(STREAMS_AT_FIRST)
    }

    pub(super) fn add(
        &self,
        sender: http2::SendRequest<RequestBody>,
        lifetime: Lifetime,
        most: Rc<Cell<usize>>,
        connections: Rc<Connections>,
    ) -> Sender {
        let (active, spent, idle_since) = (Cell::new(0), Cell::new(false), Cell::new(Instant::now()));
        let shared = Rc::new(Shared { sender, lifetime, most, active, spent, idle_since, connections });
        let lease = SharedLease::on(&shared);
        self.shared.borrow_mut().push(shared);
        lease
    }

    pub(super) fn lease(
        self: &Rc<Self>,
        sender: http1::SendRequest<RequestBody>,
        lifetime: Lifetime,
        connections: &Rc<Connections>,
    ) -> Sender {
        let connections = Rc::clone(connections);
        Sender::Http1(Lease { pool: Rc::clone(self), sender, lifetime, reused: false, expectation: None, connections })
    }

    fn keep(&self, idle: Idle) {
        let mut kept = self.idle.borrow_mut();
        if kept.len() < MOST_IDLE {
            idle.connections.idle();
            kept.push(idle);
        }
    }

    /// Gives up all kept connections; what is under way on them goes on.
    pub(super) fn close(&self) {
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
        self.tunnels.close();
    }

    /// Closes what was idle too long or is to be retired, and what is more than may be.
    pub(super) fn sweep(&self, now: Instant) {
        self.tunnels.sweep(now);
        self.idle.borrow_mut().retain(|idle| idle.usable(now) && !idle.connections.is_over());
        self.shared.borrow_mut().retain(|shared| {
            let unused = shared.active.get() == 0 && now.duration_since(shared.idle_since.get()) >= IDLE_TIMEOUT;
            shared.usable(now) && !unused
        });
    }
}

impl Idle {
    fn usable(&self, now: Instant) -> bool {
        !self.sender.is_closed() && now < self.lifetime.retire && now.duration_since(self.since) < IDLE_TIMEOUT
    }
}

/// A connection with room for a request.
pub enum Sender {
    /// For this request alone until its answer is read.
    Http1(Lease),
    /// Shared by many.
    Http2(SharedLease),
}

/// A stream of an HTTP/2 connection.
pub struct SharedLease {
    sender: http2::SendRequest<RequestBody>,
    shared: Rc<Shared>,
}

/// An HTTP/1 connection that goes back to its pool.
pub struct Lease {
    pool: Rc<Pool>,
    sender: http1::SendRequest<RequestBody>,
    lifetime: Lifetime,
    reused: bool,
    expectation: Option<Expectation>,
    connections: Rc<Connections>,
}

impl SharedLease {
    fn on(shared: &Rc<Shared>) -> Sender {
        shared.active.set(shared.active.get() + 1);
        Sender::Http2(Self { sender: shared.sender.clone(), shared: Rc::clone(shared) })
    }
}

impl Drop for SharedLease {
    fn drop(&mut self) {
        let active = self.shared.active.get() - 1;
        self.shared.active.set(active);
        if active == 0 {
            self.shared.idle_since.set(Instant::now());
        }
        self.shared.connections.idle();
    }
}

impl Sender {
    /// Sends a request; a request of which no byte was sent comes back with the error.
    pub async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1(lease) => {
                lease.expectation = Expectation::of(&mut request);
                lease.sender.try_send_request(request).await
            }
            Self::Http2(lease) => lease.sender.try_send_request(request).await,
        }
    }

    /// Whether the connection served requests before: it may have been closed by the other side while idle.
    pub fn is_reused(&self) -> bool {
        match self {
            Self::Http1(lease) => lease.reused,
            Self::Http2(_) => true,
        }
    }

    /// When its certificate ends it.
    pub fn end(&self) -> Instant {
        match self {
            Self::Http1(lease) => lease.lifetime.end,
            Self::Http2(lease) => lease.shared.lifetime.end,
        }
    }

    /// It took a request no more: nobody shall be given it again.
    pub fn discard(self) {
        if let Self::Http2(lease) = self {
            lease.shared.spent.set(true);
        }
    }

    /// Gives the connection back once its answer was read to the end.
    pub fn give_back(self) {
        let Self::Http1(Lease { pool, mut sender, lifetime, expectation, connections, .. }) = self else { return };
        let given_up = expectation.is_some_and(Expectation::give_up);
        if given_up || sender.is_closed() {
            return;
        }
        let now = Instant::now();
        if now >= lifetime.retire {
            return;
        }
        if sender.is_ready() {
            return pool.keep(Idle { sender, lifetime, since: now, connections });
        }
        // The request's body may still be on its way; the connection is ready when that is done.
        tokio::task::spawn_local(async move {
            if let Ok(Ok(())) = tokio::time::timeout(IDLE_TIMEOUT, sender.ready()).await {
                pool.keep(Idle { sender, lifetime, since: Instant::now(), connections });
            }
        });
    }
}
