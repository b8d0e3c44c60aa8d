//! Judges who may do what. Only here a [`Permit`] is made, and [`super::forward`] demands one.
use std::net::IpAddr;

use weft_api::policy::{Decision, HttpRequest, PolicySet, Reason, Source};
use weft_certs::{Peer, SpiffeId};

/// Proof that policy was asked and allowed it.
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    /// For what leaves the pod: the destination's sidecar judges it before anything reaches the application there.
    pub fn of_destination() -> Self {
        Self(())
    }
}

/// A refusal, with what the caller and the operator are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// `namespace/name` of the policy that decided, or `default`.
    pub policy: String,
    /// One sentence.
    pub explanation: String,
}

/// The caller of an inbound connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Proven by its certificate; `None`: outside the mesh.
    pub peer: Option<Peer>,
    /// Its socket address.
    pub address: IpAddr,
}

impl Caller {
    /// Its SPIFFE ID.
    pub fn identity(&self) -> Option<&SpiffeId> {
        self.peer.as_ref().map(|peer| &peer.id)
    }
    fn source(&self) -> Source<'_> {
        Source { identity: self.identity(), address: self.address }
    }
}

/// What policy said of a call.
#[derive(Debug)]
pub struct Judged {
    /// Whether it may pass.
    pub permit: Result<Permit, Box<Denial>>,
    /// The policy that decided: `namespace/name`, or the word for the namespace's default.
    pub policy: String,
    /// It may pass only because the namespace's default is not `deny`.
    pub unlisted: bool,
    /// The rule of that policy that matched.
    pub rule: Option<u32>,
    /// It may pass, but the policy of this name, in Shadow mode, would refuse it.
    pub shadow: Option<String>,
}

/// Judges a byte stream before its first byte is forwarded, or one HTTP request.
pub fn admit(policy: &PolicySet, caller: &Caller, port: u16, http: Option<HttpRequest<'_>>) -> Judged {
    let decision: Decision<'_> = policy.decide(caller.source(), port, http);
    let label = decision.label().to_string();
    let unlisted = decision.is_unlisted();
    let rule = match decision.reason {
        Reason::Rule(rule) => u32::try_from(rule).ok(),
        _ => None,
    };
    if !decision.allowed {
        let denial = Denial { policy: label.clone(), explanation: decision.explain() };
        return Judged { permit: Err(Box::new(denial)), policy: label, unlisted, rule, shadow: None };
    }
    let shadow = policy.shadow(caller.source(), port, http).filter(|shadow| !shadow.allowed);
    let shadow = shadow.map(|shadow| shadow.label().to_string());
    Judged { permit: Ok(Permit(())), policy: label, unlisted, rule, shadow }
}
