//! Chooses an endpoint: the less loaded of two drawn at random ("power of two choices").
//!
//! Load is what this worker has in flight to each endpoint. An endpoint that just refused a connection is passed over
//! while another is there.
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rand::Rng;
use weft_api::workload::Endpoint;

/// For how long an endpoint that could not be reached is passed over.
const PENALTY: Duration = Duration::from_secs(2);

/// What one worker has in flight, by endpoint.
#[derive(Debug, Default)]
pub struct Balancer {
    loads: RefCell<HashMap<Endpoint, Rc<Load>>>,
}

#[derive(Debug, Default)]
struct Load {
    in_flight: Cell<u32>,
    failed_at: Cell<Option<Instant>>,
}

/// An endpoint that was chosen; counts as load until dropped.
#[derive(Debug)]
pub struct Chosen {
    /// The endpoint.
    pub endpoint: Endpoint,
    load: Rc<Load>,
}

impl Balancer {
    /// Chooses among `endpoints`, passing over those in `tried`. `None`: none is left.
    pub fn choose(&self, endpoints: &[Endpoint], tried: &[Endpoint]) -> Option<Chosen> {
        let now = Instant::now();
        let fresh = |endpoint: &&Endpoint| !tried.contains(endpoint);
        let healthy: Vec<&Endpoint> = match endpoints {
            [only] if tried.is_empty() => vec![only],
            _ => endpoints.iter().filter(fresh).filter(|e| !self.failed_lately(e, now)).collect(),
        };
        let candidates = if healthy.is_empty() { endpoints.iter().filter(fresh).collect() } else { healthy };
        let endpoint = match candidates.as_slice() {
            [] => return None,
            [only] => *only,
            several => {
                let mut random = rand::rng();
                let first = random.random_range(0..several.len());
                let second = (first + random.random_range(1..several.len())) % several.len();
                let load = |index: usize| self.load(several[index]).in_flight.get();
                if load(second) < load(first) { several[second] } else { several[first] }
            }
        };
        let load = self.load(endpoint);
        load.in_flight.set(load.in_flight.get() + 1);
        Some(Chosen { endpoint: endpoint.clone(), load })
    }

    /// Forgets endpoints that `keep` does not know.
    pub fn retain(&self, keep: impl Fn(&Endpoint) -> bool) {
        self.loads.borrow_mut().retain(|endpoint, load| load.in_flight.get() > 0 || keep(endpoint));
    }

    fn failed_lately(&self, endpoint: &Endpoint, now: Instant) -> bool {
        let loads = self.loads.borrow();
        loads.get(endpoint).and_then(|load| load.failed_at.get()).is_some_and(|at| now.duration_since(at) < PENALTY)
    }

    fn load(&self, endpoint: &Endpoint) -> Rc<Load> {
        let mut loads = self.loads.borrow_mut();
        match loads.get(endpoint) {
            Some(load) => Rc::clone(load),
            None => Rc::clone(loads.entry(endpoint.clone()).or_default()),
        }
    }
}

impl Chosen {
    /// It could not be reached.
    pub fn failed(&self) {
        self.load.failed_at.set(Some(Instant::now()));
    }
    /// It answered.
    pub fn succeeded(&self) {
        self.load.failed_at.set(None);
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.load.in_flight.set(self.load.in_flight.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u16) -> Vec<Endpoint> {
        (0..count)
            .map(|n| Endpoint { address: ([10, 0, 0, 1], 8000 + n).into(), workload: format!("w{n}"), identity: None })
            .collect()
    }

    #[test]
    fn load_spreads_over_the_endpoints() {
        let (balancer, endpoints) = (Balancer::default(), endpoints(4));
        let held: Vec<Chosen> = (0..400).filter_map(|_| balancer.choose(&endpoints, &[])).collect();
        for endpoint in &endpoints {
            let share = held.iter().filter(|chosen| chosen.endpoint == *endpoint).count();
            assert!((90..=110).contains(&share), "{share}");
        }
    }

    #[test]
    fn an_endpoint_that_failed_is_passed_over_while_another_is_there() {
        let (balancer, endpoints) = (Balancer::default(), endpoints(2));
        let first = balancer.choose(&endpoints, &[]).expect("there are two");
        first.failed();
        for _ in 0..50 {
            assert_ne!(balancer.choose(&endpoints, &[]).expect("one is left").endpoint, first.endpoint);
        }
        let alone = std::slice::from_ref(&first.endpoint);
        assert!(balancer.choose(alone, &[]).is_some(), "the only endpoint is tried all the same");
    }

    #[test]
    fn an_endpoint_that_was_tried_is_not_tried_again() {
        let (balancer, endpoints) = (Balancer::default(), endpoints(2));
        assert_eq!(balancer.choose(&endpoints, &endpoints[..1]).expect("one is left").endpoint, endpoints[1]);
        assert!(balancer.choose(&endpoints, &endpoints).is_none());
    }
}
