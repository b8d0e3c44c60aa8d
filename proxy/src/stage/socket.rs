//! The TCP connection below TLS. Reads ahead while much comes in: rustls asks for 4 KiB at a time, which would be five
//! system calls a record. An idle connection holds no buffer.
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes read ahead: four records.
const AHEAD: usize = 64 * 1024;

thread_local! {
    /// A buffer of this worker that no connection needs at the moment.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A TCP connection that reads ahead.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    /// What was read and not yet asked for is from `from` to `to`. Empty while little comes in.
    ahead: Vec<u8>,
    from: usize,
    to: usize,
    /// The last read filled all that was asked for.
    more: bool,
}

impl Socket {
    /// Reads of `tcp`, from its next byte on.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, ahead: Vec::new(), from: 0, to: 0, more: false }
    }

    /// The connection itself. Not to be read from.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn take(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = (self.to - self.from).min(buffer.remaining());
        buffer.put_slice(&self.ahead[self.from..self.from + count]);
        self.from += count;
    }

    fn release(&mut self) {
        if !self.ahead.is_empty() {
            SPARE.set(std::mem::take(&mut self.ahead));
        }
        self.more = false;
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.from < this.to {
            this.take(buffer);
            return Poll::Ready(Ok(()));
        }
        if !this.more {
            let (before, wanted) = (buffer.filled().len(), buffer.remaining());
            let read = Pin::new(&mut this.tcp).poll_read(cx, buffer);
            this.more = buffer.filled().len() - before == wanted;
            return read;
        }
        if this.ahead.is_empty() {
            this.ahead = SPARE.take();
            this.ahead.resize(AHEAD, 0);
        }
        let mut ahead = ReadBuf::new(&mut this.ahead);
        match Pin::new(&mut this.tcp).poll_read(cx, &mut ahead) {
            Poll::Ready(Ok(())) => {
                (this.from, this.to) = (0, ahead.filled().len());
                this.take(buffer);
                Poll::Ready(Ok(()))
            }
            pending_or_failed => {
                this.release();
                pending_or_failed
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.release();
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, parts)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_is_read_ahead_comes_in_order_and_no_buffer_is_held_when_it_is_quiet() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, mut socket) = (client.expect("it listens"), Socket::new(server.expect("connected").0));
        for length in [10, 4096, 300_000, 1] {
            let sent: Vec<u8> = (0..=250).cycle().take(length).collect();
            let mut read = vec![0; 4096];
            let mut all = Vec::new();
            let receive = async {
                while all.len() < length {
                    let count = socket.read(&mut read).await.expect("more comes");
                    assert!(count > 0);
                    all.extend_from_slice(&read[..count]);
                }
                // Nothing more comes: it is asked once, as a connection that waits does.
                let quiet = std::future::poll_fn(|cx| {
                    Poll::Ready(Pin::new(&mut socket).poll_read(cx, &mut ReadBuf::new(&mut read)).is_pending())
                });
                assert!(quiet.await);
            };
            let (written, ()) = tokio::join!(client.write_all(&sent), receive);
            written.expect("sent");
            assert_eq!((all == sent, socket.ahead.capacity()), (true, 0), "{length}");
        }
        client.shutdown().await.expect("ended");
        assert_eq!(socket.read(&mut [0; 10]).await.expect("the end"), 0);
    }
}
