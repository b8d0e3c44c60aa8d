//! The certificate authority: a PKCS#10 request becomes an X.509-SVID leaf.
//!
//! The caller says whose identity the leaf bears; of the request only the public key is used, once the request has
//! proven possession of its private key. Nothing leaves that [`crate::verify_chain`] would refuse.
use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::anchors::Anchors;
use crate::bundle::TrustBundle;
use crate::certificate::Certificate;
use crate::key::{PrivateKey, check_public_key};
use crate::leaf::{Leaf, signature_algorithm};
use crate::pem;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::verify::{MAX_CHAIN_CERTIFICATES, judge};

/// How far a certificate's validity begins before its issue, for peers whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(60);
/// The longest lifetime of a leaf.
pub const MAX_LEAF_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_ROOT_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// A request with an RSA-4096 key and signature has less than 2 KiB.
const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// Why the authority could not be loaded or did not sign.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IssuerError(pub String);

fn refuse<T>(message: impl Into<String>) -> Result<T, IssuerError> {
    Err(IssuerError(message.into()))
}

/// A signing certificate with its key, and the chain up to (not including) the root.
pub struct CertificateAuthority {
    domain: TrustDomain,
    /// The signer first, then its intermediates; with a self-signed signer that is the root.
    certificates: Vec<CertificateDer<'static>>,
    /// `certificates` without roots: what follows a leaf.
    intermediates: Vec<CertificateDer<'static>>,
    key: KeyPair,
    key_pem: String,
    anchors: Anchors,
    subject: Vec<u8>,
    subject_key_id: Option<Vec<u8>>,
    /// The earliest expiry among `certificates` and the root above them.
    not_after: SystemTime,
}

impl CertificateAuthority {
    /// A new self-signed root for `domain`, valid for `lifetime` (at most 100 years) from 60 s before `now`.
    ///
    /// # Errors
    /// The lifetime is 0 or too long, or the clock is out of range.
    pub fn self_signed(domain: &TrustDomain, lifetime: Duration, now: SystemTime) -> Result<Self, IssuerError> {
        if lifetime.is_zero() || lifetime > MAX_ROOT_LIFETIME {
            return refuse("the lifetime of a root must be more than 0 and at most 100 years, such as 3650 days");
        }
        let serial = serial()?;
        let mut root = CertificateParams::default();
        root.serial_number = Some(serial.to_vec().into());
        root.not_before = whole_seconds(now - BACKDATED)?;
        root.not_after = whole_seconds(now + lifetime)?;
        root.distinguished_name = DistinguishedName::new();
        // A name of its own for each root: while two are in use, chains find theirs by name, and people can tell them
        // apart.
        let name = u32::from_be_bytes([serial[0], serial[1], serial[2], serial[3]]);
        root.distinguished_name.push(DnType::CommonName, format!("Weft root {name:08x}"));
        let uri = domain.id().try_into().map_err(|error| IssuerError(format!("the root's URI: {error}")))?;
        root.subject_alt_names = vec![SanType::URI(uri)];
        // It signs leaves only; an intermediate under it would be a mistake or an attack.
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|error| IssuerError(format!("no key could be generated: {error}")))?;
        let root = root.self_signed(&key).map_err(|error| IssuerError(format!("the root was not signed: {error}")))?;
        let bundle = TrustBundle { trust_domain: domain.clone(), roots: vec![root.der().clone()] };
        let key_pem = key.serialize_pem();
        Self::assemble(domain, vec![root.into()], key, key_pem, bundle, now)
    }

    /// Loads a signing certificate (`certificates`: PEM, signer first, then its intermediates), its private key (PEM:
    /// PKCS#8, SEC1 or PKCS#1, not encrypted), and the PEM roots it chains to (blank: the last certificate is the
    /// root).
    ///
    /// # Errors
    /// The text is not PEM of that kind; the key does not belong to the first certificate; that certificate is no CA,
    /// has no critical keyCertSign, has expired or is not valid yet; or what it signs does not verify under the roots.
    /// Tried with a leaf for a throw-away key, so that a mistake shows when loading, not when a workload asks.
    pub fn from_pem(
        domain: &TrustDomain,
        certificates: &str,
        key: &str,
        roots: &str,
        now: SystemTime,
    ) -> Result<Self, IssuerError> {
        let certificates = pem::certificates(certificates)
            .map_err(|error| IssuerError(format!("the signing certificates: {error}")))?;
        let certificates: Vec<_> = certificates.into_iter().map(CertificateDer::from).collect();
        let Some(last) = certificates.last() else {
            return refuse("the signing certificates: there is none; put the PEM of the signer first");
        };
        let bundle = if roots.trim().is_empty() {
            TrustBundle::from_der(domain.clone(), vec![last.clone()])
        } else {
            TrustBundle::from_pem(domain.clone(), roots)
        };
        let bundle = bundle.map_err(|error| IssuerError(format!("the roots: {error}")))?;
        let pair = private_key(key).map_err(|error| IssuerError(format!("the signing key: {error}")))?;
        Self::assemble(domain, certificates, pair, key.trim().to_owned() + "\n", bundle, now)
    }

    fn assemble(
        domain: &TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
        key: KeyPair,
        key_pem: String,
        bundle: TrustBundle,
        now: SystemTime,
    ) -> Result<Self, IssuerError> {
        if signature_algorithm(&key).is_none() {
            return refuse("the signing key must be ECDSA P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits");
        }
        let mut parsed = Vec::with_capacity(certificates.len());
        for (der, number) in certificates.iter().zip(1..) {
            let certificate = Certificate::parse(der)
                .map_err(|error| IssuerError(format!("signing certificate {number}: {error}")))?;
            parsed.push(certificate);
        }
        let [signer, ..] = &parsed[..] else {
            return refuse("there is no signing certificate");
        };
        if signer.public_key != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return refuse("the signing key does not belong to the first signing certificate; put the signer first");
        }
        signer.check_signer(domain).map_err(|error| IssuerError(format!("the signing certificate: {error}")))?;
        if now < signer.not_before {
            return refuse("the signing certificate is not valid yet; check the clock");
        }
        let anchors = Anchors::new(bundle);
        let root_expiry = parsed.last().and_then(|top| anchors.expiry(top.issuer));
        let not_after = parsed.iter().map(|certificate| certificate.not_after).chain(root_expiry).min();
        let not_after = not_after.unwrap_or(signer.not_after);
        if now >= not_after {
            return refuse("a signing certificate or its root has expired; renew it");
        }
        let (subject, subject_key_id) = (signer.subject.to_vec(), signer.subject_key_id.map(<[u8]>::to_vec));
        let intermediates: Vec<_> =
            certificates.iter().filter(|certificate| !anchors.bundle.roots.contains(certificate)).cloned().collect();
        if intermediates.len() >= MAX_CHAIN_CERTIFICATES {
            return refuse(format!("at most {} intermediates are supported", MAX_CHAIN_CERTIFICATES - 1));
        }
        let authority = CertificateAuthority {
            domain: domain.clone(),
            certificates,
            intermediates,
            key,
            key_pem,
            anchors,
            subject,
            subject_key_id,
            not_after,
        };
        let probe = SpiffeId::parse(&format!("{}/weft/probe", domain.id()))
            .map_err(|error| IssuerError(format!("the trust domain is too long: {error}")))?;
        let request = PrivateKey::generate().certificate_request();
        authority
            .sign(&request, &probe, Duration::from_secs(1), now)
            .map_err(|error| IssuerError(format!("this authority cannot issue: {error}")))?;
        Ok(authority)
    }

    /// The signing certificate (with intermediates) as PEM.
    pub fn certificates_pem(&self) -> String {
        self.certificates.iter().map(|certificate| pem::encode_certificate(certificate)).collect()
    }

    /// The private key as PEM: PKCS#8, or the form it was loaded in. The caller keeps it secret.
    pub fn key_pem(&self) -> String {
        self.key_pem.clone()
    }

    /// The trust domain that it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The roots that verify what this authority signs.
    pub fn trust_bundle(&self) -> TrustBundle {
        self.anchors.bundle.clone()
    }

    /// When the signing certificate (or one above it, if that is earlier) expires. No leaf outlives it.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Signs a leaf for `id` with the public key of the PKCS#10 `request` (DER, at most 8 KiB); nothing else of the
    /// request is used. The leaf is valid from 60 s before `now` to `now + lifetime` or the signer's expiry, whichever
    /// is earlier. Returns the chain, leaf first, without the root. Its own result is verified by `verify_chain` before
    /// it is returned.
    ///
    /// # Errors
    /// `id` is of another trust domain; the lifetime is 0 or above 24 h; the request is malformed, not signed by its
    /// own key, or has a key that is not P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits; or the signer has expired.
    pub fn sign(
        &self,
        request: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssuerError> {
        if id.trust_domain() != self.domain.as_str() {
            return refuse(format!("{id} is not of trust domain {}; this authority signs for no other", self.domain));
        }
        if lifetime.is_zero() || lifetime > MAX_LEAF_LIFETIME {
            return refuse("the lifetime of a certificate must be more than 0 and at most 24 h, such as 1 h");
        }
        if now >= self.not_after {
            return refuse("the signing certificate has expired; renew it");
        }
        if request.len() > MAX_REQUEST_BYTES {
            return refuse(format!("the request has {} bytes; at most {MAX_REQUEST_BYTES} are read", request.len()));
        }
        let leaf = Leaf {
            id,
            public_key: proven_public_key(request)?,
            issuer: &self.subject,
            issuer_key_id: self.subject_key_id.as_deref(),
            serial: serial()?,
            not_before: now - BACKDATED,
            not_after: (now + lifetime).min(self.not_after),
        };
        let leaf = leaf.sign(&self.key).map_err(IssuerError)?;
        match judge(&leaf, &self.intermediates, &self.anchors, now) {
            Ok(peer) if peer.id == *id => {}
            Ok(peer) => return refuse(format!("the new certificate is for {} instead of {id}", peer.id)),
            Err(error) => return refuse(format!("the new certificate does not verify: {error}")),
        }
        let mut chain = Vec::with_capacity(1 + self.intermediates.len());
        chain.push(leaf);
        chain.extend(self.intermediates.iter().cloned());
        Ok(chain)
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("domain", &self.domain)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The public key of a request that its private key has signed (`SubjectPublicKeyInfo`, DER).
fn proven_public_key(request: &[u8]) -> Result<&[u8], IssuerError> {
    let Ok((rest, parsed)) = X509CertificationRequest::from_der(request) else {
        return refuse("the certificate request is not DER PKCS#10");
    };
    if !rest.is_empty() {
        return refuse("bytes follow after the end of the certificate request; send the DER of PKCS#10 alone");
    }
    let public_key = &parsed.certification_request_info.subject_pki;
    check_public_key(public_key).map_err(|error| IssuerError(format!("the certificate request: {error}")))?;
    if parsed.verify_signature().is_err() {
        return refuse("the certificate request is not signed by the key that it names");
    }
    Ok(public_key.raw)
}

fn private_key(pem: &str) -> Result<KeyPair, String> {
    // OpenSSL writes the curve's parameters before an EC key.
    let mut sections = pem::sections(pem)?;
    sections.retain(|section| section.label != "EC PARAMETERS");
    match &sections[..] {
        [section] if matches!(section.label.as_str(), "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY") => {
            KeyPair::try_from(&section.der[..])
                .map_err(|_| "it cannot be read; use ECDSA P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits".into())
        }
        [section] if section.label == "ENCRYPTED PRIVATE KEY" => {
            Err("it is encrypted; decrypt it with: openssl pkcs8 -in FILE".into())
        }
        [section] => Err(format!("it is a {}; put a PRIVATE KEY", section.label)),
        [] => Err("there is none; put a PRIVATE KEY section".into()),
        _ => Err("there are several sections; put one PRIVATE KEY".into()),
    }
}

/// 127 bits, of which 126 are random; positive and of constant length.
fn serial() -> Result<[u8; 16], IssuerError> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| IssuerError("the system gave no random bytes".into()))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn whole_seconds(at: SystemTime) -> Result<OffsetDateTime, IssuerError> {
    let since_epoch =
        at.duration_since(SystemTime::UNIX_EPOCH).ok().and_then(|after| i64::try_from(after.as_secs()).ok());
    since_epoch
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| IssuerError("the time is outside the years 1970 to 9999; check the clock".into()))
}
