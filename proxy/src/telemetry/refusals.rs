//! The last calls that were refused or limited, for whoever asks why.
//!
//! A bounded ring of all workers, written for refusals only. It holds what an access log line would: neither queries nor
//! header values nor tokens.
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Refusals that are kept.
const KEPT: usize = 256;
/// Bytes of a path or host that are kept.
const LONGEST: usize = 256;

/// A call that was refused.
#[derive(Clone, Copy, Debug)]
pub struct RefusedCall<'a> {
    /// SPIFFE ID of the caller.
    pub identity: Option<&'a str>,
    /// Its address.
    pub address: std::net::IpAddr,
    /// Port of the workload.
    pub port: u16,
    /// What is spoken.
    pub protocol: super::Protocol,
    /// Method, path without query, and host, of a request.
    pub request: Option<(&'a str, &'a str, &'a str)>,
    /// Answer of a request; 0 for a byte stream.
    pub status: u16,
    /// A stable word, such as `denied`.
    pub reason: &'a str,
    /// `namespace/name` or another word, where a policy decided.
    pub policy: Option<&'a str>,
    /// The limit that was exhausted.
    pub limit: Option<&'a str>,
    /// One sentence.
    pub because: &'a str,
}

/// The same, kept.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Kept {
    /// Milliseconds since 1970.
    time_ms: u64,
    from: String,
    address: String,
    port: u16,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    status: u16,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<String>,
    because: String,
}

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<VecDeque<Kept>>);

impl Refusals {
    pub(super) fn keep(&self, call: &RefusedCall<'_>) {
        let shortened = |text: &str| text[..text.floor_char_boundary(LONGEST)].to_owned();
        let address = call.address.to_string();
        let kept = Kept {
            time_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            from: call.identity.map_or_else(|| address.clone(), str::to_owned),
            address,
            port: call.port,
            protocol: call.protocol.as_str(),
            method: call.request.map(|(method, ..)| shortened(method)),
            path: call.request.map(|(_, path, _)| shortened(path)),
            host: call.request.map(|(.., host)| shortened(host)).filter(|host| !host.is_empty()),
            status: call.status,
            reason: call.reason.to_owned(),
            policy: call.policy.map(str::to_owned),
            limit: call.limit.map(str::to_owned),
            because: call.because.to_owned(),
        };
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(kept);
    }

    /// The last `most`, the newest first.
    pub(super) fn last(&self, most: usize) -> Vec<Kept> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().rev().take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Protocol;

    #[test]
    fn the_newest_refusals_are_kept_and_no_more_of_a_path_than_is_of_use() {
        let ring = Refusals::default();
        let long = format!("/{}", "é".repeat(1_000));
        for port in 1..=300 {
            ring.keep(&RefusedCall {
                identity: None,
                address: [10, 0, 0, 1].into(),
                port,
                protocol: Protocol::Http1,
                request: Some(("GET", &long, "")),
                status: 403,
                reason: "denied",
                policy: Some("default"),
                limit: None,
                because: "refused",
            });
        }
        let kept = ring.last(1_000);
        assert_eq!((kept.len(), kept[0].port, kept[KEPT - 1].port), (KEPT, 300, 45));
        assert!(kept[0].path.as_ref().is_some_and(|path| path.len() <= LONGEST), "{kept:?}");
        assert_eq!((kept[0].from.as_str(), kept[0].host.as_deref()), ("10.0.0.1", None));
        assert_eq!(ring.last(2).len(), 2);
    }
}
