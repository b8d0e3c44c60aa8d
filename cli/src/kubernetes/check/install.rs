//! What of Weft is in the cluster: kinds, control plane, leader.
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use kube::api::ListParams;

use super::Seen;
use super::finding::{Finding, Group};
use crate::kubernetes::client::{Cluster, find, list};
use crate::kubernetes::names::{API_VERSION, CONTROL_PLANE, GROUP};
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::output::{counted, some_of, span};
use crate::kubernetes::policy_kinds;

const RELEASE: &str = "meta.helm.sh/release-name";
const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";
/// How the chart is installed; the words of the README.
const HELM_INSTALL: &str =
    "weft check --pre && helm install weft charts/weft --namespace weft-system --create-namespace";

/// A kind of Weft's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CrdFacts {
    name: String,
    established: bool,
    versions: Vec<String>,
    weft: Option<String>,
    release: Option<String>,
}

/// The control plane's Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeploymentFacts {
    namespace: String,
    wanted: i32,
    ready: i32,
    updated: i32,
}

/// The leader's Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeaseFacts {
    namespace: String,
    holder: Option<String>,
    renewed: Option<i64>,
    duration: i64,
}

/// What is there.
pub(super) struct InstallFacts {
    crds: Seen<Vec<CrdFacts>>,
    deployments: Seen<Vec<DeploymentFacts>>,
    leases: Seen<Vec<LeaseFacts>>,
    /// Helm release that the ClusterRole belongs to: its name and namespace. `None`: there is no ClusterRole.
    release: Seen<Option<(String, String)>>,
}

pub(super) async fn look(cluster: &Cluster) -> InstallFacts {
    let named = || ListParams::default().fields(&format!("metadata.name={CONTROL_PLANE}"));
    let (crds, deployments, leases, roles) = (
        cluster.global::<CustomResourceDefinition>(),
        cluster.api::<Deployment>(None),
        cluster.api::<Lease>(None),
        cluster.global::<ClusterRole>(),
    );
    let (crds, deployments, leases, role) = tokio::join!(
        list(&crds, ListParams::default()),
        list(&deployments, named()),
        list(&leases, named()),
        find(&roles, CONTROL_PLANE),
    );
    InstallFacts {
        crds: crds.map(|all| all.iter().filter(|crd| crd.spec.group == GROUP).map(crd_facts).collect()),
        deployments: deployments.map(|all| all.iter().map(deployment_facts).collect()),
        leases: leases.map(|all| all.iter().map(lease_facts).collect()),
        release: role.map(|role| {
            role.map(|role| {
                let of = |key: &str| role.annotations().get(key).cloned().unwrap_or_default();
                (of(RELEASE), of(RELEASE_NAMESPACE))
            })
        }),
    }
}

fn crd_facts(crd: &CustomResourceDefinition) -> CrdFacts {
    let conditions = crd.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    CrdFacts {
        name: crd.spec.names.plural.clone(),
        established: conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True"),
        versions: crd
            .spec
            .versions
            .iter()
            .filter(|version| version.served)
            .map(|version| version.name.clone())
            .collect(),
        weft: crd.labels().get("app.kubernetes.io/version").cloned(),
        release: crd.annotations().get(RELEASE).cloned(),
    }
}

fn deployment_facts(deployment: &Deployment) -> DeploymentFacts {
    let status = deployment.status.clone().unwrap_or_default();
    DeploymentFacts {
        namespace: deployment.namespace().unwrap_or_default(),
        wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        ready: status.ready_replicas.unwrap_or_default(),
        updated: status.updated_replicas.unwrap_or_default(),
    }
}

fn lease_facts(lease: &Lease) -> LeaseFacts {
    let spec = lease.spec.clone().unwrap_or_default();
    LeaseFacts {
        namespace: lease.namespace().unwrap_or_default(),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        renewed: spec.renew_time.map(|time| time.0.as_second()),
        duration: spec.lease_duration_seconds.unwrap_or(15).into(),
    }
}

/// Before installing: what is there already that an installation would meet.
pub(super) fn judge_before(facts: &InstallFacts, namespace: &str) -> Group {
    let mut findings = Vec::new();
    match &facts.release {
        Err(why) => findings.push(Finding::unseen("installed", why)),
        Ok(None) => findings.push(Finding::ok("installed", "no other installation of Weft is there")),
        Ok(Some((release, there))) if release.is_empty() => findings.push(Finding::failure(
            "installed",
            format!("ClusterRole {CONTROL_PLANE} is there and belongs to no Helm release{}", within(there)),
            format!("Helm will not adopt it; remove what is left of that installation: kubectl delete clusterrole {CONTROL_PLANE}"),
        )),
        Ok(Some((release, there))) if there == namespace => findings.push(Finding::warning(
            "installed",
            format!("Weft is installed already, as release {release} in namespace {there}"),
            format!("upgrade it: helm upgrade {release} charts/weft --namespace {there}; check it: weft check"),
        )),
        Ok(Some((release, there))) => findings.push(Finding::failure(
            "installed",
            format!("Weft is installed already, as release {release} in namespace {there}; a cluster has one mesh"),
            format!("upgrade that one: helm upgrade {release} charts/weft --namespace {there}; or uninstall it first"),
        )),
    }
    match &facts.crds {
        Err(why) => findings.push(Finding::unseen("kinds", why)),
        Ok(crds) => {
            let foreign: Vec<&str> =
                crds.iter().filter(|crd| crd.release.is_none()).map(|crd| crd.name.as_str()).collect();
            let other = crds.iter().find(|crd| !crd.versions.iter().any(|version| version == API_VERSION));
            findings.push(if let Some(crd) = other {
                Finding::failure(
                    "kinds",
                    format!("{}.{GROUP} is there without version {API_VERSION}: {}", crd.name, crd.versions.join(", ")),
                    "it is of another version of Weft: upgrade that one, or use the command line that belongs to it",
                )
            } else if foreign.is_empty() {
                Finding::ok("kinds", format!("none of group {GROUP} is in the way"))
            } else {
                Finding::failure(
                    "kinds",
                    format!("{} of group {GROUP} belong to no Helm release", some_of(&foreign)),
                    "Helm will not adopt them; after saving your policies remove them: \
                     kubectl get authorizationpolicies,ratelimitpolicies,workloads -A -o yaml > saved.yaml; kubectl delete crd NAME",
                )
            });
        }
    }
    Group::new("Installation", findings)
}

fn within(namespace: &str) -> String {
    if namespace.is_empty() { String::new() } else { format!(" in namespace {namespace}") }
}

impl InstallFacts {
    /// Whether nothing at all of Weft is there.
    pub(super) fn is_absent(&self) -> bool {
        matches!(&self.crds, Ok(crds) if crds.is_empty())
            && matches!(&self.deployments, Ok(deployments) if deployments.is_empty())
            && matches!(self.release, Ok(None))
    }

    /// The namespace of the control plane.
    pub(super) fn namespace(&self) -> Option<&str> {
        let deployments = self.deployments.as_deref().unwrap_or_default();
        deployments.first().map(|deployment| deployment.namespace.as_str())
    }
}

/// After installing: whether all of it is there, and runs.
pub(super) fn judge_after(facts: &InstallFacts, replicas: &Seen<Vec<PodFacts>>, namespace: &str, now: i64) -> Group {
    let mut findings = vec![kinds(&facts.crds), deployment(&facts.deployments, namespace)];
    if let Ok(deployments) = &facts.deployments
        && !deployments.is_empty()
    {
        findings.push(pods(replicas, namespace));
        findings.push(leader(&facts.leases, namespace, now));
    }
    Group::new("Control plane", findings)
}

fn kinds(crds: &Seen<Vec<CrdFacts>>) -> Finding {
    let crds = match crds {
        Ok(crds) => crds,
        Err(why) => return Finding::unseen("kinds", why),
    };
    let missing: Vec<&str> = policy_kinds::ALL
        .iter()
        .map(|kind| kind.plural)
        .filter(|kind| !crds.iter().any(|crd| crd.name == *kind))
        .collect();
    let pending: Vec<&str> = crds.iter().filter(|crd| !crd.established).map(|crd| crd.name.as_str()).collect();
    let other: Vec<&str> = crds
        .iter()
        .filter(|crd| !crd.versions.iter().any(|version| version == API_VERSION))
        .map(|crd| crd.name.as_str())
        .collect();
    if !missing.is_empty() {
        let remedy = if missing.len() == policy_kinds::ALL.len() {
            format!("install Weft: {HELM_INSTALL}")
        } else {
            reinstall()
        };
        Finding::failure("kinds", format!("{} of group {GROUP} are missing", some_of(&missing)), remedy)
    } else if !pending.is_empty() {
        Finding::failure(
            "kinds",
            format!("{} of group {GROUP} are not established", some_of(&pending)),
            "see why: kubectl describe crd NAME; another definition may claim the same names",
        )
    } else if !other.is_empty() {
        Finding::failure(
            "kinds",
            format!("{} of group {GROUP} are not served as {API_VERSION}", some_of(&other)),
            "use the command line of the version that is installed",
        )
    } else {
        let version = crds.iter().find_map(|crd| crd.weft.clone()).unwrap_or_else(|| "unknown".to_owned());
        Finding::ok("kinds", format!("{} of group {GROUP}, of version {version}", crds.len()))
    }
}

fn reinstall() -> String {
    "repair the installation: helm upgrade weft charts/weft --namespace weft-system".to_owned()
}

fn deployment(deployments: &Seen<Vec<DeploymentFacts>>, namespace: &str) -> Finding {
    let deployments = match deployments {
        Ok(deployments) => deployments,
        Err(why) => return Finding::unseen("deployment", why),
    };
    match deployments.as_slice() {
        [] => Finding::failure(
            "deployment",
            format!("there is no Deployment {CONTROL_PLANE} in any namespace"),
            format!("install Weft: {HELM_INSTALL}"),
        ),
        [one] if one.wanted == 0 => Finding::failure(
            "deployment",
            format!("it is scaled to no replica in namespace {}", one.namespace),
            format!("kubectl -n {} scale deployment {CONTROL_PLANE} --replicas=2", one.namespace),
        ),
        [one] if one.ready < one.wanted || one.updated < one.wanted => {
            let detail = format!(
                "{} of {} replicas are ready and {} are up to date in namespace {}",
                one.ready, one.wanted, one.updated, one.namespace
            );
            let remedy = format!(
                "see why: kubectl -n {0} describe pods -l weft.dev/component=control-plane; \
                 kubectl -n {0} logs -l weft.dev/component=control-plane",
                one.namespace
            );
            if one.ready == 0 {
                Finding::failure("deployment", detail, remedy)
            } else {
                Finding::warning("deployment", detail, remedy)
            }
        }
        [one] => Finding::ok(
            "deployment",
            format!("{} of {} replicas are ready in namespace {}", one.ready, one.wanted, one.namespace),
        ),
        several => {
            let places: Vec<&str> = several.iter().map(|one| one.namespace.as_str()).collect();
            Finding::failure(
                "deployment",
                format!("there are several control planes, in {}; a cluster has one mesh", some_of(&places)),
                format!("uninstall all but that in {namespace}: helm uninstall weft --namespace NAMESPACE"),
            )
        }
    }
}

fn pods(replicas: &Seen<Vec<PodFacts>>, namespace: &str) -> Finding {
    let replicas = match replicas {
        Ok(replicas) => replicas,
        Err(why) => return Finding::unseen("replicas", why),
    };
    let away: Vec<&str> = replicas.iter().filter(|pod| !pod.ready).map(|pod| pod.name.as_str()).collect();
    if replicas.is_empty() {
        Finding::failure(
            "replicas",
            "the Deployment has no pods",
            format!("see why: kubectl -n {namespace} describe replicasets -l weft.dev/component=control-plane"),
        )
    } else if away.len() == replicas.len() {
        Finding::failure(
            "replicas",
            format!("none of {} is ready", counted(replicas.len(), "pod")),
            format!("its /ready says why: kubectl -n {namespace} logs -l weft.dev/component=control-plane"),
        )
    } else if !away.is_empty() {
        Finding::warning(
            "replicas",
            format!("not ready: {}", some_of(&away)),
            format!("see why: kubectl -n {namespace} logs {}", away[0]),
        )
    } else {
        Finding::ok("replicas", format!("{} ready", counted(replicas.len(), "pod")))
    }
}

fn leader(leases: &Seen<Vec<LeaseFacts>>, namespace: &str, now: i64) -> Finding {
    let lease = match leases {
        Ok(leases) => leases.iter().find(|lease| lease.namespace == namespace),
        Err(why) => return Finding::unseen("leader", why),
    };
    let remedy = format!(
        "nobody writes status until there is one; see why: kubectl -n {namespace} logs -l weft.dev/component=control-plane \
         | grep -i lease"
    );
    let Some((holder, renewed)) = lease.and_then(|lease| lease.holder.as_ref().zip(lease.renewed)) else {
        return Finding::failure("leader", format!("nobody holds Lease {CONTROL_PLANE}"), remedy);
    };
    let (age, duration) = (now - renewed, lease.map_or(15, |lease| lease.duration));
    if age > 2 * duration {
        let age = span(age.unsigned_abs());
        return Finding::failure("leader", format!("{holder} renewed its Lease last {age} ago"), remedy);
    }
    Finding::ok("leader", holder.clone())
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
