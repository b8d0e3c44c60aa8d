//! What there is only on Kubernetes: who we are there, and what the replicas of a control plane keep in its API.
//!
//! Nothing here decides what a sidecar may do. It writes what people and programs read (status, events, the trust bundle)
//! and agrees on who writes.
use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Api, Client};

pub mod authority;
pub mod events;
pub mod lease;
pub mod others;
pub mod status;

pub mod namespaces;
pub mod trust_bundle;
pub mod webhook_secret;
pub mod webhooks;

/// This replica in its cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Reaches the API server with the replica's own service account.
    pub client: Client,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Name of this replica's pod.
    pub pod: String,
    /// Name of the control plane's Service.
    pub service: String,
    /// Cluster-scoped object of the release that owns what is made at run time, so that uninstalling takes it away.
    /// `None`: what is made stays.
    pub owner: Option<OwnerReference>,
}

/// A reference to the ClusterRole `name`, by which the garbage collector knows what belongs to the release.
///
/// # Errors
/// The API server cannot be asked, or there is none.
pub async fn owner(client: &Client, name: &str) -> kube::Result<OwnerReference> {
    let role = Api::<ClusterRole>::all(client.clone()).get(name).await?;
    Ok(OwnerReference {
        api_version: "rbac.authorization.k8s.io/v1".to_owned(),
        kind: "ClusterRole".to_owned(),
        name: name.to_owned(),
        uid: role.metadata.uid.unwrap_or_default(),
        block_owner_deletion: None,
        controller: None,
    })
}

/// Labels of what the control plane makes.
pub fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "weft".to_owned())])
}

/// Whether the API server refused because somebody else was faster.
pub fn is_conflict(fault: &kube::Error) -> bool {
    matches!(fault, kube::Error::Api(status) if status.code == 409)
}
