//! What one replica of the control plane tells the others: how the sidecars fare whose streams it has.
//!
//! Each sidecar streams with one replica, so only all reports together say who runs what.
use std::collections::BTreeMap;

use crate::resource::NamespacedName;

/// All that one replica knows. [`crate::wire`] carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Differs whenever the rest does, also after a restart. Never 0.
    pub revision: u64,
    /// The sidecars that it has seen, by workload.
    pub sidecars: BTreeMap<NamespacedName, SidecarReport>,
    /// The policies that it has in force, each with the fingerprint of its content: a replica whose watch lags must not
    /// confirm what it has not heard of.
    pub policies: BTreeMap<PolicyName, u64>,
}

/// What a policy is called among all policies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyName {
    /// Its kind, such as `AuthorizationPolicy`.
    pub kind: String,
    /// Its name.
    pub name: NamespacedName,
}

/// What a replica knows of one workload's sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SidecarReport {
    /// Whether it listens to this replica now.
    pub connected: bool,
    /// Whether it said that it is about to stop.
    pub draining: bool,
    /// Whether it runs what this replica has for it now.
    pub current: bool,
    /// The version that is meant for it.
    pub version: Option<u64>,
    /// The version that it applied last.
    pub confirmed: Option<u64>,
    /// When the certificate of its stream expires, seconds since 1970.
    pub certificate_expiry: u64,
    /// Since when it has been away from this replica, seconds since 1970; `None`: it is connected.
    pub disconnected_since: Option<u64>,
    /// Why it refused the last update.
    pub error: Option<String>,
}
