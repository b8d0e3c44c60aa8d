//! Accepts TLS connections for the gRPC server: TLS 1.3 with the control plane's own certificate, a client certificate
//! where the caller has one.
//!
//! The loop ends only when it is told to. A failing `accept` (no file descriptors left) rests and goes on, a failing or
//! dawdling handshake costs only itself, and no connection outlives the client certificate it was made with; one made
//! without any lives for 30 seconds, enough to get a first certificate.
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use weft_certs::{Peer, tls_config};

use crate::metrics::Metrics;

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at one time; more wait in the kernel's queue.
const HANDSHAKES: usize = 512;
/// Lifetime of a connection without client certificate.
const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(30);
/// Streams end with the certificate; the connection goes on for so long that their callers can be told why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The first and the longest rest after `accept` failed.
const RESTS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The rustls configuration that new connections get; replaced when the control plane's certificate is renewed.
pub type ServerConfig = watch::Receiver<Arc<rustls::ServerConfig>>;

/// One accepted connection whose handshake is done.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

/// What is known of a connection; an extension of each request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Whose certificate was verified in the handshake.
    pub peer: Option<Peer>,
    /// Where the connection comes from.
    pub remote: SocketAddr,
}

/// Accepts on `listener` until `stop`; at most `limit` connections live at one time.
pub fn accept(
    listener: TcpListener,
    config: ServerConfig,
    limit: usize,
    metrics: Metrics,
    stop: CancellationToken,
) -> impl tokio_stream::Stream<Item = io::Result<Connection>> + Send + 'static {
    let (ready, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let _ = stop.run_until_cancelled(accept_all(listener, config, limit, metrics, ready)).await;
    });
    tokio_stream::wrappers::ReceiverStream::new(connections)
}

async fn accept_all(
    listener: TcpListener,
    config: ServerConfig,
    limit: usize,
    metrics: Metrics,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let connections = Arc::new(Semaphore::new(limit));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut rest = Rest::new();
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("this semaphore is never closed");
        let handshake = Arc::clone(&handshakes).acquire_owned().await.expect("this semaphore is never closed");
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(fault) => {
                rest.after(&fault).await;
                continue;
            }
        };
        rest.over();
        let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
        let ready = ready.clone();
        let handshake_failures = metrics.handshake_failures.clone();
        tokio::spawn(async move {
            let finished = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake_hands(acceptor, stream, remote, permit)).await;
            drop(handshake);
            let fault = match finished {
                // A closed channel means that the server stopped.
                Ok(Ok(connection)) => return drop(ready.send(Ok(connection)).await),
                Ok(Err(fault)) => fault.to_string(),
                Err(_) => format!("took longer than {HANDSHAKE_TIMEOUT:?}"),
            };
            // Anybody can cause this as often as they like: counted, and shown to who looks for it.
            handshake_failures.inc();
            tracing::debug!(%remote, fault, "TLS handshake failed");
        });
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
    permit: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let peer = tls_config::peer_of(stream.get_ref().1);
    let lifetime = match &peer {
        Some(peer) => peer.not_after.duration_since(SystemTime::now()).unwrap_or_default() + LAST_WORDS,
        None => ANONYMOUS_LIFETIME,
    };
    let deadline = Box::pin(tokio::time::sleep_until(Instant::now() + lifetime));
    Ok(Connection { stream, info: ConnectionInfo { peer, remote }, deadline, _permit: permit })
}

/// How long to rest after `accept` failed, so that a lack of file descriptors does not become a lack of processor time.
pub(crate) struct Rest {
    next: Duration,
    logged: Option<Instant>,
}

impl Rest {
    pub(crate) fn new() -> Self {
        Self { next: RESTS.0, logged: None }
    }

    /// One was accepted.
    pub(crate) fn over(&mut self) {
        self.next = RESTS.0;
    }

    pub(crate) async fn after(&mut self, fault: &io::Error) {
        // A caller that went away before it was accepted is no reason to rest.
        if matches!(fault.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        if self.logged.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            tracing::warn!(%fault, "cannot accept connections for a moment; raise the limit of open files (ulimit -n)");
            self.logged = Some(Instant::now());
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(RESTS.1);
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.info.clone()
    }
}

impl Connection {
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the connection's certificate has expired")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_deadline(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
