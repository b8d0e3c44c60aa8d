//! What the control plane tells this sidecar: one stream, joined again when it breaks; what was last told stays in force.
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use weft_api::observation::Observations;
use weft_api::wire::proto::discovery_client::DiscoveryClient;
use weft_api::wire::{self, SidecarMessage, proto};
use weft_api::workload::WorkloadConfig;
use weft_certs::TrustBundle;

use super::Backoff;
use super::channel::{ControlPlane, with_causes};
use crate::stage::connect::Identity;
use crate::stage::route::MeshView;

/// Longest wait before joining the stream again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How often the control plane is told which calls were judged.
const OBSERVE: Duration = Duration::from_secs(10);

/// What the feed needs.
#[derive(Clone, Debug)]
pub struct Source {
    /// Who tells.
    pub control_plane: ControlPlane,
    /// The Workload we stand beside.
    pub workload: String,
}

/// Where what is told goes.
pub struct Publish {
    /// The configuration in force.
    pub view: watch::Sender<Option<Arc<MeshView>>>,
    /// The trust bundle in force.
    pub bundle: watch::Sender<Option<TrustBundle>>,
}

/// What happened, for telemetry and readiness.
#[derive(Clone, Debug)]
pub enum Event {
    /// The stream is up or down.
    Connected(bool),
    /// An update was applied.
    Applied {
        /// Its version.
        version: u64,
    },
    /// An update could not be applied; what was in force stays.
    Rejected {
        /// Its version.
        version: u64,
    },
}

/// Publishes views on `publish`. `draining` turning true is passed on to the control plane.
pub async fn run(
    source: Source,
    mut identity: watch::Receiver<Option<Arc<Identity>>>,
    mut draining: watch::Receiver<bool>,
    publish: Publish,
    told: impl Fn(Event),
    judged: impl Fn() -> Observations,
) {
    let mut backoff = Backoff::new(LONGEST_WAIT);
    loop {
        let current = match identity.wait_for(Option::is_some).await {
            Ok(current) => current.clone(),
            Err(_) => return,
        };
        let Some(current) = current else { continue };
        identity.mark_unchanged();
        let joined =
            join(&source, &current, &mut identity, &mut draining, &publish, &mut backoff, (&told, &judged)).await;
        told(Event::Connected(false));
        match joined {
            // A new certificate: the stream is joined again with it at once.
            Ok(()) => {}
            Err(error) => {
                let wait = backoff.next();
                tracing::warn!(%error, retry_in = ?wait, "not connected to the control plane; the last configuration stays in force");
                tokio::time::sleep(wait).await;
            }
        }
        if publish.view.is_closed() {
            return;
        }
    }
}

async fn join(
    source: &Source,
    current: &Arc<Identity>,
    identity: &mut watch::Receiver<Option<Arc<Identity>>>,
    draining: &mut watch::Receiver<bool>,
    publish: &Publish,
    backoff: &mut Backoff,
    (told, judged): (&impl Fn(Event), &impl Fn() -> Observations),
) -> Result<(), String> {
    let svid = &current.svid;
    let channel = source.control_plane.connect(Some(svid), svid.bundle()).await.map_err(|e| with_causes(&e))?;
    let (say, said) = mpsc::channel(16);
    let hello =
        SidecarMessage::Hello { workload: source.workload.clone(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let gone = |_| "the stream to the control plane closed".to_owned();
    say.send(wire::encode_sidecar_message(&hello)).await.map_err(gone)?;
    if *draining.borrow_and_update() {
        say.send(wire::encode_sidecar_message(&SidecarMessage::Draining)).await.map_err(gone)?;
    }
    let mut updates = DiscoveryClient::new(channel)
        .max_decoding_message_size(wire::MAX_UPDATE_BYTES)
        .stream(ReceiverStream::new(said))
        .await
        .map_err(|status| refusal(&status))?
        .into_inner();
    told(Event::Connected(true));
    // Deltas build on what this stream told before; the first update replaces everything.
    let mut told_so_far: Option<WorkloadConfig> = None;
    let mut observe = tokio::time::interval_at((Instant::now() + OBSERVE).into(), OBSERVE);
    loop {
        tokio::select! {
            update = updates.message() => match update {
                Ok(Some(update)) => {
                    backoff.reset();
                    let version = update.version;
                    let refused = apply(&update, &mut told_so_far, publish, told).err();
                    let ack = SidecarMessage::Ack { version, error: refused.clone() };
                    say.send(wire::encode_sidecar_message(&ack)).await.map_err(gone)?;
                    if let Some(refused) = refused {
                        // What follows would build on an update that is not here: join again for a whole one.
                        tokio::time::sleep(LONGEST_WAIT).await;
                        return Err(format!("an update was refused: {refused}"));
                    }
                }
                Ok(None) => return Err("the control plane ended the stream".to_owned()),
                Err(status) => return Err(refusal(&status)),
            },
            changed = identity.changed() => return changed.map_err(|_| "stopping".to_owned()),
            Ok(()) = draining.changed() => {
                say.send(wire::encode_sidecar_message(&SidecarMessage::Draining)).await.map_err(gone)?;
                tell_calls(&say, judged()).await.map_err(gone)?;
            }
            _ = observe.tick() => tell_calls(&say, judged()).await.map_err(gone)?,
        }
    }
}

/// Tells of the calls that were judged. What is under way when the stream breaks is lost: a count for people, not a ledger.
async fn tell_calls(
    say: &mpsc::Sender<proto::SidecarMessage>,
    observations: Observations,
) -> Result<(), mpsc::error::SendError<proto::SidecarMessage>> {
    for part in wire::observed_parts(observations) {
        say.send(wire::encode_sidecar_message(&SidecarMessage::Observed(part))).await?;
    }
    Ok(())
}

/// Puts an update in force, whole or not at all.
fn apply(
    update: &proto::Update,
    told_so_far: &mut Option<WorkloadConfig>,
    publish: &Publish,
    told: &impl Fn(Event),
) -> Result<(), String> {
    let version = update.version;
    let applied = wire::apply(told_so_far.as_ref(), update).and_then(|config| Ok((config, wire::bundle(update)?)));
    match applied {
        Ok((config, bundle)) => {
            if bundle.is_some() {
                publish.bundle.send_replace(bundle);
            }
            *told_so_far = Some(config.clone());
            let previous = publish.view.borrow().clone();
            publish.view.send_replace(Some(Arc::new(MeshView::following(previous.as_deref(), config))));
            tracing::info!(version, "configuration in force");
            told(Event::Applied { version });
            Ok(())
        }
        Err(error) => {
            tracing::error!(version, %error, "update refused; the last configuration stays in force");
            told(Event::Rejected { version });
            Err(error.to_string())
        }
    }
}

fn refusal(status: &tonic::Status) -> String {
    format!("the control plane answered {:?}: {}", status.code(), status.message())
}
