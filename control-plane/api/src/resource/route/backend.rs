//! `backendRefs`, and the backend of a mirror.
use super::super::error::quoted;
use super::super::node::{At, Fields, Shape};
use super::super::{NamespacedName, ResourceError, name};
use super::{Filters, MAX_PARTS, at_most, filters, is_service, namespace};
use crate::routing::Backend;

const BACKEND: Shape =
    Shape { known: &["group", "kind", "namespace", "name", "port", "weight", "filters"], later: &[] };
const MIRRORED: Shape = Shape { known: &["group", "kind", "namespace", "name", "port"], later: &[] };

/// Greatest weight.
const MAX_WEIGHT: u32 = 1_000_000;

/// `backendRefs` of a rule of a route in `home`, with filters of those that `kinds` holds.
pub(crate) fn backends(
    rule: &Fields<'_>,
    home: &str,
    kinds: &Filters,
    refused: &mut Option<String>,
) -> Result<Vec<Backend>, ResourceError> {
    let mut backends = Vec::new();
    for at in at_most(rule, "backendRefs", MAX_PARTS)? {
        let fields = at.closed(&BACKEND)?;
        let mut backend = reference(&fields, home)?;
        if let Some(weight) = fields.get_non_null("weight") {
            backend.weight = weight.integer(0..=MAX_WEIGHT)?;
        }
        backend.filters = filters(&fields, home, kinds, true, refused)?;
        backends.push(backend);
    }
    Ok(backends)
}

/// Where a mirror sends to.
pub(super) fn mirrored(at: &At<'_>, home: &str) -> Result<Backend, ResourceError> {
    reference(&at.closed(&MIRRORED)?, home)
}

fn reference(fields: &Fields<'_>, home: &str) -> Result<Backend, ResourceError> {
    let text = |key| fields.get_non_null(key).map(|at: At<'_>| at.text()).transpose();
    let group = text("group")?.unwrap_or_default();
    let kind = text("kind")?.unwrap_or("Service");
    let name_at = fields.require("name", "Write the name of a Service.")?;
    let namespace = namespace(fields)?.unwrap_or_else(|| home.to_owned());
    let port = fields.get_non_null("port").map(|at| at.port()).transpose()?;
    let (name, port, refused) = if is_service(group, kind) {
        let missing = || fields.require("port", "Write the Service's port.").map(|at| at.port());
        (name::subdomain(&name_at)?, port.map_or_else(|| missing()?, Ok)?, None)
    } else {
        let kind = if group.is_empty() { kind.to_owned() } else { format!("{group}/{kind}") };
        let why =
            format!("{} {} is no Service, and nothing else can be sent to", quoted(&kind), quoted(name_at.text()?));
        (name_at.text()?, port.unwrap_or_default(), Some(why))
    };
    Ok(Backend { service: NamespacedName::new(namespace, name), port, weight: 1, filters: Vec::new(), refused })
}
