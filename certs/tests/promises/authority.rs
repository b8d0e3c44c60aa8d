//! The authority signs the attested name for a proven key, and nothing else.
use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType};
use weft_certs::{CertificateAuthority, PrivateKey, SpiffeId, TrustDomain, verify_chain};
use x509_parser::prelude::*;

use crate::certificate::*;

fn domain() -> TrustDomain {
    TrustDomain::parse("td.example").unwrap()
}

fn id() -> SpiffeId {
    SpiffeId::parse(ID).unwrap()
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::self_signed(&domain(), hours(100), SystemTime::now()).unwrap()
}

fn request() -> Vec<u8> {
    PrivateKey::generate().certificate_request()
}

/// PEM of certificates and of a key.
fn pem(certificates: &[&Issued]) -> String {
    bundle(certificates).to_pem()
}

fn load(certificates: &[&Issued], key: &str, roots: &[&Issued]) -> Result<CertificateAuthority, String> {
    CertificateAuthority::from_pem(&domain(), &pem(certificates), key, &pem(roots), SystemTime::now())
        .map_err(|error| error.to_string())
}

#[test]
fn a_leaf_has_the_attested_name_and_the_requested_key_and_nothing_else() {
    let (authority, key, now) = (authority(), PrivateKey::generate(), SystemTime::now());
    let chain = authority.sign(&key.certificate_request(), &id(), hours(1), now).unwrap();
    assert_eq!(chain.len(), 1, "the root is not sent");
    let (rest, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(rest.is_empty());
    assert_eq!(leaf.subject().iter().count(), 0);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names, [GeneralName::URI(ID)]);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(!constraints.value.ca && constraints.value.path_len_constraint.is_none());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature alone");
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any && purposes.other.is_empty());
    assert_eq!(leaf.extensions().len(), 5, "{:?}", leaf.extensions());

    let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert_eq!(leaf.validity().not_before.timestamp(), seconds(now) - 60);
    assert_eq!(leaf.validity().not_after.timestamp(), seconds(now) + 3600);

    let root = authority.trust_bundle().roots.remove(0);
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    let key_id = |extension: &ParsedExtension<'_>| match extension {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    };
    let of = |certificate: &X509Certificate<'_>| {
        certificate.extensions().iter().find_map(|extension| key_id(extension.parsed_extension()))
    };
    assert!(of(&leaf).is_some());
    assert_eq!(of(&leaf), of(&root), "the authority key identifier points at the signer");
    leaf.verify_signature(Some(root.public_key())).unwrap();
}

#[test]
fn the_self_signed_root_obeys_the_rules_of_signing_certificates() {
    let der = authority().trust_bundle().roots.remove(0);
    let (_, root) = X509Certificate::from_der(&der).unwrap();
    root.verify_signature(None).unwrap();
    let names = &root.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://td.example")]);
    let usage = root.key_usage().unwrap().unwrap();
    assert!(
        usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign() && !usage.value.digital_signature()
    );
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    for lifetime in [Duration::ZERO, hours(24 * 366 * 100)] {
        assert!(CertificateAuthority::self_signed(&domain(), lifetime, SystemTime::now()).is_err());
    }
}

/// Rule 37: all that a request asks for is ignored.
#[test]
fn a_request_cannot_ask_for_a_name_or_a_right() {
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::default();
    greedy.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    greedy.distinguished_name.push(DnType::CommonName, "admin");
    let admin = "spiffe://td.example/ns/kube-system/sa/admin";
    greedy.subject_alt_names =
        vec![SanType::URI(admin.try_into().unwrap()), SanType::DnsName("admin.example".try_into().unwrap())];
    let request = greedy.serialize_request(&key).unwrap();
    let authority = authority();
    let now = SystemTime::now();
    let chain = authority.sign(request.der(), &id(), hours(1), now).unwrap();
    assert_eq!(verify_chain(&chain, &authority.trust_bundle(), now).unwrap().id, id());
    assert!(!chain[0].windows(5).any(|bytes| bytes == b"admin"));
}

#[test]
fn a_request_must_be_whole_and_signed_by_its_own_key() {
    let good = request();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut swapped = good.clone();
    let (own, other) = (spki_of(&good), spki_of(&request()));
    let at = good.windows(own.len()).position(|bytes| bytes == own).unwrap();
    swapped[at..at + own.len()].copy_from_slice(&other);
    for (what, request, says) in [
        ("empty", vec![], "not DER PKCS#10"),
        ("text", b"-----BEGIN CERTIFICATE REQUEST-----".to_vec(), "not DER PKCS#10"),
        ("cut", good[..good.len() - 1].to_vec(), "not DER PKCS#10"),
        ("followed by bytes", [&good[..], &[0]].concat(), "bytes follow"),
        ("forged signature", forged, "not signed by the key"),
        ("another's key", swapped, "not signed by the key"),
        ("huge", vec![0x30; 9000], "at most 8192"),
    ] {
        let error = authority().sign(&request, &id(), hours(1), SystemTime::now()).unwrap_err().to_string();
        assert!(error.contains(says), "{what}: {error}");
    }
    let authority = authority();
    for length in 0..good.len() {
        assert!(authority.sign(&good[..length], &id(), hours(1), SystemTime::now()).is_err());
    }
}

fn spki_of(request: &[u8]) -> Vec<u8> {
    let (_, request) = X509CertificationRequest::from_der(request).unwrap();
    request.certification_request_info.subject_pki.raw.to_vec()
}

#[test]
fn only_strong_keys_are_signed() {
    let authority = authority();
    let now = SystemTime::now();
    let request = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let chain = authority.sign(&request(&key), &id(), hours(1), now).unwrap();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info(), "{algorithm:?}");
    }
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    assert!(authority.sign(&request(&rsa), &id(), hours(1), now).is_ok());
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let error = authority.sign(&request(&p521), &id(), hours(1), now).unwrap_err().to_string();
    assert!(error.contains("use ECDSA P-256, P-384, Ed25519 or RSA"), "{error}");
}

/// The key is labelled by what it is, not by how the request was signed: a P-384 key whose request is signed with
/// SHA-256 keeps its curve.
#[test]
fn the_key_of_a_leaf_is_that_of_the_request_byte_for_byte() {
    let request = include_bytes!("../fixtures/p384-signed-with-sha256.csr");
    let chain = authority().sign(request, &id(), hours(1), SystemTime::now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.public_key().raw, spki_of(request));
}

#[test]
fn lifetimes_are_bounded_and_end_with_the_signer() {
    let now = SystemTime::now();
    let authority = CertificateAuthority::self_signed(&domain(), hours(2), now).unwrap();
    for lifetime in [Duration::ZERO, hours(24) + Duration::from_secs(1)] {
        let error = authority.sign(&request(), &id(), lifetime, now).unwrap_err().to_string();
        assert!(error.contains("at most 24 h"), "{error}");
    }
    let not_after = |lifetime| {
        let chain = authority.sign(&request(), &id(), lifetime, now).unwrap();
        verify_chain(&chain, &authority.trust_bundle(), now).unwrap().not_after
    };
    assert_eq!(not_after(hours(24)), authority.not_after());
    assert!(not_after(hours(1)) < authority.not_after());
    let error = authority.sign(&request(), &id(), hours(1), authority.not_after()).unwrap_err().to_string();
    assert!(error.contains("has expired"), "{error}");
}

#[test]
fn no_leaf_outlives_the_certificates_above_its_signer() {
    let short = |spec: Spec| spec.with(|spec| spec.not_after = 7200);
    let (root, short_root) = (signer("root").self_signed(), short(signer("short root")).self_signed());
    let short_intermediate = root.issue(&short(signer("short")));
    let lower = short_intermediate.issue(&signer("lower"));
    let under_short_root = short_root.issue(&signer("intermediate"));
    for (certificates, key, roots) in [
        (&[&lower, &short_intermediate][..], &lower, &[&root][..]),
        (&[&under_short_root], &under_short_root, &[&root, &short_root]),
    ] {
        let authority = load(certificates, &key.key.serialize_pem(), roots).unwrap();
        let now = SystemTime::now();
        let chain = authority.sign(&request(), &id(), hours(12), now).unwrap();
        let not_after = verify_chain(&chain, &authority.trust_bundle(), now).unwrap().not_after;
        assert!(not_after < now + hours(3));
        assert_eq!(not_after, authority.not_after());
    }
}

#[test]
fn no_other_trust_domain_is_signed_for() {
    let other = SpiffeId::parse("spiffe://td.example.evil/ns/shop/sa/cart").unwrap();
    let error = authority().sign(&request(), &other, hours(1), SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("not of trust domain td.example"), "{error}");
}

/// Rule 36, and serials of at least 64 random bits.
#[test]
fn keys_and_serials_never_repeat() {
    let authority = authority();
    let (mut keys, mut serials) = (HashSet::new(), HashSet::new());
    for _ in 0..50 {
        let chain = authority.sign(&request(), &id(), hours(1), SystemTime::now()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!((leaf.raw_serial().len(), leaf.raw_serial()[0] & 0xc0), (16, 0x40), "positive, of constant length");
        assert!(keys.insert(leaf.public_key().raw.to_vec()));
        assert!(serials.insert(leaf.raw_serial().to_vec()));
    }
}

#[test]
fn an_authority_survives_being_written_and_read() {
    let (first, now) = (authority(), SystemTime::now());
    for roots in [first.trust_bundle().to_pem(), String::new()] {
        let again = CertificateAuthority::from_pem(&domain(), &first.certificates_pem(), &first.key_pem(), &roots, now)
            .unwrap();
        assert_eq!(again.trust_bundle(), first.trust_bundle());
        assert_eq!(again.not_after(), first.not_after());
        let chain = again.sign(&request(), &id(), hours(1), now).unwrap();
        assert!(verify_chain(&chain, &first.trust_bundle(), now).is_ok());
    }
}

#[test]
fn an_intermediate_signs_and_is_sent_along() {
    let root = signer("root").self_signed();
    let intermediate =
        root.issue(&signer("intermediate").with(|signer| signer.uris = vec![b"spiffe://td.example".to_vec()]));
    let key = intermediate.key.serialize_pem();
    // cert-manager's tls.crt has the intermediate alone or with the root; ca.crt has the root.
    for certificates in [&[&intermediate][..], &[&intermediate, &root]] {
        let authority = load(certificates, &key, &[&root]).unwrap();
        let chain = authority.sign(&request(), &id(), hours(1), SystemTime::now()).unwrap();
        assert_eq!(chain[1..], *std::slice::from_ref(&intermediate.der));
    }
}

/// Names of organizations repeat attributes and come in several string types; the leaf's issuer must match to the byte.
#[test]
fn a_signer_may_have_any_subject() {
    let attribute = |oid: &[u8], tag, value: &[u8]| tlv(0x30, &[&tlv(0x06, &[oid]), &tlv(tag, &[value])]);
    let domain_component = |value| attribute(&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], 0x16, value);
    let multi_valued = [attribute(&[0x55, 4, 3], 0x13, b"CA"), attribute(&[0x55, 4, 11], 0x0c, "Zürich".as_bytes())];
    let subject = tlv(
        0x30,
        &[
            &tlv(0x31, &[&domain_component(b"com")]),
            &tlv(0x31, &[&domain_component(b"example")]),
            &tlv(0x31, &[&multi_valued[0], &multi_valued[1]]),
        ],
    );
    let root = signer("").with(|root| root.raw_subject = Some(subject)).self_signed();
    let authority = load(&[&root], &root.key.serialize_pem(), &[&root]).unwrap();
    assert!(authority.sign(&request(), &id(), hours(1), SystemTime::now()).is_ok());
}

/// PKCS#8, and what OpenSSL and cert-manager write by default: SEC1 for EC keys, PKCS#1 for RSA keys.
#[test]
fn keys_of_every_common_form_sign() {
    let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let pkcs8 = [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256];
    let [p384, ed25519, rsa] = pkcs8.map(|algorithm| KeyPair::generate_for(algorithm).unwrap());
    let curve = [0xa0, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let secret = &inner_key(&p256)[5..][..34];
    let sec1 = tlv(0x30, &[&[2, 1, 1], secret, &curve]);
    for (label, der, key) in [
        ("PRIVATE KEY", p256.serialize_der(), &p256),
        ("EC PRIVATE KEY", sec1, &p256),
        ("PRIVATE KEY", p384.serialize_der(), &p384),
        ("PRIVATE KEY", ed25519.serialize_der(), &ed25519),
        ("PRIVATE KEY", rsa.serialize_der(), &rsa),
        ("RSA PRIVATE KEY", inner_key(&rsa), &rsa),
    ] {
        let root = signer("root").with(|root| root.public_key = Some(key.subject_public_key_info())).self_signed();
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let key = format!("{parameters}-----BEGIN {label}-----\n{}\n-----END {label}-----\n", base64(&der));
        let authority = load(&[&root], &key, &[]).unwrap_or_else(|error| panic!("{label}: {error}"));
        let again =
            CertificateAuthority::from_pem(&domain(), &pem(&[&root]), &authority.key_pem(), "", SystemTime::now());
        assert!(again.unwrap().sign(&request(), &id(), hours(1), SystemTime::now()).is_ok(), "{label}");
    }
}

/// The last element of a PKCS#8 key without attributes: its own OCTET STRING's contents.
fn inner_key(key: &KeyPair) -> Vec<u8> {
    let der = key.serialize_der();
    let (_, pkcs8) = x509_parser::der_parser::der::parse_der(&der).unwrap();
    pkcs8.as_sequence().unwrap()[2].as_slice().unwrap().to_vec()
}

fn base64(der: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(der)
}

#[test]
fn what_cannot_issue_is_refused_when_loading() {
    let root = signer("root").self_signed();
    let issue = |change: fn(&mut Spec)| root.issue(&signer("signer").with(change));
    let good = issue(|_| ());
    let (expired, future) =
        (issue(|signer| (signer.not_before, signer.not_after) = (-3600, -1)), issue(|signer| signer.not_before = 600));
    let leaf = issue(|signer| signer.basic_constraints = Some((false, None)));
    let no_sign = issue(|signer| signer.key_usage = Some((true, vec![CRL_SIGN])));
    let not_critical = issue(|signer| signer.key_usage = Some((false, vec![KEY_CERT_SIGN])));
    let foreign = issue(|signer| signer.uris = vec![b"spiffe://other.example".to_vec()]);
    let stranger = signer("stranger").self_signed();
    for (what, signer, key, says) in [
        ("another key", &good, &stranger, "does not belong to the first signing certificate"),
        ("expired", &expired, &expired, "has expired; renew it"),
        ("from the future", &future, &future, "not valid yet"),
        ("no CA", &leaf, &leaf, "only a certificate with cA true may sign"),
        ("no keyCertSign", &no_sign, &no_sign, "critical key usage with keyCertSign"),
        ("key usage not critical", &not_critical, &not_critical, "critical key usage with keyCertSign"),
        ("of another trust domain", &foreign, &foreign, "its trust domain without a path"),
        ("not below the root", &stranger, &stranger, "no root of trust domain"),
    ] {
        let error =
            load(&[signer], &key.key.serialize_pem(), &[&root]).err().unwrap_or_else(|| panic!("{what} was loaded"));
        assert!(error.contains(says), "{what}: {error}");
    }
    // As a root it would do (an operator trusts it), as a signer it does not.
    let sloppy = signer("root").with(|root| root.key_usage = None).self_signed();
    let error = load(&[&sloppy], &sloppy.key.serialize_pem(), &[&sloppy]).unwrap_err();
    assert!(error.contains("critical key usage with keyCertSign"), "{error}");
}

#[test]
fn a_bad_key_file_says_what_to_put_instead() {
    let root = signer("root").self_signed();
    let key = root.key.serialize_pem();
    for (text, says) in [
        (String::new(), "there is none; put a PRIVATE KEY"),
        ("secret".into(), "is not PEM"),
        (format!("{key}{key}"), "several sections"),
        (pem(&[&root]), "it is a CERTIFICATE; put a PRIVATE KEY"),
        (key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "openssl pkcs8"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".into(), "cannot be read"),
    ] {
        let error = load(&[&root], &text, &[&root]).err().unwrap();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains(&key[60..80]), "no part of a key is shown");
    }
    let now = SystemTime::now();
    let error = CertificateAuthority::from_pem(&domain(), "", &key, "", now).err().unwrap().to_string();
    assert!(error.contains("put the PEM of the signer first"), "{error}");
}

#[test]
fn debug_output_hides_private_keys() {
    assert_eq!(format!("{:?}", PrivateKey::generate()), "PrivateKey(redacted)");
    let authority = authority();
    let shown = format!("{authority:?}");
    assert!(shown.starts_with("CertificateAuthority") && !shown.contains(&authority.key_pem()[60..80]), "{shown}");
}
