//! A token bucket for what telemetry itself may spend. Pure: the clock is an argument.
use std::time::Instant;

/// Allows `rate` a second on average and `burst` at once.
#[derive(Debug)]
pub(super) struct TokenBucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Instant,
}

impl TokenBucket {
    pub(super) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        Self { rate: rate.into(), burst: burst.into(), tokens: burst.into(), last: now }
    }

    /// Whether one more is allowed now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.last).as_secs_f64();
        self.last = now;
        self.tokens = (self.tokens + elapsed * self.rate).min(self.burst);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_allowed_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(2, 3, start);
        let take = |bucket: &mut TokenBucket, after: u64| {
            (0..10).filter(|_| bucket.take(start + Duration::from_millis(after))).count()
        };
        assert_eq!(take(&mut bucket, 0), 3);
        assert_eq!(take(&mut bucket, 500), 1);
        assert_eq!(take(&mut bucket, 600_000), 3, "no more is saved up than a burst");
    }
}
