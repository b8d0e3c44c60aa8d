//! Takes connections off a listening socket and learns where each was really going.
//!
//! A connection that was not redirected here has no original destination of its own, and is refused: no loops, no open
//! proxy. The accept loop outlives running out of descriptors.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections the kernel holds for a worker that is busy.
const BACKLOG: i32 = 4096;
/// Pause after an accept error such as EMFILE: without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where the caller meant to connect to, before the redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

/// A connection that was redirected to us.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Who opened it.
    pub peer: SocketAddr,
    /// Where it was going.
    pub original_dst: OriginalDst,
}

/// Why a connection was refused before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It came to the proxy's port itself.
    NotRedirected,
    /// It was going to one of the sidecar's own ports.
    OwnPort,
}

impl Refused {
    /// Label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotRedirected => "not_redirected",
            Self::OwnPort => "own_port",
        }
    }
}

/// Binds a listening socket that other workers may share (SO_REUSEPORT).
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The next connection; returns only connections, resting on errors.
pub async fn next(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Small writes of TLS and HTTP/2 would wait for acknowledgements otherwise.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            // The client left between its handshake and our accept.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !told {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    told = true;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Learns the original destination, or says why there is none to serve.
pub fn original_dst(stream: TcpStream, peer: SocketAddr, own_ports: &[u16]) -> Result<Accepted, (TcpStream, Refused)> {
    let socket = SockRef::from(&stream);
    let lookup = if peer.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = lookup.ok().and_then(|address| address.as_socket());
    match (original, stream.local_addr()) {
        (Some(original), Ok(local)) if own_ports.contains(&original.port()) => {
            let why = if unmapped(original) == unmapped(local) { Refused::NotRedirected } else { Refused::OwnPort };
            Err((stream, why))
        }
        (Some(original), Ok(local)) if unmapped(original) != unmapped(local) => {
            Ok(Accepted { stream, peer: unmapped(peer), original_dst: OriginalDst(unmapped(original)) })
        }
        _ => Err((stream, Refused::NotRedirected)),
    }
}

/// Ends a connection with a reset, so that the caller sees a refusal and not an empty answer.
pub fn reset(stream: TcpStream) {
    reset_ref(&stream);
}

/// Lets the connection end with a reset when it is dropped.
pub fn reset_ref(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// An IPv4-mapped IPv6 address as IPv4.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The addresses a sidecar's outbound (loopback) and inbound (any) listeners bind.
pub fn addresses(port: u16, loopback: bool) -> [SocketAddr; 2] {
    let (v4, v6) = match loopback {
        true => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        false => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    };
    [SocketAddr::new(IpAddr::V4(v4), port), SocketAddr::new(IpAddr::V6(v6), port)]
}
