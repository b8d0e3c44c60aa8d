//! How often one identity may ask for a certificate: a token bucket each. Pure: the clock is an argument.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use weft_certs::SpiffeId;

/// Requests that one replica may make at once after idleness.
const BURST: f64 = 20.0;
/// Requests a minute that one replica may make in the long run.
const PER_MINUTE: f64 = 10.0;
/// With certificates that live for minutes or seconds: requests that one replica may make in one lifetime. It needs one or
/// two, the rest is for retries and restarts.
const PER_LIFETIME: f64 = 10.0;
/// Beyond this many identities, those that have not asked lately are forgotten.
const REMEMBERED: usize = 10_000;

/// The buckets of all identities.
#[derive(Debug)]
pub struct SignLimit {
    per_second: f64,
    buckets: HashMap<SpiffeId, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    used: f64,
    at: Instant,
}

impl SignLimit {
    /// Limits for certificates that live for `lifetime`.
    pub fn new(lifetime: Duration) -> Self {
        let per_second = f64::max(PER_MINUTE / 60.0, PER_LIFETIME / lifetime.as_secs_f64().max(1.0));
        Self { per_second, buckets: HashMap::new() }
    }

    /// Takes one request of `id`, whose `replicas` share the identity and therefore the bucket.
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub fn take(&mut self, id: &SpiffeId, replicas: usize, now: Instant) -> Result<(), Duration> {
        if self.buckets.len() >= REMEMBERED && !self.buckets.contains_key(id) {
            let per_second = self.per_second;
            self.buckets.retain(|_, bucket| bucket.used_at(now, per_second) > 0.0);
        }
        let replicas = replicas.max(1) as f64;
        let per_second = self.per_second * replicas;
        let bucket = self.buckets.entry(id.clone()).or_insert(Bucket { used: 0.0, at: now });
        let used = bucket.used_at(now, per_second);
        *bucket = Bucket { used, at: now };
        if used + 1.0 > BURST * replicas {
            return Err(Duration::from_secs_f64((used + 1.0 - BURST * replicas) / per_second));
        }
        bucket.used += 1.0;
        Ok(())
    }
}

impl Bucket {
    fn used_at(&self, now: Instant, per_second: f64) -> f64 {
        (self.used - now.saturating_duration_since(self.at).as_secs_f64() * per_second).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(account: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).expect("valid")
    }

    fn taken(limit: &mut SignLimit, id: &SpiffeId, replicas: usize, now: Instant) -> usize {
        (0..1000).take_while(|_| limit.take(id, replicas, now).is_ok()).count()
    }

    #[test]
    fn one_identity_gets_its_burst_then_its_rate_and_never_costs_another() {
        let (mut limit, start) = (SignLimit::new(Duration::from_secs(3600)), Instant::now());
        assert_eq!(taken(&mut limit, &id("greedy"), 1, start), 20);
        let wait = limit.take(&id("greedy"), 1, start).expect_err("used up");
        assert!(wait <= Duration::from_secs(6) && wait > Duration::from_secs(5), "{wait:?}");
        assert_eq!(taken(&mut limit, &id("modest"), 1, start), 20);
        assert_eq!(taken(&mut limit, &id("greedy"), 1, start + Duration::from_secs(61)), 10);
    }

    #[test]
    fn replicas_of_one_identity_start_together() {
        let (mut limit, start) = (SignLimit::new(Duration::from_secs(3600)), Instant::now());
        assert_eq!(taken(&mut limit, &id("web"), 30, start), 600);
    }

    #[test]
    fn short_lived_certificates_can_be_renewed_in_time() {
        let (mut limit, start) = (SignLimit::new(Duration::from_secs(10)), Instant::now());
        taken(&mut limit, &id("web"), 1, start);
        assert_eq!(taken(&mut limit, &id("web"), 1, start + Duration::from_secs(5)), 5);
    }
}
