//! Judges who may do what. Only here a [`Permit`] is made, and [`super::forward`] demands one.
use std::net::IpAddr;

use weft_api::policy::{Decision, HttpRequest, PolicySet, Source};
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

/// Judges a byte stream before its first byte is forwarded, or one HTTP request. The label names the deciding policy.
pub fn admit(
    policy: &PolicySet,
    caller: &Caller,
    port: u16,
    http: Option<HttpRequest<'_>>,
) -> (Result<Permit, Box<Denial>>, String) {
    let decision: Decision<'_> = policy.decide(caller.source(), port, http);
    let label = decision.label().to_string();
    let judged = match decision.allowed {
        true => Ok(Permit(())),
        false => Err(Box::new(Denial { policy: label.clone(), explanation: decision.explain() })),
    };
    (judged, label)
}
