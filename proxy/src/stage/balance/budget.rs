//! How many requests may be sent again: a share of those that came, and a few a second so that a quiet destination has some
//! too. An outage is never made worse by more than that. Pure: the clock is an argument.
use std::cell::Cell;
use std::time::{Duration, Instant};

/// What sending once more costs; a request brings as many as the budget has percent.
const PRICE: u32 = 100;
/// Repetitions a second that are allowed however little comes.
const A_SECOND: u32 = 3;
/// Up to so many are saved while nothing comes.
const SAVED: u32 = 10;
/// Up to so many are saved of what came.
const MOST: u32 = 100;

#[derive(Debug)]
pub(super) struct Budget {
    tokens: Cell<u32>,
    filled: Cell<Instant>,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: Cell::new(SAVED * PRICE), filled: Cell::new(now) }
    }

    /// A request came.
    pub(super) fn deposit(&self, percent: u32) {
        self.tokens.set((self.tokens.get() + percent).min(MOST * PRICE));
    }

    /// Whether one may be sent again now.
    pub(super) fn withdraw(&self, percent: u32, now: Instant) -> bool {
        if percent == 0 {
            return false;
        }
        self.refill(now);
        let left = self.tokens.get().checked_sub(PRICE);
        self.tokens.set(left.unwrap_or(self.tokens.get()));
        left.is_some()
    }

    fn refill(&self, now: Instant) {
        let each = Duration::from_secs(1) / A_SECOND;
        let due = now.saturating_duration_since(self.filled.get()).as_nanos() / each.as_nanos();
        let due = u32::try_from(due).unwrap_or(SAVED).min(SAVED);
        if due > 0 {
            self.filled.set(now);
            let room = (SAVED * PRICE).saturating_sub(self.tokens.get());
            self.tokens.set(self.tokens.get() + room.min(due * PRICE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_not_made_worse_by_more_than_the_budget() {
        for (percent, requests, seconds) in [(20, 10_000_u32, 10), (20, 10_000, 1_000), (5, 10_000, 1), (100, 500, 1)] {
            let start = Instant::now();
            let budget = Budget::new(start);
            let mut repeated = 0;
            for number in 0..requests {
                budget.deposit(percent);
                let now = start + Duration::from_secs(seconds) * number / requests;
                // Everything fails, so everything asks again for as long as it may.
                while budget.withdraw(percent, now) {
                    repeated += 1;
                }
            }
            let few = SAVED + A_SECOND * u32::try_from(seconds).expect("small");
            let share = requests * percent / 100;
            assert!(repeated <= share + few, "{repeated} of {requests} at {percent} %");
            assert!(repeated + 1 >= share, "{repeated} of {requests} at {percent} %");
        }
    }

    #[test]
    fn a_quiet_destination_may_repeat_a_few_and_none_where_it_is_turned_off() {
        let start = Instant::now();
        let budget = Budget::new(start);
        let spend = |now| (0..1_000).filter(|_| budget.withdraw(20, now)).count();
        assert_eq!(spend(start), 10);
        assert_eq!(spend(start + Duration::from_secs(2)), 6);
        assert_eq!(spend(start + Duration::from_secs(3_600)), 10);
        assert!(!Budget::new(start).withdraw(0, start));
    }
}
