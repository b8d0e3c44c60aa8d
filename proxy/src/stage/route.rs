//! Where an outgoing connection is going: a Service, a workload of the mesh, or outside. Decided by the original
//! destination alone, never by what the application sends.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_api::resource::NamespacedName;
use weft_api::workload::{Endpoint, MeshedWorkload, ProtocolHint, Service, WorkloadConfig};

use super::accept::OriginalDst;
use super::balance::Family;
use super::routes::PortRoutes;

/// A [`WorkloadConfig`] indexed by address.
#[derive(Debug)]
pub struct MeshView {
    /// What the control plane told.
    pub config: WorkloadConfig,
    services: HashMap<IpAddr, Arc<Service>>,
    workloads: HashMap<IpAddr, Arc<MeshedWorkload>>,
    /// Services that the workload beside us stands behind itself, as they are seen from here.
    beside: HashMap<NamespacedName, Arc<Service>>,
    /// Of the Services whose ports have routes: by the index of the port.
    routes: HashMap<NamespacedName, Vec<Option<Arc<PortRoutes>>>>,
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
        Self::following(None, config)
    }

    /// Indexes `config`, which comes after `previous`: what is unchanged is not made again.
    pub fn following(previous: Option<&Self>, config: WorkloadConfig) -> Self {
        let inbound = &config.inbound;
        let us = NamespacedName::new(&*inbound.namespace, &*inbound.workload);
        let own = config.meshed_workloads.get(&us).map(|workload| workload.addresses.clone()).unwrap_or_default();
        let mut services = HashMap::new();
        let mut beside = HashMap::new();
        let mut routes = HashMap::new();
        for (name, service) in config.services.iter() {
            let seen = beside_us(service, &own);
            let [v4, v6] = [true, false].map(|ipv4| of_family(&seen, ipv4));
            let by_family = |address: &IpAddr| Arc::clone(if address.is_ipv4() { &v4 } else { &v6 });
            services.extend(seen.addresses.iter().map(|address| (*address, by_family(address))));
            if !Arc::ptr_eq(&seen, service) {
                beside.insert(name.clone(), seen);
            }
            if service.ports.iter().any(|port| !port.routes.is_empty()) {
                let known = previous.and_then(|previous| previous.routes.get(name));
                routes.insert(name.clone(), ready_routes(service, known.map_or(&[], Vec::as_slice)));
            }
        }
        let workloads = config
            .meshed_workloads
            .values()
            .flat_map(|workload| workload.addresses.iter().map(|address| (*address, Arc::clone(workload))))
            .collect();
        Self { config, services, workloads, beside, routes }
    }

    /// A Service by its name, as it is seen from here, and the index of its port.
    pub fn backend(&self, name: &NamespacedName, port: u16) -> Option<(&Arc<Service>, usize)> {
        let service = self.beside.get(name).or_else(|| self.config.services.get(name))?;
        let index = service.ports.iter().position(|known| known.port == port)?;
        Some((service, index))
    }

    /// What decides where the requests to the port with this index go; `None`: nothing, they go to its endpoints.
    pub fn routes(&self, service: &Service, port: usize) -> Option<&Arc<PortRoutes>> {
        if service.ports.get(port)?.routes.is_empty() {
            return None;
        }
        self.routes.get(&service.name)?.get(port)?.as_ref()
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

    /// A Service by its name, as it is reached by its addresses of one family, or with all its endpoints.
    pub fn service(&self, name: &NamespacedName, family: Option<Family>) -> Option<Arc<Service>> {
        let service = self.beside.get(name).or_else(|| self.config.services.get(name))?;
        match family {
            None => Some(Arc::clone(service)),
            Some(family) => {
                let address = service.addresses.iter().find(|address| Family::of(**address) == family)?;
                self.services.get(address).filter(|there| there.name == *name).cloned()
            }
        }
    }

    /// Whether `endpoint` is still the workload that the control plane names at that address.
    pub fn names(&self, endpoint: &Endpoint) -> bool {
        let workload = self.workloads.get(&endpoint.address.ip());
        workload.is_some_and(|workload| Some(&workload.identity) == endpoint.identity.as_ref())
    }
}

/// The routes of each port, ready. `known` are those that were there before; a port may have moved among them.
fn ready_routes(service: &Service, known: &[Option<Arc<PortRoutes>>]) -> Vec<Option<Arc<PortRoutes>>> {
    let ready = |routes: &Vec<Arc<weft_api::routing::Route>>| {
        let same = |known: &&Arc<PortRoutes>| known.is_of(routes);
        match known.iter().flatten().find(same) {
            Some(known) => Arc::clone(known),
            None => Arc::new(PortRoutes::new(routes)),
        }
    };
    service.ports.iter().map(|port| Some(&port.routes).filter(|routes| !routes.is_empty()).map(ready)).collect()
}

/// A workload that calls its own Service may reach itself. What stays inside the pod is not redirected, so no sidecar
/// would answer there: it goes to the application as it is, like all loopback traffic.
fn beside_us(service: &Arc<Service>, own: &[IpAddr]) -> Arc<Service> {
    let ours = |endpoint: &Endpoint| own.contains(&endpoint.address.ip());
    if !service.ports.iter().flat_map(|port| &port.endpoints).any(ours) {
        return Arc::clone(service);
    }
    let mut service = Service::clone(service);
    for endpoint in service.ports.iter_mut().flat_map(|port| &mut port.endpoints) {
        if ours(endpoint) {
            endpoint.identity = None;
        }
    }
    Arc::new(service)
}

/// A Service as it is reached by an address of one family: at its endpoints of the same family, as without a mesh, since
/// an application may listen on one family alone. A Service whose workloads lack that family is reached all the same.
fn of_family(service: &Arc<Service>, ipv4: bool) -> Arc<Service> {
    let same = |endpoint: &Endpoint| endpoint.address.is_ipv4() == ipv4;
    let mixed = |endpoints: &[Endpoint]| endpoints.iter().any(same) && !endpoints.iter().all(same);
    if !service.ports.iter().any(|port| mixed(&port.endpoints)) {
        return Arc::clone(service);
    }
    let mut service = Service::clone(service);
    for port in service.ports.iter_mut().filter(|port| mixed(&port.endpoints)) {
        port.endpoints.retain(same);
    }
    Arc::new(service)
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

    #[test]
    fn an_address_of_a_service_leads_to_endpoints_of_its_family() {
        let rows: [(&[&str], bool, &[&str]); 5] = [
            (&["10.0.0.1:8", "[fd00::1]:8"], true, &["10.0.0.1:8"]),
            (&["10.0.0.1:8", "[fd00::1]:8", "[fd00::2]:8"], false, &["[fd00::1]:8", "[fd00::2]:8"]),
            (&["10.0.0.1:8"], true, &["10.0.0.1:8"]),
            // Better by the other family than not at all.
            (&["10.0.0.1:8"], false, &["10.0.0.1:8"]),
            (&[], true, &[]),
        ];
        for (given, ipv4, expected) in rows {
            let endpoint = |address: &&str| Endpoint {
                address: address.parse().expect("an address"),
                workload: "users-1".into(),
                identity: None,
            };
            let port = ServicePort {
                port: 80,
                protocol: ProtocolHint::Detect,
                endpoints: given.iter().map(endpoint).collect(),
                routes: Vec::new(),
            };
            let service = Service {
                name: NamespacedName::new("shop", "users"),
                addresses: Vec::new(),
                ports: vec![port],
                traffic: Default::default(),
            };
            let found = of_family(&Arc::new(service), ipv4);
            let found: Vec<String> = found.ports[0].endpoints.iter().map(|one| one.address.to_string()).collect();
            assert_eq!(found, expected, "{given:?}, IPv4: {ipv4}");
        }
    }
}
