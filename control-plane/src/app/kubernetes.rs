//! Wiring of what there is only on Kubernetes.
use std::sync::Arc;

use anyhow::Context as _;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_certs::{CertificateAuthority, Svid};

use super::{Ground, done};
use crate::ca::caller::Attestation;
use crate::ca::token_review::TokenReviews;
use crate::cluster::authority::AuthoritySecret;
use crate::cluster::events::{self, Events};
use crate::cluster::{self, Cluster, lease, others, status};
use crate::config::{ClusterSettings, Settings};
use crate::metrics::Metrics;
use crate::model::{Endpoints, Model};
use crate::publish::Publisher;
use crate::replicas::ask::Replicas;
use crate::source::Source;
use crate::source::kubernetes::KubernetesSource;
use crate::source::kubernetes::objects::Objects;

/// What the tasks of this place need.
pub(super) struct Place {
    cluster: Cluster,
    authority: AuthoritySecret,
    objects: Objects,
}

/// What they share with the rest.
pub(super) struct Shared {
    pub(super) authority: watch::Sender<Arc<CertificateAuthority>>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) svid: watch::Receiver<Svid>,
    pub(super) metrics: Metrics,
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
    let secret = AuthoritySecret::new(cluster.clone(), trust_domain.clone(), place.issuer_secret.clone());
    let objects = Objects::default();
    Ok(Ground {
        authority: secret.load().await?,
        attestation: Attestation::Pods(TokenReviews::new(client.clone(), trust_domain.clone())),
        model: Model::with(trust_domain, settings.default_policy, Endpoints::Slices),
        source: Source::Kubernetes(KubernetesSource::start(
            &client,
            objects.clone(),
            settings.denied_identities.clone(),
        )),
        place: super::Place::Cluster(Box::new(Place { cluster, authority: secret, objects })),
    })
}

/// Starts all that runs only here. Returned: where operators are told of things, and the other replicas.
pub(super) fn start(
    place: Place,
    shared: Shared,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> (Events, Option<Replicas>) {
    let Place { cluster, authority: secret, objects } = place;
    let Shared { authority, publisher, svid, metrics, stop } = shared;
    let (leader, leads) = watch::channel(false);
    let (others, found) = watch::channel(Vec::new());
    let (events, notices) = Events::channel();
    let replicas = Replicas::new(Arc::clone(&publisher), found, svid);
    let authorities = authority.subscribe();
    tasks.spawn(done(secret.follow(authority, stop.clone())));
    tasks.spawn(done(lease::run(cluster.clone(), leader, stop.clone())));
    tasks.spawn(done(others::follow(cluster.clone(), others, stop.clone())));
    tasks.spawn(done(events::run(cluster.clone(), notices, stop.clone())));
    tasks.spawn(done(events::watch_authority(events.clone(), authorities, leads.clone(), stop.clone())));
    let writer =
        status::Writer { cluster, publisher, objects, replicas: replicas.clone(), events: events.clone(), metrics };
    tasks.spawn(done(status::run(writer, leads, stop)));
    (events, Some(replicas))
}
