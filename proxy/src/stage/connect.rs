//! Makes connections to where requests go: dialled, secured, and for HTTP kept for the next request (see [`super::pool`]).
//!
//! One worker's connections are its own. An endpoint with an identity is reached by mTLS as that identity or not at all.
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use weft_api::workload::{Endpoint, Traffic};
use weft_certs::{ExpectedServer, SpiffeId, Svid};

use super::balance::{Destination, Full, Open, Target};
use super::body::RequestBody;
use super::pool::{STREAMS_AT_FIRST, Sender};
use super::quiet::Quiet;
use super::tls::{self, Carries, HandshakeError, Lifetime};
use super::transport::{Stream, Transport};
use super::tunnel::Tunnel;

/// An idle connection is probed after so long, and is dead when three probes have no answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// An HTTP connection is dead when what was sent is not acknowledged for so long. Byte streams may stand still for longer:
/// their application may have stopped reading, which TCP cannot tell from this.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

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
    /// A limit of the destination was reached.
    #[error("the destination has as much under way as it may: {}", .0.label())]
    Full(Full),
    /// No connection may be made, and a kept one to another endpoint is free.
    #[error("another endpoint has a free connection")]
    Elsewhere,
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
            Self::Full(full) => full.label(),
            Self::Elsewhere => Full::Connections.label(),
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

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Makes one worker's connections to other places.
pub struct Upstreams {
    mark: Option<u32>,
    configs: RefCell<TlsConfigs>,
}

/// What carries a byte stream to an endpoint.
pub enum Carrier {
    /// A plaintext connection of its own.
    Own(Stream),
    /// A place in an mTLS connection.
    Framed(Tunnel),
}

#[derive(Default)]
struct TlsConfigs {
    made_for: Option<Arc<Identity>>,
    by_server: HashMap<(SpiffeId, Carries), Arc<rustls::ClientConfig>>,
}

impl Upstreams {
    /// `mark` is set on every socket where the redirect knows the proxy by its mark.
    pub fn new(mark: Option<u32>) -> Self {
        Self { mark, configs: RefCell::default() }
    }

    /// A TCP connection that the redirect lets pass.
    pub async fn tcp(&self, address: SocketAddr) -> Result<TcpStream, ConnectError> {
        self.tcp_within(address, Traffic::DEFAULT.connect_timeout).await
    }

    async fn tcp_within(&self, address: SocketAddr, patience: Duration) -> Result<TcpStream, ConnectError> {
        dial(address, self.mark, patience).await.map_err(|error| ConnectError::Tcp(address, error))
    }

    /// Opens a byte stream to `target`, secured if it has an identity: on a connection that was kept, or a new one.
    pub async fn stream(
        &self,
        target: &Target,
        undecided: bool,
        identity: &Arc<Identity>,
        patience: Duration,
    ) -> Result<(Carrier, Lifetime), ConnectError> {
        if let Some((mut tunnel, lifetime)) = target.pool.tunnels.take() {
            tunnel.open(undecided);
            return Ok((Carrier::Framed(tunnel), lifetime));
        }
        let endpoint = &target.endpoint;
        let (transport, lifetime) = self.transport(endpoint, Carries::Streams, identity, patience).await?;
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
        patience: Duration,
    ) -> Result<(Transport, Lifetime), ConnectError> {
        let tcp = self.tcp_within(endpoint.address, patience).await?;
        if matches!(carries, Carries::Http1 | Carries::Http2) {
            // Best effort: without it a dead peer is noticed all the same, later.
            let _ = SockRef::from(&tcp).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        }
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

    /// A connection that is ready for a request: kept from before, or new if `destination` has room for one more.
    /// `fresh_only` passes over kept HTTP/1 ones.
    ///
    /// # Errors
    /// Why there is none; a limit that was reached is no fault of the endpoint.
    pub async fn http(
        &self,
        destination: &Rc<Destination>,
        target: &Target,
        version: HttpVersion,
        identity: &Arc<Identity>,
        fresh_only: bool,
    ) -> Result<Sender, ConnectError> {
        if let Some(kept) = kept(target, version, fresh_only) {
            return Ok(kept);
        }
        let _pending = destination.wait().map_err(ConnectError::Full)?;
        // Boxed: a request on a kept connection does not carry the room that a handshake needs.
        match version {
            HttpVersion::Http1 => Box::pin(self.new_http1(destination, target, identity)).await,
            HttpVersion::Http2 => Box::pin(self.new_http2(destination, target, identity)).await,
        }
    }

    async fn new_http1(
        &self,
        destination: &Rc<Destination>,
        target: &Target,
        identity: &Arc<Identity>,
    ) -> Result<Sender, ConnectError> {
        let open = loop {
            if let Some(open) = destination.connection() {
                break open;
            }
            if let Some(kept) = kept(target, HttpVersion::Http1, false) {
                return Ok(kept);
            }
            if destination.has_kept(HttpVersion::Http1) {
                return Err(ConnectError::Elsewhere);
            }
            destination.freed().await;
        };
        let endpoint = &target.endpoint;
        let patience = destination.traffic().connect_timeout;
        let connections = Rc::clone(open.connections());
        let (transport, lifetime) = self.transport(endpoint, Carries::Http1, identity, patience).await?;
        let sender = start_http1(endpoint.address, transport.rewind(Default::default()), lifetime, open).await?;
        Ok(target.pool.lease(sender, lifetime, &connections))
    }

    async fn new_http2(
        &self,
        destination: &Rc<Destination>,
        target: &Target,
        identity: &Arc<Identity>,
    ) -> Result<Sender, ConnectError> {
        loop {
            let making = target.pool.making.lock().await;
            if let Some(shared) = kept(target, HttpVersion::Http2, false) {
                return Ok(shared);
            }
            let Some(open) = destination.connection() else {
                drop(making);
                if destination.has_kept(HttpVersion::Http2) {
                    return Err(ConnectError::Elsewhere);
                }
                destination.freed().await;
                continue;
            };
            let endpoint = &target.endpoint;
            let patience = destination.traffic().connect_timeout;
            let connections = Rc::clone(open.connections());
            let (transport, lifetime) = self.transport(endpoint, Carries::Http2, identity, patience).await?;
            let stream = transport.rewind(Default::default());
            let most = Rc::new(Cell::new(target.pool.streams_at_first()));
            let sender = start_http2(endpoint.address, stream, lifetime, open, Rc::clone(&most)).await?;
            return Ok(target.pool.add(sender, lifetime, most, connections));
        }
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

fn kept(target: &Target, version: HttpVersion, fresh_only: bool) -> Option<Sender> {
    let now = Instant::now();
    match version {
        HttpVersion::Http1 if fresh_only => None,
        HttpVersion::Http1 => target.pool.take_idle(now),
        HttpVersion::Http2 => target.pool.share(now),
    }
}

/// Connects, marked so that the redirect lets it pass, without delay for small writes. A peer that is gone without a word
/// is noticed by probes of the idle connection.
pub async fn dial(address: SocketAddr, mark: Option<u32>, patience: Duration) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.set_nodelay(true)?;
    if !address.ip().is_loopback() {
        let probes = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 2).with_retries(3);
        let _ = SockRef::from(&socket).set_tcp_keepalive(&probes);
    }
    match tokio::time::timeout(patience, socket.connect(address)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}"))),
    }
}

async fn start_http1(
    address: SocketAddr,
    stream: Stream,
    lifetime: Lifetime,
    open: Open,
) -> Result<http1::SendRequest<RequestBody>, ConnectError> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(super::body::HTTP1_BUFFER)
        .max_header_size(super::body::HTTP1_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Http(address, error))?;
    let connection = connection.with_upgrades();
    tokio::task::spawn_local(run_until(lifetime.end, connection, open));
    Ok(sender)
}

async fn start_http2(
    address: SocketAddr,
    stream: Stream,
    lifetime: Lifetime,
    open: Open,
    most: Rc<Cell<usize>>,
) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
    let (sender, mut connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_max_send_streams(STREAMS_AT_FIRST)
        .initial_stream_window_size(super::body::H2_STREAM_WINDOW)
        .initial_connection_window_size(super::body::H2_CONNECTION_WINDOW)
        .max_send_buf_size(super::body::H2_SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Http(address, error))?;
    let watched = std::future::poll_fn(move |context| {
        let done = Pin::new(&mut connection).poll(context);
        // As long as the other side has not said how many streams it takes, what it took before is believed.
        match connection.current_max_send_streams() {
            STREAMS_AT_FIRST => {}
            told => most.set(told),
        }
        done
    });
    tokio::task::spawn_local(run_until(lifetime.end, watched, open));
    Ok(sender)
}

async fn run_until(end: Instant, connection: impl Future<Output = hyper::Result<()>>, _open: Open) {
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
