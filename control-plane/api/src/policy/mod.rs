//! The policy engine: compile, decide, explain. Pure: no I/O, no clock.
use std::net::IpAddr;

use weft_certs::SpiffeId;

use crate::resource::NamespacedName;

pub mod path;

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its mesh identity, proven by mTLS.
    pub identity: Option<&'a SpiffeId>,
    /// Its socket address, without mapping (`::ffff:1.2.3.4` is given as `1.2.3.4`).
    pub address: IpAddr,
}

/// What is asked for, of an HTTP request.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    /// Method, as sent.
    pub method: &'a str,
    /// Path after [`path::normalize`], without query.
    pub path: &'a str,
    /// Host after [`path::normalize_host`], without port.
    pub host: &'a str,
    /// Header fields (conditions).
    pub headers: &'a http::HeaderMap,
}

/// A decision with its reason: policy and rule are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether the call may pass.
    pub allowed: bool,
    /// The policy that decided; `None`: the namespace's default did.
    pub policy: Option<&'a NamespacedName>,
    /// Why.
    pub reason: Reason,
}

/// Why a decision fell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This rule (counted from 0) of the named policy matched.
    Rule(usize),
    /// Allow policies apply here and none of their rules matched; the named policy is one of them.
    NoRuleMatched,
    /// No policy applies: the namespace's default decided.
    Default,
    /// The caller's identity is on the denied list.
    DeniedIdentity,
    /// The named policy could not be understood, so it refuses everything it applies to.
    Unreadable,
}

/// All AuthorizationPolicies of one workload, compiled.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PolicySet {}

impl PolicySet {
    /// Judges a byte stream (`http` absent) or an HTTP request to `port`.
    ///
    /// A Deny rule with HTTP fields matches a byte stream whenever its other fields do: bytes that were not judged as
    /// HTTP are never passed on where HTTP is restricted. An Allow rule with HTTP fields never matches a byte stream.
    pub fn decide(&self, _source: Source<'_>, _port: u16, _http: Option<HttpRequest<'_>>) -> Decision<'_> {
        todo!()
    }
}
