//! Connections between two byte streams, kept for the next one to the same endpoint and port. One worker's are its own.
use std::cell::RefCell;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use weft_api::workload::Endpoint;

use super::tls::Lifetime;
use super::tunnel::Tunnel;

/// An idle connection is closed by us well before the other side would close it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept for one endpoint.
const MOST_IDLE: usize = 256;

/// Idle connections by endpoint, whose address has the port.
#[derive(Default)]
pub struct Tunnels {
    idle: RefCell<HashMap<Endpoint, Vec<Idle>>>,
}

struct Idle {
    tunnel: Tunnel,
    lifetime: Lifetime,
    since: Instant,
}

impl Tunnels {
    /// One that was used last, as far as it is known to be good.
    pub fn take(&self, endpoint: &Endpoint) -> Option<(Tunnel, Lifetime)> {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(endpoint)?;
        while let Some(mut candidate) = kept.pop() {
            if candidate.is_usable(now) {
                return Some((candidate.tunnel, candidate.lifetime));
            }
        }
        None
    }

    /// Keeps one that is settled, unless there are enough.
    pub fn keep(&self, endpoint: &Endpoint, tunnel: Tunnel, lifetime: Lifetime) {
        let now = Instant::now();
        if now >= lifetime.retire {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let kept = match idle.get_mut(endpoint) {
            Some(kept) => kept,
            None => idle.entry(endpoint.clone()).or_default(),
        };
        if kept.len() < MOST_IDLE {
            kept.push(Idle { tunnel, lifetime, since: now });
        }
    }

    /// Closes what was idle too long, is to be retired or was closed by the other side, or leads to an endpoint that `keep`
    /// does not know any more.
    pub fn sweep(&self, keep: impl Fn(&Endpoint) -> bool) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|endpoint, kept| {
            kept.retain_mut(|idle| idle.is_usable(now));
            !kept.is_empty() && keep(endpoint)
        });
    }
}

impl Idle {
    fn is_usable(&mut self, now: Instant) -> bool {
        now < self.lifetime.retire && now.duration_since(self.since) < IDLE_TIMEOUT && self.tunnel.is_quiet()
    }
}
