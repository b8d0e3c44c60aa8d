//! Runs the streams of one HTTP/2 connection on the worker's thread, and drops one whose answer is not taken.
//!
//! A client that asks for much and never opens its window would hold each answer, and what the server has ready, for as
//! long as it likes (CVE-2019-9511, CVE-2019-9517): flow control stops the stream, not the connection, so no socket
//! timeout sees it. A stream is stalled when its body had something to give, and was not asked for more, for the whole
//! stall time. A stream that waits for its server (a long poll, server-sent events, a quiet gRPC stream) never is.
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// The streams of a connection; hyper runs each in a task of its own.
#[derive(Clone, Debug)]
pub struct Streams {
    stall: Option<Duration>,
    /// Of the stream that was opened last: hyper starts its task next.
    opened: Rc<RefCell<Option<Given>>>,
}

/// When the body last gave something that nobody has come back from; `None`: the server has nothing yet.
type Given = Rc<Cell<Option<Instant>>>;

/// Ties a stream's body to its task.
#[derive(Debug)]
pub struct Stall(Given);

impl Streams {
    /// Streams that may stall that long; `None`: for ever.
    pub fn new(stall: Option<Duration>) -> Self {
        Self { stall, opened: Rc::default() }
    }

    /// To be called when a request is handed over, before its task is started.
    pub fn open(&self) -> Stall {
        let given = Given::default();
        *self.opened.borrow_mut() = Some(Rc::clone(&given));
        Stall(given)
    }
}

impl Stall {
    /// The answer's body, followed from here on.
    pub fn follow<B: Body>(self, body: B) -> Followed<B> {
        self.0.set((!body.is_end_stream()).then(Instant::now));
        Followed { body, given: self.0 }
    }
}

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let given = self.opened.borrow_mut().take();
        let (Some(stall), Some(given)) = (self.stall, given) else {
            tokio::task::spawn_local(stream);
            return;
        };
        tokio::task::spawn_local(async move {
            let mut timer = None;
            tokio::select! {
                biased;
                _ = stream => {}
                // Dropping the stream resets it.
                () = std::future::poll_fn(|cx| stalled(&given, stall, &mut timer, cx)) => {}
            }
        });
    }
}

/// Ready when what was given has been left for `stall`. Polled whenever the stream was.
fn stalled(given: &Given, stall: Duration, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(since) = given.get() else { return Poll::Pending };
    let end = since + stall;
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
    if timer.deadline() != end {
        timer.as_mut().reset(end);
    }
    timer.as_mut().poll(cx)
}

/// A body that notes when it gave something.
#[derive(Debug)]
pub struct Followed<B> {
    body: B,
    given: Given,
}

impl<B: Body + Unpin> Body for Followed<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.given.set(polled.is_ready().then(Instant::now));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
