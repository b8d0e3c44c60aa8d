//! Whether the agent goes for good: its DaemonSet is gone or going.
//!
//! When in doubt it is: without the plugin a pod that is to be meshed does not get past `weft-validate`; with a plugin that
//! nobody answers any more, no pod starts at all.
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

const REQUEST: Duration = Duration::from_secs(3);
/// Pauses between attempts: together less than a pod has for its end.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// Asks whether the DaemonSet `name` of `namespace` is gone or going.
pub(super) async fn is_leaving(client: Client, namespace: &str, name: &str) -> bool {
    let api: Api<DaemonSet> = Api::namespaced(client, namespace);
    let mut pauses = PAUSES.into_iter();
    loop {
        let found = timeout(REQUEST, api.get_opt(name)).await;
        let (leaving, why) = match found {
            Ok(Ok(None)) => return true,
            Ok(Ok(Some(daemon_set))) => return daemon_set.metadata.deletion_timestamp.is_some(),
            // An uninstallation takes the right to ask away too, and is not waiting for this.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => (true, status.message.clone()),
            Ok(Err(fault)) => (false, fault.to_string()),
            Err(_) => (false, "no answer".to_owned()),
        };
        match pauses.next() {
            Some(pause) => sleep(pause).await,
            None => {
                tracing::warn!(why, leaving, "the agent's own DaemonSet cannot be seen");
                return leaving;
            }
        }
    }
}
