//! The resources: one file a kind, each parsed into a value that is valid.
use std::fmt;
use std::time::Duration;

/// A resource's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
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
