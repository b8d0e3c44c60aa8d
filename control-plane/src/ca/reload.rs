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

fn differs(old: &CertificateAuthority, new: &CertificateAuthority) -> bool {
    old.certificates_pem() != new.certificates_pem() || old.trust_bundle() != new.trust_bundle()
}
