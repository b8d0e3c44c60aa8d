//! What the replicas of a control plane tell each other: how the sidecars fare whose streams they have.
//!
//! Each sidecar streams with one replica, so what all sidecars run is known only from all replicas together. Only the
//! control plane's own identity is answered: the report names every workload of the mesh. Nothing that a replica hears
//! from another changes what a sidecar is told.
use std::sync::Arc;
use std::time::SystemTime;

use tonic::{Request, Response, Status};
use weft_api::wire::{self, proto};
use weft_certs::SpiffeId;

use crate::listener::ConnectionInfo;
use crate::publish::Publisher;

pub mod ask;
pub mod count;

/// The gRPC service `Replicas`.
pub struct ReplicasService {
    /// What is reported.
    pub publisher: Arc<Publisher>,
    /// The control plane's own identity.
    pub id: SpiffeId,
}

type Part = Result<proto::ReportPart, Status>;

#[tonic::async_trait]
impl proto::replicas_server::Replicas for ReplicasService {
    type ReportStream = tokio_stream::Iter<std::vec::IntoIter<Part>>;

    async fn report(&self, request: Request<proto::ReportRequest>) -> Result<Response<Self::ReportStream>, Status> {
        let peer = request.extensions().get::<ConnectionInfo>().and_then(|info| info.peer.clone());
        if !peer.is_some_and(|peer| peer.id == self.id && peer.not_after > SystemTime::now()) {
            return Err(Status::permission_denied("only another replica of this control plane may ask"));
        }
        let parts = wire::encode_report(&self.publisher.report(), request.get_ref().revision);
        Ok(Response::new(tokio_stream::iter(parts.into_iter().map(Ok).collect::<Vec<Part>>())))
    }
}
