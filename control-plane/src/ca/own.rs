//! The control plane's own X.509-SVID: issued by itself, renewed with a fresh key each time.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_certs::{CertificateAuthority, ClientAuth, PrivateKey, SpiffeId, Svid, tls_config};

/// gRPC is HTTP/2 (RFC 9113 section 3.2).
const ALPN: &[&[u8]] = &[b"h2"];
/// After a failed renewal.
const RETRY: Duration = Duration::from_secs(5);

/// Makes a key and a certificate for `id`.
///
/// # Errors
/// The authority does not sign.
pub fn issue(
    authority: &CertificateAuthority,
    id: &SpiffeId,
    lifetime: Duration,
    now: SystemTime,
) -> anyhow::Result<Svid> {
    let key = PrivateKey::generate();
    let chain = authority.sign(&key.certificate_request(), id, lifetime, now)?;
    Ok(Svid::new(chain, &key, authority.trust_bundle(), now)?)
}

/// The TLS configuration that presents `svid` to sidecars and to other replicas.
pub fn server_config(svid: &Svid) -> Arc<rustls::ServerConfig> {
    tls_config::server_config(svid, ClientAuth::Optional, ALPN)
}

/// Renews `svid`, and `config` which presents it, after half of each lifetime, and at once when the authority changes.
pub async fn renew(
    mut authority: watch::Receiver<Arc<CertificateAuthority>>,
    lifetime: Duration,
    svid: watch::Sender<Svid>,
    config: watch::Sender<Arc<rustls::ServerConfig>>,
    stop: CancellationToken,
) {
    let id = svid.borrow().id().clone();
    let mut wait = lifetime / 2;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            Ok(()) = authority.changed() => {}
        }
        let signer = Arc::clone(&authority.borrow_and_update());
        wait = match issue(&signer, &id, lifetime, SystemTime::now()) {
            Ok(renewed) => {
                config.send_replace(server_config(&renewed));
                let expires = renewed.not_after();
                svid.send_replace(renewed);
                expires.duration_since(SystemTime::now()).unwrap_or_default() / 2
            }
            Err(fault) => {
                tracing::error!(%fault, "cannot renew the control plane's own certificate; trying again in {RETRY:?}");
                RETRY
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use weft_certs::TrustDomain;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(3600);

    fn authority() -> Arc<CertificateAuthority> {
        let domain = TrustDomain::parse("cluster.local").expect("valid");
        Arc::new(CertificateAuthority::self_signed(&domain, 2 * LIFETIME, SystemTime::now()).expect("made"))
    }

    async fn renewed(advance: Duration, change: bool) -> bool {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/weft-system/sa/weft-control-plane").expect("valid");
        let (authority, authorities) = watch::channel(authority());
        let first = issue(&authority.borrow(), &id, LIFETIME, SystemTime::now()).expect("issued");
        let (config, mut configs) = watch::channel(server_config(&first));
        let (svid, _svids) = watch::channel(first);
        let stop = CancellationToken::new();
        tokio::spawn(renew(authorities, LIFETIME, svid, config, stop.clone()));
        if change {
            authority.send_replace(self::authority());
        }
        let renewed = tokio::time::timeout(advance, configs.changed()).await.is_ok();
        stop.cancel();
        renewed
    }

    #[tokio::test(start_paused = true)]
    async fn the_own_certificate_is_renewed_at_half_its_life_and_when_the_issuer_changes() {
        for (minutes, change, expected) in [(29, false, false), (31, false, true), (1, true, true)] {
            let advance = Duration::from_secs(minutes * 60);
            assert_eq!(renewed(advance, change).await, expected, "after {minutes} minutes, changed: {change}");
        }
    }
}
