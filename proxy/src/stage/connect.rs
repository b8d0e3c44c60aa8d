//! Connections to where requests go: dialled, secured, and for HTTP kept for the next request.
//!
//! One worker's connections are its own. An endpoint with an identity is reached by mTLS as that identity or not at all.
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use weft_api::workload::Endpoint;
use weft_certs::{ExpectedServer, SpiffeId, Svid};

use super::body::RequestBody;
use super::expect::Expectation;
use super::quiet::Quiet;
use super::tls::{self, Carries, HandshakeError, Lifetime};
use super::transport::{Stream, Transport};
use super::tunnel::Tunnel;
use super::tunnels::Tunnels;

/// Time for a TCP connection to be established.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// An idle connection is closed by us before the other side would close it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept for one endpoint.
const MOST_IDLE: usize = 256;

/// This sidecar's identity with what is made from it.
pub struct Identity {
    /// Certificate and key.
    pub svid: Svid,
    /// Presents it to other sidecars.
    pub server: Arc<rustls::ServerConfig>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The TCP connection was not made.
    #[error("cannot connect to {0}: {1}")]
    Tcp(SocketAddr, io::Error),
    /// The endpoint did not prove to be who the control plane says.
    #[error("cannot secure the connection to {0}: {1}")]
    Tls(SocketAddr, HandshakeError),
    /// HTTP could not be started.
    #[error("cannot speak HTTP with {0}: {1}")]
    Http(SocketAddr, hyper::Error),
}

impl ConnectError {
    /// Label for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Tcp(_, error) if error.kind() == io::ErrorKind::TimedOut => "connect_timeout",
            Self::Tcp(_, error) if error.kind() == io::ErrorKind::ConnectionRefused => "connect_refused",
            Self::Tcp(..) => "connect_failed",
            Self::Tls(_, error) => error.label(),
            Self::Http(..) => "connect_http",
        }
    }
}

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    endpoint: Endpoint,
    version: HttpVersion,
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// All connections of one worker to other places.
pub struct Upstreams {
    mark: Option<u32>,
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    shared: RefCell<HashMap<Key, SharedSlot>>,
    /// Kept for the next byte stream.
    pub tunnels: Tunnels,
    configs: RefCell<TlsConfigs>,
}

/// What carries a byte stream to an endpoint.
pub enum Carrier {
    /// A plaintext connection of its own.
    Own(Stream),
    /// A place in an mTLS connection.
    Framed(Tunnel),
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    lifetime: Lifetime,
    since: Instant,
}

/// Held while the one HTTP/2 connection to an endpoint is being made, so that only one is.
type SharedSlot = Rc<tokio::sync::Mutex<Option<Shared>>>;

/// An HTTP/2 connection that many requests share.
#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    lifetime: Lifetime,
    /// Turned on when it took no more requests.
    spent: Rc<Cell<bool>>,
}

impl Shared {
    fn usable(&self, now: Instant) -> bool {
        !self.spent.get() && !self.sender.is_closed() && now < self.lifetime.retire
    }
}

#[derive(Default)]
struct TlsConfigs {
    made_for: Option<Arc<Identity>>,
    by_server: HashMap<(SpiffeId, Carries), Arc<rustls::ClientConfig>>,
}

impl Upstreams {
    /// No connections yet. `mark` is set on every socket where the redirect knows the proxy by its mark.
    pub fn new(mark: Option<u32>) -> Self {
        Self {
            mark,
            idle: RefCell::default(),
            shared: RefCell::default(),
            tunnels: Tunnels::default(),
            configs: RefCell::default(),
        }
    }

    /// A TCP connection that the redirect lets pass.
    pub async fn tcp(&self, address: SocketAddr) -> Result<TcpStream, ConnectError> {
        dial(address, self.mark).await.map_err(|error| ConnectError::Tcp(address, error))
    }

    /// Opens a byte stream to `endpoint`, secured if it has an identity: on a connection that was kept, or a new one.
    pub async fn stream(
        &self,
        endpoint: &Endpoint,
        undecided: bool,
        identity: &Arc<Identity>,
    ) -> Result<(Carrier, Lifetime), ConnectError> {
        if let Some((mut tunnel, lifetime)) = self.tunnels.take(endpoint) {
            tunnel.open(undecided);
            return Ok((Carrier::Framed(tunnel), lifetime));
        }
        let (transport, lifetime) = self.transport(endpoint, Carries::Streams, identity).await?;
        if let Transport::Plain(_) = transport {
            return Ok((Carrier::Own(transport.rewind(Default::default())), lifetime));
        }
        let mut tunnel = Tunnel::new(transport, endpoint.address.port());
        tunnel.open(undecided);
        Ok((Carrier::Framed(tunnel), lifetime))
    }

    async fn transport(
        &self,
        endpoint: &Endpoint,
        carries: Carries,
        identity: &Arc<Identity>,
    ) -> Result<(Transport, Lifetime), ConnectError> {
        let tcp = self.tcp(endpoint.address).await?;
        let Some(server) = &endpoint.identity else {
            return Ok((Transport::Plain(tcp), Lifetime::unbounded()));
        };
        let config = self.client_config(server, carries, identity);
        let (stream, peer) =
            tls::originate(tcp, config).await.map_err(|error| ConnectError::Tls(endpoint.address, error))?;
        let lifetime = Lifetime::of(&identity.svid, &peer);
        Ok((Transport::Client(Box::new(stream)), lifetime))
    }

    fn client_config(
        &self,
        server: &SpiffeId,
        carries: Carries,
        identity: &Arc<Identity>,
    ) -> Arc<rustls::ClientConfig> {
        let mut configs = self.configs.borrow_mut();
        if !configs.made_for.as_ref().is_some_and(|known| Arc::ptr_eq(known, identity)) {
            configs.made_for = Some(Arc::clone(identity));
            configs.by_server.clear();
        }
        let make = || {
            let expected = ExpectedServer::OneOf(Arc::from([server.clone()]));
            weft_certs::tls_config::client_config(
                Some(&identity.svid),
                identity.svid.bundle(),
                expected,
                &[carries.alpn()],
            )
        };
        Arc::clone(configs.by_server.entry((server.clone(), carries)).or_insert_with(make))
    }

    /// A connection that is ready for a request: kept from before, or new. `fresh_only` passes over kept HTTP/1 ones.
    pub async fn http(
        self: &Rc<Self>,
        endpoint: &Endpoint,
        version: HttpVersion,
        identity: &Arc<Identity>,
        fresh_only: bool,
    ) -> Result<Sender, ConnectError> {
        let key = Key { endpoint: endpoint.clone(), version };
        match version {
            HttpVersion::Http1 => {
                if let Some(kept) = self.take_idle(&key).filter(|_| !fresh_only) {
                    return Ok(Sender::Http1(Lease {
                        pool: Rc::clone(self),
                        key,
                        sender: kept.sender,
                        lifetime: kept.lifetime,
                        reused: true,
                        expectation: None,
                    }));
                }
                let (transport, lifetime) = self.transport(endpoint, Carries::Http1, identity).await?;
                let sender = start_http1(endpoint.address, transport.rewind(Default::default()), lifetime).await?;
                Ok(Sender::Http1(Lease {
                    pool: Rc::clone(self),
                    key,
                    sender,
                    lifetime,
                    reused: false,
                    expectation: None,
                }))
            }
            HttpVersion::Http2 => {
                let slot = Rc::clone(self.shared.borrow_mut().entry(key).or_default());
                let mut slot = slot.lock().await;
                if let Some(shared) = slot.as_ref().filter(|shared| shared.usable(Instant::now())) {
                    return Ok(Sender::Http2(SharedLease(shared.clone())));
                }
                let (transport, lifetime) = self.transport(endpoint, Carries::Http2, identity).await?;
                let sender = start_http2(endpoint.address, transport.rewind(Default::default()), lifetime).await?;
                let shared = Shared { sender, lifetime, spent: Rc::default() };
                *slot = Some(shared.clone());
                Ok(Sender::Http2(SharedLease(shared)))
            }
        }
    }

    fn take_idle(&self, key: &Key) -> Option<Idle> {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(key)?;
        while let Some(candidate) = kept.pop() {
            if candidate.usable(now) {
                return Some(candidate);
            }
        }
        None
    }

    fn keep(&self, key: Key, idle: Idle) {
        let mut all = self.idle.borrow_mut();
        let kept = all.entry(key).or_default();
        if kept.len() < MOST_IDLE {
            kept.push(idle);
        }
    }

    /// Closes what was idle too long, is to be retired, or leads to an endpoint that `keep` does not know any more.
    pub fn sweep(&self, keep: impl Fn(&Endpoint) -> bool) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|key, kept| {
            kept.retain(|idle| idle.usable(now));
            !kept.is_empty() && keep(&key.endpoint)
        });
        self.shared.borrow_mut().retain(|key, slot| match slot.try_lock() {
            Ok(slot) => slot.as_ref().is_some_and(|shared| shared.usable(now)) && keep(&key.endpoint),
            Err(_) => true,
        });
        self.tunnels.sweep(keep);
    }
}

impl Carrier {
    /// Waits until the server speaks or ends its side (`true`), or refuses the stream (`false`). Takes no byte. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn first(&mut self) -> io::Result<bool> {
        match self {
            Self::Own(stream) => stream.get_ref().tcp().peek(&mut [0]).await.map(|_| true),
            Self::Framed(tunnel) => tunnel.first().await,
        }
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

/// A share of an HTTP/2 connection.
pub struct SharedLease(Shared);

/// An HTTP/1 connection that goes back to its pool.
pub struct Lease {
    pool: Rc<Upstreams>,
    key: Key,
    sender: http1::SendRequest<RequestBody>,
    lifetime: Lifetime,
    reused: bool,
    expectation: Option<Expectation>,
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
            Self::Http2(SharedLease(shared)) => shared.sender.try_send_request(request).await,
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
            Self::Http2(SharedLease(shared)) => shared.lifetime.end,
        }
    }

    /// It took a request no more: nobody shall be given it again.
    pub fn discard(self) {
        if let Self::Http2(SharedLease(shared)) = self {
            shared.spent.set(true);
        }
    }

    /// Gives the connection back once its answer was read to the end.
    pub fn give_back(self) {
        let Self::Http1(Lease { pool, key, mut sender, lifetime, expectation, .. }) = self else { return };
        let given_up = expectation.is_some_and(Expectation::give_up);
        if given_up || Instant::now() >= lifetime.retire || sender.is_closed() {
            return;
        }
        if sender.is_ready() {
            return pool.keep(key, Idle { sender, lifetime, since: Instant::now() });
        }
        // The request's body may still be on its way; the connection is ready when that is done.
        tokio::task::spawn_local(async move {
            if let Ok(Ok(())) = tokio::time::timeout(IDLE_TIMEOUT, sender.ready()).await {
                pool.keep(key, Idle { sender, lifetime, since: Instant::now() });
            }
        });
    }
}

/// Connects, marked so that the redirect lets it pass, without delay for small writes.
pub async fn dial(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.set_nodelay(true)?;
    match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await {
        Ok(connected) => connected,
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))
        }
    }
}

async fn start_http1(
    address: SocketAddr,
    stream: Stream,
    lifetime: Lifetime,
) -> Result<http1::SendRequest<RequestBody>, ConnectError> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(super::body::HTTP1_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Http(address, error))?;
    let connection = connection.with_upgrades();
    tokio::task::spawn_local(run_until(lifetime.end, connection));
    Ok(sender)
}

async fn start_http2(
    address: SocketAddr,
    stream: Stream,
    lifetime: Lifetime,
) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(super::body::H2_STREAM_WINDOW)
        .initial_connection_window_size(super::body::H2_CONNECTION_WINDOW)
        .max_send_buf_size(super::body::H2_SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Http(address, error))?;
    tokio::task::spawn_local(run_until(lifetime.end, connection));
    Ok(sender)
}

async fn run_until(end: Instant, connection: impl Future<Output = hyper::Result<()>>) {
    tokio::select! {
        biased;
        done = connection => if let Err(error) = done {
            tracing::debug!(%error, "upstream connection ended");
        },
        () = Quiet::new(tokio::time::sleep_until(end.into())) => {
            tracing::debug!("upstream connection reached the end of its certificate");
        }
    }
}
