//! Records the frames that cross a switch, each once.
//!
//! Promises: what was sent before [`Capture::stop`] is in its result, as far as the kernel did not have to drop it: the
//! socket's buffer holds some hundred KiB, so bulk transfers may show gaps. Frames are complete: between pods segments
//! of up to 64 KiB travel whole (generic segmentation offload).

use super::frames::{Frame, Frames};
use super::namespace::Namespace;
use super::{Error, Result, netlink};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

/// ETH_P_ALL and PACKET_OUTGOING of linux/if_ether.h and linux/if_packet.h.
const ALL_PROTOCOLS: u16 = 3;
const OUTGOING: u8 = 4;

/// The largest frame: 64 KiB of IP and its headers, with room to spare.
const LARGEST_FRAME: usize = 256 << 10;

/// A running capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    frames: Receiver<Vec<Frame>>,
}

impl Capture {
    pub(crate) fn start(switch: &Namespace) -> Result<Self> {
        let (socket, bridge) = switch.call("open a packet socket", || {
            let socket = packet_socket()?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok((socket, if_nametoindex(netlink::BRIDGE)?))
        })?;
        let (sender, frames) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        switch.thread("capture", move || drop(sender.send(record(&socket, bridge as usize, &stopping))))?;
        Ok(Self { stop, frames })
    }

    /// Set to end the capture.
    pub(crate) fn stopping(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// Ends the capture and returns what it saw, in order.
    ///
    /// # Errors
    /// It has ended because of a fault of the socket.
    pub fn stop(self) -> Result<Frames> {
        self.stop.store(true, Ordering::SeqCst);
        let frames = self.frames.recv();
        frames.map(Frames::new).map_err(|_| Error::new("stop a capture", io::Error::other("the capture has ended")))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// A socket that receives every frame of every interface of this thread's network namespace, from now on.
///
/// # Errors
/// Without CAP_NET_RAW in that network namespace.
pub fn packet_socket() -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(ALL_PROTOCOLS.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    // As much as net.core.rmem_max allows.
    socket.set_recv_buffer_size(64 << 20)?;
    Ok(socket)
}

/// Reads until `stop` is set and the socket is empty.
fn record(socket: &Socket, bridge: usize, stop: &AtomicBool) -> Vec<Frame> {
    let mut buffer = vec![0; LARGEST_FRAME];
    let mut frames = Vec::new();
    loop {
        // Read first: what arrives after it was set need not be seen.
        let stopping = stop.load(Ordering::SeqCst);
        if stopping && socket.set_nonblocking(true).is_err() {
            return frames;
        }
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) => {
                // A frame is seen where it enters the switch, and again at each port where it leaves.
                let outgoing = from.pkttype() == OUTGOING;
                if outgoing == (from.ifindex() == bridge) {
                    frames.push(Frame { at: SystemTime::now(), bytes: buffer[..length].to_vec() });
                }
            }
            Ok((_, None)) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if !stopping => {}
            Err(_) => return frames,
        }
    }
}
