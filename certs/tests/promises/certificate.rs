//! Certificates with any fault, written byte by byte.
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls::pki_types::CertificateDer;
use weft_certs::{TrustBundle, TrustDomain};

pub const ID: &str = "spiffe://td.example/ns/shop/sa/cart";

pub const DIGITAL_SIGNATURE: u8 = 0;
pub const CONTENT_COMMITMENT: u8 = 1;
pub const KEY_AGREEMENT: u8 = 4;
pub const KEY_CERT_SIGN: u8 = 5;
pub const CRL_SIGN: u8 = 6;

/// Last arcs of id-kp-serverAuth, id-kp-clientAuth and id-kp-codeSigning.
pub const SERVER: u8 = 1;
pub const CLIENT: u8 = 2;
pub const CODE_SIGNING: u8 = 3;

pub const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
pub const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
pub const RSA_MD5: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04];

/// A certificate to be.
#[derive(Clone)]
pub struct Spec {
    /// Common name; empty: an empty subject.
    pub subject: String,
    /// The whole subject (`Name`, DER), instead.
    pub raw_subject: Option<Vec<u8>>,
    pub uris: Vec<Vec<u8>>,
    pub dns: Vec<String>,
    pub ips: Vec<[u8; 4]>,
    pub san_critical: bool,
    /// `Some((cA, pathLen))`; `None`: no extension.
    pub basic_constraints: Option<(bool, Option<u8>)>,
    /// `Some((critical, bits))`.
    pub key_usage: Option<(bool, Vec<u8>)>,
    pub purposes: Option<Vec<u8>>,
    /// Seconds from the start of the tests.
    pub not_before: i64,
    pub not_after: i64,
    /// Whole extensions, DER.
    pub extensions: Vec<Vec<u8>>,
    /// Another public key than that of the generated pair (`SubjectPublicKeyInfo`, DER).
    pub public_key: Option<Vec<u8>>,
    /// What it says of its signature; it is signed with ECDSA and SHA-256 in any case.
    pub signature_algorithm: &'static [u8],
}

/// A leaf that obeys every rule.
pub fn leaf(uri: &str) -> Spec {
    Spec {
        subject: String::new(),
        raw_subject: None,
        uris: vec![uri.into()],
        dns: vec![],
        ips: vec![],
        san_critical: true,
        basic_constraints: Some((false, None)),
        key_usage: Some((true, vec![DIGITAL_SIGNATURE])),
        purposes: Some(vec![SERVER, CLIENT]),
        not_before: -60,
        not_after: 3540,
        extensions: vec![],
        public_key: None,
        signature_algorithm: ECDSA_SHA256,
    }
}

/// A signing certificate that obeys every rule, without an ID.
pub fn signer(subject: &str) -> Spec {
    Spec {
        subject: subject.into(),
        uris: vec![],
        san_critical: false,
        basic_constraints: Some((true, None)),
        key_usage: Some((true, vec![KEY_CERT_SIGN, CRL_SIGN])),
        purposes: None,
        not_before: -86400,
        not_after: 86400,
        ..leaf("")
    }
}

impl Spec {
    /// This, changed.
    pub fn with(mut self, change: impl FnOnce(&mut Spec)) -> Self {
        change(&mut self);
        self
    }

    pub fn self_signed(&self) -> Issued {
        let key = KeyPair::generate().unwrap();
        let der = self.encode(&key, &key, &self.name());
        Issued { der, key, subject: self.name() }
    }

    fn name(&self) -> Vec<u8> {
        self.raw_subject.clone().unwrap_or_else(|| name(&self.subject))
    }

    fn encode(&self, own: &KeyPair, signing: &KeyPair, issuer: &[u8]) -> CertificateDer<'static> {
        let algorithm = tlv(0x30, &[&tlv(0x06, &[self.signature_algorithm])]);
        let public_key = self.public_key.clone().unwrap_or_else(|| own.subject_public_key_info());
        let tbs = tlv(
            0x30,
            &[
                &[0xa0, 3, 2, 1, 2],
                &[2, 2, 0x40, 0x01],
                &algorithm,
                issuer,
                &tlv(0x30, &[&time(self.not_before), &time(self.not_after)]),
                &self.name(),
                &public_key,
                &tlv(0xa3, &[&tlv(0x30, &[&self.encode_extensions()])]),
            ],
        );
        let signature = signing.sign(&tbs).unwrap();
        tlv(0x30, &[&tbs, &algorithm, &tlv(0x03, &[&[0], &signature])]).into()
    }

    fn encode_extensions(&self) -> Vec<u8> {
        let mut out = self.extensions.concat();
        let mut names: Vec<u8> = vec![];
        names.extend(self.uris.iter().flat_map(|uri| tlv(0x86, &[uri])));
        names.extend(self.dns.iter().flat_map(|dns| tlv(0x82, &[dns.as_bytes()])));
        names.extend(self.ips.iter().flat_map(|ip| tlv(0x87, &[ip])));
        if !names.is_empty() {
            out.extend(extension(&[0x55, 0x1d, 17], self.san_critical, &tlv(0x30, &[&names])));
        }
        if let Some((ca, path_length)) = self.basic_constraints {
            let mut value = if ca { vec![1, 1, 0xff] } else { vec![] };
            value.extend(path_length.into_iter().flat_map(|length| [2, 1, length]));
            out.extend(extension(&[0x55, 0x1d, 19], true, &tlv(0x30, &[&value])));
        }
        if let Some((critical, bits)) = &self.key_usage {
            let byte = bits.iter().fold(0u8, |byte, bit| byte | 0x80 >> bit);
            out.extend(extension(&[0x55, 0x1d, 15], *critical, &[3, 2, byte.trailing_zeros() as u8, byte]));
        }
        if let Some(purposes) = &self.purposes {
            let purposes: Vec<u8> = purposes.iter().flat_map(|last| [6, 8, 0x2b, 6, 1, 5, 5, 7, 3, *last]).collect();
            out.extend(extension(&[0x55, 0x1d, 37], false, &tlv(0x30, &[&purposes])));
        }
        out
    }
}

/// A certificate with its key; anything can sign, also what must not.
pub struct Issued {
    pub der: CertificateDer<'static>,
    pub key: KeyPair,
    /// `Name`, DER.
    pub subject: Vec<u8>,
}

impl Issued {
    pub fn issue(&self, spec: &Spec) -> Issued {
        let key = KeyPair::generate().unwrap();
        let der = spec.encode(&key, &self.key, &self.subject);
        Issued { der, key, subject: spec.name() }
    }

    /// A certificate for the key of another one: a cross signature, or a renewal.
    pub fn issue_for(&self, spec: &Spec, subject: &Issued) -> Issued {
        let key = KeyPair::try_from(subject.key.serialized_der()).unwrap();
        let der = spec.encode(&key, &self.key, &self.subject);
        Issued { der, key, subject: spec.name() }
    }

    /// What a peer presents: this, then `rest`.
    pub fn chain(self, rest: &[&Issued]) -> Presented {
        let mut chain = vec![self.der];
        chain.extend(rest.iter().map(|issued| issued.der.clone()));
        Presented { chain, key: self.key }
    }
}

/// A chain and the key that its presenter holds.
pub struct Presented {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: KeyPair,
}

pub fn bundle(roots: &[&Issued]) -> TrustBundle {
    TrustBundle {
        trust_domain: TrustDomain::parse("td.example").unwrap(),
        roots: roots.iter().map(|root| root.der.clone()).collect(),
    }
}

/// An extension with any OID and value.
pub fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    tlv(0x30, &[&tlv(0x06, &[oid]), critical, &tlv(0x04, &[value])])
}

/// Name constraints on URIs (RFC 5280 section 4.2.1.10): `tag` 0xa0 permits, 0xa1 excludes.
pub fn uri_constraint(tag: u8, hosts: &[&str]) -> Vec<u8> {
    let subtrees: Vec<u8> = hosts.iter().flat_map(|host| tlv(0x30, &[&tlv(0x86, &[host.as_bytes()])])).collect();
    extension(&[0x55, 0x1d, 30], true, &tlv(0x30, &[&tlv(tag, &[&subtrees])]))
}

/// `SubjectPublicKeyInfo` of an RSA key with so many bits.
pub fn rsa_key(bits: usize) -> Vec<u8> {
    let modulus = tlv(0x02, &[&[0], &vec![0xc1; bits / 8]]);
    let key = tlv(0x30, &[&modulus, &[2, 3, 1, 0, 1]]);
    let algorithm = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    tlv(0x30, &[&tlv(0x30, &[&algorithm]), &tlv(0x03, &[&[0], &key])])
}

/// `SubjectPublicKeyInfo` of a point of so many bytes on a named curve.
pub fn ec_key(curve: &[u8], point: usize) -> Vec<u8> {
    let algorithm = tlv(0x30, &[&[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1], &tlv(0x06, &[curve])]);
    tlv(0x30, &[&algorithm, &tlv(0x03, &[&[0, 4], &vec![0x11; point]])])
}

pub fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let mut out = vec![tag];
    match contents.len() {
        length @ 0..=0x7f => out.push(length as u8),
        length @ 0x80..=0xff => out.extend([0x81, length as u8]),
        length @ 0x100..=0xffff => out.extend([0x82, (length >> 8) as u8, length as u8]),
        length => out.extend([0x83, (length >> 16) as u8, (length >> 8) as u8, length as u8]),
    }
    out.extend(contents);
    out
}

fn name(common_name: &str) -> Vec<u8> {
    if common_name.is_empty() {
        return tlv(0x30, &[]);
    }
    let attribute = tlv(0x30, &[&[6, 3, 0x55, 4, 3], &tlv(0x0c, &[common_name.as_bytes()])]);
    tlv(0x30, &[&tlv(0x31, &[&attribute])])
}

fn time(from_now: i64) -> Vec<u8> {
    // One start for all, so that the times of a test lie exactly so far apart as it says.
    static START: LazyLock<i64> =
        LazyLock::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64);
    let at = time::OffsetDateTime::from_unix_timestamp(*START + from_now).unwrap();
    let text = format!(
        "{:04}{:02}{:02}{:02}{:02}{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    );
    tlv(0x17, &[&text.as_bytes()[2..]])
}

pub fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}
