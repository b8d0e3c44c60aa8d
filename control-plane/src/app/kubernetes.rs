//! Wiring of what there is only on Kubernetes.
use std::sync::Arc;

use anyhow::Context as _;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_certs::CertificateAuthority;

use super::{Ground, done};
use crate::ca::caller::Attestation;
use crate::ca::token_review::TokenReviews;
use crate::cluster::authority::AuthoritySecret;
use crate::cluster::{self, Cluster};
use crate::config::{ClusterSettings, Settings};
use crate::model::{Endpoints, Model};
use crate::publish::Publisher;
use crate::source::Source;
use crate::source::kubernetes::KubernetesSource;
use crate::source::kubernetes::objects::Objects;

/// What the tasks of this place need.
pub(super) struct Place {
    authority: AuthoritySecret,
}

/// What they share with the rest.
pub(super) struct Shared {
    pub(super) authority: watch::Sender<Arc<CertificateAuthority>>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) stop: CancellationToken,
}

/// Reaches the cluster, and reads or makes the certificate authority there.
pub(super) async fn ground(settings: &Settings, place: &ClusterSettings) -> anyhow::Result<Ground> {
    let client =
        Client::try_default().await.context("cannot tell where the API server is; run in a pod, or set KUBECONFIG")?;
    let owner = match &place.owner {
        Some(name) => {
            Some(cluster::owner(&client, name).await.with_context(|| format!("--owner: ClusterRole {name}"))?)
        }
        None => None,
    };
    let cluster = Cluster {
        client: client.clone(),
        namespace: place.namespace.clone(),
        pod: place.pod.clone(),
        service: place.service.clone(),
        owner,
    };
    let trust_domain = settings.trust_domain.clone();
    let secret = AuthoritySecret::new(cluster, trust_domain.clone(), place.issuer_secret.clone());
    let objects = Objects::default();
    Ok(Ground {
        authority: secret.load().await?,
        attestation: Attestation::Pods(TokenReviews::new(client.clone(), trust_domain.clone())),
        model: Model::with(trust_domain, settings.default_policy, Endpoints::Slices),
        source: Source::Kubernetes(KubernetesSource::start(&client, objects, settings.denied_identities.clone())),
        place: super::Place::Cluster(Box::new(Place { authority: secret })),
    })
}

/// Starts all that runs only here.
pub(super) async fn start(place: Place, shared: Shared, tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let Shared { authority, publisher: _, stop } = shared;
    tasks.spawn(done(place.authority.follow(authority, stop)));
    Ok(())
}
