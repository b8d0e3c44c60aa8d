//! Weft's own kinds in the API of Kubernetes, read as they are: this program shows also what it does not understand.
use kube::api::{Api, ApiResource, DynamicObject};

use super::client::Cluster;
use super::names::{API_VERSION, GROUP};

/// A kind of Weft's.
pub(super) struct PolicyKind {
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
}

impl PolicyKind {
    /// As kubectl takes it.
    pub(super) fn name(&self) -> String {
        format!("{}.{GROUP}", self.plural)
    }
}

pub(super) const AUTHORIZATION: PolicyKind =
    PolicyKind { kind: "AuthorizationPolicy", plural: "authorizationpolicies" };
pub(super) const RATE_LIMIT: PolicyKind = PolicyKind { kind: "RateLimitPolicy", plural: "ratelimitpolicies" };
pub(super) const WORKLOAD: PolicyKind = PolicyKind { kind: "Workload", plural: "workloads" };
pub(super) const ALL: [PolicyKind; 3] = [AUTHORIZATION, RATE_LIMIT, WORKLOAD];

/// The objects of a kind, in a namespace or in all.
pub(super) fn api(cluster: &Cluster, kind: &PolicyKind, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = resource(kind);
    match namespace {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    }
}

/// How the API server names a kind.
pub(super) fn resource(kind: &PolicyKind) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: API_VERSION.to_owned(),
        api_version: format!("{GROUP}/{API_VERSION}"),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    }
}
