//! How routes fare: what is reported in their status, and logged where there is none.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Publisher, State};
use crate::compile::routes::{Attached, RouteState, states};
use crate::model::RouteKey;

/// How every route fares.
pub type RouteStates = BTreeMap<RouteKey, RouteState>;

impl Publisher {
    /// How every route fares. `None`: the resources were not read whole yet.
    pub fn routes(&self) -> Option<Arc<RouteStates>> {
        let mut state = self.lock();
        if !state.complete {
            return None;
        }
        let routes = state.routes.take().unwrap_or_else(|| Arc::new(states(&state.model, &state.shared)));
        state.routes = Some(Arc::clone(&routes));
        Some(routes)
    }
}

impl State {
    /// Logs each fault of a route once when it comes.
    pub(super) fn note_routes(&mut self) {
        let states = states(&self.model, &self.shared);
        let faults = states.values().flat_map(faults).collect();
        let known = std::mem::replace(&mut self.route_faults, faults);
        for fault in self.route_faults.iter().filter(|fault| !known.contains(*fault)) {
            tracing::warn!("{fault}");
        }
        self.routes = Some(Arc::new(states));
    }
}

fn faults(state: &RouteState) -> Vec<String> {
    let route = &state.route;
    let name = format!("{} {}", route.kind.as_str(), route.name);
    let mut faults: Vec<String> =
        state.refused_rules.iter().map(|rule| format!("{name}: {rule}; its requests get 500")).collect();
    for parent in &state.parents {
        let service = parent.parent.service(&route.name.namespace).map(|name| name.to_string()).unwrap_or_default();
        let why = match parent.attached {
            Attached::Yes => None,
            Attached::NoService => Some("there is no such Service"),
            Attached::NoAddress => Some("the Service has no clusterIP, so nothing tells that a call is meant for it"),
            Attached::NoPort => Some("the Service has no TCP port that parentRefs names"),
            Attached::Opaque => Some("the port is declared to speak no HTTP"),
            Attached::Conflict => Some("a GRPCRoute holds at the port, and no HTTPRoute beside it"),
            Attached::TooMany => Some("the Service has too many or too large routes, of which the oldest hold"),
        };
        faults.extend(why.map(|why| format!("{name} does not hold at Service {service}: {why}")));
        faults.extend(
            parent.faults.iter().map(|(_, why)| format!("{name}: {why}; requests that would go there get 500")),
        );
    }
    faults
}
