//! Where the mesh's resources come from. Every source yields the same [`Batch`]es; what follows sees no difference.

use std::collections::BTreeSet;

use aws_lc_rs::digest;
use serde::Serialize;
use weft_api::resource::{EndpointSlice, NamespacedName, Resource, Route};
use weft_api::routing::RouteKind;
use weft_certs::SpiffeId;

pub mod denied;
pub mod directory;
pub mod file;
pub mod kubernetes;
pub mod last_good;
pub mod watch;

/// One of the two sources.
pub enum Source {
    /// A directory of YAML.
    Directory(directory::DirectorySource),
    /// The API of Kubernetes.
    Kubernetes(kubernetes::KubernetesSource),
}

impl Source {
    /// The next changes. `None`: its reader failed.
    pub async fn next(&mut self) -> Option<Batch> {
        match self {
            Self::Directory(source) => source.next().await,
            Self::Kubernetes(source) => source.next().await,
        }
    }
}

/// What a resource is called: its kind and name. Shown as `Service shop/orders`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name; the namespace is empty for kinds outside of namespaces.
    pub name: NamespacedName,
}

/// The kinds of resources that the mesh is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Core `Namespace`.
    Namespace,
    /// Core `Service`.
    Service,
    /// `Workload`.
    Workload,
    /// `AuthorizationPolicy`.
    AuthorizationPolicy,
    /// `RateLimitPolicy`.
    RateLimitPolicy,
    /// `EndpointSlice` of Kubernetes.
    EndpointSlice,
    /// Core `ServiceAccount`.
    ServiceAccount,
    /// Core `Pod`; what follows the source knows it as a Workload.
    Pod,
    /// `HTTPRoute` of the Gateway API.
    HttpRoute,
    /// `GRPCRoute` of the Gateway API.
    GrpcRoute,
    /// `ReferenceGrant` of the Gateway API.
    ReferenceGrant,
    /// Core `Node`, of which only the zone matters.
    Node,
}

/// Label of nodes and workloads: the zone that they are in.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

impl Kind {
    /// The kind's name in its API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Workload => "Workload",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RateLimitPolicy => "RateLimitPolicy",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::HttpRoute => RouteKind::Http.as_str(),
            Self::GrpcRoute => RouteKind::Grpc.as_str(),
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Node => "Node",
        }
    }
}

impl ResourceKey {
    /// The key of `resource`; `None` if the mesh has no use for it.
    pub fn of(resource: &Resource) -> Option<Self> {
        let kind = match resource {
            Resource::Namespace(_) => Kind::Namespace,
            Resource::Service(_) => Kind::Service,
            Resource::Workload(_) => Kind::Workload,
            Resource::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Resource::RateLimitPolicy(_) => Kind::RateLimitPolicy,
            Resource::Route(Route { kind: RouteKind::Http, .. }) => Kind::HttpRoute,
            Resource::Route(Route { kind: RouteKind::Grpc, .. }) => Kind::GrpcRoute,
            Resource::ReferenceGrant(_) => Kind::ReferenceGrant,
            Resource::Skipped(_) => return None,
        };
        Some(Self { kind, name: resource.name()? })
    }
}

impl std::fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.namespace.is_empty() {
            write!(f, "{} {}", self.kind.as_str(), self.name.name)
        } else {
            write!(f, "{} {}", self.kind.as_str(), self.name)
        }
    }
}

/// Of a policy's content: the same in every replica. `None`: this is no policy.
pub fn fingerprint(resource: &Resource) -> Option<u64> {
    let content = match resource {
        Resource::AuthorizationPolicy(policy) => policy.spec_json(),
        Resource::RateLimitPolicy(policy) => policy.spec_json(),
        _ => return None,
    };
    let hash = digest::digest(&digest::SHA256, content.to_string().as_bytes());
    hash.as_ref().first_chunk().map(|first| u64::from_be_bytes(*first))
}

/// One change of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A resource is new or different.
    Applied(Resource),
    /// A policy is new or different, and cannot be understood: it refuses every call in its namespace.
    Unreadable {
        /// Its kind and name.
        key: ResourceKey,
        /// What is wrong with it.
        why: String,
    },
    /// The ready addresses of a Service are new or different.
    EndpointSlice(EndpointSlice),
    /// A service account is there.
    ServiceAccount(NamespacedName),
    /// A node is there.
    Node {
        /// Its name.
        name: String,
        /// The zone that it is in, if it says so.
        zone: Option<String>,
    },
    /// A resource is gone.
    Removed(ResourceKey),
    /// The whole list of identities that are refused everywhere.
    DeniedIdentities(BTreeSet<SpiffeId>),
}

impl Event {
    /// What the event is about; `None` for one that stands for itself.
    pub fn key(&self) -> Option<ResourceKey> {
        let named = |kind, name: &NamespacedName| Some(ResourceKey { kind, name: name.clone() });
        match self {
            Self::Applied(resource) => ResourceKey::of(resource),
            Self::Unreadable { key, .. } | Self::Removed(key) => Some(key.clone()),
            Self::EndpointSlice(slice) => named(Kind::EndpointSlice, &slice.name),
            Self::ServiceAccount(name) => named(Kind::ServiceAccount, name),
            Self::Node { name, .. } => named(Kind::Node, &NamespacedName::new("", name.as_str())),
            Self::DeniedIdentities(_) => None,
        }
    }
}

/// Changes that belong together, and how the source fares.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What changed since the last batch.
    pub events: Vec<Event>,
    /// Every fault that is not mended now, not only new ones.
    pub errors: Vec<ConfigError>,
    /// Whether everything was read at least once. Until then something unknown is missing (it may be the policy that
    /// refuses), so sidecars must not be told what is known so far.
    pub complete: bool,
}

/// A fault in the resources. What was last read without fault stays in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ConfigError {
    /// Which file, as it is found from the resources directory.
    pub file: String,
    /// Which line of it, counted from 1, where known.
    pub line: Option<u64>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}
