//! Mutual TLS between sidecars: which protocol a connection carries is in its ALPN, who is at its other end in its
//! certificate.
use std::io::{self, Cursor};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use rustls::ServerConfig;
use rustls::server::{Accepted, Acceptor};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream as ServerTls;
use tokio_rustls::{StartHandshake, client};
use weft_certs::{Peer, Svid};

use super::socket::Socket;

/// ALPN of a connection that carries HTTP/1 requests, one after another.
pub const ALPN_HTTP1: &[u8] = b"weft/http1";
/// ALPN of an HTTP/2 connection.
pub const ALPN_H2: &[u8] = b"weft/h2";
/// ALPN of a connection that carries byte streams, one after another.
pub const ALPN_TCP: &[u8] = b"weft/tcp";
/// All of them, as a server offers them.
pub const ALPN_ALL: [&[u8]; 3] = [ALPN_HTTP1, ALPN_H2, ALPN_TCP];

/// A peer that does not finish its handshake by then is dropped.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A ClientHello larger than this is refused (rustls reads no more either).
const LARGEST_HELLO: usize = 64 * 1024;

/// Reads until the connection is known to be a sidecar's (`Some`: its ClientHello was consumed from `seen`) or not
/// (`None`: plaintext, or the application's own TLS). What was read is in `seen`. Cancel-safe.
pub async fn open(stream: &mut TcpStream, seen: &mut BytesMut) -> io::Result<Option<Accepted>> {
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        while fed < seen.len() {
            if seen[0] != TLS_HANDSHAKE_RECORD {
                return Ok(None);
            }
            match acceptor.read_tls(&mut Cursor::new(&seen[fed..])) {
                Ok(0) | Err(_) => return Ok(None),
                Ok(count) => fed += count,
            }
            match acceptor.accept() {
                Ok(None) => {}
                // A sidecar waits for our flight after its hello: more bytes than that are not a sidecar's.
                Ok(Some(accepted)) if fed == seen.len() => {
                    let ours =
                        accepted.client_hello().alpn().into_iter().flatten().any(|name| ALPN_ALL.contains(&name));
                    return Ok(ours.then_some(accepted));
                }
                Ok(Some(_)) | Err(_) => return Ok(None),
            }
        }
        if seen.len() > LARGEST_HELLO || stream.read_buf(seen).await? == 0 {
            return Ok(None);
        }
    }
}

/// First byte of a TLS record that carries a handshake (RFC 8446 section 5.1).
const TLS_HANDSHAKE_RECORD: u8 = 22;

/// A secured connection from another sidecar.
pub struct Terminated {
    /// The connection.
    pub stream: ServerTls<Socket>,
    /// Who is at its other end.
    pub peer: Peer,
    /// What it carries.
    pub carries: Carries,
}

/// What a secured connection carries, by its ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carries {
    /// HTTP/1 requests.
    Http1,
    /// An HTTP/2 connection.
    Http2,
    /// Byte streams in frames.
    Streams,
}

impl Carries {
    /// The protocol name in the ClientHello.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => ALPN_HTTP1,
            Self::Http2 => ALPN_H2,
            Self::Streams => ALPN_TCP,
        }
    }

    fn from_alpn(name: Option<&[u8]>) -> Option<Self> {
        [Self::Http1, Self::Http2, Self::Streams].into_iter().find(|carries| Some(carries.alpn()) == name)
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's or our own TLS said no; carries the verifier's reason where it was ours.
    #[error("TLS handshake: {0}")]
    Tls(#[from] io::Error),
    /// It took longer than [`HANDSHAKE_TIMEOUT`].
    #[error("TLS handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// No certificate or no known ALPN after a handshake that demands both.
    #[error("the TLS peer presented no identity or no protocol of the mesh")]
    NotMesh,
}

impl HandshakeError {
    /// Label for metrics: the verifier's reason where it has one.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Timeout => "tls_timeout",
            Self::NotMesh => "tls_not_mesh",
            Self::Tls(error) => match weft_certs::tls_config::refusal(error) {
                Some(refusal) => refusal.reason(),
                None if error.kind() == io::ErrorKind::InvalidData => "tls_error",
                None => "tls_closed",
            },
        }
    }
}

/// Finishes a sidecar's handshake as server.
pub async fn terminate(
    hello: Accepted,
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<Terminated, HandshakeError> {
    let handshake = StartHandshake::from_parts(hello, Socket::new(stream)).into_stream(config);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| HandshakeError::Timeout)??;
    let (_, connection) = stream.get_ref();
    let peer = weft_certs::tls_config::peer_of(connection);
    let carries = Carries::from_alpn(connection.alpn_protocol());
    match (peer, carries) {
        (Some(peer), Some(carries)) => Ok(Terminated { stream, peer, carries }),
        _ => Err(HandshakeError::NotMesh),
    }
}

/// Makes the handshake as client. The server's identity was judged by `config`.
pub async fn originate(
    stream: TcpStream,
    config: Arc<rustls::ClientConfig>,
) -> Result<(client::TlsStream<Socket>, Peer), HandshakeError> {
    let connector = tokio_rustls::TlsConnector::from(config);
    let handshake = connector.connect(weft_certs::tls_config::server_name(), Socket::new(stream));
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| HandshakeError::Timeout)??;
    let (_, connection) = stream.get_ref();
    match (weft_certs::tls_config::peer_of(connection), connection.alpn_protocol()) {
        (Some(peer), Some(_)) => Ok((stream, peer)),
        _ => Err(HandshakeError::NotMesh),
    }
}

/// When a connection must stop taking new work, and when it must be gone.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// From here on no new request goes out on it.
    pub retire: Instant,
    /// From here on it answers with `Connection: close` or GOAWAY.
    pub drain: Instant,
    /// It is closed.
    pub end: Instant,
}

/// Longest time before its end at which a connection is retired.
const LONGEST_MARGIN: Duration = Duration::from_secs(60);
/// Stands for "no end": a plaintext connection inside the pod.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Lifetime {
    /// Of a connection that both certificates authenticated: it ends with the first of them. The client side retires it
    /// a fifth of the time that is left now (at most a minute) earlier, the server side drains it a tenth earlier, so that
    /// no request is on its way to a connection that closes.
    pub fn of(own: &Svid, peer: &Peer) -> Self {
        let left = |until: SystemTime| until.duration_since(SystemTime::now()).unwrap_or_default();
        let end = left(own.not_after().min(peer.not_after));
        let margin = (end / 5).min(LONGEST_MARGIN);
        let now = Instant::now();
        Self { retire: now + end.saturating_sub(margin), drain: now + end.saturating_sub(margin / 2), end: now + end }
    }

    /// Of a connection that no certificate bounds.
    pub fn unbounded() -> Self {
        let end = Instant::now() + FOREVER;
        Self { retire: end, drain: end, end }
    }
}
