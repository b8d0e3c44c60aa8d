//! What a policy applies to, and whose sidecar runs what is published here: what is reported in the status of the
//! resources, and told to the other replicas.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tokio::sync::watch;
use weft_api::report::{PolicyName, Report, SidecarReport};
use weft_api::resource::{AuthorizationPolicy, NamespacedName, Service, Subject, Target, Workload};

use super::{Published, Publisher, Sidecar, State};
use crate::model::Endpoints;
use crate::source::{Event, Kind, ResourceKey, fingerprint};

/// What every policy in force applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// All workloads, by name; [`PolicyTarget::workloads`] are places in it.
    pub workloads: Vec<TargetWorkload>,
    /// By policy.
    pub policies: BTreeMap<ResourceKey, PolicyTarget>,
}

/// A workload that policies may apply to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetWorkload {
    /// Its name.
    pub name: NamespacedName,
    /// Whether a sidecar stands before it.
    pub mesh: bool,
}

/// What one policy applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyTarget {
    /// Of its content.
    pub fingerprint: u64,
    /// Services of its `targetRefs` that do not exist.
    pub missing_services: Vec<String>,
    /// Service accounts that its rules name and that do not exist, where that is known.
    pub missing_accounts: Vec<NamespacedName>,
    /// Places in [`Targets::workloads`].
    pub workloads: Vec<u32>,
}

/// Fingerprints of the policies in force: equal wherever the content is equal.
#[derive(Debug, Default)]
pub(super) struct Fingerprints(BTreeMap<ResourceKey, u64>);

impl Fingerprints {
    /// Keeps up with the model.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Applied(resource) => {
                if let (Some(key), Some(fingerprint)) = (ResourceKey::of(resource), fingerprint(resource)) {
                    self.0.insert(key, fingerprint);
                }
            }
            Event::Removed(key) | Event::Unreadable { key, .. } => drop(self.0.remove(key)),
            Event::EndpointSlice(_) | Event::ServiceAccount(_) | Event::Node { .. } | Event::DeniedIdentities(_) => {}
        }
    }

    fn namespaces(&self) -> BTreeSet<&str> {
        self.0.keys().map(|key| key.name.namespace.as_str()).collect()
    }
}

impl Publisher {
    /// Changes whenever [`Publisher::report`] or [`Publisher::targets`] do.
    pub fn activity(&self) -> watch::Receiver<u64> {
        self.activity.subscribe()
    }

    pub(super) fn note_activity(&self) {
        self.activity.send_modify(|revision| *revision += 1);
    }

    /// What every policy applies to. `None`: the resources were not read whole yet.
    pub fn targets(&self) -> Option<Arc<Targets>> {
        let mut state = self.lock();
        if !state.complete {
            return None;
        }
        let targets = state.targets.take().unwrap_or_else(|| Arc::new(state.targets_anew()));
        state.targets = Some(Arc::clone(&targets));
        Some(targets)
    }

    /// The sidecars that this replica has seen, and the policies that it has in force.
    pub fn report(&self) -> Report {
        let state = self.lock();
        let policies = state.fingerprints.0.iter().map(|(key, fingerprint)| (policy_name(key), *fingerprint));
        Report {
            // Under the lock, so that it is never newer than the rest.
            revision: *self.activity.borrow(),
            sidecars: state.sidecars.iter().map(|(name, sidecar)| (name.clone(), sidecar.report())).collect(),
            policies: if state.complete { policies.collect() } else { BTreeMap::new() },
        }
    }
}

/// What other replicas call the policy `key`.
pub fn policy_name(key: &ResourceKey) -> PolicyName {
    PolicyName { kind: format!("{:?}", key.kind), name: key.name.clone() }
}

impl Sidecar {
    fn report(&self) -> SidecarReport {
        let seconds = |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let version = match &*self.published.borrow() {
            Published::Config(latest) => Some(latest.version),
            Published::Ended(_) => None,
        };
        SidecarReport {
            connected: self.open > 0,
            draining: self.draining,
            current: self.open > 0 && version.is_some() && self.runs == version,
            version,
            confirmed: self.confirmed,
            certificate_expiry: seconds(self.certificate_expiry),
            disconnected_since: self.disconnected.map(seconds),
            error: self.error.clone(),
        }
    }
}

impl State {
    fn targets_anew(&self) -> Targets {
        let workloads: Vec<TargetWorkload> = self
            .model
            .workload_names()
            .filter_map(|name| self.model.workload(name))
            .map(|workload| TargetWorkload { name: workload.name.clone(), mesh: workload.mesh })
            .collect();
        let mut policies = BTreeMap::new();
        for namespace in self.fingerprints.namespaces() {
            self.targets_of(namespace, &workloads, &mut policies);
        }
        Targets { workloads, policies }
    }

    fn targets_of(&self, namespace: &str, all: &[TargetWorkload], policies: &mut BTreeMap<ResourceKey, PolicyTarget>) {
        let first = all.partition_point(|workload| workload.name.namespace.as_str() < namespace);
        let model = &self.model;
        // Of a namespace's Services only those matter that a policy names.
        let authorization = model.authorization_policies(namespace).map(|policy| &policy.target);
        let rate_limit = model.rate_limit_policies(namespace).map(|policy| &policy.target);
        let named = authorization.chain(rate_limit).flat_map(|target| match target {
            Target::Services(names) => names.as_slice(),
            Target::Namespace | Target::Labels(_) => &[],
        });
        let named: BTreeSet<&String> = named.collect();
        let service = |name: &str| model.service(&NamespacedName::new(namespace, name));
        let services: Vec<&Service> = named.into_iter().filter_map(|name| service(name)).collect();
        let workloads: Vec<(&Workload, Vec<NamespacedName>)> = model
            .workloads(namespace)
            .map(|workload| {
                let before = services.iter().filter(|service| service.selects(namespace, &workload.labels));
                (workload, before.map(|service| service.name.clone()).collect())
            })
            .collect();
        let target = |kind, name: &NamespacedName, target: &Target| {
            let applies = |(place, (workload, services)): (usize, &(&Workload, Vec<_>))| {
                let subject = Subject { namespace, labels: &workload.labels, services };
                target.applies_to(namespace, subject).then(|| u32::try_from(first + place).ok()).flatten()
            };
            let missing_services = match target {
                Target::Services(names) => names.iter().filter(|name| service(name).is_none()).cloned().collect(),
                Target::Namespace | Target::Labels(_) => Vec::new(),
            };
            let key = ResourceKey { kind, name: name.clone() };
            let target = PolicyTarget {
                fingerprint: self.fingerprints.0.get(&key).copied().unwrap_or_default(),
                missing_services,
                missing_accounts: Vec::new(),
                workloads: workloads.iter().enumerate().filter_map(applies).collect(),
            };
            (key, target)
        };
        for policy in model.authorization_policies(namespace) {
            let (key, mut target) = target(Kind::AuthorizationPolicy, &policy.name, &policy.target);
            target.missing_accounts = self.missing_accounts(policy);
            policies.insert(key, target);
        }
        policies.extend(
            model
                .rate_limit_policies(namespace)
                .map(|policy| target(Kind::RateLimitPolicy, &policy.name, &policy.target)),
        );
    }

    /// Hosts have no list of accounts, so nothing is missing there.
    fn missing_accounts(&self, policy: &AuthorizationPolicy) -> Vec<NamespacedName> {
        if self.model.endpoints() == Endpoints::Selectors {
            return Vec::new();
        }
        let named = policy.rules.iter().flat_map(|rule| &rule.from).flat_map(|caller| &caller.service_accounts);
        let missing: BTreeSet<&NamespacedName> =
            named.filter(|account| !self.model.has_service_account(account) && !self.is_declared(account)).collect();
        missing.into_iter().cloned().collect()
    }

    /// Whether a workload that is no pod has this account.
    fn is_declared(&self, account: &NamespacedName) -> bool {
        self.model.workloads(&account.namespace).any(|workload| workload.service_account == account.name)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use weft_api::resource::{DefaultPolicy, parse_documents};
    use weft_certs::TrustDomain;

    use super::*;
    use crate::audit::Audit;
    use crate::metrics::Metrics;
    use crate::model::Model;
    use crate::source::Batch;

    const MESH: &str = r"
apiVersion: policy.weft.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop, labels: {app: orders}}
spec: {addresses: [10.0.0.1], serviceAccount: declared}
---
apiVersion: policy.weft.dev/v1alpha1
kind: Workload
metadata: {name: stock-1, namespace: shop, labels: {app: stock}}
spec: {addresses: [10.0.0.2], mesh: false}
---
apiVersion: policy.weft.dev/v1alpha1
kind: Workload
metadata: {name: before, namespace: attic, labels: {app: stock}}
spec: {addresses: [10.0.0.3]}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {selector: {app: stock}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: attic}
spec: {selector: {app: nothing}, ports: [{port: 80}]}
";

    fn policy(spec: &str) -> String {
        format!(
            "apiVersion: policy.weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{action: Allow, {spec}}}\n"
        )
    }

    fn targets(endpoints: Endpoints, yaml: &str) -> Targets {
        let model = Model::with(TrustDomain::parse("cluster.local").expect("valid"), DefaultPolicy::Deny, endpoints);
        let metrics = Metrics::default();
        let audit = Arc::new(Audit::unwritten(metrics.clone()));
        let publisher = Publisher::new(model, audit, metrics, SystemTime::now());
        assert_eq!(publisher.targets(), None, "nothing is known before all is read");
        let resources = parse_documents(yaml).into_iter().map(|resource| resource.expect("valid"));
        let known = Event::ServiceAccount(NamespacedName::new("shop", "known"));
        let events = resources.map(Event::Applied).chain([known]).collect();
        publisher.apply(Batch { events, errors: Vec::new(), complete: true });
        (*publisher.targets().expect("complete")).clone()
    }

    #[test]
    fn a_policy_applies_to_workloads_of_its_namespace_and_what_it_misses_is_known() {
        for (spec, workloads, services, accounts) in [
            ("rules: []", "orders-1,stock-1", "", ""),
            ("selector: {matchLabels: {app: orders}}", "orders-1", "", ""),
            ("selector: {matchLabels: {app: nobody}}", "", "", ""),
            ("targetRefs: [{kind: Service, name: stock}]", "stock-1", "", ""),
            ("targetRefs: [{kind: Service, name: stcok}]", "", "stcok", ""),
            ("targetRefs: [{kind: Service, name: stcok}, {kind: Service, name: stock}]", "stock-1", "stcok", ""),
            (
                "rules: [{from: [{serviceAccounts: [known, declared, ordres, attic/x]}]}]",
                "orders-1,stock-1",
                "",
                "attic/x,shop/ordres",
            ),
        ] {
            let targets = targets(Endpoints::Slices, &[MESH, &policy(spec)].join("---\n"));
            let (_, target) = targets.policies.first_key_value().expect("one policy");
            let names = target.workloads.iter().map(|place| targets.workloads[*place as usize].name.name.as_str());
            assert_eq!(names.collect::<Vec<_>>().join(","), workloads, "{spec}");
            assert_eq!(target.missing_services.join(","), services, "{spec}");
            let missing: Vec<String> = target.missing_accounts.iter().map(ToString::to_string).collect();
            assert_eq!(missing.join(","), accounts, "{spec}");
        }
    }

    #[test]
    fn on_a_host_no_account_is_missing_for_nobody_lists_them() {
        let spec = policy("rules: [{from: [{serviceAccounts: [ordres]}]}]");
        let targets = targets(Endpoints::Selectors, &spec);
        assert_eq!(targets.policies.first_key_value().expect("one policy").1.missing_accounts, []);
    }

    #[test]
    fn only_what_a_policy_says_makes_its_fingerprint() {
        let of = |spec: &str| {
            let targets = targets(Endpoints::Slices, &policy(spec));
            targets.policies.first_key_value().expect("one policy").1.fingerprint
        };
        assert_eq!(of("rules: []"), of("mode: Enforce"));
        assert_ne!(of("rules: []"), of("mode: Shadow"));
    }
}
