//! What the fields of a rule may hold, parsed once, and how each is compared.
//!
//! Nothing here is a regular expression, and every comparison takes time linear in what is compared.
use std::fmt;

use weft_certs::{SpiffeId, TrustDomain};

use super::path::{normalize, normalize_host};

/// Bytes that a pattern may have.
pub const MAX_PATTERN_BYTES: usize = 1_024;

/// Why a pattern was refused, with what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}. {remedy}")]
pub struct PatternError {
    /// What is wrong.
    pub message: &'static str,
    /// What to write instead: a sentence.
    pub remedy: String,
}

fn refuse<T>(message: &'static str, remedy: impl Into<String>) -> Result<T, PatternError> {
    Err(PatternError { message, remedy: remedy.into() })
}

fn check_length(text: &str) -> Result<(), PatternError> {
    if text.len() > MAX_PATTERN_BYTES {
        return refuse("is too long", format!("Write at most {MAX_PATTERN_BYTES} bytes."));
    }
    Ok(())
}

/// A path to compare normalized paths with, letter case included:
/// - `/stock`: that path;
/// - `/stock*`: whatever begins so; `/stock/*`: whatever is below, not `/stock` itself; `*`: any path;
/// - `/items/{id}`: `{…}` stands for one whole segment that is not empty. It may be combined with a trailing `*`.
#[derive(Clone, PartialEq, Eq)]
pub struct PathPattern {
    /// The pattern without its trailing `*`.
    literal: Box<str>,
    /// Whether it had one.
    open: bool,
    has_captures: bool,
}

impl PathPattern {
    /// Parses a pattern. It must be written in normal form (see [`normalize`]).
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        check_length(text)?;
        let (literal, open) = text.strip_suffix('*').map_or((text, false), |literal| (literal, true));
        if literal.contains('*') {
            return refuse(
                "has `*` where it has no meaning",
                "Write `*` at the end only, or `{name}` for one segment.",
            );
        }
        if literal.contains(['?', '#']) {
            return refuse("has a query or fragment, which are never compared", "Write the path alone.");
        }
        if literal.is_empty() {
            return match open {
                true => Ok(Self { literal: "".into(), open, has_captures: false }),
                false => refuse("is empty", "Write a path such as `/stock`."),
            };
        }
        if !literal.starts_with('/') {
            return refuse("does not begin with `/`", format!("Write `/{}`.", text.trim_start_matches('/')));
        }
        let mut has_captures = false;
        let mut segments = literal.split('/').peekable();
        while let Some(segment) = segments.next() {
            if !segment.contains(['{', '}']) {
                continue;
            }
            let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                return refuse("has braces that are not one whole segment", "Write a segment such as `{id}`.");
            }
            if open && segments.peek().is_none() {
                return refuse("has `*` right after `{…}`", "Write `{name}` or `{name}/*`.");
            }
            has_captures = true;
        }
        // What follows an open pattern's literal is part of its last segment: `/.*` speaks of names that begin with a dot.
        let probe = if open { format!("{literal}x") } else { literal.to_owned() };
        match normalize(&probe) {
            Ok(normal) if normal == probe => Ok(Self { literal: literal.into(), open, has_captures }),
            Ok(normal) => {
                let normal = if open { format!("{}*", normal.trim_end_matches('x')) } else { normal.into_owned() };
                refuse("is not in the normal form that paths are compared in", format!("Write `{normal}`."))
            }
            Err(_) => refuse(
                "has no single reading (such requests are refused with 400)",
                "Write a path without backslash, encoded slash, encoded NUL, bad escape or raw byte.",
            ),
        }
    }

    /// Whether the normalized `path` matches as it is.
    pub fn matches(&self, path: &str) -> bool {
        if self.has_captures {
            return self.matches_segments(path, |segment| segment);
        }
        if self.open { path.starts_with(&*self.literal) } else { path == &*self.literal }
    }

    /// Whether the normalized `path` matches once the parameters of its segments (`;` and what follows) are left out,
    /// as many servers read it (RFC 3986 section 3.3).
    pub fn matches_without_parameters(&self, path: &str) -> bool {
        self.matches_segments(path, |segment| segment.split_once(';').map_or(segment, |(name, _)| name))
    }

    fn matches_segments(&self, path: &str, read: impl Fn(&str) -> &str) -> bool {
        let mut segments = path.split('/').map(read);
        let mut patterns = self.literal.split('/').peekable();
        while let Some(pattern) = patterns.next() {
            let Some(segment) = segments.next() else { return false };
            if self.open && patterns.peek().is_none() {
                return segment.starts_with(pattern);
            }
            let matched = if pattern.starts_with('{') { !segment.is_empty() } else { segment == pattern };
            if !matched {
                return false;
            }
        }
        segments.next().is_none()
    }
}

/// A host to compare normalized hosts with: `inventory.shop.svc`, or `*.example.org` for every name below
/// `example.org`, at any depth, not that name itself.
#[derive(Clone, PartialEq, Eq)]
pub struct HostPattern {
    /// A normalized host; with `below` set, a `.` and the host.
    literal: Box<str>,
    below: bool,
}

impl HostPattern {
    /// Parses a pattern. Letter case does not matter; a port is refused.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        check_length(text)?;
        let (host, below) = text.strip_prefix("*.").map_or((text, false), |host| (host, true));
        if host.contains('*') {
            return refuse(
                "has `*` where it has no meaning",
                "Write `*.` at the start only; leave `hosts` out for any host.",
            );
        }
        let has_port = match host.strip_prefix('[') {
            Some(rest) => rest.split_once(']').is_some_and(|(_, rest)| !rest.is_empty()),
            None => host.contains(':'),
        };
        if has_port {
            return refuse("has a port", "Write the host alone, and the port under `ports`.");
        }
        match normalize_host(host) {
            Ok(host) if below => Ok(Self { literal: format!(".{host}").into(), below }),
            Ok(host) => Ok(Self { literal: host.into(), below }),
            Err(_) => refuse("is not a host", "Write a name such as `inventory.shop.svc` or an IP address."),
        }
    }

    /// Whether the normalized `host` matches.
    pub fn matches(&self, host: &str) -> bool {
        if self.below {
            host.len() > self.literal.len() && host.ends_with(&*self.literal)
        } else {
            host == &*self.literal
        }
    }
}

/// SPIFFE IDs: one, those that begin alike (one trailing `*`), and with `*` as a whole segment of the path any segment
/// there. `*` alone is every mesh identity. The trust domain is never a pattern.
#[derive(Clone, PartialEq, Eq)]
pub struct IdentityPattern {
    text: Box<str>,
    shape: IdentityShape,
}

#[derive(Clone, PartialEq, Eq)]
enum IdentityShape {
    Exact,
    Any,
    /// Where the path begins in the text, and whether its last segment is the beginning of a rest.
    Path {
        start: usize,
        open: bool,
    },
}

impl IdentityPattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        const EXAMPLE: &str = "Write an ID such as `spiffe://cluster.local/ns/shop/sa/orders`.";
        check_length(text)?;
        if text == "*" {
            return Ok(Self { text: text.into(), shape: IdentityShape::Any });
        }
        let Some((domain, path)) = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else {
            return refuse("is not a SPIFFE ID", EXAMPLE);
        };
        if domain.contains('*') {
            return refuse("has `*` in its trust domain", "Name the trust domain, such as `spiffe://cluster.local/…`.");
        }
        if TrustDomain::parse(domain).is_err() {
            return refuse("has no valid trust domain", EXAMPLE);
        }
        if !path.contains('*') {
            return match SpiffeId::parse(text) {
                Ok(_) => Ok(Self { text: text.into(), shape: IdentityShape::Exact }),
                Err(_) => refuse("is not a SPIFFE ID", EXAMPLE),
            };
        }
        let (closed, open) = path.strip_suffix('*').map_or((path, false), |path| (path, true));
        let last = closed.rsplit('/').next().unwrap_or_default();
        let misplaced = closed.split('/').any(|segment| segment != "*" && segment.contains('*'));
        if misplaced || (open && last.contains('*')) {
            return refuse(
                "has `*` where it has no meaning",
                "Write `*` at the end, or as a whole segment of the path.",
            );
        }
        if SpiffeId::parse(&text.replace('*', "x")).is_err() {
            return refuse("is not a SPIFFE ID", EXAMPLE);
        }
        let start = text.len() - path.len() - 1;
        Ok(Self { text: text.into(), shape: IdentityShape::Path { start, open } })
    }

    /// The one ID that matches, if it is not a pattern.
    pub fn exact(&self) -> Option<&str> {
        (self.shape == IdentityShape::Exact).then_some(&*self.text)
    }

    /// Whether `id` matches.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self.shape {
            IdentityShape::Exact => id.as_str() == &*self.text,
            IdentityShape::Any => true,
            IdentityShape::Path { start, open } => {
                let (domain, path) = self.text.split_at(start);
                if domain.strip_prefix("spiffe://") != Some(id.trust_domain()) {
                    return false;
                }
                let path = if open { &path[..path.len() - 1] } else { path };
                let mut segments = id.path().split('/');
                let mut patterns = path.split('/').peekable();
                while let Some(pattern) = patterns.next() {
                    let Some(segment) = segments.next() else { return false };
                    if open && patterns.peek().is_none() {
                        return segment.starts_with(pattern);
                    }
                    if pattern != "*" && pattern != segment {
                        return false;
                    }
                }
                segments.next().is_none()
            }
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.literal, if self.open { "*" } else { "" })
    }
}
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*" } else { "" }, self.literal)
    }
}
impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Debug for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
