//! Makes the webhooks' certificates.
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::CertificateError;

/// How long the authority lives.
const ROOT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a serving certificate lives.
pub(super) const LEAF_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far validity begins before issue, for API servers whose clocks are behind.
pub(super) const BACKDATED: Duration = Duration::from_secs(3600);
/// The latest time that is believed to be now, since 1970.
const LATEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A new root, with its key.
pub(super) fn make_root(now: SystemTime) -> Result<(CertificateDer<'static>, KeyPair), CertificateError> {
    let key = new_key()?;
    let mut root = params(Vec::new(), ROOT_LIFETIME, now)?;
    let serial = root.serial_number.as_ref().map(ToString::to_string).unwrap_or_default();
    // A name of its own for each root: while two are in use, chains find theirs by name.
    let name: String = serial.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    root.distinguished_name.push(DnType::CommonName, format!("Weft webhooks {name}"));
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = root.self_signed(&key).map_err(unmade)?;
    Ok((root.der().clone(), key))
}

/// A serving certificate for `names`, with its key, both PEM.
pub(super) fn make_leaf(
    root: &CertificateDer<'static>,
    root_key: &KeyPair,
    names: &[String],
    now: SystemTime,
) -> Result<(String, String), CertificateError> {
    let key = new_key()?;
    let mut leaf = params(names.to_vec(), LEAF_LIFETIME, now)?;
    leaf.distinguished_name.push(DnType::CommonName, "weft-webhooks");
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_der(root, root_key).map_err(unmade)?;
    let leaf = leaf.signed_by(&key, &issuer).map_err(unmade)?;
    Ok((pem_of(leaf.der()), key.serialize_pem()))
}

/// What root and serving certificate have in common.
fn params(names: Vec<String>, lifetime: Duration, now: SystemTime) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(names).map_err(unmade)?;
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| CertificateError("no random numbers for a serial number".into()))?;
    // Positive and not zero (RFC 5280 section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(serial.to_vec().into());
    params.distinguished_name = DistinguishedName::new();
    params.not_before = whole_seconds(now.checked_sub(BACKDATED))?;
    params.not_after = whole_seconds(now.checked_add(lifetime))?;
    Ok(params)
}

fn new_key() -> Result<KeyPair, CertificateError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unmade)
}

fn whole_seconds(time: Option<SystemTime>) -> Result<OffsetDateTime, CertificateError> {
    let range = SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH + LATEST;
    time.filter(|time| range.contains(time))
        .map(OffsetDateTime::from)
        .and_then(|time| time.replace_nanosecond(0).ok())
        .ok_or_else(|| CertificateError("the clock is out of range; set it".into()))
}

fn unmade(fault: rcgen::Error) -> CertificateError {
    CertificateError(format!("cannot make a certificate: {fault}"))
}

pub(super) fn pem_of(der: &CertificateDer<'static>) -> String {
    pem("CERTIFICATE", der)
}

/// RFC 7468.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
