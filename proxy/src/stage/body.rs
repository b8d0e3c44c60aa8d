//! Bodies on their way through: counted, never buffered whole.
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, EXPECT, HOST,
    HeaderName, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::expect::{Gate, Withheld};
use super::tee;

/// Most that hyper buffers of an HTTP/1 connection; bounds the header section (the default is 400 KiB).
pub const HTTP1_BUFFER: usize = 64 * 1024;
/// Bytes a peer may send on one HTTP/2 stream before we read them.
pub const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes a peer may send on one HTTP/2 connection before we read them.
pub const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of one HTTP/2 stream that wait to be sent.
pub const H2_SEND_BUFFER: usize = 64 * 1024;

/// How far a request's body has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes so far.
    pub bytes: Cell<u64>,
    /// Why it was given up.
    pub failure: Cell<Option<Failure>>,
}

/// Why a request's body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It did not come in time.
    Stalled,
    /// It was malformed, or its caller left.
    Broken,
}

/// The body of a request on its way to the server.
pub enum RequestBody {
    /// None.
    Empty,
    /// As it comes in.
    Incoming {
        /// What comes in.
        inner: Arriving,
        /// Shut while the server was not heard on whether it wants the body.
        gate: Option<Box<Gate>>,
    },
    /// As it comes in, and once more should it be sent again.
    Repeatable(tee::Reader),
    /// The same from its beginning, not begun.
    Again(tee::Tee),
    /// A copy of what another request sends.
    Copy(tee::Copy),
}

impl RequestBody {
    /// What comes in, as it comes.
    pub fn incoming(inner: Incoming, progress: &Rc<Progress>, wait: Wait) -> Self {
        match inner.is_end_stream() {
            true => Self::Empty,
            false => Self::Incoming { inner: Arriving::new(inner, progress, wait), gate: None },
        }
    }

    /// The same body once more, where it may be at hand whole: to be [begun](Self::begin) when it is needed.
    pub fn copy(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Repeatable(body) => body.again().map(Self::Again),
            Self::Incoming { .. } | Self::Copy(_) | Self::Again(_) => None,
        }
    }

    /// Makes what was copied ready to be sent. `None`: it is not at hand whole any more.
    pub fn begin(self) -> Option<Self> {
        match self {
            Self::Again(body) => body.can_repeat().then(|| Self::Repeatable(body.read())),
            other => Some(other),
        }
    }
}

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It stopped coming.
    #[error(transparent)]
    Incoming(#[from] hyper::Error),
    /// The next piece of a request's body did not come in time.
    #[error("the request's body did not come in time")]
    Stalled,
    /// It was never asked for.
    #[error(transparent)]
    Withheld(#[from] Withheld),
    /// The request is sent again: what is left of it belongs to the next attempt.
    #[error("the request is being sent again")]
    Superseded,
    /// A mirror did not keep up, or the original was broken off.
    #[error("the copy does not keep up with its original")]
    CopyCut,
    /// Nothing came for too long.
    #[error("the answer brought nothing for {0:?}")]
    Idle(Duration),
    /// The time that the request may take is over.
    #[error("the request took longer than it may")]
    Deadline,
}

/// Bounds the time between two pieces of a body.
#[derive(Debug, Default)]
pub struct Wait {
    most: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Wait {
    /// Waits that long; `None`: for ever.
    pub fn most(most: Option<Duration>) -> Self {
        Self { most, timer: None, waiting: false }
    }

    /// Nothing has come: ready when that is so for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(most) = self.most else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(most)));
        if !self.waiting {
            timer.as_mut().reset(Instant::now() + most);
            self.waiting = true;
        }
        timer.as_mut().poll(cx)
    }
}

/// A body as it arrives: counted, and not waited for without end.
pub struct Arriving {
    inner: Incoming,
    progress: Rc<Progress>,
    wait: Wait,
}

impl Arriving {
    /// `progress` tells how far it came.
    pub fn new(inner: Incoming, progress: &Rc<Progress>, wait: Wait) -> Self {
        Self { inner, progress: Rc::clone(progress), wait }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { inner, progress, wait } = self.get_mut();
        match Pin::new(inner).poll_frame(cx) {
            Poll::Pending => {
                ready!(wait.poll(cx));
                progress.failure.set(Some(Failure::Stalled));
                Poll::Ready(Some(Err(BodyError::Stalled)))
            }
            Poll::Ready(frame) => {
                wait.waiting = false;
                match &frame {
                    Some(Ok(frame)) => {
                        let more = frame.data_ref().map_or(0, |data| data.len() as u64);
                        progress.bytes.set(progress.bytes.get() + more);
                    }
                    Some(Err(_)) => progress.failure.set(Some(Failure::Broken)),
                    None => {}
                }
                Poll::Ready(frame.map(|frame| frame.map(without_forbidden_trailers).map_err(BodyError::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Fields that must not come after a body: who merges trailers into the header section would take them for what was
/// judged (RFC 9110 section 6.5.1).
const NO_TRAILERS: [HeaderName; 14] = [
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    TRAILER,
    TE,
    CONNECTION,
    EXPECT,
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    COOKIE,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CONTENT_RANGE,
    HeaderName::from_static("x-forwarded-client-cert"),
];

fn without_forbidden_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Err(frame) => frame,
        Ok(mut trailers) => {
            for name in &NO_TRAILERS {
                trailers.remove(name);
            }
            Frame::trailers(trailers)
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Incoming { inner, gate } => {
                if let Some(shut) = gate {
                    if let Err(withheld) = ready!(shut.poll(cx)) {
                        return Poll::Ready(Some(Err(withheld.into())));
                    }
                    *gate = None;
                }
                Pin::new(inner).poll_frame(cx)
            }
            Self::Repeatable(body) => Pin::new(body).poll_frame(cx),
            Self::Again(_) => Poll::Ready(Some(Err(BodyError::Superseded))),
            Self::Copy(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Incoming { inner, .. } => inner.is_end_stream(),
            Self::Repeatable(body) => body.is_end_stream(),
            Self::Again(_) => false,
            Self::Copy(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Incoming { inner, .. } => inner.size_hint(),
            Self::Repeatable(body) => body.size_hint(),
            Self::Again(_) => SizeHint::default(),
            Self::Copy(body) => body.size_hint(),
        }
    }
}
