//! Where an outgoing connection is going: a Service, a workload of the mesh, or outside. Decided by the original
//! destination alone, never by what the application sends.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_api::resource::NamespacedName;
use weft_api::workload::{Endpoint, MeshedWorkload, ProtocolHint, Service, WorkloadConfig};

use super::accept::OriginalDst;

/// A [`WorkloadConfig`] indexed by address.
#[derive(Debug)]
pub struct MeshView {
    /// What the control plane told.
    pub config: WorkloadConfig,
    services: HashMap<IpAddr, Arc<Service>>,
    /// Services that are not as the control plane told them.
    ours: HashMap<NamespacedName, Arc<Service>>,
    workloads: HashMap<IpAddr, Arc<MeshedWorkload>>,
}

/// Where a connection is going.
#[derive(Clone, Debug)]
pub enum Route {
    /// A port of a Service.
    Service {
        /// The Service.
        service: Arc<Service>,
        /// Index into its ports.
        port: usize,
    },
    /// A workload of the mesh, by its own address.
    Workload {
        /// The one endpoint.
        endpoint: Endpoint,
        /// Its namespace.
        namespace: String,
        /// What is known of the port.
        protocol: ProtocolHint,
    },
    /// Not of the mesh: passed through as it is.
    Outside,
    /// A Service's address with a port that it does not have.
    NoSuchPort,
}

impl MeshView {
    /// Indexes `config`.
    pub fn new(config: WorkloadConfig) -> Self {
        let inbound = &config.inbound;
        let us = NamespacedName::new(&*inbound.namespace, &*inbound.workload);
        let own = config.meshed_workloads.get(&us).map(|workload| workload.addresses.clone()).unwrap_or_default();
        let ours: HashMap<_, _> = config
            .services
            .iter()
            .filter_map(|(name, service)| Some((name.clone(), beside_us(service, &own)?)))
            .collect();
        let services = config
            .services
            .iter()
            .map(|(name, service)| Arc::clone(ours.get(name).unwrap_or(service)))
            .flat_map(|service| {
                service.addresses.clone().into_iter().map(move |address| (address, Arc::clone(&service)))
            })
            .collect();
        let workloads = config
            .meshed_workloads
            .values()
            .flat_map(|workload| workload.addresses.iter().map(|address| (*address, Arc::clone(workload))))
            .collect();
        Self { config, services, ours, workloads }
    }

    /// Finds where `original` leads.
    pub fn route(&self, original: OriginalDst) -> Route {
        let OriginalDst(address) = original;
        if let Some(service) = self.services.get(&address.ip()) {
            return match service.ports.iter().position(|port| port.port == address.port()) {
                Some(port) => Route::Service { service: Arc::clone(service), port },
                None => Route::NoSuchPort,
            };
        }
        match self.workloads.get(&address.ip()) {
            Some(workload) => Route::Workload {
                endpoint: Endpoint {
                    address,
                    workload: workload.name.name.clone(),
                    identity: Some(workload.identity.clone()),
                },
                namespace: workload.name.namespace.clone(),
                protocol: workload.ports.get(&address.port()).copied().unwrap_or_default(),
            },
            None => Route::Outside,
        }
    }

    /// The Service of that name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.ours.get(name).or_else(|| self.config.services.get(name))
    }

    /// Whether `endpoint` is still the workload that the control plane names at that address.
    pub fn names(&self, endpoint: &Endpoint) -> bool {
        let workload = self.workloads.get(&endpoint.address.ip());
        workload.is_some_and(|workload| Some(&workload.identity) == endpoint.identity.as_ref())
    }
}

/// A workload that calls its own Service may reach itself. What stays inside the pod is not redirected, so no sidecar
/// would answer there: it goes to the application as it is, like all loopback traffic.
///
/// `None`: it is nowhere beside us.
fn beside_us(service: &Service, own: &[IpAddr]) -> Option<Arc<Service>> {
    let ours = |endpoint: &Endpoint| own.contains(&endpoint.address.ip());
    if !service.ports.iter().flat_map(|port| &port.endpoints).any(ours) {
        return None;
    }
    let mut service = service.clone();
    for endpoint in service.ports.iter_mut().flat_map(|port| &mut port.endpoints) {
        if ours(endpoint) {
            endpoint.identity = None;
        }
    }
    Some(Arc::new(service))
}

impl Route {
    /// What the port is declared to speak.
    pub fn protocol(&self) -> ProtocolHint {
        match self {
            Self::Service { service, port } => service.ports[*port].protocol,
            Self::Workload { protocol, .. } => *protocol,
            Self::Outside | Self::NoSuchPort => ProtocolHint::Opaque,
        }
    }

    /// The places where it is served.
    pub fn endpoints(&self) -> &[Endpoint] {
        match self {
            Self::Service { service, port } => &service.ports[*port].endpoints,
            Self::Workload { endpoint, .. } => std::slice::from_ref(endpoint),
            Self::Outside | Self::NoSuchPort => &[],
        }
    }

    /// Whether nothing that goes there goes in the clear, whichever endpoint is chosen. To nobody nothing goes.
    pub fn is_secured(&self) -> bool {
        match self {
            Self::Service { .. } | Self::Workload { .. } => self.endpoints().iter().all(|to| to.identity.is_some()),
            Self::Outside | Self::NoSuchPort => false,
        }
    }

    /// Name and namespace for metrics and logs, from the model.
    pub fn destination(&self) -> NamespacedName {
        match self {
            Self::Service { service, .. } => service.name.clone(),
            Self::Workload { endpoint, namespace, .. } => {
                NamespacedName { namespace: namespace.clone(), name: endpoint.workload.clone() }
            }
            Self::Outside => NamespacedName { namespace: String::new(), name: "outside".to_owned() },
            Self::NoSuchPort => NamespacedName { namespace: String::new(), name: "unknown".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_api::workload::{ServicePort, Traffic};

    use super::*;

    #[test]
    fn a_route_is_secured_unless_something_could_go_there_in_the_clear() {
        let meshed = Some("spiffe://cluster.local/ns/shop/sa/users".parse().expect("an identity"));
        let endpoint = |identity: &Option<_>| Endpoint {
            address: ([10, 0, 0, 1], 8080).into(),
            workload: "users-1".into(),
            identity: Clone::clone(identity),
        };
        let service = |identities: &[Option<_>]| {
            let endpoints = identities.iter().map(endpoint).collect();
            let ports = vec![ServicePort { port: 80, protocol: ProtocolHint::Detect, endpoints, routes: Vec::new() }];
            let service = Service {
                name: NamespacedName::new("shop", "users"),
                addresses: Vec::new(),
                ports,
                traffic: Traffic::DEFAULT,
            };
            Route::Service { service: Arc::new(service), port: 0 }
        };
        for (route, secured) in [
            (service(&[meshed.clone(), meshed.clone()]), true),
            (service(&[meshed.clone(), None]), false),
            // A call that fails for want of an endpoint is no plaintext.
            (service(&[]), true),
            (Route::Outside, false),
            (Route::NoSuchPort, false),
        ] {
            assert_eq!(route.is_secured(), secured, "{route:?}");
        }
    }
}
