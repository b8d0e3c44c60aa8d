//! `Expect: 100-continue` of HTTP/1: a body is asked of its sender only once the server wants it (RFC 9110 section
//! 10.1.1).
//!
//! The body's side is a [`Gate`]: while it is shut, nothing of the body is read, so nobody tells the sender to go on. A
//! server's 100 opens it, or time does, since servers need not send one.
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::EXPECT;
use http::{Request, StatusCode, Version};
use tokio::sync::oneshot;

use super::body::RequestBody;

/// How long a server may be silent before the body is sent anyway: as long as widespread clients wait.
const PATIENCE: Duration = Duration::from_secs(1);

type Opener = Arc<Mutex<Option<oneshot::Sender<Verdict>>>>;

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Send,
    Withhold,
}

/// Holds a body back.
#[derive(Debug)]
pub struct Gate {
    verdict: oneshot::Receiver<Verdict>,
    patience: Pin<Box<tokio::time::Sleep>>,
}

/// The body was never asked for: the server had answered without it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the server answered without asking for the body")]
pub struct Withheld;

/// A gate that is shut, and what it can be told by.
fn shut() -> (Gate, Opener) {
    let (sender, verdict) = oneshot::channel();
    let gate = Gate { verdict, patience: Box::pin(tokio::time::sleep(PATIENCE)) };
    (gate, Arc::new(Mutex::new(Some(sender))))
}

impl Gate {
    /// Whether the body may be read now.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Withheld>> {
        if let Poll::Ready(verdict) = Pin::new(&mut self.verdict).poll(cx) {
            return Poll::Ready(match verdict {
                Ok(Verdict::Send) => Ok(()),
                Ok(Verdict::Withhold) | Err(_) => Err(Withheld),
            });
        }
        ready!(self.patience.as_mut().poll(cx));
        Poll::Ready(Ok(()))
    }
}

/// Held by who reads the answer. When it is dropped, a body that is still held back is given up.
#[derive(Debug)]
pub struct Expectation(Opener);

impl Expectation {
    /// Shuts the gate of a request that expects to be told to go on.
    pub fn of(request: &mut Request<RequestBody>) -> Option<Self> {
        // A client of HTTP/1.0 does not know what a 100 is.
        let expects = request.version() == Version::HTTP_11
            && request
                .headers()
                .get(EXPECT)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let RequestBody::Incoming { gate, .. } = request.body_mut() else { return None };
        if !expects {
            return None;
        }
        let (closed, opener) = shut();
        *gate = Some(Box::new(closed));
        let told = Arc::clone(&opener);
        hyper::ext::on_informational(request, move |answer| {
            if answer.status() == StatusCode::CONTINUE {
                tell(&told, Verdict::Send);
            }
        });
        Some(Self(opener))
    }

    /// Whether the body was given up just now: then the connection cannot be used again.
    pub fn give_up(self) -> bool {
        tell(&self.0, Verdict::Withhold)
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        tell(&self.0, Verdict::Withhold);
    }
}

/// Tells the gate, if it was told nothing yet and still waits.
fn tell(opener: &Opener, verdict: Verdict) -> bool {
    let sender = opener.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    sender.is_some_and(|sender| sender.send(verdict).is_ok())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_is_held_back_until_the_server_wants_it_or_answers_without() {
        let (mut gate, opener) = shut();
        assert!(now(&mut gate).await.is_pending(), "nothing was heard yet");
        assert!(tell(&opener, Verdict::Send));
        assert!(poll_fn(|cx| gate.poll(cx)).await.is_ok(), "the server sent 100");

        let (mut gate, opener) = shut();
        drop(Expectation(opener));
        assert!(poll_fn(|cx| gate.poll(cx)).await.is_err(), "the answer was read, or its reader went away");

        let (mut gate, opener) = shut();
        let begun = tokio::time::Instant::now();
        assert!(poll_fn(|cx| gate.poll(cx)).await.is_ok(), "servers need not send 100");
        assert_eq!(begun.elapsed().as_secs(), PATIENCE.as_secs());
        drop(gate);
        assert!(!Expectation(opener).give_up(), "the body is on its way");
    }

    async fn now(gate: &mut Gate) -> Poll<Result<(), Withheld>> {
        poll_fn(|cx| Poll::Ready(gate.poll(cx))).await
    }
}
