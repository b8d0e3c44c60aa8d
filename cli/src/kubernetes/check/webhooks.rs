//! The webhooks: whether they are there, and whether the API server reaches them.
//!
//! That is proven, not inferred: a pod and a wrong policy are created in dry runs, and must come back injected and refused.
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::ListParams;

use super::Seen;
use super::certificates::{CertificateFacts, Stored};
use super::dry_run::{self, Injection, WrongPolicy};
use super::finding::{Finding, Group};
use crate::kubernetes::certificate::Certificate;
use crate::kubernetes::client::{Cluster, NO_SUCH_KIND, find, list};
use crate::kubernetes::names::{ADMISSION, CONTROL_PLANE, INJECTED_POLICY, INJECTOR};
use crate::kubernetes::objects::NamespaceFacts;

/// A webhook configuration: the CA bundle of each of its hooks, and the namespace of its Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HookFacts {
    bundles: Vec<Vec<u8>>,
    namespace: Option<String>,
}

/// The ValidatingAdmissionPolicy that refuses pods without sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// In force.
    Bound,
    /// There, but no binding makes it deny.
    Unbound,
    /// Not there.
    Missing,
}

/// What is there, and what became of the dry runs.
pub(super) struct WebhookFacts {
    namespace: String,
    injector: Seen<Option<HookFacts>>,
    admission: Seen<Option<HookFacts>>,
    guard: Seen<Guard>,
    /// Where, and what became of it. `None`: there is nothing that could be tried.
    injection: Option<(String, Injection)>,
    wrong_policy: Option<WrongPolicy>,
}

pub(super) async fn look(cluster: &Cluster, namespace: &str, namespaces: &Seen<Vec<NamespaceFacts>>) -> WebhookFacts {
    let (injectors, admissions, guards, bindings) = (
        cluster.global::<MutatingWebhookConfiguration>(),
        cluster.global::<ValidatingWebhookConfiguration>(),
        cluster.global::<ValidatingAdmissionPolicy>(),
        cluster.global::<ValidatingAdmissionPolicyBinding>(),
    );
    let (injector, admission, guard, bindings) = tokio::join!(
        find(&injectors, INJECTOR),
        find(&admissions, ADMISSION),
        find(&guards, INJECTED_POLICY),
        list(&bindings, ListParams::default()),
    );
    let injector = injector.map(|found| {
        found.map(|found| hooks(found.webhooks.iter().flatten().map(|hook| &hook.client_config).collect()))
    });
    let admission = admission.map(|found| {
        found.map(|found| hooks(found.webhooks.iter().flatten().map(|hook| &hook.client_config).collect()))
    });
    let where_to = where_to_try(namespaces.as_deref().unwrap_or_default());
    let injection = match &injector {
        Ok(Some(_)) => Some((where_to.clone(), dry_run::inject(cluster, &where_to).await)),
        _ => None,
    };
    let wrong_policy = match &admission {
        Ok(Some(_)) => Some(dry_run::wrong_policy(cluster, &where_to).await),
        _ => None,
    };
    let guard = guard.and_then(|guard| {
        let denies = |binding: &ValidatingAdmissionPolicyBinding| {
            let spec = &binding.spec;
            spec.policy_name == INJECTED_POLICY && spec.validation_actions.iter().any(|action| action == "Deny")
        };
        Ok(match guard {
            None => Guard::Missing,
            Some(_) if bindings?.iter().any(denies) => Guard::Bound,
            Some(_) => Guard::Unbound,
        })
    });
    WebhookFacts { namespace: namespace.to_owned(), injector, admission, guard, injection, wrong_policy }
}

fn hooks(clients: Vec<&WebhookClientConfig>) -> HookFacts {
    HookFacts {
        bundles: clients
            .iter()
            .map(|client| client.ca_bundle.clone().map(|bytes| bytes.0).unwrap_or_default())
            .collect(),
        namespace: clients.iter().find_map(|client| Some(client.service.as_ref()?.namespace.clone())),
    }
}

/// A namespace of the mesh where nothing but Weft would refuse the pod; else the default one.
fn where_to_try(namespaces: &[NamespaceFacts]) -> String {
    let mut meshed: Vec<&NamespaceFacts> =
        namespaces.iter().filter(|namespace| namespace.meshed() && !namespace.name.starts_with("kube-")).collect();
    meshed.sort_by_key(|namespace| namespace.labels.keys().any(|key| key.starts_with("pod-security.kubernetes.io/")));
    meshed.first().map_or("default", |namespace| &namespace.name).to_owned()
}

pub(super) fn judge(facts: &WebhookFacts, certificates: &CertificateFacts) -> Group {
    let serving = match &certificates.webhook {
        Stored::There(kept) => Some(&kept.certificate),
        _ => None,
    };
    let mut findings = vec![configuration("injector", INJECTOR, &facts.injector, facts, serving)];
    if let Some((namespace, injection)) = &facts.injection {
        findings.push(judge_injection(namespace, injection, &facts.namespace));
    }
    findings.push(configuration("admission", ADMISSION, &facts.admission, facts, serving));
    if let Some(wrong_policy) = &facts.wrong_policy {
        findings.push(judge_wrong_policy(wrong_policy, &facts.namespace));
    }
    findings.push(judge_guard(&facts.guard));
    Group::new("Webhooks", findings)
}

fn configuration(
    check: &'static str,
    name: &str,
    found: &Seen<Option<HookFacts>>,
    facts: &WebhookFacts,
    serving: Option<&Certificate>,
) -> Finding {
    let hooks = match found {
        Err(why) => return Finding::unseen(check, why),
        Ok(None) => {
            return Finding::failure(
                check,
                format!("the webhook configuration {name} is missing"),
                "repair the installation: helm upgrade --install weft charts/weft --namespace weft-system",
            );
        }
        Ok(Some(hooks)) => hooks,
    };
    if hooks.bundles.iter().any(Vec::is_empty) || hooks.bundles.is_empty() {
        return Finding::failure(
            check,
            format!("{name} has no caBundle, so the API server trusts no answer"),
            format!(
                "the control plane writes it; see why not: kubectl -n {} logs -l weft.dev/component=control-plane",
                facts.namespace
            ),
        );
    }
    if let Some(namespace) = &hooks.namespace
        && *namespace != facts.namespace
    {
        return Finding::failure(
            check,
            format!(
                "{name} calls the Service {CONTROL_PLANE} in namespace {namespace}, but the control plane is in {}",
                facts.namespace
            ),
            "remove what is left of the other installation, then helm upgrade this one",
        );
    }
    let verifies = |bundle: &Vec<u8>, serving: &Certificate| {
        Certificate::all(bundle).is_ok_and(|roots| roots.iter().any(|root| serving.is_signed_by(root)))
    };
    match serving {
        Some(serving) if !hooks.bundles.iter().all(|bundle| verifies(bundle, serving)) => Finding::failure(
            check,
            format!("{name} has a caBundle that does not verify the certificate in Secret weft-webhook"),
            format!(
                "restart the control plane, which writes it: kubectl -n {} rollout restart deployment {CONTROL_PLANE}",
                facts.namespace
            ),
        ),
        _ => Finding::ok(check, format!("{name} is there with its caBundle")),
    }
}

fn judge_injection(namespace: &str, injection: &Injection, control_plane: &str) -> Finding {
    const CHECK: &str = "injection";
    let reach = format!(
        "let the API server reach port 4443 of the control plane's pods (NetworkPolicies, firewalls of hosted clusters); \
         kubectl -n {control_plane} logs -l weft.dev/component=control-plane"
    );
    match injection {
        Injection::Done => {
            Finding::ok(CHECK, format!("a pod in namespace {namespace} would get its sidecar (dry run)"))
        }
        Injection::Left => Finding::failure(
            CHECK,
            format!(
                "a pod in namespace {namespace} would start without a sidecar (dry run): the injector was not asked or did not answer"
            ),
            reach,
        ),
        Injection::Refused(message) if message.contains("violates PodSecurity") => Finding::failure(
            CHECK,
            format!("Pod Security of namespace {namespace} refuses what the injector adds (dry run): {message}"),
            "use the CNI plugin: helm upgrade … --set cni.enabled=true",
        ),
        Injection::Refused(message) if message.contains("cannot create resource") => {
            Finding::unseen(CHECK, &format!("{message} (the dry run needs it)"))
        }
        Injection::Refused(message) if message.contains("weft") => Finding::failure(
            CHECK,
            format!("a pod in namespace {namespace} would be refused (dry run): {message}"),
            reach,
        ),
        Injection::Refused(message) => Finding::warning(
            CHECK,
            format!("a pod in namespace {namespace} would be refused (dry run), not by Weft: {message}"),
            "mend what the message names (a quota, another webhook), then check again",
        ),
    }
}

fn judge_wrong_policy(outcome: &WrongPolicy, control_plane: &str) -> Finding {
    const CHECK: &str = "policy admission";
    match outcome {
        WrongPolicy::Refused => Finding::ok(CHECK, "a wrong policy would be refused (dry run)"),
        WrongPolicy::Taken => Finding::failure(
            CHECK,
            "a wrong policy would be taken (dry run): the webhook was not asked",
            format!("repair the installation: helm upgrade weft charts/weft --namespace {control_plane}"),
        ),
        WrongPolicy::Otherwise(message) if message.contains("cannot create resource") => {
            Finding::unseen(CHECK, &format!("{message} (the dry run needs it)"))
        }
        WrongPolicy::Otherwise(message) => Finding::failure(
            CHECK,
            format!("nobody could judge a policy (dry run), so none can be changed: {message}"),
            format!(
                "let the API server reach port 4443 of the control plane's pods; \
                 kubectl -n {control_plane} logs -l weft.dev/component=control-plane"
            ),
        ),
    }
}

fn judge_guard(guard: &Seen<Guard>) -> Finding {
    const CHECK: &str = "guard";
    match guard {
        Err(why) if why == NO_SUCH_KIND => Finding::warning(
            CHECK,
            "this Kubernetes has no ValidatingAdmissionPolicy: while the injector is away, pods of annotated namespaces start outside the mesh",
            "upgrade to 1.30 or later, or label the namespaces weft.dev/inject=enabled, which needs no such policy",
        ),
        Err(why) => Finding::unseen(CHECK, why),
        Ok(Guard::Bound) => Finding::ok(CHECK, "pods without a sidecar are refused while the injector is away"),
        Ok(Guard::Unbound) => Finding::failure(
            CHECK,
            format!("ValidatingAdmissionPolicy {INJECTED_POLICY} has no binding that denies"),
            "repair the installation: helm upgrade weft charts/weft --namespace weft-system",
        ),
        Ok(Guard::Missing) => Finding::failure(
            CHECK,
            format!(
                "ValidatingAdmissionPolicy {INJECTED_POLICY} is missing: while the injector is away, pods of annotated namespaces start outside the mesh"
            ),
            "repair the installation: helm upgrade --install weft charts/weft --namespace weft-system",
        ),
    }
}

#[cfg(test)]
#[path = "webhooks_tests.rs"]
mod tests;
