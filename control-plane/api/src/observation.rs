//! Calls that sidecars judged: what one sidecar counts, and what the control plane makes of all of them.
//!
//! A path is known by its template only: segments that look like names of single things (numbers, hexadecimal, UUIDs, long
//! ones) are `{id}`, as the paths of policies have it. Neither queries nor headers nor addresses are kept.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The segment that stands for all that look like the name of a single thing.
pub const ID: &str = "{id}";
/// Bytes of the longest template; a path with a longer one is counted without it.
pub const MAX_TEMPLATE_BYTES: usize = 256;
/// Bytes of the longest segment that is taken for a word.
const LONGEST_WORD: usize = 32;
/// Hexadecimal digits from which on a segment with a digit in it is no word.
const SHORTEST_HEX: usize = 8;

/// What callers without a mesh identity are called.
pub const OUTSIDE: &str = "outside";

/// Calls of one kind, as one sidecar counted them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedCall {
    /// SPIFFE ID of the caller, or [`OUTSIDE`].
    pub source: String,
    /// Port of the workload.
    pub port: u16,
    /// `http1`, `http2`, `grpc` or `tcp`.
    pub protocol: String,
    /// Method of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Template of its path; `None` for a byte stream, and where there are more paths than are kept apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What was decided.
    pub decision: Decided,
    /// The policy that decided: `namespace/name`, `default` or `denied-identities`.
    pub policy: String,
    /// Its rule that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
}

/// What was decided of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decided {
    /// A policy allowed it.
    Allowed,
    /// It passed because the namespace's default is not `deny`; no policy speaks of it.
    Unlisted,
    /// It was refused.
    Refused,
}

impl Decided {
    /// The word that is shown and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Unlisted => "unlisted",
            Self::Refused => "refused",
        }
    }

    /// The decision of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Allowed, Self::Unlisted, Self::Refused].into_iter().find(|decided| decided.as_str() == name)
    }

    /// Whether the call passed.
    pub fn passed(self) -> bool {
        self != Self::Refused
    }
}

/// What one sidecar saw since it told last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    /// Calls with how many there were.
    pub calls: Vec<(ObservedCall, u64)>,
    /// Calls beyond the kinds that are kept apart.
    pub folded: u64,
}

/// Whom calls were made to: workloads that policies cannot tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Their namespace.
    pub namespace: String,
    /// The Services of the namespace that they stand behind.
    pub services: Vec<String>,
    /// Their service account.
    pub service_account: String,
    /// Their labels, without those that differ from replica to replica.
    pub labels: BTreeMap<String, String>,
}

/// A row of what the control plane knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallRecord {
    /// Who was called.
    pub destination: Destination,
    /// One of these workloads: the one that told last.
    pub workload: String,
    /// The call.
    #[serde(flatten)]
    pub call: ObservedCall,
    /// How often.
    pub count: u64,
    /// When last, seconds since 1970, to some ten seconds.
    pub last_seen: u64,
}

/// What the control plane answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallList {
    /// Hours that were looked at, the present one among them.
    pub hours: u32,
    /// Calls in order.
    pub calls: Vec<CallRecord>,
    /// Calls that were counted and no longer kept apart.
    #[serde(default)]
    pub folded: u64,
    /// Replicas of the control plane that did not answer: what their sidecars saw is missing.
    #[serde(default)]
    pub silent: Vec<String>,
}

impl CallList {
    /// Adds what another replica knows.
    pub fn add(&mut self, other: Self) {
        self.folded = self.folded.saturating_add(other.folded);
        self.calls.extend(other.calls);
    }

    /// In order, with each kind of call once.
    #[must_use]
    pub fn merged(mut self) -> Self {
        let mut rows: BTreeMap<(Destination, ObservedCall), CallRecord> = BTreeMap::new();
        for row in std::mem::take(&mut self.calls) {
            match rows.get_mut(&(row.destination.clone(), row.call.clone())) {
                None => drop(rows.insert((row.destination.clone(), row.call.clone()), row)),
                Some(known) => {
                    known.count = known.count.saturating_add(row.count);
                    if row.last_seen > known.last_seen {
                        (known.last_seen, known.workload) = (row.last_seen, row.workload);
                    }
                }
            }
        }
        self.calls = rows.into_values().collect();
        self
    }
}

/// The segments of the template of `path`, a path in normal form; each is one of its own or [`ID`].
pub fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').map(|segment| if is_id(segment) { ID } else { segment })
}

/// The template of `path`, a path in normal form. `None`: it is too long to be kept.
pub fn template(path: &str) -> Option<String> {
    let mut template = String::with_capacity(path.len().min(MAX_TEMPLATE_BYTES));
    for (index, segment) in segments(path).enumerate() {
        if template.len() + segment.len() + 1 > MAX_TEMPLATE_BYTES {
            return None;
        }
        if index > 0 {
            template.push('/');
        }
        template.push_str(segment);
    }
    Some(template)
}

/// Whether a segment is the name of a single thing, or could not stand in the path of a policy as it is.
fn is_id(segment: &str) -> bool {
    if segment.is_empty() || segment == "*" {
        return false;
    }
    let (mut digits, mut hex, mut word) = (0, true, true);
    for byte in segment.bytes() {
        digits += usize::from(byte.is_ascii_digit());
        hex &= byte.is_ascii_hexdigit() || byte == b'-';
        // What is escaped is data; braces and asterisks have a meaning in patterns, semicolons in some servers.
        word &= !matches!(byte, b'%' | b'{' | b'}' | b'*' | b';');
    }
    !word
        || segment.len() > LONGEST_WORD
        || digits == segment.len()
        || (digits > 0 && hex && segment.len() >= SHORTEST_HEX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::pattern::PathPattern;

    #[test]
    fn names_of_single_things_are_left_out_of_paths() {
        for (path, expected) in [
            ("/", "/"),
            ("/stock", "/stock"),
            ("/stock/4711", "/stock/{id}"),
            ("/stock/4711/", "/stock/{id}/"),
            ("/v1/users/3fa85f64-5717-4562-b3fc-2c963f66afa6/orders", "/v1/users/{id}/orders"),
            ("/commits/1f0e9c2a", "/commits/{id}"),
            ("/decade/facade", "/decade/facade"),
            ("/deadbeef", "/deadbeef"),
            ("/files/a%20b", "/files/{id}"),
            ("/a/{x}/b*", "/a/{id}/{id}"),
            ("/s;v=1", "/{id}"),
            ("/token/eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9", "/token/{id}"),
            ("/shop.Inventory/Reserve", "/shop.Inventory/Reserve"),
            ("*", "*"),
        ] {
            let template = template(path).expect("short");
            assert_eq!(template, expected);
            let pattern = PathPattern::parse(&template).expect("a template is a path that policies can name");
            assert!(pattern.matches(path), "{template} does not match {path}");
        }
        assert_eq!(template(&"/ab".repeat(100)), None);
    }

    #[test]
    fn what_replicas_know_of_one_kind_of_call_becomes_one_row() {
        let row = |workload: &str, count, last_seen| CallRecord {
            destination: Destination {
                namespace: "shop".into(),
                services: vec![],
                service_account: "a".into(),
                labels: BTreeMap::new(),
            },
            workload: workload.into(),
            call: ObservedCall {
                source: OUTSIDE.into(),
                port: 80,
                protocol: "tcp".into(),
                method: None,
                path: None,
                decision: Decided::Allowed,
                policy: "default".into(),
                rule: None,
            },
            count,
            last_seen,
        };
        let mut list = CallList { calls: vec![row("a", 1, 10)], folded: 1, ..CallList::default() };
        list.add(CallList { calls: vec![row("b", 2, 20)], folded: 2, ..CallList::default() });
        let mut merged = list.merged();
        assert_eq!((&merged.calls, merged.folded), (&vec![row("b", 3, 20)], 3));
        // Sidecars are believed as to numbers: one that makes them up spoils its own row and ends nothing.
        merged.add(CallList { calls: vec![row("c", u64::MAX, 30)], folded: u64::MAX, ..CallList::default() });
        let merged = merged.merged();
        assert_eq!((merged.calls, merged.folded), (vec![row("c", u64::MAX, 30)], u64::MAX));
    }
}
