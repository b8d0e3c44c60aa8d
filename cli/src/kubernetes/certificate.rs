//! Certificates that a cluster keeps: how long they are valid, and who has signed them.
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;

/// A certificate's DER bytes and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    der: Vec<u8>,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    /// Seconds since 1970.
    pub(super) not_after: i64,
}

impl Certificate {
    /// All certificates of a PEM text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn all(pem: &[u8]) -> Result<Vec<Self>, String> {
        let mut found = Vec::new();
        for block in Pem::iter_from_buffer(pem) {
            let block = block.map_err(|fault| format!("it is no PEM: {fault}"))?;
            if block.label == "CERTIFICATE" {
                let certificate = parse(&block.contents)?;
                let validity = certificate.validity();
                found.push(Self {
                    not_before: validity.not_before.timestamp(),
                    not_after: validity.not_after.timestamp(),
                    der: block.contents.clone(),
                });
            }
        }
        if found.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(found) }
    }

    /// Whether `issuer` has signed it.
    pub(super) fn is_signed_by(&self, issuer: &Self) -> bool {
        match (parse(&self.der), parse(&issuer.der)) {
            (Ok(own), Ok(issuer)) => own.verify_signature(Some(issuer.public_key())).is_ok(),
            _ => false,
        }
    }

    /// Whether the two are the same certificate.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|fault| format!("it is no certificate: {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, Issuer, KeyPair};

    #[test]
    fn a_certificate_is_read_and_its_issuer_recognized() {
        let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let (one, other) = (key(), key());
        let roots = [&one, &other].map(|key| params.self_signed(key).expect("a root").pem());
        let leaf = CertificateParams::new(vec!["weft.test".into()]).expect("parameters");
        let leaf = leaf.signed_by(&key(), &Issuer::from_params(&params, &one)).expect("a certificate").pem();
        let read = |pem: &str| Certificate::all(pem.as_bytes()).expect("readable").remove(0);
        assert!(read(&leaf).is_signed_by(&read(&roots[0])));
        assert!(!read(&leaf).is_signed_by(&read(&roots[1])));
        assert_eq!(Certificate::all(roots.concat().as_bytes()).map(|all| all.len()), Ok(2));
        assert!(read(&leaf).not_before < read(&leaf).not_after);
    }

    #[test]
    fn what_holds_no_certificate_is_a_fault() {
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Certificate::all(text.as_bytes()).is_err(), "{text}");
        }
    }
}
