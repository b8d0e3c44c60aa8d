//! Promises about how certificates are judged.
use k8s_openapi::ByteString;
use rcgen::{CertificateParams, KeyPair};

use super::super::finding::Verdict;
use super::*;

fn pem() -> String {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.not_before = time::OffsetDateTime::from_unix_timestamp(0).expect("1970");
    params.not_after = time::OffsetDateTime::from_unix_timestamp(100 * 86_400).expect("1970");
    params.self_signed(&key).expect("a certificate").pem()
}

fn certificate() -> Certificate {
    Certificate::all(pem().as_bytes()).expect("readable").remove(0)
}

fn kept() -> Stored {
    let certificate = certificate();
    Stored::There(Kept { roots: vec![certificate.clone()], certificate })
}

fn facts(name: &str, authority: Stored, webhook: Stored) -> CertificateFacts {
    CertificateFacts { namespace: "weft-system".into(), authority_name: name.into(), authority, webhook }
}

#[test]
fn authorities_are_told_of_a_month_before_they_expire() {
    use Verdict::{Failure, Ok as Well, Warning};
    for (stored, day, verdict) in [
        (kept(), 1, Well),
        (kept(), 69, Well),
        (kept(), 71, Warning),
        (kept(), 101, Failure),
        (kept(), -1, Failure),
        (Stored::Missing, 1, Failure),
        (Stored::Broken("it has no tls.crt".into()), 1, Failure),
        (Stored::Unseen("forbidden".into()), 1, Warning),
    ] {
        let found = authority(&facts(CA_SECRET, stored.clone(), Stored::Missing), day * 86_400);
        assert_eq!(
            found.iter().map(|finding| finding.verdict).collect::<Vec<_>>(),
            [verdict],
            "{stored:?} on day {day}"
        );
    }
}

#[test]
fn the_webhooks_certificate_warns_when_its_renewal_is_overdue() {
    use Verdict::{Failure, Ok as Well, Warning};
    for (stored, day, verdict) in [
        (kept(), 80, Well),
        (kept(), 90, Warning),
        (kept(), 100, Failure),
        (Stored::Missing, 1, Failure),
        (Stored::Broken("x".into()), 1, Failure),
        (Stored::Unseen("forbidden".into()), 1, Warning),
    ] {
        let found = webhook(&facts(CA_SECRET, Stored::Missing, stored.clone()), day * 86_400);
        assert_eq!(found.verdict, verdict, "{stored:?} on day {day}");
    }
}

#[test]
fn an_issuer_of_ones_own_has_a_root_that_is_judged_apart() {
    let stored = Stored::There(Kept { certificate: certificate(), roots: vec![certificate()] });
    let found = authority(&facts("our-issuer", stored, Stored::Missing), 80 * 86_400);
    let names: Vec<_> = found.iter().map(|finding| (finding.check, finding.verdict)).collect();
    assert_eq!(names, [("authority", Verdict::Warning), ("root", Verdict::Warning)]);
}

#[test]
fn every_meshed_namespace_needs_the_roots() {
    use Verdict::{Failure, Ok as Well, Warning};
    let (root, other) = (certificate(), certificate());
    let bundles = |all: &[(&str, Result<Vec<Certificate>, String>)]| -> Seen<Bundles> {
        Ok(all.iter().map(|(name, bundle)| ((*name).to_owned(), bundle.clone())).collect())
    };
    let one = || Ok(vec![root.clone()]);
    let both = || Ok(vec![other.clone(), root.clone()]);
    for (case, bundles, roots, verdict) in [
        ("equal", bundles(&[("bank", one()), ("shop", one())]), Some(vec![root.clone()]), Well),
        ("missing", bundles(&[("bank", one())]), Some(vec![root.clone()]), Failure),
        (
            "broken",
            bundles(&[("bank", one()), ("shop", Err("it is no PEM".into()))]),
            Some(vec![root.clone()]),
            Failure,
        ),
        (
            "of an earlier mesh",
            bundles(&[("bank", one()), ("shop", Ok(vec![other.clone()]))]),
            Some(vec![root.clone()]),
            Failure,
        ),
        ("unequal, authority unseen", bundles(&[("bank", one()), ("shop", Ok(vec![other.clone()]))]), None, Failure),
        ("a root on its way", bundles(&[("bank", one()), ("shop", both())]), Some(vec![root.clone()]), Warning),
        ("of a namespace outside", bundles(&[("bank", one()), ("old", Err("x".into())), ("shop", one())]), None, Well),
        ("forbidden", Err("forbidden".to_owned()), None, Warning),
    ] {
        let needing = BTreeSet::from(["bank", "shop"]);
        assert_eq!(bundle(&bundles, &needing, roots.as_deref(), "weft-system").verdict, verdict, "{case}");
    }
    assert_eq!(bundle(&bundles(&[]), &BTreeSet::new(), None, "weft-system").verdict, Well);
}

#[test]
fn a_secret_is_read_with_or_without_roots_beside_the_certificate() {
    let secret = |parts: &[(&str, &str)]| {
        let data = parts.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
        Ok(Some(Secret { data: Some(data), ..Secret::default() }))
    };
    let (leaf, root) = (pem(), pem());
    let roots = |stored: Stored| match stored {
        Stored::There(kept) => kept.roots.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(roots(stored(secret(&[("tls.crt", &leaf), ("ca.crt", &format!("{leaf}{root}"))]))), 2);
    assert_eq!(roots(stored(secret(&[("tls.crt", &format!("{leaf}{root}"))]))), 1);
    assert!(matches!(stored(secret(&[("ca.crt", &root)])), Stored::Broken(_)));
    assert!(matches!(stored(secret(&[("tls.crt", "nonsense")])), Stored::Broken(_)));
    assert_eq!(stored(Ok(None)), Stored::Missing);
}

#[test]
fn the_issuer_is_found_however_it_was_given() {
    for (container, expected) in [
        (serde_json::json!({"args": ["--issuer-secret=own"]}), Some("own")),
        (serde_json::json!({"args": ["--issuer-secret", "own"]}), Some("own")),
        (serde_json::json!({"env": [{"name": "WEFT_ISSUER_SECRET", "value": "own"}]}), Some("own")),
        (serde_json::json!({"env": [{"name": "WEFT_ISSUER_SECRET", "value": ""}]}), None),
        (serde_json::json!({}), None),
    ] {
        let mut container = container;
        container["name"] = "control-plane".into();
        let deployment = serde_json::from_value(serde_json::json!({
            "spec": {"selector": {}, "template": {"spec": {"containers": [container]}}},
        }));
        assert_eq!(issuer_secret(&deployment.expect("a Deployment")).as_deref(), expected, "{container}");
    }
}
