//! Carries bytes both ways between two streams, each direction closing on its own (half-close), until both are done.
//!
//! Demands a [`Permit`]: skipping policy does not compile.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::policy::Permit;
use super::transport::{Stream, Transport};

/// Buffer for each direction of a byte stream.
const BUFFER: usize = 16 * 1024;

/// Carries bytes until both sides are done; `sent` and `received` are told of each piece read from the caller and from
/// the server. When either side fails, both connections end with a reset: nobody takes a part for the whole.
pub async fn bytes(
    caller: Stream,
    server: Stream,
    sent: impl Fn(u64) + Unpin,
    received: impl Fn(u64) + Unpin,
    _permit: &Permit,
) -> io::Result<()> {
    let mut caller = Counted { inner: caller, read: sent, whole: false };
    let mut server = Counted { inner: server, read: received, whole: false };
    tokio::io::copy_bidirectional_with_sizes(&mut caller, &mut server, BUFFER, BUFFER).await?;
    caller.whole = true;
    server.whole = true;
    Ok(())
}

/// Counts what is read, and resets its connection when dropped before the transfer was whole.
struct Counted<F> {
    inner: Stream,
    read: F,
    whole: bool,
}

impl<F> Drop for Counted<F> {
    fn drop(&mut self) {
        if !self.whole {
            super::accept::reset_ref(Transport::tcp(self.inner.get_ref()));
        }
    }
}

impl<F: Fn(u64) + Unpin> AsyncRead for Counted<F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        (self.read)((buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<F: Unpin> AsyncWrite for Counted<F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
