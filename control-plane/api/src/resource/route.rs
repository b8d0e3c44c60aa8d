//! Routes of the Gateway API: what `HTTPRoute` and `GRPCRoute` have in common.
//!
//! Fields, defaults and bounds are those of Gateway API v1.5, the experimental channel's among them. A field that is unknown
//! even there is refused. What the API knows and a sidecar cannot do refuses the rule that asks for it, and so the requests
//! that this rule matches: none is ever served as if the rule had not asked. `hostnames` mean nothing to a mesh (GEP-1294).
use std::time::Duration;

use super::error::quoted;
use super::metadata::Scope;
use super::node::{At, Fields, Shape};
use super::{Metadata, NamespacedName, ResourceError, grpc_route, http_route, name};
use crate::routing::{Backend, Filter, RouteKind, Rule};

mod backend;
mod filter;
mod matching;

pub(super) use backend::backends;
pub(super) use filter::{Filters, filters};
pub(super) use matching::{Matcher, expression, matcher, values};

/// Bounds of the API's own schemas.
const MAX_PARENTS: usize = 32;
const MAX_HOSTNAMES: usize = 16;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 128;
/// Of matches in a rule.
const MAX_MATCHES_OF_A_RULE: usize = 64;
/// Of filters, backends, and headers of one match or filter.
const MAX_PARTS: usize = 16;

const SPEC: Shape = Shape { known: &["parentRefs", "useDefaultGateways", "hostnames", "rules"], later: &[] };
const PARENT: Shape = Shape { known: &["group", "kind", "namespace", "name", "sectionName", "port"], later: &[] };

/// A route as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Whether it is an `HTTPRoute` or a `GRPCRoute`.
    pub kind: RouteKind,
    /// Its name.
    pub name: NamespacedName,
    /// When it was created, in seconds since 1970. 0: unknown, as in files.
    pub created: u64,
    /// What it is attached to.
    pub parents: Vec<ParentRef>,
    /// Its rules. Their backends are not looked up: one is refused here only if it is no Service.
    pub rules: Vec<Rule>,
}

/// What a route is attached to, as it is written, with the API's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// API group; empty for Kubernetes' own.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace; `None`: the route's own.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Name of one of a Service's ports.
    pub section_name: Option<String>,
    /// One of a Service's ports.
    pub port: Option<u16>,
}

impl ParentRef {
    /// The Service that is meant, for a route of `namespace`. `None`: it is no Service.
    pub fn service(&self, namespace: &str) -> Option<NamespacedName> {
        let is_service = is_service(&self.group, &self.kind);
        is_service.then(|| NamespacedName::new(self.namespace.as_deref().unwrap_or(namespace), &*self.name))
    }
}

impl Route {
    /// All backends that it names, in a fixed order: those of each rule with their mirrors, then the rule's mirrors.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.rules.iter().flat_map(|rule| {
            let own =
                rule.backends.iter().flat_map(|backend| std::iter::once(backend).chain(mirrors(&backend.filters)));
            own.chain(mirrors(&rule.filters))
        })
    }

    pub(crate) fn parse(kind: RouteKind, document: &Fields<'_>) -> Result<Self, ResourceError> {
        let name = Metadata::parse(document, Scope::Own)?.name;
        let spec = document.require("spec", "Write `spec: {parentRefs: …, rules: …}`.")?.closed(&SPEC)?;
        for hostname in at_most(&spec, "hostnames", MAX_HOSTNAMES)? {
            hostname.text()?;
        }
        let mut rules = Vec::new();
        let mut matches = 0;
        for at in at_most(&spec, "rules", MAX_RULES)? {
            let rule = match kind {
                RouteKind::Http => http_route::rule(&at, &name.namespace)?,
                RouteKind::Grpc => grpc_route::rule(&at, &name.namespace)?,
            };
            matches += rule.matches.len();
            if matches > MAX_MATCHES {
                return Err(at.error(
                    format_args!("brings the matches of all rules to {matches}"),
                    format!("Write at most {MAX_MATCHES}; make another route of the rest."),
                ));
            }
            if rule.name.is_some() && rules.iter().any(|other: &Rule| other.name == rule.name) {
                return Err(at.error("repeats the name of another rule", "Give each rule its own name."));
            }
            rules.push(rule);
        }
        if rules.is_empty() && kind == RouteKind::Http {
            rules.push(http_route::default_rule());
        }
        Ok(Self { kind, name, created: 0, parents: parents(&spec)?, rules })
    }
}

fn parents(spec: &Fields<'_>) -> Result<Vec<ParentRef>, ResourceError> {
    let mut parents = Vec::new();
    for at in at_most(spec, "parentRefs", MAX_PARENTS)? {
        let fields = at.closed(&PARENT)?;
        let text = |key| fields.get_non_null(key).map(|at: At<'_>| at.text().map(str::to_owned)).transpose();
        let parent = ParentRef {
            group: text("group")?.unwrap_or_else(|| "gateway.networking.k8s.io".to_owned()),
            kind: text("kind")?.unwrap_or_else(|| "Gateway".to_owned()),
            namespace: namespace(&fields)?,
            name: fields.require("name", "Write the name of a Service.")?.text()?.to_owned(),
            section_name: text("sectionName")?.filter(|section| !section.is_empty()),
            port: fields.get_non_null("port").map(|at| at.port()).transpose()?,
        };
        if parents.contains(&parent) {
            return Err(at.error("is listed twice", "List each parent once."));
        }
        parents.push(parent);
    }
    Ok(parents)
}

/// The field `namespace`, if it is there.
fn namespace(fields: &Fields<'_>) -> Result<Option<String>, ResourceError> {
    fields.get_non_null("namespace").map(|at| name::label(&at).map(str::to_owned)).transpose()
}

/// Whether that is a core Service.
fn is_service(group: &str, kind: &str) -> bool {
    matches!(group, "" | "core") && kind == "Service"
}

fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &Backend> {
    filters.iter().filter_map(|filter| match filter {
        Filter::Mirror(mirror) => Some(&mirror.backend),
        _ => None,
    })
}

/// The items of the list `key`; none where there is no list.
pub(super) fn at_most<'n>(fields: &Fields<'n>, key: &str, most: usize) -> Result<Vec<At<'n>>, ResourceError> {
    let Some(at) = fields.get_non_null(key) else { return Ok(Vec::new()) };
    let items = at.open_items()?;
    if items.len() > most {
        let remedy = format!("Write at most {most}; make another route of the rest.");
        return Err(at.error(format_args!("has {} items", items.len()), remedy));
    }
    Ok(items)
}

/// The items of the list `key` of matches.
pub(super) fn matches<'n>(fields: &Fields<'n>) -> Result<Vec<At<'n>>, ResourceError> {
    at_most(fields, "matches", MAX_MATCHES_OF_A_RULE)
}

/// The rule's name.
pub(super) fn rule_name(fields: &Fields<'_>) -> Result<Option<String>, ResourceError> {
    fields.get_non_null("name").map(|at| name::subdomain(&at).map(str::to_owned)).transpose()
}

/// A text of at most `most` bytes.
pub(super) fn short<'n>(at: &At<'n>, most: usize) -> Result<&'n str, ResourceError> {
    let text = at.text()?;
    if text.len() > most {
        return Err(at.error(format_args!("has {} bytes", text.len()), format!("Write at most {most}.")));
    }
    Ok(text)
}

/// A duration of the Gateway API (GEP-2257): one to four whole numbers of up to five digits, each with `h`, `m`, `s` or `ms`.
pub(super) fn duration(at: &At<'_>) -> Result<Duration, ResourceError> {
    let text = at.text()?;
    parse_duration(text).ok_or_else(|| {
        at.error(
            format_args!("is {}, which is no duration of the Gateway API", quoted(text)),
            "Write whole numbers of up to five digits with `h`, `m`, `s` or `ms`, such as `10s`, `500ms` or `1m30s`.",
        )
    })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok().filter(|_| digits <= 5)?;
        let unit = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let millis = match &rest[digits..digits + unit] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        total += Duration::from_millis(number * millis);
        rest = &rest[digits + unit..];
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(total)
}

/// Notes why a rule cannot be done; the first reason stays.
pub(super) fn refuse(refused: &mut Option<String>, why: impl Into<String>) {
    refused.get_or_insert_with(|| why.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gep_2257() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("10s", Some(10_000)),
            ("1m30s", Some(90_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("500ms", Some(500)),
            ("99999h", Some(359_996_400_000)),
            ("1s1s", Some(2_000)),
            ("100000s", None),
            ("1h1h1h1h1h", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("10", None),
            ("s", None),
            ("", None),
        ] {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
