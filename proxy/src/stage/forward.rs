//! Carries bytes both ways between two sides, each direction closing on its own (half-close), until both are done.
//!
//! Demands a [`Permit`]: skipping policy does not compile. Bounded: a direction that cannot write reads no more. Nothing is
//! held for a connection whose bytes go through at once: they are read into one buffer of the worker's and written from
//! there; only what the other side does not take is kept with the connection, until it does.
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::MOST_DATA;
use super::policy::Permit;
use super::transport::{Stream, Transport};

/// One side of a byte stream: a [`Stream`] of its own, or one in the frames of a [`Tunnel`](super::tunnel::Tunnel).
pub trait Side {
    /// Reads into `buffer`; 0: no more will come.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Takes some of `bytes`. After the `last` of them comes [`Self::poll_end`], which may be carried along.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8], last: bool) -> Poll<io::Result<usize>>;
    /// Sees to it that what was taken goes out.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Tells the other side that no more will come.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// The stream is broken off: its end must not look like a whole.
    fn cut(&mut self);
}

/// Carries bytes until both sides are done; `sent` and `received` are told of what was read from the caller and from the
/// server. When either fails, or this is dropped before its end, both are cut: nobody takes a part for the whole.
pub async fn bytes(
    caller: &mut impl Side,
    server: &mut impl Side,
    sent: impl Fn(u64),
    received: impl Fn(u64),
    _permit: &Permit,
) -> io::Result<()> {
    let mut joined = Joined { caller, server, whole: false };
    let (mut there, mut back) = (Flow::default(), Flow::default());
    poll_fn(|cx| {
        let there = there.poll(joined.caller, joined.server, cx, &sent)?;
        let back = back.poll(joined.server, joined.caller, cx, &received)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
    })
    .await?;
    joined.whole = true;
    Ok(())
}

/// Cuts both sides unless all went through.
struct Joined<'a, C: Side, S: Side> {
    caller: &'a mut C,
    server: &'a mut S,
    whole: bool,
}

impl<C: Side, S: Side> Drop for Joined<'_, C, S> {
    fn drop(&mut self) {
        if !self.whole {
            self.caller.cut();
            self.server.cut();
        }
    }
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// What was read and not yet taken, from `taken` on.
    backlog: Vec<u8>,
    taken: usize,
    /// No more will come.
    read_all: bool,
    done: bool,
}

thread_local! {
    /// Of this worker, used within one call of [`Flow::poll`] only. Holds one frame.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Flow {
    fn poll<F: Side, T: Side>(
        &mut self,
        from: &mut F,
        to: &mut T,
        cx: &mut Context<'_>,
        count: &impl Fn(u64),
    ) -> Poll<io::Result<()>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        ready!(self.write_backlog(to, cx))?;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(MOST_DATA, 0);
            while !self.read_all {
                let (filled, pending) = self.fill(from, cx, scratch)?;
                count(filled as u64);
                let mut written = 0;
                while written < filled {
                    match to.poll_write(cx, &scratch[written..filled], self.read_all) {
                        Poll::Ready(result) => written += result?,
                        Poll::Pending => {
                            self.backlog.extend_from_slice(&scratch[written..filled]);
                            return Poll::Pending;
                        }
                    }
                }
                if pending {
                    ready!(to.poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
            self.finish(to, cx)
        })
    }

    /// Reads until there is no more for now, no room, or the end. Several small reads become one write.
    fn fill<F: Side>(&mut self, from: &mut F, cx: &mut Context<'_>, scratch: &mut [u8]) -> io::Result<(usize, bool)> {
        let mut filled = 0;
        while filled < scratch.len() {
            match from.poll_read(cx, &mut scratch[filled..])? {
                Poll::Ready(0) => {
                    self.read_all = true;
                    return Ok((filled, false));
                }
                Poll::Ready(read) => filled += read,
                Poll::Pending => return Ok((filled, true)),
            }
        }
        Ok((filled, false))
    }

    /// Writes what was left; then its memory is given back.
    fn write_backlog<T: Side>(&mut self, to: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.backlog.len() {
            self.taken += ready!(to.poll_write(cx, &self.backlog[self.taken..], self.read_all))?;
        }
        (self.backlog, self.taken) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn finish<T: Side>(&mut self, to: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(to.poll_end(cx))?;
        self.done = true;
        Poll::Ready(Ok(()))
    }
}

impl Side for Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(AsyncRead::poll_read(Pin::new(self), cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8], _last: bool) -> Poll<io::Result<usize>> {
        match ready!(AsyncWrite::poll_write(Pin::new(self), cx, bytes))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => Poll::Ready(Ok(written)),
        }
    }
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(self), cx)
    }
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(self), cx)
    }
    fn cut(&mut self) {
        super::accept::reset_ref(Transport::tcp(self.get_ref()));
    }
}
