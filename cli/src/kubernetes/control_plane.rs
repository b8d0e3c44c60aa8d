//! The control plane's replicas, and what they know of the sidecars.
//!
//! A sidecar is connected to one replica; the others know it as one that never came, or that left. Their answers become
//! one: the replica that has the sidecar knows best.
use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde::Deserialize;

use super::client::{Cluster, list};
use super::forward::{self, AT_ONCE};
use super::names::CONTROL_PLANE_PODS;
use super::objects::PodFacts;

/// A row of `/workloads`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct WorkloadStatus {
    pub(super) name: String,
    #[serde(default)]
    pub(super) connected: bool,
    #[serde(default)]
    pub(super) draining: bool,
    #[serde(default)]
    pub(super) version: Option<u64>,
    #[serde(default)]
    pub(super) confirmed: Option<u64>,
    #[serde(default)]
    pub(super) certificate_expiry: Option<u64>,
    #[serde(default)]
    pub(super) disconnected_for: Option<u64>,
    #[serde(default)]
    pub(super) error: Option<String>,
}

/// A fault of `/config/errors`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ConfigError {
    #[serde(default)]
    pub(super) file: String,
    #[serde(default)]
    pub(super) message: String,
}

/// All replicas' knowledge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Knowledge {
    /// By `namespace/name`: what is known, and the replica that the sidecar is or was connected to.
    pub(super) workloads: BTreeMap<String, (WorkloadStatus, Option<String>)>,
    /// Replicas that did not answer, each with the reason.
    pub(super) silent: Vec<(String, String)>,
    /// How many did.
    pub(super) answered: usize,
}

/// The pods of the control plane, wherever it is installed.
///
/// # Errors
/// What to tell an operator.
pub(super) async fn replicas(cluster: &Cluster) -> Result<Vec<PodFacts>, String> {
    let pods = list(&cluster.api::<Pod>(None), ListParams::default().labels(CONTROL_PLANE_PODS)).await?;
    Ok(pods.iter().map(PodFacts::of).filter(|pod| pod.alive).collect())
}

/// Asks every replica for its workloads.
pub(super) async fn knowledge(cluster: &Cluster, replicas: &[PodFacts]) -> Knowledge {
    let answers = stream::iter(replicas).map(|replica| async move {
        let answer = forward::get_json::<Vec<WorkloadStatus>>(cluster, &replica.namespace, &replica.name, "/workloads");
        (replica.name.clone(), answer.await)
    });
    merge(answers.buffered(AT_ONCE).collect().await)
}

/// One answer of many.
fn merge(answers: Vec<(String, Result<Vec<WorkloadStatus>, String>)>) -> Knowledge {
    let mut knowledge = Knowledge::default();
    for (replica, answer) in answers {
        let rows = match answer {
            Ok(rows) => rows,
            Err(fault) => {
                knowledge.silent.push((replica, fault));
                continue;
            }
        };
        knowledge.answered += 1;
        for row in rows {
            let listened = row.confirmed.is_some() || row.version.is_some();
            let newer = match knowledge.workloads.get(&row.name) {
                None => true,
                Some((known, _)) => rank(&row) > rank(known),
            };
            if newer {
                knowledge.workloads.insert(row.name.clone(), (row, listened.then(|| replica.clone())));
            }
        }
    }
    knowledge
}

/// Who knows better: who has the sidecar, then who lost it last.
fn rank(row: &WorkloadStatus) -> (bool, bool, u64) {
    (row.connected, row.disconnected_for.is_some(), u64::MAX - row.disconnected_for.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, connected: bool, disconnected_for: Option<u64>) -> WorkloadStatus {
        let version = (connected || disconnected_for.is_some()).then_some(1);
        WorkloadStatus { name: name.into(), connected, disconnected_for, version, ..WorkloadStatus::default() }
    }

    #[test]
    fn the_replica_that_has_a_sidecar_knows_best_in_whatever_order_they_answer() {
        let answers = [
            ("a".to_owned(), Ok(vec![row("shop/orders", false, None), row("shop/users", false, Some(90))])),
            ("b".to_owned(), Ok(vec![row("shop/orders", true, None), row("shop/users", false, Some(5))])),
            ("c".to_owned(), Err("no answer".to_owned())),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let merged = merge(order.iter().map(|at| answers[*at].clone()).collect());
            let of = |name: &str| merged.workloads[name].clone();
            assert!(of("shop/orders").0.connected);
            assert_eq!(of("shop/orders").1.as_deref(), Some("b"));
            assert_eq!((of("shop/users").0.disconnected_for, of("shop/users").1), (Some(5), Some("b".into())));
            assert_eq!(merged.silent, [("c".to_owned(), "no answer".to_owned())]);
            assert_eq!(merged.answered, 2);
        }
    }

    #[test]
    fn a_sidecar_that_never_came_belongs_to_no_replica() {
        let merged = merge(vec![("a".into(), Ok(vec![row("shop/orders", false, None)]))]);
        assert_eq!(merged.workloads["shop/orders"].1, None);
    }
}
