//! Connections to one endpoint between two byte streams, kept for the next one. One worker's are its own.
use std::cell::RefCell;
use std::time::{Duration, Instant};

use super::tls::Lifetime;
use super::tunnel::Tunnel;

/// An idle connection is closed by us well before the other side would close it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept for one endpoint.
const MOST_IDLE: usize = 256;

/// Idle connections to one endpoint.
#[derive(Default)]
pub struct Tunnels {
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    tunnel: Tunnel,
    lifetime: Lifetime,
    since: Instant,
}

impl Tunnels {
    /// One that was used last, as far as it is known to be good.
    pub fn take(&self) -> Option<(Tunnel, Lifetime)> {
        let now = Instant::now();
        let mut kept = self.idle.borrow_mut();
        while let Some(mut candidate) = kept.pop() {
            if candidate.is_usable(now) {
                return Some((candidate.tunnel, candidate.lifetime));
            }
        }
        None
    }

    /// Keeps one that is settled, unless there are enough.
    pub fn keep(&self, tunnel: Tunnel, lifetime: Lifetime) {
        let now = Instant::now();
        if now >= lifetime.retire {
            return;
        }
        let mut kept = self.idle.borrow_mut();
        if kept.len() < MOST_IDLE {
            kept.push(Idle { tunnel, lifetime, since: now });
        }
    }

    /// Closes what was idle too long, is to be retired or was closed by the other side.
    pub(super) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain_mut(|idle| idle.is_usable(now));
    }

    /// Closes all.
    pub(super) fn close(&self) {
        self.idle.borrow_mut().clear();
    }
}

impl Idle {
    fn is_usable(&mut self, now: Instant) -> bool {
        now < self.lifetime.retire && now.duration_since(self.since) < IDLE_TIMEOUT && self.tunnel.is_quiet()
    }
}
