//! Which routes hold at which port of a Service, and where they lead. Pure.
//!
//! Routes of a Service's own namespace (producer routes) hold for all callers. Where a caller's namespace has routes of its
//! own to a Service of another (consumer routes), they hold for callers there, instead of the producer's. At a port with a
//! GRPCRoute no HTTPRoute holds (GEP-1294). What exceeds the bounds is left out, so that what was there before stays.
use std::collections::BTreeMap;
use std::sync::Arc;

use weft_api::resource::{NamespacedName, ParentRef, Route, Service, ServicePort};
use weft_api::routing::{self, Backend, Filter, RouteKind};
use weft_api::wire::{MAX_PORTS, MAX_ROUTES};
use weft_api::workload::{self, ProtocolHint};

use crate::model::{Model, RouteKey};

mod state;

pub use state::{Attached, ParentState, RouteState, states};

type Services = Arc<BTreeMap<NamespacedName, Arc<workload::Service>>>;

/// Bytes of all routes of a Service, over all of its ports: an update of a sidecar holds several of it.
const MAX_BYTES: usize = 1 << 20;

/// Why requests cannot be sent to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is no Service.
    InvalidKind,
    /// Nobody granted the reference.
    NotPermitted,
    /// There is no such Service.
    NoService,
    /// It has no such port.
    NoPort,
}

impl Fault {
    fn of(model: &Model, route: &Route, parent: &str, backend: &Backend) -> Option<Self> {
        if backend.refused.is_some() {
            return Some(Self::InvalidKind);
        }
        let (home, service) = (&route.name.namespace, &backend.service);
        // A route cannot lead callers into a namespace that neither they named nor its author is at home in: that may be
        // one where they are trusted. Whether such a Service exists is nobody's business either.
        let is_granted = || model.routes().are_granted(route.kind, home, service);
        if service.namespace != *home && service.namespace != parent && !is_granted() {
            return Some(Self::NotPermitted);
        }
        match model.service(service) {
            None => Some(Self::NoService),
            Some(found) if !found.ports.iter().any(|port| port.port == backend.port) => Some(Self::NoPort),
            Some(_) => None,
        }
    }

    /// What is wrong with `backend`, which a route of `kind` in `home` names, and the remedy.
    pub(super) fn words(self, kind: RouteKind, home: &str, backend: &Backend) -> String {
        let Backend { service, port, refused, .. } = backend;
        match self {
            Self::InvalidKind => refused.clone().unwrap_or_default(),
            Self::NotPermitted => format!(
                "no ReferenceGrant in namespace {} lets {}s of namespace {home} send to Service {service}; create one",
                service.namespace,
                kind.as_str()
            ),
            Self::NoService => format!("there is no Service {service}; correct the backendRef, or create it"),
            Self::NoPort => format!("Service {service} has no TCP port {port}; correct the backendRef"),
        }
    }
}

/// A route with its backends looked up.
#[derive(Clone, Debug)]
struct Resolved {
    source: Arc<Route>,
    /// Of each of its backends.
    faults: Vec<Option<Fault>>,
    route: Arc<routing::Route>,
    /// Its size on the wire.
    bytes: usize,
}

/// Resolved routes by name and the namespace of the Service that they are attached to: kept while nothing changes for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<BTreeMap<(RouteKey, String), Resolved>>);

impl Known {
    fn resolve(&mut self, model: &Model, source: &Arc<Route>, parent: &str) -> Resolved {
        let key = ((source.name.clone(), source.kind), parent.to_owned());
        let faults = || source.backends().map(|backend| Fault::of(model, source, parent, backend));
        if let Some(known) = self.0.get(&key)
            && Arc::ptr_eq(&known.source, source)
            && known.faults.iter().copied().eq(faults())
        {
            return known.clone();
        }
        let faults: Vec<Option<Fault>> = faults().collect();
        let route = routing::Route {
            kind: source.kind,
            name: source.name.clone(),
            created: source.created,
            rules: with_faults(source, &faults),
        };
        let bytes = serde_json::to_vec(&route).map_or(usize::MAX, |json| json.len());
        let resolved = Resolved { source: Arc::clone(source), faults, route: Arc::new(route), bytes };
        Arc::make_mut(&mut self.0).insert(key, resolved.clone());
        resolved
    }

    /// Drops what is there no more.
    pub(super) fn forget(&mut self, model: &Model) {
        let lives = |(route, _): &(RouteKey, String)| model.routes().get(route).is_some();
        if !self.0.keys().all(lives) {
            Arc::make_mut(&mut self.0).retain(|key, _| lives(key));
        }
    }
}

/// The rules of `source`, whose backends have these `faults`, in the order of [`Route::backends`].
fn with_faults(source: &Route, faults: &[Option<Fault>]) -> Vec<routing::Rule> {
    let mut rules = source.rules.clone();
    let mut faults = faults.iter();
    let mut note = |backend: &mut Backend| {
        if let Some(Some(fault)) = faults.next() {
            backend.refused = Some(fault.words(source.kind, &source.name.namespace, backend));
        }
    };
    let note_mirrors = |filters: &mut Vec<Filter>, note: &mut dyn FnMut(&mut Backend)| {
        for filter in filters {
            if let Filter::Mirror(mirror) = filter {
                note(&mut mirror.backend);
            }
        }
    };
    for rule in &mut rules {
        for backend in &mut rule.backends {
            note(backend);
            note_mirrors(&mut backend.filters, &mut note);
        }
        note_mirrors(&mut rule.filters, &mut note);
    }
    rules
}

/// The routes of one namespace at the ports of one Service.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    /// By port, in the Service's order.
    ports: Vec<Vec<Arc<routing::Route>>>,
}

/// Why a route does not hold at a port that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// The port is declared to be no HTTP.
    Opaque,
    /// A GRPCRoute holds there.
    Conflict,
}

/// Puts the routes of `namespace` to the ports of `service`.
pub(super) fn attach(model: &Model, known: &mut Known, service: &Service, namespace: &str) -> Attachment {
    let ports = &service.ports[..service.ports.len().min(MAX_PORTS)];
    let mut attachment = Attachment { ports: vec![Vec::new(); ports.len()] };
    // Calls to a Service without an address go to its pods straight: nothing tells that they are meant for it.
    if service.addresses.is_empty() {
        return attachment;
    }
    let mut routes: Vec<&Arc<Route>> = model.routes().attached_to(&service.name, namespace).collect();
    routes.sort_by_key(|route| (route.kind != RouteKind::Grpc, route.created, &route.name));
    let mut bytes = 0;
    for route in routes {
        let free = |(place, port): &(usize, &ServicePort)| {
            names(route, service, port) && obstacle(route, port, &attachment.ports[*place]).is_none()
        };
        let places: Vec<usize> = ports.iter().enumerate().filter(free).map(|(place, _)| place).collect();
        if places.is_empty() {
            continue;
        }
        let resolved = known.resolve(model, route, &service.name.namespace);
        let more = resolved.bytes.saturating_mul(places.len());
        if bytes + more > MAX_BYTES || places.iter().any(|place| attachment.ports[*place].len() >= MAX_ROUTES) {
            continue;
        }
        bytes += more;
        for place in places {
            attachment.ports[place].push(Arc::clone(&resolved.route));
        }
    }
    attachment
}

/// Whether one of the route's parents is that port.
fn names(route: &Route, service: &Service, port: &ServicePort) -> bool {
    let is_meant = |parent: &ParentRef| {
        parent.service(&route.name.namespace).as_ref() == Some(&service.name) && names_port(parent, port)
    };
    route.parents.iter().any(is_meant)
}

fn names_port(parent: &ParentRef, port: &ServicePort) -> bool {
    parent.port.is_none_or(|number| number == port.port)
        && parent.section_name.as_ref().is_none_or(|name| port.name.as_ref() == Some(name))
}

/// What keeps `route` from a port where the routes `there` hold.
fn obstacle(route: &Route, port: &ServicePort, there: &[Arc<routing::Route>]) -> Option<Obstacle> {
    if port.protocol == ProtocolHint::Opaque {
        return Some(Obstacle::Opaque);
    }
    let conflicts = route.kind == RouteKind::Http && there.iter().any(|other| other.kind == RouteKind::Grpc);
    conflicts.then_some(Obstacle::Conflict)
}

/// The producer routes at each port of `service`.
pub(super) fn producer_routes(model: &Model, known: &mut Known, service: &Service) -> Vec<Vec<Arc<routing::Route>>> {
    attach(model, known, service, &service.name.namespace).ports
}

/// `services` as workloads of those namespaces are told of them that have consumer routes: `previous`, where it holds.
pub(super) fn overlays(
    model: &Model,
    known: &mut Known,
    services: &Services,
    previous: &BTreeMap<String, Services>,
    is_current: impl Fn(&str) -> bool,
) -> BTreeMap<String, Services> {
    let mut overlays = BTreeMap::new();
    for namespace in model.routes().consumer_namespaces() {
        let before = previous.get(namespace);
        let overlay = match before.filter(|_| is_current(namespace)) {
            Some(before) => Some(Arc::clone(before)),
            None => overlay(model, known, services, before, namespace),
        };
        overlays.extend(overlay.map(|overlay| (namespace.to_owned(), overlay)));
    }
    overlays
}

/// `None`: no consumer route of `namespace` holds anywhere.
fn overlay(
    model: &Model,
    known: &mut Known,
    services: &Services,
    before: Option<&Services>,
    namespace: &str,
) -> Option<Services> {
    let mut own = BTreeMap::new();
    for name in model.routes().consumed(namespace) {
        let (Some(service), Some(shared)) = (model.service(name), services.get(name)) else { continue };
        let routes = attach(model, known, service, namespace).ports;
        if routes.iter().all(Vec::is_empty) {
            continue;
        }
        let mut seen = (**shared).clone();
        for (port, routes) in seen.ports.iter_mut().zip(routes).filter(|(_, routes)| !routes.is_empty()) {
            port.routes = routes;
        }
        let unchanged = before.and_then(|before| before.get(name)).filter(|before| ***before == seen);
        own.insert(name.clone(), unchanged.map_or_else(|| Arc::new(seen), Arc::clone));
    }
    if own.is_empty() {
        return None;
    }
    let mut all = (**services).clone();
    all.extend(own);
    let is_same = |before: &Services| {
        before.len() == all.len()
            && before.iter().zip(&all).all(|((a, before), (b, now))| a == b && Arc::ptr_eq(before, now))
    };
    match before {
        Some(before) if is_same(before) => Some(Arc::clone(before)),
        _ => Some(Arc::new(all)),
    }
}

#[cfg(test)]
mod tests;
