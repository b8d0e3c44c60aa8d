//! Whether the agent goes for good: its DaemonSet, or the namespace of it, is gone or going.
//!
//! When the API server refuses to say, it is: an uninstallation takes the right to ask away too, and is not waiting for
//! this. A plugin that stays by mistake, with nobody to answer it, would let no pod start at all; one that goes by mistake
//! leaves pods that `weft-validate` holds up.
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

use super::pods::said;

const REQUEST: Duration = Duration::from_secs(3);
/// Pauses between attempts; with the requests less than the 30 s that a pod has for its end.
const PAUSES: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(2)];

/// Asks whether the DaemonSet `name` of `namespace` is gone or going.
pub(super) async fn is_leaving(client: Client, namespace: &str, name: &str) -> bool {
    // Deleting a namespace deletes the pods in it too, maybe before their DaemonSet.
    let parent = timeout(REQUEST, Api::<Namespace>::all(client.clone()).get_opt(namespace)).await;
    if let Ok(Ok(parent)) = parent
        && parent.is_none_or(|parent| parent.metadata.deletion_timestamp.is_some())
    {
        return true;
    }
    let api: Api<DaemonSet> = Api::namespaced(client, namespace);
    let mut pauses = PAUSES.into_iter();
    loop {
        let (leaving, why) = match timeout(REQUEST, api.get(name)).await {
            Ok(Ok(daemon_set)) => return daemon_set.metadata.deletion_timestamp.is_some(),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return true,
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => (true, status.message.clone()),
            Ok(Err(fault)) => (false, said(&fault)),
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
