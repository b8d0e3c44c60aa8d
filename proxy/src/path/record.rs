//! Follows a request to the last byte of its answer, then reports it: every ending passes here.
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::uri::Uri;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;
use weft_certs::SpiffeId;

use super::Worker;
use crate::stage::balance::{Chosen, Target};
use crate::stage::body::{BodyError, Progress};
use crate::stage::pool::Sender;
use crate::telemetry::{ActiveSpan, Ends, Outcome, RequestEvent};

/// The gRPC status of a call whose time was over.
const DEADLINE_EXCEEDED: u16 = 4;

/// How a request ended, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Forwarded,
    Denied { policy: String, reason: String },
    Limited { policy: String, limit: String },
    Failed(&'static str),
}

impl Ending {
    pub(crate) fn as_outcome(&self) -> Outcome<'_> {
        match self {
            Self::Forwarded => Outcome::Forwarded,
            Self::Denied { policy, reason } => Outcome::Denied { policy, reason },
            Self::Limited { policy, limit } => Outcome::Limited { policy, limit },
            Self::Failed(reason) => Outcome::Failed { reason },
        }
    }
}

/// A request under way. Reported when its answer was sent, or when it is dropped. Boxed: it moves along with the answer's
/// body, from hand to hand.
pub(crate) struct Record {
    pub(crate) worker: Rc<Worker>,
    pub(crate) ends: Rc<Ends>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) peer_identity: Option<SpiffeId>,
    pub(crate) peer_address: Option<SocketAddr>,
    pub(crate) started: Instant,
    /// Time spent waiting for the other side to answer.
    pub(crate) waited: Duration,
    pub(crate) answered: Option<Instant>,
    pub(crate) status: u16,
    pub(crate) grpc_status: Option<u16>,
    pub(crate) request_body: Rc<Progress>,
    pub(crate) response_bytes: u64,
    pub(crate) ending: Ending,
    pub(crate) span: Option<ActiveSpan>,
    /// The rule of a route that decided where it went.
    pub(crate) route: Option<Arc<str>>,
    /// How often it was sent again.
    pub(crate) retries: u32,
    /// The endpoint that was called last.
    target: Option<Rc<Target>>,
    complete: bool,
}

impl Record {
    pub(crate) fn new(
        worker: Rc<Worker>,
        ends: Rc<Ends>,
        method: Method,
        uri: Uri,
        host: Option<HeaderValue>,
    ) -> Box<Self> {
        Box::new(Self {
            worker,
            ends,
            method,
            uri,
            host,
            peer_identity: None,
            peer_address: None,
            started: Instant::now(),
            waited: Duration::ZERO,
            answered: None,
            status: 0,
            grpc_status: None,
            request_body: Rc::default(),
            response_bytes: 0,
            ending: Ending::Forwarded,
            span: None,
            route: None,
            retries: 0,
            target: None,
            complete: false,
        })
    }

    /// Notes the endpoint that is called. The connection that the request came on may be older than it.
    pub(crate) fn goes_to(&mut self, target: &Rc<Target>) {
        let tls = target.endpoint.identity.is_some();
        self.target = Some(Rc::clone(target));
        if self.ends.tls != tls {
            self.ends = Rc::new(Ends { tls, ..(*self.ends).clone() });
        }
    }

    /// Notes what the answer says, and lets its body report the end.
    pub(crate) fn answer(mut self: Box<Self>, response: Response<ResponseBody>) -> Response<ResponseBody> {
        self.status = response.status().as_u16();
        self.grpc_status = grpc_status_of(response.headers());
        self.answered = Some(Instant::now());
        let (mut parts, mut body) = response.into_parts();
        if self.method == Method::HEAD
            && let Some(length) = body.withhold()
        {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        if body.is_end_stream() {
            self.complete = true;
        } else {
            body.record = Some(self);
        }
        Response::from_parts(parts, body)
    }

    fn report(&mut self) {
        let outcome = match &self.ending {
            Ending::Forwarded if !self.complete => Outcome::Cancelled,
            ending => ending.as_outcome(),
        };
        let (peer_identity, peer_address) = match &self.target {
            Some(target) => (&target.endpoint.identity, Some(target.endpoint.address)),
            None => (&self.peer_identity, self.peer_address),
        };
        let event = RequestEvent {
            ends: &self.ends,
            method: self.method.as_str(),
            path: self.uri.path(),
            host: self
                .host
                .as_ref()
                .and_then(|host| host.to_str().ok())
                .or(self.uri.authority().map(|a| a.as_str()))
                .unwrap_or(""),
            status: self.status,
            grpc_status: self.grpc_status,
            duration: self.started.elapsed(),
            overhead: self.answered.map(|answered| (answered - self.started).saturating_sub(self.waited)),
            request_bytes: self.request_body.bytes.get(),
            response_bytes: self.response_bytes,
            outcome,
            route: self.route.as_deref(),
            retries: self.retries,
            peer_identity: peer_identity.as_ref().map(SpiffeId::as_str),
            peer_address,
        };
        self.worker.telemetry.request(&event, self.span.take());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.report();
    }
}

fn grpc_status_of(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The body of an answer on its way to the caller.
pub(crate) struct ResponseBody {
    source: Source,
    pub(crate) record: Option<Box<Record>>,
    deadline: Option<Deadline>,
}

/// When an answer is cut.
struct Deadline {
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// The caller of gRPC over HTTP/2 is told so in trailers.
    grpc: bool,
}

#[expect(clippy::large_enum_variant, reason = "nearly every body is the larger one: a box would cost each request")]
enum Source {
    Local(Option<Bytes>),
    Upstream {
        inner: Incoming,
        /// Goes back to its pool when the answer was read to its end; on the way it counts as load.
        sender: Option<(Sender, Chosen)>,
        /// Ends it when it brings nothing for long; made only where that is set.
        idle: Option<Idle>,
    },
}

/// The time left for the next piece of a body.
struct Idle {
    patience: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(patience: Duration) -> Self {
        Self { patience, timer: Box::pin(tokio::time::sleep(patience)) }
    }

    /// Ready when the time is over; a piece that came begins it anew.
    fn poll(&mut self, cx: &mut Context<'_>, came: bool) -> Poll<()> {
        if came {
            self.timer.as_mut().reset(tokio::time::Instant::now() + self.patience);
            return Poll::Pending;
        }
        self.timer.as_mut().poll(cx)
    }
}

impl ResponseBody {
    pub(crate) fn local(text: Bytes) -> Self {
        Self { source: Source::Local(Some(text).filter(|text| !text.is_empty())), record: None, deadline: None }
    }

    /// Takes away a text of our own, and says how long it was: no answer to HEAD has a body.
    fn withhold(&mut self) -> Option<usize> {
        match &mut self.source {
            Source::Local(text) => text.take().map(|text| text.len()),
            Source::Upstream { .. } => None,
        }
    }

    /// `patience`: for how long it may bring nothing.
    pub(crate) fn upstream(inner: Incoming, sender: Sender, chosen: Chosen, patience: Option<Duration>) -> Self {
        let source = Source::Upstream { inner, sender: Some((sender, chosen)), idle: patience.map(Idle::new) };
        let mut body = Self { source, record: None, deadline: None };
        if body.is_end_stream() {
            body.finish();
        }
        body
    }

    /// Cuts the answer at `at`, should it not be over by then.
    pub(crate) fn end_by(&mut self, at: Instant, grpc: bool) {
        if !self.is_end_stream() {
            self.deadline = Some(Deadline { sleep: Box::pin(tokio::time::sleep_until(at.into())), grpc });
        }
    }

    /// The time is over: what is left of the answer is given up.
    fn cut(&mut self, grpc: bool) -> Result<Frame<Bytes>, BodyError> {
        self.deadline = None;
        self.source = Source::Local(None);
        if let Some(mut record) = self.record.take() {
            record.ending = Ending::Failed("request_timeout");
            record.grpc_status = record.grpc_status.or(grpc.then_some(DEADLINE_EXCEEDED));
        }
        match grpc {
            true => Ok(Frame::trailers(HeaderMap::from_iter([(
                HeaderName::from_static("grpc-status"),
                HeaderValue::from(DEADLINE_EXCEEDED),
            )]))),
            false => Err(BodyError::Deadline),
        }
    }

    /// The answer was read to its end.
    fn finish(&mut self) {
        if let Source::Upstream { sender, .. } = &mut self.source
            && let Some((sender, _chosen)) = sender.take()
        {
            sender.give_back();
        }
        if let Some(mut record) = self.record.take() {
            record.complete = true;
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.sleep.as_mut().poll(cx).is_ready()
        {
            let grpc = deadline.grpc;
            return Poll::Ready(Some(this.cut(grpc)));
        }
        let polled = match &mut this.source {
            Source::Local(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Source::Upstream { inner, idle, .. } => {
                let polled = Pin::new(inner).poll_frame(cx).map_err(BodyError::Incoming);
                let over = |idle: &mut Idle| idle.poll(cx, polled.is_ready()).is_ready().then_some(idle.patience);
                match idle.as_mut().and_then(over) {
                    Some(patience) => Poll::Ready(Some(Err(BodyError::Idle(patience)))),
                    None => polled,
                }
            }
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(record) = &mut this.record {
                    record.response_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                    if let Some(status) = frame.trailers_ref().and_then(grpc_status_of) {
                        record.grpc_status = Some(status);
                    }
                }
                if this.is_end_stream() || frame.is_trailers() {
                    this.finish();
                }
            }
            Poll::Ready(None) => this.finish(),
            Poll::Ready(Some(Err(cut))) => {
                if let Some(record) = &mut this.record {
                    record.ending = Ending::Failed(match cut {
                        BodyError::Idle(_) => "idle_timeout",
                        _ => "response_cut",
                    });
                }
                this.record = None;
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Local(text) => text.is_none(),
            Source::Upstream { inner, .. } => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Local(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Source::Upstream { inner, .. } => inner.size_hint(),
        }
    }
}
