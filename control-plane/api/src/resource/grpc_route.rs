//! `GRPCRoute` of the Gateway API: its rules and matches.
use super::ResourceError;
use super::error::quoted;
use super::node::{At, Fields, Shape};
use super::route::{Filters, Matcher, backends, filters, matcher, matches, refuse, rule_name, values};
use crate::routing::{Match, PathMatch, Rule, Text};

const RULE: Shape = Shape { known: &["name", "matches", "filters", "backendRefs", "sessionPersistence"], later: &[] };
const MATCH: Shape = Shape { known: &["method", "headers"], later: &[] };
const METHOD: Shape = Shape { known: &["type", "service", "method"], later: &[] };

const FILTERS: Filters = Filters {
    shape: Shape {
        known: &["type", "requestHeaderModifier", "responseHeaderModifier", "requestMirror", "extensionRef"],
        later: &[],
    },
    types: &[
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("RequestMirror", "requestMirror"),
        ("ExtensionRef", "extensionRef"),
    ],
};

const MAX_NAME_BYTES: usize = 1024;
const MAX_HEADER_BYTES: usize = 4096;

/// A rule of a route in the namespace `home`.
pub(super) fn rule(at: &At<'_>, home: &str) -> Result<Rule, ResourceError> {
    let fields = at.closed(&RULE)?;
    let mut refused = None;
    let mut rule = Rule {
        name: rule_name(&fields)?,
        matches: matches(&fields)?.iter().map(match_).collect::<Result<_, _>>()?,
        filters: filters(&fields, home, &FILTERS, false, &mut refused)?,
        backends: backends(&fields, home, &FILTERS, &mut refused)?,
        ..Rule::default()
    };
    if fields.get_non_null("sessionPersistence").is_some() {
        refuse(&mut refused, "sessionPersistence is not supported; take it out");
    }
    rule.refused = refused;
    Ok(rule)
}

fn match_(at: &At<'_>) -> Result<Match, ResourceError> {
    let fields = at.closed(&MATCH)?;
    Ok(Match {
        path: method(&fields)?,
        headers: values(&fields, "headers", true, MAX_HEADER_BYTES)?,
        ..Match::default()
    })
}

fn method(fields: &Fields<'_>) -> Result<Option<PathMatch>, ResourceError> {
    let Some(at) = fields.get_non_null("method") else { return Ok(None) };
    let fields = at.closed(&METHOD)?;
    let matcher = matcher(&fields)?;
    let read = |key: &str, dots: bool| -> Result<Option<Text>, ResourceError> {
        let Some(at) = fields.get_non_null(key) else { return Ok(None) };
        let text = at.text()?;
        // Left empty it matches any, as if it were not there.
        if text.is_empty() {
            return Ok(None);
        }
        if matcher == Matcher::Exact && !is_rpc_name(text, dots) {
            return Err(at.error(
                format_args!("is {}, which is no name of gRPC", quoted(text)),
                "Write letters, digits and `_`; a service's name has its package before it, such as `shop.Orders`.",
            ));
        }
        matcher.read(&at, MAX_NAME_BYTES).map(Some)
    };
    let (service, method) = (read("service", true)?, read("method", false)?);
    if service.is_none() && method.is_none() {
        return Err(at.error("names neither service nor method", "Write one of the two, or leave `method` out."));
    }
    Ok(Some(PathMatch::Rpc { service, method }))
}

/// A method's name, or with `dots` a service's with its package.
fn is_rpc_name(text: &str, dots: bool) -> bool {
    let word = |word: &str| {
        word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && word.bytes().next().is_some_and(|first| !first.is_ascii_digit())
    };
    if dots { text.strip_prefix('.').unwrap_or(text).split('.').all(word) } else { word(text) }
}
