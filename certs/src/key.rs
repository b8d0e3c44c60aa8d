//! Private keys that live in memory only, and which public keys are good enough.
use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// An ECDSA P-256 private key. `Debug` shows nothing of it.
pub struct PrivateKey {
    pub(crate) pair: KeyPair,
}

impl PrivateKey {
    /// Generates a fresh key. Make one for each certificate; never reuse one for the next.
    pub fn generate() -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .expect("generating a P-256 key fails only without a random source");
        PrivateKey { pair }
    }

    /// A DER-encoded PKCS#10 request (RFC 2986) signed by this key. It asks for nothing: the CA decides the name.
    pub fn certificate_request(&self) -> Vec<u8> {
        let mut nothing = CertificateParams::default();
        nothing.distinguished_name = DistinguishedName::new();
        let request = nothing.serialize_request(&self.pair).expect("an empty request is always encodable and signable");
        request.der().to_vec()
    }

    /// The key as PKCS#8 DER (RFC 5958). For handing an identity to the application that it belongs to (SPIFFE Workload
    /// API); never write it to disk or to a log.
    pub fn to_pkcs8_der(&self) -> PrivatePkcs8KeyDer<'static> {
        self.pair.serialize_der().into()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// Accepts P-256, P-384, Ed25519 and RSA of 2048 to 4096 bits; says what to use instead of anything else.
///
/// The upper bound of RSA keeps a handshake from being made to verify with giant keys.
pub(crate) fn check_public_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    const USE: &str = "use ECDSA P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits";
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(()),
            Some(curve) => Err(format!("the key is on the elliptic curve {curve}; {USE}")),
            None => Err(format!("the key names no elliptic curve; {USE}")),
        };
    }
    if *algorithm == OID_SIG_ED25519 {
        return Ok(());
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return match key.parsed() {
            Ok(PublicKey::RSA(rsa)) if (2048..=4096).contains(&rsa.key_size()) => Ok(()),
            Ok(PublicKey::RSA(rsa)) => Err(format!("the RSA key has {} bits; {USE}", rsa.key_size())),
            _ => Err(format!("the RSA key cannot be read; {USE}")),
        };
    }
    Err(format!("keys of algorithm {algorithm} are not accepted; {USE}"))
}
