//! Names as Kubernetes has them, and labels (RFC 1123 section 2.1; Kubernetes "Object Names and IDs").
use super::error::quoted;
use super::node::At;
use super::{NamespacedName, ResourceError};

/// Bytes that a DNS label may have, and each part of a Kubernetes label.
pub(crate) const MAX_LABEL_BYTES: usize = 63;
/// Bytes that a DNS subdomain may have.
pub(crate) const MAX_SUBDOMAIN_BYTES: usize = 253;

/// Whether `name` is a DNS label: 1 to 63 of `[a-z0-9-]`, not beginning or ending with `-`.
pub(crate) fn is_label(name: &str) -> bool {
    (1..=MAX_LABEL_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Whether `name` is a DNS subdomain: labels joined by `.`, at most 253 bytes.
pub(crate) fn is_subdomain(name: &str) -> bool {
    name.len() <= MAX_SUBDOMAIN_BYTES && name.split('.').all(is_label)
}

/// A label that says what `name` was probably meant to be.
fn repaired(name: &str, dots: bool) -> Option<String> {
    let repaired: String = name
        .to_ascii_lowercase()
        .chars()
        .take(MAX_LABEL_BYTES)
        .map(|c| if c.is_ascii_alphanumeric() || (dots && c == '.') { c } else { '-' })
        .collect();
    let repaired = repaired.trim_matches(|c| c == '-' || c == '.').to_owned();
    is_subdomain(&repaired).then_some(repaired)
}

fn refuse(at: &At<'_>, name: &str, rule: &str, dots: bool) -> ResourceError {
    let suggestion = match repaired(name, dots) {
        Some(name) => format!(" such as `{name}`"),
        None => String::new(),
    };
    at.error(format_args!("is {}, which is not a valid name", quoted(name)), format!("Write {rule}{suggestion}."))
}

/// Reads a DNS label.
pub(crate) fn label<'n>(at: &At<'n>) -> Result<&'n str, ResourceError> {
    let name = at.text()?;
    if is_label(name) {
        return Ok(name);
    }
    Err(refuse(at, name, "1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends,", false))
}

/// Reads a DNS subdomain.
pub(crate) fn subdomain<'n>(at: &At<'n>) -> Result<&'n str, ResourceError> {
    let name = at.text()?;
    if is_subdomain(name) {
        return Ok(name);
    }
    Err(refuse(
        at,
        name,
        "up to 253 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends,",
        true,
    ))
}

/// Reads `name` (in `namespace`) or `namespace/name`.
pub(crate) fn reference(at: &At<'_>, namespace: &str) -> Result<NamespacedName, ResourceError> {
    let text = at.text()?;
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if text.contains('*') {
        return Err(at.error(
            format_args!("is {}, and wildcards have no meaning here", quoted(text)),
            "List `namespaces`, or `identities` such as `spiffe://cluster.local/ns/shop/sa/*`.",
        ));
    }
    if !is_label(namespace) || !is_subdomain(name) {
        return Err(at.error(
            format_args!("is {}, which is not a name", quoted(text)),
            "Write `name` for one in the same namespace, else `namespace/name`.",
        ));
    }
    Ok(NamespacedName { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Whether `key` and `value` may be a Kubernetes label.
pub(crate) fn is_metadata_label(key: &str, value: &str) -> bool {
    let word = |text: &str| {
        text.len() <= MAX_LABEL_BYTES
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
            && text.bytes().next().is_none_or(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().last().is_none_or(|byte| byte.is_ascii_alphanumeric())
    };
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain) && !name.is_empty() && word(name) && word(value)
}
