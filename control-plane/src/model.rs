//! The mesh in memory: what the resources say, and which workloads are withdrawn. Pure: no I/O, no clock.
//!
//! [`Model::apply`] is the one way in, whatever the source. The order of events does not matter for the result.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_api::policy::AppliedPolicy;
use weft_api::resource::{
    AuthorizationPolicy, DefaultPolicy, EndpointSlice, Namespace, NamespacedName, RateLimitPolicy, Resource, Service,
    Subject, Workload,
};
use weft_api::routing::RouteKind;
use weft_certs::{SpiffeId, TrustDomain};

use crate::source::{Event, Kind, ResourceKey, ZONE_LABEL};

mod routes;

pub use routes::{RouteKey, Routes};

/// The mesh.
#[derive(Clone, Debug)]
pub struct Model {
    trust_domain: TrustDomain,
    default_policy: DefaultPolicy,
    endpoints: Endpoints,
    namespaces: BTreeMap<String, Namespace>,
    services: BTreeMap<NamespacedName, Service>,
    workloads: BTreeMap<NamespacedName, Workload>,
    authorization_policies: BTreeMap<NamespacedName, Arc<AuthorizationPolicy>>,
    rate_limit_policies: BTreeMap<NamespacedName, RateLimitPolicy>,
    routes: Routes,
    /// Policies that cannot be understood, and why.
    unreadable: BTreeMap<NamespacedName, String>,
    /// By Service, then by name.
    slices: BTreeMap<NamespacedName, BTreeMap<String, EndpointSlice>>,
    service_accounts: BTreeSet<NamespacedName>,
    /// The zone of each node that has one.
    nodes: BTreeMap<String, String>,
    denied: BTreeSet<SpiffeId>,
    withdrawn: BTreeSet<NamespacedName>,
    /// Who has which address; more than one while an address changes hands.
    at: BTreeSet<(IpAddr, NamespacedName)>,
    /// In how many endpoints the slices of a namespace name an address, whoever has it.
    mentions: BTreeMap<(IpAddr, String), usize>,
    changed: BTreeSet<String>,
}

/// What says which addresses serve a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// Its selector: all Workloads with these labels.
    Selectors,
    /// Kubernetes' EndpointSlices, which know who is ready.
    Slices,
}

impl Model {
    /// An empty mesh whose namespaces allow callers with a mesh identity unless they say otherwise.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self::with(trust_domain, DefaultPolicy::default(), Endpoints::Selectors)
    }

    /// An empty mesh. `default_policy` holds in namespaces that name none.
    pub fn with(trust_domain: TrustDomain, default_policy: DefaultPolicy, endpoints: Endpoints) -> Self {
        Self {
            trust_domain,
            default_policy,
            endpoints,
            namespaces: BTreeMap::new(),
            services: BTreeMap::new(),
            workloads: BTreeMap::new(),
            authorization_policies: BTreeMap::new(),
            rate_limit_policies: BTreeMap::new(),
            routes: Routes::default(),
            unreadable: BTreeMap::new(),
            slices: BTreeMap::new(),
            service_accounts: BTreeSet::new(),
            nodes: BTreeMap::new(),
            denied: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            at: BTreeSet::new(),
            mentions: BTreeMap::new(),
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
            Event::Unreadable { key, why } => {
                self.changed.insert(key.name.namespace.clone());
                self.remove(&key);
                self.unreadable.insert(key.name, why);
            }
            Event::EndpointSlice(slice) => {
                self.changed.insert(slice.name.namespace.clone());
                self.remove_slice(&slice.name);
                for endpoint in &slice.endpoints {
                    *self.mentions.entry((endpoint.address, slice.name.namespace.clone())).or_default() += 1;
                }
                let of_service = self.slices.entry(slice.service.clone()).or_default();
                of_service.insert(slice.name.name.clone(), slice);
            }
            // Nobody is told of accounts: nothing changes but what is said of policies that name them.
            Event::ServiceAccount(name) => drop(self.service_accounts.insert(name)),
            Event::Node { name, zone: Some(zone) } => drop(self.nodes.insert(name, zone)),
            Event::Node { name, zone: None } => drop(self.nodes.remove(&name)),
            Event::DeniedIdentities(denied) => self.denied = denied,
        }
    }

    /// A slice may have gone over to another Service.
    fn remove_slice(&mut self, name: &NamespacedName) {
        let in_its_namespace = NamespacedName::new(&*name.namespace, "")..;
        let mut of_services = self.slices.range_mut(in_its_namespace);
        let held = of_services
            .by_ref()
            .take_while(|(service, _)| service.namespace == name.namespace)
            .find_map(|(service, slices)| Some((service.clone(), slices.remove(&name.name)?, slices.is_empty())));
        let Some((service, slice, last)) = held else { return };
        if last {
            self.slices.remove(&service);
        }
        for endpoint in &slice.endpoints {
            let place = (endpoint.address, name.namespace.clone());
            match self.mentions.get_mut(&place) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.mentions.remove(&place)),
            }
        }
    }

    fn insert(&mut self, resource: Resource) {
        match resource {
            Resource::Namespace(namespace) => drop(self.namespaces.insert(namespace.name.clone(), namespace)),
            Resource::Service(service) => {
                self.touch_routes_to(&service.name.namespace);
                self.services.insert(service.name.clone(), service);
            }
            Resource::Workload(workload) => {
                self.remove_workload(&workload.name);
                self.at.extend(workload.addresses.iter().map(|address| (*address, workload.name.clone())));
                self.touch_slices_at(&workload.addresses);
                self.workloads.insert(workload.name.clone(), workload);
            }
            Resource::AuthorizationPolicy(policy) => {
                self.unreadable.remove(&policy.name);
                self.authorization_policies.insert(policy.name.clone(), Arc::new(policy));
            }
            Resource::RateLimitPolicy(policy) => drop(self.rate_limit_policies.insert(policy.name.clone(), policy)),
            Resource::Route(route) => self.routes.put(route),
            Resource::ReferenceGrant(grant) => {
                self.touch_routes_to(&grant.name.namespace);
                self.routes.put_grant(grant);
            }
            Resource::Skipped(_) => {}
        }
    }

    fn remove(&mut self, ResourceKey { kind, name }: &ResourceKey) {
        match kind {
            Kind::Namespace => drop(self.namespaces.remove(&name.name)),
            Kind::Service => {
                self.touch_routes_to(&name.namespace);
                self.services.remove(name);
            }
            Kind::Workload => {
                self.remove_workload(name);
                self.withdrawn.remove(name);
            }
            Kind::AuthorizationPolicy => {
                self.authorization_policies.remove(name);
                self.unreadable.remove(name);
            }
            Kind::EndpointSlice => self.remove_slice(name),
            Kind::ServiceAccount => drop(self.service_accounts.remove(name)),
            Kind::Pod => {}
            Kind::Node => drop(self.nodes.remove(&name.name)),
            Kind::RateLimitPolicy => drop(self.rate_limit_policies.remove(name)),
            Kind::HttpRoute => self.routes.remove(&(name.clone(), RouteKind::Http)),
            Kind::GrpcRoute => self.routes.remove(&(name.clone(), RouteKind::Grpc)),
            Kind::ReferenceGrant => {
                self.touch_routes_to(&name.namespace);
                self.routes.remove_grant(name);
            }
        }
    }

    /// Where routes of other namespaces lead depends on the Services and grants of this one.
    fn touch_routes_to(&mut self, namespace: &str) {
        self.changed.extend(self.routes.referrers(namespace).map(str::to_owned));
    }

    fn remove_workload(&mut self, name: &NamespacedName) {
        let Some(workload) = self.workloads.remove(name) else { return };
        for address in &workload.addresses {
            self.at.remove(&(*address, name.clone()));
        }
        self.touch_slices_at(&workload.addresses);
    }

    /// A slice may name an address of another namespace: what becomes of it depends on who has that address.
    fn touch_slices_at(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            let mentions = self.mentions.range((*address, String::new())..).map(|(place, _)| place);
            let here = mentions.take_while(|(named, _)| named == address).map(|(_, namespace)| namespace.clone());
            self.changed.extend(here);
        }
    }

    /// Sends nobody to `workload` until it is restored.
    pub fn withdraw(&mut self, workload: &NamespacedName) {
        if let Some(addresses) = self.workloads.get(workload).map(|workload| workload.addresses.clone()) {
            self.withdrawn.insert(workload.clone());
            self.changed.insert(workload.namespace.clone());
            self.touch_slices_at(&addresses);
        }
    }

    /// Undoes [`Model::withdraw`]. True: it was withdrawn.
    pub fn restore(&mut self, workload: &NamespacedName) -> bool {
        let was = self.withdrawn.remove(workload);
        if was {
            self.changed.insert(workload.namespace.clone());
            let addresses = self.workloads.get(workload).map(|workload| workload.addresses.clone());
            self.touch_slices_at(&addresses.unwrap_or_default());
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
            + self.routes.len()
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

    /// The policies that apply to `subject`, those that cannot be understood among them.
    pub fn applied_policies<'a>(&'a self, subject: Subject<'a>) -> impl Iterator<Item = AppliedPolicy> + 'a {
        let readable = self.authorization_policies(subject.namespace).filter(move |policy| policy.applies_to(subject));
        let unreadable = self.unreadable.iter().filter(move |(name, _)| name.namespace == subject.namespace);
        readable
            .map(|policy| AppliedPolicy::Readable(Arc::clone(policy)))
            .chain(unreadable.map(|(name, why)| AppliedPolicy::Unreadable { name: name.clone(), why: why.clone() }))
    }

    /// What says which addresses serve a Service.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints
    }

    /// The slices of `service`.
    pub fn slices(&self, service: &NamespacedName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether there is such a service account; only Kubernetes knows of them.
    pub fn has_service_account(&self, name: &NamespacedName) -> bool {
        self.service_accounts.contains(name)
    }

    /// The zone that `workload` is in: as its labels say, else that of its node.
    pub fn zone_of<'a>(&'a self, workload: &'a Workload) -> Option<&'a str> {
        let of_node = || self.nodes.get(workload.node.as_deref()?);
        workload.labels.get(ZONE_LABEL).or_else(of_node).map(String::as_str)
    }

    /// The zones that workloads are in.
    pub fn zones(&self) -> BTreeSet<&str> {
        self.workloads.values().filter_map(|workload| self.zone_of(workload)).collect()
    }

    /// Who of the mesh is known to have `address`: the first by name, should several claim it.
    pub fn meshed_at(&self, address: IpAddr) -> Option<&Workload> {
        let there = self.at.range((address, NamespacedName::new("", ""))..).take_while(|(other, _)| *other == address);
        there.filter_map(|(_, name)| self.workloads.get(name)).find(|workload| workload.mesh)
    }

    /// The Service of that name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name)
    }

    /// The routes of the Gateway API.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The namespace of that name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// The rate limit policies of `namespace`.
    pub fn rate_limit_policies(&self, namespace: &str) -> impl Iterator<Item = &RateLimitPolicy> {
        in_namespace(&self.rate_limit_policies, namespace)
    }

    /// What happens in `namespace` to calls that no policy speaks of.
    pub fn default_policy(&self, namespace: &str) -> DefaultPolicy {
        let own = self.namespaces.get(namespace).and_then(|namespace| namespace.default_policy);
        own.unwrap_or(self.default_policy)
    }
}

/// What `map` holds of `namespace`, by name.
fn in_namespace<'a, T>(map: &'a BTreeMap<NamespacedName, T>, namespace: &str) -> impl Iterator<Item = &'a T> {
    let first = NamespacedName { namespace: namespace.to_owned(), name: String::new() };
    let namespace = namespace.to_owned();
    map.range(first..).take_while(move |(name, _)| name.namespace == namespace).map(|(_, value)| value)
}
