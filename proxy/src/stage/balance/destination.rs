//! One destination: its endpoints, what is under way there, and which endpoint gets the next request.
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_api::workload::Traffic;

use super::budget::Budget;
use super::circuit::{Connections, Counted, Counts, Full, Open};
use super::health::{Reason, Standing};
use super::{HttpVersion, Target};

/// Draws before the endpoints are looked through one by one.
const DRAWS: usize = 8;
/// Failures in a row from which an endpoint is not asked in another's place.
const SUSPECT: u32 = 3;
/// Endpoints that one request is sent to at most.
const MOST_ATTEMPTS: usize = 6;

/// A port of a Service, or one address: where requests go, and what is under way there.
pub struct Destination {
    pub(super) members: RefCell<Rc<[Rc<Target>]>>,
    pub(super) traffic: Cell<Traffic>,
    budget: Budget,
    counts: Arc<Counts>,
    connections: Rc<Connections>,
    workers: u32,
    pub(super) reviewed: Cell<Instant>,
    pub(super) used: Cell<Instant>,
    random: Cell<u64>,
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

impl Destination {
    pub(super) fn new(counts: Arc<Counts>, workers: u32, now: Instant) -> Self {
        let made = Self {
            members: RefCell::new(Rc::from([])),
            traffic: Cell::new(Traffic::DEFAULT),
            budget: Budget::new(now),
            counts,
            connections: Rc::default(),
            workers,
            reviewed: Cell::new(now),
            used: Cell::new(now),
            random: Cell::new(rand::random::<u64>() | 1),
        };
        made.set_traffic(Traffic::DEFAULT);
        made
    }

    pub(super) fn set_traffic(&self, traffic: Traffic) {
        self.traffic.set(traffic);
        self.connections.limit((traffic.max_connections / self.workers).max(1));
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
        self.connections.open()
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
    pub(in crate::stage) fn has_kept(&self, version: HttpVersion) -> bool {
        let now = Instant::now();
        self.members.borrow().iter().any(|member| member.is_kept(version, now))
    }

    /// An endpoint with a kept connection, where no more connections may be made.
    pub fn choose_kept(self: &Rc<Self>, tried: &Tried, version: HttpVersion, now: Instant) -> Option<Chosen> {
        let members = self.members.borrow();
        let kept = members.iter().find(|member| !tried.contains(member) && member.is_kept(version, now));
        kept.map(|target| self.begin(target, now))
    }

    pub(super) fn begin(self: &Rc<Self>, target: &Rc<Target>, now: Instant) -> Chosen {
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
pub(super) fn may_eject(members: &[Rc<Target>], now: Instant) -> bool {
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
