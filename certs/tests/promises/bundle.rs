//! Bundles are read whole or not at all.
use proptest::prelude::*;
use weft_certs::{CertificateAuthority, TrustBundle, TrustDomain, VerifyError};

use crate::certificate::*;

fn domain() -> TrustDomain {
    TrustDomain::parse("td.example").unwrap()
}

fn read(pem: &str) -> Result<TrustBundle, VerifyError> {
    TrustBundle::from_pem(domain(), pem)
}

#[test]
fn white_space_line_ends_and_comments_do_not_matter() {
    let (old, new) = (signer("old").self_signed(), signer("new").self_signed());
    let bundle = bundle(&[&old, &new]);
    let pem = bundle.to_pem();
    assert_eq!(pem.matches("-----BEGIN CERTIFICATE-----\n").count(), 2);
    for variant in [
        pem.clone(),
        pem.replace('\n', "\r\n"),
        format!("\n\n  {}\n\n", pem.replace('\n', "  \n")),
        pem.trim_end().to_owned(),
        format!("\u{feff}# the roots of td.example\n{pem}"),
        pem.lines().map(|line| format!("    {line}\n\n")).collect(),
    ] {
        assert_eq!(read(&variant).unwrap(), bundle, "{variant}");
    }
}

#[test]
fn what_is_not_a_bundle_is_refused_with_a_reason() {
    let root = signer("root").self_signed();
    let pem = bundle(&[&root]).to_pem();
    let key = root.key.serialize_pem();
    let leaf = root.issue(&leaf(ID));
    let weak = signer("weak").with(|root| root.public_key = Some(rsa_key(1024))).self_signed();
    let mut longer = bundle(&[&root]);
    longer.roots[0] = [&longer.roots[0][..], &[0]].concat().into();
    let lines: Vec<&str> = pem.lines().collect();
    for (text, says) in [
        (String::new(), "at least one root"),
        ("# nothing yet\n".into(), "at least one root"),
        (format!("{pem}{key}"), "PRIVATE KEY among the certificates; remove it"),
        (format!("{key}{pem}"), "PRIVATE KEY among the certificates; remove it"),
        ("garbage".into(), "line 1 is not PEM"),
        (format!("{pem}garbage"), "is not PEM"),
        (lines[..lines.len() - 1].join("\n"), "cut off"),
        (lines[..3].join("\n") + "\n" + &pem, "before the CERTIFICATE of line 1 has ended"),
        ([lines[0], lines[1], lines[lines.len() - 1]].join("\n"), "cannot be a root"),
        (pem.replacen("MII", "!!!", 1), "not base64"),
        (pem.replace("END CERTIFICATE", "END X509 CRL"), "ends a X509 CRL"),
        (pem.replace("CERTIFICATE", "X509 CRL"), "only CERTIFICATE sections"),
        (bundle(&[&leaf]).to_pem(), "certificate 1 cannot be a root: only a certificate with cA true may sign"),
        (bundle(&[&root, &weak]).to_pem(), "certificate 2 cannot be a root: weak"),
        (longer.to_pem(), "bytes follow after the end"),
        (pem.repeat(65), "at most 64"),
        (" ".repeat(50 << 20), "at most 1048576"),
    ] {
        let error = read(&text).unwrap_err();
        assert_eq!(error.reason(), "bad_bundle");
        assert!(error.to_string().contains(says), "expected {says:?}: {error}");
    }
}

#[test]
fn the_bundle_of_an_authority_survives_being_written_and_read() {
    let authority = CertificateAuthority::self_signed(&domain(), hours(1), std::time::SystemTime::now()).unwrap();
    let bundle = authority.trust_bundle();
    assert_eq!(read(&bundle.to_pem()).unwrap(), bundle);
}

proptest! {
    #[test]
    fn reading_never_panics(text in "(-----(BEGIN|END) (CERTIFICATE|PRIVATE KEY)-----|[A-Za-z0-9+/= ]{0,70}|\r?\n|é){0,12}") {
        let _ = read(&text);
    }
}
