//! How each route fares: what its status is made of. Pure.
use std::collections::BTreeMap;
use std::sync::Arc;

use weft_api::resource::{NamespacedName, ParentRef, Route, Service};

use super::super::Shared;
use super::{Attachment, Fault, Obstacle, attach, names_port, obstacle};
use crate::model::{Model, RouteKey};

/// How a route fares at the Services that it is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteState {
    /// What was judged.
    pub route: Arc<Route>,
    /// By parent, those left out that are no Services.
    pub parents: Vec<ParentState>,
    /// Rules that cannot be done, such as `rule 2: the filter CORS is not supported; take it out`.
    pub refused_rules: Vec<String>,
}

/// How a route fares at one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentState {
    /// The parent, as it is written.
    pub parent: ParentRef,
    /// Whether it holds there.
    pub attached: Attached,
    /// Backends that cannot be sent to: the condition's reason, and what is wrong.
    pub faults: Vec<(&'static str, String)>,
}

/// Whether a route holds at a Service's port or ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// At one port at least.
    Yes,
    /// There is no such Service.
    NoService,
    /// The Service has no address of its own.
    NoAddress,
    /// It has no such TCP port.
    NoPort,
    /// The port is declared to be no HTTP.
    Opaque,
    /// GRPCRoutes hold there, and so no HTTPRoute.
    Conflict,
    /// The Service has too many routes, or they are too large.
    TooMany,
}

/// How every route fares.
pub fn states(model: &Model, shared: &Shared) -> BTreeMap<RouteKey, RouteState> {
    let mut known = shared.resolved.clone();
    // All routes of one namespace to one Service are put to its ports together.
    let mut attachments: BTreeMap<(NamespacedName, String), Attachment> = BTreeMap::new();
    let mut states = BTreeMap::new();
    for (key, route) in model.routes().all() {
        let home = &route.name.namespace;
        let mut parents = Vec::new();
        for parent in &route.parents {
            let Some(name) = parent.service(home) else { continue };
            let attached = match model.service(&name) {
                None => Attached::NoService,
                Some(service) => {
                    let place = (name.clone(), home.clone());
                    let attachment =
                        attachments.entry(place).or_insert_with(|| attach(model, &mut known, service, home));
                    attached(key, route, parent, service, attachment)
                }
            };
            let resolved = known.resolve(model, route, &name.namespace);
            let faulty =
                resolved.faults.iter().zip(route.backends()).filter_map(|(fault, backend)| Some(((*fault)?, backend)));
            let faults =
                faulty.map(|(fault, backend)| (fault.reason(), fault.words(route.kind, home, backend))).collect();
            parents.push(ParentState { parent: parent.clone(), attached, faults });
        }
        let refused = route.rules.iter().enumerate().filter_map(|(place, rule)| {
            let name = rule.name.clone().unwrap_or_else(|| (place + 1).to_string());
            Some(format!("rule {name}: {}", rule.refused.as_ref()?))
        });
        let refused_rules = refused.collect();
        states.insert(key.clone(), RouteState { route: Arc::clone(route), parents, refused_rules });
    }
    states
}

fn attached(key: &RouteKey, route: &Route, parent: &ParentRef, service: &Service, attachment: &Attachment) -> Attached {
    if service.addresses.is_empty() {
        return Attached::NoAddress;
    }
    let ports = service.ports.iter().zip(&attachment.ports).filter(|(port, _)| names_port(parent, port));
    let mut worst = Attached::NoPort;
    for (port, routes) in ports {
        if routes.iter().any(|there| (&there.name, there.kind) == (&key.0, key.1)) {
            return Attached::Yes;
        }
        worst = match obstacle(route, port, routes) {
            Some(Obstacle::Conflict) => Attached::Conflict,
            Some(Obstacle::Opaque) if worst == Attached::NoPort => Attached::Opaque,
            Some(Obstacle::Opaque) => worst,
            None => Attached::TooMany,
        };
    }
    worst
}

impl Fault {
    /// The reason that the Gateway API has for it.
    fn reason(self) -> &'static str {
        match self {
            Self::InvalidKind => "InvalidKind",
            Self::NotPermitted => "RefNotPermitted",
            Self::NoService | Self::NoPort => "BackendNotFound",
        }
    }
}
