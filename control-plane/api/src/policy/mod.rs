//! The policy engine: compile, decide, explain. Pure: no I/O, no clock.
//!
//! The same engine runs in the sidecar, at admission and in the command line. Its order: denied identities, policies
//! that cannot be understood, Deny, Allow, the namespace's default. It never widens access for what it does not know.
use std::fmt;
use std::net::IpAddr;

use weft_certs::SpiffeId;

use crate::resource::{AuthorizationPolicy, NamespacedName, Subject};

pub mod claims;
mod compiled;
mod host;
pub mod path;
pub mod pattern;
mod set;
mod trace;

pub use claims::Claims;
pub use set::{AppliedPolicy, PolicySet};
pub use trace::{PolicyTrace, RuleTrace, trace};

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its mesh identity, proven by mTLS against the one trust domain of the mesh.
    pub identity: Option<&'a SpiffeId>,
    /// Its socket address, without mapping (`::ffff:1.2.3.4` is given as `1.2.3.4`).
    pub address: IpAddr,
}

/// What is asked for, of an HTTP request.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    /// Method, as sent, accepted by [`path::check_method`].
    pub method: &'a str,
    /// Path after [`path::normalize`], without query.
    pub path: &'a str,
    /// Host after [`path::normalize_host`], without port.
    pub host: &'a str,
    /// Header fields (conditions).
    pub headers: &'a http::HeaderMap,
    /// What the request's token claims, once verified; `None`: it has no token.
    pub claims: Option<&'a Claims>,
}

/// A decision with its reason: policy and rule are named.
///
/// It is shown as one sentence that holds nothing of the request, fit for the body of a refusal and for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether the call may pass.
    pub allowed: bool,
    /// The policy that decided; `None`: the namespace's default did, or the list of denied identities.
    pub policy: Option<&'a NamespacedName>,
    /// Why.
    pub reason: Reason,
}

/// Why a decision fell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// This rule (counted from 0) of the named policy matched.
    Rule(usize),
    /// The named Deny policy has no rules: it refuses everything it applies to.
    NoRules,
    /// Allow policies apply here and none of their rules matched; the named policy is the first of them by name.
    NoRuleMatched,
    /// No policy spoke of the call: the namespace's default decided.
    Default,
    /// The caller's identity is on the denied list.
    DeniedIdentity,
    /// The named policy could not be understood, so it refuses everything it applies to.
    Unreadable,
}

/// The `policy` label of metrics: `namespace/name`, `default`, or `denied-identities`. No namespace is empty, so neither
/// of the two words can be a policy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label<'a> {
    /// This policy decided.
    Policy(&'a NamespacedName),
    /// The namespace's default did.
    Default,
    /// The list of denied identities did.
    DeniedIdentities,
}

impl<'a> Decision<'a> {
    /// The `policy` label of metrics. Its values come from the configuration, never from the request.
    pub fn label(&self) -> Label<'a> {
        match (self.policy, self.reason) {
            (Some(policy), _) => Label::Policy(policy),
            (None, Reason::DeniedIdentity) => Label::DeniedIdentities,
            (None, _) => Label::Default,
        }
    }

    /// Whether the call passed only because the namespace's default is not `deny`.
    pub fn is_unlisted(&self) -> bool {
        self.allowed && self.reason == Reason::Default
    }

    /// One sentence that names policy, rule and reason. The same as its `Display`.
    pub fn explain(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(name) => name.fmt(f),
            Self::Default => f.write_str("default"),
            Self::DeniedIdentities => f.write_str("denied-identities"),
        }
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allowed { "allowed" } else { "refused" })?;
        match (self.reason, self.policy) {
            (Reason::Rule(rule), Some(policy)) => write!(f, " by rules[{rule}] of AuthorizationPolicy {policy}"),
            (Reason::NoRules, Some(policy)) => write!(f, " by AuthorizationPolicy {policy}, which refuses every call"),
            (Reason::NoRuleMatched, Some(policy)) => {
                write!(f, ": no rule of the Allow policies that apply here matches (the first is {policy})")
            }
            (Reason::Unreadable, Some(policy)) => {
                write!(f, " by policy {policy}, which this version cannot read and therefore refuses every call")
            }
            (Reason::DeniedIdentity, _) => f.write_str(": the caller's identity is on the list of denied identities"),
            (Reason::Default, _) => f.write_str(" by the namespace's default: no policy speaks of this call"),
            (reason, None) => write!(f, ": {reason:?}"),
        }
    }
}

/// The policies of `policies` that apply to `subject`, whatever their mode.
pub fn applicable<'p>(
    policies: impl IntoIterator<Item = &'p AuthorizationPolicy>,
    subject: Subject<'_>,
) -> impl Iterator<Item = &'p AuthorizationPolicy> {
    policies.into_iter().filter(move |policy| policy.applies_to(subject))
}
