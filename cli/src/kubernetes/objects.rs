//! What is read of pods and namespaces, as plain facts that can be judged without a cluster.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Namespace, Pod};
use kube::ResourceExt as _;
use serde::Serialize;
use weft_certs::SpiffeId;

use super::names::{INJECT, INJECT_SKIPPED, INJECTED, SIDECAR};

/// Whether a namespace or pod was put into the mesh (`Some(true)`), taken out of it, or neither.
type Wish = Option<bool>;

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NamespaceFacts {
    pub(super) name: String,
    pub(super) inject: Wish,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) node: Option<String>,
    pub(super) addresses: Vec<String>,
    pub(super) service_account: String,
    pub(super) host_network: bool,
    /// Neither finished nor about to go.
    pub(super) alive: bool,
    pub(super) ready: bool,
    /// Containers that are ready, and how many there are; native sidecars are counted.
    pub(super) containers: (usize, usize),
    pub(super) inject: Wish,
    pub(super) skipped: Option<String>,
    pub(super) sidecar: Option<SidecarFacts>,
    /// Version that its labels or the tag of its first container's image name.
    pub(super) version: Option<String>,
}

/// The sidecar of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct SidecarFacts {
    pub(super) version: Option<String>,
    pub(super) trust_domain: String,
    pub(super) started: bool,
}

impl NamespaceFacts {
    pub(super) fn of(namespace: &Namespace) -> Self {
        Self {
            name: namespace.name_any(),
            inject: wish(namespace.annotations(), namespace.labels()),
            labels: namespace.labels().clone(),
            annotations: namespace.annotations().clone(),
        }
    }

    /// Whether its pods are to be in the mesh.
    pub(super) fn meshed(&self) -> bool {
        self.inject == Some(true)
    }
}

impl PodFacts {
    pub(super) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let text = |value: Option<&String>| value.cloned().filter(|value| !value.is_empty());
        let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
        let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let native = inits.iter().filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let names: Vec<&str> = native.chain(containers).map(|container| container.name.as_str()).collect();
        let statuses: Vec<_> = status
            .into_iter()
            .flat_map(|status| [&status.init_container_statuses, &status.container_statuses])
            .flat_map(|statuses| statuses.as_deref().unwrap_or_default())
            .filter(|status| names.contains(&status.name.as_str()))
            .collect();
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let sidecar = inits.iter().chain(containers).find(|container| container.name == SIDECAR).map(|container| {
            let started = statuses.iter().any(|status| status.name == SIDECAR && status.ready);
            SidecarFacts {
                version: text(pod.annotations().get(INJECTED)).or_else(|| image_tag(container)),
                trust_domain: variable(container, "WEFT_TRUST_DOMAIN").unwrap_or_else(|| "cluster.local".to_owned()),
                started,
            }
        });
        let version = text(pod.labels().get("app.kubernetes.io/version"));
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            labels: pod.labels().clone(),
            node: spec.and_then(|spec| text(spec.node_name.as_ref())),
            addresses: status
                .and_then(|status| status.pod_ips.as_deref())
                .unwrap_or_default()
                .iter()
                .map(|address| address.ip.clone())
                .collect(),
            service_account: spec
                .and_then(|spec| text(spec.service_account_name.as_ref()))
                .unwrap_or_else(|| "default".to_owned()),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
            alive: !matches!(phase, "Succeeded" | "Failed") && pod.metadata.deletion_timestamp.is_none(),
            ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            containers: (statuses.iter().filter(|status| status.ready).count(), names.len()),
            inject: wish(pod.annotations(), pod.labels()),
            skipped: text(pod.annotations().get(INJECT_SKIPPED)),
            sidecar,
            version: version.or_else(|| containers.first().and_then(image_tag)),
        }
    }

    /// `namespace/name`, as the control plane names it.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The identity that its sidecar is to have.
    pub(super) fn identity(&self) -> Option<SpiffeId> {
        let domain = &self.sidecar.as_ref()?.trust_domain;
        SpiffeId::parse(&format!("spiffe://{domain}/ns/{}/sa/{}", self.namespace, self.service_account)).ok()
    }
}

fn wish(annotations: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> Wish {
    match annotations.get(INJECT).or_else(|| labels.get(INJECT)).map(String::as_str) {
        Some("enabled") => Some(true),
        Some("disabled") => Some(false),
        _ => None,
    }
}

/// `1.2.0` of `registry:5000/weft:1.2.0@sha256:…`.
fn image_tag(container: &Container) -> Option<String> {
    let image = container.image.as_deref()?;
    let name = image.split('@').next()?.rsplit('/').next()?;
    name.split_once(':').map(|(_, tag)| tag.to_owned())
}

fn variable(container: &Container, name: &str) -> Option<String> {
    container.env.as_deref()?.iter().find(|variable| variable.name == name)?.value.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> PodFacts {
        PodFacts::of(&serde_json::from_value(json).expect("a pod"))
    }

    #[test]
    fn a_pod_with_a_native_sidecar_is_read() {
        let facts = pod(serde_json::json!({
            "metadata": {"name": "orders-1", "namespace": "shop", "annotations": {"weft.dev/injected": "0.2.1"}},
            "spec": {
                "serviceAccountName": "orders",
                "initContainers": [
                    {"name": "weft-init", "image": "weft-proxy:0.2.1"},
                    {"name": "weft-proxy", "image": "weft-proxy:0.2.1", "restartPolicy": "Always",
                     "env": [{"name": "WEFT_TRUST_DOMAIN", "value": "example.org"}]},
                ],
                "containers": [{"name": "app", "image": "registry:5000/app:7@sha256:aa"}],
            },
            "status": {
                "phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "initContainerStatuses": [
                    {"name": "weft-init", "ready": true, "image": "", "imageID": "", "restartCount": 0},
                    {"name": "weft-proxy", "ready": true, "image": "", "imageID": "", "restartCount": 0},
                ],
                "containerStatuses": [{"name": "app", "ready": false, "image": "", "imageID": "", "restartCount": 0}],
            },
        }));
        assert_eq!(
            facts.identity().map(|id| id.to_string()).as_deref(),
            Some("spiffe://example.org/ns/shop/sa/orders")
        );
        assert_eq!(facts.containers, (1, 2), "the sidecar and the application, not the init container");
        assert_eq!(facts.version.as_deref(), Some("7"));
        assert_eq!(
            facts.sidecar,
            Some(SidecarFacts { version: Some("0.2.1".into()), trust_domain: "example.org".into(), started: true })
        );
        assert!(facts.alive && facts.ready);
    }

    #[test]
    fn an_annotation_or_an_equal_label_is_a_wish_and_the_annotation_goes_first() {
        for (annotation, label, expected) in [
            (None, None, None),
            (Some("enabled"), None, Some(true)),
            (None, Some("enabled"), Some(true)),
            (Some("disabled"), Some("enabled"), Some(false)),
            (Some("yes"), None, None),
        ] {
            let map =
                |value: Option<&str>| value.map(|value| (INJECT.to_owned(), value.to_owned())).into_iter().collect();
            assert_eq!(wish(&map(annotation), &map(label)), expected, "{annotation:?} {label:?}");
        }
    }

    #[test]
    fn a_pod_that_the_api_server_knows_little_of_is_read_too() {
        let facts = pod(serde_json::json!({"metadata": {"name": "p"}}));
        assert_eq!((facts.service_account.as_str(), facts.containers, facts.sidecar), ("default", (0, 0), None));
        let ended = pod(serde_json::json!({"metadata": {"name": "p"}, "status": {"phase": "Succeeded"}}));
        assert!(!ended.alive);
    }
}
