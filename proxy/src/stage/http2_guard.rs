//! Counts the frames of an HTTP/2 connection on their way to the parser, and ends one that only keeps us busy.
//!
//! h2 answers every PING and SETTINGS, follows every PRIORITY and WINDOW_UPDATE, and starts every stream that is reset
//! right after: none of that costs the sender much (CVE-2019-9512, 9513, 9515, CVE-2023-44487). Two budgets bound it:
//! * **control frames**: 1,000 at once and 1,000 more each second. Requests, their bodies and what we send earn more, so
//!   that a client may acknowledge fast transfers and measure its bandwidth as often as it likes.
//! * **young resets**, of streams that are not older than a second or two: 100 at once and 50 more each second. Each
//!   stream that is not reset earns one. Who cancels some of many calls, or long ones, is never near it.
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// The preface and the first frame must have come by then.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Length of the preface (RFC 9113 section 3.4).
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const SECOND: Duration = Duration::from_secs(1);

const CONTROL_BURST: i64 = 1_000;
const CONTROL_A_SECOND: i64 = 1_000;
/// Control frames that a frame with content earns.
const CONTROL_OF_CONTENT: i64 = 4;
/// Bytes that we send which earn a control frame.
const BYTES_OF_CONTROL: usize = 512;
/// More than this is never saved up.
const CONTROL_MOST: i64 = 100_000;

const RESET_BURST: i64 = 100;
const RESETS_A_SECOND: i64 = 50;
const RESETS_MOST: i64 = 1_000;

/// Why the guard ended the connection, if it did.
#[derive(Clone, Debug, Default)]
pub struct Verdict(Rc<Cell<Option<&'static str>>>);

impl Verdict {
    /// A stable word for metrics and logs.
    pub fn label(&self) -> Option<&'static str> {
        self.0.get()
    }
}

/// An HTTP/2 connection whose frames are counted.
#[derive(Debug)]
pub struct Http2Guard<S> {
    inner: S,
    frames: Frames,
    verdict: Verdict,
    /// Runs until there is a first frame.
    opening: Option<Pin<Box<Sleep>>>,
}

impl<S> Http2Guard<S> {
    /// Counts what is read from `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner, frames: Frames::new(Instant::now()), verdict: Verdict::default(), opening: None }
    }

    /// What it will have said when the connection has ended.
    pub fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    fn end(&self, label: &'static str) -> io::Error {
        self.verdict.0.set(Some(label));
        io::Error::new(io::ErrorKind::InvalidData, label)
    }
}

/// Follows frames and keeps the budgets.
#[derive(Debug)]
struct Frames {
    /// Bytes of the preface or of a payload that are skipped.
    skip: usize,
    head: [u8; FRAME_HEAD],
    known: usize,
    seen: u64,
    control: i64,
    resets: i64,
    sent: usize,
    settled: Instant,
    newest: u32,
    /// Streams above it are young.
    old: u32,
    newest_at_tick: u32,
    tick: Instant,
}

impl Frames {
    fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE,
            head: [0; FRAME_HEAD],
            known: 0,
            seen: 0,
            control: CONTROL_BURST,
            resets: RESET_BURST,
            sent: 0,
            settled: now,
            newest: 0,
            old: 0,
            newest_at_tick: 0,
            tick: now,
        }
    }

    /// Looks at the next bytes; an error names the budget that is spent.
    fn next(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), &'static str> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let taken = (FRAME_HEAD - self.known).min(bytes.len());
            self.head[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == FRAME_HEAD {
                self.known = 0;
                self.frame(&now)?;
            }
        }
    }

    /// RFC 9113 section 4.1: length, type, flags, stream.
    fn frame(&mut self, now: &impl Fn() -> Instant) -> Result<(), &'static str> {
        let [l0, l1, l2, kind, _flags, s0, s1, s2, s3] = self.head;
        self.skip = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        self.seen += 1;
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        match kind {
            HEADERS => {
                if stream > self.newest {
                    self.newest = stream;
                    self.resets += 1;
                }
                self.control += CONTROL_OF_CONTENT;
            }
            DATA if self.skip > 0 => self.control += CONTROL_OF_CONTENT,
            RST_STREAM => {
                self.settle(now());
                self.resets -= if stream > self.old { 2 } else { 0 };
                self.control -= 1;
            }
            _ => self.control -= 1,
        }
        if self.control < 0 || self.resets < 0 || self.seen % 256 == 0 {
            self.settle(now());
        }
        match (self.control < 0, self.resets < 0) {
            (_, true) => Err("http2_resets"),
            (true, _) => Err("http2_flood"),
            _ => Ok(()),
        }
    }

    /// Adds what time and our own sending have earned since the last time.
    fn settle(&mut self, now: Instant) {
        if now.duration_since(self.tick) >= SECOND {
            self.old = self.newest_at_tick;
            self.newest_at_tick = self.newest;
            self.tick = now;
        }
        let millis = i64::try_from(now.duration_since(self.settled).as_millis()).unwrap_or(i64::MAX / CONTROL_A_SECOND);
        let (control, resets) = (CONTROL_A_SECOND * millis / 1_000, RESETS_A_SECOND * millis / 1_000);
        // Fractions are not lost: time is taken only when it has earned something of both.
        if resets > 0 {
            self.control = self.control.saturating_add(control);
            self.resets = self.resets.saturating_add(resets);
            self.settled = now;
        }
        self.control = (self.control + (self.sent / BYTES_OF_CONTROL) as i64).min(CONTROL_MOST);
        self.sent %= BYTES_OF_CONTROL;
        self.resets = self.resets.min(RESETS_MOST);
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;

impl<S: AsyncRead + Unpin> AsyncRead for Http2Guard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            Poll::Pending if this.frames.seen == 0 => {
                let timer = this.opening.get_or_insert_with(|| Box::pin(tokio::time::sleep(PREFACE_TIMEOUT)));
                ready!(timer.as_mut().poll(cx));
                return Poll::Ready(Err(this.end("slow_header")));
            }
            other => return other,
        }
        match this.frames.next(&buf.filled()[before..], Instant::now) {
            Ok(()) => {
                if this.opening.is_some() && this.frames.seen > 0 {
                    this.opening = None;
                }
                Poll::Ready(Ok(()))
            }
            Err(label) => Poll::Ready(Err(this.end(label))),
        }
    }
}

impl<S: AsyncWrite + Unpin> Http2Guard<S> {
    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &polled {
            self.frames.sent = self.frames.sent.saturating_add(*count);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http2Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(polled)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(polled)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, (payload >> 8) as u8, payload as u8, kind, 0];
        bytes.extend(stream.to_be_bytes());
        bytes.resize(FRAME_HEAD + payload, 7);
        bytes
    }

    /// Frames that pass before a budget is spent, `a_millisecond` each millisecond, cut into reads of `piece` bytes.
    fn passing(
        make: impl Fn(u32) -> Vec<u8>,
        most: u32,
        a_millisecond: u32,
        piece: usize,
    ) -> (u32, Option<&'static str>) {
        let start = Instant::now();
        let mut frames = Frames::new(start);
        frames.next(&[0; PREFACE], || start).expect("the preface is no frame");
        for number in 0..most {
            let now = start + Duration::from_millis(u64::from(number / a_millisecond));
            for bytes in make(number).chunks(piece) {
                if let Err(label) = frames.next(bytes, || now) {
                    return (number, Some(label));
                }
            }
        }
        (most, None)
    }

    #[test]
    fn a_flood_ends_the_connection_and_work_does_not() {
        const PING: u8 = 6;
        const WINDOW_UPDATE: u8 = 8;
        for piece in [1, 4, 9, 1000] {
            for kind in [2, 4, PING, WINDOW_UPDATE] {
                assert_eq!(
                    passing(|_| frame(kind, 0, 8), 50_000, 50_000, piece),
                    (1_000, Some("http2_flood")),
                    "{kind}"
                );
            }
            // At a rate that the budget covers nothing ends.
            assert_eq!(passing(|_| frame(PING, 0, 8), 20_000, 1, piece).1, None);
            // Uploads: each piece is acknowledged by us, and the sender measures as it goes.
            assert_eq!(passing(|_| [frame(DATA, 1, 900), frame(PING, 0, 8)].concat(), 20_000, 100, piece).1, None);
        }
    }

    #[test]
    fn young_resets_are_bounded_and_cancelled_calls_are_not() {
        let call = |number: u32| frame(HEADERS, 2 * number + 1, 20);
        let reset = |number: u32| frame(RST_STREAM, 2 * number + 1, 4);
        let (passed, label) = passing(|n| [call(n), reset(n)].concat(), 20_000, 20_000, 1000);
        assert_eq!((passed, label), (100, Some("http2_resets")));
        let (passed, label) = passing(|n| [call(n), reset(n)].concat(), 20_000, 2, 1000);
        assert!((100..=106).contains(&passed) && label == Some("http2_resets"), "{passed} {label:?}");
        // A third of the calls is cancelled at once.
        let some = |n: u32| if n % 3 == 0 { [call(n), reset(n)].concat() } else { call(n) };
        assert_eq!(passing(some, 20_000, 20, 1000).1, None);
        // All are cancelled, three seconds after they began.
        let late = |n: u32| match n.checked_sub(3_000) {
            Some(before) => [call(n), reset(before)].concat(),
            None => call(n),
        };
        assert_eq!(passing(late, 20_000, 1, 1000).1, None);
    }

    #[test]
    fn what_we_send_earns_acknowledgements() {
        let start = Instant::now();
        let mut frames = Frames::new(start);
        frames.next(&[0; PREFACE], || start).expect("the preface is no frame");
        for _ in 0..50_000 {
            frames.sent += 1024;
            frames.next(&frame(8, 1, 4), || start).expect("two for each KiB");
        }
    }
}
