//! The calls that sidecars judged, put down under who was called.
use std::time::SystemTime;

use weft_api::observation::{CallList, Destination, Observations};

use super::{Publisher, Subscription};
use crate::calls::common_labels;

impl Subscription {
    /// The sidecar says which calls it judged. It is believed about its own workload alone.
    pub fn observed(&self, seen: Observations) {
        let destination = {
            let state = self.publisher.lock();
            let Some(workload) = state.model.workload(&self.workload) else { return };
            Destination {
                namespace: self.workload.namespace.clone(),
                services: state.model.services_of(workload).map(|service| service.name.name.clone()).collect(),
                service_account: workload.service_account.clone(),
                labels: common_labels(&workload.labels),
            }
        };
        self.publisher.calls().observe(destination, &self.workload.name, seen, SystemTime::now());
    }
}

impl Publisher {
    /// The calls that sidecars of this replica judged in the last `hours`.
    pub fn judged_calls(&self, hours: u32) -> CallList {
        self.calls().list(hours, SystemTime::now())
    }
}
