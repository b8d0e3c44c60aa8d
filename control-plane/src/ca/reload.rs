//! Follows a signing certificate that the operator gave: what cert-manager or a person puts in its place is used within
//! seconds, whatever way it was put there. A pair that cannot be used changes nothing and is reported once.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_certs::{CertificateAuthority, TrustDomain};

use super::store;
use crate::config::IssuerFiles;

/// How often the files are read: they are small, and notices of changes get lost.
const INTERVAL: Duration = Duration::from_secs(10);

/// Puts each usable signing certificate of `files` into `authority`.
pub async fn follow(
    files: IssuerFiles,
    trust_domain: TrustDomain,
    authority: watch::Sender<Arc<CertificateAuthority>>,
    stop: CancellationToken,
) {
    let mut reported = None;
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let (files, domain) = (files.clone(), trust_domain.clone());
        let loaded =
            tokio::task::spawn_blocking(move || store::given_authority(&files, &domain, SystemTime::now())).await;
        match loaded {
            Ok(Ok(loaded)) => {
                if reported.take().is_some() {
                    tracing::info!("the issuer's files are usable again");
                }
                if differs(&authority.borrow(), &loaded) {
                    tracing::info!("signing with the new certificate of the issuer's files");
                    authority.send_replace(Arc::new(loaded));
                }
            }
            Ok(Err(fault)) => {
                let fault = fault.to_string();
                if reported.as_ref() != Some(&fault) {
                    tracing::error!("{fault}; still signing with what was loaded before");
                    reported = Some(fault);
                }
            }
            Err(fault) => tracing::error!(%fault, "cannot read the issuer's files"),
        }
    }
}

/// Whether `new` signs or trusts otherwise than `old`.
pub fn differs(old: &CertificateAuthority, new: &CertificateAuthority) -> bool {
    old.certificates_pem() != new.certificates_pem() || old.trust_bundle() != new.trust_bundle()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::path::Path;

    use super::*;

    fn authority(domain: &TrustDomain) -> CertificateAuthority {
        CertificateAuthority::self_signed(domain, Duration::from_secs(3600), SystemTime::now()).expect("made")
    }

    fn write_key(path: &Path, pem: &str) {
        use std::io::Write as _;
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).expect("opened");
        file.write_all(pem.as_bytes()).expect("written");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pair_is_used_by_itself_and_a_wrong_one_never() {
        let directory = tempfile::tempdir().expect("a directory");
        let (certificates, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
        let files = IssuerFiles { certificates: certificates.clone(), key: key.clone(), roots: None };
        let domain = TrustDomain::parse("cluster.local").expect("valid");
        let (old, new) = (authority(&domain), authority(&domain));
        std::fs::write(&certificates, old.certificates_pem()).expect("written");
        write_key(&key, &old.key_pem());
        let loaded = store::given_authority(&files, &domain, SystemTime::now()).expect("loaded");
        let (sender, mut followed) = watch::channel(Arc::new(loaded));
        let stop = CancellationToken::new();
        tokio::spawn(follow(files, domain, sender, stop.clone()));

        // Half of the change: the new certificate with the old key.
        std::fs::write(&certificates, new.certificates_pem()).expect("written");
        assert!(tokio::time::timeout(10 * INTERVAL, followed.changed()).await.is_err(), "a wrong pair was used");
        assert_eq!(followed.borrow().certificates_pem(), old.certificates_pem());

        write_key(&key, &new.key_pem());
        tokio::time::timeout(10 * INTERVAL, followed.changed()).await.expect("in time").expect("it follows");
        assert_eq!(followed.borrow().certificates_pem(), new.certificates_pem());
        stop.cancel();
    }
}
