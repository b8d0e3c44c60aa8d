//! The calls that sidecars judged, by hour, for the last 24 hours. Pure: no I/O, the clock is an argument.
//!
//! What sidecars say of themselves is taken as it comes, for people to read and to write policies by; nothing is decided by
//! it. Workloads that policies cannot tell apart are one destination. The kinds are bounded: the oldest give way.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weft_api::observation::{CallList, CallRecord, Destination, Observations, ObservedCall};

/// Hours that are kept, the present one among them.
pub const HOURS: u32 = 24;
/// Kinds of calls that are kept.
const MOST: usize = 50_000;
/// Of them of one destination.
const MOST_OF_ONE: usize = 5_000;
/// Labels that differ from replica to replica, and that no policy can mean.
const OF_ONE_REPLICA: [&str; 8] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// All calls.
#[derive(Debug)]
pub struct Calls {
    destinations: HashMap<Arc<Destination>, HashMap<ObservedCall, Counts>>,
    kinds: usize,
    folded: VecDeque<(u64, u64)>,
    most: usize,
    most_of_one: usize,
}

impl Default for Calls {
    fn default() -> Self {
        Self::with_bounds(MOST, MOST_OF_ONE)
    }
}

#[derive(Debug)]
struct Counts {
    /// Hour since 1970 and count, the oldest first.
    hours: VecDeque<(u64, u64)>,
    /// Seconds since 1970.
    last_seen: u64,
    workload: String,
}

/// `labels` without those of one replica.
pub fn common_labels(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let common = labels.iter().filter(|(key, _)| !OF_ONE_REPLICA.contains(&key.as_str()));
    common.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// Adds to the count of `hour`, and drops those that are too old.
fn add(hours: &mut VecDeque<(u64, u64)>, hour: u64, count: u64) {
    match hours.back_mut() {
        // A clock that was set back counts in the hour that it had reached.
        Some((last, sum)) if *last >= hour => *sum = sum.saturating_add(count),
        _ => hours.push_back((hour, count)),
    }
    while hours.front().is_some_and(|(first, _)| first + u64::from(HOURS) <= hour) {
        hours.pop_front();
    }
}

fn since(hours: &VecDeque<(u64, u64)>, first: u64) -> u64 {
    hours.iter().filter(|(hour, _)| *hour >= first).fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

impl Calls {
    fn with_bounds(most: usize, most_of_one: usize) -> Self {
        Self { destinations: HashMap::new(), kinds: 0, folded: VecDeque::new(), most, most_of_one }
    }

    /// Takes in what the sidecar of `workload` saw.
    pub fn observe(&mut self, destination: Destination, workload: &str, seen: Observations, now: SystemTime) {
        let now = seconds(now);
        let hour = now / 3_600;
        let mut folded = seen.folded;
        if seen.calls.is_empty() && folded == 0 {
            return;
        }
        if self.kinds + seen.calls.len() > self.most {
            self.forget(hour);
        }
        let destination = match self.destinations.get_key_value(&destination) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(destination),
        };
        let kinds = self.destinations.entry(destination).or_default();
        for (call, count) in seen.calls {
            if let Some(counts) = kinds.get_mut(&call) {
                add(&mut counts.hours, hour, count);
                counts.last_seen = now;
                if counts.workload != workload {
                    workload.clone_into(&mut counts.workload);
                }
            } else if self.kinds < self.most && kinds.len() < self.most_of_one {
                let hours = VecDeque::from([(hour, count)]);
                kinds.insert(call, Counts { hours, last_seen: now, workload: workload.to_owned() });
                self.kinds += 1;
            } else {
                folded = folded.saturating_add(count);
            }
        }
        if folded > 0 {
            add(&mut self.folded, hour, folded);
        }
    }

    /// What was seen in the last `hours`, the present one among them.
    pub fn list(&self, hours: u32, now: SystemTime) -> CallList {
        let hours = hours.clamp(1, HOURS);
        let first = (seconds(now) / 3_600).saturating_sub(u64::from(hours) - 1);
        let rows = self.destinations.iter().flat_map(|(destination, kinds)| {
            kinds.iter().filter_map(move |(call, counts)| {
                let count = since(&counts.hours, first);
                (count > 0).then(|| CallRecord {
                    destination: Destination::clone(destination),
                    workload: counts.workload.clone(),
                    call: call.clone(),
                    count,
                    last_seen: counts.last_seen,
                })
            })
        });
        let list = CallList { hours, calls: rows.collect(), folded: since(&self.folded, first), silent: Vec::new() };
        list.merged()
    }

    /// Drops what is too old, and where that is not enough the tenth that was not seen for longest.
    fn forget(&mut self, hour: u64) {
        let oldest = (hour + 1).saturating_sub(u64::from(HOURS)) * 3_600;
        self.forget_before(oldest);
        if self.kinds >= self.most {
            let mut ages: Vec<u64> =
                self.destinations.values().flat_map(HashMap::values).map(|counts| counts.last_seen).collect();
            ages.sort_unstable();
            self.forget_before(ages[ages.len() / 10].saturating_add(1));
        }
    }

    fn forget_before(&mut self, oldest: u64) {
        self.destinations.retain(|_, kinds| {
            kinds.retain(|_, counts| counts.last_seen >= oldest);
            !kinds.is_empty()
        });
        self.kinds = self.destinations.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_api::observation::{Decided, OUTSIDE};

    fn destination(name: &str) -> Destination {
        Destination {
            namespace: "shop".into(),
            services: vec![name.into()],
            service_account: name.into(),
            labels: BTreeMap::new(),
        }
    }

    fn seen(port: u16, count: u64) -> Observations {
        let call = ObservedCall {
            source: OUTSIDE.into(),
            port,
            protocol: "tcp".into(),
            method: None,
            path: None,
            decision: Decided::Refused,
            policy: "default".into(),
            rule: None,
        };
        Observations { calls: vec![(call, count)], folded: 0 }
    }

    fn at(hours: u64, seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs((500_000 + hours) * 3_600 + seconds)
    }

    #[test]
    fn calls_are_summed_over_replicas_and_by_hour_and_a_day_later_they_are_gone() {
        let mut calls = Calls::default();
        calls.observe(destination("a"), "a-1", seen(80, 1), at(0, 0));
        calls.observe(destination("a"), "a-2", seen(80, 2), at(0, 3_599));
        calls.observe(destination("a"), "a-1", seen(80, 4), at(5, 0));
        calls.observe(destination("b"), "b-1", seen(80, 8), at(5, 0));
        for (hours, now, expected) in [
            (1, at(5, 1), vec![4, 8]),
            (6, at(5, 1), vec![7, 8]),
            (24, at(23, 0), vec![7, 8]),
            (24, at(24, 0), vec![4, 8]),
            (24, at(29, 0), vec![]),
        ] {
            let counts: Vec<u64> = calls.list(hours, now).calls.iter().map(|row| row.count).collect();
            assert_eq!(counts, expected, "{hours} hours");
        }
        let row = &calls.list(24, at(5, 1)).calls[0];
        assert_eq!((row.workload.as_str(), row.last_seen), ("a-1", seconds(at(5, 0))));
    }

    #[test]
    fn a_kind_that_is_seen_for_weeks_takes_no_more_than_a_day() {
        let mut calls = Calls::default();
        for hour in 0..500 {
            calls.observe(destination("a"), "a-1", Observations { folded: 1, ..seen(80, 1) }, at(hour, 0));
        }
        let kept: Vec<usize> =
            calls.destinations.values().flat_map(HashMap::values).map(|counts| counts.hours.len()).collect();
        assert_eq!((kept, calls.folded.len()), (vec![24], 24));
        assert_eq!(calls.list(24, at(499, 0)).calls[0].count, 24);
    }

    #[test]
    fn beyond_the_bounds_the_oldest_give_way_and_one_destination_cannot_take_all() {
        let mut calls = Calls::with_bounds(100, 60);
        for port in 1..=90 {
            calls.observe(destination("a"), "a-1", seen(port, 1), at(0, port.into()));
        }
        let list = calls.list(1, at(0, 100));
        assert_eq!((list.calls.len(), list.folded), (60, 30), "what is not kept apart is counted");
        for port in 1..=60 {
            calls.observe(destination("b"), "b-1", seen(port, 1), at(1, port.into()));
        }
        let list = calls.list(24, at(1, 100));
        assert!(list.calls.len() <= 100);
        let of_b = list.calls.iter().filter(|row| row.destination == destination("b")).count();
        assert_eq!(of_b, 60, "what is new is kept, what is old gives way");
        calls.observe(destination("c"), "c-1", seen(1, 1), at(30, 0));
        assert_eq!(calls.list(24, at(30, 0)).calls.len(), 1);
    }

    #[test]
    fn replicas_of_one_workload_are_one_destination() {
        let labels = |hash: &str| {
            BTreeMap::from([("app".to_owned(), "a".to_owned()), ("pod-template-hash".to_owned(), hash.to_owned())])
        };
        assert_eq!(common_labels(&labels("x")), common_labels(&labels("y")));
        assert_eq!(common_labels(&labels("x")).len(), 1);
    }
}
