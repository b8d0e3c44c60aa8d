//! The configuration stream: tells each sidecar what its workload is to do, and hears how it went.
//!
//! A sidecar is told only of the workload that its certificate stands for. A stream ends when the certificate that it was
//! opened with expires, and when its sidecar takes longer than a minute to take an update; it then starts afresh.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_api::wire::{self, SidecarMessage, WireError, proto};
use weft_certs::{Peer, SpiffeId, TrustBundle};

use crate::audit::{Audit, Entry};
use crate::listener::ConnectionInfo;
use crate::metrics::Metrics;
use crate::publish::{Published, Publisher, Refused, Subscription, Versioned};

/// The first message must have come by then.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A sidecar that has not taken an update by then is cut off, and gets everything when it comes back.
const SLOWEST: Duration = Duration::from_secs(60);
/// A sidecar that is away for longer is worth a line in the log. Nothing else follows from it.
const MISSED_AFTER: Duration = Duration::from_secs(30);
/// Acknowledgements beyond one for each update that are put up with.
const SPARE_ACKS: u64 = 16;

/// The gRPC service `Discovery`.
pub struct DiscoveryService {
    /// What to tell.
    pub publisher: Arc<Publisher>,
    /// The roots that sidecars are to trust.
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
    /// Where refusals are written down.
    pub audit: Arc<Audit>,
    /// What is counted.
    pub metrics: Metrics,
    /// Ends all streams.
    pub stop: CancellationToken,
}

impl DiscoveryService {
    fn refused(&self, peer: &Peer, workload: &str, remote: &str, refused: &Refused) {
        let (id, reason) = (peer.id.as_str(), refused.to_string());
        let reason = reason.as_str();
        if self.audit.record(&Entry::StreamRefused { id, workload, remote, reason }) {
            tracing::warn!(id, workload, remote, reason, "refused a configuration stream");
        }
    }
}

type Updates = mpsc::Sender<Result<proto::Update, Status>>;

#[tonic::async_trait]
impl proto::discovery_server::Discovery for DiscoveryService {
    type StreamStream = ReceiverStream<Result<proto::Update, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<proto::SidecarMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let info = request.extensions().get::<ConnectionInfo>();
        let remote = info.map(|info| info.remote.to_string()).unwrap_or_default();
        let peer = info.and_then(|info| info.peer.clone());
        let peer = peer.filter(|peer| peer.not_after > SystemTime::now()).ok_or_else(|| {
            Status::unauthenticated("present a valid client certificate; get one by CertificateAuthority.Sign")
        })?;
        let mut messages = request.into_inner();
        let (workload, version) = first_message(&mut messages).await?;
        let subscription = self.publisher.subscribe(&workload, &peer).map_err(|refused| {
            self.refused(&peer, &workload, &remote, &refused);
            status(&refused)
        })?;
        tracing::info!(id = %peer.id, workload = %subscription.workload(), sidecar = %version.escape_debug(), "a sidecar listens");
        let (updates, receiver) = mpsc::channel(1);
        let stream = Stream {
            subscription,
            peer: peer.id.clone(),
            messages,
            updates,
            bundle: self.bundle.clone(),
            metrics: self.metrics.clone(),
            told: None,
            told_bundle: None,
            last_version: 0,
            applied: false,
            unanswered: 0,
            spare_acks: SPARE_ACKS,
        };
        tokio::spawn(stream.run(peer, self.stop.clone(), Arc::clone(&self.publisher)));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// One sidecar's stream.
struct Stream {
    subscription: Subscription,
    peer: SpiffeId,
    messages: Streaming<proto::SidecarMessage>,
    updates: Updates,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    metrics: Metrics,
    told: Option<Arc<Versioned>>,
    told_bundle: Option<Arc<TrustBundle>>,
    last_version: u64,
    /// Whether the sidecar has applied the last version.
    applied: bool,
    unanswered: u64,
    spare_acks: u64,
}

impl Stream {
    async fn run(mut self, peer: Peer, stop: CancellationToken, publisher: Arc<Publisher>) {
        let expiry = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let end = tokio::select! {
            () = stop.cancelled() => Some(Status::unavailable("the control plane is stopping; come back")),
            () = tokio::time::sleep(expiry) => Some(Status::unauthenticated("the certificate has expired; renew it and come back")),
            end = self.talk() => end,
        };
        let workload = self.subscription.workload().clone();
        match &end {
            Some(status) => tracing::info!(%workload, reason = status.message(), "ended a sidecar's stream"),
            None => tracing::info!(%workload, "a sidecar's stream ended"),
        }
        if let Some(status) = end {
            // Whoever does not read will find a closed connection.
            let _ = self.updates.try_send(Err(status));
        }
        drop(self);
        if stop.run_until_cancelled(tokio::time::sleep(MISSED_AFTER)).await.is_some()
            && Subscription::is_disconnected(&publisher, &workload)
        {
            tracing::warn!(%workload, "no sidecar has listened for {MISSED_AFTER:?}; calls are still sent there, as it may well serve them");
        }
    }

    /// Tells and listens until one side has enough. `None`: the sidecar went away.
    async fn talk(&mut self) -> Option<Status> {
        let updates = self.updates.clone();
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                message = self.messages.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(status) = self.hear(message) {
                            return Some(status);
                        }
                    }
                    Ok(None) | Err(_) => return None,
                },
                changed = changed(&mut self.subscription.published, &mut self.bundle), if due.is_none() => {
                    if !changed {
                        return Some(Status::unavailable("the control plane is stopping; come back"));
                    }
                    due = Some(Instant::now() + SLOWEST);
                }
                permit = updates.reserve(), if due.is_some() => {
                    let Ok(permit) = permit else { return None };
                    // Only now the latest is looked at: what was overtaken while waiting is never sent.
                    let published = self.subscription.published.borrow_and_update().clone();
                    let bundle = Arc::clone(&self.bundle.borrow_and_update());
                    due = None;
                    let latest = match published {
                        Published::Config(latest) if latest.identity == self.peer => latest,
                        Published::Config(_) => return Some(status(&Refused::Forbidden(self.subscription.workload().clone()))),
                        Published::Ended(refused) => return Some(status(&refused)),
                    };
                    let version = latest.version.max(self.last_version + 1);
                    let mut update = wire::diff(self.told.as_ref().map(|told| &told.config), &latest.config, version);
                    if self.told_bundle.as_ref() != Some(&bundle) {
                        wire::set_bundle(&mut update, &bundle);
                    }
                    if wire::is_empty(&update) {
                        // It came back to what the sidecar was told.
                        self.told = Some(latest);
                        self.note_what_runs();
                        continue;
                    }
                    permit.send(Ok(update));
                    self.metrics.updates_sent.inc();
                    (self.told, self.told_bundle) = (Some(latest), Some(bundle));
                    self.last_version = version;
                    self.applied = false;
                    self.unanswered += 1;
                }
                () = updates.closed() => return None,
                () = until(due) => return Some(Status::deadline_exceeded("updates are not being read; come back")),
            }
        }
    }

    fn hear(&mut self, message: proto::SidecarMessage) -> Result<(), Status> {
        match wire::decode_sidecar_message(message).map_err(invalid)? {
            SidecarMessage::Ack { version, error } => {
                let expected = if self.unanswered > 0 { &mut self.unanswered } else { &mut self.spare_acks };
                if version > self.last_version || *expected == 0 {
                    return Err(Status::invalid_argument("an acknowledgement without an update"));
                }
                *expected -= 1;
                self.subscription.acknowledged(version, error.as_deref());
                if version == self.last_version {
                    self.applied = error.is_none();
                    self.note_what_runs();
                }
                Ok(())
            }
            SidecarMessage::Draining => {
                self.subscription.draining();
                Ok(())
            }
            SidecarMessage::Observed(seen) => {
                self.subscription.observed(seen);
                Ok(())
            }
            SidecarMessage::Hello { .. } => Err(Status::invalid_argument("only the first message may be hello")),
        }
    }

    /// A version on the wire may be later than its content's: the trust bundle travels with it.
    fn note_what_runs(&self) {
        if let Some(told) = self.told.as_ref().filter(|_| self.applied) {
            self.subscription.runs(told.version);
        }
    }
}

/// Reads the first message, which must be hello: the workload's name and the sidecar's version.
async fn first_message(messages: &mut Streaming<proto::SidecarMessage>) -> Result<(String, String), Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, messages.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no message came; send hello first"))??;
    match first.map(wire::decode_sidecar_message).transpose().map_err(invalid)? {
        Some(SidecarMessage::Hello { workload, version }) => Ok((workload, version)),
        _ => Err(Status::invalid_argument("the first message must be hello")),
    }
}

fn invalid(fault: WireError) -> Status {
    Status::invalid_argument(fault.to_string())
}

/// Waits until there is something new to tell. False: there never will be.
async fn changed(published: &mut watch::Receiver<Published>, bundle: &mut watch::Receiver<Arc<TrustBundle>>) -> bool {
    tokio::select! {
        changed = published.changed() => changed.is_ok(),
        Ok(()) = bundle.changed() => true,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn status(refused: &Refused) -> Status {
    let message = refused.to_string();
    match refused {
        Refused::NotReady => Status::unavailable(message),
        Refused::NotFound(_) => Status::not_found(message),
        Refused::Forbidden(_) | Refused::Denied => Status::permission_denied(message),
        Refused::TooMany(_) => Status::resource_exhausted(message),
    }
}
