//! Numbers that one thread writes and another reads.
//!
//! Each worker has cells of its own, so an addition is a plain load and store: no lock, no locked instruction, no cache
//! line that travels between cores. A scrape adds the workers' cells up.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A row of counters with a single writer.
#[derive(Debug)]
pub(super) struct Cells(Box<[AtomicU64]>);

impl Cells {
    pub(super) fn new(len: usize) -> Self {
        Self((0..len).map(|_| AtomicU64::new(0)).collect())
    }

    /// Adds to one slot. Only the worker that owns the row may call it: two writers would lose counts.
    pub(super) fn add(&self, slot: usize, n: u64) {
        let cell = &self.0[slot];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(super) fn get(&self, slot: usize) -> u64 {
        self.0[slot].load(Ordering::Relaxed)
    }

    /// Adds this row to `sums`, slot by slot.
    pub(super) fn add_to(&self, sums: &mut [u64]) {
        for (sum, cell) in sums.iter_mut().zip(&self.0) {
            *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
        }
    }
}

/// Upper bounds of a histogram's buckets; durations are kept in nanoseconds, so sums are exact.
#[derive(Debug)]
pub(super) struct Buckets {
    /// Ascending, in nanoseconds; the last bucket (infinity) is implied.
    pub(super) bounds: &'static [u64],
}

/// 0.5 ms to 10 s: what people ask of a service's latency.
pub(super) const REQUEST_DURATION: Buckets = Buckets {
    bounds: &[
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        25_000_000,
        50_000_000,
        100_000_000,
        250_000_000,
        500_000_000,
        1_000_000_000,
        2_500_000_000,
        10_000_000_000,
    ],
};

/// 10 µs to 100 ms: what a sidecar may cost.
pub(super) const OVERHEAD: Buckets = Buckets {
    bounds: &[10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000, 100_000_000],
};

impl Buckets {
    /// Slots of a row that holds this histogram: the buckets, infinity, and the sum.
    pub(super) const fn slots(&self) -> usize {
        self.bounds.len() + 2
    }

    /// Sample lines of one label set: the buckets, infinity, the sum and the count.
    pub(super) const fn lines(&self) -> usize {
        self.bounds.len() + 3
    }

    pub(super) fn observe(&self, cells: &Cells, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds.iter().position(|bound| nanos <= *bound).unwrap_or(self.bounds.len());
        cells.add(bucket, 1);
        cells.add(self.bounds.len() + 1, nanos);
    }

    /// Sum in seconds, count, and (upper bound in seconds, count) of each bucket.
    pub(super) fn read(&self, sums: &[u64]) -> (f64, u64, Vec<(f64, u64)>) {
        let counts = &sums[..=self.bounds.len()];
        let bounds = self.bounds.iter().map(|nanos| *nanos as f64 / 1e9).chain([f64::INFINITY]);
        let seconds = sums[self.bounds.len() + 1] as f64 / 1e9;
        (seconds, counts.iter().sum(), bounds.zip(counts.iter().copied()).collect())
    }

    /// The upper bound of the bucket that holds the 99th percentile; `None` under 200 observations, or when it is the
    /// last bucket.
    pub(super) fn p99(&self, cells: &Cells) -> Option<Duration> {
        let total: u64 = (0..=self.bounds.len()).map(|slot| cells.get(slot)).sum();
        if total < 200 {
            return None;
        }
        let mut above = total;
        for (slot, bound) in self.bounds.iter().enumerate() {
            above -= cells.get(slot);
            if above * 100 <= total {
                return Some(Duration::from_nanos(*bound));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_value_once_and_sums_exactly() {
        let cells = Cells::new(REQUEST_DURATION.slots());
        for micros in [1, 500, 501, 9_999_999, 10_000_001] {
            REQUEST_DURATION.observe(&cells, Duration::from_micros(micros));
        }
        let mut sums = vec![0; REQUEST_DURATION.slots()];
        cells.add_to(&mut sums);
        let (sum, count, buckets) = REQUEST_DURATION.read(&sums);
        assert_eq!(count, 5);
        assert!((sum - 20.001_002).abs() < 1e-9, "{sum}");
        assert_eq!(buckets[0].1, 2, "a bucket's upper bound belongs to it");
        assert_eq!(buckets.last().map(|b| b.1), Some(1));
    }

    #[test]
    fn the_99th_percentile_is_the_bound_of_its_bucket() {
        let cells = Cells::new(REQUEST_DURATION.slots());
        assert_eq!(REQUEST_DURATION.p99(&cells), None, "nothing is slow before there is a habit");
        for _ in 0..198 {
            REQUEST_DURATION.observe(&cells, Duration::from_millis(2));
        }
        REQUEST_DURATION.observe(&cells, Duration::from_millis(80));
        REQUEST_DURATION.observe(&cells, Duration::from_millis(80));
        assert_eq!(REQUEST_DURATION.p99(&cells), Some(Duration::from_micros(2_500)));
        REQUEST_DURATION.observe(&cells, Duration::from_millis(80));
        assert_eq!(REQUEST_DURATION.p99(&cells), Some(Duration::from_millis(100)));
    }
}
