//! What the replicas of a control plane tell each other: how the sidecars fare whose streams they have, and which calls
//! those judged.
//!
//! Each sidecar streams with one replica, so what all sidecars run is known only from all replicas together. Only the
//! control plane's own identity is answered: the report names every workload of the mesh. Nothing that a replica hears
//! from another changes what a sidecar is told.
use std::sync::Arc;
use std::time::SystemTime;

use tonic::{Request, Response, Status};
use weft_api::observation::CallList;
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
type CallsPart = Result<proto::CallsPart, Status>;
/// Rows of one part of the calls: with the longest texts it stays within [`wire::MAX_UPDATE_BYTES`].
const CALLS_OF_A_PART: usize = 500;

#[tonic::async_trait]
impl proto::replicas_server::Replicas for ReplicasService {
    type ReportStream = tokio_stream::Iter<std::vec::IntoIter<Part>>;

    type CallsStream = tokio_stream::Iter<std::vec::IntoIter<CallsPart>>;

    async fn report(&self, request: Request<proto::ReportRequest>) -> Result<Response<Self::ReportStream>, Status> {
        self.only_replicas(&request)?;
        let parts = wire::encode_report(&self.publisher.report(), request.get_ref().revision);
        Ok(Response::new(tokio_stream::iter(parts.into_iter().map(Ok).collect::<Vec<Part>>())))
    }

    async fn calls(&self, request: Request<proto::CallsRequest>) -> Result<Response<Self::CallsStream>, Status> {
        self.only_replicas(&request)?;
        let mut list = self.publisher.judged_calls(request.get_ref().hours);
        let calls = std::mem::take(&mut list.calls);
        let rows = calls.chunks(CALLS_OF_A_PART).map(|rows| CallList { calls: rows.to_vec(), ..CallList::default() });
        let parts = std::iter::once(list).chain(rows).map(|part| match serde_json::to_vec(&part) {
            Ok(json) => Ok(proto::CallsPart { json }),
            Err(fault) => Err(Status::internal(fault.to_string())),
        });
        Ok(Response::new(tokio_stream::iter(parts.collect::<Vec<CallsPart>>())))
    }
}

impl ReplicasService {
    fn only_replicas<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let peer = request.extensions().get::<ConnectionInfo>().and_then(|info| info.peer.clone());
        match peer.is_some_and(|peer| peer.id == self.id && peer.not_after > SystemTime::now()) {
            true => Ok(()),
            false => Err(Status::permission_denied("only another replica of this control plane may ask")),
        }
    }
}
