//! The CNI plugin, where it is installed: on every node, or pods there do not start.
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::ResourceExt as _;
use kube::api::ListParams;

use super::Seen;
use super::finding::{Finding, Group};
use super::nodes::NodeFacts;
use crate::kubernetes::client::{Cluster, list};
use crate::kubernetes::names::CNI;
use crate::kubernetes::output::counted;

/// The plugin's DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DaemonSetFacts {
    namespace: String,
    wanted: i32,
    ready: i32,
    updated: i32,
}

pub(super) async fn look(cluster: &Cluster) -> Seen<Option<DaemonSetFacts>> {
    let params = ListParams::default().fields(&format!("metadata.name={CNI}"));
    let found = list(&cluster.api::<DaemonSet>(None), params).await?;
    Ok(found.first().map(|set| {
        let status = set.status.clone().unwrap_or_default();
        DaemonSetFacts {
            namespace: set.namespace().unwrap_or_default(),
            wanted: status.desired_number_scheduled,
            ready: status.number_ready,
            updated: status.updated_number_scheduled.unwrap_or_default(),
        }
    }))
}

pub(super) fn judge(set: &Seen<Option<DaemonSetFacts>>, nodes: &Seen<Vec<NodeFacts>>) -> Group {
    const CHECK: &str = "plugin";
    let set = match set {
        Err(why) => return Group::new("CNI", vec![Finding::unseen(CHECK, why)]),
        Ok(None) => {
            let detail = "not installed; each meshed pod sets up its own redirect";
            return Group::new("CNI", vec![Finding::ok(CHECK, detail)]);
        }
        Ok(Some(set)) => set,
    };
    let linux = nodes.iter().flatten().filter(|node| node.system == "linux").count();
    let namespace = &set.namespace;
    let mut findings = Vec::new();
    if set.ready < set.wanted {
        findings.push(Finding::failure(
            CHECK,
            format!(
                "ready on {} of {}: no meshed pod starts on the others",
                set.ready,
                counted(size(set.wanted), "node")
            ),
            format!(
                "see why: kubectl -n {namespace} describe pods -l weft.dev/component=cni; \
                 kubectl -n {namespace} logs -l weft.dev/component=cni"
            ),
        ));
    } else {
        findings.push(Finding::ok(CHECK, format!("ready on {}", counted(size(set.ready), "node"))));
    }
    if size(set.wanted) < linux {
        findings.push(Finding::warning(
            "nodes",
            format!("{} without the plugin: no meshed pod starts there", counted(linux - size(set.wanted), "node")),
            "tolerate their taints: helm upgrade … --set-json 'cni.tolerations=[{\"operator\":\"Exists\"}]'",
        ));
    }
    if set.updated < set.wanted {
        findings.push(Finding::warning(
            "update",
            format!("{} of {} are up to date", set.updated, counted(size(set.wanted), "node")),
            format!("wait for it: kubectl -n {namespace} rollout status daemonset {CNI}"),
        ));
    }
    Group::new("CNI", findings)
}

fn size(number: i32) -> usize {
    usize::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn the_plugin_must_be_ready_on_every_node() {
        use Verdict::{Failure, Ok as Well, Warning};
        let set = |wanted, ready, updated| {
            Ok(Some(DaemonSetFacts { namespace: "weft-system".into(), wanted, ready, updated }))
        };
        let node = || NodeFacts { system: "linux".into(), ..NodeFacts::default() };
        for (set, expected) in [
            (Ok(None), vec![("plugin", Well)]),
            (Err("forbidden".to_owned()), vec![("plugin", Warning)]),
            (set(2, 2, 2), vec![("plugin", Well)]),
            (set(2, 1, 2), vec![("plugin", Failure)]),
            (set(1, 1, 1), vec![("plugin", Well), ("nodes", Warning)]),
            (set(2, 2, 1), vec![("plugin", Well), ("update", Warning)]),
        ] {
            let group = judge(&set, &Ok(vec![node(), node()]));
            let found: Vec<_> = group.findings.iter().map(|finding| (finding.check, finding.verdict)).collect();
            assert_eq!(found, expected);
        }
    }
}
