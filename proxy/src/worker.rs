//! One thread of the data path: accepts only once there is a certificate and a configuration, so that nothing is ever
//! served unjudged; until then connections wait in the kernel's queue.
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::watch;
use tokio::task::spawn_local;

use crate::path::{Mirrors, Phase, Worker, inbound, outbound};
use crate::stage::accept::{self, Room};
use crate::stage::balance::{Balancer, Circuits};
use crate::stage::connect::{Identity, Upstreams};
use crate::stage::detect::ServerFirst;
use crate::stage::rate_limit::Limiter;
use crate::stage::route::MeshView;
use crate::telemetry::{Direction, Refusal, Telemetry};

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// The sockets of one worker.
pub(crate) struct Listeners {
    pub(crate) inbound: Vec<std::net::TcpListener>,
    pub(crate) outbound: Vec<std::net::TcpListener>,
}

/// What a worker is given.
pub(crate) struct Parts {
    pub(crate) listeners: Listeners,
    pub(crate) view: watch::Receiver<Option<Arc<MeshView>>>,
    pub(crate) identity: watch::Receiver<Option<Arc<Identity>>>,
    pub(crate) limiter: watch::Receiver<Arc<Limiter>>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) own_ports: [u16; 3],
    pub(crate) mark: Option<u32>,
    pub(crate) stall: Option<Duration>,
    pub(crate) open: Arc<AtomicUsize>,
    /// What all workers together have under way.
    pub(crate) circuits: Arc<Circuits>,
    /// How many there are.
    pub(crate) workers: usize,
    /// Of inbound and of outbound connections.
    pub(crate) room: [Room; 2],
}

/// Runs until `stop` turns true.
pub(crate) fn run(parts: Parts, stop: watch::Receiver<bool>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(serve(parts, stop))
}

async fn serve(parts: Parts, mut stop: watch::Receiver<bool>) -> std::io::Result<()> {
    let (mut view, mut identity) = (parts.view.clone(), parts.identity.clone());
    let ready = async {
        let _ = view.wait_for(Option::is_some).await;
        let _ = identity.wait_for(Option::is_some).await;
    };
    tokio::select! {
        () = ready => {}
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    }
    let worker = Rc::new(Worker {
        view: parts.view,
        identity: parts.identity,
        limiter: parts.limiter,
        phase: parts.phase,
        upstreams: Rc::new(Upstreams::new(parts.mark)),
        server_first: ServerFirst::default(),
        balancer: Balancer::new(parts.circuits, parts.workers),
        mirrors: Mirrors::default(),
        telemetry: parts.telemetry.worker(),
        own_ports: parts.own_ports,
        local: accept::LocalAddresses::default(),
        stall: parts.stall,
        open: parts.open,
    });
    let [inbound_room, outbound_room] = parts.room;
    for listener in parts.listeners.inbound {
        let listener = TcpListener::from_std(listener)?;
        let full = (Direction::Inbound, inbound_room.clone());
        spawn_local(accept_all(listener, Rc::clone(&worker), full, inbound::handle));
    }
    for listener in parts.listeners.outbound {
        let listener = TcpListener::from_std(listener)?;
        let full = (Direction::Outbound, outbound_room.clone());
        spawn_local(accept_all(listener, Rc::clone(&worker), full, outbound::handle));
    }
    spawn_local(sweep(worker));
    let _ = stop.wait_for(|stop| *stop).await;
    Ok(())
}

async fn accept_all<H, F>(listener: TcpListener, worker: Rc<Worker>, (direction, room): (Direction, Room), handle: H)
where
    H: Fn(Rc<Worker>, TcpStream, SocketAddr) -> F,
    F: Future<Output = ()> + 'static,
{
    loop {
        let (stream, peer) = accept::next(&listener).await;
        let Some(place) = room.take() else {
            let reason = "too_many_connections";
            let refusal = Refusal { direction, reason, detail: None, peer_identity: None, peer_address: Some(peer) };
            worker.telemetry.refused(&refusal);
            accept::reset(stream);
            continue;
        };
        let handled = handle(Rc::clone(&worker), stream, peer);
        spawn_local(async move {
            handled.await;
            drop(place);
        });
    }
}

/// Closes what is idle, and at once what leads to endpoints that are gone.
async fn sweep(worker: Rc<Worker>) {
    let mut changes = worker.view.clone();
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        let view = worker.view();
        worker.balancer.sweep(|name, family| view.service(name, family), |endpoint| view.names(endpoint));
    }
}
