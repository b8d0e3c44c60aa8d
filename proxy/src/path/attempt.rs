//! Sends a request to one endpoint after another, as often as is safe.
//!
//! A request is sent again only where that cannot do something twice: nothing of it was sent, or the other side said that it
//! was not processed (REFUSED_STREAM, GOAWAY), or its method is idempotent (RFC 9110 section 9.2.2), or a route asks for
//! it. And only if it is still whole: it came back unsent, or it has no body. Each repetition is paid from the destination's
//! budget, and goes to an endpoint that serves; where none does, none is made. So an outage is not made worse.
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::header::{RETRY_AFTER, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use rand::Rng;

use super::exact;
use super::record::Record;
use super::respond::Answer;
use super::send::Forwarding;
use crate::stage::balance::{Chosen, Ejection, Tried};
use crate::stage::body::RequestBody;
use crate::stage::connect::{ConnectError, HttpVersion};
use crate::stage::pool::Sender;
use crate::telemetry::{Direction, TrafficEvent};

/// Least time between attempts where a route asks for them and does not say.
pub(crate) const BACKOFF: Duration = Duration::from_millis(25);
/// How many times that the waits grow to.
const LONGEST_BACKOFF: u32 = 10;

/// How long a request may take and when it is sent again, as far as a route says it. What it does not say is as the Service
/// has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendPolicy<'a> {
    /// To the head of the answer, over all attempts.
    pub(crate) request_timeout: Option<Duration>,
    /// To the head of the answer, each attempt.
    pub(crate) backend_timeout: Option<Duration>,
    /// Statuses with which it is sent again.
    pub(crate) retry_codes: &'a [u16],
    /// How often it is sent again at most.
    pub(crate) attempts: u32,
    /// Least time between attempts; more after each that follows.
    pub(crate) backoff: Option<Duration>,
    /// A route asks for it: whatever the method, and also at the endpoint that failed where there is no other.
    pub(crate) asked: bool,
}

impl SendPolicy<'_> {
    /// What holds without a route: who cannot serve now is asked no more while somebody else can.
    pub(crate) const DEFAULT: SendPolicy<'static> = SendPolicy {
        request_timeout: None,
        backend_timeout: None,
        retry_codes: &[502, 503],
        attempts: 2,
        backoff: None,
        asked: false,
    };
}

/// An answer with the connection that it comes on, or the sidecar's own.
pub(super) type Sent = Result<(Response<Incoming>, Sender, Chosen), Answer>;

/// Sends until there is an answer that is to be passed on.
pub(super) async fn send(
    to: &Forwarding<'_>,
    request: Request<RequestBody>,
    version: HttpVersion,
    record: &mut Record,
) -> Sent {
    let admitted = to.destination.admit().map_err(|full| {
        shed(to, record, full.label());
        too_much(&ConnectError::Full(full))
    })?;
    let limit = to.policy.request_timeout.or(to.destination.traffic().request_timeout);
    let by = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut sent = match within(limit, pin!(attempts(to, request, version, by, record))).await {
        Some(sent) => sent?,
        None => return Err(timed_out("request_timeout", limit)),
    };
    sent.2.admitted = Some(admitted);
    Ok(sent)
}

/// What became of one attempt.
enum Attempt {
    Answered(Response<Incoming>, Sender, Chosen),
    Failed {
        /// The request, if it could be sent once more.
        whole: Option<Request<RequestBody>>,
        /// Whether it may be sent once more.
        safe: bool,
        /// What the caller gets if it is not.
        answer: Answer,
        /// What the server answered, which the caller gets then instead.
        given: Option<(Response<Incoming>, Sender, Chosen)>,
    },
}

async fn attempts(
    to: &Forwarding<'_>,
    mut request: Request<RequestBody>,
    version: HttpVersion,
    by: Option<Instant>,
    record: &mut Record,
) -> Sent {
    let (destination, policy) = (to.destination, &to.policy);
    let mut tried = Tried::default();
    let mut chosen = destination.choose(&tried, Instant::now()).ok_or_else(no_endpoints)?;
    loop {
        let target = Rc::clone(&chosen.target);
        let (whole, safe, answer, given) = match attempt(to, chosen, request, version, &tried, record).await {
            Attempt::Answered(response, sender, chosen) => return Ok((response, sender, chosen)),
            Attempt::Failed { whole, safe, answer, given } => (whole, safe, answer, given),
        };
        let give_up = |given: Option<_>, answer| given.map_or(Err(answer), Ok);
        tried.add(&target);
        let again = whole.filter(|_| safe && record.retries < policy.attempts).and_then(begin);
        let Some(again) = again else {
            return give_up(given, answer);
        };
        let now = Instant::now();
        let wait = policy.backoff.map(|least| backoff(least, record.retries)).unwrap_or_default();
        // No wait that the request would not outlive.
        if by.is_some_and(|by| now.checked_add(wait).is_none_or(|then| then >= by)) {
            return give_up(given, answer);
        }
        let next = match destination.may_repeat(&tried, now) {
            true => destination.choose(&tried, now),
            false if policy.asked && destination.may_insist(now) => destination.choose(&Tried::default(), now),
            false => None,
        };
        let Some(next) = next else {
            count(to, record, TrafficEvent::NotRepeated);
            return give_up(given, answer);
        };
        count(to, record, TrafficEvent::Repeated);
        record.retries += 1;
        if let Some((response, sender, _)) = given
            && response.body().is_end_stream()
        {
            sender.give_back();
        }
        let mut next = next;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            record.waited += wait;
            next.begun = Instant::now();
        }
        (request, chosen) = (again, next);
    }
}

/// One attempt at one endpoint. What was not sent because a kept connection turned out to be closed is sent there once more,
/// on a connection of its own.
async fn attempt(
    to: &Forwarding<'_>,
    mut chosen: Chosen,
    mut request: Request<RequestBody>,
    version: HttpVersion,
    tried: &Tried,
    record: &mut Record,
) -> Attempt {
    let mut fresh_only = false;
    loop {
        if record.ends.direction == Direction::Outbound {
            record.goes_to(&chosen.target);
        }
        let connecting = Instant::now();
        let upstreams = &to.worker.upstreams;
        let connected = upstreams.http(to.destination, &chosen.target, version, to.identity, fresh_only).await;
        let asked = Instant::now();
        record.waited += asked - connecting;
        let mut sender = match connected {
            Ok(sender) => sender,
            Err(ConnectError::Elsewhere) => match to.destination.choose_kept(tried, version, asked) {
                Some(other) => {
                    chosen = other;
                    continue;
                }
                None => return given_up(too_much(&ConnectError::Elsewhere)),
            },
            Err(error @ ConnectError::Full(_)) => {
                shed(to, record, error.label());
                return given_up(too_much(&error));
            }
            Err(error) => {
                tracing::debug!(%error, "endpoint not reached");
                ejected(to, record, chosen.unreachable(asked));
                return Attempt::Failed { whole: Some(request), safe: true, answer: unreachable(&error), given: None };
            }
        };
        let idempotent = is_idempotent(request.method());
        let copy = copy_for(&request, &sender, idempotent, to);
        let answered = within(to.policy.backend_timeout, pin!(sender.send(request))).await;
        let now = Instant::now();
        record.waited += now - asked;
        match answered {
            None => {
                ejected(to, record, chosen.failed(now));
                let answer = timed_out("backend_timeout", to.policy.backend_timeout);
                return Attempt::Failed { whole: copy, safe: to.policy.asked || idempotent, answer, given: None };
            }
            Some(Ok(response)) if cannot_serve(&response) => {
                ejected(to, record, chosen.failed(now));
                return unserved(to, response, sender, chosen, copy, idempotent);
            }
            Some(Ok(response)) => {
                ejected(to, record, chosen.succeeded(now, now - asked));
                return match to.policy.asked {
                    true => unserved(to, response, sender, chosen, copy, idempotent),
                    false => Attempt::Answered(response, sender, chosen),
                };
            }
            Some(Err(mut error)) => {
                // The caller's fault says nothing of the server.
                if let Some(failure) = record.request_body.failure.get() {
                    return given_up(exact::body_failed(failure));
                }
                let (unsent, reused) = (error.take_message(), sender.is_reused());
                let error = error.into_error();
                let untouched = unsent.is_some();
                let (whole, safe) = match unsent {
                    // No byte was sent.
                    Some(unsent) => (Some(unsent), true),
                    None => (copy, to.policy.asked || idempotent || is_unprocessed(&error)),
                };
                // A kept connection may have been closed meanwhile, and a stream may be one too many: no fault of the
                // endpoint's. What was sent is paid for all the same.
                let excused = safe && reused && !fresh_only && (!is_reset(&error) || is_unprocessed(&error));
                match whole.and_then(begin) {
                    Some(whole) if excused && (untouched || to.destination.may_insist(now)) => {
                        if !untouched {
                            record.retries += 1;
                            count(to, record, TrafficEvent::Repeated);
                        }
                        request = whole;
                        if !is_reset(&error) {
                            sender.discard();
                        }
                        fresh_only = true;
                    }
                    whole => {
                        ejected(to, record, chosen.failed(now));
                        return Attempt::Failed { whole, safe, answer: no_answer(&error), given: None };
                    }
                }
            }
        }
    }
}

fn given_up(answer: Answer) -> Attempt {
    Attempt::Failed { whole: None, safe: false, answer, given: None }
}

/// An answer that may be worth asking somebody else.
fn unserved(
    to: &Forwarding<'_>,
    response: Response<Incoming>,
    sender: Sender,
    chosen: Chosen,
    copy: Option<Request<RequestBody>>,
    idempotent: bool,
) -> Attempt {
    let listed = to.policy.retry_codes.contains(&response.status().as_u16());
    // Who says when to come again does not want to be asked before; where that leads elsewhere, a route says so.
    let safe = listed && (to.policy.asked || (idempotent && !response.headers().contains_key(RETRY_AFTER)));
    match (safe, copy) {
        (true, Some(copy)) => {
            Attempt::Failed { whole: Some(copy), safe, answer: no_endpoints(), given: Some((response, sender, chosen)) }
        }
        _ => Attempt::Answered(response, sender, chosen),
    }
}

/// Makes a request ready to be sent again, if it is still whole.
fn begin(request: Request<RequestBody>) -> Option<Request<RequestBody>> {
    let (head, body) = request.into_parts();
    body.begin().map(|body| Request::from_parts(head, body))
}

/// At least `least`, longer after each attempt, and not the same for all.
fn backoff(least: Duration, attempt: u32) -> Duration {
    let wait = least.saturating_mul(2_u32.saturating_pow(attempt).min(LONGEST_BACKOFF));
    wait.saturating_add(wait.mul_f64(rand::rng().random_range(0.0..0.5)))
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::DELETE | Method::PUT)
}

/// A copy of a request that could be sent again, made only where it may be needed.
fn copy_for(
    request: &Request<RequestBody>,
    sender: &Sender,
    idempotent: bool,
    to: &Forwarding<'_>,
) -> Option<Request<RequestBody>> {
    let body = request.body().copy()?;
    let elsewhere = to.destination.has_several() || to.policy.asked;
    let useful = match sender {
        Sender::Http1(_) => (idempotent || to.policy.asked) && (sender.is_reused() || elsewhere),
        // Of what HTTP/2 did not process, any method may be repeated, on another connection if need be.
        Sender::Http2(_) => true,
    };
    if !useful || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// The server, or the sidecar before it, says that it cannot serve now. A status that is an answer of the application about
/// its own work (500) says nothing of the endpoint.
fn cannot_serve(response: &Response<Incoming>) -> bool {
    const UNAVAILABLE: &[u8] = b"14";
    matches!(response.status().as_u16(), 502..=504)
        || response.headers().get("grpc-status").is_some_and(|status| status.as_bytes() == UNAVAILABLE)
}

/// The HTTP/2 stream was reset by the other side: an answer, and no broken connection.
fn is_reset(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|error| error.is_reset())
}

/// The other side said that it did nothing with the request (RFC 9113 sections 6.8 and 8.7).
fn is_unprocessed(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|error| {
        error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

fn ejected(to: &Forwarding<'_>, record: &Record, ejection: Option<Ejection>) {
    if let Some(Ejection { endpoint, reason }) = ejection {
        tracing::info!(%endpoint, reason = reason.as_str(), "endpoint ejected for a while");
        count(to, record, TrafficEvent::Ejected(reason.as_str()));
    }
}

fn shed(to: &Forwarding<'_>, record: &Record, reason: &'static str) {
    count(to, record, TrafficEvent::Shed(reason));
}

fn count(to: &Forwarding<'_>, record: &Record, event: TrafficEvent) {
    if record.ends.direction == Direction::Outbound {
        to.worker.telemetry.traffic(event, &record.ends.destination);
    }
}

fn no_endpoints() -> Answer {
    Answer::new(StatusCode::SERVICE_UNAVAILABLE, "no_endpoints", "the service has no endpoint")
}

fn too_much(error: &ConnectError) -> Answer {
    Answer::new(StatusCode::SERVICE_UNAVAILABLE, error.label(), error.to_string())
}

fn timed_out(label: &'static str, limit: Option<Duration>) -> Answer {
    let limit = limit.unwrap_or_default();
    Answer::new(StatusCode::GATEWAY_TIMEOUT, label, format!("the server did not answer within {limit:?}"))
}

fn unreachable(error: &ConnectError) -> Answer {
    let status = if error.label() == "connect_timeout" { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
    Answer::new(status, error.label(), error.to_string())
}

fn no_answer(error: &hyper::Error) -> Answer {
    let reset = reset_by_server(error);
    let label = match reset {
        Some(_) => "reset_by_server",
        None if error.is_parse() => "bad_answer",
        None => "no_answer",
    };
    let text = format!("the server ended the connection without a valid answer: {error}");
    Answer { reset, ..Answer::new(StatusCode::BAD_GATEWAY, label, text) }
}

/// The code with which the server reset the request's stream, if that is what it did.
fn reset_by_server(error: &hyper::Error) -> Option<h2::Reason> {
    h2_error(error).and_then(|error| error.reason().filter(|_| error.is_reset() && error.is_remote()))
}

/// What `future` yields, or `None` when `limit` is over first. Without a limit there is no timer.
async fn within<F: Future>(limit: Option<Duration>, mut future: Pin<&mut F>) -> Option<F::Output> {
    let mut timer = limit.map(|limit| Box::pin(tokio::time::sleep(limit)));
    std::future::poll_fn(|context| {
        if let Poll::Ready(done) = future.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        match &mut timer {
            Some(timer) => timer.as_mut().poll(context).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_attempts_grow_within_bounds_and_are_never_shorter_than_the_route_says() {
        for (attempt, least) in [(0, 100), (1, 200), (2, 400), (3, 800), (4, 1000), (40, 1000)] {
            let (least, wait) = (Duration::from_millis(least), backoff(Duration::from_millis(100), attempt));
            assert!(least <= wait && wait < least * 3 / 2, "{attempt}: {wait:?}");
        }
        backoff(Duration::MAX, 9);
    }
}
