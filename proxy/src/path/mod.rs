//! How a connection travels. READ FIRST: [`inbound`] (network to application), [`outbound`] (application to network),
//! [`http`] and [`send`], the per-request stack that both share.
#[cfg(test)]
mod allocations;
mod attempt;
mod exact;
pub mod http;
pub mod inbound;
mod judge;
mod limits;
mod mirror;
mod observe;
pub mod outbound;
mod record;
mod respond;
mod routed;
pub mod send;
#[cfg(test)]
mod sizes;
mod streams;

pub use mirror::Mirrors;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::stage::accept::LocalAddresses;
use crate::stage::balance::Balancer;
use crate::stage::connect::{Identity, Upstreams};
use crate::stage::detect::ServerFirst;
use crate::stage::rate_limit::Limiter;
use crate::stage::route::MeshView;
use crate::telemetry::{Party, WorkerTelemetry};

/// How far the sidecar is with stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It serves, and asks every caller to go elsewhere: `Connection: close`, GOAWAY.
    Draining,
    /// Idle connections are closed, what runs may finish.
    Closing,
}

/// What one worker has at hand for every connection. Lives and dies on its thread.
pub struct Worker {
    /// What the control plane told last.
    pub view: watch::Receiver<Option<Arc<MeshView>>>,
    /// Our certificate.
    pub identity: watch::Receiver<Option<Arc<Identity>>>,
    /// The rate limits' counters, one set for all workers.
    pub limiter: watch::Receiver<Arc<Limiter>>,
    /// How far we are with stopping.
    pub phase: watch::Receiver<Phase>,
    /// Connections to other places.
    pub upstreams: Rc<Upstreams>,
    /// Where servers speak first.
    pub server_first: ServerFirst,
    /// Load by endpoint.
    pub balancer: Balancer,
    /// Copies of requests that are under way.
    pub mirrors: Mirrors,
    /// Metrics, traces and the access log.
    pub telemetry: WorkerTelemetry,
    /// Ports to which nothing is forwarded.
    pub own_ports: [u16; 3],
    /// Addresses to which anything is forwarded.
    pub local: LocalAddresses,
    /// How long a request's body may not come, or an answer not be taken; `None`: for ever.
    pub stall: Option<Duration>,
    /// Connections open in the whole sidecar.
    pub open: Arc<AtomicUsize>,
}

impl Worker {
    /// The view in force. Workers accept only once there is one.
    pub fn view(&self) -> Arc<MeshView> {
        self.view.borrow().clone().expect("connections are accepted only once there is a configuration")
    }

    /// The certificate in use. Workers accept only once there is one.
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.borrow().clone().expect("connections are accepted only once there is a certificate")
    }

    /// Counts a connection as open until dropped.
    pub fn count(&self) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(&self.open))
    }
}

/// A connection that is counted as open.
pub struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells an HTTP connection's requests that it is to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closing(Rc<Cell<bool>>);

impl Closing {
    pub(crate) fn set(&self) {
        self.0.set(true);
    }
    pub(crate) fn get(&self) -> bool {
        self.0.get()
    }
}

/// The workload beside us, as a label.
pub(crate) fn own_party(view: &MeshView) -> Party {
    let inbound = &view.config.inbound;
    Party::new(inbound.service_account.as_str(), inbound.namespace.as_str())
}

/// Sleeps until a lifetime's instant.
pub(crate) async fn until(instant: Instant) {
    tokio::time::sleep_until(instant.into()).await;
}

#[cfg(test)]
mod tests {
    /// Thousands of connections wait at a time: what each holds beside its buffers counts.
    #[test]
    fn a_connection_that_waits_to_be_known_is_small() {
        fn size_of_future<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        for (what, size, most) in [
            ("inbound", size_of_future(super::inbound::handle), 1024),
            ("outbound", size_of_future(super::outbound::handle), 2048),
        ] {
            assert!(size <= most, "{what}: {size} bytes, of {most} at most");
        }
    }
}
