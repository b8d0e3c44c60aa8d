//! Which workloads a policy applies to. A policy never reaches beyond its own namespace.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::error::quoted;
use super::metadata::check_labels;
use super::name::MAX_LABEL_BYTES;
use super::node::{At, Fields, Shape};
use super::schema::{Fault, Schema};
use super::{NamespacedName, ResourceError, name};

const TARGET_REF: Shape = Shape { known: &["group", "kind", "name"], later: &["sectionName"] };
const SELECTOR: Shape = Shape { known: &["matchLabels"], later: &["matchExpressions"] };

const KINDS: &[(&str, ())] = &[("Service", ())];
const GROUPS: &[(&str, ())] = &[("", ()), ("core", ())];

const SELECTOR_BESIDE_TARGET_REFS: Fault = Fault {
    message: "cannot stand beside `targetRefs`",
    remedy: "Keep one of the two; write a second policy for the other.",
};

/// What a policy names as its target, always within the policy's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every workload of the namespace (neither `targetRefs` nor `selector`).
    Namespace,
    /// The workloads behind these Services (`targetRefs`).
    Services(Vec<String>),
    /// The workloads that have all these labels (`selector`).
    Labels(BTreeMap<String, String>),
}

/// A workload as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The Services it stands behind.
    pub services: &'a [NamespacedName],
}

impl Target {
    /// Whether a policy of `namespace` with this target applies to `subject`.
    pub fn applies_to(&self, namespace: &str, subject: Subject<'_>) -> bool {
        namespace == subject.namespace
            && match self {
                Self::Namespace => true,
                Self::Services(names) => subject
                    .services
                    .iter()
                    .any(|service| service.namespace == namespace && names.contains(&service.name)),
                Self::Labels(labels) => labels.iter().all(|(key, value)| subject.labels.get(key) == Some(value)),
            }
    }

    /// The schemas of the fields that [`Self::parse`] reads.
    pub(crate) fn schemas() -> [(&'static str, Schema); 2] {
        let target_ref = Schema::object(
            "A Service of the policy's own namespace: the workloads behind it.",
            &TARGET_REF,
            &["kind", "name"],
            [
                ("group", Schema::one_of("API group of the Service: empty, or left out.", GROUPS)),
                ("kind", Schema::one_of("`Service`. Use `selector` to name workloads by their labels.", KINDS)),
                ("name", Schema::text("Name of the Service, without namespace.", 1..=MAX_LABEL_BYTES)),
            ],
        );
        let selector = Schema::object(
            "Applies to the workloads of the policy's namespace that have these labels. Not beside `targetRefs`. Without \
             either the policy applies to the whole namespace.",
            &SELECTOR,
            &["matchLabels"],
            [(
                "matchLabels",
                Schema::text_map(
                    "Labels that a workload must have, all of them.",
                    Schema::text("Value of the label.", 0..=MAX_LABEL_BYTES),
                ),
            )],
        );
        let target_refs = Schema::list(
            "Applies to the workloads behind these Services. Not beside `selector`. Without either the policy applies to \
             the whole namespace.",
            1,
            target_ref,
        );
        [("targetRefs", target_refs), ("selector", selector)]
    }

    /// Adds to the schema of a spec what [`Self::parse`] demands of its fields together.
    pub(crate) fn restrict(spec: Schema) -> Schema {
        spec.rule("!has(self.targetRefs) || !has(self.selector)", ".selector", &SELECTOR_BESIDE_TARGET_REFS)
    }

    pub(crate) fn parse(spec: &Fields<'_>) -> Result<Self, ResourceError> {
        let references = spec.get("targetRefs");
        let selector = spec.get("selector");
        match (references, selector) {
            (None, None) => Ok(Self::Namespace),
            (Some(_), Some(selector)) => Err(selector.fault(&SELECTOR_BESIDE_TARGET_REFS)),
            (Some(references), None) => {
                let mut names: Vec<String> = Vec::new();
                for at in references.items()? {
                    let name = target_ref(&at)?;
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
                Ok(Self::Services(names))
            }
            (None, Some(selector)) => {
                let fields = selector.closed(&SELECTOR)?;
                let at = fields.require("matchLabels", "Write `matchLabels: {…}`, or leave `selector` out.")?;
                let labels = at.text_map()?;
                if labels.is_empty() {
                    return Err(
                        at.error("names no label", "Name one; to apply to the whole namespace leave `selector` out.")
                    );
                }
                check_labels(Some(&at), &labels)?;
                Ok(Self::Labels(labels))
            }
        }
    }

    /// Writes the fields that [`Self::parse`] reads.
    pub(crate) fn write(&self, spec: &mut serde_json::Map<String, Value>) {
        match self {
            Self::Namespace => {}
            Self::Services(names) => {
                let references = names.iter().map(|name| json!({"kind": "Service", "name": name})).collect();
                spec.insert("targetRefs".into(), Value::Array(references));
            }
            Self::Labels(labels) => {
                spec.insert("selector".into(), json!({"matchLabels": labels}));
            }
        }
    }
}

fn target_ref(at: &At<'_>) -> Result<String, ResourceError> {
    let open = at.open()?;
    if let Some(namespace) = open.get("namespace") {
        return Err(namespace.error(
            "is not allowed: a policy applies in its own namespace only",
            "Leave it out, and put the policy into the namespace it speaks of.",
        ));
    }
    let fields = at.closed(&TARGET_REF)?;
    let kind = fields.require("kind", "Write `kind: Service`.")?;
    let is_one_of = |words: &[(&str, ())], text| words.iter().any(|(word, ())| *word == text);
    if !is_one_of(KINDS, kind.text()?) {
        return Err(
            kind.error(format_args!("is {}", quoted(kind.text()?)), "Write `Service`; use `selector` for workloads.")
        );
    }
    if let Some(group) = fields.get("group")
        && !is_one_of(GROUPS, group.text()?)
    {
        return Err(
            group.error(format_args!("is {}", quoted(group.text()?)), "Leave it out: Services are core objects.")
        );
    }
    let at = fields.require("name", "Write the Service's name.")?;
    if at.text()?.contains('/') {
        return Err(at.error(
            format_args!("is {}: a policy applies in its own namespace only", quoted(at.text()?)),
            "Write the name alone, and put the policy into the namespace it speaks of.",
        ));
    }
    Ok(name::label(&at)?.to_owned())
}
