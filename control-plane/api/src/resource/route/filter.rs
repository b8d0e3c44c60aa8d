//! Filters of a rule or of a backend.
use std::collections::BTreeSet;

use super::super::error::{listed, quoted};
use super::super::node::{At, Fields, Shape};
use super::super::{ResourceError, name};
use super::matching::field_name;
use super::{MAX_PARTS, at_most, backend, refuse, short};
use crate::routing::{Filter, HeaderChange, Mirror, PathChange, Redirect, Rewrite};

const HEADERS: Shape = Shape { known: &["set", "add", "remove"], later: &[] };
const HEADER: Shape = Shape { known: &["name", "value"], later: &[] };
const MIRROR: Shape = Shape { known: &["backendRef", "percent", "fraction"], later: &[] };
const FRACTION: Shape = Shape { known: &["numerator", "denominator"], later: &[] };
const REDIRECT: Shape = Shape { known: &["scheme", "hostname", "path", "port", "statusCode"], later: &[] };
const REWRITE: Shape = Shape { known: &["hostname", "path"], later: &[] };
const PATH: Shape = Shape { known: &["type", "replaceFullPath", "replacePrefixMatch"], later: &[] };

const MAX_PATH_BYTES: usize = 1024;
const MAX_VALUE_BYTES: usize = 4096;
/// Greatest part and whole of a mirror's fraction.
const MAX_FRACTION: u32 = i32::MAX.unsigned_abs();
const DEFAULT_STATUS: u16 = 302;
const STATUSES: [u32; 5] = [301, 302, 303, 307, 308];

/// Headers that say how a message travels, or who sends it: a route that changed them would break what the sidecar promises.
const RESERVED: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
];

/// The filters of a kind of route: each type with the field that holds it, which may be one that is not done here.
pub(crate) struct Filters {
    pub(crate) shape: Shape,
    pub(crate) types: &'static [(&'static str, &'static str)],
}

/// Types that may stand several times in one list.
const REPEATABLE: &[&str] = &["RequestMirror", "ExtensionRef", "ExternalAuth"];

/// The list `filters`, of a rule or, with `of_backend`, of a backend.
pub(crate) fn filters(
    fields: &Fields<'_>,
    home: &str,
    kinds: &Filters,
    of_backend: bool,
    refused: &mut Option<String>,
) -> Result<Vec<Filter>, ResourceError> {
    let mut filters = Vec::new();
    let mut seen = BTreeSet::new();
    for at in at_most(fields, "filters", MAX_PARTS)? {
        let fields = at.closed(&kinds.shape)?;
        let type_at = fields.require("type", "Write the filter's type.")?;
        let type_ = type_at.text()?;
        let Some((type_, field)) = kinds.types.iter().find(|(known, _)| *known == type_) else {
            let types = listed(kinds.types.iter().map(|(type_, _)| *type_));
            return Err(type_at.error(format_args!("is {}", quoted(type_)), format!("Write one of {types}.")));
        };
        if let Some((_, other)) =
            kinds.types.iter().find(|(_, other)| other != field && fields.get_non_null(other).is_some())
        {
            return Err(at.error(
                format_args!("has `{other}`, which its type `{type_}` has no use for"),
                format!("Write `{field}`, or correct the type."),
            ));
        }
        let body = fields.require(field, &format!("A filter of type `{type_}` has its settings there."))?;
        if !seen.insert(*type_) && !REPEATABLE.contains(type_) {
            return Err(at.error(format_args!("repeats the type `{type_}`"), "Put both into one filter."));
        }
        if seen.contains("RequestRedirect") && seen.contains("URLRewrite") {
            return Err(at.error(
                "brings `RequestRedirect` and `URLRewrite` together",
                "A redirected request goes nowhere: write the new host and path in the redirect.",
            ));
        }
        filters.push(match *type_ {
            "RequestHeaderModifier" => Filter::RequestHeaders(headers(&body, refused)?),
            "ResponseHeaderModifier" => Filter::ResponseHeaders(headers(&body, refused)?),
            "RequestMirror" => Filter::Mirror(mirror(&body, home)?),
            "RequestRedirect" => {
                if of_backend {
                    refuse(refused, "a redirect at a backend is not supported; write it in the rule's filters");
                }
                Filter::Redirect(redirect(&body)?)
            }
            "URLRewrite" => Filter::Rewrite(rewrite(&body)?),
            other => {
                refuse(refused, format!("the filter {other} is not supported; take it out"));
                continue;
            }
        });
    }
    Ok(filters)
}

fn headers(at: &At<'_>, refused: &mut Option<String>) -> Result<HeaderChange, ResourceError> {
    let fields = at.closed(&HEADERS)?;
    let mut header = |at: &At<'_>| -> Result<String, ResourceError> {
        let name = field_name(at)?.to_ascii_lowercase();
        if RESERVED.contains(&name.as_str()) {
            let instead = if name == "host" { "; write a URLRewrite filter with `hostname`" } else { "" };
            refuse(refused, format!("the header {name} cannot be changed by a filter{instead}"));
        }
        Ok(name)
    };
    let mut change = HeaderChange::default();
    for (key, lines) in [("set", &mut change.set), ("add", &mut change.add)] {
        for at in at_most(&fields, key, MAX_PARTS)? {
            let fields = at.closed(&HEADER)?;
            let name = header(&fields.require("name", "Write the header's name.")?)?;
            let value = header_value(&fields.require("value", "Write the header's value.")?)?;
            // Of several entries for one name only the first counts, as the API demands.
            if !lines.iter().any(|(other, _)| *other == name) {
                lines.push((name, value));
            }
        }
    }
    for at in at_most(&fields, "remove", MAX_PARTS)? {
        change.remove.push(header(&at)?);
    }
    Ok(change)
}

fn header_value(at: &At<'_>) -> Result<String, ResourceError> {
    let text = short(at, MAX_VALUE_BYTES)?;
    if text.is_empty() || text.trim() != text || !text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
        return Err(at.error(
            format_args!("is {}, which is no value of a header", quoted(text)),
            "Write visible ASCII characters, with space only between them.",
        ));
    }
    Ok(text.to_owned())
}

fn mirror(at: &At<'_>, home: &str) -> Result<Mirror, ResourceError> {
    let fields = at.closed(&MIRROR)?;
    let backend = backend::mirrored(&fields.require("backendRef", "Write where the copies go.")?, home)?;
    let (percent, fraction) = (fields.get_non_null("percent"), fields.get_non_null("fraction"));
    let (numerator, denominator) = match (percent, fraction) {
        (Some(_), Some(both)) => return Err(both.error("stands beside `percent`", "Write one of the two.")),
        (Some(percent), None) => (percent.integer(0..=100)?, 100),
        (None, None) => (1, 1),
        (None, Some(at)) => {
            let fields = at.closed(&FRACTION)?;
            let denominator = fields.get_non_null("denominator").map_or(Ok(100), |at| at.integer(1..=MAX_FRACTION))?;
            let numerator = fields.require("numerator", "Write how many of `denominator` requests are copied.")?;
            (numerator.integer(0..=denominator)?, denominator)
        }
    };
    Ok(Mirror { backend, numerator, denominator })
}

fn redirect(at: &At<'_>) -> Result<Redirect, ResourceError> {
    let fields = at.closed(&REDIRECT)?;
    let scheme =
        fields.get_non_null("scheme").map(|at| at.one_of(&[("http", "http"), ("https", "https")])).transpose()?;
    let status = match fields.get_non_null("statusCode") {
        None => DEFAULT_STATUS,
        Some(at) => {
            let status = at.integer(301..=308)?;
            if !STATUSES.contains(&status) {
                return Err(at.error(format_args!("is {status}"), "Write 301, 302, 303, 307 or 308."));
            }
            u16::try_from(status).expect("the range was checked")
        }
    };
    Ok(Redirect {
        scheme: scheme.map(str::to_owned),
        hostname: hostname(&fields)?,
        path: path(&fields)?,
        port: fields.get_non_null("port").map(|at| at.port()).transpose()?,
        status: Some(status),
    })
}

fn rewrite(at: &At<'_>) -> Result<Rewrite, ResourceError> {
    let fields = at.closed(&REWRITE)?;
    Ok(Rewrite { hostname: hostname(&fields)?, path: path(&fields)? })
}

fn hostname(fields: &Fields<'_>) -> Result<Option<String>, ResourceError> {
    fields.get_non_null("hostname").map(|at| name::subdomain(&at).map(str::to_owned)).transpose()
}

fn path(fields: &Fields<'_>) -> Result<Option<PathChange>, ResourceError> {
    let Some(at) = fields.get_non_null("path") else { return Ok(None) };
    let fields = at.closed(&PATH)?;
    const TYPES: &[(&str, (&str, &str))] = &[
        ("ReplaceFullPath", ("replaceFullPath", "replacePrefixMatch")),
        ("ReplacePrefixMatch", ("replacePrefixMatch", "replaceFullPath")),
    ];
    let (field, other) = fields.require("type", "Write `ReplaceFullPath` or `ReplacePrefixMatch`.")?.one_of(TYPES)?;
    if let Some(other) = fields.get_non_null(other) {
        return Err(other.error("does not go with the type", format!("Write `{field}`, or correct the type.")));
    }
    let value = fields.require(field, "Write what the path becomes.")?;
    let text = short(&value, MAX_PATH_BYTES)?;
    if !(text.is_empty() || text.starts_with('/')) || !text.bytes().all(is_path_byte) {
        return Err(value.error(
            format_args!("is {}, which is no path", quoted(text)),
            "Write a path that begins with `/`, without query, and `%` escapes for what is no letter, digit or -._~!$&'()*+,;=:@",
        ));
    }
    let text = text.to_owned();
    Ok(Some(if field == "replaceFullPath" { PathChange::Full(text) } else { PathChange::Prefix(text) }))
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&byte)
}
