//! What a policy applies to, and whose sidecar runs what is published here: what is reported in the status of the
//! resources, and told to the other replicas.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use aws_lc_rs::digest;
use tokio::sync::watch;
use weft_api::report::{PolicyName, Report, SidecarReport};
use weft_api::resource::{NamespacedName, Resource, Subject, Target};

use super::{Published, Publisher, Sidecar, State};
use crate::source::{Event, Kind, ResourceKey};

/// What every policy in force applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// All workloads, by name; [`PolicyTarget::workloads`] are places in it.
    pub workloads: Vec<TargetWorkload>,
    /// By policy.
    pub policies: BTreeMap<ResourceKey, PolicyTarget>,
}

/// A workload that policies may apply to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetWorkload {
    /// Its name.
    pub name: NamespacedName,
    /// Whether a sidecar stands before it.
    pub mesh: bool,
}

/// What one policy applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyTarget {
    /// Of its content.
    pub fingerprint: u64,
    /// Services that it names and that do not exist.
    pub missing: Vec<String>,
    /// Places in [`Targets::workloads`].
    pub workloads: Vec<u32>,
}

/// Fingerprints of the policies in force: equal wherever the content is equal.
#[derive(Debug, Default)]
pub(super) struct Fingerprints(BTreeMap<ResourceKey, u64>);

impl Fingerprints {
    /// Keeps up with the model.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Applied(resource) => {
                let content = match resource {
                    Resource::AuthorizationPolicy(policy) => policy.spec_json(),
                    Resource::RateLimitPolicy(policy) => policy.spec_json(),
                    _ => return,
                };
                let Some(key) = ResourceKey::of(resource) else { return };
                self.0.insert(key, fingerprint(content.to_string().as_bytes()));
            }
            Event::Removed(key) => drop(self.0.remove(key)),
            Event::DeniedIdentities(_) => {}
        }
    }

    fn namespaces(&self) -> BTreeSet<&str> {
        self.0.keys().map(|key| key.name.namespace.as_str()).collect()
    }
}

fn fingerprint(content: &[u8]) -> u64 {
    let hash = digest::digest(&digest::SHA256, content);
    let (first, _) = hash.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    u64::from_be_bytes(*first)
}

impl Publisher {
    /// Changes whenever [`Publisher::report`] or [`Publisher::targets`] do.
    pub fn activity(&self) -> watch::Receiver<u64> {
        self.activity.subscribe()
    }

    pub(super) fn note_activity(&self) {
        self.activity.send_modify(|revision| *revision += 1);
    }

    /// What every policy applies to. `None`: the resources were not read whole yet.
    pub fn targets(&self) -> Option<Arc<Targets>> {
        let mut state = self.lock();
        if !state.complete {
            return None;
        }
        let targets = state.targets.take().unwrap_or_else(|| Arc::new(state.targets_anew()));
        state.targets = Some(Arc::clone(&targets));
        Some(targets)
    }

    /// The sidecars that this replica has seen, and the policies that it has in force.
    pub fn report(&self) -> Report {
        let state = self.lock();
        let policies = state.fingerprints.0.iter().map(|(key, fingerprint)| (policy_name(key), *fingerprint));
        Report {
            // Under the lock, so that it is never newer than the rest.
            revision: *self.activity.borrow(),
            sidecars: state.sidecars.iter().map(|(name, sidecar)| (name.clone(), sidecar.report())).collect(),
            policies: if state.complete { policies.collect() } else { BTreeMap::new() },
        }
    }
}

/// What other replicas call the policy `key`.
pub fn policy_name(key: &ResourceKey) -> PolicyName {
    PolicyName { kind: format!("{:?}", key.kind), name: key.name.clone() }
}

impl Sidecar {
    fn report(&self) -> SidecarReport {
        let seconds = |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let version = match &*self.published.borrow() {
            Published::Config(latest) => Some(latest.version),
            Published::Ended(_) => None,
        };
        SidecarReport {
            connected: self.open > 0,
            draining: self.draining,
            current: self.open > 0 && version.is_some() && self.runs == version,
            version,
            confirmed: self.confirmed,
            certificate_expiry: seconds(self.certificate_expiry),
            disconnected_since: self.disconnected.map(seconds),
            error: self.error.clone(),
        }
    }
}

impl State {
    fn targets_anew(&self) -> Targets {
        let workloads: Vec<TargetWorkload> = self
            .model
            .workload_names()
            .filter_map(|name| self.model.workload(name))
            .map(|workload| TargetWorkload { name: workload.name.clone(), mesh: workload.mesh })
            .collect();
        let mut policies = BTreeMap::new();
        for namespace in self.fingerprints.namespaces() {
            self.targets_of(namespace, &workloads, &mut policies);
        }
        Targets { workloads, policies }
    }

    fn targets_of(&self, namespace: &str, all: &[TargetWorkload], policies: &mut BTreeMap<ResourceKey, PolicyTarget>) {
        let first = all.partition_point(|workload| workload.name.namespace.as_str() < namespace);
        let model = &self.model;
        let workloads: Vec<_> = model
            .workloads(namespace)
            .map(|workload| {
                (workload, model.services_of(workload).map(|service| service.name.clone()).collect::<Vec<_>>())
            })
            .collect();
        let services: BTreeSet<&str> = model.services(namespace).map(|service| service.name.name.as_str()).collect();
        let mut put = |kind, name: &NamespacedName, target: &Target| {
            let applies = |(place, (workload, services)): (usize, &(&weft_api::resource::Workload, Vec<_>))| {
                let subject = Subject { namespace, labels: &workload.labels, services };
                target.applies_to(namespace, subject).then(|| u32::try_from(first + place).ok()).flatten()
            };
            let missing = match target {
                Target::Services(names) => {
                    names.iter().filter(|name| !services.contains(name.as_str())).cloned().collect()
                }
                Target::Namespace | Target::Labels(_) => Vec::new(),
            };
            let key = ResourceKey { kind, name: name.clone() };
            let fingerprint = self.fingerprints.0.get(&key).copied().unwrap_or_default();
            let workloads = workloads.iter().enumerate().filter_map(applies).collect();
            policies.insert(key, PolicyTarget { fingerprint, missing, workloads });
        };
        for policy in model.authorization_policies(namespace) {
            put(Kind::AuthorizationPolicy, &policy.name, &policy.target);
        }
        for policy in model.rate_limit_policies(namespace) {
            put(Kind::RateLimitPolicy, &policy.name, &policy.target);
        }
    }
}
