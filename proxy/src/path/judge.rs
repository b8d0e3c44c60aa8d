//! What is judged of an inbound connection: policy, then limits, of its byte streams and of its requests.
use std::sync::Arc;
use std::time::Instant;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::sync::watch;
use weft_api::policy::{HttpRequest, path};

use super::Worker;
use super::exact::bad_request;
use super::http::begins_websocket;
use super::inbound::Connection;
use super::observe::observe;
use super::record::{Ending, Record};
use super::respond::Answer;
use crate::stage::policy::{self, Caller, Denial, Judged, Permit};
use crate::stage::rate_limit::Limited;
use crate::stage::route::MeshView;
use crate::telemetry::{Protocol, Verdict};

/// What policy says of a byte stream of this caller now.
pub(super) fn admit_stream(worker: &Worker, caller: &Caller, port: u16) -> Judged {
    let view = worker.view();
    policy::admit(&view.config.inbound.policy, caller, port, None)
}

impl Connection {
    pub(super) fn admit_stream(&self) -> Judged {
        admit_stream(&self.worker, &self.caller, self.target.port())
    }

    pub(super) fn count(&self, judged: &Judged, protocol: Protocol, request: Option<(&str, &str)>) {
        let telemetry = &self.worker.telemetry;
        let verdict = if judged.permit.is_ok() { Verdict::Allow } else { Verdict::Deny };
        telemetry.authorization(verdict, &judged.policy);
        if let Some(shadow) = &judged.shadow {
            telemetry.authorization(Verdict::ShadowDeny, shadow);
        }
        observe(self, judged, protocol, request);
    }

    /// Returns once a configuration that is newer than the one seen in `view` forbids what was permitted.
    pub(super) async fn until_forbidden(&self, mut view: watch::Receiver<Option<Arc<MeshView>>>) -> Box<Denial> {
        loop {
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Err(denial) = self.admit_stream().permit {
                return denial;
            }
        }
    }

    pub(super) fn limit(&self) -> Result<(), Limited> {
        let limiter = Arc::clone(&self.worker.limiter.borrow());
        if limiter.is_empty() {
            return Ok(());
        }
        let telemetry = &self.worker.telemetry;
        let taken =
            limiter.admit(&self.caller, Instant::now(), |policy, limit| telemetry.rate_limit(false, policy, limit));
        taken.inspect_err(|limited| telemetry.rate_limit(true, &limited.policy, &limited.limit))
    }

    /// Policy, then limits. Returns the path to forward where it differs from what was sent: the application receives
    /// what was compared.
    pub(super) fn judge(
        &self,
        request: &Request<Incoming>,
        host: Option<&HeaderValue>,
        record: &mut Record,
    ) -> Result<(Permit, Option<PathAndQuery>), Answer> {
        let refuse = |record: &mut Record, label, text: &str| {
            record.ending = Ending::Failed(label);
            bad_request(label, text)
        };
        let method = if begins_websocket(request) { &Method::GET } else { request.method() };
        path::check_method(method.as_str()).map_err(|why| refuse(record, why.label(), "the method"))?;
        let sent = request.uri().path();
        let compared =
            path::normalize(sent).map_err(|why| refuse(record, why.label(), "the path has no single reading"))?;
        let host = match host {
            Some(host) => {
                std::str::from_utf8(host.as_bytes()).map_err(|_| refuse(record, "host", "the Host header"))?
            }
            None => "",
        };
        let host = match host.is_empty() {
            true => host.into(),
            false => path::normalize_host(host).map_err(|why| refuse(record, why.label(), "the Host header"))?,
        };
        let http = HttpRequest {
            method: method.as_str(),
            path: &compared,
            host: &host,
            headers: request.headers(),
            claims: None,
        };
        let view = self.worker.view();
        let judged = policy::admit(&view.config.inbound.policy, &self.caller, self.target.port(), Some(http));
        self.count(&judged, record.ends.protocol, Some((method.as_str(), &compared)));
        let permit = judged.permit.map_err(|denial| {
            let answer = Answer::new(StatusCode::FORBIDDEN, "denied", denial.explanation.clone());
            record.ending = Ending::Denied { policy: denial.policy, reason: denial.explanation };
            answer
        })?;
        if let Err(limited) = self.limit() {
            let text = format!("limit {} of RateLimitPolicy {} is exhausted", limited.limit, limited.policy);
            let mut answer = Answer::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", text);
            answer.retry_after = Some(limited.retry_after);
            record.ending = Ending::Limited { policy: limited.policy, limit: limited.limit };
            return Err(answer);
        }
        if compared == sent {
            return Ok((permit, None));
        }
        let target = match request.uri().query() {
            Some(query) => format!("{compared}?{query}"),
            None => compared.into_owned(),
        };
        PathAndQuery::try_from(target)
            .map(|path| (permit, Some(path)))
            .map_err(|_| refuse(record, "path", "the path has no single reading"))
    }
}
