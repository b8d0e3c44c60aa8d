//! How long a routed request may take, and when it is sent again: what its rule says, and for gRPC its caller.
use std::time::{Duration, Instant};

use http::HeaderMap;

use super::attempt::{BACKOFF, SendPolicy};
use crate::stage::routes::ReadyRule;

/// How often a request is sent again where its route does not say.
const ATTEMPTS: u32 = 2;

/// What holds for one request.
pub(crate) struct Limits<'r> {
    pub(crate) policy: SendPolicy<'r>,
    /// When the whole must be over.
    by: Option<Instant>,
}

impl<'r> Limits<'r> {
    /// What `rule` says of a request that began at `started`; of a gRPC call (`grpc`) with what its caller says. `repeat`: it
    /// may be sent again.
    pub(crate) fn new(rule: &'r ReadyRule, repeat: bool, grpc: Option<&HeaderMap>, started: Instant) -> Self {
        let given = |time: Option<Duration>| time.filter(|time| !time.is_zero());
        let whole = [given(rule.timeouts.request), grpc.and_then(grpc_timeout)].into_iter().flatten().min();
        let backend_timeout = given(rule.timeouts.backend_request);
        let by = whole.and_then(|time| started.checked_add(time));
        let request_timeout = by.map(|by| by.saturating_duration_since(Instant::now()));
        let unrouted = SendPolicy { request_timeout, backend_timeout, ..SendPolicy::DEFAULT };
        let policy = match rule.retry.as_ref().filter(|_| repeat) {
            None => unrouted,
            Some(retry) => SendPolicy {
                retry_codes: &retry.codes,
                attempts: retry.attempts.unwrap_or(ATTEMPTS),
                backoff: Some(retry.backoff.unwrap_or(BACKOFF)),
                asked: true,
                ..unrouted
            },
        };
        Self { policy, by }
    }

    /// When the answer must be over that comes from an attempt which began at `begun`.
    pub(crate) fn end(&self, begun: Instant) -> Option<Instant> {
        let attempt = self.policy.backend_timeout.and_then(|time| begun.checked_add(time));
        [self.by, attempt].into_iter().flatten().min()
    }
}

/// What a caller of gRPC says of how long its call may take (gRPC over HTTP/2, "Timeout"). What it does not say clearly
/// is not said.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_exactly_or_not_at_all() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3_600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("+1S", None),
            ("1X", None),
            ("1 S", None),
            ("123456789S", None),
            ("1\u{e4}", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
            assert_eq!(grpc_timeout(&headers), expected, "{value:?}");
        }
    }
}
