//! Rules in the form they are matched in: names turned into the strings that identities hold, long lists hashed.
use std::collections::HashSet;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use weft_certs::SpiffeId;

use super::pattern::{HostPattern, IdentityPattern, PathPattern};
use super::{AppliedPolicy, HttpRequest, Source};
use crate::resource::{Action, Caller, Condition, Mode, NamespacedName, Operation, Rule};

/// What is judged.
pub(super) struct Call<'a> {
    pub(super) source: Source<'a>,
    pub(super) port: u16,
    pub(super) http: Option<HttpRequest<'a>>,
}

/// What a policy does, in the order in which policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effect {
    Unreadable,
    Deny,
    Allow,
}

#[derive(Clone)]
pub(super) struct CompiledPolicy {
    pub(super) name: NamespacedName,
    pub(super) effect: Effect,
    pub(super) shadow: bool,
    pub(super) rules: Vec<CompiledRule>,
}

#[derive(Clone)]
pub(super) struct CompiledRule {
    from: Vec<CompiledCaller>,
    to: Vec<CompiledOperation>,
    when: Vec<Condition>,
}

#[derive(Clone)]
struct CompiledCaller {
    /// Paths of the service accounts' SPIFFE IDs.
    service_accounts: Names,
    namespaces: Names,
    exact_identities: Names,
    identity_patterns: Vec<IdentityPattern>,
    ip_blocks: Vec<IpNet>,
}

#[derive(Clone)]
struct CompiledOperation {
    ports: Vec<u16>,
    methods: Vec<String>,
    paths: Vec<PathPattern>,
    hosts: Vec<HostPattern>,
}

/// Strings to look one up in.
#[derive(Clone)]
enum Names {
    Few(Vec<Box<str>>),
    Many(HashSet<Box<str>>),
}

impl Names {
    /// Up to here comparing one after the other is faster than hashing.
    const FEW: usize = 8;

    fn is_empty(&self) -> bool {
        matches!(self, Self::Few(names) if names.is_empty())
    }
    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Few(names) => names.iter().any(|other| **other == *name),
            Self::Many(names) => names.contains(name),
        }
    }
}

impl FromIterator<Box<str>> for Names {
    fn from_iter<I: IntoIterator<Item = Box<str>>>(names: I) -> Self {
        let names: Vec<Box<str>> = names.into_iter().collect();
        if names.len() <= Self::FEW { Self::Few(names) } else { Self::Many(names.into_iter().collect()) }
    }
}

impl CompiledPolicy {
    pub(super) fn new(policy: &AppliedPolicy) -> Self {
        match policy {
            AppliedPolicy::Unreadable { name, .. } => {
                Self { name: name.clone(), effect: Effect::Unreadable, shadow: false, rules: Vec::new() }
            }
            AppliedPolicy::Readable(policy) => Self {
                name: policy.name.clone(),
                effect: match policy.action {
                    Action::Allow => Effect::Allow,
                    Action::Deny => Effect::Deny,
                },
                shadow: policy.mode == Mode::Shadow,
                rules: policy.rules.iter().map(CompiledRule::new).collect(),
            },
        }
    }

    /// The first rule that matches, counted from 0.
    pub(super) fn matching_rule(&self, call: &Call<'_>) -> Option<usize> {
        let strict = self.effect == Effect::Deny;
        self.rules.iter().position(|rule| rule.matches(call, strict))
    }
}

impl CompiledRule {
    fn new(rule: &Rule) -> Self {
        Self {
            from: rule.from.iter().map(CompiledCaller::new).collect(),
            to: rule.to.iter().map(CompiledOperation::new).collect(),
            when: rule.when.clone(),
        }
    }

    /// `strict`: in doubt the rule matches (it denies). Else in doubt it does not (it allows).
    fn matches(&self, call: &Call<'_>, strict: bool) -> bool {
        (self.from.is_empty() || self.from.iter().any(|caller| caller.matches(&call.source)))
            && (self.to.is_empty() || self.to.iter().any(|operation| operation.matches(call, strict)))
            && self.when.iter().all(|condition| match &call.http {
                Some(http) => header_matches(&condition.header, &condition.values, http.headers, strict),
                None => strict,
            })
    }
}

impl CompiledCaller {
    fn new(caller: &Caller) -> Self {
        let path = |name: &NamespacedName| format!("/ns/{}/sa/{}", name.namespace, name.name).into();
        Self {
            service_accounts: caller.service_accounts.iter().map(path).collect(),
            namespaces: caller.namespaces.iter().map(|name| name.as_str().into()).collect(),
            exact_identities: caller.identities.iter().filter_map(IdentityPattern::exact).map(Into::into).collect(),
            identity_patterns: caller.identities.iter().filter(|id| id.exact().is_none()).cloned().collect(),
            ip_blocks: caller.ip_blocks.clone(),
        }
    }

    fn matches(&self, source: &Source<'_>) -> bool {
        let Some(id) = source.identity else {
            return self.accepts_any_identity()
                && (self.ip_blocks.is_empty() || in_blocks(&self.ip_blocks, source.address));
        };
        self.ip_blocks.is_empty()
            && (self.service_accounts.is_empty() || self.service_accounts.contains(id.path()))
            && (self.namespaces.is_empty()
                || id.service_account().is_some_and(|(namespace, _)| self.namespaces.contains(namespace)))
            && (self.accepts_any_id() || self.identity_matches(id))
    }
    /// Whether no field speaks of mesh identities.
    fn accepts_any_identity(&self) -> bool {
        self.service_accounts.is_empty() && self.namespaces.is_empty() && self.accepts_any_id()
    }
    fn accepts_any_id(&self) -> bool {
        self.exact_identities.is_empty() && self.identity_patterns.is_empty()
    }
    fn identity_matches(&self, id: &SpiffeId) -> bool {
        self.exact_identities.contains(id.as_str()) || self.identity_patterns.iter().any(|pattern| pattern.matches(id))
    }
}

fn in_blocks(blocks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    blocks.iter().any(|block| block.contains(&address))
}

impl CompiledOperation {
    fn new(operation: &Operation) -> Self {
        Self {
            ports: operation.ports.clone(),
            methods: operation.methods.clone(),
            paths: operation.paths.clone(),
            hosts: operation.hosts.clone(),
        }
    }

    fn matches(&self, call: &Call<'_>, strict: bool) -> bool {
        if !self.ports.is_empty() && !self.ports.contains(&call.port) {
            return false;
        }
        let Some(http) = &call.http else {
            return strict || (self.methods.is_empty() && self.paths.is_empty() && self.hosts.is_empty());
        };
        (self.methods.is_empty() || self.methods.iter().any(|method| method == http.method))
            && (self.paths.is_empty() || self.path_matches(http.path, strict))
            && (self.hosts.is_empty() || self.hosts.iter().any(|host| host.matches(http.host)))
    }

    fn path_matches(&self, path: &str, strict: bool) -> bool {
        self.paths.iter().any(|pattern| pattern.matches(path))
            || (strict
                && path.contains(';')
                && self.paths.iter().any(|pattern| pattern.matches_without_parameters(path)))
    }
}

/// Judges every value of every line: in a list (RFC 9110 section 5.6.1) the application may read any of them.
fn header_matches(name: &HeaderName, wanted: &[String], headers: &HeaderMap, strict: bool) -> bool {
    let mut values = headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|value| value.trim_ascii())
        .filter(|value| !value.is_empty())
        .peekable();
    let mut listed = |value: &[u8]| wanted.iter().any(|wanted| wanted.as_bytes() == value);
    if strict { values.any(listed) } else { values.peek().is_some() && values.all(&mut listed) }
}
