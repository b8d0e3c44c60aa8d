//! Judges a peer's certificate chain: path validation by webpki, then the X509-SVID standard's own rules.
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use crate::{SpiffeId, TrustDomain};

/// The roots of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose roots these are.
    pub trust_domain: TrustDomain,
    /// DER certificates. Empty: nothing of this domain is trusted.
    pub roots: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Reads every certificate of a PEM text.
    pub fn from_pem(_trust_domain: TrustDomain, _pem: &str) -> Result<Self, VerifyError> {
        todo!()
    }
    /// All roots as PEM.
    pub fn to_pem(&self) -> String {
        todo!()
    }
}

/// A peer whose chain was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The one URI SAN of its leaf.
    pub id: SpiffeId,
    /// When the leaf expires.
    pub not_after: SystemTime,
    /// SHA-256 of the leaf's DER (the `Hash` of `x-forwarded-client-cert`).
    pub fingerprint: [u8; 32],
}

/// Why a chain was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub enum VerifyError {
    /// Placeholder.
    Other(String),
}

/// Judges `chain` (leaf first) against the bundle of the trust domain that its SPIFFE ID names.
pub fn verify_chain(_chain: &[CertificateDer<'_>], _bundle: &TrustBundle, _now: SystemTime) -> Result<Peer, VerifyError> {
    todo!()
}
