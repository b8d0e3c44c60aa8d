//! Writes an X.509-SVID leaf, field by field: what is not listed here cannot get in.
use std::time::SystemTime;

use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls::pki_types::CertificateDer;

use crate::SpiffeId;
use crate::der::{BOOLEAN_TRUE, bit_string, element, octet_string, sequence, time};

// AlgorithmIdentifiers of signatures: RFC 5758 section 3.2, RFC 4055 section 5, RFC 8410 section 3.
const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const RSA_SHA256: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];
const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

// Last byte of the extensions' OIDs 2.5.29.*: RFC 5280 section 4.2.1.
const KEY_USAGE: u8 = 15;
const SUBJECT_ALT_NAME: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const AUTHORITY_KEY_IDENTIFIER: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;

const DIGITAL_SIGNATURE: &[u8] = &[0x03, 0x02, 0x07, 0x80];
const SERVER_AUTH: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// All that varies between the leaves of one authority.
pub(crate) struct Leaf<'a> {
    pub(crate) id: &'a SpiffeId,
    /// `SubjectPublicKeyInfo`, DER, as the request had it.
    pub(crate) public_key: &'a [u8],
    /// `Name`, DER: the signer's subject, byte for byte.
    pub(crate) issuer: &'a [u8],
    /// The signer's subject key identifier, if it has one.
    pub(crate) issuer_key_id: Option<&'a [u8]>,
    /// Positive and without leading zeros: the first byte is 1 to 127.
    pub(crate) serial: [u8; 16],
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

/// Whether [`Leaf::sign`] can sign with this key.
pub(crate) fn signature_algorithm(key: &KeyPair) -> Option<&'static [u8]> {
    let known: [(&rcgen::SignatureAlgorithm, &'static [u8]); 4] = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, ECDSA_SHA256),
        (&rcgen::PKCS_ECDSA_P384_SHA384, ECDSA_SHA384),
        (&rcgen::PKCS_RSA_SHA256, RSA_SHA256),
        (&rcgen::PKCS_ED25519, ED25519),
    ];
    known.into_iter().find(|(algorithm, _)| *algorithm == PublicKeyData::algorithm(key)).map(|(_, der)| der)
}

impl Leaf<'_> {
    /// The signed certificate, DER (RFC 5280 section 4.1).
    pub(crate) fn sign(&self, key: &KeyPair) -> Result<CertificateDer<'static>, String> {
        let algorithm = signature_algorithm(key).ok_or("the signing key is of a kind that does not sign")?;
        let date = |at| time(at).ok_or("the validity lies outside the years 1950 to 9999");
        let version_3 = element(0xa0, &[&[0x02, 0x01, 0x02]]);
        let empty_subject = sequence(&[]);
        let to_be_signed = sequence(&[
            &version_3,
            &element(0x02, &[&self.serial]),
            algorithm,
            self.issuer,
            &sequence(&[&date(self.not_before)?, &date(self.not_after)?]),
            &empty_subject,
            self.public_key,
            &element(0xa3, &[&self.extensions()]),
        ]);
        let signature = key.sign(&to_be_signed).map_err(|error| format!("the key did not sign: {error}"))?;
        Ok(sequence(&[&to_be_signed, algorithm, &bit_string(&signature)]).into())
    }

    fn extensions(&self) -> Vec<u8> {
        let authority_key_id = self
            .issuer_key_id
            .map(|key_id| extension(AUTHORITY_KEY_IDENTIFIER, false, &sequence(&[&element(0x80, &[key_id])])));
        let uri = element(0x86, &[self.id.as_str().as_bytes()]);
        sequence(&[
            authority_key_id.as_deref().unwrap_or_default(),
            // An empty sequence is cA false, its default.
            &extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
            &extension(KEY_USAGE, true, DIGITAL_SIGNATURE),
            &extension(EXTENDED_KEY_USAGE, false, &sequence(&[SERVER_AUTH, CLIENT_AUTH])),
            // Critical, because the subject is empty (RFC 5280 section 4.2.1.6).
            &extension(SUBJECT_ALT_NAME, true, &sequence(&[&uri])),
        ])
    }
}

fn extension(last_oid_byte: u8, critical: bool, value: &[u8]) -> Vec<u8> {
    let oid = [0x06, 0x03, 0x55, 0x1d, last_oid_byte];
    let critical = if critical { BOOLEAN_TRUE } else { &[] };
    sequence(&[&oid, critical, &octet_string(value)])
}
