//! Where the mesh's resources come from. Every source yields the same [`Batch`]es; what follows sees no difference.

use std::collections::BTreeSet;

use serde::Serialize;
use weft_api::resource::{NamespacedName, Resource};
use weft_certs::SpiffeId;

pub mod denied;
pub mod directory;
pub mod file;
pub mod kubernetes;
pub mod last_good;
pub mod watch;

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
            Resource::Skipped(_) => return None,
        };
        Some(Self { kind, name: resource.name()? })
    }
}

impl std::fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.namespace.is_empty() {
            write!(f, "{:?} {}", self.kind, self.name.name)
        } else {
            write!(f, "{:?} {}", self.kind, self.name)
        }
    }
}

/// One change of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A resource is new or different.
    Applied(Resource),
    /// A resource is gone.
    Removed(ResourceKey),
    /// The whole list of identities that are refused everywhere.
    DeniedIdentities(BTreeSet<SpiffeId>),
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
