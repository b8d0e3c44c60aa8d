//! Who is asking for a certificate. The name comes from what is proven here, never from the request.
//!
//! On hosts there are two proofs: the client certificate of the connection (renewal of that same identity), or a join token
//! in the `authorization` metadata. On Kubernetes there is one, the pod's token ([`super::token_review`]); the certificate
//! counts only while the API server cannot be asked. Callers are told nothing of why a proof failed; the log is.
use std::time::SystemTime;

use tonic::metadata::MetadataMap;
use weft_api::resource::NamespacedName;
use weft_certs::{Peer, SpiffeId, TrustDomain};

use super::token::{TokenError, TokenKey};
use super::token_review::{ReviewError, TokenReviews};
use crate::cluster::events::Notice;
use crate::config::control_plane_id;
use crate::publish::Publisher;

/// Somebody who proved an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The proven identity.
    pub id: SpiffeId,
    /// By what.
    pub proof: Proof,
}

impl Caller {
    /// What an operator is told when the caller gets no certificate. `None`: the identity is nobody's in a cluster.
    pub(super) fn notice(&self, why: &str) -> Option<Notice> {
        let pod = match &self.proof {
            Proof::Pod { name, uid } => self
                .id
                .service_account()
                .map(|(namespace, _)| (NamespacedName::new(namespace, name.as_str()), uid.clone())),
            Proof::Certificate | Proof::JoinToken(_) => None,
        };
        Notice::certificate_refused(&self.id, pod, why)
    }
}

/// What an identity was proven by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The certificate that is to be renewed.
    Certificate,
    /// A join token, by its name.
    JoinToken(String),
    /// A pod's token.
    Pod {
        /// The pod.
        name: String,
        /// Its UID.
        uid: String,
    },
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate => f.write_str("certificate"),
            Self::JoinToken(token) => write!(f, "join token {token}"),
            Self::Pod { name, uid } => write!(f, "token of pod {name} ({uid})"),
        }
    }
}

/// Why nobody was recognized. For the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// No certificate and no token.
    #[error("neither a client certificate nor a join token")]
    Nothing,
    /// The `authorization` metadata holds something else.
    #[error("the authorization metadata is not one 'Bearer <join token>'")]
    Scheme,
    /// The token proves nothing.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The pod's token proves nothing.
    #[error(transparent)]
    Review(#[from] ReviewError),
    /// The certificate proves nothing that a workload may be.
    #[error("the client certificate is {0}")]
    Certificate(String),
}

/// What identities are proven by here.
pub enum Attestation {
    /// Join tokens, on hosts.
    JoinTokens(Box<TokenKey>),
    /// Pods' tokens, on Kubernetes.
    Pods(Box<TokenReviews>),
}

impl Attestation {
    /// Recognizes the caller.
    ///
    /// # Errors
    /// Why nobody was recognized.
    pub async fn identify(
        &self,
        peer: Option<&Peer>,
        metadata: &MetadataMap,
        publisher: &Publisher,
        now: SystemTime,
    ) -> Result<Caller, Unproven> {
        let reviews = match self {
            Self::JoinTokens(tokens) => return identify(peer, metadata, tokens, now),
            Self::Pods(reviews) => reviews,
        };
        let unavailable = match reviews.identify(bearer(metadata)?).await {
            Err(unavailable @ Unproven::Review(ReviewError::Unavailable(_))) => unavailable,
            decided => return decided,
        };
        // An API server that is away for longer than certificates live must not take the mesh with it.
        match peer.filter(|peer| peer.not_after > now && publisher.replicas(&peer.id) > 0) {
            Some(peer) => of_certificate(peer, reviews.trust_domain()),
            None => Err(unavailable),
        }
    }
}

/// Recognizes the caller. A valid client certificate decides; else the join token does.
///
/// # Errors
/// Why nobody was recognized.
pub fn identify(
    peer: Option<&Peer>,
    metadata: &MetadataMap,
    tokens: &TokenKey,
    now: SystemTime,
) -> Result<Caller, Unproven> {
    let Some(peer) = peer.filter(|peer| peer.not_after > now) else {
        let token = tokens.check(bearer(metadata)?, now)?;
        return Ok(Caller { id: token.id, proof: Proof::JoinToken(token.token) });
    };
    of_certificate(peer, tokens.trust_domain())
}

fn of_certificate(peer: &Peer, trust_domain: &TrustDomain) -> Result<Caller, Unproven> {
    may_be_a_workload(&peer.id, trust_domain).map_err(|why| Unproven::Certificate(format!("{}, {why}", peer.id)))?;
    Ok(Caller { id: peer.id.clone(), proof: Proof::Certificate })
}

/// Whether certificates are issued for `id` on request.
pub(super) fn may_be_a_workload(id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), &'static str> {
    if id.trust_domain() != trust_domain.as_str() {
        return Err("of another trust domain");
    }
    if *id == control_plane_id(trust_domain) {
        return Err("the control plane's own, which is never issued on request");
    }
    Ok(())
}

fn bearer(metadata: &MetadataMap) -> Result<&str, Unproven> {
    let mut values = metadata.get_all("authorization").iter();
    let value = values.next().ok_or(Unproven::Nothing)?;
    if values.next().is_some() {
        return Err(Unproven::Scheme);
    }
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Unproven::Scheme)?;
    // The scheme's case does not matter (RFC 9110 section 11.1).
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(Unproven::Scheme) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::ca::token::KEY_LENGTH;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn tokens() -> TokenKey {
        TokenKey::new(TrustDomain::parse("cluster.local").expect("valid"), &[7; KEY_LENGTH])
    }

    fn peer(id: &str, expires: SystemTime) -> Peer {
        Peer { id: SpiffeId::parse(id).expect("valid"), not_after: expires, fingerprint: [0; 32] }
    }

    fn with(authorization: &[&str]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for value in authorization {
            metadata.append("authorization", value.parse().expect("ascii"));
        }
        metadata
    }

    #[test]
    fn a_caller_is_who_the_proof_says() {
        let tokens = tokens();
        let token = tokens.create("shop", "orders", Duration::from_secs(60), now()).expect("a token");
        let bearer = format!("Bearer {token}");
        let later = now() + Duration::from_secs(1);
        let (orders, users) = ("spiffe://cluster.local/ns/shop/sa/orders", "spiffe://cluster.local/ns/shop/sa/users");
        for (case, peer, authorization, expected) in [
            ("nothing", None, vec![], None),
            ("a token", None, vec![bearer.as_str()], Some(orders)),
            ("a token, scheme in lower case", None, vec![&bearer.replace("Bearer", "bearer")], Some(orders)),
            ("a certificate", Some(peer(users, later)), vec![], Some(users)),
            ("a certificate beside a bad token", Some(peer(users, later)), vec!["Bearer x"], Some(users)),
            ("an expired certificate", Some(peer(users, now())), vec![], None),
            ("an expired certificate with a token", Some(peer(users, now())), vec![bearer.as_str()], Some(orders)),
            ("a foreign certificate", Some(peer("spiffe://other.test/ns/shop/sa/users", later)), vec![], None),
            (
                "the control plane's own certificate",
                Some(peer("spiffe://cluster.local/ns/weft-system/sa/weft-control-plane", later)),
                vec![],
                None,
            ),
            ("two tokens", None, vec![bearer.as_str(), bearer.as_str()], None),
            ("basic authentication", None, vec!["Basic Zm9vOmJhcg=="], None),
            ("a bare token", None, vec![token.as_str()], None),
        ] {
            let found = identify(peer.as_ref(), &with(&authorization), &tokens, now());
            assert_eq!(found.as_ref().ok().map(|caller| caller.id.as_str()), expected, "{case}: {found:?}");
        }
    }
}
