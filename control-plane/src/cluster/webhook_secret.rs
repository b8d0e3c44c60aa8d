//! Keeps the webhooks' certificates in the Secret `weft-webhook` of the control plane's namespace: made by whichever
//! replica comes first, read by all, renewed before it expires, made anew when it is damaged or deleted.
//!
//! Nothing depends on what it held before: API servers are told the new roots within a second. So what cannot be used is
//! replaced, and never served.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Cluster;
use crate::metrics::Metrics;
use crate::webhook::certificate::{CertificateError, ClientRoots, Serving, Stored};

/// Name of the Secret.
pub const SECRET: &str = "weft-webhook";
/// How often it is looked at whether something is due. Renewals are due days before an expiry.
const INTERVAL: Duration = Duration::from_secs(600);
/// After a failed call of the API server.
const RETRY: Duration = Duration::from_secs(5);

/// What the certificates are for.
#[derive(Clone)]
pub struct Wanted {
    /// The names by which the webhooks are called.
    pub names: Vec<String>,
    /// Where callers' certificates must come from; `None`: they need none.
    pub client_roots: Option<ClientRoots>,
}

/// Keeps `certificates` at what the Secret holds, until `stop`.
pub async fn run(
    cluster: Cluster,
    wanted: Wanted,
    certificates: watch::Sender<Option<Arc<Serving>>>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let mut events = std::pin::pin!(watcher::watch_object(secrets.clone(), SECRET).default_backoff());
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let keeper = Keeper { cluster, secrets, wanted, certificates, metrics };
    // What the API server has; `None`: not known yet.
    let mut seen: Option<Option<Secret>> = None;
    let mut reported = None;
    let mut failed = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(Ok(secret)) => seen = Some(secret),
                Some(Err(fault)) => {
                    report(&mut reported, &format!("cannot watch Secret {SECRET}: {fault}"));
                    continue;
                }
                None => return,
            },
            _ = ticks.tick() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        let now = SystemTime::now();
        let step = keeper.step(seen.as_ref(), now).await;
        failed = step.is_err();
        match step {
            Ok(()) => reported = None,
            Err(fault) => report(&mut reported, &format!("cannot write Secret {SECRET}: {fault}")),
        }
        keeper.drop_expired(now);
    }
}

/// Logs `fault` unless it was the last thing that was logged.
fn report(reported: &mut Option<String>, fault: &str) {
    if reported.as_deref() != Some(fault) {
        tracing::error!("{fault}; the webhooks go on with the certificate that they have; trying again");
        *reported = Some(fault.to_owned());
    }
}

struct Keeper {
    cluster: Cluster,
    secrets: Api<Secret>,
    wanted: Wanted,
    certificates: watch::Sender<Option<Arc<Serving>>>,
    metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Certificate(#[from] CertificateError),
}

impl Keeper {
    /// Serves what was seen, and writes what is due. What was written comes back by the watch.
    async fn step(&self, seen: Option<&Option<Secret>>, now: SystemTime) -> Result<(), Fault> {
        match seen {
            None => Ok(()),
            Some(None) => {
                tracing::info!("making the webhooks' certificates");
                self.create(&Stored::make(&self.wanted.names, now)?).await
            }
            Some(Some(secret)) => match stored(secret).open() {
                Ok(opened) => {
                    if let Ok(serving) = opened.serving(self.wanted.client_roots.as_ref(), now) {
                        self.serve(serving);
                    }
                    match opened.due(&self.wanted.names, now)? {
                        None => Ok(()),
                        Some(next) => {
                            tracing::info!("renewing the webhooks' certificates");
                            self.replace(secret, &next).await
                        }
                    }
                }
                Err(fault) => {
                    tracing::error!("Secret {SECRET} cannot be used: {fault}; making it anew");
                    self.replace(secret, &Stored::make(&self.wanted.names, now)?).await
                }
            },
        }
    }

    fn serve(&self, serving: Serving) {
        let expiry = serving.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.webhook_certificate_expiry.set(expiry.as_secs_f64());
        self.certificates.send_if_modified(|current| {
            let same = current.as_ref().is_some_and(|current| current.is_same(&serving));
            if !same {
                *current = Some(Arc::new(serving));
            }
            !same
        });
    }

    fn drop_expired(&self, now: SystemTime) {
        self.certificates.send_if_modified(|current| {
            let expired = current.as_ref().is_some_and(|current| current.not_after <= now);
            if expired {
                tracing::error!(
                    "the webhooks' certificate has expired; not serving until Secret {SECRET} has a new one"
                );
                self.metrics.webhook_certificate_expiry.set(0.0);
                *current = None;
            }
            expired
        });
    }

    async fn create(&self, made: &Stored) -> Result<(), Fault> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.into()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".into(), "weft".into())])),
                owner_references: self.cluster.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".into()),
            data: Some(data(made)),
            ..Secret::default()
        };
        // Another replica was first: the watch brings what it made.
        allow_conflict(self.secrets.create(&PostParams::default(), &secret).await)
    }

    async fn replace(&self, old: &Secret, made: &Stored) -> Result<(), Fault> {
        // With its resourceVersion, so that of several replicas one writes.
        let secret = Secret { data: Some(data(made)), string_data: None, ..old.clone() };
        allow_conflict(self.secrets.replace(SECRET, &PostParams::default(), &secret).await)
    }
}

/// Somebody else wrote at the same time, or it is gone: the watch brings what there is now.
fn allow_conflict<T>(written: kube::Result<T>) -> Result<(), Fault> {
    match written {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) && !is_unknown_namespace(&status) => Ok(()),
        Err(fault) => Err(fault.into()),
    }
}

fn is_unknown_namespace(status: &kube::core::Status) -> bool {
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.kind == "namespaces")
}

fn stored(secret: &Secret) -> Stored {
    let text = |key| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
    };
    Stored { roots: text("ca.crt"), root_key: text("ca.key"), certificate: text("tls.crt"), key: text("tls.key") }
}

fn data(stored: &Stored) -> BTreeMap<String, ByteString> {
    let bytes = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
    BTreeMap::from([
        bytes("ca.crt", &stored.roots),
        bytes("ca.key", &stored.root_key),
        bytes("tls.crt", &stored.certificate),
        bytes("tls.key", &stored.key),
    ])
}
