//! Other meshes in the cluster: two that redirect the same pod's connections break both.
use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::ListParams;

use super::Seen;
use super::finding::{Finding, Group};
use crate::kubernetes::client::{Cluster, list};
use crate::kubernetes::objects::NamespaceFacts;
use crate::kubernetes::output::some_of;

/// How a mesh is known.
struct Mesh {
    name: &'static str,
    /// Its kinds' groups end with this.
    group: &'static str,
    /// Its injector's webhook configuration begins with this.
    webhook: &'static str,
    /// What puts a namespace into it: label or annotation, and value (empty: any).
    joins: &'static [(&'static str, &'static str)],
}

const MESHES: [Mesh; 5] = [
    Mesh {
        name: "Istio",
        group: "istio.io",
        webhook: "istio-sidecar-injector",
        joins: &[("istio-injection", "enabled"), ("istio.io/rev", ""), ("istio.io/dataplane-mode", "ambient")],
    },
    Mesh {
        name: "Linkerd",
        group: "linkerd.io",
        webhook: "linkerd-proxy-injector",
        joins: &[("linkerd.io/inject", "enabled"), ("linkerd.io/inject", "ingress")],
    },
    Mesh {
        name: "Consul",
        group: "consul.hashicorp.com",
        webhook: "consul-connect-injector",
        joins: &[("consul.hashicorp.com/connect-inject", "true")],
    },
    Mesh {
        name: "Kuma",
        group: "kuma.io",
        webhook: "kuma-admission-mutating-webhook",
        joins: &[("kuma.io/sidecar-injection", "enabled"), ("kuma.io/sidecar-injection", "true")],
    },
    Mesh {
        name: "Open Service Mesh",
        group: "openservicemesh.io",
        webhook: "osm-webhook",
        joins: &[("openservicemesh.io/monitored-by", "")],
    },
];

/// Traces of any mesh.
pub(super) struct MeshFacts {
    /// Groups of all kinds.
    groups: Seen<BTreeSet<String>>,
    /// Names of all mutating webhook configurations.
    webhooks: Seen<Vec<String>>,
}

pub(super) async fn look(cluster: &Cluster) -> MeshFacts {
    let (crds, webhooks) =
        (cluster.global::<CustomResourceDefinition>(), cluster.global::<MutatingWebhookConfiguration>());
    let (crds, webhooks) = tokio::join!(list(&crds, ListParams::default()), list(&webhooks, ListParams::default()));
    MeshFacts {
        groups: crds.map(|all| all.into_iter().map(|crd| crd.spec.group).collect()),
        webhooks: webhooks.map(|all| all.iter().map(ResourceExt::name_any).collect()),
    }
}

pub(super) fn judge(facts: &MeshFacts, namespaces: &Seen<Vec<NamespaceFacts>>) -> Group {
    let mut findings = Vec::new();
    for why in [facts.groups.as_ref().err(), facts.webhooks.as_ref().err()].into_iter().flatten() {
        findings.push(Finding::unseen("other meshes", why));
    }
    let nothing = Vec::new();
    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => {
            findings.push(Finding::unseen("namespaces", why));
            &nothing
        }
    };
    for mesh in &MESHES {
        let has_kinds = facts.groups.as_ref().is_ok_and(|groups| groups.iter().any(|group| belongs(group, mesh.group)));
        let has_injector = facts
            .webhooks
            .as_ref()
            .is_ok_and(|webhooks| webhooks.iter().any(|webhook| webhook.starts_with(mesh.webhook)));
        let joined: Vec<&NamespaceFacts> = namespaces.iter().filter(|namespace| joins(namespace, mesh)).collect();
        let both: Vec<&str> =
            joined.iter().filter(|namespace| namespace.meshed()).map(|namespace| namespace.name.as_str()).collect();
        if !both.is_empty() {
            findings.push(Finding::failure(
                "two meshes",
                format!("{} and Weft both inject into {}", mesh.name, some_of(&both)),
                format!("take the namespace out of one: remove weft.dev/inject, or the {} label", mesh.joins[0].0),
            ));
        } else if has_injector || !joined.is_empty() {
            let joined: Vec<&str> = joined.iter().map(|namespace| namespace.name.as_str()).collect();
            let where_to = if joined.is_empty() { "no namespace".to_owned() } else { some_of(&joined) };
            findings.push(Finding::warning(
                "other meshes",
                format!("{} is here and injects into {where_to}", mesh.name),
                "keep each namespace in one of the two meshes; calls between them are plaintext to the other",
            ));
        } else if has_kinds {
            findings.push(Finding::warning(
                "other meshes",
                format!("kinds of {} are here, but no injector", mesh.name),
                "harmless; if it was uninstalled, remove what it left behind",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("other meshes", "there is none"));
    }
    Group::new("Other meshes", findings)
}

fn belongs(group: &str, end: &str) -> bool {
    group == end || group.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'))
}

fn joins(namespace: &NamespaceFacts, mesh: &Mesh) -> bool {
    mesh.joins.iter().any(|(key, value)| {
        let said = namespace.labels.get(*key).or_else(|| namespace.annotations.get(*key));
        said.is_some_and(|said| value.is_empty() || said == value)
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn namespace(name: &str, weft: bool, labels: &[(&str, &str)]) -> NamespaceFacts {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        NamespaceFacts { name: name.into(), inject: weft.then_some(true), labels, ..NamespaceFacts::default() }
    }

    #[test]
    fn another_mesh_warns_and_one_in_the_same_namespace_fails() {
        use Verdict::{Failure, Ok as Well, Warning};
        let istio = ("istio-injection", "enabled");
        for (case, groups, webhooks, namespaces, expected) in [
            ("none", vec!["cert-manager.io"], vec![], vec![namespace("shop", true, &[])], vec![("other meshes", Well)]),
            ("kinds left behind", vec!["networking.istio.io"], vec![], vec![], vec![("other meshes", Warning)]),
            (
                "an injector with a revision",
                vec!["security.istio.io"],
                vec!["istio-sidecar-injector-canary"],
                vec![namespace("shop", true, &[])],
                vec![("other meshes", Warning)],
            ),
            (
                "each its own namespace",
                vec![],
                vec!["linkerd-proxy-injector-webhook-config"],
                vec![namespace("shop", true, &[]), namespace("bank", false, &[("linkerd.io/inject", "enabled")])],
                vec![("other meshes", Warning)],
            ),
            ("both", vec![], vec![], vec![namespace("shop", true, &[istio])], vec![("two meshes", Failure)]),
            (
                "opted out of the other",
                vec![],
                vec![],
                vec![namespace("shop", true, &[("istio-injection", "disabled")])],
                vec![("other meshes", Well)],
            ),
            ("a name that only looks alike", vec!["notistio.io"], vec![], vec![], vec![("other meshes", Well)]),
        ] {
            let facts = MeshFacts {
                groups: Ok(groups.into_iter().map(str::to_owned).collect()),
                webhooks: Ok(webhooks.into_iter().map(str::to_owned).collect()),
            };
            let found: Vec<_> = judge(&facts, &Ok(namespaces))
                .findings
                .iter()
                .map(|finding| (finding.check, finding.verdict))
                .collect();
            assert_eq!(found, expected, "{case}");
        }
    }
}
