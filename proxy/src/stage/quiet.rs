//! A future that is looked at only when it was woken itself.
//!
//! What a connection waits for beside its bytes (that its certificate ends, that the sidecar stops) happens once in its life,
//! and polling a timer and a watch with every request costs more than reading the request's head.
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Polls `F` only when `F` was woken, however often it is polled itself.
pub(crate) struct Quiet<F> {
    inner: Pin<Box<F>>,
    signal: Arc<Signal>,
    /// What `inner` is given to wake us: `signal`.
    own: Waker,
    /// Whom `signal` wakes.
    outer: Option<Waker>,
}

struct Signal {
    woken: AtomicBool,
    outer: Mutex<Option<Waker>>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        if let Some(outer) = &*self.outer.lock().unwrap_or_else(PoisonError::into_inner) {
            outer.wake_by_ref();
        }
    }
}

impl<F: Future> Quiet<F> {
    pub(crate) fn new(inner: F) -> Self {
        let signal = Arc::new(Signal { woken: AtomicBool::new(true), outer: Mutex::new(None) });
        Self { inner: Box::pin(inner), own: Waker::from(Arc::clone(&signal)), signal, outer: None }
    }
}

impl<F: Future> Future for Quiet<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        if !this.outer.as_ref().is_some_and(|outer| outer.will_wake(cx.waker())) {
            this.outer = Some(cx.waker().clone());
            *this.signal.outer.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        }
        // Cleared before the poll: what happens during it wakes again.
        match this.signal.woken.swap(false, Ordering::Acquire) {
            true => this.inner.as_mut().poll(&mut Context::from_waker(&this.own)),
            false => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_woken_and_not_otherwise() {
        let (polls, notify) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
        let (counted, waited) = (Rc::clone(&polls), Rc::clone(&notify));
        let mut notified = Box::pin(async move { waited.notified().await });
        let mut quiet = Quiet::new(std::future::poll_fn(move |cx| {
            counted.set(counted.get() + 1);
            notified.as_mut().poll(cx)
        }));
        for _ in 0..3 {
            let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut quiet).poll(cx))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(polls.get(), 1);
        notify.notify_one();
        quiet.await;
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn it_wakes_whoever_polled_it_last() {
        let sleep = tokio::time::sleep(std::time::Duration::from_secs(1));
        let mut quiet = Quiet::new(sleep);
        let _ = Pin::new(&mut quiet).poll(&mut Context::from_waker(Waker::noop()));
        quiet.await;
    }
}
