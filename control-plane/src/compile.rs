//! From the mesh to what one workload is told. Pure: the same model gives the same configuration, in the same order.
//!
//! What is the same for many workloads (services with their endpoints, who is meshed) is compiled once, by namespace, and
//! shared; what changed in one namespace leaves the values of the others untouched, so that comparing them costs nothing.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_api::policy::{AppliedPolicy, PolicySet};
use weft_api::resource::{
    NamespacedName, RateLimit, Service, ServicePort, SliceEndpoint, Subject, TargetPort, Workload,
};
use weft_api::routing::Route;
use weft_api::wire::{MAX_ADDRESSES, MAX_ENDPOINTS, MAX_POLICIES, MAX_PORTS};
use weft_api::workload::{self, Endpoint, Inbound, MeshedWorkload, ProtocolHint, WorkloadConfig};
use weft_certs::SpiffeId;

use crate::model::{Endpoints, Model};

pub mod routes;
mod zones;

/// What is the same for every workload.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    services: Arc<BTreeMap<NamespacedName, Arc<workload::Service>>>,
    meshed_workloads: Arc<BTreeMap<NamespacedName, Arc<MeshedWorkload>>>,
    denied_identities: Arc<Vec<SpiffeId>>,
    /// The services as workloads of those namespaces see them that route to other namespaces by rules of their own.
    overlays: BTreeMap<String, Arc<BTreeMap<NamespacedName, Arc<workload::Service>>>>,
    resolved: routes::Known,
    /// Of the services that prefer endpoints of the caller's zone.
    hints: Arc<BTreeMap<NamespacedName, Arc<zones::Hints>>>,
    /// The services as callers of each zone see them; empty where none prefers any.
    zoned: zones::ByZone,
}

impl Shared {
    /// Whether both hold the very same values.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.services, &other.services)
            && Arc::ptr_eq(&self.meshed_workloads, &other.meshed_workloads)
            && Arc::ptr_eq(&self.denied_identities, &other.denied_identities)
            && self.overlays.len() == other.overlays.len()
            && self
                .overlays
                .iter()
                .zip(&other.overlays)
                .all(|((a, ours), (b, theirs))| a == b && Arc::ptr_eq(ours, theirs))
            && self.zoned.len() == other.zoned.len()
            && self
                .zoned
                .iter()
                .zip(&other.zoned)
                .all(|((a, ours), (b, theirs))| a == b && Arc::ptr_eq(&ours.services, &theirs.services))
    }
}

/// Compiles what is shared, anew for the `changed` namespaces; what is as it was stays the very same value.
pub fn shared(model: &Model, previous: &Shared, changed: &BTreeSet<String>) -> Shared {
    let mut resolved = previous.resolved.clone();
    let (mut services, mut hints) = (Vec::new(), Vec::new());
    for namespace in changed {
        let workloads = ByLabel::new(model.workloads(namespace));
        for service in model.services(namespace) {
            let routes = routes::producer_routes(model, &mut resolved, service);
            let behind = workloads.behind(service);
            hints.extend(zones::Hints::of(model, service, &behind).map(|hints| (service.name.clone(), hints)));
            services.push((service.name.clone(), compile_service(model, service, &behind, routes)));
        }
    }
    let services = renewed(&previous.services, changed, services.into_iter());
    let overlays = routes::overlays(model, &mut resolved, &services, &previous.overlays, |namespace| {
        Arc::ptr_eq(&services, &previous.services) && !changed.contains(namespace)
    });
    resolved.forget(model);
    let hints = renewed(&previous.hints, changed, hints.into_iter());
    let hints_same = Arc::ptr_eq(&hints, &previous.hints);
    let zoned = zones::by_zone(model, &services, &overlays, &hints, hints_same, &previous.zoned);
    let meshed = changed.iter().flat_map(|namespace| {
        let services = BySelector::new(model.services(namespace));
        model.workloads(namespace).filter_map(move |workload| meshed_workload(model, &services, workload))
    });
    let denied = model.denied().cloned().collect();
    Shared {
        services,
        meshed_workloads: renewed(
            &previous.meshed_workloads,
            changed,
            meshed.map(|meshed| (meshed.name.clone(), meshed)),
        ),
        denied_identities: unless_same(&previous.denied_identities, denied),
        overlays,
        resolved,
        hints,
        zoned,
    }
}

/// What is shared, as far as it bears on what a workload enforces for itself: enough for [`inbound`].
pub fn denied(model: &Model) -> Shared {
    Shared { denied_identities: Arc::new(model.denied().cloned().collect()), ..Shared::default() }
}

/// `previous` with what it holds of the `changed` namespaces replaced by `anew`.
fn renewed<T: PartialEq>(
    previous: &Arc<BTreeMap<NamespacedName, Arc<T>>>,
    changed: &BTreeSet<String>,
    anew: impl Iterator<Item = (NamespacedName, T)>,
) -> Arc<BTreeMap<NamespacedName, Arc<T>>> {
    let anew: BTreeMap<NamespacedName, T> = anew.collect();
    let of_changed = |name: &NamespacedName| changed.contains(&name.namespace);
    let before = previous.iter().filter(|(name, _)| of_changed(name));
    if before.map(|(name, value)| (name, &**value)).eq(&anew) {
        return Arc::clone(previous);
    }
    let mut all: BTreeMap<_, _> = previous
        .iter()
        .filter(|(name, _)| !of_changed(name))
        .map(|(name, value)| (name.clone(), Arc::clone(value)))
        .collect();
    all.extend(anew.into_iter().map(|(name, value)| {
        let unchanged = previous.get(&name).filter(|old| ***old == value).map(Arc::clone);
        (name, unchanged.unwrap_or_else(|| Arc::new(value)))
    }));
    Arc::new(all)
}

/// All that the workload called `name` is told. `None`: there is no such workload.
pub fn workload(model: &Model, shared: &Shared, name: &NamespacedName) -> Option<WorkloadConfig> {
    let workload = model.workload(name)?;
    Some(WorkloadConfig {
        inbound: inbound(model, shared, name)?,
        services: reachable(model, shared, workload),
        meshed_workloads: Arc::clone(&shared.meshed_workloads),
        denied_identities: Arc::clone(&shared.denied_identities),
    })
}

/// Whether `services` are those that the workload called `name` is told of now.
pub fn is_reachable(
    model: &Model,
    shared: &Shared,
    name: &NamespacedName,
    services: &Arc<BTreeMap<NamespacedName, Arc<workload::Service>>>,
) -> bool {
    model.workload(name).is_some_and(|workload| Arc::ptr_eq(&reachable(model, shared, workload), services))
}

/// The services that `workload` is told of: all, with the routes that hold for its namespace and the endpoints that are for
/// its zone. This is the place to narrow them to those that it may call or has called.
fn reachable(
    model: &Model,
    shared: &Shared,
    workload: &Workload,
) -> Arc<BTreeMap<NamespacedName, Arc<workload::Service>>> {
    let namespace = &workload.name.namespace;
    let overlay = shared.overlays.get_key_value(namespace);
    let zoned = match model.zone_of(workload) {
        Some(zone) if !shared.zoned.is_empty() => {
            shared.zoned.get(&(zone.to_owned(), overlay.map(|(namespace, _)| namespace.clone())))
        }
        _ => None,
    };
    match (zoned, overlay) {
        (Some(zoned), _) => Arc::clone(&zoned.services),
        (None, Some((_, overlay))) => Arc::clone(overlay),
        (None, None) => Arc::clone(&shared.services),
    }
}

/// What the sidecar of the workload called `name` enforces for it. `None`: there is no such workload.
pub fn inbound(model: &Model, shared: &Shared, name: &NamespacedName) -> Option<Inbound> {
    let workload = model.workload(name)?;
    let namespace = &workload.name.namespace;
    let services: Vec<NamespacedName> = model.services_of(workload).map(|service| service.name.clone()).collect();
    let subject = Subject { namespace, labels: &workload.labels, services: &services };
    Some(Inbound {
        namespace: namespace.clone(),
        workload: workload.name.name.clone(),
        service_account: workload.service_account.clone(),
        policy: Arc::new(policy_set(model, shared, subject)),
        rate_limits: Arc::new(rate_limits(model, subject)),
        ports: port_hints(model.services_of(workload), workload),
        services,
    })
}

/// The policies of `namespace` that apply to no workload, as `AuthorizationPolicy shop/callers`: a misspelt target guards
/// nothing, and nothing else shows it.
pub fn idle_policies(model: &Model, namespace: &str) -> Vec<String> {
    let services = BySelector::new(model.services(namespace));
    let workloads: Vec<(&Workload, Vec<NamespacedName>)> = model
        .workloads(namespace)
        .map(|workload| (workload, services.before(workload).map(|service| service.name.clone()).collect()))
        .collect();
    let idle = |applies: &dyn Fn(Subject<'_>) -> bool| {
        !workloads.iter().any(|(workload, services)| applies(Subject { namespace, labels: &workload.labels, services }))
    };
    let authorization = model
        .authorization_policies(namespace)
        .filter(|policy| idle(&|subject| policy.applies_to(subject)))
        .map(|policy| format!("AuthorizationPolicy {}", policy.name));
    let rate_limit = model
        .rate_limit_policies(namespace)
        .filter(|policy| idle(&|subject| policy.applies_to(subject)))
        .map(|policy| format!("RateLimitPolicy {}", policy.name));
    authorization.chain(rate_limit).collect()
}

fn meshed_workload(model: &Model, services: &BySelector<'_>, workload: &Workload) -> Option<MeshedWorkload> {
    if !workload.mesh || workload.addresses.is_empty() {
        return None;
    }
    Some(MeshedWorkload {
        name: workload.name.clone(),
        addresses: workload.addresses.iter().copied().take(MAX_ADDRESSES).collect(),
        identity: model.identity_of(workload)?,
        ports: port_hints(services.before(workload), workload),
    })
}

/// What is known of a workload's ports: what it declares itself, else what the services before it agree on.
fn port_hints<'a>(services: impl Iterator<Item = &'a Service>, workload: &Workload) -> BTreeMap<u16, ProtocolHint> {
    let mut hints: BTreeMap<u16, ProtocolHint> = BTreeMap::new();
    for port in services.flat_map(|service| &service.ports) {
        let Some(target) = target_port(port, workload).filter(|_| port.protocol != ProtocolHint::Detect) else {
            continue;
        };
        // Services that disagree decide nothing: the sidecar looks.
        let hint = hints.entry(target).or_insert(port.protocol);
        if *hint != port.protocol {
            *hint = ProtocolHint::Detect;
        }
    }
    hints.extend(declared_ports(workload));
    hints.retain(|_, hint| *hint != ProtocolHint::Detect);
    hints.into_iter().take(MAX_PORTS).collect()
}

fn declared_ports(workload: &Workload) -> impl Iterator<Item = (u16, ProtocolHint)> {
    let declared = workload.ports.iter().filter(|port| port.protocol != ProtocolHint::Detect);
    declared.map(|port| (port.port, port.protocol))
}

fn compile_service(
    model: &Model,
    service: &Service,
    behind: &[&Workload],
    routes: Vec<Vec<Arc<Route>>>,
) -> workload::Service {
    let endpoints_of = |port: &ServicePort| match model.endpoints() {
        Endpoints::Slices => endpoints_of_slices(model, service, port),
        Endpoints::Selectors => behind
            .iter()
            .filter(|workload| !model.is_withdrawn(&workload.name))
            .flat_map(|workload| endpoints(model, port, workload))
            .collect(),
    };
    // Beyond what sidecars accept, one object would keep all of them from being told anything.
    let ports = &service.ports[..service.ports.len().min(MAX_PORTS)];
    let most = MAX_ENDPOINTS / ports.len().max(1);
    let ports = ports.iter().zip(routes).map(|(port, routes)| workload::ServicePort {
        port: port.port,
        protocol: service_protocol(port, behind),
        endpoints: endpoints_of(port).into_iter().take(most).collect(),
        routes,
    });
    let addresses = service.addresses.iter().copied().take(MAX_ADDRESSES);
    workload::Service {
        name: service.name.clone(),
        addresses: addresses.collect(),
        ports: ports.collect(),
        traffic: service.traffic,
    }
}

/// What a service's port speaks: what it declares, else what the workloads behind it all declare.
fn service_protocol(port: &ServicePort, behind: &[&Workload]) -> ProtocolHint {
    if port.protocol != ProtocolHint::Detect {
        return port.protocol;
    }
    let mut declared = behind.iter().map(|workload| {
        let target = target_port(port, workload);
        declared_ports(workload)
            .find(|(number, _)| Some(*number) == target)
            .map_or(ProtocolHint::Detect, |(_, hint)| hint)
    });
    let first = declared.next().unwrap_or_default();
    if declared.all(|other| other == first) { first } else { ProtocolHint::Detect }
}

fn endpoints(model: &Model, port: &ServicePort, workload: &Workload) -> Vec<Endpoint> {
    let Some(target) = target_port(port, workload) else { return Vec::new() };
    let identity = if workload.mesh {
        // Without a valid identity it cannot be reached by mTLS, and must not be reached otherwise.
        let Some(identity) = model.identity_of(workload) else { return Vec::new() };
        Some(identity)
    } else {
        None
    };
    let endpoint = |address: &std::net::IpAddr| Endpoint {
        address: SocketAddr::new(*address, target),
        workload: workload.name.name.clone(),
        identity: identity.clone(),
    };
    workload.addresses.iter().map(endpoint).collect()
}

/// The addresses that are ready; while none is, those that still serve, as kube-proxy has it.
fn endpoints_of_slices(model: &Model, service: &Service, port: &ServicePort) -> Vec<Endpoint> {
    let name = port.name.as_deref().unwrap_or_default();
    let all = model.slices(&service.name).flat_map(|slice| {
        let port = slice.ports.iter().find(|port| port.name == name).map(|port| port.port);
        port.into_iter().flat_map(move |port| slice.endpoints.iter().map(move |endpoint| (port, endpoint)))
    });
    let all: Vec<(u16, &SliceEndpoint)> = all.collect();
    let of = |wanted: fn(&SliceEndpoint) -> bool| -> Vec<Endpoint> {
        let wanted = all.iter().filter(|(_, endpoint)| wanted(endpoint));
        let mut found: Vec<Endpoint> = wanted
            .filter_map(|(port, endpoint)| endpoint_of_slice(model, &service.name.namespace, *port, endpoint))
            .collect();
        // Slices may repeat an address while the API server moves it from one to another.
        found.sort_by_key(|endpoint| endpoint.address);
        found.dedup();
        found
    };
    let ready = of(|endpoint| endpoint.ready);
    if ready.is_empty() { of(|endpoint| endpoint.serving) } else { ready }
}

/// Who is known to have an address counts for more than what a slice says of it: else whoever may write slices could have
/// callers send in the clear to a pod of the mesh, or expect another's identity there.
fn endpoint_of_slice(model: &Model, namespace: &str, port: u16, endpoint: &SliceEndpoint) -> Option<Endpoint> {
    let named = match &endpoint.pod {
        // A pod that is not known yet may be in the mesh: it is not called before that is known.
        Some(pod) => Some(model.workload(&NamespacedName::new(namespace, pod.as_str()))?),
        None => None,
    };
    let proven = named.filter(|pod| pod.mesh && pod.addresses.contains(&endpoint.address));
    let owner = proven.or_else(|| model.meshed_at(endpoint.address)).or(named);
    let Some(owner) = owner else {
        let workload = endpoint.address.to_string();
        return Some(Endpoint { address: SocketAddr::new(endpoint.address, port), workload, identity: None });
    };
    if named.into_iter().chain([owner]).any(|workload| model.is_withdrawn(&workload.name)) {
        return None;
    }
    let identity = if owner.mesh { Some(model.identity_of(owner)?) } else { None };
    let address = SocketAddr::new(endpoint.address, port);
    Some(Endpoint { address, workload: owner.name.name.clone(), identity })
}

fn target_port(port: &ServicePort, workload: &Workload) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            workload.ports.iter().find(|port| port.name.as_ref() == Some(name)).map(|port| port.port)
        }
    }
}

fn policy_set(model: &Model, shared: &Shared, subject: Subject<'_>) -> PolicySet {
    let denied = Arc::clone(&shared.denied_identities);
    let mut applied: Vec<AppliedPolicy> = model.applied_policies(subject).collect();
    if applied.len() > MAX_POLICIES {
        // None may be left out: it could be the one that refuses.
        let why = format!(
            "{} policies apply here, where sidecars take {MAX_POLICIES}; put their rules together",
            applied.len()
        );
        applied = vec![AppliedPolicy::Unreadable { name: NamespacedName::new(subject.namespace, "too-many"), why }];
    }
    PolicySet::compile(model.default_policy(subject.namespace), denied, applied)
}

fn rate_limits(model: &Model, subject: Subject<'_>) -> Vec<RateLimit> {
    let applied = model.rate_limit_policies(subject.namespace).filter(|policy| policy.applies_to(subject));
    applied.flat_map(|policy| policy.rate_limits()).collect()
}

/// The workloads of one namespace by each of their labels: a service asks only those that have one of its own.
struct ByLabel<'a>(HashMap<(&'a str, &'a str), Vec<&'a Workload>>);

impl<'a> ByLabel<'a> {
    fn new(workloads: impl Iterator<Item = &'a Workload>) -> Self {
        let mut by_label: HashMap<(&str, &str), Vec<&Workload>> = HashMap::new();
        for workload in workloads {
            for (key, value) in &workload.labels {
                by_label.entry((key, value)).or_default().push(workload);
            }
        }
        Self(by_label)
    }

    /// The workloads behind `service`, by name.
    fn behind(&self, service: &Service) -> Vec<&'a Workload> {
        let candidates = service
            .selector
            .iter()
            .map(|(key, value)| self.0.get(&(key.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice));
        let Some(fewest) = candidates.min_by_key(|candidates| candidates.len()) else { return Vec::new() };
        let selected = |workload: &&&Workload| service.selects(&workload.name.namespace, &workload.labels);
        fewest.iter().filter(selected).copied().collect()
    }
}

/// The services of one namespace by one label of their selectors: a workload asks only those that may select it.
struct BySelector<'a>(HashMap<(&'a str, &'a str), Vec<&'a Service>>);

impl<'a> BySelector<'a> {
    fn new(services: impl Iterator<Item = &'a Service>) -> Self {
        let mut by_label: HashMap<(&str, &str), Vec<&Service>> = HashMap::new();
        for service in services {
            if let Some((key, value)) = service.selector.first_key_value() {
                by_label.entry((key, value)).or_default().push(service);
            }
        }
        Self(by_label)
    }

    /// The services before `workload`, by name.
    fn before(&self, workload: &Workload) -> impl Iterator<Item = &'a Service> {
        let labels = workload.labels.iter();
        let candidates =
            labels.flat_map(|(key, value)| self.0.get(&(key.as_str(), value.as_str())).into_iter().flatten());
        let selected =
            candidates.copied().filter(|service| service.selects(&workload.name.namespace, &workload.labels));
        let mut services: Vec<&Service> = selected.collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        services.into_iter()
    }
}

fn unless_same<T: PartialEq>(old: &Arc<Vec<T>>, new: Vec<T>) -> Arc<Vec<T>> {
    if **old == new { Arc::clone(old) } else { Arc::new(new) }
}
