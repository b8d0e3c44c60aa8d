//! `metadata` of a resource.
use std::collections::BTreeMap;

use super::node::{At, Fields, Node, Shape};
use super::{NamespacedName, ResourceError, name};

/// The namespace of a resource that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Fields of Kubernetes' ObjectMeta; all but the first four are written by the API server and not read here.
const SHAPE: Shape = Shape {
    known: &[
        "name",
        "namespace",
        "labels",
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ],
    later: &[],
};

/// What is read of `metadata`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Namespace (`default` if none is written; empty for a cluster-wide kind) and name.
    pub name: NamespacedName,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// How strictly a kind's metadata is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// A kind of Kubernetes without namespace; its name is a DNS label.
    Cluster,
    /// A kind of Kubernetes in a namespace.
    Core,
    /// A kind of ours: unknown fields are refused.
    Own,
}

/// Namespace and name as far as they can be read, for error messages.
pub(crate) fn hint(document: &Node) -> Option<NamespacedName> {
    let metadata = document.field("metadata")?;
    let name = metadata.field("name")?.as_text().filter(|name| name::is_subdomain(name))?;
    let namespace = match metadata.field("namespace").and_then(Node::as_text) {
        Some(namespace) if name::is_label(namespace) => namespace,
        Some(_) => return None,
        None => DEFAULT_NAMESPACE,
    };
    Some(NamespacedName { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// The annotation `key` of a document whose metadata has it.
pub(crate) fn annotation<'n>(document: &Fields<'n>, key: &str) -> Option<At<'n>> {
    document.get("metadata")?.open().ok()?.get("annotations")?.open().ok()?.get(key)
}

impl Metadata {
    pub(crate) fn parse(document: &Fields<'_>, scope: Scope) -> Result<Self, ResourceError> {
        let at = document.require("metadata", "Write `metadata: {name: …}`.")?;
        let fields = if scope == Scope::Own { at.closed(&SHAPE)? } else { at.open()? };
        let name_at = fields.require("name", "Write a name below `metadata`.")?;
        let name = if scope == Scope::Cluster { name::label(&name_at)? } else { name::subdomain(&name_at)? };
        let namespace = match fields.get_non_null("namespace") {
            _ if scope == Scope::Cluster => "",
            Some(at) => name::label(&at)?,
            None => DEFAULT_NAMESPACE,
        };
        let texts = |key| fields.get_non_null(key).map(|at: At<'_>| at.text_map()).transpose();
        let labels = texts("labels")?.unwrap_or_default();
        if scope == Scope::Own {
            let at = fields.get_non_null("labels");
            check_labels(at.as_ref(), &labels)?;
        }
        Ok(Self {
            name: NamespacedName { namespace: namespace.to_owned(), name: name.to_owned() },
            labels,
            annotations: texts("annotations")?.unwrap_or_default(),
        })
    }
}

/// Refuses labels that Kubernetes would refuse.
pub(crate) fn check_labels(at: Option<&At<'_>>, labels: &BTreeMap<String, String>) -> Result<(), ResourceError> {
    let Some(at) = at else { return Ok(()) };
    match labels.iter().find(|(key, value)| !name::is_metadata_label(key, value)) {
        None => Ok(()),
        Some((key, value)) => Err(at.error(
            format_args!(
                "holds {}: {}, which is not a label",
                super::error::quoted(key),
                super::error::quoted(value)
            ),
            "Write keys and values of up to 63 letters, digits, `-`, `_` and `.`; a key may have a `domain/` before it.",
        )),
    }
}
