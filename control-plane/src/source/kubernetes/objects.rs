//! What is known of each object in the API whose status is Weft's, for those who write it: its own kinds, and routes.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use weft_api::resource::Route;

use crate::source::ResourceKey;

/// All policies, Workloads and routes that the API server has. Clones share one table.
#[derive(Clone, Debug)]
pub struct Objects {
    table: Arc<Mutex<BTreeMap<ResourceKey, Object>>>,
    changes: watch::Sender<u64>,
}

/// One object as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`: changes with each change of the spec.
    pub generation: i64,
    /// Why the object cannot be used, with the remedy; what was last good of it stays in force. `None`: it is in force.
    pub error: Option<String>,
    /// Fingerprint of a policy's content, by which it is known what is already in force.
    pub content: Option<u64>,
    /// `status`, as it was read; null where there is none.
    pub status: serde_json::Value,
    /// What a route says; where it cannot be used, its parents alone. `None`: not even these are known, or it is no route.
    pub route: Option<Arc<Route>>,
}

impl Default for Objects {
    fn default() -> Self {
        Self { table: Arc::default(), changes: watch::Sender::new(0) }
    }
}

impl Objects {
    /// All objects, in the order of their keys.
    pub fn snapshot(&self) -> Vec<(ResourceKey, Object)> {
        self.lock().iter().map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    /// Is told of each change of the table.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Puts in or replaces an object.
    pub fn put(&self, key: ResourceKey, object: Object) {
        let before = self.lock().insert(key, object.clone());
        if before.as_ref() != Some(&object) {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Says why an object cannot be used, or that it can.
    pub fn set_error(&self, key: &ResourceKey, error: Option<&str>) {
        let error = error.map(str::to_owned);
        let changed = self.lock().get_mut(key).is_some_and(|object| {
            let changed = object.error != error;
            object.error = error;
            changed
        });
        if changed {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Notes a status that was just written, until the watch brings it: unless the object changed meanwhile.
    pub fn written(&self, key: &ResourceKey, judged: &Object, status: serde_json::Value) {
        if let Some(object) = self.lock().get_mut(key)
            && object == judged
        {
            object.status = status;
        }
    }

    /// Takes an object out.
    pub fn remove(&self, key: &ResourceKey) {
        if self.lock().remove(key).is_some() {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ResourceKey, Object>> {
        // Each change of the table is one call: a panic leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
