//! Policies: whether each was accepted, is in force, and applies to anything.
use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt as _};

use super::Seen;
use super::finding::{Finding, Group};
use crate::kubernetes::client::Cluster;
use crate::kubernetes::control_plane::ConfigError;
use crate::kubernetes::forward::{self, AT_ONCE};
use crate::kubernetes::get::policies::{PolicyFacts, all_policies};
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::output::{counted, some_of};

/// What is known of the policies.
pub(super) struct PolicyCheckFacts {
    policies: Seen<Vec<PolicyFacts>>,
    /// What the control plane cannot use, and the policies that apply to nothing. `None`: there is nobody to ask.
    told: Option<Seen<Told>>,
}

/// What a control plane says of its resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    errors: BTreeSet<String>,
    idle: BTreeSet<String>,
}

pub(super) async fn look(cluster: &Cluster, replicas: &[PodFacts]) -> PolicyCheckFacts {
    let (policies, told) = tokio::join!(all_policies(cluster, None), ask(cluster, replicas));
    PolicyCheckFacts { policies, told }
}

/// All replicas read the same objects: the first that answers is enough.
async fn ask(cluster: &Cluster, replicas: &[PodFacts]) -> Option<Seen<Told>> {
    let answers = stream::iter(replicas).map(|replica| async move {
        let (namespace, name) = (&replica.namespace, &replica.name);
        let errors = forward::get_json::<Vec<ConfigError>>(cluster, namespace, name, "/config/errors").await?;
        let idle = forward::get_json::<Vec<String>>(cluster, namespace, name, "/config/idle-policies").await?;
        let errors = errors.into_iter().map(|error| format!("{}: {}", error.file, error.message)).collect();
        Ok::<_, String>(Told { errors, idle: idle.into_iter().collect() })
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    let mut last = None;
    while let Some(answer) = answers.next().await {
        if answer.is_ok() {
            return Some(answer);
        }
        last = Some(answer);
    }
    last
}

pub(super) fn judge(facts: &PolicyCheckFacts) -> Group {
    let mut findings = Vec::new();
    let nothing = Told::default();
    let told = facts.told.as_ref().and_then(|told| told.as_ref().ok()).unwrap_or(&nothing);
    match &facts.policies {
        Err(why) => findings.push(Finding::unseen("policies", why)),
        Ok(policies) => findings.extend(conditions(policies, told)),
    }
    if let Some(Err(why)) = &facts.told {
        findings.push(Finding::unseen("resources", why));
    }
    findings.extend(told_of(told));
    Group::new("Policies", findings)
}

/// One line a policy: that it applies to nothing is why nobody has confirmed it.
fn conditions(policies: &[PolicyFacts], told: &Told) -> Vec<Finding> {
    let is = |policy: &PolicyFacts, condition: &str| {
        policy.condition(condition).is_some_and(|(status, _)| status == "False")
    };
    let named = |condition: &str, chosen: &dyn Fn(&PolicyFacts) -> bool| -> Vec<String> {
        policies
            .iter()
            .filter(|policy| is(policy, condition) && chosen(policy))
            .map(|policy| {
                let message = policy.condition(condition).map_or("", |(_, message)| message);
                format!("{} ({message})", policy.reference())
            })
            .collect()
    };
    let idle = |policy: &PolicyFacts| told.idle.contains(&policy.reference());
    let refused = named("Accepted", &|_| true);
    let unresolved = named("ResolvedRefs", &|policy| !idle(policy));
    let pending =
        named("Programmed", &|policy| !idle(policy) && !is(policy, "ResolvedRefs") && !is(policy, "Accepted"));
    let unjudged: Vec<String> =
        policies.iter().filter(|policy| policy.condition("Accepted").is_none()).map(PolicyFacts::reference).collect();
    let mut findings = Vec::new();
    if !refused.is_empty() {
        findings.push(Finding::failure(
            "accepted",
            format!("not accepted: {}", some_of(&refused)),
            "write what the message says; until then what was last good of it stays in force",
        ));
    }
    if !unresolved.is_empty() {
        findings.push(Finding::warning(
            "references",
            format!("refer to what is not there: {}", some_of(&unresolved)),
            "correct targetRefs or selector: kubectl -n NAMESPACE get services,pods --show-labels",
        ));
    }
    if !pending.is_empty() {
        findings.push(Finding::warning(
            "programmed",
            format!("not confirmed by every sidecar: {}", some_of(&pending)),
            "check again in a minute; if it stays, look which sidecar is behind: weft get workloads",
        ));
    }
    if !unjudged.is_empty() {
        findings.push(Finding::warning(
            "status",
            format!("without status: {}", some_of(&unjudged)),
            "the leader writes it; see the group Control plane",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("policies", counted(policies.len(), "object")));
    }
    findings
}

fn told_of(told: &Told) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !told.errors.is_empty() {
        let errors: Vec<&String> = told.errors.iter().collect();
        findings.push(Finding::failure(
            "resources",
            format!("the control plane cannot use: {}", some_of(&errors)),
            "write what the message says; what was last good stays in force",
        ));
    }
    if !told.idle.is_empty() {
        let idle: Vec<&String> = told.idle.iter().collect();
        findings.push(Finding::warning(
            "idle",
            format!("apply to no workload: {}", some_of(&idle)),
            "most likely targetRefs or selector is misspelt: kubectl -n NAMESPACE get services,pods --show-labels",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn policy(conditions: &[(&str, &str)]) -> PolicyFacts {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status)| serde_json::json!({"type": kind, "status": status, "message": "why"}))
            .collect();
        PolicyFacts::of(&serde_json::json!({
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop"},
            "status": {"conditions": conditions},
        }))
    }

    #[test]
    fn conditions_and_the_control_planes_word_are_both_heard() {
        use Verdict::{Failure, Ok as Well, Warning};
        let told = |errors: &[&str], idle: &[&str]| {
            let set = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            Some(Ok(Told { errors: set(errors), idle: set(idle) }))
        };
        let accepted = ("Accepted", "True");
        for (case, policies, told, expected) in [
            ("none", vec![], None, vec![("policies", Well)]),
            ("well", vec![policy(&[accepted, ("Programmed", "True")])], told(&[], &[]), vec![("policies", Well)]),
            ("refused", vec![policy(&[("Accepted", "False")])], None, vec![("accepted", Failure)]),
            ("unresolved", vec![policy(&[accepted, ("ResolvedRefs", "False")])], None, vec![("references", Warning)]),
            ("on its way", vec![policy(&[accepted, ("Programmed", "False")])], None, vec![("programmed", Warning)]),
            ("nobody judged", vec![policy(&[])], None, vec![("status", Warning)]),
            (
                "idle, which explains all else",
                vec![policy(&[accepted, ("ResolvedRefs", "False"), ("Programmed", "False")])],
                told(&[], &["AuthorizationPolicy shop/p"]),
                vec![("policies", Well), ("idle", Warning)],
            ),
            ("faulty", vec![], told(&["shop/p: no"], &[]), vec![("policies", Well), ("resources", Failure)]),
            ("no answer", vec![], Some(Err("no".into())), vec![("policies", Well), ("resources", Warning)]),
        ] {
            let group = judge(&PolicyCheckFacts { policies: Ok(policies), told });
            let found: Vec<_> = group.findings.iter().map(|finding| (finding.check, finding.verdict)).collect();
            assert_eq!(found, expected, "{case}");
        }
    }
}
