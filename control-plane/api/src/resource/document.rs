//! From a text of YAML documents (JSON is a part of YAML) to resources.
//!
//! A document that is broken never hides those beside it, and no text costs more than its size warrants: the size, the
//! depth, the number of values and the expansion of aliases are bounded before anything is built.
use super::error::{listed, nearest, quoted};
use super::metadata;
use super::node::{At, Fields, Node, Shape, Value};
use super::yaml::parse_text;
use super::{
    API_VERSION, AuthorizationPolicy, Namespace, NamespacedName, RateLimitPolicy, ReferenceGrant, ResourceError, Route,
    Service, Workload,
};
use crate::routing::RouteKind;

/// Bytes that a text may have.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// Documents that a text may have.
const MAX_DOCUMENTS: usize = 5_000;
/// The document's own fields; `status` is written by the control plane and not read.
pub(crate) const DOCUMENT: Shape = Shape { known: &["apiVersion", "kind", "metadata", "spec", "status"], later: &[] };

const KINDS: &[&str] = &[
    "AuthorizationPolicy",
    "GRPCRoute",
    "HTTPRoute",
    "Namespace",
    "RateLimitPolicy",
    "ReferenceGrant",
    "Service",
    "Workload",
];

/// Kinds of the design that this version does not have. They are refused: skipping one could widen access.
const LATER_KINDS: &[&str] = &["EgressPolicy", "PeerAuthentication", "RequestAuthentication"];

/// Versions of the Gateway API that are read, the one to write first: the same fields in each.
const GATEWAY_VERSIONS: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];

/// Kinds that stand in the same files and mean nothing to the mesh.
const SKIPPED_KINDS: &[&str] = &[
    "APIService",
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "ControllerRevision",
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "EndpointSlice",
    "Endpoints",
    "Event",
    "Gateway",
    "GatewayClass",
    "HorizontalPodAutoscaler",
    "Ingress",
    "IngressClass",
    "Job",
    "Lease",
    "LimitRange",
    "MutatingWebhookConfiguration",
    "NetworkPolicy",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodDisruptionBudget",
    "PodTemplate",
    "PriorityClass",
    "ReplicaSet",
    "ReplicationController",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "RuntimeClass",
    "Secret",
    "ServiceAccount",
    "StatefulSet",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Core `Namespace`.
    Namespace(Namespace),
    /// Core `Service`.
    Service(Service),
    /// `Workload`.
    Workload(Workload),
    /// `AuthorizationPolicy`.
    AuthorizationPolicy(AuthorizationPolicy),
    /// `RateLimitPolicy`.
    RateLimitPolicy(RateLimitPolicy),
    /// `HTTPRoute` or `GRPCRoute`.
    Route(Route),
    /// `ReferenceGrant`.
    ReferenceGrant(ReferenceGrant),
    /// A kind of Kubernetes that means nothing to the mesh.
    Skipped(Skipped),
}

/// A document that was read over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Line where it begins, from 1.
    pub line: usize,
    /// Its kind.
    pub kind: String,
    /// Its name, if it could be read.
    pub name: Option<NamespacedName>,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {} is skipped: the mesh has no use for it", self.line, self.kind)
    }
}

impl Resource {
    /// The kind.
    pub fn kind(&self) -> &str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::Service(_) => "Service",
            Self::Workload(_) => "Workload",
            Self::AuthorizationPolicy(_) => "AuthorizationPolicy",
            Self::RateLimitPolicy(_) => "RateLimitPolicy",
            Self::Route(route) => route.kind.as_str(),
            Self::ReferenceGrant(_) => "ReferenceGrant",
            Self::Skipped(skipped) => &skipped.kind,
        }
    }

    /// The name (for a Namespace with an empty namespace); `None` for a skipped document that has none.
    pub fn name(&self) -> Option<NamespacedName> {
        match self {
            Self::Namespace(namespace) => Some(NamespacedName::new("", &namespace.name)),
            Self::Service(service) => Some(service.name.clone()),
            Self::Workload(workload) => Some(workload.name.clone()),
            Self::AuthorizationPolicy(policy) => Some(policy.name.clone()),
            Self::RateLimitPolicy(policy) => Some(policy.name.clone()),
            Self::Route(route) => Some(route.name.clone()),
            Self::ReferenceGrant(grant) => Some(grant.name.clone()),
            Self::Skipped(skipped) => skipped.name.clone(),
        }
    }
}

/// Reads all documents of `text`, in their order; the items of a `kind: List` count as documents.
///
/// Limits: [`MAX_TEXT_BYTES`], 5,000 documents, 64 levels of nesting. Empty documents are passed over, but a text in
/// which there is no resource at all is an error: a file that an editor is about to write must not pass for one whose
/// policies were all deleted.
pub fn parse_documents(text: &str) -> Vec<Result<Resource, ResourceError>> {
    if text.len() > MAX_TEXT_BYTES {
        let message = format!("the text has {} bytes", text.len());
        let remedy = format!("Write at most {MAX_TEXT_BYTES} bytes; split it into several files.");
        return vec![Err(ResourceError::new(0, message, remedy))];
    }
    let documents = split(text);
    if documents.len() > MAX_DOCUMENTS {
        let message = format!("the text has {} documents", documents.len());
        let remedy = format!("Write at most {MAX_DOCUMENTS}; split it into several files.");
        return vec![Err(ResourceError::new(0, message, remedy))];
    }
    let mut resources = Vec::new();
    for document in documents {
        match parse_text(document.text, document.lines_before) {
            Ok(node) => documents_of(&node, &mut resources),
            Err(error) => resources.push(Err(error)),
        }
    }
    if resources.is_empty() {
        let message = "the text holds no resource";
        resources.push(Err(ResourceError::new(1, message, "Write one, or delete the file.")));
    }
    resources
}

/// A document's text, and how many lines stand before it.
struct Document<'t> {
    text: &'t str,
    lines_before: usize,
}

/// The documents of `text` that have content, each with the number of lines before it.
pub(crate) fn documents(text: &str) -> Vec<(&str, usize)> {
    split(text).into_iter().map(|document| (document.text, document.lines_before)).collect()
}

/// Splits at the markers `---` and `...`, which YAML allows at the start of a line for nothing else (YAML 1.2 section
/// 9.1.2), so that each document is parsed by itself. Documents without content are left out.
fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut has_content) = (0, 0, false);
    let mut at = 0;
    for (line_number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker = |marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest: &str| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        let begins = is_marker("---");
        if begins || is_marker("...") {
            if has_content {
                documents.push(Document { text: &text[start..at], lines_before: start_line });
            }
            // What stands behind `---` on its line belongs to the document; `...` belongs to none.
            (start, start_line) = if begins { (at, line_number) } else { (at + line.len(), line_number + 1) };
            has_content = begins && !is_blank(&line[3..]);
        } else {
            has_content |= !is_blank(line) && !line.starts_with('%');
        }
        at += line.len();
    }
    if has_content {
        documents.push(Document { text: &text[start..], lines_before: start_line });
    }
    documents
}

/// Whether a line holds nothing but space and a comment.
fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// Adds the resource of a document, or those of a List.
fn documents_of(node: &Node, resources: &mut Vec<Result<Resource, ResourceError>>) {
    if matches!(node.value, Value::Null) {
        return;
    }
    if node.field("kind").and_then(Node::as_text) == Some("List")
        && let Some(Node { value: Value::List(items), .. }) = node.field("items")
    {
        resources.extend(items.iter().map(resource));
        return;
    }
    resources.push(resource(node));
}

fn resource(node: &Node) -> Result<Resource, ResourceError> {
    let kind = node.field("kind").and_then(Node::as_text);
    let kind = KINDS.iter().copied().find(|known| Some(*known) == kind);
    parse(node).map_err(|mut error| {
        error.kind = kind;
        error.name = kind.and_then(|_| metadata::hint(node));
        if kind == Some("Namespace")
            && let Some(name) = &mut error.name
        {
            name.namespace.clear();
        }
        error
    })
}

fn parse(node: &Node) -> Result<Resource, ResourceError> {
    let document = At::new("", node);
    let Value::Object(_) = node.value else {
        return Err(ResourceError::new(
            node.line,
            "the document is not a resource",
            "Write `apiVersion`, `kind` and `metadata`.",
        ));
    };
    let fields = document.open()?;
    let kind_at = fields.require("kind", &format!("Write `kind`, one of {}.", listed(KINDS.iter().copied())))?;
    let kind = kind_at.text()?;
    let version = match fields.get("apiVersion") {
        Some(at) => at.text()?,
        None => "",
    };
    let group = version.split_once('/').map_or("", |(group, _)| group);
    if SKIPPED_KINDS.contains(&kind) && group != "policy.weft.dev" {
        return Ok(Resource::Skipped(Skipped { line: node.line, kind: kind.to_owned(), name: metadata::hint(node) }));
    }
    if LATER_KINDS.contains(&kind) {
        return Err(kind_at.error(
            format_args!("is `{kind}`, which is not supported by this version"),
            format!("Take it out; the kinds are {}.", listed(KINDS.iter().copied())),
        ));
    }
    let expected = match kind {
        "Namespace" | "Service" => &["v1"],
        "AuthorizationPolicy" | "RateLimitPolicy" | "Workload" => &[API_VERSION],
        "GRPCRoute" => &GATEWAY_VERSIONS[..1],
        "HTTPRoute" | "ReferenceGrant" => GATEWAY_VERSIONS,
        _ => {
            let remedy = match nearest(kind, KINDS.iter().copied()) {
                Some(right) => format!("Write `{right}`."),
                None => format!("The kinds are {}.", listed(KINDS.iter().copied())),
            };
            return Err(kind_at.error(format_args!("is {}, which is not a known kind", quoted(kind)), remedy));
        }
    };
    let version_at = fields.require("apiVersion", &format!("Write `apiVersion: {}`.", expected[0]))?;
    if !expected.contains(&version) {
        return Err(version_at.error(format_args!("is {}", quoted(version)), format!("Write `{}`.", expected[0])));
    }
    let own = |parse: fn(&Fields<'_>) -> Result<Resource, ResourceError>| parse(&document.closed(&DOCUMENT)?);
    match kind {
        "Namespace" => Namespace::parse(&fields).map(Resource::Namespace),
        "Service" => Service::parse(&fields).map(Resource::Service),
        "Workload" => own(|fields| Workload::parse(fields).map(Resource::Workload)),
        "RateLimitPolicy" => own(|fields| RateLimitPolicy::parse(fields).map(Resource::RateLimitPolicy)),
        "HTTPRoute" => own(|fields| Route::parse(RouteKind::Http, fields).map(Resource::Route)),
        "GRPCRoute" => own(|fields| Route::parse(RouteKind::Grpc, fields).map(Resource::Route)),
        "ReferenceGrant" => own(|fields| ReferenceGrant::parse(fields).map(Resource::ReferenceGrant)),
        _ => own(|fields| AuthorizationPolicy::parse(fields).map(Resource::AuthorizationPolicy)),
    }
}
