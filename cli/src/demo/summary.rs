//! What the demo promises, and what became of each promise.
//!
//! A promise counts as seen only when a check has said what it saw; until then it is not seen.
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// What the demo shows. Each is observed or reported as not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Allowed calls.
    MutualTls,
    /// The wire.
    NoPlaintext,
    /// The stranger.
    Stranger,
    /// A forbidden call.
    Forbidden,
    /// The rate limit.
    Burst,
    /// The edited policy.
    PolicyEdit,
    /// The control plane's absence.
    ControlPlaneAway,
    /// Renewal.
    Renewal,
}

impl Promise {
    /// All, in the order in which they are checked.
    pub(crate) const ALL: [Self; 8] = [
        Self::MutualTls,
        Self::NoPlaintext,
        Self::Stranger,
        Self::Forbidden,
        Self::Burst,
        Self::PolicyEdit,
        Self::ControlPlaneAway,
        Self::Renewal,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::MutualTls => "allowed calls succeed with mutual TLS between the right identities",
            Self::NoPlaintext => "no plaintext crosses the wire",
            Self::Stranger => "the stranger is refused",
            Self::Forbidden => "a call that policy does not allow gets 403 and names the policy",
            Self::Burst => "a burst gets 429 and harms nobody else",
            Self::PolicyEdit => "a policy edited while running takes effect",
            Self::ControlPlaneAway => "traffic goes on while the control plane is stopped",
            Self::Renewal => "certificates are renewed during load without one failed request",
        }
    }
}

/// Of a promise that was not looked at.
const UNREACHED: &str = "the demo did not get that far";

/// What became of a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Observation {
    /// The promise.
    pub(crate) name: &'static str,
    /// Whether it was observed.
    pub(crate) seen: bool,
    /// What was observed, or why it was not.
    pub(crate) detail: String,
}

/// Requests that the demo made, by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Requests {
    /// Answered with 2xx.
    pub(crate) ok: u64,
    /// Refused by policy with 403.
    pub(crate) denied: u64,
    /// Refused by a rate limit with 429.
    pub(crate) limited: u64,
    /// The connection was refused, before a request was read.
    pub(crate) refused: u64,
    /// Everything else.
    pub(crate) failed: u64,
}

impl Requests {
    /// Counts `count` answers with `status`.
    pub(crate) fn add(&mut self, status: u16, count: u64) {
        match status {
            200..=299 => self.ok += count,
            403 => self.denied += count,
            429 => self.limited += count,
            _ => self.failed += count,
        }
    }
}

/// The load on orders.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct LoadSummary {
    /// Orders that were answered with 200.
    pub(crate) ok: u64,
    /// All others.
    pub(crate) failed: u64,
    /// Orders a second.
    pub(crate) per_second: f64,
    /// Median time of an order.
    pub(crate) p50_ms: f64,
    /// 99th percentile.
    pub(crate) p99_ms: f64,
}

/// The whole outcome, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    /// One a promise.
    pub(crate) promises: Vec<Observation>,
    /// Everything that was asked, the load included.
    pub(crate) requests: Requests,
    /// The identity that each application's certificate proved to its peers.
    pub(crate) identities: BTreeMap<String, String>,
    /// The load alone.
    pub(crate) load: LoadSummary,
    /// Texts of failures, with their number.
    pub(crate) failures: BTreeMap<String, u64>,
    /// How long the load lasted.
    pub(crate) seconds: f64,
}

impl Summary {
    /// Nothing seen yet.
    pub(crate) fn new() -> Self {
        let unseen = |promise: Promise| Observation { name: promise.name(), seen: false, detail: UNREACHED.to_owned() };
        Self {
            promises: Promise::ALL.map(unseen).to_vec(),
            requests: Requests::default(),
            identities: BTreeMap::new(),
            load: LoadSummary::default(),
            failures: BTreeMap::new(),
            seconds: 0.0,
        }
    }

    /// Says what a check saw, or why it did not.
    pub(crate) fn record(&mut self, promise: Promise, outcome: anyhow::Result<String>) -> &Observation {
        let seen = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|error| format!("{error:#}"));
        let index = Promise::ALL.iter().position(|other| *other == promise).unwrap_or_default();
        self.promises[index] = Observation { name: promise.name(), seen, detail };
        &self.promises[index]
    }

    /// Says why the demo ended early.
    pub(crate) fn cut_short(&mut self, why: &anyhow::Error) {
        for promise in self.promises.iter_mut().filter(|promise| promise.detail == UNREACHED) {
            promise.detail = format!("{UNREACHED}: {why:#}");
        }
    }

    /// Whether everything that was promised was seen.
    pub(crate) fn complete(&self) -> bool {
        self.promises.iter().all(|promise| promise.seen)
    }

    /// For people.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        for promise in &self.promises {
            let _ = writeln!(text, "{} {}\n    {}", mark(promise.seen), promise.name, indented(&promise.detail));
        }
        let Requests { ok, denied, limited, refused, failed } = self.requests;
        let _ = writeln!(
            text,
            "requests: {ok} ok, {denied} denied, {limited} limited, {refused} refused, {failed} failed in {:.1} s \
             (orders: {:.0} a second, p50 {:.1} ms, p99 {:.1} ms)",
            self.seconds, self.load.per_second, self.load.p50_ms, self.load.p99_ms
        );
        for (failure, count) in &self.failures {
            let _ = writeln!(text, "  {count} × {}", indented(failure));
        }
        let seen = self.promises.iter().filter(|promise| promise.seen).count();
        let _ = write!(text, "{seen} of {} promises seen", self.promises.len());
        text
    }
}

/// The sign before a promise.
pub(crate) const fn mark(seen: bool) -> &'static str {
    if seen { "seen    " } else { "NOT SEEN" }
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n      ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_seen_counts() {
        let mut summary = Summary::new();
        assert!(!summary.complete());
        for promise in Promise::ALL {
            assert!(!summary.complete());
            assert!(summary.record(promise, Ok("as told".into())).seen);
        }
        assert!(summary.complete());
        summary.cut_short(&anyhow::anyhow!("interrupted"));
        assert!(summary.complete(), "what was seen stays seen");
        summary.record(Promise::Burst, Err(anyhow::anyhow!("the cause").context("no 429")));
        assert!(!summary.complete());
        let told = serde_json::to_value(&summary).expect("it is plain data");
        assert_eq!(told["promises"][4]["seen"], false);
        assert_eq!(told["promises"][4]["detail"], "no 429: the cause");
        assert!(summary.to_text().contains("7 of 8 promises seen"));
    }

    #[test]
    fn requests_are_counted_by_outcome() {
        let mut requests = Requests::default();
        for (status, count) in [(200, 5), (204, 1), (403, 2), (429, 3), (502, 4), (404, 1)] {
            requests.add(status, count);
        }
        assert_eq!(requests, Requests { ok: 6, denied: 2, limited: 3, refused: 0, failed: 5 });
    }
}
