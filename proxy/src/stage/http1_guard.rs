//! Watches the bytes of an HTTP/1 connection on their way to the parser, for what the parser would let pass.
//!
//! hyper drops a `Content-Length` that comes with `Transfer-Encoding`, merges two equal ones, keeps codings before
//! `chunked`, and takes bare line feeds: each of them is read differently by some server, which is all that request
//! smuggling needs (RFC 9112 sections 2.2, 6.1 and 6.3). None of it can be seen in the parsed request. So the bytes of
//! each head are looked at here: one pass over its lines, no copy, nothing kept but a line that two reads share. To know
//! where the next head begins, bodies are followed by their length or their chunks.
//!
//! A head with a fault is the last that is read; the connection's handler learns of it from [`Told`] and answers. A head
//! whose end does not come in time ends the connection.
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::http1_scan::{Event, Fault, Scan};

/// A head must be complete this long after its first byte.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Ends a request line that is cut off for its length, so that there is a request to answer.
const REST_OF_HEAD: &[u8] = b" HTTP/1.1\r\nhost: cut\r\n\r\n";

/// What guard and handler tell each other. Both live on one thread; atomic because hyper wants an upgraded connection to
/// be able to leave it.
#[derive(Debug, Default)]
pub struct Told {
    /// Number of the head that has a fault, which is the last; 0: none has.
    faulty: AtomicU64,
    /// Index of the fault in [`Fault::ALL`].
    fault: AtomicU8,
    /// Requests that were handled.
    handled: AtomicU64,
    switch: AtomicU8,
    slow: AtomicBool,
}

/// No head asks for another protocol.
const NO_SWITCH: u8 = 0;
/// One does; what follows it waits for the handler.
const ASKED: u8 = 1;
/// What follows is HTTP.
const STAYS: u8 = 2;
/// What follows is no HTTP, or is never read.
const SWITCHES: u8 = 3;

impl Told {
    /// The fault of the next request that the parser hands over. To be called once for each.
    pub fn next_request(&self) -> Option<Fault> {
        let number = self.handled.fetch_add(1, Relaxed) + 1;
        (self.faulty.load(Relaxed) == number).then(|| Fault::ALL[usize::from(self.fault.load(Relaxed))])
    }

    /// Whether what follows the request is another protocol's, if its server agrees; its connection must end if not.
    pub fn switches(&self, switches: bool) {
        if self.switch.load(Relaxed) == ASKED {
            self.switch.store(if switches { SWITCHES } else { STAYS }, Relaxed);
        }
    }

    /// Whether the connection was ended because a head took too long.
    pub fn was_slow(&self) -> bool {
        self.slow.load(Relaxed)
    }

    fn has_fault(&self, head: u64, fault: Fault) {
        let index = Fault::ALL.iter().position(|known| *known == fault).unwrap_or_default();
        self.fault.store(u8::try_from(index).unwrap_or_default(), Relaxed);
        self.faulty.store(head, Relaxed);
    }
}

/// A connection whose heads are looked at.
#[derive(Debug)]
pub struct Http1Guard<S> {
    inner: S,
    told: Arc<Told>,
    scan: Scan,
    /// What came behind a head that asks for another protocol.
    held: BytesMut,
    head_end: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl<S> Http1Guard<S> {
    /// Looks at what is read from `inner`.
    pub fn new(inner: S) -> Self {
        let told = Arc::default();
        Self { inner, told, scan: Scan::default(), held: BytesMut::new(), head_end: None, timer: None, ended: false }
    }

    /// The other end of what it tells.
    pub fn told(&self) -> Arc<Told> {
        Arc::clone(&self.told)
    }

    /// Looks at what `buf` holds beyond `before`, and leaves in it what the parser is to see.
    fn look(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let event = self.scan.next(&buf.filled()[before..]);
        match event {
            Event::More => {}
            Event::Switch(count) => {
                self.held.extend_from_slice(&buf.filled()[before + count..]);
                buf.set_filled(before + count);
                self.told.switch.store(ASKED, Relaxed);
            }
            Event::Faulty { count, heads, fault } => {
                buf.set_filled(before + count);
                self.told.has_fault(heads, fault);
                self.ended = true;
            }
            Event::TooLong { count, heads } => {
                let room = buf.capacity() - before;
                if room < REST_OF_HEAD.len() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the request line is too long"));
                }
                buf.set_filled(before + count.min(room - REST_OF_HEAD.len()));
                buf.put_slice(REST_OF_HEAD);
                self.told.has_fault(heads, Fault::TargetTooLong);
                self.ended = true;
            }
            // To the parser the body ends too early.
            Event::BadChunk(count) => {
                buf.set_filled(before + count);
                self.ended = true;
            }
        }
        match self.scan.in_head() {
            false => self.head_end = None,
            true if self.head_end.is_none() => self.head_end = Some(Instant::now() + HEAD_TIMEOUT),
            true => {}
        }
        Ok(())
    }

    /// Nothing came: ends the connection if a head is overdue.
    fn overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(end) = self.head_end else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if timer.deadline() != end {
            timer.as_mut().reset(end);
        }
        ready!(timer.as_mut().poll(cx));
        self.told.slow.store(true, Relaxed);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the header section took too long")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Http1Guard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        match this.told.switch.load(Relaxed) {
            NO_SWITCH => {}
            SWITCHES => {
                if this.held.is_empty() {
                    return Pin::new(&mut this.inner).poll_read(cx, buf);
                }
                let count = this.held.len().min(buf.remaining());
                buf.put_slice(&this.held[..count]);
                this.held.advance(count);
                return Poll::Ready(Ok(()));
            }
            // The parser hands a head over before it reads on.
            ASKED => return Poll::Ready(Err(io::Error::other("read on before the request was handled"))),
            _ if this.held.is_empty() => this.told.switch.store(NO_SWITCH, Relaxed),
            _ => {
                let (before, count) = (buf.filled().len(), this.held.len().min(buf.remaining()));
                buf.put_slice(&this.held[..count]);
                this.held.advance(count);
                let rest = std::mem::take(&mut this.held);
                this.look(buf, before)?;
                this.held.extend_from_slice(&rest);
                return Poll::Ready(Ok(()));
            }
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Pending => this.overdue(cx),
            Poll::Ready(Ok(())) if buf.filled().len() > before => Poll::Ready(this.look(buf, before)),
            done => done,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http1Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
