//! Dry runs: the API server asks the webhooks as it would for a real object, and keeps nothing.
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DynamicObject, PostParams};
use serde_json::json;

use crate::kubernetes::client::{Cluster, explain};
use crate::kubernetes::names::INJECT;
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::policy_kinds;

/// What became of a pod that asks for a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Injection {
    /// It got one.
    Done,
    /// It was let through without.
    Left,
    /// It was refused, with this message.
    Refused(String),
}

/// What became of a policy that no engine would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WrongPolicy {
    /// A webhook refused it.
    Refused,
    /// It was let in.
    Taken,
    /// Something else refused it, with this message.
    Otherwise(String),
}

/// Creates a pod that asks for a sidecar, in a dry run.
pub(super) async fn inject(cluster: &Cluster, namespace: &str) -> Injection {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "weft-check-", "namespace": namespace, "annotations": {INJECT: "enabled"}},
        "spec": {
            "containers": [{
                "name": "check",
                "image": "weft-check",
                // As restricted as Pod Security asks for, so that only what Weft adds can be refused.
                "securityContext": {
                    "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 65534,
                    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
                },
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"},
                },
            }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).expect("a pod");
    let api: Api<Pod> = cluster.api(Some(namespace));
    match api.create(&dry_run(), &pod).await {
        Ok(made) if PodFacts::of(&made).sidecar.is_some() => Injection::Done,
        Ok(_) => Injection::Left,
        Err(fault) => Injection::Refused(explain(&fault)),
    }
}

/// Creates a policy that only the engine knows to be wrong, in a dry run: its path is not in normal form.
pub(super) async fn wrong_policy(cluster: &Cluster, namespace: &str) -> WrongPolicy {
    let kind = policy_kinds::resource(&policy_kinds::AUTHORIZATION);
    let policy = DynamicObject::new("weft-check", &kind)
        .within(namespace)
        .data(json!({"spec": {"action": "Deny", "rules": [{"to": [{"paths": ["/weft-check/%7E"]}]}]}}));
    let api = policy_kinds::api(cluster, &policy_kinds::AUTHORIZATION, Some(namespace));
    match api.create(&dry_run(), &policy).await {
        Ok(_) => WrongPolicy::Taken,
        Err(fault) => told(explain(&fault)),
    }
}

/// Tells the webhook's own refusal from one that means that it was not reached.
fn told(message: String) -> WrongPolicy {
    if message.starts_with("admission webhook ") { WrongPolicy::Refused } else { WrongPolicy::Otherwise(message) }
}

fn dry_run() -> PostParams {
    PostParams { dry_run: true, field_manager: Some("weft-check".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_webhook_that_answered_has_refused() {
        for (message, expected) in [
            ("admission webhook \"admission.weft.dev\" denied the request: write '/weft-check/~'", true),
            ("Internal error occurred: failed calling webhook \"admission.weft.dev\": no endpoints available", false),
            ("authorizationpolicies.policy.weft.dev is forbidden: User \"x\" cannot create", false),
        ] {
            assert_eq!(told(message.to_owned()) == WrongPolicy::Refused, expected, "{message}");
        }
    }
}
