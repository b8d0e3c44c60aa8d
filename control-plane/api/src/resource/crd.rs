//! The CustomResourceDefinitions of Weft's own kinds, made from what their parsers read.
//!
//! A definition never refuses what the parser accepts, and never lets the API server drop a field of a spec silently: see
//! [`Schema::object`]. Its rules keep to the CEL of Kubernetes 1.29, the first that starts native sidecars by itself.
use serde_json::{Value, json};

use super::document::DOCUMENT;
use super::schema::Schema;
use super::{API_VERSION, AuthorizationPolicy, RateLimitPolicy, Workload};

/// The definitions of all kinds, ready for the Kubernetes API.
pub fn crds() -> Vec<Value> {
    KINDS.iter().map(Kind::definition).collect()
}

/// What the definition of a kind is made from.
struct Kind {
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    /// With a `w` before it, because other meshes have kinds of the same name, and kubectl would show one of the two.
    short: &'static str,
    description: &'static str,
    spec: fn() -> Schema,
    /// Name, type, JSON path, and whether `kubectl get` shows it only with `-o wide`.
    columns: &'static [(&'static str, &'static str, &'static str, Shown)],
}

/// When `kubectl get` shows a column. The numbers are Kubernetes'.
#[derive(Clone, Copy)]
enum Shown {
    Always = 0,
    Wide = 1,
}

/// A JSON path of a column gives one value: a list as a whole is shown whole, one item of it would hide the others.
const KINDS: &[Kind] = &[
    Kind {
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        singular: "authorizationpolicy",
        short: "wap",
        description: "AuthorizationPolicy says who may call what in its namespace.",
        spec: AuthorizationPolicy::schema,
        columns: &[
            ("Action", "string", ".spec.action", Shown::Always),
            ("Mode", "string", ".spec.mode", Shown::Always),
            ("Services", "string", ".spec.targetRefs", Shown::Wide),
            ("Labels", "string", ".spec.selector.matchLabels", Shown::Wide),
        ],
    },
    Kind {
        kind: "RateLimitPolicy",
        plural: "ratelimitpolicies",
        singular: "ratelimitpolicy",
        short: "wrl",
        description: "RateLimitPolicy says how often workloads of its namespace may be called.",
        spec: RateLimitPolicy::schema,
        columns: &[
            ("Services", "string", ".spec.targetRefs", Shown::Wide),
            ("Labels", "string", ".spec.selector.matchLabels", Shown::Wide),
            ("Limits", "string", ".spec.limits", Shown::Wide),
        ],
    },
    Kind {
        kind: "Workload",
        plural: "workloads",
        singular: "workload",
        short: "wwl",
        description: "Workload is a process that takes part in the mesh without being a pod.",
        spec: Workload::schema,
        columns: &[
            ("Addresses", "string", ".spec.addresses", Shown::Always),
            ("Service Account", "string", ".spec.serviceAccount", Shown::Always),
            ("Mesh", "boolean", ".spec.mesh", Shown::Always),
            ("Ports", "string", ".spec.ports", Shown::Wide),
        ],
    },
];

/// Columns that all kinds have behind their own.
const STATUS_COLUMNS: &[(&str, &str, &str, Shown)] = &[
    ("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status", Shown::Always),
    ("Programmed", "string", ".status.conditions[?(@.type==\"Programmed\")].status", Shown::Always),
    ("Age", "date", ".metadata.creationTimestamp", Shown::Always),
    ("Message", "string", ".status.conditions[?(@.type==\"Accepted\")].message", Shown::Wide),
    ("Sidecars", "string", ".status.conditions[?(@.type==\"Programmed\")].message", Shown::Wide),
];

impl Kind {
    fn definition(&self) -> Value {
        let (group, version) = API_VERSION.split_once('/').expect("a group and a version");
        let columns: Vec<Value> = self
            .columns
            .iter()
            .chain(STATUS_COLUMNS)
            .map(|(name, kind, path, shown)| json!({"name": name, "type": kind, "jsonPath": path, "priority": *shown as u8}))
            .collect();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{}.{group}", self.plural)},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.singular,
                    "shortNames": [self.short],
                    "categories": ["weft"],
                },
                "versions": [{
                    "name": version,
                    "served": true,
                    "storage": true,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": self.document().into_json()},
                }],
            },
        })
    }

    fn document(&self) -> Schema {
        Schema::object(
            self.description,
            &DOCUMENT,
            &["spec"],
            [
                ("apiVersion", Schema::any_text("Version of the kind.")),
                ("kind", Schema::any_text("Name of the kind.")),
                ("metadata", Schema::foreign(json!({"type": "object"}))),
                ("spec", (self.spec)()),
                ("status", Schema::foreign(status())),
            ],
        )
    }
}

/// What the control plane writes: Kubernetes' conditions (`metav1.Condition`), with its limits.
fn status() -> Value {
    let integer =
        |description: &str| json!({"type": "integer", "format": "int64", "minimum": 0, "description": description});
    json!({
        "type": "object",
        "description": "What the control plane made of it.",
        "properties": {
            "observedGeneration": integer("Generation of the spec that the conditions speak of."),
            "conditions": {
                "type": "array",
                "description":
                    "Accepted: it is valid and in force. ResolvedRefs: what it names exists. Programmed: the sidecars \
                     that it concerns have confirmed it.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "description": "One condition.",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": {"type": "string", "description": "Its name.", "maxLength": 316},
                        "status": {
                            "type": "string",
                            "description": "Whether it holds.",
                            "enum": ["True", "False", "Unknown"],
                        },
                        "observedGeneration": integer("Generation of the spec that it speaks of."),
                        "lastTransitionTime": {
                            "type": "string",
                            "description": "When its status last changed.",
                            "format": "date-time",
                        },
                        "reason": {
                            "type": "string",
                            "description": "Why, in one word for programs.",
                            "minLength": 1,
                            "maxLength": 1024,
                            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                        },
                        "message": {
                            "type": "string",
                            "description": "Why, for people.",
                            "maxLength": 32768,
                        },
                    },
                },
            },
        },
    })
}
