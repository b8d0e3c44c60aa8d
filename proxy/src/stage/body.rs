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
        inner: Incoming,
        /// How much of it did.
        progress: Rc<Progress>,
        /// How long it may be waited for.
        wait: Wait,
    },
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

/// A request's body did not come.
#[derive(Debug, thiserror::Error)]
#[error("the request's body did not come in time")]
struct Stalled;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Incoming { inner, progress, wait } => match Pin::new(inner).poll_frame(cx) {
                Poll::Pending => {
                    ready!(wait.poll(cx));
                    progress.failure.set(Some(Failure::Stalled));
                    Poll::Ready(Some(Err(Stalled.into())))
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
                    Poll::Ready(frame.map(|frame| frame.map(without_forbidden_trailers).map_err(Into::into)))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Incoming { inner, .. } => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Incoming { inner, .. } => inner.size_hint(),
        }
    }
}
