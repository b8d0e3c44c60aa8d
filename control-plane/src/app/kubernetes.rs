//! Wiring of what there is only on Kubernetes.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_certs::{CertificateAuthority, Svid, TrustBundle};

use super::{Ground, bind, done};
use crate::ca::caller::Attestation;
use crate::ca::token_review::TokenReviews;
use crate::cluster::authority::AuthoritySecret;
use crate::cluster::events::{self, Events};
use crate::cluster::{self, Cluster, lease, namespaces, others, status, trust_bundle, webhook_secret, webhooks};
use crate::config::{ClusterSettings, Settings};
use crate::metrics::Metrics;
use crate::model::{Endpoints, Model};
use crate::publish::Publisher;
use crate::replicas::ask::Replicas;
use crate::source::Source;
use crate::source::kubernetes::KubernetesSource;
use crate::source::kubernetes::objects::Objects;
use crate::webhook::injector::InjectorConfig;
use crate::webhook::server::{self, Hooks};
use crate::webhook::{certificate, injection};

/// What the tasks of this place need.
pub(super) struct Place {
    cluster: Cluster,
    authority: AuthoritySecret,
    objects: Objects,
    webhooks: Webhooks,
}

/// What the webhooks need.
struct Webhooks {
    listener: TcpListener,
    client_roots: Option<certificate::ClientRoots>,
    injector: InjectorConfig,
    /// Where the injector's settings are read again.
    injector_file: Option<PathBuf>,
}

/// What they share with the rest.
pub(super) struct Shared {
    pub(super) authority: watch::Sender<Arc<CertificateAuthority>>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) svid: watch::Receiver<Svid>,
    pub(super) bundle: watch::Receiver<Arc<TrustBundle>>,
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
    let webhooks = Webhooks {
        listener: bind(place.webhook_listen, "--webhook-listen").await?,
        client_roots: place.webhook_client_ca.as_deref().map(client_roots).transpose()?,
        injector: match &place.injector_config {
            Some(file) => injection::read_config(file).map_err(|fault| anyhow!("--injector-config: {fault}"))?,
            None => InjectorConfig::default(),
        },
        injector_file: place.injector_config.clone(),
    };
    let trust_domain = settings.trust_domain.clone();
    let secret = AuthoritySecret::new(cluster.clone(), trust_domain.clone(), place.issuer_secret.clone());
    let objects = Objects::default();
    Ok(Ground {
        authority: secret.load().await?,
        attestation: Attestation::Pods(Box::new(TokenReviews::new(client.clone(), trust_domain.clone()))),
        model: Model::with(trust_domain, settings.default_policy, Endpoints::Slices),
        source: Source::Kubernetes(KubernetesSource::start(
            &client,
            objects.clone(),
            settings.denied_identities.clone(),
        )),
        place: super::Place::Cluster(Box::new(Place { cluster, authority: secret, objects, webhooks })),
    })
}

fn client_roots(file: &Path) -> anyhow::Result<certificate::ClientRoots> {
    let pem = std::fs::read_to_string(file).with_context(|| format!("--webhook-client-ca: {}", file.display()))?;
    certificate::client_roots(&pem).with_context(|| format!("--webhook-client-ca: {}", file.display()))
}

/// What the rest needs of what runs here.
pub(super) struct Started {
    /// Where operators are told of things.
    pub(super) events: Events,
    /// The other replicas.
    pub(super) replicas: Replicas,
    /// Why the webhooks do not answer.
    pub(super) not_ready: watch::Receiver<Option<String>>,
}

/// Starts all that runs only here.
pub(super) fn start(place: Place, shared: Shared, tasks: &mut JoinSet<anyhow::Result<()>>) -> Started {
    let Place { cluster, authority: secret, objects, webhooks } = place;
    let Shared { authority, publisher, svid, bundle, metrics, stop } = shared;
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
    tasks.spawn(done(trust_bundle::run(cluster.clone(), bundle, leads.clone(), stop.clone())));
    let not_ready = serve_webhooks(webhooks, &cluster, Arc::clone(&publisher), metrics.clone(), &stop, tasks);
    let writer =
        status::Writer { cluster, publisher, objects, replicas: replicas.clone(), events: events.clone(), metrics };
    tasks.spawn(done(status::run(writer, leads, stop)));
    Started { events, replicas, not_ready }
}

fn serve_webhooks(
    webhooks: Webhooks,
    cluster: &Cluster,
    publisher: Arc<Publisher>,
    metrics: Metrics,
    stop: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> watch::Receiver<Option<String>> {
    let Webhooks { listener, client_roots, injector, injector_file } = webhooks;
    let (certificate, certificates) = watch::channel(None);
    let (injector, injectors) = watch::channel(Arc::new(injector));
    let (reason, not_ready) = watch::channel(Some("the webhooks are starting".to_owned()));
    if let Some(file) = injector_file {
        tasks.spawn(done(injection::follow_config(file, injector, stop.clone())));
    }
    let names = certificate::names(&cluster.service, &cluster.namespace, None);
    let wanted = webhook_secret::Wanted { names, client_roots };
    let keep = webhook_secret::run(cluster.clone(), wanted, certificate, metrics.clone(), stop.clone());
    tasks.spawn(done(keep));
    tasks.spawn(done(webhooks::run(cluster.client.clone(), certificates.clone(), stop.clone())));
    let hooks = Hooks {
        inject: injection::decide(injectors, namespaces::lookup(cluster.client.clone())),
        services: Some(Arc::new(move |service| publisher.knows_service(service))),
        metrics,
    };
    tasks.spawn(done(server::serve(listener, certificates, hooks, reason, stop.clone())));
    not_ready
}
