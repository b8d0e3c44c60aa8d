//! Keeps the ConfigMap `weft-trust-bundle` in every namespace: the roots by which sidecars know the control plane.
//!
//! In every one, not only where pods are meshed now: it is small, public, and there before the first pod of a namespace
//! that is annotated later. Only the leader writes. One that is edited or deleted is repaired, and what somebody else
//! called by that name is taken over, because pods of the mesh rely on it.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use serde_json::json;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use weft_certs::TrustBundle;

use super::Cluster;

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "weft-trust-bundle";
/// Its key.
pub const KEY: &str = "trust-bundle.pem";
/// Where no application runs, so that nothing of ours belongs there.
const LEFT_ALONE: &[&str] = &["kube-system", "kube-public", "kube-node-lease"];
/// Namespaces that are worked on at one time.
const CONCURRENCY: u16 = 4;
/// After a failed call of the API server.
const RETRY: Duration = Duration::from_secs(5);
/// Every namespace is looked at so often, whatever the watches say.
const RESYNC: Duration = Duration::from_secs(3600);

/// Keeps the ConfigMaps at `bundle` while `leader` is true, until `stop`.
pub async fn run(
    cluster: Cluster,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    mut leader: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    loop {
        match stop.run_until_cancelled(leader.wait_for(|leads| *leads)).await {
            Some(Ok(_)) => {}
            // Nobody will ever tell that we lead.
            Some(Err(_)) | None => return,
        }
        let mut lost = leader.clone();
        let over = async move { drop(lost.wait_for(|leads| !*leads).await) };
        // What is under way is given up at once: another replica leads.
        tokio::select! {
            () = stop.cancelled() => return,
            () = over => {}
            () = keep(cluster.clone(), bundle.clone()) => {}
        }
    }
}

async fn keep(cluster: Cluster, bundle: watch::Receiver<Arc<TrustBundle>>) {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let config_maps: Api<ConfigMap> = Api::all(cluster.client.clone());
    let ours = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let changes = WatchStream::from_changes(bundle.clone()).map(|_| ());
    let keeper = Arc::new(Keeper { cluster, bundle });
    Controller::new(namespaces, watcher::Config::default())
        .watches(config_maps, ours, |config_map: ConfigMap| {
            config_map.namespace().map(|namespace| ObjectRef::<Namespace>::new(&namespace))
        })
        .reconcile_all_on(changes)
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .run(
            |namespace, keeper| async move { keeper.keep_in(&namespace).await },
            |namespace, fault, _| {
                tracing::warn!(namespace = namespace.name_any(), %fault, "cannot write ConfigMap {CONFIG_MAP}; trying again");
                Action::requeue(RETRY)
            },
            keeper,
        )
        .for_each(|done| async move {
            if let Err(fault) = done {
                tracing::debug!(%fault, "trust bundle");
            }
        })
        .await;
}

struct Keeper {
    cluster: Cluster,
    bundle: watch::Receiver<Arc<TrustBundle>>,
}

impl Keeper {
    async fn keep_in(&self, namespace: &Namespace) -> Result<Action, kube::Error> {
        if !has_bundle(namespace) {
            return Ok(Action::await_change());
        }
        let pem = self.bundle.borrow().to_pem();
        let config_maps: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), &namespace.name_any());
        let written = match config_maps.get_opt(CONFIG_MAP).await? {
            None => config_maps.create(&PostParams::default(), &self.wanted(&pem)).await.map(drop),
            Some(found) if is_right(&found, &self.wanted(&pem)) => Ok(()),
            Some(found) if found.immutable == Some(true) => {
                config_maps.delete(CONFIG_MAP, &kube::api::DeleteParams::default()).await.map(drop)
            }
            Some(_) => {
                let wanted = self.wanted(&pem);
                let patch = json!({
                    "metadata": {"labels": wanted.metadata.labels, "ownerReferences": wanted.metadata.owner_references},
                    "data": wanted.data,
                });
                config_maps.patch(CONFIG_MAP, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
            }
        };
        match written {
            // Made, deleted or begun to be deleted in between: the watches bring it up again.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(kube::Error::Api(status)) if is_terminating(&status) => {}
            written => written?,
        }
        Ok(Action::requeue(RESYNC))
    }

    fn wanted(&self, pem: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(CONFIG_MAP.into()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".into(), "weft".into())])),
                owner_references: self.cluster.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), pem.to_owned())])),
            ..ConfigMap::default()
        }
    }
}

fn has_bundle(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none() && !LEFT_ALONE.contains(&namespace.name_any().as_str())
}

/// Whether `found` says what `wanted` says; other keys and labels are left to who wrote them.
fn is_right(found: &ConfigMap, wanted: &ConfigMap) -> bool {
    let value = |config_map: &ConfigMap| config_map.data.as_ref().and_then(|data| data.get(KEY)).cloned();
    let labelled = wanted.labels().iter().all(|(key, value)| found.labels().get(key) == Some(value));
    let owned = wanted.owner_references().iter().all(|owner| found.owner_references().contains(owner));
    value(found) == value(wanted) && labelled && owned
}

/// The namespace began to be deleted since it was last seen.
fn is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    status.code == 403 && causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_namespace_has_the_bundle_but_those_of_the_system_and_those_that_go_away() {
        let namespace = |name: &str, going: bool| {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.into());
            namespace.metadata.deletion_timestamp =
                going.then(|| serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time"));
            namespace
        };
        for (name, going, expected) in [
            ("default", false, true),
            ("shop", false, true),
            ("shop", true, false),
            ("kube-system", false, false),
            ("kube-public", false, false),
            ("kube-node-lease", false, false),
        ] {
            assert_eq!(has_bundle(&namespace(name, going)), expected, "{name}, going away: {going}");
        }
    }

    #[test]
    fn what_others_added_is_left_and_what_they_changed_is_not() {
        let config_map = |value: Value| -> ConfigMap { serde_json::from_value(value).expect("a ConfigMap") };
        let owner = json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "1"}]);
        let wanted = config_map(json!({
            "metadata": {"labels": {"a": "b"}, "ownerReferences": owner}, "data": {KEY: "pem"}
        }));
        let rows = [
            (json!({"metadata": {"labels": {"a": "b"}, "ownerReferences": owner}, "data": {KEY: "pem"}}), true),
            (
                json!({"metadata": {"labels": {"a": "b", "c": "d"}, "ownerReferences": owner}, "data": {KEY: "pem", "x": ""}}),
                true,
            ),
            (json!({"metadata": {"labels": {"a": "b"}, "ownerReferences": owner}, "data": {KEY: "other"}}), false),
            (json!({"metadata": {"labels": {"a": "x"}, "ownerReferences": owner}, "data": {KEY: "pem"}}), false),
            (json!({"metadata": {"labels": {"a": "b"}}, "data": {KEY: "pem"}}), false),
            (json!({"metadata": {}}), false),
        ];
        for (found, expected) in rows {
            assert_eq!(is_right(&config_map(found.clone()), &wanted), expected, "{found}");
        }
    }
}
