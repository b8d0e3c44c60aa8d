//! One sidecar's stream, as the publisher sees it: from its hello to its end.
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use weft_api::resource::NamespacedName;

use super::{Published, Publisher, count};

/// What a sidecar says of an update that it refused is cut to this many characters.
const LONGEST_ERROR: usize = 1024;

/// One sidecar's stream, as the publisher sees it. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    /// What to send: always the latest.
    pub published: watch::Receiver<Published>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) workload: NamespacedName,
    pub(super) number: u64,
}

impl Subscription {
    /// Whose stream this is.
    pub fn workload(&self) -> &NamespacedName {
        &self.workload
    }

    /// The sidecar applied `version`, or refused it and says why.
    pub fn acknowledged(&self, version: u64, error: Option<&str>) {
        let mut state = self.publisher.lock();
        let Some(sidecar) = state.sidecars.get_mut(&self.workload) else { return };
        self.publisher.note_activity();
        let Some(error) = error else {
            sidecar.confirmed = sidecar.confirmed.max(Some(version));
            sidecar.error = None;
            return;
        };
        let error: String = error.chars().filter(|c| !c.is_control()).take(LONGEST_ERROR).collect();
        tracing::error!(workload = %self.workload, version, error, "a sidecar refused its configuration and keeps what it had");
        self.publisher.metrics.updates_refused.inc();
        sidecar.error = Some(error);
    }

    /// The sidecar has all of the content that was published as `version`. Counts only on the newest stream of a workload:
    /// an older one may be that of a process which is gone.
    pub fn runs(&self, version: u64) {
        let mut state = self.publisher.lock();
        if let Some(sidecar) = state.sidecars.get_mut(&self.workload).filter(|sidecar| sidecar.newest == self.number) {
            sidecar.runs = Some(version);
            self.publisher.note_activity();
        }
    }

    /// The sidecar is about to stop: nobody is to be sent there until it comes back. Counts only on the newest stream of a
    /// workload, for the successor of a stopping sidecar may be there already.
    pub fn draining(&self) {
        let mut state = self.publisher.lock();
        let Some(sidecar) = state.sidecars.get_mut(&self.workload).filter(|sidecar| sidecar.newest == self.number)
        else {
            return;
        };
        sidecar.draining = true;
        tracing::info!(workload = %self.workload, "the sidecar is draining: sending no calls there");
        state.model.withdraw(&self.workload);
        self.publisher.metrics.withdrawn.set(count(state.model.withdrawn()));
        state.publish();
        self.publisher.note_activity();
    }

    /// Whether the sidecar is away now.
    pub fn is_disconnected(publisher: &Publisher, workload: &NamespacedName) -> bool {
        publisher.lock().sidecars.get(workload).is_some_and(|sidecar| sidecar.open == 0 && !sidecar.draining)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.publisher.metrics.streams.dec();
        let mut state = self.publisher.lock();
        if let Some(sidecar) = state.sidecars.get_mut(&self.workload) {
            sidecar.open -= 1;
            if sidecar.open == 0 {
                sidecar.disconnected = Some(SystemTime::now());
            }
            self.publisher.note_activity();
        }
    }
}
