//! Whether this user may install: one question to the API server for each thing that the chart makes.
use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use super::Seen;
use super::finding::{Finding, Group};
use crate::kubernetes::client::{Cluster, explain};

/// Questions on their way at one time.
const AT_ONCE: usize = 16;
/// What Helm does to each object of a chart.
const VERBS: [&str; 4] = ["create", "get", "patch", "delete"];

/// A kind that the chart installs.
struct Kind {
    group: &'static str,
    resource: &'static str,
    namespaced: bool,
    /// Only with some values: `--set cni.enabled=true` and the like.
    only_with: Option<&'static str>,
}

impl Kind {
    /// As kubectl takes it.
    fn name(&self) -> String {
        if self.group.is_empty() { self.resource.to_owned() } else { format!("{}.{}", self.resource, self.group) }
    }
}

const fn cluster(group: &'static str, resource: &'static str) -> Kind {
    Kind { group, resource, namespaced: false, only_with: None }
}

const fn namespaced(group: &'static str, resource: &'static str) -> Kind {
    Kind { group, resource, namespaced: true, only_with: None }
}

const fn optional(group: &'static str, resource: &'static str, only_with: &'static str) -> Kind {
    Kind { group, resource, namespaced: true, only_with: Some(only_with) }
}

const KINDS: [Kind; 18] = [
    cluster("apiextensions.k8s.io", "customresourcedefinitions"),
    cluster("rbac.authorization.k8s.io", "clusterroles"),
    cluster("rbac.authorization.k8s.io", "clusterrolebindings"),
    cluster("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    cluster("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    cluster("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    cluster("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
    namespaced("apps", "deployments"),
    namespaced("", "services"),
    namespaced("", "serviceaccounts"),
    namespaced("", "configmaps"),
    // Helm keeps its releases there.
    namespaced("", "secrets"),
    namespaced("rbac.authorization.k8s.io", "roles"),
    namespaced("rbac.authorization.k8s.io", "rolebindings"),
    namespaced("policy", "poddisruptionbudgets"),
    namespaced("networking.k8s.io", "networkpolicies"),
    optional("apps", "daemonsets", "cni.enabled=true"),
    optional("monitoring.coreos.com", "servicemonitors", "the Prometheus Operator's monitors"),
];

/// What the API server says to one kind.
pub(super) struct Permission {
    kind: &'static Kind,
    /// Verbs that are denied.
    denied: Seen<Vec<&'static str>>,
}

/// The answers.
pub(super) struct PermissionFacts {
    namespace: String,
    kinds: Vec<Permission>,
    /// Whether a role may be given permissions that its maker lacks.
    escalate: Seen<bool>,
}

pub(super) async fn look(cluster: &Cluster, namespace: &str) -> PermissionFacts {
    let kinds = stream::iter(&KINDS).map(|kind| async move {
        let mut denied = Ok(Vec::new());
        for verb in VERBS {
            let namespace = kind.namespaced.then_some(namespace);
            match (allowed(cluster, kind.group, kind.resource, verb, namespace).await, &mut denied) {
                (Ok(false), Ok(denied)) => denied.push(verb),
                (Err(fault), denied) => *denied = Err(fault),
                _ => {}
            }
        }
        Permission { kind, denied }
    });
    let (kinds, escalate) = tokio::join!(
        kinds.buffered(AT_ONCE).collect(),
        allowed(cluster, "rbac.authorization.k8s.io", "clusterroles", "escalate", None),
    );
    PermissionFacts { namespace: namespace.to_owned(), kinds, escalate }
}

async fn allowed(
    cluster: &Cluster,
    group: &str,
    resource: &str,
    verb: &str,
    namespace: Option<&str>,
) -> Result<bool, String> {
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        namespace: namespace.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..Default::default()
    };
    let api: Api<SelfSubjectAccessReview> = cluster.global();
    let answer = api.create(&PostParams::default(), &review).await.map_err(|fault| explain(&fault))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

pub(super) fn judge(facts: &PermissionFacts) -> Group {
    let mut findings: Vec<Finding> = Vec::new();
    let mut allowed = 0;
    // One line for all that is denied alike.
    let mut denials: BTreeMap<(Option<&str>, &[&str]), Vec<String>> = BTreeMap::new();
    let mut unseen: BTreeSet<&String> = BTreeSet::new();
    for Permission { kind, denied } in &facts.kinds {
        match denied {
            Err(why) => drop(unseen.insert(why)),
            Ok(denied) if denied.is_empty() => allowed += 1,
            Ok(denied) => denials.entry((kind.only_with, denied.as_slice())).or_default().push(kind.name()),
        }
    }
    for ((only_with, verbs), kinds) in denials {
        let detail = format!("you may not {} in namespace {}: {}", verbs.join(", "), facts.namespace, kinds.join(", "));
        findings.push(match only_with {
            None => Finding::failure(
                "permissions",
                detail,
                "install as a user with the ClusterRole cluster-admin: \
                 kubectl create clusterrolebinding weft-installer --clusterrole=cluster-admin --user=YOU",
            ),
            Some(values) => Finding::warning(
                "permissions",
                detail,
                format!("needed only with {values}; then install as a user who may"),
            ),
        });
    }
    findings.extend(unseen.into_iter().map(|why| Finding::unseen("permissions", why)));
    if allowed > 0 {
        findings
            .insert(0, Finding::ok("permissions", format!("you may install {allowed} of {} kinds", facts.kinds.len())));
    }
    match &facts.escalate {
        Ok(true) => {}
        Ok(false) => findings.push(Finding::warning(
            "roles",
            "you may give the control plane no permission that you do not have yourself",
            "install as a user with the ClusterRole cluster-admin, or one who may `escalate` clusterroles",
        )),
        Err(why) => findings.push(Finding::unseen("roles", why)),
    }
    Group::new("Permissions", findings)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn what_the_chart_always_needs_fails_and_the_rest_warns() {
        let facts = |denied: &dyn Fn(&Kind) -> Seen<Vec<&'static str>>, escalate| PermissionFacts {
            namespace: "weft-system".into(),
            kinds: KINDS.iter().map(|kind| Permission { kind, denied: denied(kind) }).collect(),
            escalate,
        };
        let verdicts = |facts: &PermissionFacts| {
            let all = judge(facts).findings;
            let count = |verdict| all.iter().filter(|finding| finding.verdict == verdict).count();
            (count(Verdict::Ok), count(Verdict::Warning), count(Verdict::Failure))
        };
        assert_eq!(verdicts(&facts(&|_| Ok(vec![]), Ok(true))), (1, 0, 0));
        assert_eq!(verdicts(&facts(&|_| Ok(vec!["create"]), Ok(false))), (0, 3, 1));
        assert_eq!(verdicts(&facts(&|_| Err("no answer".into()), Ok(true))), (0, 1, 0));
        let one =
            facts(&|kind| Ok(if kind.resource == "secrets" { vec!["patch", "delete"] } else { vec![] }), Ok(true));
        let failure = judge(&one).findings.remove(1);
        assert_eq!(failure.detail, "you may not patch, delete in namespace weft-system: secrets");
    }
}
