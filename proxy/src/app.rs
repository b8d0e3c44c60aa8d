//! Wiring only: settings become sockets, feeds, workers and the admin server; signals become a drain.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use weft_api::observation::Observations;

use crate::admin;
use crate::config::Settings;
use crate::dump;
use crate::feed::channel::ControlPlane;
use crate::feed::{bundle_file, identity, workload};
use crate::path::Phase;
use crate::probe::Prober;
use crate::stage::accept::{self, Room};
use crate::stage::balance::Circuits;
use crate::stage::connect::Identity;
use crate::stage::rate_limit::Limiter;
use crate::stage::route::MeshView;
use crate::telemetry::{self, LineSink, OtlpSettings, Party, Telemetry, TelemetrySettings};
use crate::worker::{self, Listeners, Parts};

/// Runs the sidecar until it is signalled and has drained.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    weft_certs::install_crypto_provider();
    let (lines, _log) = LineSink::stdout();
    telemetry::log::init(&settings.args.log, &lines)?;
    let most = most_connections(&settings, raise_open_files());
    let telemetry = Telemetry::new(telemetry_settings(&settings), lines)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners: Vec<Listeners> = (0..settings.workers).map(|_| listen(&settings)).collect::<anyhow::Result<_>>()?;
    runtime.block_on(supervise(settings, telemetry, listeners, most))
}

fn telemetry_settings(settings: &Settings) -> TelemetrySettings {
    let args = &settings.args;
    TelemetrySettings {
        workload: Party::new(args.workload.as_str(), ""),
        series_budget: telemetry::DEFAULT_SERIES_BUDGET,
        access_log: args.access_log,
        otlp: args.otlp_endpoint.clone().map(|endpoint| OtlpSettings {
            endpoint,
            sampling_ratio: args.trace_ratio,
            mark: args.proxy_mark,
        }),
    }
}

/// Each connection carried takes two descriptors; the usual soft limit of 1,024 would be reached by 500. Returns how many
/// there may be.
fn raise_open_files() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft >= hard {
        return Some(soft);
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Some(hard),
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
            Some(soft)
        }
    }
}

/// Connections of one direction: with both directions full, descriptors are left for what the sidecar itself needs.
fn most_connections(settings: &Settings, open_files: Option<u64>) -> usize {
    /// Taken by listeners, runtimes, the control plane and the admin port, which has a bound of its own.
    const OWN: u64 = 400;
    let affordable = open_files.map_or(u64::MAX, |files| (files.saturating_sub(OWN) / 4).max(1));
    match settings.args.max_connections {
        Some(most) => {
            if most as u64 > affordable {
                tracing::warn!(most, affordable, "--max-connections is more than the limit of open files carries");
            }
            most
        }
        None => DEFAULT_CONNECTIONS.min(usize::try_from(affordable).unwrap_or(usize::MAX)),
    }
}

const DEFAULT_CONNECTIONS: usize = 10_000;

/// Binds one worker's sockets. A host without IPv6 is served over IPv4 alone.
fn listen(settings: &Settings) -> anyhow::Result<Listeners> {
    let bind = |port: u16, loopback: bool, what: &str| -> anyhow::Result<Vec<std::net::TcpListener>> {
        let [v4, v6] = accept::addresses(port, loopback);
        let mut sockets = vec![
            accept::listen(v4)
                .with_context(|| format!("cannot listen on {what} address {v4}; is another sidecar running here?"))?,
        ];
        match accept::listen(v6) {
            Ok(socket) => sockets.push(socket),
            Err(error) if no_ipv6(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot listen on {what} address {v6}")),
        }
        Ok(sockets)
    };
    Ok(Listeners {
        inbound: bind(settings.args.inbound_port, false, "inbound")?,
        outbound: bind(settings.args.outbound_port, true, "outbound")?,
    })
}

fn no_ipv6(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL))
}

async fn supervise(
    settings: Settings,
    telemetry: Arc<Telemetry>,
    listeners: Vec<Listeners>,
    most: usize,
) -> anyhow::Result<()> {
    let (set_identity, identity) = watch::channel::<Option<Arc<Identity>>>(None);
    let (set_view, view) = watch::channel::<Option<Arc<MeshView>>>(None);
    let (set_bundle, bundle) = watch::channel(None);
    let (set_limiter, limiter) = watch::channel(Arc::new(Limiter::new(&[], None)));
    let (set_phase, phase) = watch::channel(Phase::Serving);
    let (set_draining, draining) = watch::channel(false);
    let (set_stop, stop) = watch::channel(false);
    let (set_ready, ready) = watch::channel(admin::Readiness::waiting("starting"));
    let open = Arc::new(AtomicUsize::new(0));
    let circuits = Arc::<Circuits>::default();
    let room = [Room::new(most), Room::new(most)];

    serve_admin(&settings, &telemetry, ready, view.clone(), identity.clone())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let files = async {
        bundle_file::appeared("trust bundle", &settings.args.trust_bundle).await?;
        bundle_file::appeared("token", &settings.args.token_file).await
    };
    tokio::select! {
        there = files => there.map_err(anyhow::Error::msg)?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }

    let control_plane = ControlPlane {
        address: settings.args.control_plane.clone(),
        id: settings.control_plane_id.clone(),
        mark: settings.args.proxy_mark,
    };
    let certificates = identity::Source {
        control_plane: control_plane.clone(),
        trust_domain: settings.trust_domain.clone(),
        token_file: settings.args.token_file.clone(),
        lifetime: settings.args.certificate_lifetime,
        bundle_file: settings.args.trust_bundle.clone(),
    };
    let discovery = workload::Source { control_plane, workload: settings.args.workload.clone() };
    let (bundle_path, trust_domain) = (settings.args.trust_bundle.clone(), settings.trust_domain.clone());
    tokio::spawn(bundle_file::watch(bundle_path, trust_domain, set_bundle.clone()));
    tokio::spawn(identity::run(certificates, bundle, set_identity, tell_identity(&telemetry)));
    tokio::spawn(workload::run(
        discovery,
        identity.clone(),
        draining,
        workload::Publish { view: set_view, bundle: set_bundle },
        tell_workload(&telemetry),
        take_calls(&telemetry),
    ));
    tokio::spawn(limits(view.clone(), set_limiter));
    tokio::spawn(readiness(view.clone(), identity.clone(), phase.clone(), set_ready));

    let mut workers = Vec::new();
    for (number, listeners) in listeners.into_iter().enumerate() {
        let parts = Parts {
            listeners,
            view: view.clone(),
            identity: identity.clone(),
            limiter: limiter.clone(),
            phase: phase.clone(),
            telemetry: Arc::clone(&telemetry),
            own_ports: settings.own_ports(),
            mark: settings.args.proxy_mark,
            stall: settings.stall(),
            open: Arc::clone(&open),
            circuits: Arc::clone(&circuits),
            workers: settings.workers,
            room: room.clone(),
        };
        let stop = stop.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{number}"));
        workers.push(thread.spawn(move || worker::run(parts, stop))?);
    }

    tracing::info!(workload = settings.args.workload, workers = settings.workers, "sidecar started");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    set_draining.send_replace(true);
    set_phase.send_replace(Phase::Draining);
    let drained = async {
        // Callers learn from the control plane, or from `Connection: close`, that they should go elsewhere.
        tokio::time::sleep(settings.args.lame_duck).await;
        set_phase.send_replace(Phase::Closing);
        while open.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(settings.args.drain_timeout, drained) => {}
        _ = terminate.recv() => tracing::warn!("told to stop again: stopping without waiting"),
        _ = interrupt.recv() => tracing::warn!("told to stop again: stopping without waiting"),
    }
    tracing::info!(cut = open.load(Ordering::Relaxed), "sidecar stopped");
    set_stop.send_replace(true);
    for worker in workers {
        worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
    }
    telemetry.flush(Duration::from_secs(2)).await;
    Ok(())
}

fn tell_identity(telemetry: &Arc<Telemetry>) -> impl Fn(identity::Event) + use<> {
    let telemetry = Arc::clone(telemetry);
    move |event| match event {
        identity::Event::Renewed { not_after } => {
            telemetry.certificate_renewed(true);
            telemetry.set_certificate_expiry(not_after);
        }
        identity::Event::Failed => telemetry.certificate_renewed(false),
    }
}

fn tell_workload(telemetry: &Arc<Telemetry>) -> impl Fn(workload::Event) + use<> {
    let telemetry = Arc::clone(telemetry);
    move |event| match event {
        workload::Event::Connected(connected) => telemetry.set_control_plane_connected(connected),
        workload::Event::Applied { version } => telemetry.config_applied(version),
        workload::Event::Rejected { .. } => telemetry.config_refused(),
    }
}

fn take_calls(telemetry: &Arc<Telemetry>) -> impl Fn() -> Observations + use<> {
    let telemetry = Arc::clone(telemetry);
    move || telemetry.take_calls()
}

/// Rebuilds the limits when the configuration changes; what did not change keeps its counters.
async fn limits(mut view: watch::Receiver<Option<Arc<MeshView>>>, publish: watch::Sender<Arc<Limiter>>) {
    let mut known = None;
    while view.changed().await.is_ok() {
        let Some(now) = view.borrow_and_update().clone() else { continue };
        let limits = &now.config.inbound.rate_limits;
        if known.as_ref() != Some(limits) {
            let before = publish.borrow().clone();
            publish.send_replace(Arc::new(Limiter::new(limits, Some(&before))));
            known = Some(Arc::clone(limits));
        }
    }
}

/// Says what is missing until the sidecar can serve, and again when it no longer should.
async fn readiness(
    mut view: watch::Receiver<Option<Arc<MeshView>>>,
    mut identity: watch::Receiver<Option<Arc<Identity>>>,
    mut phase: watch::Receiver<Phase>,
    publish: watch::Sender<admin::Readiness>,
) {
    loop {
        let mut reasons = Vec::new();
        let not_after = identity.borrow_and_update().as_ref().map(|identity| identity.svid.not_after());
        let left = not_after.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        match left {
            None => reasons.push("no certificate yet: the control plane has not signed one".to_owned()),
            Some(left) if left.is_zero() => {
                reasons.push("the certificate has expired and could not be renewed".to_owned())
            }
            Some(_) => {}
        }
        if view.borrow_and_update().is_none() {
            reasons.push("no configuration yet from the control plane".to_owned());
        }
        if *phase.borrow_and_update() > Phase::Serving {
            reasons.push("draining".to_owned());
        }
        publish.send_replace(admin::Readiness { reasons });
        let expiry = tokio::time::sleep(left.filter(|left| !left.is_zero()).unwrap_or(Duration::from_secs(3600)));
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            changed = identity.changed() => if changed.is_err() { return },
            changed = phase.changed() => if changed.is_err() { return },
            () = expiry => {}
        }
    }
}

/// Serves the admin port on every address of the pod.
fn serve_admin(
    settings: &Settings,
    telemetry: &Arc<Telemetry>,
    ready: watch::Receiver<admin::Readiness>,
    view: watch::Receiver<Option<Arc<MeshView>>>,
    identity: watch::Receiver<Option<Arc<Identity>>>,
) -> anyhow::Result<()> {
    let (shown, proven) = (view.clone(), identity.clone());
    let config = move || dump::config(shown.borrow().as_deref(), identity.borrow().as_deref());
    let explain = move |query: &BTreeMap<String, String>| {
        dump::explain(view.borrow().as_deref(), proven.borrow().as_deref(), query)
    };
    let prober = Prober::new(settings.probes.clone(), settings.own_ports(), settings.args.proxy_mark);
    let server = admin::Admin::new(Arc::clone(telemetry), ready, Box::new(config), Box::new(explain), prober);
    for address in accept::addresses(settings.args.admin_port, false) {
        let socket = match accept::listen(address) {
            Ok(socket) => socket,
            Err(error) if address.is_ipv6() && no_ipv6(&error) => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot listen on admin address {address}")),
        };
        tokio::spawn(admin::serve(TcpListener::from_std(socket)?, Arc::clone(&server)));
    }
    Ok(())
}
