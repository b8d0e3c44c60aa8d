//! How much is said: nothing twice within an hour, little of one object, and not too much in all. Pure: the clock is an
//! argument.
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use super::{Notice, Regarding};

/// The same is not said again within this time (the API server forgets events after as long).
const REPEAT: Duration = Duration::from_secs(3600);
/// Different things about one object: so many at once, then one each so often.
const OF_ONE: Rate = Rate { burst: 10.0, every: Duration::from_secs(60) };
/// In all.
const OF_ALL: Rate = Rate { burst: 100.0, every: Duration::from_millis(500) };
/// Notices and objects that are remembered; beyond that what is oldest or idle is forgotten.
const REMEMBERED: usize = 10_000;

#[derive(Clone, Copy)]
struct Rate {
    burst: f64,
    every: Duration,
}

/// What was said, and what may be.
pub(super) struct Limit {
    said: HashMap<u64, Instant>,
    of_one: HashMap<u64, Bucket>,
    of_all: Bucket,
}

impl Limit {
    pub(super) fn new(now: Instant) -> Self {
        Self { said: HashMap::new(), of_one: HashMap::new(), of_all: Bucket { used: 0.0, at: now } }
    }

    /// Whether `notice` may be said now; it then counts as said.
    pub(super) fn admits(&mut self, notice: &Notice, now: Instant) -> bool {
        if self.said.len() >= REMEMBERED {
            self.said.retain(|_, at| now.duration_since(*at) < REPEAT);
        }
        if self.of_one.len() >= REMEMBERED {
            self.of_one.retain(|_, bucket| bucket.used_at(now, OF_ONE) > 0.0);
        }
        // Whoever can fill these can be told no more until something is forgotten.
        if self.said.len() >= REMEMBERED || self.of_one.len() >= REMEMBERED {
            return false;
        }
        let said = hash(notice);
        if self.said.get(&said).is_some_and(|at| now.duration_since(*at) < REPEAT) {
            return false;
        }
        let of_one = self.of_one.entry(hash_of_object(&notice.regarding)).or_insert(Bucket { used: 0.0, at: now });
        if !(of_one.has_room(now, OF_ONE) && self.of_all.has_room(now, OF_ALL)) {
            return false;
        }
        of_one.used += 1.0;
        self.of_all.used += 1.0;
        self.said.insert(said, now);
        true
    }
}

/// 64 bits are enough for what costs a notice when they collide.
fn hash(notice: &Notice) -> u64 {
    let mut hasher = DefaultHasher::new();
    notice.hash(&mut hasher);
    hasher.finish()
}

fn hash_of_object(regarding: &Regarding) -> u64 {
    let mut hasher = DefaultHasher::new();
    regarding.hash(&mut hasher);
    hasher.finish()
}

struct Bucket {
    used: f64,
    at: Instant,
}

impl Bucket {
    fn used_at(&self, now: Instant, rate: Rate) -> f64 {
        (self.used - now.duration_since(self.at).div_duration_f64(rate.every)).max(0.0)
    }

    fn has_room(&mut self, now: Instant, rate: Rate) -> bool {
        *self = Self { used: self.used_at(now, rate), at: now };
        self.used + 1.0 <= rate.burst
    }
}

#[cfg(test)]
mod tests {
    use weft_api::resource::NamespacedName;

    use super::*;

    fn notice(object: usize, note: usize) -> Notice {
        Notice {
            regarding: Regarding::ServiceAccount(NamespacedName::new("shop", format!("account-{object}"))),
            warning: true,
            reason: "Reason".to_owned(),
            action: "Action",
            note: note.to_string(),
        }
    }

    fn said(limit: &mut Limit, now: Instant, notices: impl Iterator<Item = Notice>) -> usize {
        notices.filter(|notice| limit.admits(notice, now)).count()
    }

    #[test]
    fn nothing_is_said_twice_within_an_hour() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        for (seconds, expected) in [(0, true), (1, false), (3599, false), (3600, true), (3601, false)] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(limit.admits(&notice(1, 1), now), expected, "after {seconds}s");
        }
    }

    #[test]
    fn one_object_gets_its_burst_then_its_rate_and_never_costs_another() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert_eq!(said(&mut limit, start, (0..50).map(|note| notice(1, note))), 10);
        assert_eq!(said(&mut limit, start, (0..5).map(|note| notice(2, note))), 5);
        let later = start + Duration::from_secs(121);
        assert_eq!(said(&mut limit, later, (100..150).map(|note| notice(1, note))), 2);
    }

    #[test]
    fn a_flood_over_many_objects_is_bounded_and_what_is_remembered_too() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert_eq!(said(&mut limit, start, (0..5_000).map(|object| notice(object, 0))), 100);
        for second in 0..20 {
            let now = start + Duration::from_secs(second);
            said(&mut limit, now, (0..5_000).map(|object| notice(object, 1)));
        }
        assert!(limit.said.len() <= 150 && limit.of_one.len() <= REMEMBERED);
    }
}
