//! All that judges calls to one workload, compiled once and read without a lock, a copy or an allocation.
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use weft_certs::SpiffeId;

use super::compiled::{Call, CompiledPolicy, Effect};
use super::{Decision, HttpRequest, Reason, Source};
use crate::resource::{AuthorizationPolicy, DefaultPolicy, NamespacedName};

/// A policy that applies to the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppliedPolicy {
    /// One that is understood.
    Readable(Arc<AuthorizationPolicy>),
    /// One that is not, such as a newer version's: it refuses everything.
    Unreadable {
        /// Its name.
        name: NamespacedName,
        /// What could not be understood.
        why: String,
    },
}

impl AppliedPolicy {
    /// The policy's name.
    pub fn name(&self) -> &NamespacedName {
        match self {
            Self::Readable(policy) => &policy.name,
            Self::Unreadable { name, .. } => name,
        }
    }
}

/// All AuthorizationPolicies of one workload, compiled. The default has no policies and allows callers with identity.
///
/// Two sets are equal when they were compiled from equal policies, in whatever order.
#[derive(Clone, Default)]
pub struct PolicySet {
    default: DefaultPolicy,
    denied: Arc<Vec<SpiffeId>>,
    /// Sorted by name, so that the order in which policies arrived changes nothing.
    sources: Arc<[AppliedPolicy]>,
    denied_index: HashSet<SpiffeId>,
    compiled: Vec<CompiledPolicy>,
    has_shadow: bool,
}

impl PolicySet {
    /// Compiles the policies that apply to a workload. `default` is its namespace's; `denied` are the identities refused
    /// whatever policies say.
    ///
    /// `policies` are taken to apply: their targets are not looked at (see [`super::applicable`]).
    pub fn compile(
        default: DefaultPolicy,
        denied: Arc<Vec<SpiffeId>>,
        policies: impl IntoIterator<Item = AppliedPolicy>,
    ) -> Self {
        let mut sources: Vec<AppliedPolicy> = policies.into_iter().collect();
        sources.sort_by(|a, b| a.name().cmp(b.name()).then_with(|| tie_break(a).cmp(&tie_break(b))));
        let mut compiled: Vec<CompiledPolicy> = sources.iter().map(CompiledPolicy::new).collect();
        // Stable: within one effect the order by name stays.
        compiled.sort_by_key(|policy| policy.effect);
        Self {
            default,
            denied_index: denied.iter().cloned().collect(),
            denied,
            has_shadow: compiled.iter().any(|policy| policy.shadow),
            sources: sources.into(),
            compiled,
        }
    }

    /// The same policies with another list of denied identities.
    #[must_use]
    pub fn with_denied(&self, denied: Arc<Vec<SpiffeId>>) -> Self {
        Self { denied_index: denied.iter().cloned().collect(), denied, ..self.clone() }
    }

    /// The namespace's default.
    pub fn default_policy(&self) -> DefaultPolicy {
        self.default
    }
    /// The identities refused whatever policies say.
    pub fn denied(&self) -> &Arc<Vec<SpiffeId>> {
        &self.denied
    }
    /// What was compiled, by name.
    pub fn policies(&self) -> &[AppliedPolicy] {
        &self.sources
    }

    /// Judges a byte stream (`http` absent) or an HTTP request to `port`.
    ///
    /// A Deny rule with HTTP fields matches a byte stream whenever its other fields do: bytes that were not judged as
    /// HTTP are never passed on where HTTP is restricted. An Allow rule with HTTP fields never matches a byte stream.
    pub fn decide(&self, source: Source<'_>, port: u16, http: Option<HttpRequest<'_>>) -> Decision<'_> {
        self.judge(&Call { source, port, http }, false)
    }

    /// What would be decided if the policies in Shadow mode were enforced too; `None`: none of them applies.
    ///
    /// A call that passes although this says refused is what a Shadow policy is there to find: report it under this
    /// decision's policy.
    pub fn shadow(&self, source: Source<'_>, port: u16, http: Option<HttpRequest<'_>>) -> Option<Decision<'_>> {
        self.has_shadow.then(|| self.judge(&Call { source, port, http }, true))
    }

    fn judge(&self, call: &Call<'_>, with_shadow: bool) -> Decision<'_> {
        if call.source.identity.is_some_and(|id| !self.denied_index.is_empty() && self.denied_index.contains(id)) {
            return Decision { allowed: false, policy: None, reason: Reason::DeniedIdentity };
        }
        let mut first_allow = None;
        // Ordered by effect: unreadable, Deny, Allow.
        for policy in self.compiled.iter().filter(|policy| with_shadow || !policy.shadow) {
            let reason = match policy.effect {
                Effect::Unreadable => Some(Reason::Unreadable),
                Effect::Deny if policy.rules.is_empty() => Some(Reason::NoRules),
                Effect::Deny => policy.matching_rule(call).map(Reason::Rule),
                Effect::Allow => {
                    first_allow.get_or_insert(&policy.name);
                    policy.matching_rule(call).map(Reason::Rule)
                }
            };
            if let Some(reason) = reason {
                return Decision { allowed: policy.effect == Effect::Allow, policy: Some(&policy.name), reason };
            }
        }
        if let Some(policy) = first_allow {
            return Decision { allowed: false, policy: Some(policy), reason: Reason::NoRuleMatched };
        }
        let allowed = match self.default {
            DefaultPolicy::Deny => false,
            DefaultPolicy::Authenticated => call.source.identity.is_some(),
            DefaultPolicy::Allow => true,
        };
        Decision { allowed, policy: None, reason: Reason::Default }
    }
}

/// Orders policies of the same name, which only a faulty source gives, independently of how they arrived.
fn tie_break(policy: &AppliedPolicy) -> String {
    match policy {
        AppliedPolicy::Readable(policy) => policy.spec_json().to_string(),
        AppliedPolicy::Unreadable { why, .. } => why.clone(),
    }
}

impl PartialEq for PolicySet {
    fn eq(&self, other: &Self) -> bool {
        self.default == other.default && self.denied == other.denied && self.sources == other.sources
    }
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySet")
            .field("default", &self.default)
            .field("denied", &self.denied)
            .field("policies", &self.sources)
            .finish()
    }
}
