//! How often: the generic cell rate algorithm (GCRA, ITU-T I.371) over the limits of RateLimitPolicies.
//!
//! One set of counters serves all workers of a sidecar, so a limit holds for the pod. Tables of clients are bounded: when
//! one is full, clients whose budget is whole again are forgotten first, and then the new client shares one budget with
//! all others that find no room, so that an attacker with many addresses gains nothing.
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use weft_api::resource::{LimitKey, RateLimit};

use super::policy::Caller;

/// Clients that one limit tells apart.
const MOST_CLIENTS: usize = 10_000;
const SHARDS: usize = 16;

/// A call beyond a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// The limit's name.
    pub limit: String,
    /// When a call could pass again.
    pub retry_after: Duration,
}

/// The limits of one workload with their counters.
#[derive(Debug)]
pub struct Limiter {
    start: Instant,
    limits: Vec<Limit>,
}

#[derive(Debug)]
struct Limit {
    config: RateLimit,
    policy_label: String,
    /// Time that one request costs, and the most that may be owed, in nanoseconds.
    cost: u64,
    tolerance: u64,
    /// Theoretical arrival time, in nanoseconds since `start`, for all, or for the clients that found no room.
    shared: AtomicU64,
    clients: Vec<Mutex<HashMap<Box<str>, u64>>>,
    hasher: RandomState,
}

impl Limiter {
    /// Builds the limits; counters of limits that are unchanged in `before` go on.
    pub fn new(limits: &[RateLimit], before: Option<&Limiter>) -> Self {
        let start = before.map_or_else(Instant::now, |before| before.start);
        let limits = limits
            .iter()
            .map(|config| {
                let limit = Limit::new(config.clone());
                if let Some(old) = before.and_then(|before| before.limits.iter().find(|old| old.config == *config)) {
                    limit.continue_from(old);
                }
                limit
            })
            .collect();
        Self { start, limits }
    }

    /// Whether there is anything to count.
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Takes one call from every limit's budget, or from none when one is exhausted. `passed` is told the labels
    /// (policy, limit) of each limit that let it pass.
    pub fn admit(&self, caller: &Caller, now: Instant, mut passed: impl FnMut(&str, &str)) -> Result<(), Limited> {
        let now = nanos(now.saturating_duration_since(self.start));
        for (index, limit) in self.limits.iter().enumerate() {
            if let Err(wait) = limit.take(caller, now) {
                for earlier in &self.limits[..index] {
                    earlier.give_back(caller);
                }
                return Err(Limited {
                    policy: limit.policy_label.clone(),
                    limit: limit.config.name.clone(),
                    retry_after: Duration::from_nanos(wait),
                });
            }
        }
        for limit in &self.limits {
            passed(&limit.policy_label, &limit.config.name);
        }
        Ok(())
    }
}

impl Limit {
    fn new(config: RateLimit) -> Self {
        let cost = nanos(config.window) / u64::from(config.requests.max(1));
        let tolerance = cost.saturating_mul(u64::from(config.burst.max(1)));
        Self {
            policy_label: config.policy.to_string(),
            config,
            cost: cost.max(1),
            tolerance,
            shared: AtomicU64::new(0),
            clients: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect(),
            hasher: RandomState::new(),
        }
    }

    fn continue_from(&self, old: &Limit) {
        self.shared.store(old.shared.load(Ordering::Relaxed), Ordering::Relaxed);
        for shard in &old.clients {
            for (client, arrival) in shard.lock().expect("no panic while held").iter() {
                self.shard(client).lock().expect("no panic while held").insert(client.clone(), *arrival);
            }
        }
    }

    fn shard(&self, client: &str) -> &Mutex<HashMap<Box<str>, u64>> {
        &self.clients[self.hasher.hash_one(client) as usize % SHARDS]
    }

    fn take(&self, caller: &Caller, now: u64) -> Result<(), u64> {
        if self.config.per == LimitKey::All {
            return self.take_shared(now);
        }
        with_key(caller, |key| {
            let mut clients = self.shard(key).lock().expect("no panic while held");
            if let Some(arrival) = clients.get_mut(key) {
                *arrival = self.next(*arrival, now)?;
                return Ok(());
            }
            if clients.len() >= MOST_CLIENTS / SHARDS {
                clients.retain(|_, arrival| *arrival > now);
            }
            if clients.len() >= MOST_CLIENTS / SHARDS {
                drop(clients);
                return self.take_shared(now);
            }
            clients.insert(key.into(), self.next(0, now)?);
            Ok(())
        })
    }

    fn take_shared(&self, now: u64) -> Result<(), u64> {
        let mut wait = 0;
        let taken = self.shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
            self.next(arrival, now).map_err(|left| wait = left).ok()
        });
        taken.map(|_| ()).map_err(|_| wait)
    }

    /// The arrival time after one more call at `now`, or how long until one may come.
    fn next(&self, arrival: u64, now: u64) -> Result<u64, u64> {
        let next = arrival.max(now) + self.cost;
        match next - now <= self.tolerance {
            true => Ok(next),
            false => Err(next - now - self.tolerance),
        }
    }

    fn give_back(&self, caller: &Caller) {
        if self.config.per == LimitKey::All {
            let _ = self
                .shared
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| Some(arrival.saturating_sub(self.cost)));
            return;
        }
        with_key(caller, |key| {
            if let Some(arrival) = self.shard(key).lock().expect("no panic while held").get_mut(key) {
                *arrival = arrival.saturating_sub(self.cost);
            }
        });
    }
}

/// A caller is known by its proven identity, else by its socket address; never by what it sends.
fn with_key<T>(caller: &Caller, then: impl FnOnce(&str) -> T) -> T {
    match caller.identity() {
        Some(id) => then(id.as_str()),
        None => then(&caller.address.to_string()),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use weft_api::resource::NamespacedName;

    use super::*;

    fn limit(requests: u32, burst: u32, per: LimitKey) -> RateLimit {
        let policy = NamespacedName { namespace: "shop".into(), name: "p".into() };
        RateLimit { policy, name: "l".into(), requests, window: Duration::from_secs(1), burst, per }
    }

    fn from(address: [u8; 4]) -> Caller {
        Caller { peer: None, address: IpAddr::from(address) }
    }

    fn admitted(limiter: &Limiter, caller: &Caller, at: Instant, calls: usize) -> usize {
        (0..calls).filter(|_| limiter.admit(caller, at, |_, _| ()).is_ok()).count()
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let limiter = Limiter::new(&[limit(10, 5, LimitKey::All)], None);
        let start = limiter.start;
        let caller = from([10, 0, 0, 1]);
        assert_eq!(admitted(&limiter, &caller, start, 20), 5);
        let refusal = limiter.admit(&caller, start, |_, _| ()).expect_err("the budget is spent");
        assert_eq!((refusal.policy.as_str(), refusal.limit.as_str()), ("shop/p", "l"));
        assert_eq!(refusal.retry_after, Duration::from_millis(100));
        let over_ten_seconds: usize =
            (1..=100).map(|tick| admitted(&limiter, &caller, start + Duration::from_millis(100 * tick), 3)).sum();
        assert_eq!(over_ten_seconds, 100, "10 a second for 10 s");
    }

    #[test]
    fn each_client_has_its_own_budget() {
        let limiter = Limiter::new(&[limit(10, 3, LimitKey::Client)], None);
        assert_eq!(admitted(&limiter, &from([10, 0, 0, 1]), limiter.start, 10), 3);
        assert_eq!(admitted(&limiter, &from([10, 0, 0, 2]), limiter.start, 10), 3);
    }

    #[test]
    fn a_call_that_one_limit_refuses_costs_the_others_nothing() {
        let limits = [limit(100, 100, LimitKey::All), limit(1, 1, LimitKey::Client)];
        let limiter = Limiter::new(&limits, None);
        let caller = from([10, 0, 0, 1]);
        assert_eq!(admitted(&limiter, &caller, limiter.start, 50), 1);
        let others: usize = (2..=200).map(|last| admitted(&limiter, &from([10, 0, 0, last]), limiter.start, 1)).sum();
        assert_eq!(others, 99);
    }

    #[test]
    fn an_unchanged_limit_keeps_its_counters_over_a_policy_update() {
        let limits = [limit(10, 3, LimitKey::Client)];
        let before = Limiter::new(&limits, None);
        let caller = from([10, 0, 0, 1]);
        assert_eq!(admitted(&before, &caller, before.start, 10), 3);
        let after = Limiter::new(&limits, Some(&before));
        assert_eq!(admitted(&after, &caller, before.start, 10), 0);
    }

    #[test]
    fn a_flood_of_clients_stays_in_bounded_memory_and_shares_one_budget() {
        let limiter = Limiter::new(&[limit(10, 2, LimitKey::Client)], None);
        let flood = 3 * MOST_CLIENTS as u32;
        let admitted: usize = (0..flood).map(|n| admitted(&limiter, &from(n.to_be_bytes()), limiter.start, 1)).sum();
        let held: usize = limiter.limits[0].clients.iter().map(|shard| shard.lock().expect("not poisoned").len()).sum();
        assert!(held <= MOST_CLIENTS, "{held}");
        assert_eq!(admitted, held + 2);
    }
}
