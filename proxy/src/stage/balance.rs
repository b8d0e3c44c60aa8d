//! Chooses an endpoint: of two drawn at random the one where a request would wait less ("power of two choices"), by latency
//! estimate times what is under way.
//!
//! What is learnt of an endpoint is one worker's own, and is kept over updates of the configuration for as long as the
//! endpoint is named. Endpoints that fail, or stand out against their siblings, are ejected for a while, never more than
//! half of a destination's: when most are bad, passing over them helps nobody. Nothing here allocates for a request.
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use weft_api::resource::NamespacedName;
use weft_api::workload::{Endpoint, Service, Traffic};

use super::connect::HttpVersion;
use super::pool::Pool;

mod budget;
mod circuit;
mod destination;
mod health;
mod review;
#[cfg(test)]
mod tests;

use health::{Health, Standing};

pub use circuit::{Circuits, Connections, Counted, Full, Open};
pub use destination::{Chosen, Destination, Ejection, Tried};
pub use health::Reason;

/// A destination that nobody called for so long is forgotten.
const UNUSED: Duration = Duration::from_secs(300);
/// A Service's port as it is reached by addresses of one family, or with all its endpoints.
type Port = (NamespacedName, u16, Option<Family>);
/// The same by the address of a Service's snapshot.
type Snapshot = (usize, u16, Option<Family>);
/// Holds the snapshot, so that its address is not another's.
type Resolved = (Arc<Service>, Rc<Destination>);

/// All that one worker knows of the places it sends to.
pub struct Balancer {
    circuits: Arc<Circuits>,
    workers: u32,
    targets: RefCell<HashMap<Endpoint, Rc<Target>>>,
    services: RefCell<HashMap<Port, Rc<Destination>>>,
    known: RefCell<HashMap<Snapshot, Resolved>>,
    addresses: RefCell<HashMap<Endpoint, Rc<Destination>>>,
}

/// The addresses by which a Service is reached, where that decides which of its endpoints are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One endpoint as a worker knows it.
pub struct Target {
    /// Where, and who answers there.
    pub endpoint: Endpoint,
    /// Kept connections to it.
    pub pool: Rc<Pool>,
    health: Health,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl Balancer {
    /// Knows nothing yet. `circuits` is shared by all `workers`.
    pub fn new(circuits: Arc<Circuits>, workers: usize) -> Self {
        Self {
            circuits,
            workers: u32::try_from(workers).unwrap_or(u32::MAX).max(1),
            targets: RefCell::default(),
            services: RefCell::default(),
            known: RefCell::default(),
            addresses: RefCell::default(),
        }
    }

    /// The destination that the port with the index `port` of `service` is. `family`: `service` is as it is reached by these
    /// addresses, and not with all its endpoints.
    pub fn service(&self, service: &Arc<Service>, port: usize, family: Option<Family>) -> Rc<Destination> {
        let number = service.ports[port].port;
        let snapshot = (Arc::as_ptr(service).addr(), number, family);
        if let Some((_, known)) = self.known.borrow().get(&snapshot) {
            return Rc::clone(known);
        }
        let destination = self.update(service, number, family);
        self.known.borrow_mut().insert(snapshot, (Arc::clone(service), Rc::clone(&destination)));
        destination
    }

    /// The destination that is one address, whatever Services stand before it.
    pub fn address(&self, endpoint: &Endpoint) -> Rc<Destination> {
        if let Some(known) = self.addresses.borrow().get(endpoint) {
            return Rc::clone(known);
        }
        let now = Instant::now();
        let destination = Rc::new(Destination::new(Arc::default(), self.workers, now));
        let target = self.target(endpoint, now, false);
        destination.members.replace(Rc::from([target]));
        self.addresses.borrow_mut().insert(endpoint.clone(), Rc::clone(&destination));
        destination
    }

    /// A destination without endpoints.
    pub fn nowhere(&self) -> Rc<Destination> {
        Rc::new(Destination::new(Arc::default(), self.workers, Instant::now()))
    }

    /// The application beside us: no limit of the callers' holds here.
    pub fn application(&self, address: SocketAddr) -> Rc<Destination> {
        let destination = self.address(&Endpoint { address, workload: String::new(), identity: None });
        destination.set_traffic(Traffic {
            max_connections: u32::MAX,
            max_requests: u32::MAX,
            max_pending: u32::MAX,
            ..Traffic::DEFAULT
        });
        destination
    }

    /// Takes in what is new, and forgets what is gone: Services that `service` does not know, addresses that `names` does
    /// not know, and what nobody called for long. Connections to endpoints that are gone are closed once they are idle.
    pub fn sweep(
        &self,
        service: impl Fn(&NamespacedName, Option<Family>) -> Option<Arc<Service>>,
        names: impl Fn(&Endpoint) -> bool,
    ) {
        let now = Instant::now();
        let used = |destination: &Rc<Destination>| {
            Rc::strong_count(destination) > 1 || now.saturating_duration_since(destination.used.get()) < UNUSED
        };
        self.known.borrow_mut().clear();
        let stale: Vec<_> = self.services.borrow().keys().cloned().collect();
        for (name, port, family) in stale {
            let there = service(&name, family).filter(|there| there.ports.iter().any(|known| known.port == port));
            match there {
                Some(service) if self.services.borrow().get(&(name.clone(), port, family)).is_some_and(used) => {
                    self.update(&service, port, family);
                }
                _ => drop(self.services.borrow_mut().remove(&(name, port, family))),
            }
        }
        self.addresses
            .borrow_mut()
            .retain(|endpoint, destination| used(destination) && (endpoint.workload.is_empty() || names(endpoint)));
        self.targets.borrow_mut().retain(|_, target| Rc::strong_count(target) > 1);
        self.targets.borrow().values().for_each(|target| target.pool.sweep(now));
    }

    fn update(&self, service: &Arc<Service>, number: u16, family: Option<Family>) -> Rc<Destination> {
        let now = Instant::now();
        let mut services = self.services.borrow_mut();
        let key = (service.name.clone(), number, family);
        let (destination, new) = match services.get(&key) {
            Some(known) => (Rc::clone(known), true),
            None => {
                let counts = self.circuits.of(&service.name, number);
                let made = Rc::new(Destination::new(counts, self.workers, now));
                services.insert(key, Rc::clone(&made));
                (made, false)
            }
        };
        destination.set_traffic(service.traffic);
        let endpoints = service.ports.iter().find(|port| port.port == number).map_or(&[][..], |port| &port.endpoints);
        let same = {
            let members = destination.members.borrow();
            members.len() == endpoints.len()
                && members.iter().zip(endpoints).all(|(member, now)| member.endpoint == *now)
        };
        if !same {
            let new = new && !destination.members.borrow().is_empty();
            let members = endpoints.iter().map(|endpoint| self.target(endpoint, now, new)).collect();
            destination.members.replace(members);
        }
        destination
    }

    fn target(&self, endpoint: &Endpoint, now: Instant, new: bool) -> Rc<Target> {
        let mut targets = self.targets.borrow_mut();
        if let Some(known) = targets.get(endpoint) {
            return Rc::clone(known);
        }
        let made = Rc::new(Target::new(endpoint.clone(), now, new));
        targets.insert(endpoint.clone(), Rc::clone(&made));
        made
    }
}

impl Target {
    fn new(endpoint: Endpoint, now: Instant, new: bool) -> Self {
        Self { endpoint, pool: Rc::default(), health: Health::new(now, new) }
    }

    fn is_kept(&self, version: HttpVersion, now: Instant) -> bool {
        self.health.standing(now) == Standing::Open && self.pool.has_room(version, now)
    }

    fn eject(&self, now: Instant) {
        self.health.eject(now);
        // What was kept may lead to nowhere.
        self.pool.close();
    }
}
