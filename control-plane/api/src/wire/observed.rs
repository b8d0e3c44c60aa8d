//! What a sidecar says of the calls that it judged.
use weft_certs::SpiffeId;

use super::{WireError, decode, proto};
use crate::observation::{Decided, MAX_TEMPLATE_BYTES, OUTSIDE, Observations, ObservedCall};
use crate::policy::path::check_method;

/// Kinds of calls in one message: with the longest texts it stays within [`super::MAX_REQUEST_BYTES`].
pub const MAX_OBSERVED: usize = 16;
/// Bytes of a policy's name with its namespace.
const MAX_POLICY_BYTES: usize = 320;
const PROTOCOLS: [&str; 4] = ["http1", "http2", "grpc", "tcp"];

/// Cuts what a sidecar saw into parts that each fit into one message.
pub fn observed_parts(observations: Observations) -> impl Iterator<Item = Observations> {
    let Observations { mut calls, mut folded } = observations;
    std::iter::from_fn(move || {
        if calls.is_empty() && folded == 0 {
            return None;
        }
        let rest = calls.split_off(calls.len().min(MAX_OBSERVED));
        let part = std::mem::replace(&mut calls, rest);
        Some(Observations { calls: part, folded: std::mem::take(&mut folded) })
    })
}

pub(super) fn encode(observations: &Observations) -> proto::Observations {
    let call = |(call, count): &(ObservedCall, u64)| proto::ObservedCall {
        source: if call.source == OUTSIDE { String::new() } else { call.source.clone() },
        port: call.port.into(),
        protocol: call.protocol.clone(),
        method: call.method.clone().unwrap_or_default(),
        path: call.path.clone().unwrap_or_default(),
        decision: call.decision.as_str().to_owned(),
        policy: call.policy.clone(),
        rule: call.rule,
        count: *count,
    };
    proto::Observations { calls: observations.calls.iter().map(call).collect(), folded: observations.folded }
}

pub(super) fn decode(message: proto::Observations) -> Result<Observations, WireError> {
    decode::bounded("observations.calls", message.calls.len(), MAX_OBSERVED)?;
    let calls = message.calls.into_iter().enumerate();
    let calls = calls.map(|(index, message)| {
        let field = |name: &str| format!("observations.calls[{index}].{name}");
        let wrong = |name: &str, why: &str| WireError::new(field(name), why);
        let plain = |text: &str| text.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        if !message.source.is_empty() && SpiffeId::parse(&message.source).is_err() {
            return Err(wrong("source", "not a SPIFFE ID"));
        }
        if !PROTOCOLS.contains(&message.protocol.as_str()) {
            return Err(wrong("protocol", "not a protocol"));
        }
        if !message.method.is_empty() && check_method(&message.method).is_err() {
            return Err(wrong("method", "not a method"));
        }
        let is_path = message.path.is_empty() || message.path.starts_with('/') || message.path == "*";
        if !is_path || message.path.len() > MAX_TEMPLATE_BYTES || !plain(&message.path) {
            return Err(wrong("path", "not a path"));
        }
        if !(1..=MAX_POLICY_BYTES).contains(&message.policy.len()) || !plain(&message.policy) {
            return Err(wrong("policy", "not the name of a policy"));
        }
        let call = ObservedCall {
            source: given(message.source).unwrap_or_else(|| OUTSIDE.to_owned()),
            port: decode::port(message.port, || field("port"))?,
            protocol: message.protocol,
            method: given(message.method),
            path: given(message.path),
            decision: Decided::from_name(&message.decision).ok_or_else(|| wrong("decision", "not a decision"))?,
            policy: message.policy,
            rule: message.rule,
        };
        Ok((call, message.count))
    });
    Ok(Observations { calls: calls.collect::<Result<_, _>>()?, folded: message.folded })
}

#[cfg(test)]
mod tests {
    use super::super::{MAX_REQUEST_BYTES, SidecarMessage, decode_sidecar_message, encode_sidecar_message};
    use super::*;
    use prost::Message as _;

    fn call() -> ObservedCall {
        ObservedCall {
            source: "spiffe://cluster.local/ns/shop/sa/orders".into(),
            port: 8080,
            protocol: "http1".into(),
            method: Some("GET".into()),
            path: Some("/stock/{id}".into()),
            decision: Decided::Unlisted,
            policy: "default".into(),
            rule: Some(3),
        }
    }

    #[test]
    fn observations_arrive_as_they_were_sent_in_parts_that_fit() {
        let longest = ObservedCall {
            source: format!("spiffe://cluster.local/{}", "x".repeat(2_000)),
            path: Some(format!("/{}", "x".repeat(MAX_TEMPLATE_BYTES - 1))),
            method: Some("M".repeat(64)),
            policy: "p".repeat(MAX_POLICY_BYTES),
            ..call()
        };
        let stream = ObservedCall { source: OUTSIDE.into(), method: None, path: None, rule: None, ..call() };
        let mut calls: Vec<_> = (0..40).map(|index| (ObservedCall { port: 1 + index, ..longest.clone() }, 7)).collect();
        calls.extend([(call(), 1), (stream, 2)]);
        let sent = Observations { calls, folded: 5 };
        let mut received = Observations::default();
        for part in observed_parts(sent.clone()) {
            let message = encode_sidecar_message(&SidecarMessage::Observed(part));
            assert!(message.encoded_len() <= MAX_REQUEST_BYTES, "{} bytes", message.encoded_len());
            let Ok(SidecarMessage::Observed(part)) = decode_sidecar_message(message) else { panic!("another message") };
            received.calls.extend(part.calls);
            received.folded += part.folded;
        }
        assert_eq!(received, sent);
        assert_eq!(observed_parts(Observations::default()).count(), 0, "nothing is not told");
    }

    #[test]
    fn what_is_no_observation_is_refused() {
        let good = || encode(&Observations { calls: vec![(call(), 1)], folded: 0 });
        type Change = fn(&mut proto::ObservedCall);
        let rows: [(&str, Change); 9] = [
            ("source", |call| call.source = "orders".into()),
            ("port", |call| call.port = 70_000),
            ("protocol", |call| call.protocol = "udp".into()),
            ("method", |call| call.method = "get".into()),
            ("path", |call| call.path = "stock".into()),
            ("path", |call| call.path = "/a\u{1b}[2J".into()),
            ("path", |call| call.path = format!("/{}", "x".repeat(300))),
            ("decision", |call| call.decision = "perhaps".into()),
            ("policy", |call| call.policy = String::new()),
        ];
        for (field, change) in rows {
            let mut message = good();
            change(&mut message.calls[0]);
            assert_eq!(decode(message).expect_err(field).field, format!("observations.calls[0].{field}"));
        }
        let mut many = good();
        many.calls = vec![many.calls[0].clone(); MAX_OBSERVED + 1];
        assert_eq!(decode(many).expect_err("many").field, "observations.calls");
    }
}
