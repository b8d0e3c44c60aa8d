//! The sidecar's certificate: asked for with a fresh key, renewed at half to two thirds of its life, kept until its end
//! when the control plane is away.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;
use tokio::sync::watch;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use weft_api::wire::proto::certificate_authority_client::CertificateAuthorityClient;
use weft_api::wire::{SignRequest, decode_sign_response, encode_sign_request};
use weft_certs::{ClientAuth, PrivateKey, Svid, TrustBundle, TrustDomain};

use super::channel::{ControlPlane, with_causes};
use super::{Backoff, bundle_file};
use crate::stage::connect::Identity;
use crate::stage::tls::ALPN_ALL;

/// What the feed needs.
#[derive(Clone, Debug)]
pub struct Source {
    /// Who signs.
    pub control_plane: ControlPlane,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// File with the token that attests us; read at each attempt.
    pub token_file: PathBuf,
    /// Wanted lifetime.
    pub lifetime: Option<Duration>,
    /// File with the roots that verify the control plane until it told us of others; read at each attempt.
    pub bundle_file: PathBuf,
}

/// What happened, for telemetry.
#[derive(Clone, Debug)]
pub enum Event {
    /// A new certificate is in use.
    Renewed {
        /// When it expires.
        not_after: SystemTime,
    },
    /// None could be had; the one in use stays.
    Failed,
}

/// Publishes identities on `publish` until the receivers are gone. A `bundle` that differs from the one in use brings the
/// next renewal forward: a certificate comes with the bundle of its time.
pub async fn run(
    source: Source,
    mut bundle: watch::Receiver<Option<TrustBundle>>,
    publish: watch::Sender<Option<Arc<Identity>>>,
    told: impl Fn(Event),
) {
    let mut backoff = Backoff::new(longest_wait(None));
    let mut failed = 0_u32;
    loop {
        let current = publish.borrow().clone();
        bundle.mark_unchanged();
        // A root that was dropped too early makes our certificate worthless before its time; the token alone may still do.
        let shown = current.as_deref().filter(|_| failed.is_multiple_of(2) || !matches!(token(&source), Ok(Some(_))));
        match renew(&source, shown).await {
            Ok(identity) => {
                failed = 0;
                backoff = Backoff::new(longest_wait(Some(&identity.svid)));
                let wait = until_renewal(&identity.svid, SystemTime::now());
                told(Event::Renewed { not_after: identity.svid.not_after() });
                tracing::info!(id = %identity.svid.id(), renew_in = ?wait, "certificate in use");
                let in_use = identity.svid.bundle().clone();
                if publish.send(Some(Arc::new(identity))).is_err() {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = until_other(&mut bundle, &in_use) => {
                        tracing::info!("the trust bundle changed: renewing the certificate");
                        // A fleet that is told at once shall not ask at once.
                        let spread = Backoff::FIRST.mul_f64(rand::rng().random_range(0.0..5.0));
                        tokio::time::sleep(spread).await;
                    }
                }
            }
            Err(error) => {
                failed = failed.wrapping_add(1);
                let wait = backoff.next();
                tracing::warn!(%error, retry_in = ?wait, has_certificate = current.is_some(), "no certificate from the control plane");
                told(Event::Failed);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = publish.closed() => return,
                }
            }
        }
    }
}

/// Returns once the control plane tells anew of a bundle other than `in_use`.
async fn until_other(bundle: &mut watch::Receiver<Option<TrustBundle>>, in_use: &TrustBundle) {
    while bundle.changed().await.is_ok() {
        if bundle.borrow_and_update().as_ref().is_some_and(|told| told != in_use) {
            return;
        }
    }
    std::future::pending().await
}

async fn renew(source: &Source, current: Option<&Identity>) -> Result<Identity, String> {
    // An expired certificate authenticates nobody; the token still may.
    let current = current.map(|identity| &identity.svid).filter(|svid| svid.not_after() > SystemTime::now());
    let attempt = async {
        let channel = connect(source, current).await?;
        let key = PrivateKey::generate();
        let wanted = SignRequest { certificate_request: key.certificate_request(), lifetime: source.lifetime };
        let mut request = Request::new(encode_sign_request(&wanted));
        match token(source)? {
            Some(token) => drop(request.metadata_mut().insert("authorization", token)),
            None if current.is_none() => {
                return Err(format!("there is no token in {}, and no certificate either", source.token_file.display()));
            }
            None => {}
        }
        let answer = CertificateAuthorityClient::new(channel)
            .sign(request)
            .await
            .map_err(|status| refusal(&status))?
            .into_inner();
        let (chain, bundle) = decode_sign_response(&answer).map_err(|e| e.to_string())?;
        if bundle.trust_domain != source.trust_domain {
            return Err(format!(
                "the control plane is of trust domain {}, not {}",
                bundle.trust_domain, source.trust_domain
            ));
        }
        let chain = chain.into_iter().map(Into::into).collect();
        let svid = Svid::new(chain, &key, bundle, SystemTime::now())
            .map_err(|e| format!("the certificate received is not usable: {e}"))?;
        let server = weft_certs::tls_config::server_config(&svid, ClientAuth::Required, &ALPN_ALL);
        Ok(Identity { svid, server })
    };
    match tokio::time::timeout(Duration::from_secs(20), attempt).await {
        Ok(result) => result,
        Err(_) => Err("the control plane did not answer within 20 s".to_owned()),
    }
}

/// The roots that came with our certificate verify the control plane. Where they do not, it may have new ones since: then
/// those of the file do.
async fn connect(source: &Source, current: Option<&Svid>) -> Result<Channel, String> {
    let on_file = || bundle_file::read(&source.bundle_file, &source.trust_domain);
    let known = match current {
        Some(svid) => svid.bundle().clone(),
        None => on_file().map_err(|fault| format!("cannot read the trust bundle {fault}"))?,
    };
    let fault = match source.control_plane.connect(current, &known).await {
        Ok(channel) => return Ok(channel),
        Err(fault) => with_causes(&fault),
    };
    match on_file() {
        Ok(other) if other != known => {
            source.control_plane.connect(current, &other).await.map_err(|fault| with_causes(&fault))
        }
        _ => Err(fault),
    }
}

/// The `authorization` value; `None` once the file is gone (a renewal then rests on the certificate alone).
fn token(source: &Source) -> Result<Option<MetadataValue<tonic::metadata::Ascii>>, String> {
    let text = match std::fs::read_to_string(&source.token_file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot read the token {}: {error}", source.token_file.display())),
    };
    let value = format!("Bearer {}", text.trim());
    let mut value: MetadataValue<_> =
        value.parse().map_err(|_| format!("{} does not hold a token", source.token_file.display()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn refusal(status: &tonic::Status) -> String {
    format!("the control plane refused to sign ({:?}): {}", status.code(), status.message())
}

/// Half to two thirds of the lifetime, at random, counted from the start of validity but at least 100 ms from now.
fn until_renewal(svid: &Svid, now: SystemTime) -> Duration {
    let left = svid.not_after().duration_since(now).unwrap_or_default();
    left.mul_f64(rand::rng().random_range(0.5..0.667)).max(Duration::from_millis(100))
}

/// Failed renewals are tried again at least ten times within what a certificate has left after its half.
fn longest_wait(svid: Option<&Svid>) -> Duration {
    let left = svid.and_then(|svid| svid.not_after().duration_since(SystemTime::now()).ok());
    left.map_or(Duration::from_secs(15), |left| (left / 20).clamp(Duration::from_millis(500), Duration::from_secs(60)))
}
