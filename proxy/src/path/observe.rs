//! Tells telemetry of the calls that were judged, and of those that were refused and why: what operators write policies by.
use weft_api::observation::Decided;
use weft_certs::SpiffeId;

use super::inbound::Connection;
use super::record::{Ending, Record};
use super::respond::Answer;
use crate::stage::policy::Judged;
use crate::telemetry::{JudgedCall, Protocol, RefusedCall};

/// Counts a call that policy was asked about. `request`: method and path in normal form.
pub(super) fn observe(of: &Connection, judged: &Judged, protocol: Protocol, request: Option<(&str, &str)>) {
    let decision = match &judged.permit {
        Err(_) => Decided::Refused,
        Ok(_) if judged.unlisted => Decided::Unlisted,
        Ok(_) => Decided::Allowed,
    };
    of.worker.telemetry.judged(JudgedCall {
        source: of.caller.identity().map(SpiffeId::as_str),
        port: of.target.port(),
        protocol,
        request,
        decision,
        policy: &judged.policy,
        rule: judged.rule,
    });
}

/// Keeps a request that is answered without the application.
pub(super) fn keep_refusal(of: &Connection, record: &Record, answer: &Answer) {
    let host = record.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let (policy, limit) = decider(&record.ending);
    of.worker.telemetry.keep_refusal(&RefusedCall {
        identity: of.caller.identity().map(SpiffeId::as_str),
        address: of.peer.ip().to_canonical(),
        port: of.target.port(),
        protocol: record.ends.protocol,
        request: Some((record.method.as_str(), record.uri.path(), host)),
        status: answer.status.as_u16(),
        reason: answer.label,
        policy,
        limit,
        because: &answer.text,
    });
}

/// Keeps a byte stream that was refused, at its beginning or once a change of policy forbade it.
pub(super) fn keep_stream_refusal(of: &Connection, ending: &Ending) {
    let (policy, limit) = decider(ending);
    let (reason, because) = match ending {
        Ending::Denied { reason, .. } => ("denied", reason.as_str()),
        Ending::Limited { .. } => ("rate_limited", "a limit is exhausted"),
        Ending::Forwarded | Ending::Failed(_) => return,
    };
    of.worker.telemetry.keep_refusal(&RefusedCall {
        identity: of.caller.identity().map(SpiffeId::as_str),
        address: of.peer.ip().to_canonical(),
        port: of.target.port(),
        protocol: Protocol::Tcp,
        request: None,
        status: 0,
        reason,
        policy,
        limit,
        because,
    });
}

fn decider(ending: &Ending) -> (Option<&str>, Option<&str>) {
    match ending {
        Ending::Denied { policy, .. } => (Some(policy), None),
        Ending::Limited { policy, limit } => (Some(policy), Some(limit)),
        Ending::Forwarded | Ending::Failed(_) => (None, None),
    }
}
