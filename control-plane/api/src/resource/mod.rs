//! The resources: one file a kind, each parsed into a value that is valid.
//!
//! [`parse_documents`] is the one way in, for files and for objects of the Kubernetes API alike. What a kind of Weft's
//! own holds beyond the fields known here is refused, never ignored: a misspelt restriction must not become none.
use std::fmt;
use std::time::Duration;

mod authorization_policy;
mod crd;
mod document;
mod endpoint_slice;
mod error;
mod grpc_route;
mod http_route;
mod metadata;
mod name;
mod namespace;
pub(crate) mod node;
mod protocol;
mod rate_limit_policy;
mod reference_grant;
mod route;
mod schema;
mod service;
mod target;
mod traffic;
mod workload;
mod yaml;

pub use authorization_policy::{Action, AuthorizationPolicy, Caller, Condition, Mode, Operation, Rule};
pub use crd::crds;
pub use document::{MAX_TEXT_BYTES, Resource, Skipped, parse_documents};
pub use endpoint_slice::{EndpointSlice, SliceEndpoint, SlicePort};
pub use error::ResourceError;
pub use metadata::{DEFAULT_NAMESPACE, Metadata};
pub use namespace::{DEFAULT_POLICY_ANNOTATION, Namespace};
pub use protocol::PORT_PROTOCOLS_ANNOTATION;
pub use rate_limit_policy::{Limit, MAX_BURST, MAX_REQUESTS, MAX_WINDOW, RateLimitPolicy};
pub use reference_grant::{GrantFrom, GrantTo, ReferenceGrant};
pub use route::{ParentRef, Route};
pub use service::{Service, ServicePort, TargetPort};
pub use target::{Subject, Target};
pub use traffic::traffic_annotations;
pub use workload::{Workload, WorkloadPort};

pub(crate) use document::documents;
pub(crate) use yaml::parse_text;

/// `apiVersion` of Weft's own kinds.
pub const API_VERSION: &str = "policy.weft.dev/v1alpha1";

/// API group of the Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Whether `name` is a DNS label (RFC 1123): what a namespace, a Service or a rate limit may be called.
pub fn is_dns_label(name: &str) -> bool {
    name::is_label(name)
}

/// Whether `name` is a DNS subdomain (RFC 1123): what a workload, a service account or a policy may be called.
pub fn is_dns_subdomain(name: &str) -> bool {
    name::is_subdomain(name)
}

/// A resource's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespacedName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl NamespacedName {
    /// Puts the two together; nothing is checked.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What happens to calls that no policy speaks of (`weft.dev/default-policy` of the namespace).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DefaultPolicy {
    /// Refused.
    Deny,
    /// Allowed to callers with a mesh identity.
    #[default]
    Authenticated,
    /// Allowed to anyone.
    Allow,
}

impl DefaultPolicy {
    /// As the annotation has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Authenticated => "authenticated",
            Self::Allow => "allow",
        }
    }
    /// The policy of that name; `None`: there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Deny, Self::Authenticated, Self::Allow].into_iter().find(|policy| policy.as_str() == name)
    }
}

/// One limit of a RateLimitPolicy that applies to a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// The policy it stands in.
    pub policy: NamespacedName,
    /// Its name in the policy.
    pub name: String,
    /// Requests allowed in `window`.
    pub requests: u32,
    /// Over which `requests` are spread.
    pub window: Duration,
    /// Requests allowed at once after idleness (at least 1).
    pub burst: u32,
    /// Who shares the budget.
    pub per: LimitKey,
}

/// Who shares a limit's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// Each caller has its own: by SPIFFE ID, or by socket address without one.
    Client,
    /// All callers share one.
    All,
}
