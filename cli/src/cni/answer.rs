//! What is to be done with a pod: from its object to an [`Answer`]. Pure.
//!
//! A pod has its rules written by the plugin when the injector gave it the init container `weft-validate`. Where its
//! connections go is what the sidecar's own variables say; what is skipped, the pod's annotations, on which the injector
//! writes what is in force.
use k8s_openapi::api::core::v1::{Container, Pod};
use weft_proxy::redirect::{InitArgs, Rules};

use super::wire::{Answer, Redirect};

const SIDECAR: &str = "weft-proxy";
/// Checks that connections are captured, and holds the pod up if they are not.
pub(super) const VALIDATE: &str = "weft-validate";

/// User of the sidecar's container.
const PROXY_UID: u32 = 2102;

/// Set by the kubelet on the API's image of a static pod, which the runtime knows by this instead of its UID.
const STATIC_POD_UID: &str = "kubernetes.io/config.hash";

/// The UIDs under which the kubelet may ask for `pod`.
pub(super) fn uids(pod: &Pod) -> Vec<String> {
    let annotation = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(STATIC_POD_UID));
    pod.metadata.uid.iter().chain(annotation).cloned().collect()
}

/// What is to be done with `pod`.
pub(super) fn judge(pod: &Pod) -> Answer {
    if container(pod, VALIDATE).is_none() {
        return Answer::Pass;
    }
    match redirect(pod) {
        Ok(redirect) => Answer::Redirect(redirect),
        Err(fault) => {
            let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
            let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
            Answer::Invalid { reason: format!("pod {namespace}/{name} cannot be redirected as it asks: {fault}") }
        }
    }
}

fn redirect(pod: &Pod) -> Result<Redirect, String> {
    let environment = container(pod, SIDECAR).and_then(|sidecar| sidecar.env.as_deref()).unwrap_or_default();
    let variable = |name: &str| {
        let found = environment.iter().find(|variable| variable.name == name);
        found.and_then(|variable| variable.value.as_deref()).filter(|value| !value.is_empty())
    };
    let port = |name: &str, default: u16| {
        let fault = |text: &str| format!("{name}: `{text}` is not a port");
        variable(name).map_or(Ok(default), |text| text.parse().map_err(|_| fault(text)))
    };
    let mark = variable("WEFT_PROXY_MARK").map(weft_proxy::config::parse_mark).transpose();
    let proxy_mark = mark.map_err(|fault| format!("WEFT_PROXY_MARK: {fault}"))?;
    let annotations = pod.metadata.annotations.as_ref();
    let annotation = |name: &str| annotations.and_then(|all| all.get(name)).cloned().unwrap_or_default();
    let redirect = Redirect {
        outbound_port: port("WEFT_OUTBOUND_PORT", 4240)?,
        inbound_port: port("WEFT_INBOUND_PORT", 4243)?,
        admin_port: port("WEFT_ADMIN_PORT", 4291)?,
        proxy_uid: Some(PROXY_UID),
        proxy_mark,
        skip_inbound_ports: annotation("weft.dev/skip-inbound-ports"),
        skip_outbound_ports: annotation("weft.dev/skip-outbound-ports"),
        skip_subnets: annotation("weft.dev/skip-subnets"),
    };
    let rules = redirect.init_args().map(|args: InitArgs| args.rules())?;
    Rules::check(&rules).map_err(|fault| fault.to_string())?;
    Ok(redirect)
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|container| container.name == name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, init_containers: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "orders-1", "uid": "u-1", "annotations": annotations},
            "spec": {"initContainers": init_containers, "containers": [{"name": "app"}]},
        }))
        .expect("a pod")
    }

    fn plain() -> Redirect {
        Redirect {
            outbound_port: 4240,
            inbound_port: 4243,
            admin_port: 4291,
            proxy_uid: Some(2102),
            proxy_mark: None,
            skip_inbound_ports: String::new(),
            skip_outbound_ports: String::new(),
            skip_subnets: String::new(),
        }
    }

    #[test]
    fn only_a_pod_that_waits_for_the_plugin_gets_rules() {
        let sidecar = json!({"name": "weft-proxy", "restartPolicy": "Always"});
        for (containers, expected) in [
            (json!([]), Answer::Pass),
            (json!(null), Answer::Pass),
            (json!([{"name": "weft-init"}, sidecar]), Answer::Pass),
            (json!([{"name": "migrate"}]), Answer::Pass),
            (json!([{"name": "weft-validate"}, sidecar]), Answer::Redirect(plain())),
        ] {
            assert_eq!(judge(&pod(json!({}), containers.clone())), expected, "{containers}");
        }
    }

    #[test]
    fn where_connections_go_is_the_sidecars_to_say_and_what_is_skipped_the_annotations() {
        let annotations = json!({
            "weft.dev/skip-inbound-ports": "22", "weft.dev/skip-outbound-ports": "5432,8000-8010",
            "weft.dev/skip-subnets": "10.0.0.0/8,fd00::/8",
        });
        let sidecar = json!({"name": "weft-proxy", "env": [
            {"name": "WEFT_INBOUND_PORT", "value": "5243"}, {"name": "WEFT_PROXY_MARK", "value": "0x2102"},
            {"name": "WEFT_ADMIN_PORT", "value": ""},
            {"name": "WEFT_OUTBOUND_PORT", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]});
        let expected = Redirect {
            inbound_port: 5243,
            proxy_mark: Some(0x2102),
            skip_inbound_ports: "22".into(),
            skip_outbound_ports: "5432,8000-8010".into(),
            skip_subnets: "10.0.0.0/8,fd00::/8".into(),
            ..plain()
        };
        let containers = json!([{"name": "weft-validate"}, sidecar]);
        assert_eq!(judge(&pod(annotations, containers)), Answer::Redirect(expected));
    }

    #[test]
    fn what_cannot_be_done_is_said_with_what_to_write() {
        let ranges = vec!["22"; 257].join(",");
        for (annotation, value, hint) in [
            ("weft.dev/skip-inbound-ports", "ssh", "write 22 or 8000-8010"),
            ("weft.dev/skip-outbound-ports", "8010-8000", "write 22 or 8000-8010"),
            ("weft.dev/skip-subnets", "10.0.0.0/33", "write 10.0.0.0/8"),
            ("weft.dev/skip-inbound-ports", ranges.as_str(), "256"),
        ] {
            let answer = judge(&pod(json!({ annotation: value }), json!([{"name": "weft-validate"}])));
            let Answer::Invalid { reason } = answer else { panic!("{value}: {answer:?}") };
            assert!(reason.contains(hint) && reason.contains("shop/orders-1"), "{reason}");
        }
        let sidecar = json!({"name": "weft-proxy", "env": [{"name": "WEFT_INBOUND_PORT", "value": "x"}]});
        let ports = json!([{"name": "weft-validate"}, sidecar]);
        assert!(matches!(judge(&pod(json!({}), ports)), Answer::Invalid { reason } if reason.contains("`x`")));
    }

    #[test]
    fn a_static_pod_is_known_by_the_kubelets_uid_too() {
        assert_eq!(uids(&pod(json!({}), json!([]))), ["u-1"]);
        assert_eq!(uids(&pod(json!({"kubernetes.io/config.hash": "h"}), json!([]))), ["u-1", "h"]);
    }
}
