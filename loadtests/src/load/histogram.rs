//! Latencies in logarithmic buckets.

use std::time::Duration;

/// Each power of two is divided into this many buckets of equal width: a value is known within 1/64, about 1.6 %.
const DIVISIONS: u32 = 64;
const DIVISION_BITS: u32 = DIVISIONS.ilog2();

/// A histogram of durations, from 1 µs on, with a relative error of at most 1.6 %, without an upper limit. It grows
/// with the largest value, to at most some 30 KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: Duration,
    max: Duration,
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: Duration) {
        let bucket = bucket(u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.total += 1;
        self.sum += value;
        self.max = self.max.max(value);
    }

    /// Adds all values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// The number of values.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The mean; zero without values.
    pub fn mean(&self) -> Duration {
        if self.total == 0 { Duration::ZERO } else { self.sum.div_f64(self.total as f64) }
    }

    /// The largest value, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The value that the share `q` (0 to 1) of all values does not exceed; zero without values.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = ((q.clamp(0.0, 1.0) * self.total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(highest(bucket)).min(self.max);
            }
        }
        self.max
    }
}

/// Values below [`DIVISIONS`] have a bucket each; then each power of two has [`DIVISIONS`].
fn bucket(micros: u64) -> usize {
    let shift = (u64::BITS - micros.leading_zeros()).saturating_sub(DIVISION_BITS + 1);
    (u64::from(shift * DIVISIONS) + (micros >> shift)) as usize
}

/// The largest value of a bucket.
fn highest(bucket: usize) -> u64 {
    let (bucket, divisions) = (bucket as u64, u64::from(DIVISIONS));
    let shift = (bucket / divisions).saturating_sub(1);
    let lowest = u128::from(bucket - shift * divisions) << shift;
    u64::try_from(lowest + (1 << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_its_bucket_within_the_stated_error() {
        let mut last = 0;
        for value in (0..70_000).chain([1 << 20, (1 << 20) + 1, 1 << 40, u64::MAX - 1, u64::MAX]) {
            let found = highest(bucket(value));
            assert!(found >= value, "{value} in a bucket up to {found}");
            assert!((found - value) as f64 <= value as f64 / 64.0, "{value} told as {found}");
            assert!(bucket(value) >= last, "{value} is in a bucket below that of a smaller value");
            last = bucket(value);
        }
    }

    #[test]
    fn quantiles_of_merged_halves_are_those_of_the_whole() {
        let (mut odd, mut even, mut whole) = (Histogram::default(), Histogram::default(), Histogram::default());
        for n in 1..=1000 {
            let value = Duration::from_micros(n);
            whole.record(value);
            if n % 2 == 0 { even.record(value) } else { odd.record(value) }
        }
        odd.merge(&even);
        assert_eq!(odd, whole);
        for (q, wanted) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = whole.quantile(q).as_micros() as f64;
            assert!((wanted..=wanted * 1.017).contains(&found), "{q}: {found}");
        }
        assert_eq!(whole.mean(), Duration::from_nanos(500_500));
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
