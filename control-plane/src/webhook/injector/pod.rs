//! A pod as JSON whose shape was checked once, so that the rest can read and write it plainly.
use serde_json::{Map, Value};

use super::words::quoted;

pub(super) const CONTAINERS: &str = "containers";
pub(super) const INIT_CONTAINERS: &str = "initContainers";
pub(super) const VOLUMES: &str = "volumes";

/// Seconds that a pod has to end where it says nothing (Kubernetes' default).
const DEFAULT_GRACE_SECONDS: u64 = 30;

/// A pod whose metadata, annotations, spec, containers and volumes have the types that Kubernetes gives them.
pub(super) struct Pod(Value);

impl Pod {
    /// Checks the shape.
    pub(super) fn open(pod: &Value) -> Result<Self, String> {
        let mut pod = pod.clone();
        let no_pod = |what: &str| format!("{what}; give a pod that Kubernetes would accept");
        let top = pod.as_object_mut().ok_or_else(|| no_pod("the pod is not an object"))?;
        let metadata = object(top, "metadata").ok_or_else(|| no_pod("metadata is not an object"))?;
        let annotations =
            object(metadata, "annotations").ok_or_else(|| no_pod("metadata.annotations is not an object"))?;
        if let Some((key, _)) = annotations.iter().find(|(_, value)| !value.is_string()) {
            return Err(format!("annotation {} is not a text; write its value between quotation marks", quoted(key)));
        }
        let spec = match top.get_mut("spec") {
            Some(Value::Object(spec)) => spec,
            _ => return Err(no_pod("the pod has no spec")),
        };
        for list in [CONTAINERS, INIT_CONTAINERS, VOLUMES] {
            match spec.get(list) {
                None => {}
                // As the API server reads it.
                Some(Value::Null) => {
                    spec.remove(list);
                }
                Some(Value::Array(items)) if items.iter().all(is_named) => {}
                Some(_) => return Err(no_pod(&format!("spec.{list} is not a list of objects with a name"))),
            }
        }
        if spec.get(CONTAINERS).and_then(Value::as_array).is_none_or(Vec::is_empty) {
            return Err(no_pod("the pod has no spec.containers"));
        }
        Ok(Self(pod))
    }

    /// The pod, without the empty fields that opening it may have made.
    pub(super) fn close(self) -> Value {
        self.0
    }

    pub(super) fn spec(&self) -> &Value {
        &self.0["spec"]
    }

    fn annotations(&self) -> &Map<String, Value> {
        self.0["metadata"]["annotations"].as_object().expect("checked when it was opened")
    }

    fn annotations_mut(&mut self) -> &mut Map<String, Value> {
        self.0["metadata"]["annotations"].as_object_mut().expect("checked when it was opened")
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations().get(key).and_then(Value::as_str)
    }

    pub(super) fn annotation_keys(&self) -> impl Iterator<Item = &str> {
        self.annotations().keys().map(String::as_str)
    }

    pub(super) fn has_annotation_below(&self, prefix: &str) -> bool {
        self.annotation_keys().any(|key| key.starts_with(prefix))
    }

    pub(super) fn annotate(&mut self, key: &str, value: &str) {
        self.annotations_mut().insert(key.to_owned(), Value::String(value.to_owned()));
    }

    pub(super) fn annotate_if_missing(&mut self, key: &str, value: &str) {
        if self.annotation(key).is_none() {
            self.annotate(key, value);
        }
    }

    pub(super) fn remove_annotation(&mut self, key: &str) {
        self.annotations_mut().remove(key);
    }

    /// The entries of a list of the spec.
    pub(super) fn items(&self, list: &str) -> &[Value] {
        self.spec().get(list).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The same, made where it is missing.
    pub(super) fn items_mut(&mut self, list: &str) -> &mut Vec<Value> {
        let spec = self.0["spec"].as_object_mut().expect("checked when it was opened");
        let items = spec.entry(list).or_insert_with(|| Value::Array(Vec::new()));
        items.as_array_mut().expect("checked when it was opened")
    }

    /// The same, without making it.
    pub(super) fn items_mut_if_any(&mut self, list: &str) -> impl Iterator<Item = &mut Value> {
        self.0["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
    }

    /// Every container with the list that it stands in.
    pub(super) fn all_containers(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        [INIT_CONTAINERS, CONTAINERS].into_iter().flat_map(|list| self.items(list).iter().map(move |item| (list, item)))
    }

    pub(super) fn first_container_name(&self) -> String {
        self.items(CONTAINERS).first().map(name).unwrap_or_default().to_owned()
    }

    /// Lets each of the application's containers that says nothing about it serve on for `seconds` after the order to end,
    /// where the pod has at least twice the time and is one that runs until it is told to.
    pub(super) fn delay_termination(&mut self, seconds: u64) {
        let runs_on = !matches!(self.spec().get("restartPolicy").and_then(Value::as_str), Some("Never" | "OnFailure"));
        if seconds == 0 || !runs_on || self.grace_seconds() < seconds.saturating_mul(2) {
            return;
        }
        for container in self.items_mut(CONTAINERS) {
            let lifecycle = container.as_object_mut().and_then(|container| object(container, "lifecycle"));
            let pre_stop = lifecycle.and_then(|lifecycle| object(lifecycle, "preStop"));
            if let Some(pre_stop) = pre_stop.filter(|pre_stop| pre_stop.is_empty()) {
                pre_stop.insert("sleep".to_owned(), serde_json::json!({ "seconds": seconds }));
            }
        }
    }

    /// Seconds from the order to end until it is ended.
    pub(super) fn grace_seconds(&self) -> u64 {
        self.spec().get("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(DEFAULT_GRACE_SECONDS)
    }
}

/// The object under `key`, made where there is none; `None` where there is something else.
pub(super) fn object<'v>(map: &'v mut Map<String, Value>, key: &str) -> Option<&'v mut Map<String, Value>> {
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

fn is_named(item: &Value) -> bool {
    item.get("name").is_some_and(Value::is_string)
}

/// The name of a container or volume.
pub(super) fn name(item: &Value) -> &str {
    item.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Whether the securityContext of a pod's spec or of a container says so.
pub(super) fn runs_as(spec: &Value, uid: u32) -> bool {
    spec.pointer("/securityContext/runAsUser").and_then(Value::as_f64) == Some(f64::from(uid))
}

/// The ports that a container declares.
pub(super) fn declared_ports(container: &Value) -> impl Iterator<Item = u16> + '_ {
    let ports = container.get("ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    ports.iter().filter_map(|port| port.get("containerPort")?.as_u64()?.try_into().ok())
}

/// The port that `port` of a check means to `container`: a number, the name of a declared port, or a number as a text.
pub(super) fn resolved_port(container: &Value, port: &Value) -> Option<u16> {
    let number = match port {
        Value::Number(number) => number.as_u64()?,
        Value::String(named) => {
            let ports = container.get("ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let declared = ports.iter().find(|port| port.get("name").and_then(Value::as_str) == Some(named));
            match declared {
                Some(port) => port.get("containerPort")?.as_u64()?,
                None => named.parse().ok()?,
            }
        }
        _ => return None,
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}
