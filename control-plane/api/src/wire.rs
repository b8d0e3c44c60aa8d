//! Between wire messages and domain types; no other module names a message's fields.
//!
//! What arrives is judged before it is used: an update with a fault is an error that names the field, and the sidecar
//! keeps what it had. A policy that cannot be understood is no such fault: it becomes one that refuses everything, so
//! that a sidecar which is older than the control plane stays safe and still learns where its peers are.
//!
//! The one rule: `apply(old, diff(old, new)) == new`.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_certs::TrustBundle;

use crate::resource::NamespacedName;
use crate::workload::{Inbound, MeshedWorkload, Service, WorkloadConfig};

mod decode;
mod encode;
mod message;
mod observed;
mod report;

pub use decode::{MAX_ADDRESSES, MAX_ENDPOINTS, MAX_POLICIES, MAX_PORTS, MAX_ROUTES};
pub use message::{
    SidecarMessage, SignRequest, decode_sidecar_message, decode_sign_request, decode_sign_response,
    encode_sidecar_message, encode_sign_request, encode_sign_response,
};
pub use observed::{MAX_OBSERVED, observed_parts};
pub use report::{decode_report_part, encode_report};

/// Generated messages, clients and servers.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("weft.v1alpha1");
}

/// Bytes of one message from the control plane (set it as the client's `max_decoding_message_size`).
pub const MAX_UPDATE_BYTES: usize = 8 << 20;

/// Bytes of one message from a sidecar (set it as the server's `max_decoding_message_size`).
pub const MAX_REQUEST_BYTES: usize = 64 << 10;

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct WireError {
    /// The field, such as `services[3].ports[0].protocol`.
    pub field: String,
    /// What is wrong with it; holds nothing of its content.
    pub message: String,
}

impl WireError {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The update that takes a sidecar from `old` to `new`; from nothing, a full one. It carries no trust bundle: see
/// [`set_bundle`].
///
/// `new.inbound.policy` must have been compiled with `new.denied_identities`: the list travels once.
pub fn diff(old: Option<&WorkloadConfig>, new: &WorkloadConfig, version: u64) -> proto::Update {
    let changed = |same: fn(&WorkloadConfig, &WorkloadConfig) -> bool| old.is_none_or(|old| !same(old, new));
    let inbound_changed = changed(|old, new| same_inbound(&old.inbound, &new.inbound));
    let denied_changed = changed(|old, new| old.denied_identities == new.denied_identities);
    let (services, removed_services) = changes(old.map(|old| &old.services), &new.services);
    let (meshed, removed) = changes(old.map(|old| &old.meshed_workloads), &new.meshed_workloads);
    let meshed_changed = old.is_none() || !meshed.is_empty() || !removed.is_empty();
    proto::Update {
        version,
        full: old.is_none(),
        inbound: inbound_changed.then(|| encode::inbound(&new.inbound)),
        services: services.into_iter().map(encode::service).collect(),
        removed_services,
        meshed_workloads: meshed_changed.then(|| encode::meshed_workloads(&meshed, removed)),
        bundle: None,
        denied_identities: denied_changed.then(|| encode::denied_identities(&new.denied_identities)),
    }
}

/// What is new or different, and the names of what is gone. Costs nothing where both are one map, and little where most
/// values are the same by address, which is how a control plane tells many sidecars of one mesh.
fn changes<'a, T: PartialEq>(
    old: Option<&Arc<BTreeMap<NamespacedName, Arc<T>>>>,
    new: &'a Arc<BTreeMap<NamespacedName, Arc<T>>>,
) -> (Vec<&'a T>, Vec<String>) {
    if old.is_some_and(|old| Arc::ptr_eq(old, new)) {
        return Default::default();
    }
    let same = |name, value: &Arc<T>| {
        old.and_then(|old| old.get(name)).is_some_and(|known| Arc::ptr_eq(known, value) || known == value)
    };
    let differing = new.iter().filter(|(name, value)| !same(name, value)).map(|(_, value)| &**value).collect();
    let gone = old.iter().flat_map(|old| old.keys()).filter(|name| !new.contains_key(*name));
    (differing, gone.map(ToString::to_string).collect())
}

/// Whether an update changes nothing, so that it need not be sent.
pub fn is_empty(update: &proto::Update) -> bool {
    let proto::Update {
        version: _,
        full,
        inbound,
        services,
        removed_services,
        meshed_workloads,
        bundle,
        denied_identities,
    } = update;
    !full
        && inbound.is_none()
        && services.is_empty()
        && removed_services.is_empty()
        && meshed_workloads.is_none()
        && bundle.is_none()
        && denied_identities.is_none()
}

/// What a sidecar that has `current` has after `update`. The trust bundle is read by [`bundle`].
///
/// # Errors
/// The field at fault. Nothing of the update is to be used then.
pub fn apply(current: Option<&WorkloadConfig>, update: &proto::Update) -> Result<WorkloadConfig, WireError> {
    let current = if update.full { None } else { current };
    if !update.full && current.is_none() {
        return Err(WireError::new("full", "the first update of a stream must be full"));
    }
    let missing = |field| WireError::new(field, "missing in a full update");
    let denied = match (&update.denied_identities, current) {
        (Some(message), _) => Arc::new(decode::denied_identities(message)?),
        (None, Some(current)) => current.denied_identities.clone(),
        (None, None) => return Err(missing("denied_identities")),
    };
    let inbound = match (&update.inbound, current) {
        (Some(message), _) => decode::inbound(message, &denied)?,
        (None, Some(current)) => with_denied(&current.inbound, &denied),
        (None, None) => return Err(missing("inbound")),
    };
    if current.is_none() && update.meshed_workloads.is_none() {
        return Err(missing("meshed_workloads"));
    }
    let meshed_workloads = patched(
        current.map(|current| &current.meshed_workloads),
        update.meshed_workloads.iter().flat_map(|message| &message.removed),
        decode::meshed_workloads(update.meshed_workloads.as_ref())?,
        ("meshed_workloads", decode::MAX_WORKLOADS),
        |workload: &MeshedWorkload| &workload.name,
    )?;
    let services = patched(
        current.map(|current| &current.services),
        &update.removed_services,
        decode::services(&update.services)?,
        ("services", decode::MAX_SERVICES),
        |service: &Service| &service.name,
    )?;
    Ok(WorkloadConfig { inbound, services, meshed_workloads, denied_identities: denied })
}

/// `current` without what is `removed` and with what is `changed`; the very same map if nothing is.
fn patched<'a, T>(
    current: Option<&Arc<BTreeMap<NamespacedName, Arc<T>>>>,
    removed: impl IntoIterator<Item = &'a String>,
    changed: Vec<T>,
    (field, most): (&str, usize),
    name: impl Fn(&T) -> &NamespacedName,
) -> Result<Arc<BTreeMap<NamespacedName, Arc<T>>>, WireError> {
    let mut all = current.cloned().unwrap_or_default();
    for (index, gone) in removed.into_iter().enumerate() {
        let gone = decode::reference(gone, || format!("removed_{field}[{index}]"))?;
        Arc::make_mut(&mut all).remove(&gone);
    }
    let mut named = BTreeSet::new();
    for (index, value) in changed.into_iter().enumerate() {
        let name = name(&value).clone();
        if !named.insert(name.clone()) {
            return Err(WireError::new(format!("{field}[{index}].name"), "named twice in one update"));
        }
        Arc::make_mut(&mut all).insert(name, Arc::new(value));
    }
    decode::bounded(field, all.len(), most)?;
    Ok(all)
}

/// Puts a trust bundle into an update.
pub fn set_bundle(update: &mut proto::Update, bundle: &TrustBundle) {
    update.bundle = Some(encode::bundle(bundle));
}

/// The trust bundle of an update; `None`: it has not changed.
///
/// # Errors
/// The field at fault.
pub fn bundle(update: &proto::Update) -> Result<Option<TrustBundle>, WireError> {
    update.bundle.as_ref().map(|message| decode::bundle(message, "bundle")).transpose()
}

/// Equal but for the denied identities that the policies were compiled with: those travel by themselves.
fn same_inbound(a: &Inbound, b: &Inbound) -> bool {
    let same_policy = Arc::ptr_eq(&a.policy, &b.policy)
        || (a.policy.default_policy() == b.policy.default_policy() && a.policy.policies() == b.policy.policies());
    same_policy
        && a.namespace == b.namespace
        && a.workload == b.workload
        && a.service_account == b.service_account
        && a.services == b.services
        && a.rate_limits == b.rate_limits
        && a.ports == b.ports
}

fn with_denied(inbound: &Inbound, denied: &Arc<Vec<weft_certs::SpiffeId>>) -> Inbound {
    let mut inbound = inbound.clone();
    if inbound.policy.denied() != denied {
        inbound.policy = Arc::new(inbound.policy.with_denied(denied.clone()));
    }
    inbound
}
