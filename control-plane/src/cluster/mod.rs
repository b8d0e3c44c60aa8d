//! What there is only on Kubernetes: who we are there, and what the replicas of a control plane keep in its API.
//!
//! Nothing here decides what a sidecar may do. It writes what people and programs read (status, events, the trust bundle)
//! and agrees on who writes.

pub mod events;
pub mod lease;

/// This replica in its cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Reaches the API server with the replica's own service account.
    pub client: kube::Client,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Name of this replica's pod.
    pub pod: String,
    /// Name of the control plane's Service.
    pub service: String,
    /// Cluster-scoped object of the release that owns what is made at run time, so that uninstalling takes it away.
    /// `None`: what is made stays.
    pub owner: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>,
}
