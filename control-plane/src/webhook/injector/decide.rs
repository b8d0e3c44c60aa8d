//! Whether a pod gets a sidecar at all.
use std::fmt;

use serde_json::{Map, Value};

use super::words::{nearest, one_of, quoted};
use super::{NamespaceMeta, SKIPPED_ANNOTATION, present};

/// Annotation, or label, of a pod or a namespace: `enabled` or `disabled`. The pod's own counts before the namespace's.
pub const INJECT_ANNOTATION: &str = "weft.dev/inject";
/// Label of Weft's own pods.
const COMPONENT_LABEL: &str = "weft.dev/component";
/// Annotation of the API server's copy of a pod that a kubelet runs by itself.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Why a pod is left alone though its namespace, or it itself, asks for a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// It says `weft.dev/inject: disabled` in a namespace that says `enabled`.
    OptedOut,
    /// It uses the node's network.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// It stands for a pod that its kubelet runs by itself.
    MirrorPod,
    /// It is a part of Weft, which must start before there are sidecars.
    WeftItself,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OptedOut => "opted-out: the pod says weft.dev/inject: disabled",
            Self::HostNetwork => "host-network: the node's network cannot be redirected for one pod",
            Self::Windows => "windows: the sidecar and its redirect need Linux",
            Self::MirrorPod => "mirror-pod: the node runs this pod from a file, which no webhook changes",
            Self::WeftItself => "weft-component: Weft's own pods start before there are sidecars",
        })
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    NotAsked,
    Skip(SkipReason),
    Inject,
}

pub(super) fn decide(pod: &Value, namespace: &NamespaceMeta) -> Result<Decision, String> {
    let metadata = pod.get("metadata");
    let part = |name: &str| metadata.and_then(|metadata| metadata.get(name)).and_then(Value::as_object);
    let (annotations, labels) = (part("annotations"), part("labels"));
    let own = said("pod", text(annotations, INJECT_ANNOTATION), text(labels, INJECT_ANNOTATION))?;
    let enabled = match own {
        Some(true) => true,
        // What its namespace says does not matter then, not even whether it can be read.
        Some(false) => {
            let of_namespace = namespace_says(namespace);
            let bare = !present::names_ours(pod);
            return Ok(match of_namespace {
                Ok(Some(true)) if bare => Decision::Skip(SkipReason::OptedOut),
                _ => Decision::NotAsked,
            });
        }
        None => namespace_says(namespace)?.unwrap_or(false),
    };
    if !enabled {
        return Ok(Decision::NotAsked);
    }
    let spec = |path: &str| pod.pointer(path);
    let windows = |value: Option<&Value>| value.and_then(Value::as_str) == Some("windows");
    let skip = if text(labels, COMPONENT_LABEL).is_some() {
        Some(SkipReason::WeftItself)
    } else if text(annotations, MIRROR_ANNOTATION).is_some() {
        Some(SkipReason::MirrorPod)
    } else if spec("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        Some(SkipReason::HostNetwork)
    } else if windows(spec("/spec/os/name")) || windows(spec("/spec/nodeSelector/kubernetes.io~1os")) {
        Some(SkipReason::Windows)
    } else {
        None
    };
    Ok(skip.map_or(Decision::Inject, Decision::Skip))
}

fn namespace_says(namespace: &NamespaceMeta) -> Result<Option<bool>, String> {
    let of = |map: &std::collections::BTreeMap<String, String>| map.get(INJECT_ANNOTATION).cloned();
    let whose = format!("namespace {}", quoted(&namespace.name));
    said(&whose, of(&namespace.annotations), of(&namespace.labels))
}

/// What annotation and label say together.
fn said(whose: &str, annotation: Option<String>, label: Option<String>) -> Result<Option<bool>, String> {
    let read = |what: &str, text: Option<String>| {
        text.map(|text| {
            enabled(&text).ok_or_else(|| {
                let remedy = meant(&text).map_or_else(|| one_of(&["enabled", "disabled"]), |word| format!("`{word}`"));
                format!("the {what} {INJECT_ANNOTATION} of the {whose} is {}; write {remedy}", quoted(&text))
            })
        })
        .transpose()
    };
    match (read("annotation", annotation)?, read("label", label)?) {
        (Some(annotation), Some(label)) if annotation != label => Err(format!(
            "annotation and label {INJECT_ANNOTATION} of the {whose} say different things; leave one of them out"
        )),
        (annotation, label) => Ok(annotation.or(label)),
    }
}

fn enabled(text: &str) -> Option<bool> {
    match text {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => None,
    }
}

/// What somebody who wrote `text` wanted.
fn meant(text: &str) -> Option<&'static str> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "enable" | "inject" => Some("enabled"),
        "false" | "no" | "off" | "0" | "disable" | "never" | "ignore" => Some("disabled"),
        other => nearest(other, &["enabled", "disabled"]),
    }
}

/// The text under `key`; what a YAML reader took for another type as it would be written.
fn text(map: Option<&Map<String, Value>>, key: &str) -> Option<String> {
    match map?.get(key)? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// `pod`, which says why it was left alone.
pub(super) fn recorded(pod: &Value, reason: SkipReason) -> Value {
    let mut pod = pod.clone();
    // A mirror pod must stay what its kubelet wrote, and what is no object cannot say anything.
    if reason != SkipReason::MirrorPod
        && let Some(pod) = pod.as_object_mut()
        && let Some(metadata) = super::pod::object(pod, "metadata")
        && let Some(annotations) = super::pod::object(metadata, "annotations")
    {
        annotations.insert(SKIPPED_ANNOTATION.to_owned(), Value::String(reason.to_string()));
    }
    pod
}
