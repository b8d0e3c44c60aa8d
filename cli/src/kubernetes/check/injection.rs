//! Namespaces of the mesh: whether their pods can be, and are, injected.
use super::Seen;
use super::cni::DaemonSetFacts;
use super::finding::{Finding, Group};
use crate::kubernetes::names::INJECT;
use crate::kubernetes::objects::{NamespaceFacts, PodFacts};
use crate::kubernetes::output::{counted, some_of};

/// Label of Pod Security's level.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// Namespaces that are never injected, whatever they say: the cluster could not start again without its own pods.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Before installing: which namespaces cannot take the redirect set-up without the CNI plugin.
pub(super) fn judge_before(namespaces: &Seen<Vec<NamespaceFacts>>, release: &str) -> Group {
    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return Group::new("Namespaces", vec![Finding::unseen("pod security", why)]),
    };
    let mut findings = vec![wrong_values(namespaces)];
    let held = restrained(namespaces);
    findings.push(if held.is_empty() {
        Finding::ok("pod security", "no namespace that is to be meshed forbids the redirect set-up")
    } else {
        Finding::warning(
            "pod security",
            format!(
                "Pod Security forbids NET_ADMIN, which the redirect set-up in each pod needs, in {}",
                some_of(&held)
            ),
            "install with the CNI plugin: helm install … --set cni.enabled=true",
        )
    });
    let own = namespaces.iter().find(|namespace| namespace.name == release);
    if let Some(level) = own.and_then(|namespace| namespace.labels.get(ENFORCE))
        && level != "privileged"
    {
        findings.push(Finding::warning(
            "release namespace",
            format!("{release} enforces Pod Security {level}: the CNI plugin, which mounts directories of the node, cannot run there"),
            format!(
                "without the plugin this is well; with it: kubectl label namespace {release} {ENFORCE}=privileged --overwrite"
            ),
        ));
    }
    Group::new("Namespaces", findings)
}

/// After installing: whether every pod that is to be in the mesh is.
pub(super) fn judge_after(
    namespaces: &Seen<Vec<NamespaceFacts>>,
    pods: &Seen<Vec<PodFacts>>,
    cni: &Seen<Option<DaemonSetFacts>>,
) -> Group {
    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return Group::new("Injection", vec![Finding::unseen("namespaces", why)]),
    };
    let meshed: Vec<&str> =
        namespaces.iter().filter(|namespace| namespace.meshed()).map(|namespace| namespace.name.as_str()).collect();
    let mut findings = vec![wrong_values(namespaces)];
    findings.push(if meshed.is_empty() {
        Finding::warning(
            "namespaces",
            "none is in the mesh yet",
            format!("annotate one: kubectl annotate namespace NAME {INJECT}=enabled; then restart its pods"),
        )
    } else {
        Finding::ok("namespaces", format!("in the mesh: {}", some_of(&meshed)))
    });
    let system: Vec<&str> = meshed.iter().copied().filter(|name| SYSTEM.contains(name)).collect();
    if !system.is_empty() {
        findings.push(Finding::warning(
            "system namespaces",
            format!("{} cannot be meshed; the annotation does nothing there", some_of(&system)),
            format!("kubectl annotate namespace NAME {INJECT}-"),
        ));
    }
    let held = restrained(namespaces);
    match cni {
        Ok(None) if !held.is_empty() => findings.push(Finding::failure(
            "pod security",
            format!(
                "Pod Security forbids NET_ADMIN, which the redirect set-up in each pod needs, in {}: no meshed pod starts there",
                some_of(&held)
            ),
            "use the CNI plugin: helm upgrade … --set cni.enabled=true",
        )),
        Err(why) if !held.is_empty() => findings.push(Finding::unseen("pod security", why)),
        _ => findings.push(Finding::ok("pod security", "no meshed namespace forbids the redirect set-up")),
    }
    match pods {
        Err(why) => findings.push(Finding::unseen("pods", why)),
        Ok(pods) => findings.extend(judge_pods(&meshed, pods)),
    }
    Group::new("Injection", findings)
}

/// A misspelt value means nothing, silently.
fn wrong_values(namespaces: &[NamespaceFacts]) -> Finding {
    let wrong: Vec<String> = namespaces
        .iter()
        .filter(|namespace| namespace.inject.is_none())
        .filter_map(|namespace| {
            let value = namespace.annotations.get(INJECT).or_else(|| namespace.labels.get(INJECT))?;
            Some(format!("{} ({value})", namespace.name))
        })
        .collect();
    if wrong.is_empty() {
        Finding::ok("annotations", format!("every {INJECT} is understood"))
    } else {
        Finding::failure(
            "annotations",
            format!("{INJECT} has a value that means nothing in {}", some_of(&wrong)),
            format!("write enabled or disabled: kubectl annotate namespace NAME {INJECT}=enabled --overwrite"),
        )
    }
}

/// Namespaces of the mesh whose Pod Security level forbids NET_ADMIN.
fn restrained(namespaces: &[NamespaceFacts]) -> Vec<String> {
    let held = |namespace: &&NamespaceFacts| {
        let level = namespace.labels.get(ENFORCE).map(String::as_str);
        namespace.meshed() && matches!(level, Some("restricted" | "baseline"))
    };
    namespaces
        .iter()
        .filter(held)
        .map(|namespace| format!("{} ({})", namespace.name, namespace.labels[ENFORCE]))
        .collect()
}

fn judge_pods(meshed: &[&str], pods: &[PodFacts]) -> Vec<Finding> {
    let wanted = |pod: &&PodFacts| {
        let in_mesh = meshed.contains(&pod.namespace.as_str()) && !SYSTEM.contains(&pod.namespace.as_str());
        pod.alive && pod.inject.unwrap_or(in_mesh)
    };
    let wanted: Vec<&PodFacts> = pods.iter().filter(wanted).collect();
    let without: Vec<&&PodFacts> = wanted.iter().filter(|pod| pod.sidecar.is_none()).collect();
    let (skipped, missing): (Vec<&PodFacts>, Vec<&PodFacts>) =
        without.into_iter().partition(|pod| pod.skipped.is_some() || pod.host_network);
    let mut findings = Vec::new();
    if missing.is_empty() {
        findings.push(Finding::ok("pods", format!("{} with a sidecar", counted(wanted.len() - skipped.len(), "pod"))));
    } else {
        let names: Vec<String> = missing.iter().map(|pod| pod.key()).collect();
        findings.push(Finding::failure(
            "pods",
            format!(
                "{} without a sidecar, most likely older than the annotation: {}",
                counted(missing.len(), "pod"),
                some_of(&names)
            ),
            "restart them: kubectl -n NAMESPACE rollout restart deployment,statefulset,daemonset; \
             or keep one out of the mesh by the annotation weft.dev/inject: disabled on its pod template",
        ));
    }
    if !skipped.is_empty() {
        let names: Vec<String> = skipped
            .iter()
            .map(|pod| format!("{} ({})", pod.key(), pod.skipped.as_deref().unwrap_or("it uses the node's network")))
            .collect();
        findings.push(Finding::warning(
            "skipped pods",
            format!("left out of the mesh: {}", some_of(&names)),
            "give them a network of their own, or say that it is wanted: weft.dev/inject: disabled on the pod template",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::kubernetes::objects::SidecarFacts;

    fn namespace(name: &str, level: Option<&str>) -> NamespaceFacts {
        let labels = level.map(|level| (ENFORCE.to_owned(), level.to_owned())).into_iter().collect();
        NamespaceFacts { name: name.into(), inject: Some(true), labels, ..NamespaceFacts::default() }
    }

    fn pod(namespace: &str, name: &str) -> PodFacts {
        PodFacts { namespace: namespace.into(), name: name.into(), alive: true, ..PodFacts::default() }
    }

    fn not_well(group: &Group) -> Vec<(&'static str, Verdict)> {
        let findings = group.findings.iter().filter(|finding| finding.verdict != Verdict::Ok);
        findings.map(|finding| (finding.check, finding.verdict)).collect()
    }

    #[test]
    fn pods_that_should_have_a_sidecar_are_told_from_those_that_should_not() {
        use Verdict::{Failure, Warning};
        let with = |pod: PodFacts| PodFacts { sidecar: Some(SidecarFacts::default()), ..pod };
        for (case, pods, expected) in [
            ("injected", vec![with(pod("shop", "a"))], vec![]),
            ("older than the annotation", vec![pod("shop", "a")], vec![("pods", Failure)]),
            ("opted out", vec![PodFacts { inject: Some(false), ..pod("shop", "a") }], vec![]),
            ("not of the mesh", vec![pod("bank", "a")], vec![]),
            ("opted in by itself", vec![PodFacts { inject: Some(true), ..pod("bank", "a") }], vec![("pods", Failure)]),
            ("finished", vec![PodFacts { alive: false, ..pod("shop", "a") }], vec![]),
            (
                "on the node's network",
                vec![PodFacts { host_network: true, ..pod("shop", "a") }],
                vec![("skipped pods", Warning)],
            ),
            (
                "skipped",
                vec![PodFacts { skipped: Some("why".into()), ..pod("shop", "a") }],
                vec![("skipped pods", Warning)],
            ),
        ] {
            let group = judge_after(&Ok(vec![namespace("shop", None)]), &Ok(pods), &Ok(None));
            assert_eq!(not_well(&group), expected, "{case}");
        }
    }

    #[test]
    fn pod_security_asks_for_the_cni_plugin() {
        for (level, cni, before, after) in [
            (None, None, vec![], vec![]),
            (Some("privileged"), None, vec![], vec![]),
            (
                Some("baseline"),
                None,
                vec![("pod security", Verdict::Warning)],
                vec![("pod security", Verdict::Failure)],
            ),
            (
                Some("restricted"),
                None,
                vec![("pod security", Verdict::Warning)],
                vec![("pod security", Verdict::Failure)],
            ),
            (Some("restricted"), Some(DaemonSetFacts::default()), vec![("pod security", Verdict::Warning)], vec![]),
        ] {
            let namespaces = Ok(vec![namespace("shop", level)]);
            assert_eq!(not_well(&judge_before(&namespaces, "weft-system")), before, "{level:?}");
            assert_eq!(not_well(&judge_after(&namespaces, &Ok(vec![]), &Ok(cni))), after, "{level:?}");
        }
    }

    #[test]
    fn a_value_that_means_nothing_is_named() {
        let annotations = [(INJECT.to_owned(), "true".to_owned())].into_iter().collect();
        let namespace = NamespaceFacts { name: "shop".into(), annotations, ..NamespaceFacts::default() };
        let finding = wrong_values(&[namespace]);
        assert_eq!(finding.verdict, Verdict::Failure);
        assert!(finding.detail.contains("shop (true)"), "{}", finding.detail);
    }
}
