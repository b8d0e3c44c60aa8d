//! Latencies from a histogram's buckets.

/// Buckets by upper bound, each with how many were no greater. Sums of several histograms.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram {
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// Adds one bucket of one histogram; `bound` as in the label `le`.
    pub(super) fn add(&mut self, bound: &str, count: f64) {
        if let Ok(bound) = bound.parse() {
            self.put(bound, count);
        }
    }

    fn put(&mut self, bound: f64, count: f64) {
        match self.buckets.iter_mut().find(|(other, _)| *other == bound) {
            Some((_, sum)) => *sum += count,
            None => {
                self.buckets.push((bound, count));
                self.buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            }
        }
    }

    /// Adds all buckets of another.
    pub(super) fn merge(&mut self, other: &Self) {
        other.buckets.iter().for_each(|(bound, count)| self.put(*bound, *count));
    }

    /// What was added since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let before =
            |bound: f64| earlier.buckets.iter().find(|(other, _)| *other == bound).map_or(0.0, |(_, count)| *count);
        Self {
            buckets: self.buckets.iter().map(|(bound, count)| (*bound, (count - before(*bound)).max(0.0))).collect(),
        }
    }

    /// The value that this share did not exceed, read linearly between the bounds (as Prometheus does). Beyond the last
    /// finite bound it is that bound. `None`: nothing was counted.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let (_, total) = self.buckets.last().filter(|(_, total)| *total > 0.0)?;
        let rank = total * share;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= rank && *count > below {
                return Some(if bound.is_finite() {
                    lower + (bound - lower) * (rank - below) / (count - below)
                } else {
                    lower
                });
            }
            if bound.is_finite() {
                (lower, below) = (*bound, *count);
            }
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(buckets: &[(&str, f64)]) -> Histogram {
        let mut histogram = Histogram::default();
        buckets.iter().for_each(|(bound, count)| histogram.add(bound, *count));
        histogram
    }

    #[test]
    fn quantiles_are_read_between_the_bounds() {
        let one = histogram(&[("+Inf", 100.0), ("0.01", 50.0), ("0.1", 99.0), ("0.001", 0.0)]);
        for (share, expected) in [(0.5, 0.01), (0.25, 0.0055), (0.99, 0.1), (0.999, 0.1)] {
            let read = one.quantile(share).expect("something was counted");
            assert!((read - expected).abs() < 1e-9, "{share}: {read}");
        }
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(histogram(&[("0.1", 0.0), ("+Inf", 0.0)]).quantile(0.5), None);
        assert_eq!(histogram(&[("nonsense", 5.0)]).quantile(0.5), None);
    }

    #[test]
    fn sums_and_differences_go_bucket_by_bucket() {
        let mut both = histogram(&[("0.1", 1.0), ("+Inf", 2.0)]);
        both.add("0.1", 3.0);
        both.add("+Inf", 3.0);
        assert_eq!(both, histogram(&[("0.1", 4.0), ("+Inf", 5.0)]));
        assert_eq!(both.since(&histogram(&[("0.1", 1.0), ("+Inf", 1.0)])), histogram(&[("0.1", 3.0), ("+Inf", 4.0)]));
        assert_eq!(both.since(&histogram(&[("0.1", 9.0)])), histogram(&[("0.1", 0.0), ("+Inf", 5.0)]));
    }
}
