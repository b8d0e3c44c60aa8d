//! What changes while the sidecar runs, each a watch channel: its identity, and what the control plane tells it.
pub mod bundle_file;
pub mod channel;
pub mod identity;
pub mod workload;

use std::time::Duration;

use rand::Rng;

/// Waits between attempts: doubling from 200 ms, with half of it random so that a fleet does not return as one.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub(crate) const FIRST: Duration = Duration::from_millis(200);

    pub(crate) fn new(most: Duration) -> Self {
        Self { next: Self::FIRST.min(most), most }
    }

    pub(crate) fn reset(&mut self) {
        self.next = Self::FIRST.min(self.most);
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.most);
        wait.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}
