//! Chooses an endpoint: of two drawn at random the one where a request would wait less ("power of two choices"), by latency
//! estimate times what is under way.
//!
//! What is learnt of an endpoint is one worker's own, and is kept over updates of the configuration for as long as the
//! endpoint is named. Endpoints that fail, or stand out against their siblings, are ejected for a while, never more than
//! half of a destination's: when most are bad, passing over them helps nobody. Nothing here allocates for a request.
use std::cell::{Cell, RefCell};
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
mod health;
mod review;
#[cfg(test)]
mod tests;

use budget::Budget;
use circuit::Counts;
use health::{Health, Standing};

pub use circuit::{Circuits, Connections, Counted, Full, Open};
pub use health::Reason;

/// A destination that nobody called for so long is forgotten.
const UNUSED: Duration = Duration::from_secs(300);
/// Draws before the endpoints are looked through one by one.
const DRAWS: usize = 8;
/// Failures in a row from which an endpoint is not asked in another's place.
const SUSPECT: u32 = 3;
/// Endpoints that one request is sent to at most.
pub const MOST_ATTEMPTS: usize = 6;

/// All that one worker knows of the places it sends to.
pub struct Balancer {
    circuits: Arc<Circuits>,
    workers: u32,
    targets: RefCell<HashMap<Endpoint, Rc<Target>>>,
    services: RefCell<HashMap<(NamespacedName, u16, Option<Family>), Rc<Destination>>>,
    /// The same by the snapshot of the Service (which keeps its address from being another's) and the port.
    known: RefCell<HashMap<(usize, u16, Option<Family>), (Arc<Service>, Rc<Destination>)>>,
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

/// A port of a Service, or one address: where requests go, and what is under way there.
pub struct Destination {
    members: RefCell<Rc<[Rc<Target>]>>,
    traffic: Cell<Traffic>,
    budget: Budget,
    counts: Arc<Counts>,
    connections: Rc<Connections>,
    workers: u32,
    reviewed: Cell<Instant>,
    used: Cell<Instant>,
    random: Cell<u64>,
}

/// One endpoint as a worker knows it.
pub struct Target {
    /// Where, and who answers there.
    pub endpoint: Endpoint,
    /// Kept connections to it.
    pub pool: Rc<Pool>,
    health: Health,
}

/// An endpoint that was chosen; counts as load until dropped.
pub struct Chosen {
    /// The endpoint.
    pub target: Rc<Target>,
    destination: Rc<Destination>,
    /// When the attempt began.
    pub begun: Instant,
    probe: bool,
    settled: bool,
    /// The request's place among those under way.
    pub admitted: Option<Counted>,
}

/// Endpoints that a request was sent to already.
#[derive(Default)]
pub struct Tried {
    count: usize,
    seen: [Option<Rc<Target>>; MOST_ATTEMPTS],
}

/// An endpoint is passed over from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Its address.
    pub endpoint: SocketAddr,
    /// Why.
    pub reason: Reason,
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
        destination.traffic.set(Traffic {
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
        destination.traffic.set(service.traffic);
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

impl Destination {
    fn new(counts: Arc<Counts>, workers: u32, now: Instant) -> Self {
        Self {
            members: RefCell::new(Rc::from([])),
            traffic: Cell::new(Traffic::DEFAULT),
            budget: Budget::new(now),
            counts,
            connections: Rc::default(),
            workers,
            reviewed: Cell::new(now),
            used: Cell::new(now),
            random: Cell::new(rand::random::<u64>() | 1),
        }
    }

    /// How calls to it are to be carried.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// Takes a request in, if there is room for one more.
    ///
    /// # Errors
    /// The limit that was reached.
    pub fn admit(&self) -> Result<Counted, Full> {
        let traffic = self.traffic.get();
        self.budget.deposit(traffic.retry_budget);
        Counts::request(&self.counts, traffic.max_requests)
    }

    /// Takes a request in among those that wait for a connection.
    ///
    /// # Errors
    /// The limit that was reached.
    pub fn wait(&self) -> Result<Counted, Full> {
        Counts::pending(&self.counts, self.traffic.get().max_pending)
    }

    /// Room for one more of this worker's connections. `None`: there are as many as may be.
    pub fn connection(&self) -> Option<Open> {
        self.connections.open((self.traffic.get().max_connections / self.workers).max(1))
    }

    /// Returns once one of this worker's connections ended or has nothing to do.
    pub async fn freed(&self) {
        self.connections.freed().await;
    }

    /// Whether a request that failed may be sent again now: the budget has room, and somebody is there who may do better.
    pub fn may_repeat(&self, tried: &Tried, now: Instant) -> bool {
        let better = |member: &Rc<Target>| {
            let health = &member.health;
            !tried.contains(member) && health.standing(now) == Standing::Open && health.failures() < SUSPECT
        };
        !tried.is_full()
            && self.members.borrow().iter().any(better)
            && self.budget.withdraw(self.traffic.get().retry_budget, now)
    }

    /// Whether a request may be sent again now, to whomever: only the budget is asked.
    pub fn may_insist(&self, now: Instant) -> bool {
        self.budget.withdraw(self.traffic.get().retry_budget, now)
    }

    /// Whether there is more than one endpoint.
    pub fn has_several(&self) -> bool {
        self.members.borrow().len() > 1
    }

    /// Chooses an endpoint, passing over those in `tried`. `None`: none is left.
    pub fn choose(self: &Rc<Self>, tried: &Tried, now: Instant) -> Option<Chosen> {
        self.used.set(now);
        let members = self.members.borrow();
        let target = match &members[..] {
            [] => return None,
            [only] => Some(only).filter(|only| !tried.contains(only))?,
            _ => self.pick(&members, tried, now)?,
        };
        Some(self.begin(target, now))
    }

    /// Whether an endpoint that may be used has a kept connection with room.
    pub(super) fn has_kept(&self, version: HttpVersion) -> bool {
        let now = Instant::now();
        self.members.borrow().iter().any(|member| member.is_kept(version, now))
    }

    /// An endpoint with a kept connection, where no more connections may be made.
    pub fn choose_kept(self: &Rc<Self>, tried: &Tried, version: HttpVersion, now: Instant) -> Option<Chosen> {
        let members = self.members.borrow();
        let kept = members.iter().find(|member| !tried.contains(member) && member.is_kept(version, now));
        kept.map(|target| self.begin(target, now))
    }

    fn begin(self: &Rc<Self>, target: &Rc<Target>, now: Instant) -> Chosen {
        let probe = target.health.begin(now);
        Chosen {
            target: Rc::clone(target),
            destination: Rc::clone(self),
            begun: now,
            probe,
            settled: false,
            admitted: None,
        }
    }

    fn pick<'m>(&self, members: &'m [Rc<Target>], tried: &Tried, now: Instant) -> Option<&'m Rc<Target>> {
        let Some(first) = self.draw(members, tried, None, now) else {
            // All are ejected: whoever is asked, it can be no worse than not asking.
            return self.search(members, |member| !tried.contains(member));
        };
        let probes = |member: &Rc<Target>| member.health.standing(now) == Standing::Probe;
        if probes(first) {
            return Some(first);
        }
        let Some(second) = self.draw(members, tried, Some(first), now) else { return Some(first) };
        if probes(second) {
            return Some(second);
        }
        // Of whom nothing is known may be as fast as the other.
        let known = |member: &Rc<Target>| member.health.estimate(now);
        let unknown = known(first).or(known(second)).unwrap_or(1.0);
        let load = |member: &Rc<Target>| member.health.load(now, unknown);
        Some(if load(second) < load(first) { second } else { first })
    }

    /// One of those that may be chosen, at random; the new among them less often.
    fn draw<'m>(
        &self,
        members: &'m [Rc<Target>],
        tried: &Tried,
        other: Option<&Rc<Target>>,
        now: Instant,
    ) -> Option<&'m Rc<Target>> {
        let may = |member: &Rc<Target>| {
            !tried.contains(member)
                && member.health.standing(now) != Standing::Ejected
                && other.is_none_or(|other| !Rc::ptr_eq(other, member))
        };
        for _ in 0..DRAWS {
            let member = &members[self.below(members.len())];
            if may(member) {
                let share = member.health.share(now);
                if share >= 1.0 || self.fraction() < share {
                    return Some(member);
                }
            }
        }
        let settled = self.search(members, |member| may(member) && member.health.share(now) >= 1.0);
        // Where a settled one was drawn already, a new one is no alternative more often than its share.
        settled.or_else(|| if other.is_some() { None } else { self.search(members, may) })
    }

    fn search<'m>(&self, members: &'m [Rc<Target>], may: impl Fn(&Rc<Target>) -> bool) -> Option<&'m Rc<Target>> {
        let start = self.below(members.len());
        let (before, after) = members.split_at(start);
        after.iter().chain(before).find(|member| may(member))
    }

    fn below(&self, end: usize) -> usize {
        ((u128::from(self.random()) * end as u128) >> 64) as usize
    }

    fn fraction(&self) -> f64 {
        (self.random() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// SplitMix64: good enough to spread load, and free of locks and system calls.
    fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Whether one more may be ejected: never more than half.
fn may_eject(members: &[Rc<Target>], now: Instant) -> bool {
    let ejected = members.iter().filter(|member| member.health.standing(now) != Standing::Open).count();
    (ejected + 1) * 2 <= members.len()
}

impl Tried {
    /// Notes an endpoint.
    pub fn add(&mut self, target: &Rc<Target>) {
        if let Some(place) = self.seen.get_mut(self.count) {
            *place = Some(Rc::clone(target));
            self.count += 1;
        }
    }

    /// Whether nobody else is to be asked.
    pub fn is_full(&self) -> bool {
        self.count == MOST_ATTEMPTS
    }

    fn contains(&self, target: &Rc<Target>) -> bool {
        self.seen[..self.count].iter().flatten().any(|seen| Rc::ptr_eq(seen, target))
    }
}

impl Chosen {
    /// How long it has been under way.
    pub fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begun)
    }

    /// It answered, `latency` after it was asked.
    pub fn succeeded(&mut self, now: Instant, latency: Duration) -> Option<Ejection> {
        self.settle(now);
        let health = &self.target.health;
        health.succeeded(now, latency);
        if std::mem::take(&mut self.probe) {
            health.recover(now);
        }
        self.destination.review(now)
    }

    /// It did not answer, or said that it cannot serve.
    pub fn failed(&mut self, now: Instant) -> Option<Ejection> {
        self.settle(now);
        let (in_a_row, most) = (self.target.health.failed(), self.destination.traffic.get().eject_after);
        if self.probe || (most > 0 && in_a_row >= most) {
            return self.eject(now, Reason::Failures);
        }
        self.destination.review(now)
    }

    /// No connection to it could be made.
    pub fn unreachable(&mut self, now: Instant) -> Option<Ejection> {
        self.settle(now);
        self.target.health.failed();
        self.eject(now, Reason::Unreachable)
    }

    fn eject(&mut self, now: Instant, reason: Reason) -> Option<Ejection> {
        if std::mem::take(&mut self.probe) {
            self.target.eject(now);
            return None;
        }
        // Those that were under way when it was ejected say nothing new.
        let open = self.target.health.standing(now) == Standing::Open;
        if !open || !may_eject(&self.destination.members.borrow(), now) {
            return None;
        }
        self.target.eject(now);
        Some(Ejection { endpoint: self.target.endpoint.address, reason })
    }

    fn settle(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.settled, true) {
            self.target.health.settled(now);
        }
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if !self.settled {
            self.target.health.abandoned();
        }
        if self.probe {
            self.target.health.probe_lost();
        }
        self.target.health.end();
    }
}
