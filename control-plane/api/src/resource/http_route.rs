//! `HTTPRoute` of the Gateway API: its rules and matches.
use std::time::Duration;

use super::ResourceError;
use super::error::quoted;
use super::node::{At, Fields, Shape};
use super::route::{
    Filters, at_most, backends, duration, expression, filters, matches, refuse, rule_name, short, values,
};
use crate::routing::{Backend, Filter, Match, PathChange, PathMatch, Redirect, Retry, Rewrite, Rule, Timeouts};

const RULE: Shape = Shape {
    known: &["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"],
    later: &[],
};
const MATCH: Shape = Shape { known: &["path", "headers", "queryParams", "method"], later: &[] };
const PATH: Shape = Shape { known: &["type", "value"], later: &[] };
const TIMEOUTS: Shape = Shape { known: &["request", "backendRequest"], later: &[] };
const RETRY: Shape = Shape { known: &["codes", "attempts", "backoff"], later: &[] };

const FILTERS: Filters = Filters {
    shape: Shape {
        known: &[
            "type",
            "requestHeaderModifier",
            "responseHeaderModifier",
            "requestMirror",
            "requestRedirect",
            "urlRewrite",
            "cors",
            "externalAuth",
            "extensionRef",
        ],
        later: &[],
    },
    types: &[
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("RequestMirror", "requestMirror"),
        ("RequestRedirect", "requestRedirect"),
        ("URLRewrite", "urlRewrite"),
        ("CORS", "cors"),
        ("ExternalAuth", "externalAuth"),
        ("ExtensionRef", "extensionRef"),
    ],
};

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
const MAX_PATH_BYTES: usize = 1024;
const MAX_HEADER_BYTES: usize = 4096;
const MAX_QUERY_BYTES: usize = 1024;
/// Statuses that may be tried again.
const MAX_CODES: usize = 200;

/// The rule that a route without any has: it matches all, and has nowhere to send it.
pub(super) fn default_rule() -> Rule {
    Rule { matches: vec![default_match()], ..Rule::default() }
}

fn default_match() -> Match {
    Match { path: Some(PathMatch::Prefix("/".to_owned())), ..Match::default() }
}

/// A rule of a route in the namespace `home`.
pub(super) fn rule(at: &At<'_>, home: &str) -> Result<Rule, ResourceError> {
    let fields = at.closed(&RULE)?;
    let mut refused = None;
    let mut rule = Rule {
        name: rule_name(&fields)?,
        matches: matches(&fields)?.iter().map(match_).collect::<Result<_, _>>()?,
        filters: filters(&fields, home, &FILTERS, false, &mut refused)?,
        backends: backends(&fields, home, &FILTERS, &mut refused)?,
        timeouts: timeouts(&fields)?,
        retry: fields.get_non_null("retry").map(|at| retry(&at)).transpose()?,
        refused: None,
    };
    if rule.matches.is_empty() {
        rule.matches.push(default_match());
    }
    check_filters(at, &rule)?;
    if fields.get_non_null("sessionPersistence").is_some() {
        refuse(&mut refused, "sessionPersistence is not supported; take it out");
    }
    rule.refused = refused;
    Ok(rule)
}

fn match_(at: &At<'_>) -> Result<Match, ResourceError> {
    let fields = at.closed(&MATCH)?;
    let method = match fields.get_non_null("method") {
        None => None,
        Some(at) => {
            let method = at.text()?;
            if !METHODS.contains(&method) {
                return Err(
                    at.error(format_args!("is {}", quoted(method)), format!("Write one of {}.", METHODS.join(", ")))
                );
            }
            Some(method.to_owned())
        }
    };
    Ok(Match {
        path: Some(path(&fields)?),
        method,
        headers: values(&fields, "headers", true, MAX_HEADER_BYTES)?,
        query: values(&fields, "queryParams", false, MAX_QUERY_BYTES)?,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PathType {
    Exact,
    Prefix,
    Regex,
}

fn path(fields: &Fields<'_>) -> Result<PathMatch, ResourceError> {
    const TYPES: &[(&str, PathType)] =
        &[("Exact", PathType::Exact), ("PathPrefix", PathType::Prefix), ("RegularExpression", PathType::Regex)];
    let Some(at) = fields.get_non_null("path") else { return Ok(PathMatch::Prefix("/".to_owned())) };
    let fields = at.closed(&PATH)?;
    let type_ = fields.get_non_null("type").map_or(Ok(PathType::Prefix), |at| at.one_of(TYPES))?;
    let value = fields.get_non_null("value");
    let literal = || value.as_ref().map_or(Ok("/"), literal_path);
    Ok(match type_ {
        PathType::Exact => PathMatch::Exact(literal()?.to_owned()),
        PathType::Prefix => {
            let prefix = literal()?.trim_end_matches('/');
            PathMatch::Prefix(if prefix.is_empty() { "/" } else { prefix }.to_owned())
        }
        PathType::Regex => PathMatch::Regex(match &value {
            Some(at) => expression(at, MAX_PATH_BYTES)?,
            None => "/".to_owned(),
        }),
    })
}

/// A path as the API demands it: absolute, without what a normalized path never has.
fn literal_path<'n>(at: &At<'n>) -> Result<&'n str, ResourceError> {
    let text = short(at, MAX_PATH_BYTES)?;
    let wrong = |what: &str, remedy: &str| Err(at.error(format_args!("is {}, which {what}", quoted(text)), remedy));
    if !text.starts_with('/') {
        return wrong("does not begin with `/`", "Write the whole path.");
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if text.contains(part) {
            return wrong(
                &format!("holds `{part}`"),
                "Write the path without it: requests are matched after normalization.",
            );
        }
    }
    if text.ends_with("/.") || text.ends_with("/..") {
        return wrong("ends with a dot segment", "Write the path that is meant.");
    }
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let right = match byte {
            b'%' => (0..2).all(|_| rest.next().is_some_and(|digit| digit.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !right {
            return wrong("holds what no path may", "Write other characters as `%` escapes.");
        }
    }
    Ok(text)
}

fn timeouts(fields: &Fields<'_>) -> Result<Timeouts, ResourceError> {
    let Some(at) = fields.get_non_null("timeouts") else { return Ok(Timeouts::default()) };
    let fields = at.closed(&TIMEOUTS)?;
    let read = |key| fields.get_non_null(key).map(|at: At<'_>| duration(&at)).transpose();
    // Zero stands for no limit.
    let limit = |duration: Option<Duration>| duration.filter(|duration| !duration.is_zero());
    let timeouts = Timeouts { request: limit(read("request")?), backend_request: limit(read("backendRequest")?) };
    if let (Some(whole), Some(each)) = (timeouts.request, timeouts.backend_request)
        && each > whole
    {
        return Err(at.error(
            "has a `backendRequest` that is longer than `request`",
            "Make `request` longer: it covers all attempts.",
        ));
    }
    Ok(timeouts)
}

fn retry(at: &At<'_>) -> Result<Retry, ResourceError> {
    let fields = at.closed(&RETRY)?;
    let mut codes = Vec::new();
    for at in at_most(&fields, "codes", MAX_CODES)? {
        codes.push(u16::try_from(at.integer(400..=599)?).expect("the range was checked"));
    }
    Ok(Retry {
        codes,
        attempts: fields.get_non_null("attempts").map(|at| at.integer(0..=i32::MAX.unsigned_abs())).transpose()?,
        backoff: fields.get_non_null("backoff").map(|at| duration(&at)).transpose()?,
    })
}

/// Which filters go with which matches and backends.
fn check_filters(at: &At<'_>, rule: &Rule) -> Result<(), ResourceError> {
    let redirects = rule.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_)));
    if redirects && !rule.backends.is_empty() {
        return Err(at.error(
            "has a `RequestRedirect` and `backendRefs`",
            "Take the backends out: a redirected request goes nowhere.",
        ));
    }
    let of_backends = rule.backends.iter().flat_map(|backend: &Backend| &backend.filters);
    let replaces_prefix = rule.filters.iter().chain(of_backends).any(|filter| match filter {
        Filter::Redirect(Redirect { path, .. }) | Filter::Rewrite(Rewrite { path, .. }) => {
            matches!(path, Some(PathChange::Prefix(_)))
        }
        _ => false,
    });
    if replaces_prefix && !matches!(&rule.matches[..], [Match { path: Some(PathMatch::Prefix(_)), .. }]) {
        return Err(at.error(
            "has a `ReplacePrefixMatch`, and not exactly one match, with a `PathPrefix`",
            "Write one rule for each prefix, or `ReplaceFullPath`.",
        ));
    }
    Ok(())
}
