//! Judges a peer's certificate chain: path validation by webpki, and the X509-SVID standard's own rules.
//!
//! It promises that an identity is returned only for a chain that obeys every rule of [`Rule`] at `now`, and that the
//! work is bounded whatever a peer sends. It never looks at host names, and never trusts what is not in the given
//! bundle.
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, VerifiedPath};

use crate::anchors::Anchors;
use crate::bundle::TrustBundle;
use crate::certificate::{Certificate, fingerprint};
use crate::rules::Rule;
use crate::spiffe::SpiffeId;

/// Clocks may differ by less than this: a certificate is judged expired or not yet valid only from this far outside its
/// validity.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// A leaf and four intermediates.
pub const MAX_CHAIN_CERTIFICATES: usize = 5;
/// Far more than a leaf with the longest SPIFFE ID and an RSA key needs.
pub const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// SHA-2 only, keys that [`crate::key`] accepts.
static SIGNATURE_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// A peer whose chain was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The one URI SAN of its leaf.
    pub id: SpiffeId,
    /// When the leaf expires. May lie up to [`CLOCK_SKEW`] in the past.
    pub not_after: SystemTime,
    /// SHA-256 of the leaf's DER (the `Hash` of `x-forwarded-client-cert`).
    pub fingerprint: [u8; 32],
}

/// Why a chain was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A rule of the X509-SVID standard, or of the path validation that it demands.
    #[error("{}{}{detail}", rule.text(), if detail.is_empty() { "" } else { ": " })]
    Broken {
        /// Which.
        rule: Rule,
        /// What was found instead; may be empty.
        detail: String,
    },
    /// No root of the bundle has signed it (or not with that key).
    #[error(
        "no root of trust domain {0:?} has issued this certificate; check that both sides have the same trust bundle"
    )]
    UnknownIssuer(String),
    /// A key or signature that is not good enough.
    #[error("weak or unknown key or signature: {0}")]
    WeakAlgorithm(String),
    /// Not X.509 version 3 in DER, or no certificate at all.
    #[error("malformed certificate: {0}")]
    Malformed(String),
    /// More than we are willing to read or compute.
    #[error("certificate chain too large: {0}")]
    TooLarge(String),
    /// The certificate is good, but belongs to another private key.
    #[error("the certificate belongs to another private key")]
    WrongKey,
    /// A text is not a trust bundle.
    #[error("bad trust bundle: {0}")]
    BadBundle(String),
}

impl VerifyError {
    /// The number of the broken rule (see [`Rule`]), 0 where there is none.
    pub fn rule(&self) -> u8 {
        match self {
            VerifyError::Broken { rule, .. } => rule.number(),
            _ => 0,
        }
    }

    /// A short label for metrics and logs; it never changes.
    pub fn reason(&self) -> &'static str {
        match self {
            VerifyError::Broken { rule, .. } => rule.reason(),
            VerifyError::UnknownIssuer(_) => "unknown_issuer",
            VerifyError::WeakAlgorithm(_) => "weak_algorithm",
            VerifyError::Malformed(_) => "malformed",
            VerifyError::TooLarge(_) => "too_large",
            VerifyError::WrongKey => "wrong_key",
            VerifyError::BadBundle(_) => "bad_bundle",
        }
    }
}

/// Judges `chain` (leaf first, in any order after it, at most five certificates) against the bundle of the trust domain
/// that its SPIFFE ID names.
///
/// # Errors
/// The first rule that is broken, or why the chain is not trusted.
pub fn verify_chain(chain: &[CertificateDer<'_>], bundle: &TrustBundle, now: SystemTime) -> Result<Peer, VerifyError> {
    let Some((leaf, rest)) = chain.split_first() else {
        return Err(VerifyError::Malformed("there is no certificate".into()));
    };
    judge(leaf, rest, &Anchors::new(bundle.clone()), now)
}

/// [`verify_chain`] with a prepared bundle.
pub(crate) fn judge(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    anchors: &Anchors,
    now: SystemTime,
) -> Result<Peer, VerifyError> {
    if rest.len() >= MAX_CHAIN_CERTIFICATES {
        return Err(VerifyError::TooLarge(format!(
            "{} certificates, at most {MAX_CHAIN_CERTIFICATES} are read",
            rest.len() + 1
        )));
    }
    if let Some(large) = rest.iter().find(|certificate| certificate.len() > MAX_CERTIFICATE_BYTES) {
        return Err(VerifyError::TooLarge(format!(
            "a certificate has {} bytes, at most {MAX_CERTIFICATE_BYTES} are read",
            large.len()
        )));
    }

    // The identity comes first, because it says which bundle may judge. It is only a claim until the end.
    let certificate = Certificate::parse(leaf)?;
    certificate.check_is_leaf()?;
    let id = certificate.id()?;
    let domain = &anchors.bundle.trust_domain;
    if id.trust_domain() != domain.as_str() {
        return Err(broken(
            Rule::WrongTrustDomain,
            format!("{id} was judged by the bundle of trust domain {:?}", domain.as_str()),
        ));
    }
    let roots = anchors.valid_at(now, TOLERANCE);
    if roots.is_empty() {
        return Err(broken(Rule::EmptyBundle, format!("trust domain {:?}", domain.as_str())));
    }

    let end_entity = EndEntityCert::try_from(leaf).map_err(|error| path_error(error, domain.as_str()))?;
    let path = validate_path(&end_entity, rest, &roots, now).map_err(|error| path_error(error, domain.as_str()))?;

    certificate.check_leaf()?;
    let mut intermediates = 0;
    for intermediate in path.intermediate_certificates() {
        Certificate::parse(&intermediate.der())?.check_signer(domain)?;
        intermediates += 1;
    }
    if !anchors.allow_path(path.anchor(), intermediates) {
        return Err(broken(Rule::PathLength, format!("the root does not allow {intermediates}")));
    }
    Ok(Peer { id, not_after: certificate.not_after, fingerprint: fingerprint(leaf) })
}

/// Certificates have whole seconds, and from [`CLOCK_SKEW`] on they are refused.
const TOLERANCE: Duration = Duration::from_secs(CLOCK_SKEW.as_secs() - 1);

/// Validity, issuer and subject names, signatures, CA flags, path lengths, name constraints, critical extensions and
/// extended key usage (RFC 5280 section 6), within webpki's budget.
fn validate_path<'p>(
    leaf: &'p EndEntityCert<'p>,
    intermediates: &'p [CertificateDer<'p>],
    roots: &'p [TrustAnchor<'_>],
    now: SystemTime,
) -> Result<VerifiedPath<'p>, webpki::Error> {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let at = |since_epoch| {
        let time = UnixTime::since_unix_epoch(since_epoch);
        leaf.verify_for_usage(SIGNATURE_ALGORITHMS, roots, intermediates, time, BothPurposes, None, None)
    };
    let now = at(since_epoch);
    let tolerated = match &now {
        Err(webpki::Error::CertExpired { .. }) => at(since_epoch.saturating_sub(TOLERANCE)),
        Err(webpki::Error::CertNotValidYet { .. }) => at(since_epoch + TOLERANCE),
        _ => return now,
    };
    match tolerated {
        Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => now,
        result => result,
    }
}

/// Rule 18: who names purposes names serverAuth and clientAuth (mesh peers are both).
struct BothPurposes;

impl ExtendedKeyUsageValidator for BothPurposes {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        const SERVER_AUTH: KeyPurposeId<'_> = KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 1]);
        const CLIENT_AUTH: KeyPurposeId<'_> = KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 2]);
        let (mut any, mut server, mut client) = (false, false, false);
        for purpose in purposes {
            let purpose = purpose?;
            any = true;
            server |= purpose == SERVER_AUTH;
            client |= purpose == CLIENT_AUTH;
        }
        if !any || (server && client) {
            return Ok(());
        }
        Err(webpki::Error::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext {
            required: if server { webpki::KeyUsage::client_auth() } else { webpki::KeyUsage::server_auth() },
            present: Vec::new(),
        }))
    }
}

fn path_error(error: webpki::Error, trust_domain: &str) -> VerifyError {
    use webpki::Error;
    let seconds = |earlier: UnixTime, later: UnixTime| later.as_secs().saturating_sub(earlier.as_secs());
    let rule = match error {
        Error::CertExpired { time, not_after } => {
            return broken(Rule::Expired, format!("{} s ago", seconds(not_after, time)));
        }
        Error::CertNotValidYet { time, not_before } => {
            return broken(
                Rule::NotYetValid,
                format!("it will be in {} s; compare the clocks", seconds(time, not_before)),
            );
        }
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => {
            return VerifyError::UnknownIssuer(trust_domain.into());
        }
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | Error::SignatureAlgorithmMismatch => {
            return VerifyError::WeakAlgorithm("the signature must be ECDSA, Ed25519 or RSA with SHA-2".into());
        }
        Error::MaximumNameConstraintComparisonsExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumPathDepthExceeded
        | Error::MaximumSignatureChecksExceeded => return VerifyError::TooLarge(error.to_string()),
        Error::CaUsedAsEndEntity => Rule::LeafIsCa,
        Error::EndEntityUsedAsCa => Rule::SignerIsNotCa,
        Error::PathLenConstraintViolated => Rule::PathLength,
        Error::UnsupportedCriticalExtension => Rule::UnknownCriticalExtension,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Rule::ExtendedKeyUsage,
        Error::NameConstraintViolation | Error::MalformedNameConstraint | Error::InvalidNetworkMaskConstraint => {
            Rule::NameConstraints
        }
        other => return VerifyError::Malformed(other.to_string()),
    };
    broken(rule, String::new())
}

fn broken(rule: Rule, detail: String) -> VerifyError {
    VerifyError::Broken { rule, detail }
}
