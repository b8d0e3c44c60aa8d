//! Reads what our rules need from one certificate, and applies the rules of one certificate to it.
//!
//! Reading happens before any signature is checked, so the work is bounded: only the extensions that the rules name are
//! parsed. Nothing here says that a certificate is trusted.
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::asn1_rs::Oid;
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::{BasicConstraints, GeneralName, KeyUsage, SubjectAlternativeName, X509Extension};
use x509_parser::nom::Parser;
use x509_parser::oid_registry::{
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME,
    OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use crate::key::check_public_key;
use crate::rules::Rule;
use crate::spiffe::{SpiffeId, TrustDomain, trust_domain_of_signer};
use crate::verify::{MAX_CERTIFICATE_BYTES, VerifyError};

/// Far more than any profile asks for; bounds the search for duplicates.
const MAX_EXTENSIONS: usize = 64;

/// What the rules look at.
pub(crate) struct Certificate<'a> {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// `Name`, DER.
    pub(crate) issuer: &'a [u8],
    /// `Name`, DER.
    pub(crate) subject: &'a [u8],
    pub(crate) subject_key_id: Option<&'a [u8]>,
    /// `SubjectPublicKeyInfo`, DER.
    pub(crate) public_key: &'a [u8],
    /// `None`: the extension is absent, so the certificate is no CA.
    pub(crate) basic_constraints: Option<BasicConstraints>,
    key: Result<(), String>,
    empty_subject: bool,
    /// `None`: no SAN extension.
    alternative_name_critical: Option<bool>,
    /// `Err`: a URI that is not even ASCII.
    uris: Vec<Result<&'a str, ()>>,
    key_usage: Option<Critical<KeyUsage>>,
}

struct Critical<T> {
    critical: bool,
    value: T,
}

impl<'a> Certificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, VerifyError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(VerifyError::TooLarge(format!(
                "a certificate has {} bytes, at most {MAX_CERTIFICATE_BYTES} are read",
                der.len()
            )));
        }
        let (rest, x509) = X509CertificateParser::new()
            .with_deep_parse_extensions(false)
            .parse(der)
            .map_err(|_| malformed("a certificate is not DER X.509"))?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow after the end of a certificate"));
        }
        Self::from_x509(x509)
    }

    fn from_x509(x509: X509Certificate<'a>) -> Result<Self, VerifyError> {
        let tbs = &x509.tbs_certificate;
        if tbs.version != X509Version::V3 {
            return Err(malformed("a certificate is not X.509 version 3"));
        }
        let extensions = tbs.extensions();
        check_unique(extensions)?;
        let find = |oid: &Oid| extensions.iter().find(|extension| extension.oid == *oid);

        let alternative_name = find(&OID_X509_EXT_SUBJECT_ALT_NAME);
        let uris = match alternative_name {
            Some(extension) => uris(&whole::<SubjectAlternativeName>(extension)?),
            None => Vec::new(),
        };
        let basic_constraints = find(&OID_X509_EXT_BASIC_CONSTRAINTS).map(whole).transpose()?;
        let key_usage = find(&OID_X509_EXT_KEY_USAGE)
            .map(|extension| Ok(Critical { critical: extension.critical, value: whole(extension)? }))
            .transpose()?;
        let subject_key_id = find(&OID_X509_EXT_SUBJECT_KEY_IDENTIFIER).and_then(|extension| match extension.value {
            // An OCTET STRING of less than 128 bytes.
            [0x04, length @ 1..=0x7f, key_id @ ..] if key_id.len() == usize::from(*length) => Some(key_id),
            _ => None,
        });

        Ok(Certificate {
            not_before: system_time(tbs.validity.not_before.timestamp()),
            not_after: system_time(tbs.validity.not_after.timestamp()),
            issuer: tbs.issuer.as_raw(),
            subject: tbs.subject.as_raw(),
            subject_key_id,
            public_key: tbs.subject_pki.raw,
            basic_constraints,
            key: check_public_key(&tbs.subject_pki),
            empty_subject: tbs.subject.iter().next().is_none(),
            alternative_name_critical: alternative_name.map(|extension| extension.critical),
            uris,
            key_usage,
        })
    }

    pub(crate) fn is_ca(&self) -> bool {
        self.basic_constraints.as_ref().is_some_and(|constraints| constraints.ca)
    }

    /// Rules 14 and 23: it is no signing certificate.
    pub(crate) fn check_is_leaf(&self) -> Result<(), VerifyError> {
        if !self.is_ca() {
            return Ok(());
        }
        let signs = self.key_usage.as_ref().is_some_and(|usage| usage.value.key_cert_sign());
        Err(broken(if signs { Rule::SignerAsLeaf } else { Rule::LeafIsCa }, ""))
    }

    /// Rules 1 to 13: the one SPIFFE ID of a leaf.
    pub(crate) fn id(&self) -> Result<SpiffeId, VerifyError> {
        match self.uris[..] {
            [] => Err(broken(Rule::NoUriSan, "")),
            [Ok(uri)] => SpiffeId::parse_by_rule(uri).map_err(|fault| broken(fault.rule, fault.message)),
            [Err(())] => Err(broken(Rule::BadPathCharacter, "the URI SAN is not ASCII")),
            _ => Err(broken(Rule::NotOneUriSan, format!("there are {}", self.uris.len()))),
        }
    }

    /// Rules 15 to 17, 19 and the strength of the key.
    pub(crate) fn check_leaf(&self) -> Result<(), VerifyError> {
        self.key.clone().map_err(VerifyError::WeakAlgorithm)?;
        let usage = match &self.key_usage {
            Some(Critical { critical: true, value }) => value,
            Some(_) => return Err(broken(Rule::KeyUsageNotCritical, "it is not critical")),
            None => return Err(broken(Rule::KeyUsageNotCritical, "it is absent")),
        };
        if usage.key_cert_sign() || usage.crl_sign() {
            return Err(broken(Rule::LeafMaySign, format!("it has {usage}")));
        }
        let only_allowed =
            !usage.non_repudiation() && !usage.data_encipherment() && !usage.encipher_only() && !usage.decipher_only();
        if !usage.digital_signature() || !only_allowed {
            return Err(broken(Rule::LeafKeyUsage, format!("it has {usage}")));
        }
        if self.empty_subject && self.alternative_name_critical == Some(false) {
            return Err(broken(Rule::SanNotCritical, ""));
        }
        Ok(())
    }

    /// Rules 20 to 22 and the strength of the key, for a signing certificate that a peer presents or that we sign with.
    pub(crate) fn check_signer(&self, domain: &TrustDomain) -> Result<(), VerifyError> {
        self.key.clone().map_err(VerifyError::WeakAlgorithm)?;
        if !self.is_ca() {
            return Err(broken(Rule::SignerIsNotCa, ""));
        }
        match &self.key_usage {
            Some(Critical { critical: true, value }) if value.key_cert_sign() => {}
            Some(Critical { critical: false, .. }) => return Err(broken(Rule::SignerMayNotSign, "it is not critical")),
            Some(Critical { value, .. }) => return Err(broken(Rule::SignerMayNotSign, format!("it has {value}"))),
            None => return Err(broken(Rule::SignerMayNotSign, "it is absent")),
        }
        match self.signer_domain()? {
            Some(own) if own != domain.as_str() => {
                Err(broken(Rule::SignerId, format!("it is of trust domain {own:?}, the leaf of {:?}", domain.as_str())))
            }
            _ => Ok(()),
        }
    }

    /// The same for a root, which the operator trusts: a key usage may be absent or not critical, as in many roots of
    /// organizations (RFC 5280 section 6.1.1 asks only for name and key), and its ID may be of another trust domain.
    pub(crate) fn check_root(&self) -> Result<(), VerifyError> {
        self.key.clone().map_err(VerifyError::WeakAlgorithm)?;
        if !self.is_ca() {
            return Err(broken(Rule::SignerIsNotCa, ""));
        }
        if let Some(usage) = &self.key_usage
            && !usage.value.key_cert_sign()
        {
            return Err(broken(Rule::SignerMayNotSign, format!("it has {}", usage.value)));
        }
        self.signer_domain().map(drop)
    }

    /// Rule 22: a signing certificate need not have an ID; if it has one, it names the trust domain alone.
    fn signer_domain(&self) -> Result<Option<&'a str>, VerifyError> {
        match self.uris[..] {
            [] => Ok(None),
            [Ok(uri)] => match trust_domain_of_signer(uri) {
                Ok(domain) => Ok(Some(domain)),
                Err(fault) => Err(broken(Rule::SignerId, fault.message)),
            },
            [Err(())] => Err(broken(Rule::SignerId, "the URI SAN is not ASCII")),
            _ => Err(broken(Rule::NotOneUriSan, format!("a signing certificate has {}", self.uris.len()))),
        }
    }
}

/// SHA-256 of a certificate's DER.
pub(crate) fn fingerprint(der: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, der).as_ref());
    out
}

/// Rule 28.
fn check_unique(extensions: &[X509Extension<'_>]) -> Result<(), VerifyError> {
    if extensions.len() > MAX_EXTENSIONS {
        return Err(VerifyError::TooLarge(format!(
            "a certificate has {} extensions, at most {MAX_EXTENSIONS} are read",
            extensions.len()
        )));
    }
    for (position, extension) in extensions.iter().enumerate() {
        if extensions[..position].iter().any(|earlier| earlier.oid == extension.oid) {
            return Err(broken(Rule::DuplicateExtension, format!("its OID is {}", extension.oid)));
        }
    }
    Ok(())
}

/// The value of an extension, nothing after it.
fn whole<'a, T>(extension: &X509Extension<'a>) -> Result<T, VerifyError>
where
    T: FromDer<'a, x509_parser::error::X509Error>,
{
    match T::from_der(extension.value) {
        Ok(([], value)) => Ok(value),
        _ => Err(malformed(format!("the extension {} cannot be read", extension.oid))),
    }
}

fn uris<'a>(names: &SubjectAlternativeName<'a>) -> Vec<Result<&'a str, ()>> {
    const URI_TAG: u32 = 6;
    names
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Ok(*uri)),
            GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(Err(())),
            _ => None,
        })
        .collect()
}

fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

fn malformed(message: impl Into<String>) -> VerifyError {
    VerifyError::Malformed(message.into())
}

fn broken(rule: Rule, detail: impl Into<String>) -> VerifyError {
    VerifyError::Broken { rule, detail: detail.into() }
}
