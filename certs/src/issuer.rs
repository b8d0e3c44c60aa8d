//! The certificate authority: a PKCS#10 request becomes an X.509-SVID leaf.
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use crate::{SpiffeId, TrustBundle, TrustDomain};

/// Why the authority could not be loaded or did not sign.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IssuerError(pub String);

/// A signing certificate with its key, and the chain up to (not including) the root.
pub struct CertificateAuthority {}

impl CertificateAuthority {
    /// A new self-signed root for `domain`.
    pub fn self_signed(_domain: &TrustDomain, _lifetime: Duration, _now: SystemTime) -> Result<Self, IssuerError> {
        todo!()
    }
    /// Loads a signing certificate (`certificates`: PEM, signer first, then its intermediates), its PKCS#8 key, and the
    /// PEM roots it chains to (empty: the last certificate is the root). Refuses a pair that does not belong together.
    pub fn from_pem(_domain: &TrustDomain, _certificates: &str, _key: &str, _roots: &str, _now: SystemTime) -> Result<Self, IssuerError> {
        todo!()
    }
    /// The signing certificate (with intermediates) as PEM.
    pub fn certificates_pem(&self) -> String {
        todo!()
    }
    /// The private key as PKCS#8 PEM. The caller keeps it secret.
    pub fn key_pem(&self) -> String {
        todo!()
    }
    /// The roots that verify what this authority signs.
    pub fn trust_bundle(&self) -> TrustBundle {
        todo!()
    }
    /// When the signing certificate expires.
    pub fn not_after(&self) -> SystemTime {
        todo!()
    }
    /// Signs a leaf for `id` with the public key of the PKCS#10 `request`; nothing else of the request is used.
    /// Returns the chain, leaf first, without the root. Its own result is verified by `verify` before it is returned.
    pub fn sign(&self, _request: &[u8], _id: &SpiffeId, _lifetime: Duration, _now: SystemTime) -> Result<Vec<CertificateDer<'static>>, IssuerError> {
        todo!()
    }
}
