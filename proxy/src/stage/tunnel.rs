//! A `weft/tcp` connection: carries one byte stream after another, each with half-close, in the [frames](super::frames).
//!
//! Never more than one stream at a time, and never a stream to another port than the connection's own. What is left of a
//! stream that was broken off never reaches the next: the connection is used again only when both sides have ended the
//! stream in frames, else it ends with a reset.
//!
//! A server that wants no more streams says so by closing in order between two streams (TLS close_notify), and carries out
//! nothing that comes after. So a client whose stream crossed with that may open it elsewhere: see [`Tunnel::take_unopened`].
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::forward::Side;
use super::frames::{Decoder, Frame, FrameError, HEADER, LONGEST_CONTROL, MOST_DATA, Open, encode};
use super::transport::Transport;

/// How long is waited for the other side's end of a stream that was broken off, or of the connection.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most that is read of a stream that was broken off before the connection is given up instead.
const MOST_DISCARDED: usize = 256 * 1024;
/// Most bytes of a stream that are kept until the server has said something.
const MOST_KEPT: usize = 16 * 1024;

/// How far one direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    /// Between two streams.
    Idle,
    Open,
    Ended,
    Reset,
}

/// Heads of frames on their way out. Always goes before more payload.
#[derive(Debug, Default)]
struct Heads {
    bytes: [u8; 2 * LONGEST_CONTROL],
    from: u8,
    to: u8,
}

/// A connection that carries byte streams in frames.
pub struct Tunnel {
    transport: Transport,
    /// That the connection was made to.
    port: u16,
    decoder: Decoder,
    /// Payload of the frame under way that was not read yet.
    to_read: usize,
    /// Payload that a head has announced and that was not written yet.
    to_write: usize,
    heads: Heads,
    ours: Half,
    theirs: Half,
    streams: u64,
    fault: Option<FrameError>,
    /// What was sent of a stream on a connection that was used before, until the other side says something.
    kept: Option<Vec<u8>>,
}

impl Tunnel {
    /// Over a connection to `port`, between two streams.
    pub fn new(transport: Transport, port: u16) -> Self {
        Self {
            transport,
            port,
            decoder: Decoder::default(),
            to_read: 0,
            to_write: 0,
            heads: Heads::default(),
            ours: Half::Idle,
            theirs: Half::Idle,
            streams: 0,
            fault: None,
            kept: None,
        }
    }

    /// Begins a stream, as client. Nothing is sent before the first flush or write.
    pub fn open(&mut self, undecided: bool) {
        debug_assert!(self.is_idle());
        self.heads.push(Frame::Open(Open { port: self.port, undecided }));
        self.kept = (self.streams > 0).then(Vec::new);
        self.begin();
    }

    /// Waits for the next stream, as server. `None`: the client wants no more. Cancel-safe.
    ///
    /// # Errors
    /// The client broke the connection or the protocol.
    pub async fn next(&mut self) -> io::Result<Option<Open>> {
        match poll_fn(|cx| self.poll_frame(cx)).await {
            Ok(None) => Ok(None),
            // Between two streams nothing is lost by it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.decoder.is_between() => Ok(None),
            Err(error) => Err(error),
            Ok(Some(Frame::Open(open))) if open.port == self.port => {
                self.begin();
                Ok(Some(open))
            }
            Ok(Some(Frame::Open(open))) => Err(self.broken(FrameError::Port { asked: open.port, port: self.port })),
            Ok(Some(frame)) => Err(self.broken(FrameError::Unexpected(frame))),
        }
    }

    /// Waits until the other side speaks or ends its direction (`true`), or breaks the stream off (`false`). Takes no byte.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The other side broke the connection or the protocol.
    pub async fn first(&mut self) -> io::Result<bool> {
        poll_fn(|cx| {
            while self.heads.waiting() > 0 {
                ready!(self.poll_flush(cx))?;
            }
            if self.to_read == 0 && self.theirs == Half::Open {
                ready!(self.poll_begin_frame(cx))?;
            }
            Poll::Ready(Ok(self.theirs != Half::Reset))
        })
        .await
    }

    /// Ends a stream for good: what is still open of it is broken off. Whether the connection may carry another.
    pub async fn settle(&mut self) -> bool {
        if self.fault.is_some() || self.to_write > 0 {
            return false;
        }
        if self.ours == Half::Open {
            self.heads.push(Frame::Reset);
            self.ours = Half::Reset;
        }
        let mut left = MOST_DISCARDED;
        let ended = poll_fn(|cx| {
            ready!(self.poll_flush(cx))?;
            while self.theirs == Half::Open {
                if self.to_read == 0 {
                    ready!(self.poll_begin_frame(cx))?;
                    continue;
                }
                let read = ready!(self.poll_discard(cx))?;
                self.to_read -= read;
                left = left.checked_sub(read).ok_or(io::ErrorKind::FileTooLarge)?;
            }
            Poll::Ready(io::Result::Ok(()))
        });
        if !matches!(tokio::time::timeout(PATIENCE, ended).await, Ok(Ok(()))) {
            return false;
        }
        (self.ours, self.theirs) = (Half::Idle, Half::Idle);
        true
    }

    /// Closes in order between two streams, as server: a stream that is on its way here is not carried out, and its client
    /// learns so.
    pub async fn close(mut self) {
        if !self.is_idle() {
            return;
        }
        let mut left = MOST_DISCARDED;
        let _ = tokio::time::timeout(PATIENCE, async {
            self.transport.shutdown().await?;
            // Closing with bytes unread would be a reset, which may overtake the notice.
            while let read @ 1.. = poll_fn(|cx| self.poll_discard(cx)).await? {
                left = left.checked_sub(read).ok_or(io::ErrorKind::FileTooLarge)?;
            }
            io::Result::Ok(())
        })
        .await;
    }

    /// Whether the other side has neither closed it nor sent anything while it was idle.
    pub fn is_quiet(&mut self) -> bool {
        let polled = self.poll_frame(&mut Context::from_waker(Waker::noop()));
        polled.is_pending() && self.decoder.is_between() && self.is_idle()
    }

    /// What was sent of a stream that failed, if it is certain that the server has not carried it out: the connection had
    /// served before and was closed in order before the server said anything of this stream. Not if there was too much to
    /// keep.
    pub fn take_unopened(&mut self) -> Option<Vec<u8>> {
        let kept = self.kept.take()?;
        let closed = self.poll_frame(&mut Context::from_waker(Waker::noop()));
        matches!(closed, Poll::Ready(Ok(None))).then_some(kept)
    }

    /// How the other side broke the protocol.
    pub fn fault(&self) -> Option<FrameError> {
        self.fault
    }

    /// Streams so far.
    pub fn streams(&self) -> u64 {
        self.streams
    }

    fn is_idle(&self) -> bool {
        (self.ours, self.theirs) == (Half::Idle, Half::Idle) && self.fault.is_none()
    }

    fn begin(&mut self) {
        (self.ours, self.theirs) = (Half::Open, Half::Open);
        self.streams += 1;
    }

    fn broken(&mut self, fault: FrameError) -> io::Error {
        self.fault = Some(fault);
        fault.into()
    }

    /// After an error nobody knows what the server has carried out.
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.kept = None;
        }
        result
    }

    /// The next frame; `None`: closed in order between two frames.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Frame>>> {
        debug_assert_eq!(self.to_read, 0);
        loop {
            let mut piece = [0; LONGEST_CONTROL];
            let mut piece = ReadBuf::new(&mut piece[..self.decoder.wanted()]);
            let read = ready!(Pin::new(&mut self.transport).poll_read(cx, &mut piece));
            self.note(read)?;
            if piece.filled().is_empty() {
                return Poll::Ready(match self.decoder.is_between() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                });
            }
            self.kept = None;
            match self.decoder.take(piece.filled()) {
                Ok(None) => {}
                Ok(Some(frame)) => return Poll::Ready(Ok(Some(frame))),
                Err(fault) => return Poll::Ready(Err(self.broken(fault))),
            }
        }
    }

    /// Reads the head of the next frame of an open stream.
    fn poll_begin_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.poll_frame(cx))? {
            Some(Frame::Data(length)) => self.to_read = length,
            Some(Frame::End) => self.theirs = Half::Ended,
            Some(Frame::Reset) => self.theirs = Half::Reset,
            Some(frame @ Frame::Open(_)) => return Poll::Ready(Err(self.broken(FrameError::Unexpected(frame)))),
            None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there, of the payload under way where there is one, and drops it.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut piece = [0; 2048];
        let most = if self.to_read > 0 { self.to_read.min(piece.len()) } else { piece.len() };
        let mut piece = ReadBuf::new(&mut piece[..most]);
        ready!(Pin::new(&mut self.transport).poll_read(cx, &mut piece))?;
        match piece.filled().len() {
            0 if self.to_read > 0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            read => Poll::Ready(Ok(read)),
        }
    }

    fn poll_write_heads(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.heads.waiting() > 0 {
            let written = ready!(Pin::new(&mut self.transport).poll_write(cx, self.heads.rest()));
            let written = self.note(written)?;
            self.heads.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Side for Tunnel {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.theirs {
                Half::Open => {}
                Half::Ended => return Poll::Ready(Ok(0)),
                Half::Idle | Half::Reset => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
            if self.to_read == 0 {
                ready!(self.poll_begin_frame(cx))?;
                continue;
            }
            let most = self.to_read.min(buffer.len());
            let mut piece = ReadBuf::new(&mut buffer[..most]);
            ready!(Pin::new(&mut self.transport).poll_read(cx, &mut piece))?;
            let read = piece.filled().len();
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.to_read -= read;
            return Poll::Ready(Ok(read));
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8], last: bool) -> Poll<io::Result<usize>> {
        if self.ours != Half::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.to_write == 0 {
            self.to_write = bytes.len().min(MOST_DATA);
            self.heads.push(Frame::Data(self.to_write));
        }
        let payload = &bytes[..self.to_write.min(bytes.len())];
        let mut end = [0; LONGEST_CONTROL];
        let length = if last && payload.len() == bytes.len() { encode(Frame::End, &mut end) } else { 0 };
        let end = &end[..length];
        loop {
            let parts = [IoSlice::new(self.heads.rest()), IoSlice::new(payload), IoSlice::new(end)];
            let written = ready!(Pin::new(&mut self.transport).poll_write_vectored(cx, &parts));
            let written = self.note(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_heads = written.min(self.heads.waiting());
            self.heads.advance(of_heads);
            let of_payload = (written - of_heads).min(payload.len());
            if of_payload == 0 {
                continue;
            }
            self.to_write -= of_payload;
            if let Some(kept) = &mut self.kept {
                match kept.len() + of_payload <= MOST_KEPT {
                    true => kept.extend_from_slice(&payload[..of_payload]),
                    false => self.kept = None,
                }
            }
            let of_end = written - of_heads - of_payload;
            if of_end > 0 {
                self.ours = Half::Ended;
                self.heads.push(Frame::End);
                self.heads.advance(of_end);
            }
            return Poll::Ready(Ok(of_payload));
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_heads(cx))?;
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ours == Half::Open {
            if self.to_write > 0 {
                return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
            }
            self.ours = Half::Ended;
            self.heads.push(Frame::End);
        }
        self.poll_flush(cx)
    }

    /// What follows decides: [`Tunnel::settle`] or the end.
    fn cut(&mut self) {}
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.is_idle() {
            super::accept::reset_ref(self.transport.tcp());
        }
    }
}

impl Heads {
    fn push(&mut self, frame: Frame) {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
        let mut head = [0; LONGEST_CONTROL];
        let length = encode(frame, &mut head);
        let at = usize::from(self.to);
        self.bytes[at..at + length].copy_from_slice(&head[..length]);
        self.to += length as u8;
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.from.into()..self.to.into()]
    }

    fn waiting(&self) -> usize {
        usize::from(self.to - self.from)
    }

    fn advance(&mut self, count: usize) {
        self.from += count as u8;
    }
}

/// The longest that ever waits: OPEN with what follows it at once, DATA or END.
const _: () = assert!(LONGEST_CONTROL + HEADER <= 2 * LONGEST_CONTROL);

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
