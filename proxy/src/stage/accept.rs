//! Takes connections off a listening socket and learns where each was really going.
//!
//! A connection that was not redirected here has no original destination of its own, and is refused: no loops, no open
//! proxy. The accept loop outlives running out of descriptors.
use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// It was going to an address that is not of this pod.
    NotLocal,
}

impl Refused {
    /// Label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotRedirected => "not_redirected",
            Self::OwnPort => "own_port",
            Self::NotLocal => "not_local",
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

/// Places for connections, shared by all workers: what is open at a time is bounded, so that descriptors and memory are.
#[derive(Clone, Debug)]
pub struct Room {
    taken: Arc<AtomicUsize>,
    most: usize,
}

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Room {
    /// Room for `most` connections.
    pub fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// Takes a place, if there is one.
    pub fn take(&self) -> Option<Place> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        // Dropped at once if there is none.
        let place = Place(Arc::clone(&self.taken));
        (taken < self.most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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

/// The addresses of this pod, as far as they were asked for.
///
/// The redirect takes whatever is sent to our link address, before the kernel looks whether the packet is for us: without
/// this check a neighbour could have the sidecar connect to any address in its own name.
#[derive(Debug, Default)]
pub struct LocalAddresses {
    known: RefCell<Vec<IpAddr>>,
}

/// More addresses than a pod has.
const MOST_ADDRESSES: usize = 64;

impl LocalAddresses {
    /// Whether `address` is one of this pod's. Only a local address can be bound.
    pub fn contain(&self, address: IpAddr) -> bool {
        if self.known.borrow().contains(&address) {
            return true;
        }
        // These can be bound too, but nobody can be connected to there.
        let nobody = address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
        let local = !nobody && UdpSocket::bind((address, 0)).is_ok();
        let mut known = self.known.borrow_mut();
        if local && known.len() < MOST_ADDRESSES {
            known.push(address);
        }
        local
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

/// Takes back [`reset_ref`].
pub fn reset_no_more(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

/// Ends the connection when the other side takes nothing of what is sent for `stall` (TCP_USER_TIMEOUT): it neither
/// acknowledges nor opens its window. A reader that is slow but reads is left alone, whatever its speed.
pub fn limit_stall(stream: &TcpStream, stall: Option<Duration>) {
    if stall.is_some() {
        let _ = SockRef::from(stream).set_tcp_user_timeout(stall);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_connection_ends() {
        let room = Room::new(2);
        let (one, two) = (room.take(), room.take());
        assert!(one.is_some() && two.is_some() && room.take().is_none());
        drop(one);
        assert!(room.take().is_some() && room.take().is_some());
    }

    #[test]
    fn only_an_address_of_this_host_is_local() {
        let local = LocalAddresses::default();
        for _ in 0..2 {
            assert!(local.contain(Ipv4Addr::LOCALHOST.into()));
            for foreign in ["192.0.2.7", "0.0.0.0", "224.0.0.1", "255.255.255.255", "2001:db8::7", "::", "ff02::1"] {
                let foreign: IpAddr = foreign.parse().expect("an address");
                assert!(!local.contain(foreign), "{foreign}");
            }
        }
    }
}
