//! Certificates: the mesh's authority, the webhooks', and the roots that each namespace has.
//!
//! The Secrets hold private keys too. They are not looked at, and nothing of a Secret is ever shown but its times.
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use kube::api::ListParams;

use super::Seen;
use super::finding::{Finding, Group};
use crate::kubernetes::certificate::Certificate;
use crate::kubernetes::client::{Cluster, find, list};
use crate::kubernetes::names::{CA_SECRET, CONTROL_PLANE, TRUST_BUNDLE, TRUST_BUNDLE_KEY, WEBHOOK_SECRET};
use crate::kubernetes::objects::{NamespaceFacts, PodFacts};
use crate::kubernetes::output::{counted, some_of, span};

/// An authority is replaced with open eyes: a month is time for it.
const AUTHORITY_LEFT: i64 = 30 * 86_400;

/// A certificate that a Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// It may not be read.
    Unseen(String),
    /// There is no such Secret.
    Missing,
    /// It does not hold what it should.
    Broken(String),
    /// It is there.
    There(Kept),
}

/// A certificate and the roots beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) certificate: Certificate,
    pub(super) roots: Vec<Certificate>,
}

/// Certificates in the control plane's namespace.
pub(super) struct CertificateFacts {
    namespace: String,
    /// Secret of the authority, by the control plane's settings.
    authority_name: String,
    authority: Stored,
    pub(super) webhook: Stored,
}

/// Roots by namespace: what its ConfigMap holds, or what is wrong with it.
type Bundles = BTreeMap<String, Result<Vec<Certificate>, String>>;

pub(super) async fn look(cluster: &Cluster, namespace: &str) -> CertificateFacts {
    let (deployments, secrets) = (cluster.api::<Deployment>(Some(namespace)), cluster.api::<Secret>(Some(namespace)));
    let deployment = find(&deployments, CONTROL_PLANE).await.ok().flatten();
    let authority_name = deployment.as_ref().and_then(issuer_secret).unwrap_or_else(|| CA_SECRET.to_owned());
    let (authority, webhook) = tokio::join!(find(&secrets, &authority_name), find(&secrets, WEBHOOK_SECRET));
    CertificateFacts {
        namespace: namespace.to_owned(),
        authority: stored(authority),
        webhook: stored(webhook),
        authority_name,
    }
}

pub(super) async fn look_at_bundles(cluster: &Cluster) -> Seen<Bundles> {
    let params = ListParams::default().fields(&format!("metadata.name={TRUST_BUNDLE}"));
    let maps = list(&cluster.api::<ConfigMap>(None), params).await?;
    let roots = |map: &ConfigMap| {
        let pem = map.data.as_ref().and_then(|data| data.get(TRUST_BUNDLE_KEY));
        Certificate::all(pem.ok_or_else(|| format!("it has no {TRUST_BUNDLE_KEY}"))?.as_bytes())
    };
    Ok(maps.iter().map(|map| (map.namespace().unwrap_or_default(), roots(map))).collect())
}

/// The operator's own issuer, if the control plane was given one.
fn issuer_secret(deployment: &Deployment) -> Option<String> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    pod.containers.iter().find_map(|container| {
        let arguments = container.args.as_deref().unwrap_or_default();
        let given = arguments.iter().find_map(|argument| argument.strip_prefix("--issuer-secret="));
        let apart = arguments.iter().position(|argument| argument == "--issuer-secret");
        let variable = container.env.as_deref().unwrap_or_default().iter();
        let variable = variable.filter(|variable| variable.name == "WEFT_ISSUER_SECRET");
        given
            .map(str::to_owned)
            .or_else(|| arguments.get(apart? + 1).cloned())
            .or_else(|| variable.clone().find_map(|variable| variable.value.clone()))
            .filter(|name| !name.is_empty())
    })
}

fn stored(secret: Seen<Option<Secret>>) -> Stored {
    let secret = match secret {
        Err(why) => return Stored::Unseen(why),
        Ok(None) => return Stored::Missing,
        Ok(Some(secret)) => secret,
    };
    let part = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let Some(certificates) = part("tls.crt") else { return Stored::Broken("it has no tls.crt".to_owned()) };
    let mut chain = match Certificate::all(certificates) {
        Ok(chain) => chain,
        Err(fault) => return Stored::Broken(format!("tls.crt: {fault}")),
    };
    let certificate = chain.remove(0);
    // Without roots beside it the last of the chain is the root, as the control plane takes it.
    let roots = match part("ca.crt").map(Certificate::all) {
        Some(Ok(roots)) => roots,
        Some(Err(fault)) => return Stored::Broken(format!("ca.crt: {fault}")),
        None => vec![chain.pop().unwrap_or_else(|| certificate.clone())],
    };
    Stored::There(Kept { certificate, roots })
}

pub(super) fn judge(
    facts: &CertificateFacts,
    bundles: &Seen<Bundles>,
    namespaces: &Seen<Vec<NamespaceFacts>>,
    pods: &Seen<Vec<PodFacts>>,
    now: i64,
) -> Group {
    let roots = match &facts.authority {
        Stored::There(kept) => Some(kept.roots.as_slice()),
        _ => None,
    };
    let mut needing: BTreeSet<&str> = BTreeSet::new();
    needing.extend(
        namespaces.iter().flatten().filter(|namespace| namespace.meshed()).map(|namespace| namespace.name.as_str()),
    );
    needing.extend(
        pods.iter().flatten().filter(|pod| pod.alive && pod.sidecar.is_some()).map(|pod| pod.namespace.as_str()),
    );
    let mut findings = authority(facts, now);
    findings.push(webhook(facts, now));
    findings.push(bundle(bundles, &needing, roots, &facts.namespace));
    Group::new("Certificates", findings)
}

fn authority(facts: &CertificateFacts, now: i64) -> Vec<Finding> {
    const CHECK: &str = "authority";
    let (name, namespace) = (&facts.authority_name, &facts.namespace);
    let own = name == CA_SECRET;
    let kept = match &facts.authority {
        Stored::Unseen(why) => return vec![Finding::unseen(CHECK, why)],
        Stored::Missing if own => {
            return vec![Finding::failure(
                CHECK,
                format!("there is no Secret {name} in namespace {namespace}"),
                format!(
                    "the control plane makes it; see why not: kubectl -n {namespace} logs -l weft.dev/component=control-plane"
                ),
            )];
        }
        Stored::Missing => {
            return vec![Finding::failure(
                CHECK,
                format!("there is no Secret {name} in namespace {namespace}, which the control plane is to sign with"),
                format!("see why cert-manager has not made it: kubectl -n {namespace} describe certificates"),
            )];
        }
        Stored::Broken(fault) => {
            return vec![Finding::failure(
                CHECK,
                format!("Secret {name} in namespace {namespace} cannot be used: {fault}"),
                "restore it from a backup; deleting it begins a mesh that no running sidecar trusts",
            )];
        }
        Stored::There(kept) => kept,
    };
    let remedy = if own {
        "plan its replacement: no certificate outlives it".to_owned()
    } else {
        format!("have cert-manager renew it: kubectl -n {namespace} describe certificates")
    };
    let mut findings = vec![aged(CHECK, &format!("Secret {name}"), &kept.certificate, AUTHORITY_LEFT, &remedy, now)];
    let first = kept.roots.iter().filter(|root| !root.is(&kept.certificate)).min_by_key(|root| root.not_after);
    if let Some(root) = first {
        let remedy = "replace the root in time, and wait until every sidecar has the new one before signing with it";
        findings.push(aged("root", &format!("the root of Secret {name}"), root, AUTHORITY_LEFT, remedy, now));
    }
    findings
}

fn webhook(facts: &CertificateFacts, now: i64) -> Finding {
    const CHECK: &str = "webhook";
    let namespace = &facts.namespace;
    let remedy = format!(
        "the control plane makes and renews it by itself; see why not: kubectl -n {namespace} logs -l weft.dev/component=control-plane"
    );
    match &facts.webhook {
        Stored::Unseen(why) => Finding::unseen(CHECK, why),
        Stored::Missing => {
            Finding::failure(CHECK, format!("there is no Secret {WEBHOOK_SECRET} in namespace {namespace}"), remedy)
        }
        Stored::Broken(fault) => Finding::failure(
            CHECK,
            format!("Secret {WEBHOOK_SECRET} in namespace {namespace} cannot be used: {fault}"),
            format!("let the control plane make it anew: kubectl -n {namespace} delete secret {WEBHOOK_SECRET}"),
        ),
        Stored::There(kept) => {
            // Its renewal is due long before: what is left then is time for an operator.
            let lifetime = kept.certificate.not_after - kept.certificate.not_before;
            aged(CHECK, &format!("Secret {WEBHOOK_SECRET}"), &kept.certificate, lifetime / 6, &remedy, now)
        }
    }
}

fn aged(check: &'static str, what: &str, certificate: &Certificate, left: i64, remedy: &str, now: i64) -> Finding {
    let remaining = certificate.not_after - now;
    let length = span(remaining.unsigned_abs());
    if certificate.not_before > now {
        let wait = span((certificate.not_before - now).unsigned_abs());
        Finding::failure(
            check,
            format!("{what} is not valid for another {wait}"),
            "set the clocks of nodes and API server by NTP",
        )
    } else if remaining <= 0 {
        Finding::failure(check, format!("{what} expired {length} ago"), remedy)
    } else if remaining < left {
        Finding::warning(check, format!("{what} expires in {length}"), remedy)
    } else {
        Finding::ok(check, format!("{what} expires in {length}"))
    }
}

fn bundle(
    bundles: &Seen<Bundles>,
    needing: &BTreeSet<&str>,
    roots: Option<&[Certificate]>,
    namespace: &str,
) -> Finding {
    const CHECK: &str = "trust bundles";
    let bundles = match bundles {
        Ok(bundles) => bundles,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    let remedy = format!(
        "the leader writes ConfigMap {TRUST_BUNDLE}; see why not: kubectl -n {namespace} logs -l weft.dev/component=control-plane"
    );
    let missing: Vec<&str> = needing.iter().copied().filter(|name| !bundles.contains_key(*name)).collect();
    if !missing.is_empty() {
        return Finding::failure(CHECK, format!("missing in {}: pods there cannot start", some_of(&missing)), remedy);
    }
    let of_mesh = || bundles.iter().filter(|(name, _)| needing.contains(name.as_str()));
    let broken: Vec<String> =
        of_mesh().filter_map(|(name, bundle)| Some(format!("{name} ({})", bundle.as_ref().err()?))).collect();
    if !broken.is_empty() {
        return Finding::failure(
            CHECK,
            format!("cannot be used in {}", some_of(&broken)),
            format!("let the leader write it anew: kubectl -n NAMESPACE delete configmap {TRUST_BUNDLE}"),
        );
    }
    let read: Vec<(&str, &Vec<Certificate>)> =
        of_mesh().filter_map(|(name, bundle)| Some((name.as_str(), bundle.as_ref().ok()?))).collect();
    let holds = |bundle: &[Certificate], root: &Certificate| bundle.iter().any(|other| other.is(root));
    let first = read.first().map(|(_, bundle)| bundle.as_slice());
    let Some(expected) = roots.or(first) else {
        return Finding::ok(CHECK, "no namespace needs one yet");
    };
    let lacking: Vec<&str> = read
        .iter()
        .filter(|(_, bundle)| expected.iter().any(|root| !holds(bundle, root)))
        .map(|(name, _)| *name)
        .collect();
    if !lacking.is_empty() {
        return Finding::failure(
            CHECK,
            format!(
                "a root of the mesh is missing in {}: sidecars that start there trust no control plane",
                some_of(&lacking)
            ),
            remedy,
        );
    }
    let differing: Vec<&str> = read
        .iter()
        .filter(|(_, bundle)| first.is_some_and(|first| bundle.iter().any(|root| !holds(first, root))))
        .map(|(name, _)| *name)
        .collect();
    if !differing.is_empty() {
        return Finding::warning(
            CHECK,
            format!("{} have roots that {} has not", some_of(&differing), read[0].0),
            "while a root is being replaced this passes by itself within a minute; if it stays, read the control plane's log",
        );
    }
    Finding::ok(CHECK, format!("there and equal in {}", counted(read.len(), "namespace")))
}

#[cfg(test)]
#[path = "certificates_tests.rs"]
mod tests;
