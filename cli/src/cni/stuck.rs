//! Pods that came before the plugin: their network was made without it, `weft-validate` holds them up, and as their network
//! is never made anew they can only be replaced. Pure.
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::answer::VALIDATE;

/// Whether `pod` waits for rules that nobody will write any more: its check has failed.
pub(super) fn is_held_up(pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let statuses = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    let mut ours = statuses.filter(|status| status.name == VALIDATE);
    ours.any(|status| !succeeded(status) && failed(status))
}

/// Whether somebody makes another in its place.
pub(super) fn has_controller(pod: &Pod) -> bool {
    pod.metadata.owner_references.iter().flatten().any(|owner| owner.controller == Some(true))
}

fn succeeded(status: &ContainerStatus) -> bool {
    let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| ended.exit_code == 0)
}

fn failed(status: &ContainerStatus) -> bool {
    let mut ends = status.state.iter().chain(&status.last_state).filter_map(|state| state.terminated.as_ref());
    ends.any(|ended| ended.exit_code != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_is_held_up_when_its_check_has_failed() {
        let (good, bad) = (json!({"terminated": {"exitCode": 0}}), json!({"terminated": {"exitCode": 1}}));
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        for (name, state, last, deleted, expected) in [
            ("weft-validate", json!({"waiting": {"reason": "PodInitializing"}}), Value::Null, false, false),
            ("weft-validate", json!({"running": {}}), Value::Null, false, false),
            ("weft-validate", good.clone(), Value::Null, false, false),
            ("weft-validate", good, bad.clone(), false, false),
            ("weft-validate", bad.clone(), Value::Null, false, true),
            ("weft-validate", waiting.clone(), bad.clone(), false, true),
            ("weft-validate", json!({"running": {}}), bad.clone(), false, true),
            ("weft-validate", waiting.clone(), bad.clone(), true, false),
            ("migrate", waiting, bad, false, false),
        ] {
            let status = json!({"name": name, "ready": false, "restartCount": 1, "image": "i", "imageID": "i",
                                "state": state, "lastState": last});
            let deleted_at = deleted.then_some("2026-01-01T00:00:00Z");
            let pod = json!({"metadata": {"name": "p", "deletionTimestamp": deleted_at},
                             "status": {"initContainerStatuses": [status]}});
            let pod: Pod = serde_json::from_value(pod.clone()).unwrap_or_else(|fault| panic!("{fault}: {pod}"));
            assert_eq!(is_held_up(&pod), expected, "{pod:?}");
        }
    }
}
