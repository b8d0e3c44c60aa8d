//! How much one sidecar asks of one destination at a time. Requests and those of them that wait for a connection are counted
//! over all workers; connections belong to a worker, so each has its part of them.
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hashbrown::HashMap;
use tokio::sync::Notify;
use weft_api::resource::NamespacedName;

/// What is under way to each destination of a sidecar, whichever worker carries it.
#[derive(Debug, Default)]
pub struct Circuits(Mutex<HashMap<(NamespacedName, u16), Weak<Counts>>>);

/// What is under way to one destination.
#[derive(Debug, Default)]
pub(super) struct Counts {
    requests: AtomicU32,
    pending: AtomicU32,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Requests under way.
    Requests,
    /// Requests that wait for a connection.
    Pending,
    /// Connections, where waiting for one makes no sense: byte streams.
    Connections,
}

impl Full {
    /// The word used in answers, logs and labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Requests => "too_many_requests",
            Self::Pending => "too_many_requests_pending",
            Self::Connections => "too_many_connections",
        }
    }
}

impl Circuits {
    /// The counts of a Service's port. Asked for when a worker meets it, never for a request.
    pub(super) fn of(&self, service: &NamespacedName, port: u16) -> Arc<Counts> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil it.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&(service.clone(), port)).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, counts| counts.strong_count() > 0);
        let counts = Arc::default();
        all.insert((service.clone(), port), Arc::downgrade(&counts));
        counts
    }
}

impl Counts {
    pub(super) fn request(counts: &Arc<Self>, most: u32) -> Result<Counted, Full> {
        Counted::take(counts, |counts| &counts.requests, most).ok_or(Full::Requests)
    }

    pub(super) fn pending(counts: &Arc<Self>, most: u32) -> Result<Counted, Full> {
        Counted::take(counts, |counts| &counts.pending, most).ok_or(Full::Pending)
    }
}

/// Counts as one of those under way until dropped.
#[derive(Debug)]
pub struct Counted {
    counts: Arc<Counts>,
    which: fn(&Counts) -> &AtomicU32,
}

impl Counted {
    fn take(counts: &Arc<Counts>, which: fn(&Counts) -> &AtomicU32, most: u32) -> Option<Self> {
        let taken = Self { counts: Arc::clone(counts), which };
        // One more than allowed is given back by dropping it.
        (which(counts).fetch_add(1, Ordering::Relaxed) < most).then_some(taken)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.counts).fetch_sub(1, Ordering::Relaxed);
    }
}

/// One worker's connections to a destination.
#[derive(Debug, Default)]
pub struct Connections {
    most: Cell<u32>,
    open: Cell<u32>,
    waiting: Cell<u32>,
    freed: Notify,
}

impl Connections {
    /// So many may be open.
    pub(super) fn limit(&self, most: u32) {
        self.most.set(most);
    }

    /// Whether more are open than may be: the limit was lowered.
    pub(crate) fn is_over(&self) -> bool {
        self.open.get() > self.most.get()
    }

    /// Room for one more connection. `None`: there are as many as may be.
    pub(super) fn open(self: &Rc<Self>) -> Option<Open> {
        if self.open.get() >= self.most.get() {
            return None;
        }
        self.open.set(self.open.get() + 1);
        Some(Open(Rc::clone(self)))
    }

    /// Returns once there may be room: a connection ended, or has nothing to do.
    pub(super) async fn freed(&self) {
        let _waiting = Waiting::new(&self.waiting);
        self.freed.notified().await;
    }

    /// A connection has nothing to do.
    pub(crate) fn idle(&self) {
        if self.waiting.get() > 0 {
            self.freed.notify_one();
        }
    }
}

struct Waiting<'a>(&'a Cell<u32>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A connection that counts as open until dropped.
#[derive(Debug)]
pub struct Open(Rc<Connections>);

impl Open {
    /// The connections that it is one of.
    pub(crate) fn connections(&self) -> &Rc<Connections> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.idle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_over_all_who_share_a_destination() {
        let circuits = Circuits::default();
        let name = NamespacedName::new("shop", "web");
        let (one, two) = (circuits.of(&name, 80), circuits.of(&name, 80));
        let first = Counts::request(&one, 2).expect("there is room");
        let _second = Counts::request(&two, 2).expect("there is room");
        assert_eq!(Counts::request(&one, 2).err(), Some(Full::Requests));
        assert!(Counts::request(&circuits.of(&name, 81), 2).is_ok(), "another port has its own");
        drop(first);
        assert!(Counts::request(&two, 2).is_ok(), "what ended makes room, and what was refused took none");
        assert_eq!(Counts::pending(&one, 0).err(), Some(Full::Pending));
    }

    #[test]
    fn who_waits_for_a_connection_is_woken_when_one_ends() {
        let connections = Rc::new(Connections::default());
        connections.limit(1);
        let open = connections.open().expect("there is room");
        assert!(connections.open().is_none());
        let mut waiting = Box::pin(connections.freed());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(open);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        assert!(connections.open().is_some());
        connections.limit(0);
        assert!(!connections.is_over(), "what was open is closed");
    }
}
