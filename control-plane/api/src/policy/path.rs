//! One documented normalization of paths and hosts; what is compared is what is forwarded.
use std::borrow::Cow;

/// Why a path or host has no single reading (HTTP 400).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguous {
    /// `%2f`.
    EncodedSlash,
    /// A backslash, plain or encoded.
    Backslash,
    /// `%00`.
    Nul,
    /// A bad percent escape.
    BadEscape,
    /// A byte that a path may not hold.
    BadByte,
    /// A host that is not a host.
    BadHost,
}

/// Normalizes the path of a request target (without query).
pub fn normalize(_path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    todo!()
}

/// Normalizes a Host or `:authority`: lower case, without port or one trailing dot.
pub fn normalize_host(_host: &str) -> Result<Cow<'_, str>, Ambiguous> {
    todo!()
}
