//! SPIFFE IDs as types that cannot hold an invalid one (SPIFFE-ID standard, sections 2.1 to 2.4).
//!
//! IDs are exact bytes: nothing is folded, decoded or normalized, neither in parsing nor in comparing.
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::rules::Rule;

const SCHEME: &str = "spiffe://";
const MAX_ID_BYTES: usize = 2048;
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// A trust domain name, such as `cluster.local`: 1 to 255 bytes of `[a-z0-9.-_]`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID of a workload, at most 2048 bytes, compared byte for byte. Always has a path. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    path_start: usize,
}

/// Why a string is not a SPIFFE ID or trust domain, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpiffeIdError(pub String);

/// A broken rule of the SPIFFE-ID standard with its message.
#[derive(Debug)]
pub(crate) struct IdFault {
    pub(crate) rule: Rule,
    pub(crate) message: String,
}

impl From<IdFault> for SpiffeIdError {
    fn from(fault: IdFault) -> Self {
        SpiffeIdError(fault.message)
    }
}

fn fault<T>(rule: Rule, message: String) -> Result<T, IdFault> {
    Err(IdFault { rule, message })
}

impl TrustDomain {
    /// Parses a trust domain name.
    ///
    /// # Errors
    /// The name is not 1 to 255 bytes of `[a-z0-9.-_]`.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        if name.starts_with(SCHEME) {
            return Err(SpiffeIdError(format!("write the trust domain without {SCHEME}, such as cluster.local")));
        }
        check_trust_domain(name)?;
        Ok(TrustDomain(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `spiffe://<trust-domain>`: the ID of the trust domain itself, borne by its signing certificates.
    pub fn id(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl SpiffeId {
    /// Parses `spiffe://<trust-domain>/<path>`.
    ///
    /// # Errors
    /// The string breaks a rule of the SPIFFE-ID standard, has no path, or exceeds 2048 bytes.
    pub fn parse(uri: &str) -> Result<Self, SpiffeIdError> {
        Ok(Self::parse_by_rule(uri)?)
    }

    /// As [`SpiffeId::parse`], telling which rule is broken.
    pub(crate) fn parse_by_rule(uri: &str) -> Result<Self, IdFault> {
        match path_start(uri)? {
            Some(path_start) => Ok(SpiffeId { uri: uri.into(), path_start }),
            None => fault(
                Rule::NoPath,
                format!("{} names a trust domain only; add a path, such as {uri}/ns/shop/sa/cart", quoted(uri)),
            ),
        }
    }

    /// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
    ///
    /// # Errors
    /// A part is empty, `.` or `..`, has a character outside `[a-zA-Z0-9.-_]`, or the whole exceeds 2048 bytes.
    pub fn for_service_account(
        domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        for (what, name) in [("namespace", namespace), ("service account", service_account)] {
            check_segment(name).map_err(|fault| SpiffeIdError(format!("{what}: {}", fault.message)))?;
        }
        Self::parse(&format!("{SCHEME}{domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The path with its leading slash.
    pub fn path(&self) -> &str {
        &self.uri[self.path_start..]
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.path_start]
    }

    /// `(namespace, service account)` if the path has Weft's form.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, service_account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        let one_segment_each = !namespace.contains('/') && !service_account.contains('/');
        one_segment_each.then_some((namespace, service_account))
    }
}

/// The trust domain that `uri` names, if it is the ID of a trust domain itself (no path).
pub(crate) fn trust_domain_of_signer(uri: &str) -> Result<&str, IdFault> {
    match path_start(uri)? {
        None => Ok(&uri[SCHEME.len()..]),
        Some(_) => fault(Rule::SignerId, format!("{} has a path", quoted(uri))),
    }
}

/// Checks a SPIFFE ID; returns where its path begins, if it has one.
fn path_start(uri: &str) -> Result<Option<usize>, IdFault> {
    if uri.len() > MAX_ID_BYTES {
        return fault(Rule::IdTooLong, format!("a SPIFFE ID has at most {MAX_ID_BYTES} bytes, this one {}", uri.len()));
    }
    let Some(rest) = uri.strip_prefix(SCHEME) else {
        let upper_case = uri.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
        let rule = if upper_case { Rule::UpperCase } else { Rule::NotSpiffeScheme };
        return fault(
            rule,
            format!("{} must begin with {SCHEME}, such as {SCHEME}cluster.local/ns/shop/sa/cart", quoted(uri)),
        );
    };
    if rest.contains(['?', '#']) {
        return fault(
            Rule::QueryOrFragment,
            format!("{} has a query or fragment; write what stands before ? or #", quoted(uri)),
        );
    }
    let domain_length = rest.find('/').unwrap_or(rest.len());
    check_trust_domain(&rest[..domain_length])?;
    if domain_length == rest.len() {
        return Ok(None);
    }
    rest[domain_length + 1..].split('/').try_for_each(check_segment)?;
    Ok(Some(SCHEME.len() + domain_length))
}

fn check_trust_domain(name: &str) -> Result<(), IdFault> {
    if name.is_empty() {
        return fault(Rule::BadAuthority, "the trust domain is empty; write a name such as cluster.local".into());
    }
    if name.contains(['@', ':']) {
        return fault(
            Rule::BadAuthority,
            format!("{} has a user or port; write the name of the trust domain alone", quoted(name)),
        );
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return fault(
            Rule::BadTrustDomainName,
            format!("a trust domain has at most {MAX_TRUST_DOMAIN_BYTES} bytes, this one {}", name.len()),
        );
    }
    match name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
        None => Ok(()),
        Some(c) => fault(
            Rule::BadTrustDomainName,
            format!("{} has {c:?}; a trust domain consists of a-z, 0-9, dot, hyphen and underscore", quoted(name)),
        ),
    }
}

fn check_segment(segment: &str) -> Result<(), IdFault> {
    if matches!(segment, "" | "." | "..") {
        return fault(
            Rule::BadPathSegment,
            format!("{segment:?} is no path segment; write names between single slashes, without one at the end"),
        );
    }
    match segment.chars().find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_')) {
        None => Ok(()),
        Some(c) => fault(
            Rule::BadPathCharacter,
            format!(
                "{} has {c:?}; a path segment consists of a-z, A-Z, 0-9, dot, hyphen and underscore",
                quoted(segment)
            ),
        ),
    }
}

/// A string from outside, shortened and escaped for a message.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 96;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// Displays, parses and (de)serializes a type as the string that it is.
macro_rules! string_form {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $type {
            type Err = SpiffeIdError;
            fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
                Self::parse(text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }
    };
}
string_form!(SpiffeId);
string_form!(TrustDomain);
