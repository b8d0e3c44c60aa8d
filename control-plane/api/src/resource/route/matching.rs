//! What requests must be like: texts that are matched exactly or by regular expression.
use super::super::ResourceError;
use super::super::error::quoted;
use super::super::node::{At, Fields, Shape};
use super::{MAX_PARTS, at_most, short};
use crate::routing::{Pattern, Text, ValueMatch};

const VALUE: Shape = Shape { known: &["type", "name", "value"], later: &[] };
/// Bytes that the name of a header or query parameter may have.
const MAX_NAME_BYTES: usize = 256;

/// How a text is matched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matcher {
    Exact,
    Regex,
}

const MATCHERS: &[(&str, Matcher)] = &[("Exact", Matcher::Exact), ("RegularExpression", Matcher::Regex)];

/// The field `type` of a match.
pub(crate) fn matcher(fields: &Fields<'_>) -> Result<Matcher, ResourceError> {
    fields.get_non_null("type").map_or(Ok(Matcher::Exact), |at| at.one_of(MATCHERS))
}

impl Matcher {
    /// What the text at `at` matches.
    pub(crate) fn read(self, at: &At<'_>, most: usize) -> Result<Text, ResourceError> {
        Ok(match self {
            Self::Exact => Text::Exact(short(at, most)?.to_owned()),
            Self::Regex => Text::Regex(expression(at, most)?),
        })
    }
}

/// A regular expression that can be compiled.
pub(crate) fn expression(at: &At<'_>, most: usize) -> Result<String, ResourceError> {
    let text = short(at, most)?;
    Pattern::compile(text).map(|_| text.to_owned()).map_err(|fault| {
        at.error(
            format_args!("is {}, and {fault}", quoted(text)),
            "Write a regular expression in the syntax of RE2, without look-around or back references.",
        )
    })
}

/// The list `key` of headers or query parameters with values of at most `most` bytes. Of several entries for one name only
/// the first counts, as the API demands; where `fold` is true names that differ by case alone are one.
pub(crate) fn values(
    fields: &Fields<'_>,
    key: &str,
    fold: bool,
    most: usize,
) -> Result<Vec<ValueMatch>, ResourceError> {
    let mut values: Vec<ValueMatch> = Vec::new();
    let mut written = Vec::new();
    for at in at_most(fields, key, MAX_PARTS)? {
        let fields = at.closed(&VALUE)?;
        let as_written = field_name(&fields.require("name", "Write the name that is looked for.")?)?;
        let name = if fold { as_written.to_ascii_lowercase() } else { as_written.to_owned() };
        let value_at = fields.require("value", "Write what its value must be.")?;
        let value = matcher(&fields)?.read(&value_at, most)?;
        if value_at.text()?.is_empty() {
            return Err(value_at.error("is empty", "Write what the value must be."));
        }
        if written.contains(&as_written) {
            return Err(at.error(format_args!("repeats the name {}", quoted(as_written)), "Match each name once."));
        }
        written.push(as_written);
        if !values.iter().any(|other| other.name == name) {
            values.push(ValueMatch { name, value });
        }
    }
    Ok(values)
}

/// The name of a header or query parameter: a token (RFC 9110 section 5.6.2), which the API demands of both.
pub(super) fn field_name<'n>(at: &At<'n>) -> Result<&'n str, ResourceError> {
    let text = at.text()?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(token) {
        return Ok(text);
    }
    Err(at.error(
        format_args!("is {}, which is no name of a header or parameter", quoted(text)),
        format!("Write 1 to {MAX_NAME_BYTES} letters, digits or any of !#$%&'*+-.^_`|~"),
    ))
}
