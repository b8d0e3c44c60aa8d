//! The trust bundle's file: the roots that verify the control plane before it told of others, and once it has new ones
//! that we did not hear of, because one of us was away while they changed.
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use weft_certs::{TrustBundle, TrustDomain};

/// How long a file of the pod may take to appear.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often it is looked for, and later for changes.
const LOOK_FOR: Duration = Duration::from_millis(250);
const LOOK_AT: Duration = Duration::from_secs(10);

/// Reads the file.
///
/// # Errors
/// What is wrong with it.
pub fn read(path: &Path, trust_domain: &TrustDomain) -> Result<TrustBundle, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|fault| format!("{}: {fault}; give the PEM file that the control plane wrote", path.display()))?;
    TrustBundle::from_pem(trust_domain.clone(), &text).map_err(|fault| format!("{}: {fault}", path.display()))
}

/// Waits until there is a file at `path`, which says what it is in `what`.
///
/// # Errors
/// There is none after a minute.
pub async fn appeared(what: &str, path: &Path) -> Result<(), String> {
    let there = async {
        if !path.exists() {
            tracing::warn!(path = %path.display(), "the {what} is not there yet; waiting for it");
        }
        while !path.exists() {
            tokio::time::sleep(LOOK_FOR).await;
        }
    };
    tokio::time::timeout(LONGEST_WAIT, there).await.map_err(|_| {
        let seconds = LONGEST_WAIT.as_secs();
        format!("the {what} {} did not appear within {seconds} s; does the pod mount it?", path.display())
    })
}

/// Publishes what the file holds whenever that changes. A file that cannot be used changes nothing.
pub async fn watch(path: impl AsRef<Path>, trust_domain: TrustDomain, publish: watch::Sender<Option<TrustBundle>>) {
    let mut known = read(path.as_ref(), &trust_domain).ok();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_AT) => {}
            () = publish.closed() => return,
        }
        match read(path.as_ref(), &trust_domain) {
            Ok(now) if known.as_ref() != Some(&now) => {
                tracing::info!("the trust bundle's file changed");
                known = Some(now.clone());
                publish.send_replace(Some(now));
            }
            Ok(_) => {}
            Err(fault) => tracing::debug!(fault, "the trust bundle's file cannot be used; the last roots stay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use weft_certs::CertificateAuthority;

    use super::*;

    fn pem(domain: &TrustDomain) -> String {
        weft_certs::install_crypto_provider();
        let authority = CertificateAuthority::self_signed(domain, Duration::from_secs(3600), SystemTime::now());
        authority.expect("an authority").trust_bundle().to_pem()
    }

    #[tokio::test(start_paused = true)]
    async fn new_roots_are_published_and_a_broken_file_changes_nothing() {
        let domain = TrustDomain::parse("cluster.local").expect("a domain");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trust-bundle.pem");
        let (first, second) = (pem(&domain), pem(&domain));
        std::fs::write(&path, &first).expect("written");
        let (publish, mut bundles) = watch::channel(None);
        tokio::spawn(watch(path.clone(), domain.clone(), publish));
        tokio::time::sleep(LOOK_AT * 2).await;
        assert!(!bundles.has_changed().expect("it watches"), "what was there at the start is no news");
        for (text, news) in
            [("", false), ("-----BEGIN CERTIFICATE-----", false), (second.as_str(), true), (&second, false)]
        {
            std::fs::write(&path, text).expect("written");
            tokio::time::sleep(LOOK_AT * 2).await;
            assert_eq!(bundles.has_changed().expect("it watches"), news, "{text}");
            bundles.mark_unchanged();
        }
        assert_eq!(*bundles.borrow(), Some(TrustBundle::from_pem(domain, &second).expect("a bundle")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_late_is_waited_for_and_one_that_never_comes_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        let fault = appeared("token", &path).await.expect_err("it never comes");
        assert!(fault.contains("did not appear within 60 s"), "{fault}");
        let late = async {
            tokio::time::sleep(LONGEST_WAIT / 2).await;
            std::fs::write(&path, "a token").expect("written");
        };
        assert_eq!(tokio::join!(appeared("token", &path), late).0, Ok(()));
    }
}
