//! `ReferenceGrant` of the Gateway API: which routes of other namespaces may name Services of this one.
use super::metadata::Scope;
use super::node::{At, Fields, Shape};
use super::route::at_most;
use super::{Metadata, NamespacedName, ResourceError, name};

const SPEC: Shape = Shape { known: &["from", "to"], later: &[] };
const FROM: Shape = Shape { known: &["group", "kind", "namespace"], later: &[] };
const TO: Shape = Shape { known: &["group", "kind", "name"], later: &[] };
/// Entries of `from` and of `to`.
const MAX_ENTRIES: usize = 16;

/// A ReferenceGrant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Its name; it grants what is in its namespace.
    pub name: NamespacedName,
    /// Who may refer.
    pub from: Vec<GrantFrom>,
    /// To what.
    pub to: Vec<GrantTo>,
}

/// Objects of one kind and namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantFrom {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// Objects of one kind in the grant's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantTo {
    /// API group; empty for Kubernetes' own.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name; `None`: all of that kind.
    pub name: Option<String>,
}

impl ReferenceGrant {
    /// Whether a route of `kind` in `namespace` may name `service`, which must be in the grant's own namespace.
    pub fn permits(&self, kind: &str, namespace: &str, service: &NamespacedName) -> bool {
        let from =
            |from: &GrantFrom| from.group == super::GATEWAY_GROUP && from.kind == kind && from.namespace == namespace;
        let to = |to: &GrantTo| {
            matches!(to.group.as_str(), "" | "core")
                && to.kind == "Service"
                && to.name.as_ref().is_none_or(|name| *name == service.name)
        };
        self.name.namespace == service.namespace && self.from.iter().any(from) && self.to.iter().any(to)
    }

    pub(crate) fn parse(document: &Fields<'_>) -> Result<Self, ResourceError> {
        let name = Metadata::parse(document, Scope::Own)?.name;
        let spec = document.require("spec", "Write `spec: {from: …, to: …}`.")?.closed(&SPEC)?;
        spec.require("from", "List who may refer to Services here.")?;
        spec.require("to", "List what may be referred to, such as `{group: \"\", kind: Service}`.")?;
        let text = |fields: &Fields<'_>, key, remedy| -> Result<String, ResourceError> {
            Ok(fields.require(key, remedy)?.text()?.to_owned())
        };
        let from = |at: &At<'_>| {
            let fields = at.closed(&FROM)?;
            Ok(GrantFrom {
                group: text(&fields, "group", "Write `gateway.networking.k8s.io`.")?,
                kind: text(&fields, "kind", "Write `HTTPRoute` or `GRPCRoute`.")?,
                namespace: name::label(&fields.require("namespace", "Write whose routes are meant.")?)?.to_owned(),
            })
        };
        let to = |at: &At<'_>| {
            let fields = at.closed(&TO)?;
            let name = fields.get_non_null("name").map(|at| at.text().map(str::to_owned)).transpose()?;
            Ok(GrantTo {
                group: text(&fields, "group", "Write `\"\"`, the group of Services.")?,
                kind: text(&fields, "kind", "Write `Service`.")?,
                name: name.filter(|name| !name.is_empty()),
            })
        };
        Ok(Self {
            name,
            from: at_most(&spec, "from", MAX_ENTRIES)?.iter().map(from).collect::<Result<_, _>>()?,
            to: at_most(&spec, "to", MAX_ENTRIES)?.iter().map(to).collect::<Result<_, _>>()?,
        })
    }
}
