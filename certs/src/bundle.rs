//! The roots of a trust domain.
use rustls::pki_types::CertificateDer;

use crate::certificate::Certificate;
use crate::pem;
use crate::spiffe::TrustDomain;
use crate::verify::VerifyError;

/// More roots than any rotation needs.
const MAX_ROOTS: usize = 64;

/// The roots of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose roots these are.
    pub trust_domain: TrustDomain,
    /// DER certificates. Empty: nothing of this domain is trusted.
    pub roots: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Reads every certificate of a PEM text, at most 1 MiB and 64 roots. Blank lines, CRLF, trailing whitespace and
    /// lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`VerifyError::BadBundle`]: there is no certificate, or anything else than certificates (such as a private key,
    /// or a truncated section), or one of them cannot serve as a root: it is not a CA, may not sign, or has a weak key.
    pub fn from_pem(trust_domain: TrustDomain, pem: &str) -> Result<Self, VerifyError> {
        let roots = pem::certificates(pem).map_err(VerifyError::BadBundle)?;
        if roots.is_empty() {
            return Err(VerifyError::BadBundle("there is no certificate; put the PEM of at least one root".into()));
        }
        Self::from_der(trust_domain, roots.into_iter().map(CertificateDer::from).collect())
    }

    /// Takes DER certificates, at most 64; none is allowed, and trusts nothing.
    ///
    /// # Errors
    /// [`VerifyError::BadBundle`]: one of them cannot serve as a root.
    pub fn from_der(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, VerifyError> {
        if roots.len() > MAX_ROOTS {
            return Err(VerifyError::BadBundle(format!("{} roots; at most {MAX_ROOTS} are read", roots.len())));
        }
        for (root, number) in roots.iter().zip(1..) {
            Certificate::parse(root)
                .and_then(|root| root.check_root())
                .map_err(|error| VerifyError::BadBundle(format!("certificate {number} cannot be a root: {error}")))?;
        }
        Ok(TrustBundle { trust_domain, roots })
    }

    /// All roots as PEM, in their order.
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| pem::encode_certificate(root)).collect()
    }
}
