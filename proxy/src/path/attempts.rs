//! Sends a request within its route's time, and again where the route says so and it is safe.
//!
//! A status that the route names is tried again whatever the method: the server has answered, and whoever wrote the route
//! knows what its answer means. An attempt that ended without an answer is tried again for idempotent methods only. What was
//! sent must still be here: no body, or one of at most [`crate::stage::tee::MOST_KEPT`] so far.
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use rand::Rng;
use weft_api::routing::Retry;

use super::record::Record;
use super::respond::Answer;
use super::send::{self, Forwarding, Sent};
use crate::stage::body::RequestBody;
use crate::stage::connect::HttpVersion;
use crate::stage::routes::ReadyRule;
use crate::stage::tee::Tee;

/// How often a request is sent again where its route does not say.
const ATTEMPTS: u32 = 1;
/// Least time between attempts where the route does not say.
const BACKOFF: Duration = Duration::from_millis(25);
/// Waits grow up to this many times the first.
const LONGEST_BACKOFF: u32 = 10;

/// How long a request may take, and when it is sent again.
pub(crate) struct Limits<'r> {
    /// The end of the whole.
    by: Option<Instant>,
    /// Of each attempt.
    attempt: Option<Duration>,
    retry: Option<&'r Retry>,
    title: &'r str,
}

impl<'r> Limits<'r> {
    /// What `rule` says of a request that began at `started`; of a gRPC call (`grpc`) with what its caller says.
    pub(crate) fn new(
        rule: &'r ReadyRule,
        retry: Option<&'r Retry>,
        grpc: Option<&HeaderMap>,
        started: Instant,
    ) -> Self {
        let given = |time: Option<Duration>| time.filter(|time| !time.is_zero());
        let limits = [given(rule.timeouts.request), grpc.and_then(grpc_timeout)];
        Self {
            by: limits.into_iter().flatten().min().and_then(|time| started.checked_add(time)),
            attempt: given(rule.timeouts.backend_request),
            retry,
            title: &rule.title,
        }
    }
}

/// The body of a request that may be sent more than once.
pub(crate) enum Outgoing {
    Empty,
    Once(Incoming, Rc<Cell<u64>>),
    Tee(Tee),
    /// It is gone.
    Sent,
}

impl Outgoing {
    /// `repeat`: it may be sent again. `copies`: and to others.
    pub(crate) fn new(body: Incoming, count: &Rc<Cell<u64>>, repeat: bool, copies: bool) -> Self {
        match (body.is_end_stream(), repeat || copies) {
            (true, _) => Self::Empty,
            (false, true) => Self::Tee(Tee::new(body, Rc::clone(count), repeat)),
            (false, false) => Self::Once(body, Rc::clone(count)),
        }
    }

    /// What a mirror is sent.
    pub(crate) fn copy(&self) -> RequestBody {
        match self {
            Self::Tee(tee) => RequestBody::Copy(tee.copy()),
            Self::Empty | Self::Once(..) | Self::Sent => RequestBody::Empty,
        }
    }

    fn next(&mut self) -> RequestBody {
        match std::mem::replace(self, Self::Sent) {
            Self::Once(inner, count) => RequestBody::Incoming { inner, count, gate: None },
            Self::Tee(tee) => {
                let reader = tee.read();
                *self = Self::Tee(tee);
                RequestBody::Repeatable(reader)
            }
            Self::Empty => {
                *self = Self::Empty;
                RequestBody::Empty
            }
            Self::Sent => RequestBody::Empty,
        }
    }

    fn can_repeat(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Tee(tee) => tee.can_repeat(),
            Self::Once(..) | Self::Sent => false,
        }
    }
}

/// Sends a request; with what came back, when its answer must have ended.
pub(crate) async fn send(
    to: &Forwarding<'_>,
    head: Parts,
    mut body: Outgoing,
    version: HttpVersion,
    limits: &Limits<'_>,
    record: &mut Record,
) -> (Sent, Option<Instant>) {
    let most = limits.retry.map_or(0, |retry| retry.attempts.unwrap_or(ATTEMPTS));
    let idempotent = is_idempotent(&head.method);
    let mut head = Some(head);
    let mut attempt = 0;
    loop {
        let begun = Instant::now();
        let this = if attempt < most { head.clone() } else { head.take() }.expect("only the last attempt takes it");
        let (by, label) = match (limits.by, limits.attempt.and_then(|time| begun.checked_add(time))) {
            (Some(whole), Some(one)) if one < whole => (Some(one), "backend_timeout"),
            (None, Some(one)) => (Some(one), "backend_timeout"),
            (whole, _) => (whole, "request_timeout"),
        };
        let waited = record.waited;
        let sending = send::send(to, Request::from_parts(this, body.next()), version, record);
        let sent = match by {
            None => Some(sending.await),
            Some(by) => tokio::time::timeout_at(by.into(), sending).await.ok(),
        };
        let sent = sent.unwrap_or_else(|| {
            record.waited = waited + begun.elapsed();
            Err(timed_out(label, limits.title))
        });
        let again = limits.retry.filter(|retry| attempt < most && fails(&sent, retry, idempotent) && body.can_repeat());
        let wait = again.map(|retry| backoff(retry, attempt));
        // No wait that the request would not outlive.
        let wait = wait.filter(|wait| limits.by.is_none_or(|by| Instant::now() + *wait < by));
        let Some(wait) = wait else {
            if let Outgoing::Tee(tee) = &body {
                tee.settle();
            }
            return (sent, by);
        };
        drop(sent);
        tokio::time::sleep(wait).await;
        record.waited += wait;
        attempt += 1;
    }
}

/// Whether `sent` is worth another attempt.
fn fails(sent: &Sent, retry: &Retry, idempotent: bool) -> bool {
    match sent {
        Ok((response, ..)) => retry.codes.contains(&response.status().as_u16()),
        Err(answer) => idempotent || retry.codes.contains(&answer.status.as_u16()),
    }
}

/// At least what the route says, longer each time, and not the same for all.
fn backoff(retry: &Retry, attempt: u32) -> Duration {
    let least = retry.backoff.unwrap_or(BACKOFF);
    let wait = least.saturating_mul(2_u32.saturating_pow(attempt).min(LONGEST_BACKOFF));
    wait.saturating_add(wait.mul_f64(rand::rng().random_range(0.0..0.5)))
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

fn timed_out(label: &'static str, title: &str) -> Answer {
    let which = if label == "backend_timeout" { "the backend did not answer" } else { "the request was not answered" };
    let text = format!("{which} within the time that {title} or the caller allows");
    Answer::new(StatusCode::GATEWAY_TIMEOUT, label, text)
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

    #[test]
    fn waits_between_attempts_grow_within_bounds_and_are_never_shorter_than_the_route_says() {
        let retry = Retry { backoff: Some(Duration::from_millis(100)), ..Retry::default() };
        for (attempt, least) in [(0, 100), (1, 200), (2, 400), (3, 800), (4, 1000), (40, 1000)] {
            let (least, wait) = (Duration::from_millis(least), backoff(&retry, attempt));
            assert!(least <= wait && wait < least * 3 / 2, "{attempt}: {wait:?}");
        }
        backoff(&Retry { backoff: Some(Duration::MAX), ..Retry::default() }, 9);
    }
}
