//! The nodes: whether sidecars can run there, and whether their clocks agree.
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::ListParams;

use super::Seen;
use super::finding::{Finding, Group};
use crate::kubernetes::client::{Cluster, list};
use crate::kubernetes::output::{counted, some_of};

/// Processors that there are images for.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// The redirect rules are nftables' in the family inet with a nat chain.
const KERNEL: (u32, u32) = (5, 2);
/// Native sidecars.
const KUBELET: (u32, u32) = (1, 29);
/// Certificates are dated back by 60 s; half of it is left for the way there.
const AHEAD_TOLERATED: i64 = 30;
/// Kubelets renew every 10 s, and count as away after 40 s.
const BEHIND_TOLERATED: i64 = 60;

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) system: String,
    pub(super) architecture: String,
    pub(super) kernel: String,
    pub(super) runtime: String,
    pub(super) kubelet: String,
    /// When it last renewed its lease, by its own clock: seconds since 1970.
    pub(super) renewed: Option<i64>,
}

pub(super) async fn look(cluster: &Cluster) -> Seen<Vec<NodeFacts>> {
    let (nodes, leases) = (cluster.global::<Node>(), cluster.api::<Lease>(Some("kube-node-lease")));
    let (nodes, leases) = tokio::join!(list(&nodes, ListParams::default()), list(&leases, ListParams::default()));
    // Without the leases clocks are not judged; all else is.
    let leases = leases.unwrap_or_default();
    let renewed = |name: &str| {
        let lease = leases.iter().find(|lease| lease.metadata.name.as_deref() == Some(name))?;
        Some(lease.spec.as_ref()?.renew_time.as_ref()?.0.as_second())
    };
    Ok(nodes?.iter().map(|node| NodeFacts { renewed: renewed(&node.name_any()), ..facts(node) }).collect())
}

fn facts(node: &Node) -> NodeFacts {
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    NodeFacts {
        name: node.name_any(),
        ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        system: info.operating_system,
        architecture: info.architecture,
        kernel: info.kernel_version,
        runtime: info.container_runtime_version,
        kubelet: info.kubelet_version,
        renewed: None,
    }
}

pub(super) fn judge(nodes: &Seen<Vec<NodeFacts>>, now: i64) -> Group {
    let nodes = match nodes {
        Ok(nodes) => nodes,
        Err(why) => return Group::new("Nodes", vec![Finding::unseen("nodes", why)]),
    };
    if nodes.is_empty() {
        let finding = Finding::warning("nodes", "there is none", "add one: nothing can run");
        return Group::new("Nodes", vec![finding]);
    }
    let linux: Vec<&NodeFacts> = nodes.iter().filter(|node| node.system == "linux").collect();
    let lines = [
        Line {
            check: "ready",
            well: counted(nodes.len(), "node"),
            remedy: "see why: kubectl describe node NAME",
            fails: false,
            wrong: &|node| (!node.ready).then(|| "is not ready".to_owned()),
        },
        Line {
            check: "system",
            well: "Linux".to_owned(),
            remedy: "mesh no namespace whose pods run there, and keep the control plane away from it (nodeSelector kubernetes.io/os: linux)",
            fails: false,
            wrong: &|node| (node.system != "linux").then(|| format!("runs {}", node.system)),
        },
    ];
    let linux_lines = [
        Line {
            check: "architecture",
            well: distinct(&linux, |node| &node.architecture),
            remedy: "build images for it (docker buildx), or keep meshed pods away from it (nodeSelector kubernetes.io/arch)",
            fails: false,
            wrong: &|node| {
                (!ARCHITECTURES.contains(&node.architecture.as_str()))
                    .then(|| format!("is {}, for which there are no images", node.architecture))
            },
        },
        Line {
            check: "kernel",
            well: distinct(&linux, |node| &node.kernel),
            remedy: "upgrade to Linux 5.2 or later: the redirect rules need nftables with nat in the family inet",
            fails: true,
            wrong: &|node| older(&node.kernel, KERNEL).then(|| format!("has kernel {}", node.kernel)),
        },
        Line {
            check: "kubelet",
            well: distinct(&linux, |node| &node.kubelet),
            remedy: "upgrade to 1.29 or later: older ones run no native sidecars",
            fails: true,
            wrong: &|node| older(&node.kubelet, KUBELET).then(|| format!("has kubelet {}", node.kubelet)),
        },
        Line {
            check: "container runtime",
            well: distinct(&linux, |node| &node.runtime),
            remedy: "use containerd or CRI-O; Weft is not tested with others",
            fails: false,
            wrong: &|node| {
                let known = ["containerd://", "cri-o://"].iter().any(|name| node.runtime.starts_with(name));
                (!known).then(|| format!("has {}", node.runtime))
            },
        },
        Line {
            check: "clocks",
            well: if linux.iter().any(|node| node.renewed.is_some()) {
                "agree with the API server's".to_owned()
            } else {
                "no heartbeats that tell".to_owned()
            },
            remedy: "set them by NTP (timedatectl status there): beyond a minute certificates are refused as not yet valid, or as expired",
            fails: true,
            wrong: &|node| skewed(node, now),
        },
    ];
    let every: Vec<&NodeFacts> = nodes.iter().collect();
    let findings = lines.iter().map(|line| line.over(&every)).chain(linux_lines.iter().map(|line| line.over(&linux)));
    Group::new("Nodes", findings.collect())
}

/// One question that is put to every node.
struct Line<'a> {
    check: &'static str,
    well: String,
    remedy: &'static str,
    fails: bool,
    wrong: &'a dyn Fn(&NodeFacts) -> Option<String>,
}

impl Line<'_> {
    fn over(&self, nodes: &[&NodeFacts]) -> Finding {
        let wrong: Vec<String> =
            nodes.iter().filter_map(|node| (self.wrong)(node).map(|what| format!("{} {what}", node.name))).collect();
        match (wrong.as_slice(), self.fails) {
            ([], _) => Finding::ok(self.check, self.well.clone()),
            (wrong, true) => Finding::failure(self.check, some_of(wrong), self.remedy),
            (wrong, false) => Finding::warning(self.check, some_of(wrong), self.remedy),
        }
    }
}

fn distinct(nodes: &[&NodeFacts], of: impl Fn(&NodeFacts) -> &String) -> String {
    let mut values: Vec<&String> = nodes.iter().map(|node| of(node)).collect();
    values.sort();
    values.dedup();
    some_of(&values)
}

/// A node that is ready and whose lease says another time than ours.
fn skewed(node: &NodeFacts, now: i64) -> Option<String> {
    let ahead = node.renewed? - now;
    if ahead > AHEAD_TOLERATED {
        Some(format!("is {ahead} s ahead"))
    } else if node.ready && -ahead > BEHIND_TOLERATED {
        Some(format!("is up to {} s behind", -ahead))
    } else {
        None
    }
}

/// Whether a version such as `v1.31.2-eks`, `6.1.0-13-amd64` is older. One that cannot be read is not.
fn older(version: &str, than: (u32, u32)) -> bool {
    let mut numbers = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < than,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn node() -> NodeFacts {
        NodeFacts {
            name: "a".into(),
            ready: true,
            system: "linux".into(),
            architecture: "amd64".into(),
            kernel: "6.1.0-13-amd64".into(),
            runtime: "containerd://1.7.2".into(),
            kubelet: "v1.31.2".into(),
            renewed: Some(995),
        }
    }

    #[test]
    fn each_thing_that_a_node_lacks_is_its_own_line() {
        let wrong = |check: &'static str, verdict, change: &dyn Fn(&mut NodeFacts)| {
            let mut node = node();
            change(&mut node);
            (check, verdict, node)
        };
        for (check, verdict, node) in [
            wrong("ready", Verdict::Warning, &|node| node.ready = false),
            wrong("system", Verdict::Warning, &|node| node.system = "windows".into()),
            wrong("architecture", Verdict::Warning, &|node| node.architecture = "s390x".into()),
            wrong("kernel", Verdict::Failure, &|node| node.kernel = "4.19.0".into()),
            wrong("kernel", Verdict::Failure, &|node| node.kernel = "5.1.21".into()),
            wrong("kubelet", Verdict::Failure, &|node| node.kubelet = "v1.28.9-gke.1".into()),
            wrong("container runtime", Verdict::Warning, &|node| node.runtime = "docker://24".into()),
            wrong("clocks", Verdict::Failure, &|node| node.renewed = Some(1_100)),
            wrong("clocks", Verdict::Failure, &|node| node.renewed = Some(900)),
        ] {
            let group = judge(&Ok(vec![node]), 1_000);
            let not_well: Vec<_> = group
                .findings
                .iter()
                .filter(|finding| finding.verdict != Verdict::Ok)
                .map(|finding| (finding.check, finding.verdict))
                .collect();
            assert_eq!(not_well, [(check, verdict)]);
        }
        assert!(judge(&Ok(vec![node()]), 1_000).findings.iter().all(|finding| finding.verdict == Verdict::Ok));
    }

    #[test]
    fn a_node_that_is_away_is_not_blamed_for_its_clock() {
        let away = NodeFacts { ready: false, renewed: Some(0), ..node() };
        assert_eq!(skewed(&away, 1_000), None);
        assert_eq!(skewed(&NodeFacts { renewed: None, ..node() }, 1_000), None);
    }
}
