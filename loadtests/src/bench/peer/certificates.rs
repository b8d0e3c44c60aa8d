//! Certificates for peers that have no control plane here: as Weft's, P-256 with SPIFFE IDs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// Identity of the client's workload.
pub(super) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
/// Identity of the server's workload.
pub(super) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// Files of one workload.
pub(super) struct Files {
    pub(super) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// Certificate and key in one, as HAProxy wants them.
    pub(super) both: PathBuf,
}

/// Makes an authority, and with it certificates of the client's and of the server's workload, as files of `folder`.
pub(super) fn make(folder: &Path) -> Result<(Files, Files)> {
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "bench");
    let authority = params.self_signed(&key)?;
    let path = folder.join("authority.pem");
    std::fs::write(&path, authority.pem())?;
    let issuer = Issuer::new(params, key);
    let issue = |name: &str, identity: &str| -> Result<Files> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer)?;
        let file = |suffix: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(format!("{name}{suffix}"));
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Files {
            authority: path.clone(),
            certificate: file(".crt", &certificate.pem())?,
            key: file(".key", &key.serialize_pem())?,
            both: file(".pem", &format!("{}{}", certificate.pem(), key.serialize_pem()))?,
        })
    };
    Ok((issue("client", CLIENT)?, issue("server", SERVER)?))
}
