//! Wiring only: opens the state, starts source, publisher, certificate authority and servers, and stops them again.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use weft_api::wire;
use weft_api::wire::proto::certificate_authority_server::CertificateAuthorityServer;
use weft_api::wire::proto::discovery_server::DiscoveryServer;
use weft_api::wire::proto::replicas_server::ReplicasServer;
use weft_certs::{CertificateAuthority, TrustBundle};

use crate::admin::{self, Admin};
use crate::audit::{self, Audit, AuditError, Entry};
use crate::ca::caller::Attestation;
use crate::ca::sign::{Lifetimes, SignService};
use crate::ca::store::{self, Store};
use crate::ca::{own, reload};
use crate::cluster::events::Events;
use crate::config::{Args, IssuerFiles, LogFormat, Settings, SourceSettings, TokenCreateArgs, control_plane_id};
use crate::listener;
use crate::metrics::Metrics;
use crate::model::{Endpoints, Model};
use crate::publish::Publisher;
use crate::replicas::ReplicasService;
use crate::server::DiscoveryService;
use crate::source::Source;
use crate::source::directory::DirectorySource;

mod kubernetes;

/// A connection that is silent for so long is asked whether it is alive,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// and closed when it does not answer by then.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams on one connection; a sidecar needs two.
const STREAMS_OF_A_CONNECTION: u32 = 32;
/// Connections at one time, where the limit of open files allows it.
const CONNECTIONS: u64 = 10_000;
/// Files that are kept free of connections.
const SPARE_FILES: u64 = 128;
/// How long starting waits for the resources.
const FIRST_READ_TIMEOUT: Duration = Duration::from_secs(5);
const READER_FAILED: &str = "the reader of the resources failed";
/// How long a stopping control plane waits for what is under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Before this time is left to the signing certificate, each start warns.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

/// A control plane that runs.
pub struct Running {
    /// Where the gRPC services listen.
    pub address: SocketAddr,
    /// Where the admin endpoints listen.
    pub admin_address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// Runs the control plane until SIGTERM or SIGINT: logging, signals, threads and all. Blocks.
///
/// # Errors
/// The settings or the state cannot be used, an address is taken, or a part of it failed.
pub fn main(args: Args) -> anyhow::Result<()> {
    log(&args)?;
    weft_certs::install_crypto_provider();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(run(args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Runs the control plane until SIGTERM or SIGINT, with the logging and the limits of the process as they are.
///
/// # Errors
/// As [`main`].
pub async fn run(args: Args) -> anyhow::Result<()> {
    let settings = Settings::resolve(&args)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut running = start(settings).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        failed = running.failed() => return Err(failed),
    }
    tracing::info!("stopping; sidecars go on with what they have");
    running.stop().await;
    Ok(())
}

/// Makes a join token under the state of a control plane.
///
/// # Errors
/// The names or the lifetime are not valid, or the state has no key that can be used.
pub fn create_token(args: &TokenCreateArgs) -> anyhow::Result<String> {
    let ttl = args.ttl()?;
    let key = Store::open(&args.state)?.existing_token_key()?;
    Ok(key.create(&args.namespace, &args.service_account, ttl, SystemTime::now())?)
}

/// Checks the audit log under the state of a control plane, which may be running. Returns one line that says what was found.
///
/// # Errors
/// The first line that is missing or altered.
pub fn verify_audit(state: &Path) -> anyhow::Result<String> {
    let (from, last) = audit::verify(Store::open(state)?.directory())?;
    Ok(format!("lines {from} to {} are whole; the last hash is {}", last.number, last.hash))
}

/// What differs between a host and Kubernetes.
struct Ground {
    authority: CertificateAuthority,
    attestation: Attestation,
    model: Model,
    source: Source,
    place: Place,
}

/// Where the signing certificate is kept, and what else there is.
enum Place {
    Host(Option<IssuerFiles>),
    Cluster(Box<kubernetes::Place>),
}

fn ground_of_host(settings: &Settings, store: &Store, resources: PathBuf) -> anyhow::Result<Ground> {
    let tokens = store.token_key(&settings.trust_domain)?;
    let authority = load_authority(settings, store)?;
    let source = DirectorySource::start(resources, settings.denied_identities.clone(), Some(store.last_good_path()))?;
    Ok(Ground {
        authority,
        attestation: Attestation::JoinTokens(Box::new(tokens)),
        model: Model::with(settings.trust_domain.clone(), settings.default_policy, Endpoints::Selectors),
        source: Source::Directory(source),
        place: Place::Host(settings.issuer.clone()),
    })
}

/// Starts a control plane. It runs until [`Running::stop`] or until it is dropped.
///
/// # Errors
/// The state cannot be used, or an address cannot be listened on.
pub async fn start(settings: Settings) -> anyhow::Result<Running> {
    let metrics = Metrics::default();
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let store = Store::open_or_create(&settings.state)?;
    let audit = open_audit(&store, &metrics).await?;
    audit.record(&Entry::Started { trust_domain: settings.trust_domain.as_str() });
    let listener = bind(settings.listen, "--listen").await?;
    let admin_listener = bind(settings.admin_listen, "--admin-listen").await?;
    let running = (listener.local_addr()?, admin_listener.local_addr()?);
    let Ground { authority, attestation, model, mut source, place } = match &settings.source {
        SourceSettings::Directory(resources) => ground_of_host(&settings, &store, resources.clone())?,
        SourceSettings::Kubernetes(cluster) => kubernetes::ground(&settings, cluster).await?,
    };

    let now = SystemTime::now();
    let id = control_plane_id(&settings.trust_domain);
    let svid = own::issue(&authority, &id, settings.certificate_lifetime, now)?;
    let (bundle, bundles) = watch::channel(Arc::new(authority.trust_bundle()));
    announce(&authority, &store, &metrics);
    let (authority, authorities) = watch::channel(Arc::new(authority));
    let (tls, tls_configs) = watch::channel(own::server_config(&svid));
    let (svid, svids) = watch::channel(svid);
    let renewal = own::renew(authorities.clone(), settings.certificate_lifetime, svid, tls, stop.clone());
    tasks.spawn(done(renewal));
    tasks.spawn(done(follow_authority(authorities.clone(), bundle, store, metrics.clone(), stop.clone())));

    let publisher = Arc::new(Publisher::new(model, Arc::clone(&audit), metrics.clone(), now));
    // So that who comes first is not sent away; a source that hangs is no reason not to issue certificates.
    if let Ok(first) = tokio::time::timeout(FIRST_READ_TIMEOUT, source.next()).await {
        publisher.apply(first.context(READER_FAILED)?);
    }
    tasks.spawn(follow_source(source, Arc::clone(&publisher), stop.clone()));
    let mut registry = metrics.registry();
    let (mut events, mut replicas, mut webhooks) = (Events::nowhere(), None, None);
    match place {
        Place::Host(None) => {}
        Place::Host(Some(files)) => {
            tasks.spawn(done(reload::follow(files, settings.trust_domain.clone(), authority, stop.clone())));
        }
        Place::Cluster(place) => {
            let shared = kubernetes::Shared {
                authority,
                publisher: Arc::clone(&publisher),
                svid: svids,
                bundle: bundles.clone(),
                metrics: metrics.clone(),
                stop: stop.clone(),
            };
            metrics.register_for_cluster(&mut registry);
            let started = kubernetes::start(*place, shared, &mut tasks);
            (events, replicas, webhooks) = (started.events, Some(started.replicas), Some(started.not_ready));
        }
    }

    let lifetimes = Lifetimes { shortest: settings.shortest_lifetime, longest: settings.certificate_lifetime };
    let sign = SignService::new(
        authorities,
        attestation,
        lifetimes,
        Arc::clone(&publisher),
        Arc::clone(&audit),
        events,
        metrics.clone(),
    );
    let replicas_service = ReplicasService { publisher: Arc::clone(&publisher), id };
    let discovery = DiscoveryService {
        publisher: Arc::clone(&publisher),
        bundle: bundles,
        audit,
        metrics: metrics.clone(),
        stop: stop.clone(),
    };
    let connections = listener::accept(listener, tls_configs, connection_limit(), metrics.clone(), stop.clone());
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_OF_A_CONNECTION)
        .add_service(CertificateAuthorityServer::new(sign).max_decoding_message_size(wire::MAX_REQUEST_BYTES))
        .add_service(
            DiscoveryServer::new(discovery)
                .max_decoding_message_size(wire::MAX_REQUEST_BYTES)
                .max_encoding_message_size(wire::MAX_UPDATE_BYTES),
        )
        .add_service(ReplicasServer::new(replicas_service).max_decoding_message_size(wire::MAX_REQUEST_BYTES))
        .serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
    tasks.spawn(async move { server.await.context("the gRPC server failed") });

    let admin = Admin { publisher, replicas, webhooks, registry: Arc::new(registry) };
    tasks.spawn(done(admin::serve(admin_listener, admin, stop.clone())));
    let (address, admin_address) = running;
    tracing::info!(%address, admin = %admin_address, trust_domain = %settings.trust_domain, "control plane started");
    Ok(Running { address, admin_address, stop, tasks })
}

impl Running {
    /// Ends streams and connections, and waits for it, but for at most five seconds.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!("stopped with connections open");
        }
    }

    /// Waits until a part failed, and says why.
    pub async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(fault))) => return fault,
                Some(Err(fault)) => return anyhow::Error::new(fault).context("a part of the control plane failed"),
                None => return anyhow::anyhow!("every part of the control plane has ended"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn done(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

fn load_authority(settings: &Settings, store: &Store) -> anyhow::Result<CertificateAuthority> {
    let now = SystemTime::now();
    let authority = match &settings.issuer {
        Some(files) => store::given_authority(files, &settings.trust_domain, now)?,
        None => store.self_signed_authority(&settings.trust_domain, now)?,
    };
    let left = authority.not_after().duration_since(now).unwrap_or_default();
    if left < EXPIRY_WARNING {
        tracing::warn!(
            days = left.as_secs() / 86_400,
            "the signing certificate expires soon; after that nothing is issued"
        );
    }
    Ok(authority)
}

/// Opens the audit log; it waits for another process to let go of it, so not on a thread of the runtime.
async fn open_audit(store: &Store, metrics: &Metrics) -> anyhow::Result<Arc<Audit>> {
    let (directory, counted) = (store.directory().to_owned(), metrics.clone());
    match tokio::task::spawn_blocking(move || Audit::open(&directory, counted)).await? {
        Ok(audit) => Ok(Arc::new(audit)),
        Err(AuditError::Io { path, source }) => {
            tracing::error!(path = %path.display(), fault = %source, "cannot write the audit log; going on without it");
            metrics.audit_failures.inc();
            Ok(Arc::new(Audit::unwritten(metrics.clone())))
        }
        Err(fault) => Err(fault.into()),
    }
}

/// Tells files and metrics of a signing certificate.
fn announce(authority: &CertificateAuthority, store: &Store, metrics: &Metrics) {
    let expiry = authority.not_after().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    metrics.trust_anchor_expiry.set(expiry);
    // Not fatal: sidecars that have a bundle already go on being served with a full disk too.
    if let Err(fault) = store.write_trust_bundle(&authority.trust_bundle().to_pem()) {
        tracing::error!("{fault}; new sidecars cannot be given the present trust bundle");
    }
}

async fn follow_authority(
    mut authority: watch::Receiver<Arc<CertificateAuthority>>,
    bundle: watch::Sender<Arc<TrustBundle>>,
    store: Store,
    metrics: Metrics,
    stop: CancellationToken,
) {
    authority.mark_unchanged();
    while let Some(Ok(())) = stop.run_until_cancelled(authority.changed()).await {
        let latest = Arc::clone(&authority.borrow_and_update());
        announce(&latest, &store, &metrics);
        bundle.send_replace(Arc::new(latest.trust_bundle()));
    }
}

async fn follow_source(mut source: Source, publisher: Arc<Publisher>, stop: CancellationToken) -> anyhow::Result<()> {
    while let Some(batch) = stop.run_until_cancelled(source.next()).await {
        publisher.apply(batch.context(READER_FAILED)?);
    }
    Ok(())
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}; give another {flag}"))
}

fn log(args: &Args) -> anyhow::Result<()> {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log)
        .with_context(|| format!("--log: '{}' is no level; write for example info", args.log))?;
    let terminal = std::io::stdout().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal);
    match args.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Connections need one file each: takes what the system allows.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(fault) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%fault, soft, hard, "cannot raise the limit of open files");
    }
}

fn connection_limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(files.saturating_sub(SPARE_FILES).clamp(16, CONNECTIONS)).unwrap_or(usize::MAX)
}
