//! The catalogue: for each rule chains that break it, with what stock path validation says of them, and chains that
//! obey it.
use weft_certs::TrustBundle;

use crate::certificate::*;

/// A chain, and the bundle that judges it.
pub type Case = (Presented, TrustBundle);

/// Whether webpki alone accepts a bad chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stock {
    Accepts,
    Rejects,
}
pub use Stock::{Accepts, Rejects};

pub struct Bad {
    pub rule: u8,
    pub reason: &'static str,
    pub stock: Stock,
    pub case: Case,
    pub what: String,
}

fn bad(rule: u8, reason: &'static str, stock: Stock, what: impl Into<String>, case: Case) -> Bad {
    Bad { rule, reason, stock, case, what: what.into() }
}

/// A leaf directly under a good root.
pub fn under_root(leaf: Spec) -> Case {
    let root = signer("root").self_signed();
    (root.issue(&leaf).chain(&[]), bundle(&[&root]))
}

fn with_leaf(change: impl FnOnce(&mut Spec)) -> Case {
    under_root(leaf(ID).with(change))
}

fn with_uri(uri: impl AsRef<[u8]>) -> Case {
    with_leaf(|leaf| leaf.uris = vec![uri.as_ref().to_vec()])
}

/// A good leaf under an intermediate under a root.
fn with_signers(root: Spec, intermediate: Spec) -> Case {
    let root = root.self_signed();
    let intermediate = root.issue(&intermediate);
    (intermediate.issue(&leaf(ID)).chain(&[&intermediate]), bundle(&[&root]))
}

fn with_intermediate(change: impl FnOnce(&mut Spec)) -> Case {
    with_signers(signer("root"), signer("intermediate").with(change))
}

fn id_of_length(length: usize) -> String {
    let prefix = "spiffe://td.example/";
    format!("{prefix}{}", "a".repeat(length - prefix.len()))
}

fn leaf_signed_by_leaf() -> Case {
    let root = signer("root").self_signed();
    let signing_leaf = root.issue(&leaf(ID).with(|leaf| leaf.subject = "leaf".into()));
    (signing_leaf.issue(&leaf(ID)).chain(&[&signing_leaf]), bundle(&[&root]))
}

fn two_intermediates(root_length: Option<u8>, upper_length: Option<u8>) -> Case {
    let limit = |length| move |spec: &mut Spec| spec.basic_constraints = Some((true, length));
    let root = signer("root").with(limit(root_length)).self_signed();
    let upper = root.issue(&signer("upper").with(limit(upper_length)));
    let lower = upper.issue(&signer("lower"));
    (lower.issue(&leaf(ID)).chain(&[&lower, &upper]), bundle(&[&root]))
}

fn signed_by_another_key_of_the_same_name() -> Case {
    let (root, other) = (signer("root").self_signed(), signer("root").self_signed());
    (other.issue(&leaf(ID)).chain(&[]), bundle(&[&root]))
}

fn duplicated_san() -> Case {
    let san = extension(&[0x55, 0x1d, 17], true, &tlv(0x30, &[&tlv(0x86, &[ID.as_bytes()])]));
    with_leaf(|leaf| leaf.extensions = vec![san])
}

fn bad_names() -> Vec<Bad> {
    let uri = |rule, reason, uri: &str| bad(rule, reason, Accepts, uri, with_uri(uri));
    let mut rows = vec![
        bad(
            1,
            "not_one_uri_san",
            Accepts,
            "two URI SANs",
            with_leaf(|leaf| leaf.uris.push(b"spiffe://td.example/b".to_vec())),
        ),
        bad(
            2,
            "no_uri_san",
            Accepts,
            "a DNS SAN only",
            with_leaf(|leaf| {
                leaf.uris.clear();
                leaf.dns = vec!["cart.shop.svc".into()];
            }),
        ),
        bad(2, "no_uri_san", Accepts, "no SAN", with_leaf(|leaf| leaf.uris.clear())),
        bad(9, "bad_path_character", Accepts, "URI not ASCII", with_uri(b"spiffe://td.example/caf\xc3\xa9")),
        bad(9, "bad_path_character", Accepts, "NUL in the URI", with_uri(b"spiffe://td.example/a\0b")),
        bad(13, "id_too_long", Accepts, "2049 bytes", with_uri(id_of_length(2049))),
        bad(
            6,
            "bad_trust_domain_name",
            Accepts,
            "domain of 256 bytes",
            with_uri(format!("spiffe://{}/a", "d".repeat(256))),
        ),
    ];
    for (rule, reason, text) in [
        (4, "not_spiffe_scheme", "https://td.example/ns/shop/sa/cart"),
        (4, "not_spiffe_scheme", "spiffe:/td.example/ns/shop/sa/cart"),
        (5, "bad_authority", "spiffe://td.example:8443/a"),
        (5, "bad_authority", "spiffe://bob@td.example/a"),
        (5, "bad_authority", "spiffe:///a"),
        (6, "bad_trust_domain_name", "spiffe://TD.example/a"),
        (6, "bad_trust_domain_name", "spiffe://td%2eexample/a"),
        (7, "upper_case", "SPIFFE://td.example/a"),
        (8, "query_or_fragment", "spiffe://td.example/ns/shop/sa/cart?x=1"),
        (8, "query_or_fragment", "spiffe://td.example/ns/shop/sa/cart#x"),
        (9, "bad_path_character", "spiffe://td.example/ns/shop/sa/ca%72t"),
        (9, "bad_path_character", "spiffe://td.example/ns/shop/sa/cart~"),
        (9, "bad_path_character", "spiffe://td.example/ns/shop/sa/ca rt"),
        (10, "bad_path_segment", "spiffe://td.example/ns/shop/sa/cart/"),
        (10, "bad_path_segment", "spiffe://td.example/"),
        (10, "bad_path_segment", "spiffe://td.example//ns"),
        (10, "bad_path_segment", "spiffe://td.example/ns/./cart"),
        (10, "bad_path_segment", "spiffe://td.example/ns/../cart"),
        (12, "no_path", "spiffe://td.example"),
        (26, "wrong_trust_domain", "spiffe://evil.example/ns/shop/sa/cart"),
        (26, "wrong_trust_domain", "spiffe://td.example.evil/ns/shop/sa/cart"),
    ] {
        rows.push(uri(rule, reason, text));
    }
    rows
}

fn bad_leaves() -> Vec<Bad> {
    let usage = |bits: &[u8]| {
        let bits = bits.to_vec();
        with_leaf(|leaf| leaf.key_usage = Some((true, bits)))
    };
    let ca = |key_usage| {
        with_leaf(|leaf| {
            leaf.basic_constraints = Some((true, None));
            leaf.key_usage = Some((true, vec![key_usage]));
        })
    };
    let unknown = extension(&[0x2a, 3, 4, 5], true, &[5, 0]);
    vec![
        bad(14, "leaf_is_ca", Rejects, "cA true", ca(DIGITAL_SIGNATURE)),
        bad(15, "key_usage_not_critical", Accepts, "no key usage", with_leaf(|leaf| leaf.key_usage = None)),
        bad(
            15,
            "key_usage_not_critical",
            Accepts,
            "not critical",
            with_leaf(|leaf| {
                leaf.key_usage = Some((false, vec![DIGITAL_SIGNATURE]));
            }),
        ),
        bad(16, "leaf_key_usage", Accepts, "contentCommitment", usage(&[CONTENT_COMMITMENT, DIGITAL_SIGNATURE])),
        bad(16, "leaf_key_usage", Accepts, "no digitalSignature", usage(&[KEY_AGREEMENT])),
        bad(17, "leaf_may_sign", Accepts, "keyCertSign", usage(&[DIGITAL_SIGNATURE, KEY_CERT_SIGN])),
        bad(17, "leaf_may_sign", Accepts, "cRLSign", usage(&[DIGITAL_SIGNATURE, CRL_SIGN])),
        bad(18, "extended_key_usage", Accepts, "clientAuth only", with_leaf(|leaf| leaf.purposes = Some(vec![CLIENT]))),
        bad(18, "extended_key_usage", Rejects, "serverAuth only", with_leaf(|leaf| leaf.purposes = Some(vec![SERVER]))),
        bad(18, "extended_key_usage", Rejects, "neither", with_leaf(|leaf| leaf.purposes = Some(vec![CODE_SIGNING]))),
        bad(19, "san_not_critical", Accepts, "empty subject", with_leaf(|leaf| leaf.san_critical = false)),
        bad(23, "signer_as_leaf", Rejects, "an intermediate as leaf", ca(KEY_CERT_SIGN)),
        bad(
            25,
            "expired",
            Rejects,
            "expired 1 min",
            with_leaf(|leaf| (leaf.not_before, leaf.not_after) = (-3600, -61)),
        ),
        bad(25, "not_yet_valid", Rejects, "in 10 min", with_leaf(|leaf| leaf.not_before = 600)),
        bad(27, "unknown_critical_extension", Rejects, "1.2.3.4.5", with_leaf(|leaf| leaf.extensions = vec![unknown])),
        bad(28, "duplicate_extension", Rejects, "two SAN extensions", duplicated_san()),
    ]
}

fn bad_signers() -> Vec<Bad> {
    let uri = |uri: &'static str| with_intermediate(|signer| signer.uris = vec![uri.into()]);
    let constrained = |tag, host| uri_constraint(tag, &[host]);
    let (permit, exclude) = (constrained(0xa0, "other.example"), constrained(0xa1, "other.example"));
    vec![
        bad(20, "signer_may_not_sign", Accepts, "no key usage", with_intermediate(|signer| signer.key_usage = None)),
        bad(
            20,
            "signer_may_not_sign",
            Accepts,
            "not critical",
            with_intermediate(|signer| {
                signer.key_usage = Some((false, vec![KEY_CERT_SIGN]));
            }),
        ),
        bad(
            20,
            "signer_may_not_sign",
            Accepts,
            "no keyCertSign",
            with_intermediate(|signer| {
                signer.key_usage = Some((true, vec![CRL_SIGN]));
            }),
        ),
        bad(21, "signer_is_not_ca", Rejects, "a leaf signs a leaf", leaf_signed_by_leaf()),
        bad(22, "signer_id", Accepts, "signer with a path", uri("spiffe://td.example/ns/shop/sa/cart")),
        bad(22, "signer_id", Accepts, "signer of another domain", uri("spiffe://evil.example")),
        bad(22, "signer_id", Accepts, "signer with a web address", uri("https://td.example")),
        bad(
            1,
            "not_one_uri_san",
            Accepts,
            "signer with two URIs",
            with_intermediate(|signer| {
                signer.uris = vec![b"spiffe://td.example".to_vec(), b"spiffe://evil.example".to_vec()];
            }),
        ),
        bad(
            18,
            "extended_key_usage",
            Rejects,
            "signer for code",
            with_intermediate(|signer| {
                signer.purposes = Some(vec![CODE_SIGNING]);
            }),
        ),
        bad(24, "path_length", Rejects, "intermediate of path length 0", two_intermediates(None, Some(0))),
        bad(24, "path_length", Accepts, "root of path length 1", two_intermediates(Some(1), None)),
        bad(
            25,
            "expired",
            Rejects,
            "expired intermediate",
            with_intermediate(|signer| (signer.not_before, signer.not_after) = (-3600, -61)),
        ),
        bad(
            29,
            "name_constraints",
            Rejects,
            "signer permits another host",
            with_intermediate(|signer| {
                signer.extensions = vec![permit];
            }),
        ),
        bad(
            29,
            "name_constraints",
            Rejects,
            "root excludes another host",
            with_signers(signer("root").with(|root| root.extensions = vec![exclude]), signer("intermediate")),
        ),
    ]
}

fn untrusted() -> Vec<Bad> {
    let root = signer("root").self_signed();
    let self_signed = leaf(ID).with(|leaf| leaf.subject = "root".into()).self_signed();
    let unknown = signer("other").self_signed().issue(&leaf(ID)).chain(&[]);
    let p192 = ec_key(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 1], 48);
    let p521 = ec_key(&[0x2b, 0x81, 4, 0, 0x23], 132);
    let key = |key| with_leaf(|leaf| leaf.public_key = Some(key));
    vec![
        bad(0, "unknown_issuer", Rejects, "unknown authority", (unknown, bundle(&[&root]))),
        bad(0, "unknown_issuer", Rejects, "self-signed", (self_signed.chain(&[]), bundle(&[&root]))),
        bad(0, "unknown_issuer", Rejects, "right name, wrong key", signed_by_another_key_of_the_same_name()),
        bad(0, "weak_algorithm", Accepts, "RSA-1024", key(rsa_key(1024))),
        bad(0, "weak_algorithm", Accepts, "RSA-16384", key(rsa_key(16384))),
        bad(0, "weak_algorithm", Accepts, "P-192", key(p192)),
        bad(0, "weak_algorithm", Accepts, "P-521", key(p521)),
        bad(0, "weak_algorithm", Rejects, "SHA-1", with_leaf(|leaf| leaf.signature_algorithm = ECDSA_SHA1)),
        bad(0, "weak_algorithm", Rejects, "MD5", with_leaf(|leaf| leaf.signature_algorithm = RSA_MD5)),
        bad(0, "too_large", Accepts, "6 certificates", chain_of(6)),
        bad(0, "too_large", Rejects, "100 certificates", chain_of(100)),
        bad(
            0,
            "too_large",
            Accepts,
            "leaf of 17 KiB",
            with_leaf(|leaf| {
                leaf.dns = (0..900).map(|number| format!("host-{number:04}.example")).collect();
            }),
        ),
        bad(
            0,
            "too_large",
            Rejects,
            "1000 name constraints",
            with_intermediate(|signer| {
                let hosts: Vec<String> = (0..1000).map(|number| format!("host-{number:04}.example")).collect();
                signer.extensions = vec![uri_constraint(0xa0, &hosts.iter().map(String::as_str).collect::<Vec<_>>())];
            }),
        ),
        bad(0, "unknown_issuer", Rejects, "two signers that sign each other", cross_signed_loop()),
    ]
}

fn chain_of(length: usize) -> Case {
    let root = signer("root").self_signed();
    let mut signers = vec![root.issue(&signer("0"))];
    for number in 1..length - 1 {
        signers.push(signers[number - 1].issue(&signer(&number.to_string())));
    }
    signers.reverse();
    let leaf = signers[0].issue(&leaf(ID));
    (leaf.chain(&signers.iter().collect::<Vec<_>>()), bundle(&[&root]))
}

fn cross_signed_loop() -> Case {
    let root = signer("root").self_signed();
    let (one, other) = (signer("one").self_signed(), signer("other").self_signed());
    let one_by_other = other.issue_for(&signer("one"), &one);
    let other_by_one = one.issue_for(&signer("other"), &other);
    (one.issue(&leaf(ID)).chain(&[&one_by_other, &other_by_one]), bundle(&[&root]))
}

pub fn all_bad() -> impl Iterator<Item = Bad> {
    bad_names().into_iter().chain(bad_leaves()).chain(bad_signers()).chain(untrusted())
}

pub fn good() -> Vec<(&'static str, &'static str, Case)> {
    let long: &'static str = id_of_length(2048).leak();
    let with_id = |id| (under_root(leaf(id)), id);
    let mut rows: Vec<(&str, &str, Case)> = vec![
        (
            "rule 3: other SANs are ignored",
            ID,
            with_leaf(|leaf| {
                leaf.dns = vec!["cart.shop.svc".into(), "spiffe.example".into()];
                leaf.ips = vec![[10, 0, 0, 1]];
            }),
        ),
        ("rule 14: cA false by absence", ID, with_leaf(|leaf| leaf.basic_constraints = None)),
        (
            "rule 16: keyAgreement beside it",
            ID,
            with_leaf(|leaf| {
                leaf.key_usage = Some((true, vec![DIGITAL_SIGNATURE, KEY_AGREEMENT]));
            }),
        ),
        ("rule 18: no extended key usage", ID, with_leaf(|leaf| leaf.purposes = None)),
        ("rule 18: more purposes", ID, with_leaf(|leaf| leaf.purposes = Some(vec![CODE_SIGNING, CLIENT, SERVER]))),
        (
            "rule 19: subject, SAN not critical",
            ID,
            with_leaf(|leaf| {
                leaf.subject = "cart".into();
                leaf.san_critical = false;
            }),
        ),
        ("rule 20: intermediate", ID, with_intermediate(|_| ())),
        (
            "rule 20: keyCertSign alone",
            ID,
            with_intermediate(|signer| signer.key_usage = Some((true, vec![KEY_CERT_SIGN]))),
        ),
        (
            "rule 22: signer with its own ID",
            ID,
            with_intermediate(|signer| signer.uris = vec![b"spiffe://td.example".to_vec()]),
        ),
        ("rule 24: path lengths that suffice", ID, two_intermediates(Some(2), Some(1))),
        ("rule 25: expired within the skew", ID, with_leaf(|leaf| (leaf.not_before, leaf.not_after) = (-3600, -1))),
        ("rule 25: valid soon, within the skew", ID, with_leaf(|leaf| leaf.not_before = 30)),
        ("root without key usage", ID, with_signers(signer("root").with(|root| root.key_usage = None), signer("i"))),
        ("four intermediates", ID, chain_of(5)),
    ];
    for (what, id) in [
        ("rules 1, 2, 4, 8, 10, 12, 15, 17, 23, 26 to 29", ID),
        ("rule 9: all path characters", "spiffe://td.example/ns/shop/sa/cart-v2.1_a"),
        ("rule 13: 2048 bytes", long),
    ] {
        rows.push((what, id, with_id(id).0));
    }
    rows
}
