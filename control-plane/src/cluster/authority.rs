//! The mesh's certificate authority in a Secret, which all replicas share.
//!
//! `tls.crt`, `tls.key` and `ca.crt`, as cert-manager writes them. The self-signed one is made by whichever replica comes
//! first: creating a Secret succeeds once, and the others read what is there. It is never replaced, and never repaired: a
//! mesh whose root changed by itself would refuse itself. Deleted, it is written again from memory.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_certs::{CertificateAuthority, TrustDomain};

use super::{Cluster, is_conflict, labels};
use crate::ca::reload;

/// The Secret of the self-signed root.
pub const OWN_SECRET: &str = "weft-ca";
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Between two attempts while the API server or the operator's Secret is not there.
const RETRY: Duration = Duration::from_secs(3);

/// Where the authority is kept.
#[derive(Clone)]
pub struct AuthoritySecret {
    cluster: Cluster,
    trust_domain: TrustDomain,
    /// The operator's own, which is never written.
    given: Option<String>,
}

impl AuthoritySecret {
    /// The Secret `given` by the operator, or the control plane's own.
    pub fn new(cluster: Cluster, trust_domain: TrustDomain, given: Option<String>) -> Self {
        Self { cluster, trust_domain, given }
    }

    fn name(&self) -> &str {
        self.given.as_deref().unwrap_or(OWN_SECRET)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(Client::clone(&self.cluster.client), &self.cluster.namespace)
    }

    /// Reads the authority, making it where there is none; waits for the API server, and for a Secret of the operator's.
    ///
    /// # Errors
    /// The Secret holds no authority of this trust domain: waiting would not help.
    pub async fn load(&self) -> anyhow::Result<CertificateAuthority> {
        let mut said = None;
        loop {
            let missing = match self.try_load().await {
                Ok(Some(authority)) => return authority,
                Ok(None) => format!(
                    "there is no Secret {}/{}; create it, or correct --issuer-secret",
                    self.cluster.namespace,
                    self.name()
                ),
                Err(fault) => format!("the API server: {fault}"),
            };
            if said.as_ref() != Some(&missing) {
                tracing::warn!("no certificate authority yet: {missing}; trying again every {RETRY:?}");
                said = Some(missing);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// `Ok(None)`: there is none, and it is not for us to make it.
    async fn try_load(&self) -> kube::Result<Option<anyhow::Result<CertificateAuthority>>> {
        let secrets = self.secrets();
        if let Some(secret) = secrets.get_opt(self.name()).await? {
            return Ok(Some(self.read(&secret)));
        }
        if self.given.is_some() {
            return Ok(None);
        }
        let made = match CertificateAuthority::self_signed(&self.trust_domain, ROOT_LIFETIME, SystemTime::now()) {
            Ok(made) => made,
            Err(fault) => return Ok(Some(Err(anyhow!("cannot make a root: {fault}")))),
        };
        match self.write(&made).await {
            Ok(()) => Ok(Some(Ok(made))),
            // Another replica was faster; what is in place is what all use.
            Err(fault) if is_conflict(&fault) => {
                Ok(secrets.get_opt(self.name()).await?.map(|secret| self.read(&secret)))
            }
            Err(fault) => Err(fault),
        }
    }

    async fn write(&self, authority: &CertificateAuthority) -> kube::Result<()> {
        let bytes = |text: String| ByteString(text.into_bytes());
        let data = [
            ("tls.crt", bytes(authority.certificates_pem())),
            ("tls.key", bytes(authority.key_pem())),
            ("ca.crt", bytes(authority.trust_bundle().to_pem())),
        ];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(OWN_SECRET.to_owned()),
                labels: Some(labels()),
                owner_references: self.cluster.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()),
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        };
        self.secrets().create(&PostParams::default(), &secret).await.map(drop)
    }

    fn read(&self, secret: &Secret) -> anyhow::Result<CertificateAuthority> {
        let of = format!("Secret {}/{}", self.cluster.namespace, self.name());
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            let bytes =
                bytes.with_context(|| format!("{of} has no {key}; it must have tls.crt, tls.key and ca.crt"))?;
            std::str::from_utf8(&bytes.0).with_context(|| format!("{of}: {key} is not PEM"))
        };
        // An issuer that leaves ca.crt empty has its root at the end of the chain.
        let roots = text("ca.crt").unwrap_or_default();
        CertificateAuthority::from_pem(&self.trust_domain, text("tls.crt")?, text("tls.key")?, roots, SystemTime::now())
            .map_err(|fault| {
                let remedy = match self.given {
                    Some(_) => "give a CA certificate of this trust domain with its own key",
                    None => {
                        "restore it from a backup; deleting it while no control plane runs begins a new mesh, which no \
                         present sidecar trusts"
                    }
                };
                anyhow!("{of}: not a usable key with its certificate ({fault}); {remedy}")
            })
    }

    /// Keeps `authority` as the Secret has it until `stop`. What cannot be used changes nothing.
    pub async fn follow(self, authority: watch::Sender<Arc<CertificateAuthority>>, stop: CancellationToken) {
        let one = watcher::Config::default().fields(&format!("metadata.name={}", self.name()));
        let mut events = watcher(self.secrets(), one).default_backoff().boxed();
        let mut listed = false;
        while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Init) => listed = false,
                Ok(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret)) => {
                    listed = true;
                    self.replace(&secret, &authority);
                }
                Ok(watcher::Event::InitDone) if listed => {}
                Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => self.restore(&authority).await,
                Err(fault) => tracing::debug!(%fault, "cannot watch the certificate authority's Secret; trying again"),
            }
        }
    }

    fn replace(&self, secret: &Secret, authority: &watch::Sender<Arc<CertificateAuthority>>) {
        match self.read(secret) {
            Ok(read) => {
                authority.send_if_modified(|present| {
                    let differs = reload::differs(present, &read);
                    if differs {
                        tracing::info!("the certificate authority was replaced: signing with the new one");
                        *present = Arc::new(read);
                    }
                    differs
                });
            }
            Err(fault) => tracing::error!("{fault:#}; going on with the one in use"),
        }
    }

    async fn restore(&self, authority: &watch::Sender<Arc<CertificateAuthority>>) {
        if self.given.is_some() {
            tracing::error!(secret = self.name(), "the issuer's Secret is gone; going on with what it held");
            return;
        }
        let present = Arc::clone(&authority.borrow());
        match self.write(&present).await {
            Ok(()) => tracing::warn!("the Secret {OWN_SECRET} was gone, and was written again from memory"),
            Err(fault) if is_conflict(&fault) => {}
            Err(fault) => tracing::error!(%fault, "the Secret {OWN_SECRET} is gone and cannot be written again"),
        }
    }
}
