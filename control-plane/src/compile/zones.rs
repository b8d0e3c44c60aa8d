//! Which endpoints callers of one zone are told of: those that EndpointSlices hint at for it, as kube-proxy has it. Pure.
//!
//! At a port where every ready endpoint has hints and some are for the caller's zone, it is told of those alone; everywhere
//! else, and where the caller's zone is not known, of all. Without Kubernetes the same holds for Services that ask for it by
//! `trafficDistribution` and whose workloads all say in which zone they are.
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_api::resource::{NamespacedName, Service, ServicePort, Workload};
use weft_api::workload;

use super::target_port;
use crate::model::{Endpoints, Model};

type Services = Arc<BTreeMap<NamespacedName, Arc<workload::Service>>>;

/// For which zones the endpoints of a Service are, by port; ports at which it matters to nobody are left out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hints(BTreeMap<u16, BTreeMap<SocketAddr, BTreeSet<String>>>);

/// The services as callers of one zone see them, made of `from`.
#[derive(Clone, Debug)]
pub(super) struct Zoned {
    from: Services,
    pub(super) services: Services,
}

/// By zone, and by the namespace that has routes of its own (none: all others).
pub(super) type ByZone = BTreeMap<(String, Option<String>), Zoned>;

impl Hints {
    /// `None`: nothing is preferred.
    pub(super) fn of(model: &Model, service: &Service, behind: &[&Workload]) -> Option<Self> {
        let of_port = |port: &ServicePort| match model.endpoints() {
            Endpoints::Slices => of_slices(model, service, port),
            Endpoints::Selectors if service.same_zone => of_workloads(model, port, behind),
            Endpoints::Selectors => None,
        };
        let ports: BTreeMap<_, _> = service.ports.iter().filter_map(|port| Some((port.port, of_port(port)?))).collect();
        (!ports.is_empty()).then_some(Self(ports))
    }

    /// `service` as a caller in `zone` sees it. `None`: as everybody does.
    fn narrowed(&self, service: &workload::Service, zone: &str) -> Option<workload::Service> {
        let for_zone = |port: &workload::ServicePort, endpoint: &workload::Endpoint| {
            let zones = self.0.get(&port.port).and_then(|hints| hints.get(&endpoint.address));
            zones.is_some_and(|zones| zones.contains(zone))
        };
        let narrows = |port: &workload::ServicePort| {
            let near = port.endpoints.iter().filter(|endpoint| for_zone(port, endpoint)).count();
            near > 0 && near < port.endpoints.len()
        };
        if !service.ports.iter().any(narrows) {
            return None;
        }
        let mut service = service.clone();
        for port in service.ports.iter_mut().filter(|port| narrows(port)) {
            let all = std::mem::take(&mut port.endpoints);
            port.endpoints = all.into_iter().filter(|endpoint| for_zone(port, endpoint)).collect();
        }
        Some(service)
    }
}

fn of_slices(model: &Model, service: &Service, port: &ServicePort) -> Option<BTreeMap<SocketAddr, BTreeSet<String>>> {
    let name = port.name.as_deref().unwrap_or_default();
    let mut hints: BTreeMap<SocketAddr, BTreeSet<String>> = BTreeMap::new();
    for slice in model.slices(&service.name) {
        let Some(port) = slice.ports.iter().find(|port| port.name == name) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
            // One that is for nobody in particular: the hints are not whole, and nobody is preferred.
            if endpoint.zones.is_empty() {
                return None;
            }
            let address = SocketAddr::new(endpoint.address, port.port);
            hints.entry(address).or_default().extend(endpoint.zones.iter().cloned());
        }
    }
    (!hints.is_empty()).then_some(hints)
}

fn of_workloads(
    model: &Model,
    port: &ServicePort,
    behind: &[&Workload],
) -> Option<BTreeMap<SocketAddr, BTreeSet<String>>> {
    let mut hints: BTreeMap<SocketAddr, BTreeSet<String>> = BTreeMap::new();
    for workload in behind.iter().filter(|workload| !model.is_withdrawn(&workload.name)) {
        let Some(number) = target_port(port, workload) else { continue };
        let zone = model.zone_of(workload)?;
        for address in &workload.addresses {
            hints.entry(SocketAddr::new(*address, number)).or_default().insert(zone.to_owned());
        }
    }
    (!hints.is_empty()).then_some(hints)
}

/// The services as callers of each zone see them; what is as it was stays the very same value.
pub(super) fn by_zone(
    model: &Model,
    services: &Services,
    overlays: &BTreeMap<String, Services>,
    hints: &BTreeMap<NamespacedName, Arc<Hints>>,
    hints_same: bool,
    previous: &ByZone,
) -> ByZone {
    if hints.is_empty() {
        return ByZone::new();
    }
    let bases = || {
        let overlays = overlays.iter().map(|(namespace, services)| (Some(namespace.clone()), services));
        [(None, services)].into_iter().chain(overlays)
    };
    let mut all = ByZone::new();
    for zone in model.zones() {
        for (namespace, from) in bases() {
            let key = (zone.to_owned(), namespace);
            let before = previous.get(&key);
            let zoned = match before {
                Some(before) if hints_same && Arc::ptr_eq(&before.from, from) => before.clone(),
                _ => Zoned { from: Arc::clone(from), services: zoned(from, hints, zone, before) },
            };
            all.insert(key, zoned);
        }
    }
    all
}

fn zoned(
    from: &Services,
    hints: &BTreeMap<NamespacedName, Arc<Hints>>,
    zone: &str,
    before: Option<&Zoned>,
) -> Services {
    let narrowed = hints.iter().filter_map(|(name, hints)| {
        let narrowed = hints.narrowed(from.get(name)?, zone)?;
        let unchanged = before.and_then(|before| before.services.get(name)).filter(|known| ***known == narrowed);
        Some((name.clone(), unchanged.cloned().unwrap_or_else(|| Arc::new(narrowed))))
    });
    let narrowed: Vec<_> = narrowed.collect();
    if narrowed.is_empty() {
        return Arc::clone(from);
    }
    let mut services = BTreeMap::clone(from);
    services.extend(narrowed);
    match before {
        Some(before) if *before.services == services => Arc::clone(&before.services),
        _ => Arc::new(services),
    }
}
