//! What each workload is told, as one watch channel a workload.
//!
//! A change of the mesh recompiles the workloads whose sidecars listen, and wakes those whose configuration differs. A
//! sidecar that reads slowly misses only what was overtaken, and never holds up another. Versions only go up, also over a
//! restart: they begin at the wall clock's milliseconds. Losing a sidecar's stream changes nothing for anybody; only a
//! sidecar that says that it is draining is withdrawn, until it comes back.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;
use weft_api::resource::NamespacedName;
use weft_api::workload::WorkloadConfig;
use weft_certs::{Peer, SpiffeId};

use crate::audit::{Audit, Entry};
use crate::calls::Calls;
use crate::compile::{self, Shared};
use crate::metrics::Metrics;
use crate::model::{Endpoints, Model};
use crate::source::{Batch, ConfigError, Event, Kind};

use programmed::{Fingerprints, Targets};

mod calls;
pub mod programmed;
pub mod routes;
mod subscription;

pub use subscription::Subscription;

/// Streams that one workload may have open: the sidecar's, and those that it lost without our knowing yet.
const STREAMS_OF_A_WORKLOAD: usize = 8;

/// The mesh and everybody who listens.
#[derive(Debug)]
pub struct Publisher {
    state: Mutex<State>,
    activity: watch::Sender<u64>,
    calls: Mutex<Calls>,
    audit: Arc<Audit>,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    model: Model,
    shared: Shared,
    version: u64,
    streams: u64,
    sidecars: BTreeMap<NamespacedName, Sidecar>,
    errors: Vec<ConfigError>,
    /// By namespace.
    idle_policies: BTreeMap<String, Vec<String>>,
    fingerprints: Fingerprints,
    /// Until the mesh changes.
    targets: Option<Arc<Targets>>,
    /// Until the mesh changes.
    routes: Option<Arc<routes::RouteStates>>,
    /// What was logged.
    route_faults: BTreeSet<String>,
    complete: bool,
}

/// What is known of one workload's sidecar.
#[derive(Debug)]
struct Sidecar {
    published: watch::Sender<Published>,
    open: usize,
    newest: u64,
    draining: bool,
    confirmed: Option<u64>,
    /// The published version whose content the newest stream's sidecar has.
    runs: Option<u64>,
    error: Option<String>,
    certificate_expiry: SystemTime,
    disconnected: Option<SystemTime>,
}

/// The latest word for one workload.
#[derive(Clone, Debug)]
pub enum Published {
    /// What it is to do.
    Config(Arc<Versioned>),
    /// Its stream ends.
    Ended(Refused),
}

/// A configuration with its version.
#[derive(Debug)]
pub struct Versioned {
    /// Greater than that of any earlier one.
    pub version: u64,
    /// Whom it may be told to. Compared before it is sent: a workload can change hands while a stream is open.
    pub identity: SpiffeId,
    /// All that the workload is told.
    pub config: WorkloadConfig,
}

/// Why a sidecar gets no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The resources were never read whole.
    #[error("the control plane has not read its resources yet; try again")]
    NotReady,
    /// There is no such workload in the identity's namespace.
    #[error("no Workload {0}; declare it, or correct the sidecar's --workload")]
    NotFound(NamespacedName),
    /// The identity is not that of the workload.
    #[error("this identity may not have the configuration of {0}")]
    Forbidden(NamespacedName),
    /// The identity is on the denied list.
    #[error("this identity is denied")]
    Denied,
    /// The workload has too many streams open.
    #[error("{0} has too many streams open; is the same --workload given to several sidecars?")]
    TooMany(NamespacedName),
}

/// A row of `/workloads`.
#[derive(Debug, Serialize)]
pub struct WorkloadStatus {
    /// `namespace/name`.
    pub name: String,
    /// Whether its sidecar listens now.
    pub connected: bool,
    /// Whether its sidecar said that it is about to stop: nobody is sent there.
    pub draining: bool,
    /// The version that is meant for it, if its sidecar ever listened.
    pub version: Option<u64>,
    /// The version that its sidecar applied last.
    pub confirmed: Option<u64>,
    /// When the certificate of its sidecar's stream expires, seconds since 1970.
    pub certificate_expiry: Option<u64>,
    /// For how long its sidecar has been away, seconds.
    pub disconnected_for: Option<u64>,
    /// Why its sidecar refused the last update; it kept what it had.
    pub error: Option<String>,
}

impl Publisher {
    /// Publishes `model`, which sidecars are told once a batch says that it is complete.
    pub fn new(model: Model, audit: Arc<Audit>, metrics: Metrics, now: SystemTime) -> Self {
        let version =
            now.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis().try_into().unwrap_or(u64::MAX / 2));
        let state = State {
            model,
            shared: Shared::default(),
            version,
            streams: 0,
            sidecars: BTreeMap::new(),
            errors: Vec::new(),
            idle_policies: BTreeMap::new(),
            fingerprints: Fingerprints::default(),
            targets: None,
            routes: None,
            route_faults: BTreeSet::new(),
            complete: false,
        };
        let (state, activity) = (Mutex::new(state), watch::Sender::new(version));
        Self { state, activity, calls: Mutex::default(), audit, metrics }
    }

    /// Takes in what a source found.
    pub fn apply(&self, batch: Batch) {
        let mut state = self.lock();
        for event in batch.events {
            self.write_down(&event, state.model.endpoints());
            state.fingerprints.note(&event);
            state.model.apply(event);
        }
        self.metrics.config_errors.set(count(batch.errors.len()));
        self.metrics.resources.set(count(state.model.len()));
        self.metrics.denied_identities.set(count(state.model.denied().count()));
        state.errors = batch.errors;
        state.complete |= batch.complete;
        (state.targets, state.routes) = (None, None);
        state.publish();
        self.note_activity();
        self.metrics.idle_policies.set(count(state.idle_policies.values().map(Vec::len).sum()));
    }

    /// Opens a stream for the sidecar of `workload` whose certificate proved to be `peer`.
    ///
    /// # Errors
    /// Why it gets none.
    pub fn subscribe(self: &Arc<Self>, workload: &str, peer: &Peer) -> Result<Subscription, Refused> {
        let namespace = peer.id.service_account().map(|(namespace, _)| namespace.to_owned()).unwrap_or_default();
        let workload = NamespacedName { namespace, name: workload.to_owned() };
        let mut state = self.lock();
        if !state.complete {
            return Err(Refused::NotReady);
        }
        state.permits(&workload, &peer.id)?;
        if state.sidecars.get(&workload).is_some_and(|sidecar| sidecar.open >= STREAMS_OF_A_WORKLOAD) {
            return Err(Refused::TooMany(workload));
        }
        if state.model.restore(&workload) {
            tracing::info!(%workload, "the sidecar is back: sending calls there again");
            state.publish();
        }
        self.metrics.withdrawn.set(count(state.model.withdrawn()));
        state.streams += 1;
        let number = state.streams;
        let latest = state.latest(&workload)?;
        let sidecar = state.sidecars.entry(workload.clone()).or_insert_with(|| Sidecar {
            published: watch::Sender::new(latest.clone()),
            open: 0,
            newest: 0,
            draining: false,
            confirmed: None,
            runs: None,
            error: None,
            certificate_expiry: peer.not_after,
            disconnected: None,
        });
        sidecar.published.send_replace(latest);
        sidecar.open += 1;
        sidecar.newest = number;
        sidecar.draining = false;
        sidecar.runs = None;
        sidecar.error = None;
        sidecar.certificate_expiry = peer.not_after;
        sidecar.disconnected = None;
        let mut published = sidecar.published.subscribe();
        published.mark_changed();
        self.note_activity();
        self.metrics.streams.inc();
        Ok(Subscription { published, publisher: Arc::clone(self), workload, number })
    }

    /// Whether `id` is refused everywhere.
    pub fn is_denied(&self, id: &SpiffeId) -> bool {
        self.lock().model.is_denied(id)
    }

    /// How many workloads have this identity.
    pub fn replicas(&self, id: &SpiffeId) -> usize {
        self.lock().model.replicas(id)
    }

    /// Whether there is such a Service.
    pub fn knows_service(&self, service: &NamespacedName) -> bool {
        self.lock().model.service(service).is_some()
    }

    /// Why sidecars cannot be told anything yet.
    pub fn not_ready(&self) -> Option<String> {
        let state = self.lock();
        if state.complete {
            return None;
        }
        let mut reason =
            "the resources were not read whole since the start, so a policy may be unknown; mend:".to_owned();
        for error in &state.errors {
            reason.push_str(&format!("\n  {error}"));
        }
        Some(reason)
    }

    /// Every fault of the resources that is not mended.
    pub fn config_errors(&self) -> Vec<ConfigError> {
        self.lock().errors.clone()
    }

    /// Every policy that applies to no workload.
    pub fn idle_policies(&self) -> Vec<String> {
        self.lock().idle_policies.values().flatten().cloned().collect()
    }

    /// Every workload with its sidecar's state.
    pub fn status(&self) -> Vec<WorkloadStatus> {
        let (state, now) = (self.lock(), SystemTime::now());
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let row = |name: &NamespacedName| {
            let sidecar = state.sidecars.get(name);
            WorkloadStatus {
                name: name.to_string(),
                connected: sidecar.is_some_and(|sidecar| sidecar.open > 0),
                draining: sidecar.is_some_and(|sidecar| sidecar.draining),
                version: sidecar.and_then(|sidecar| match &*sidecar.published.borrow() {
                    Published::Config(latest) => Some(latest.version),
                    Published::Ended(_) => None,
                }),
                confirmed: sidecar.and_then(|sidecar| sidecar.confirmed),
                certificate_expiry: sidecar.map(|sidecar| seconds(sidecar.certificate_expiry)),
                disconnected_for: sidecar
                    .and_then(|sidecar| sidecar.disconnected)
                    .map(|since| now.duration_since(since).unwrap_or_default().as_secs()),
                error: sidecar.and_then(|sidecar| sidecar.error.clone()),
            }
        };
        state.model.workload_names().map(row).collect()
    }

    /// What changes who may do what. Pods and addresses come and go by themselves on Kubernetes, and are left out there.
    fn write_down(&self, event: &Event, endpoints: Endpoints) {
        let by_themselves = |kind| {
            use Kind::{EndpointSlice, Node, Pod, Service, ServiceAccount, Workload};
            matches!(kind, Service | Workload | EndpointSlice | ServiceAccount | Pod | Node)
        };
        let key = event.key().filter(|key| endpoints == Endpoints::Selectors || !by_themselves(key.kind));
        let resource = key.map(|key| key.to_string());
        match (event, resource.as_deref()) {
            (Event::Removed(_), Some(resource)) => drop(self.audit.record(&Entry::ResourceRemoved { resource })),
            (_, Some(resource)) => drop(self.audit.record(&Entry::ResourceApplied { resource })),
            (Event::DeniedIdentities(ids), None) => {
                let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                self.audit.record(&Entry::IdentitiesDenied { ids: &ids });
            }
            (_, None) => {}
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No state is left half changed where a panic could happen; going on is better than stopping for everybody.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn permits(&self, workload: &NamespacedName, id: &SpiffeId) -> Result<(), Refused> {
        if self.model.is_denied(id) {
            return Err(Refused::Denied);
        }
        match self.model.identity(workload) {
            None => Err(Refused::NotFound(workload.clone())),
            Some(identity) if identity != *id => Err(Refused::Forbidden(workload.clone())),
            Some(_) => Ok(()),
        }
    }

    /// Compiles for everybody who listens, and wakes those for whom something differs.
    fn publish(&mut self) {
        if !self.complete {
            return;
        }
        let changed = self.model.take_changed();
        for namespace in &changed {
            self.note_idle_policies(namespace);
        }
        let shared = compile::shared(&self.model, &self.shared, &changed);
        let same_for_all = shared.is(&self.shared);
        self.shared = shared;
        // A cluster has the status of each route for that.
        if self.model.endpoints() == Endpoints::Selectors {
            self.note_routes();
        }
        self.version += 1;
        self.sidecars.retain(|name, sidecar| sidecar.open > 0 || self.model.identity(name).is_some());
        for (name, sidecar) in self.sidecars.iter().filter(|(_, sidecar)| sidecar.open > 0) {
            if same_for_all && self.is_current(name, sidecar) {
                continue;
            }
            let latest = word(&self.model, &self.shared, name, self.version);
            sidecar.published.send_if_modified(|published| {
                let differs = match (&*published, &latest) {
                    (Published::Config(old), Published::Config(new)) => old.config != new.config,
                    (Published::Ended(old), Published::Ended(new)) => old != new,
                    _ => true,
                };
                if differs {
                    *published = latest;
                }
                differs
            });
        }
    }

    /// Logs each policy once that begins to apply to nothing.
    fn note_idle_policies(&mut self, namespace: &str) {
        let idle = compile::idle_policies(&self.model, namespace);
        let known = self.idle_policies.remove(namespace).unwrap_or_default();
        for policy in idle.iter().filter(|policy| !known.contains(policy)) {
            tracing::warn!(policy, "this policy applies to no workload; are its targetRefs or its selector misspelt?");
        }
        if !idle.is_empty() {
            self.idle_policies.insert(namespace.to_owned(), idle);
        }
    }

    /// Whether all that is special to a workload is as it was: most changes concern few.
    fn is_current(&self, workload: &NamespacedName, sidecar: &Sidecar) -> bool {
        let Published::Config(told) = &*sidecar.published.borrow() else { return false };
        self.permits(workload, &told.identity).is_ok()
            && compile::is_reachable(&self.model, &self.shared, workload, &told.config.services)
            && compile::inbound(&self.model, &self.shared, workload).as_ref() == Some(&told.config.inbound)
    }

    /// What a new stream of `workload` is told first: what the others of that workload have, or it compiled afresh.
    fn latest(&mut self, workload: &NamespacedName) -> Result<Published, Refused> {
        if let Some(sidecar) = self.sidecars.get(workload).filter(|sidecar| sidecar.open > 0)
            && let config @ Published::Config(_) = &*sidecar.published.borrow()
        {
            return Ok(config.clone());
        }
        // A version of its own: the sidecar may hold something else under the present one.
        self.version += 1;
        match word(&self.model, &self.shared, workload, self.version) {
            Published::Ended(refused) => Err(refused),
            config => Ok(config),
        }
    }
}

fn count(number: usize) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

fn word(model: &Model, shared: &Shared, workload: &NamespacedName, version: u64) -> Published {
    let not_found = || Published::Ended(Refused::NotFound(workload.clone()));
    let Some(identity) = model.identity(workload) else { return not_found() };
    if model.is_denied(&identity) {
        return Published::Ended(Refused::Denied);
    }
    match compile::workload(model, shared, workload) {
        Some(config) => Published::Config(Arc::new(Versioned { version, identity, config })),
        None => not_found(),
    }
}
