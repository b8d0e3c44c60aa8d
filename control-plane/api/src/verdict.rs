//! Judges one call for people: as the sidecar of the called workload would, with what each policy says of it.
use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::case::{Expected, Request};
use crate::policy::path::{Ambiguous, check_method, normalize, normalize_host};
use crate::policy::{Decision, HttpRequest, PolicySet, PolicyTrace, Reason, Source, trace};

/// What becomes of a call, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `allowed`, `refused` or `malformed`.
    pub decision: String,
    /// What an HTTP caller would see if the application said 200.
    pub status: u16,
    /// The policy that decided, `default`, `denied-identities`, or what of the call has more than one reading.
    pub by: String,
    /// Its rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// One sentence that holds nothing of the call.
    pub because: String,
    /// What each policy says, in the order in which they are asked.
    pub trace: Vec<PolicyTrace>,
}

impl Verdict {
    /// Judges a byte stream (`request` absent) or a request to `port`. What has no single reading is refused before policy
    /// is asked. `host` is what a request names that says nothing else.
    pub fn of(policy: &PolicySet, source: Source<'_>, port: u16, request: Option<&Request>, host: &str) -> Self {
        let Some(request) = request else {
            return Self::new(&policy.decide(source, port, None), trace(policy, source, port, None));
        };
        Self::of_request(policy, source, port, request, host).unwrap_or_else(Self::malformed)
    }

    fn of_request(
        policy: &PolicySet,
        source: Source<'_>,
        port: u16,
        request: &Request,
        host: &str,
    ) -> Result<Self, Ambiguous> {
        check_method(&request.method)?;
        let path = normalize(&request.path)?;
        let host: Cow<'_, str> = match &request.host {
            // HTTP/1.0 may name none.
            Some(host) if host.is_empty() => "".into(),
            Some(host) => normalize_host(host)?,
            None => host.into(),
        };
        let (method, claims) = (request.method.as_str(), request.claims.as_ref());
        let http = HttpRequest { method, path: &path, host: &host, headers: &request.headers, claims };
        Ok(Self::new(&policy.decide(source, port, Some(http)), trace(policy, source, port, Some(http))))
    }

    fn new(decision: &Decision<'_>, trace: Vec<PolicyTrace>) -> Self {
        let rule = match decision.reason {
            Reason::Rule(rule) => Some(rule),
            _ => None,
        };
        let (word, status) = if decision.allowed { (Expected::Allowed, 200) } else { (Expected::Refused, 403) };
        let (by, because) = (decision.label().to_string(), decision.explain());
        Self { decision: word.as_str().to_owned(), status, by, rule, because, trace }
    }

    fn malformed(why: Ambiguous) -> Self {
        Self {
            decision: Expected::Malformed.as_str().to_owned(),
            status: 400,
            by: why.label().to_owned(),
            rule: None,
            because: format!("refused with 400: {why}"),
            trace: Vec::new(),
        }
    }

    /// Whether it passes.
    pub fn allowed(&self) -> bool {
        self.decision == Expected::Allowed.as_str()
    }

    /// `shop/readers rule 0`, `default`.
    pub fn decider(&self) -> String {
        match self.rule {
            Some(rule) => format!("{} rule {rule}", self.by),
            None => self.by.clone(),
        }
    }
}
