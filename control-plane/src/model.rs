//! The mesh in memory: what the resources say, and which workloads are withdrawn. Pure: no I/O, no clock.
//!
//! [`Model::apply`] is the one way in, whatever the source. The order of events does not matter for the result.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_api::resource::{
    AuthorizationPolicy, DefaultPolicy, Namespace, NamespacedName, RateLimitPolicy, Resource, Service, Workload,
};
use weft_certs::{SpiffeId, TrustDomain};

use crate::source::{Event, Kind, ResourceKey};

/// The mesh.
#[derive(Clone, Debug)]
pub struct Model {
    trust_domain: TrustDomain,
    namespaces: BTreeMap<String, Namespace>,
    services: BTreeMap<NamespacedName, Service>,
    workloads: BTreeMap<NamespacedName, Workload>,
    authorization_policies: BTreeMap<NamespacedName, Arc<AuthorizationPolicy>>,
    rate_limit_policies: BTreeMap<NamespacedName, RateLimitPolicy>,
    denied: BTreeSet<SpiffeId>,
    withdrawn: BTreeSet<NamespacedName>,
    changed: BTreeSet<String>,
}

impl Model {
    /// An empty mesh.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            namespaces: BTreeMap::new(),
            services: BTreeMap::new(),
            workloads: BTreeMap::new(),
            authorization_policies: BTreeMap::new(),
            rate_limit_policies: BTreeMap::new(),
            denied: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Takes in one change.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Applied(resource) => {
                self.changed.extend(resource.name().map(|name| name.namespace));
                self.insert(resource);
            }
            Event::Removed(key) => {
                self.changed.insert(key.name.namespace.clone());
                self.remove(&key);
            }
            Event::DeniedIdentities(denied) => self.denied = denied,
        }
    }

    fn insert(&mut self, resource: Resource) {
        match resource {
            Resource::Namespace(namespace) => drop(self.namespaces.insert(namespace.name.clone(), namespace)),
            Resource::Service(service) => drop(self.services.insert(service.name.clone(), service)),
            Resource::Workload(workload) => drop(self.workloads.insert(workload.name.clone(), workload)),
            Resource::AuthorizationPolicy(policy) => {
                self.authorization_policies.insert(policy.name.clone(), Arc::new(policy));
            }
            Resource::RateLimitPolicy(policy) => drop(self.rate_limit_policies.insert(policy.name.clone(), policy)),
            Resource::Skipped(_) => {}
        }
    }

    fn remove(&mut self, ResourceKey { kind, name }: &ResourceKey) {
        match kind {
            Kind::Namespace => drop(self.namespaces.remove(&name.name)),
            Kind::Service => drop(self.services.remove(name)),
            Kind::Workload => {
                self.workloads.remove(name);
                self.withdrawn.remove(name);
            }
            Kind::AuthorizationPolicy => drop(self.authorization_policies.remove(name)),
            Kind::RateLimitPolicy => drop(self.rate_limit_policies.remove(name)),
        }
    }

    /// Sends nobody to `workload` until it is restored.
    pub fn withdraw(&mut self, workload: &NamespacedName) {
        if self.workloads.contains_key(workload) {
            self.withdrawn.insert(workload.clone());
            self.changed.insert(workload.namespace.clone());
        }
    }

    /// Undoes [`Model::withdraw`]. True: it was withdrawn.
    pub fn restore(&mut self, workload: &NamespacedName) -> bool {
        let was = self.withdrawn.remove(workload);
        if was {
            self.changed.insert(workload.namespace.clone());
        }
        was
    }

    /// The namespaces in which something changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// How many workloads are withdrawn.
    pub fn withdrawn(&self) -> usize {
        self.withdrawn.len()
    }

    /// Whether nobody is to be sent to `workload`.
    pub fn is_withdrawn(&self, workload: &NamespacedName) -> bool {
        self.withdrawn.contains(workload)
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.namespaces.len()
            + self.services.len()
            + self.workloads.len()
            + self.authorization_policies.len()
            + self.rate_limit_policies.len()
    }

    /// Whether there is no resource at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The identity of `workload`: that of its service account. `None`: there is no such workload.
    pub fn identity(&self, workload: &NamespacedName) -> Option<SpiffeId> {
        self.workloads.get(workload).and_then(|workload| self.identity_of(workload))
    }

    /// The identity of `workload`: that of its service account.
    pub fn identity_of(&self, workload: &Workload) -> Option<SpiffeId> {
        SpiffeId::for_service_account(&self.trust_domain, &workload.name.namespace, &workload.service_account).ok()
    }

    /// How many workloads have the identity `id`.
    pub fn replicas(&self, id: &SpiffeId) -> usize {
        let Some((namespace, service_account)) = id.service_account() else { return 0 };
        let of_account = |workload: &&Workload| workload.service_account == service_account;
        in_namespace(&self.workloads, namespace).filter(of_account).count()
    }

    /// Whether `id` is refused everywhere.
    pub fn is_denied(&self, id: &SpiffeId) -> bool {
        self.denied.contains(id)
    }

    /// All identities that are refused everywhere.
    pub fn denied(&self) -> impl Iterator<Item = &SpiffeId> {
        self.denied.iter()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The names of all workloads.
    pub fn workload_names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.workloads.keys()
    }

    /// The workload of that name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Workload> {
        self.workloads.get(name)
    }

    /// The services of `namespace`.
    pub fn services(&self, namespace: &str) -> impl Iterator<Item = &Service> {
        in_namespace(&self.services, namespace)
    }

    /// The services that `workload` stands behind.
    pub fn services_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Service> {
        in_namespace(&self.services, &workload.name.namespace)
            .filter(|service| service.selects(&workload.name.namespace, &workload.labels))
    }

    /// The workloads of `namespace`.
    pub fn workloads(&self, namespace: &str) -> impl Iterator<Item = &Workload> {
        in_namespace(&self.workloads, namespace)
    }

    /// The authorization policies of `namespace`.
    pub fn authorization_policies(&self, namespace: &str) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        in_namespace(&self.authorization_policies, namespace)
    }

    /// The rate limit policies of `namespace`.
    pub fn rate_limit_policies(&self, namespace: &str) -> impl Iterator<Item = &RateLimitPolicy> {
        in_namespace(&self.rate_limit_policies, namespace)
    }

    /// What happens in `namespace` to calls that no policy speaks of.
    pub fn default_policy(&self, namespace: &str) -> DefaultPolicy {
        self.namespaces.get(namespace).and_then(|namespace| namespace.default_policy).unwrap_or_default()
    }
}

/// What `map` holds of `namespace`, by name.
fn in_namespace<'a, T>(map: &'a BTreeMap<NamespacedName, T>, namespace: &str) -> impl Iterator<Item = &'a T> {
    let first = NamespacedName { namespace: namespace.to_owned(), name: String::new() };
    let namespace = namespace.to_owned();
    map.range(first..).take_while(move |(name, _)| name.namespace == namespace).map(|(_, value)| value)
}
