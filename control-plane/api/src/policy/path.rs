//! One documented normalization of paths, hosts and methods; what is compared is what is forwarded.
//!
//! **Paths** (RFC 3986 sections 2.3, 5.2.4 and 6.2.2), in this order:
//! 1. what follows the first `?` or `#` is cut off; an empty path becomes `/`; `*` (OPTIONS) stays;
//! 2. percent escapes of unreserved characters (letters, digits, `-._~`) are decoded, once; in the others the hexadecimal
//!    digits are made upper case. Overlong UTF-8 (`%C0%AE`) is thus left as it is, and nothing is decoded twice;
//! 3. slashes that follow each other are merged;
//! 4. the segments `.` and `..` are resolved; `..` at the root stays at the root.
//!
//! Letter case is kept. Parameters of a segment (`;a=b`) are kept, and compared as they stand; a Deny rule is compared a
//! second time without them. A path that one server reads in one way and the next in another has no normal form and is
//! refused: see [`Ambiguous`].
//!
//! Normalizing twice gives what normalizing once gave. A path in normal form is returned without a copy.
use std::borrow::Cow;
use std::fmt;

pub use super::host::normalize_host;

/// Bytes that a method may have.
pub const MAX_METHOD_BYTES: usize = 64;

/// Why a path, host or method has no single reading (HTTP 400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ambiguous {
    /// `%2f`.
    EncodedSlash,
    /// A backslash, plain or encoded.
    Backslash,
    /// `%00`.
    Nul,
    /// A bad percent escape.
    BadEscape,
    /// A byte that a path may not hold (controls, space, 0x80 and above), or a path that does not begin with `/`.
    BadByte,
    /// A segment that is `.` or `..` once its parameters are left out (`..;`), or one in the midst of the path that is
    /// empty then: some servers drop parameters before they resolve dots and merge slashes.
    PathParameter,
    /// A host that is not a host.
    BadHost,
    /// A method with lower-case letters, or of more than [`MAX_METHOD_BYTES`].
    BadMethod,
}

impl Ambiguous {
    /// A stable word for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::EncodedSlash => "encoded_slash",
            Self::Backslash => "backslash",
            Self::Nul => "nul",
            Self::BadEscape => "bad_escape",
            Self::BadByte => "bad_byte",
            Self::PathParameter => "path_parameter",
            Self::BadHost => "host",
            Self::BadMethod => "method",
        }
    }
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EncodedSlash => "the path holds an encoded slash",
            Self::Backslash => "the path holds a backslash",
            Self::Nul => "the path holds an encoded NUL",
            Self::BadEscape => "the path holds a bad percent escape",
            Self::BadByte => "the path holds a byte that must be escaped, or does not begin with a slash",
            Self::PathParameter => "the path holds a parameter in a segment without a name",
            Self::BadHost => "the host is not a host name or address",
            Self::BadMethod => "the method is not upper case, or too long",
        })
    }
}

impl std::error::Error for Ambiguous {}

/// Normalizes the path of a request target; a query, if it is still there, is cut off.
///
/// # Errors
/// The path has no single reading.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    let bytes = path.as_bytes();
    let end = bytes.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(bytes.len());
    let path = &path[..end];
    match path {
        "" => return Ok(Cow::Borrowed("/")),
        "*" => return Ok(Cow::Borrowed("*")),
        _ if !path.starts_with('/') => return Err(Ambiguous::BadByte),
        _ => {}
    }
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path)?;
    let mut normal = String::with_capacity(decoded.len());
    resolve(&decoded, &mut normal)?;
    Ok(if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) })
}

/// Checks a request's method: upper case (`get` and `GET` are two methods to one server and one to the next).
///
/// # Errors
/// [`Ambiguous::BadMethod`]: HTTP 400.
pub fn check_method(method: &str) -> Result<(), Ambiguous> {
    let token = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if (1..=MAX_METHOD_BYTES).contains(&method.len()) && method.bytes().all(token) {
        return Ok(());
    }
    Err(Ambiguous::BadMethod)
}

/// Whether a path that begins with `/` needs no second look: no escape, parameter or backslash, no two slashes in a row,
/// no segment that begins with a dot, and no byte that must be escaped.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        match byte {
            b'/' if after_slash => return false,
            b'/' => after_slash = true,
            b'.' if after_slash => return false,
            b'%' | b'\\' | b';' | 0..=b' ' | 0x7f.. => return false,
            _ => after_slash = false,
        }
    }
    true
}

/// Decodes unreserved characters, raises the other escapes to upper case, and refuses what has no single reading.
fn decode(path: &str) -> Result<String, Ambiguous> {
    let bytes = path.as_bytes();
    let mut decoded = String::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => return Err(Ambiguous::Backslash),
            0..=b' ' | 0x7f.. => return Err(Ambiguous::BadByte),
            b'%' => {
                let digit = |index: usize| bytes.get(index).and_then(|digit| char::from(*digit).to_digit(16));
                let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else { return Err(Ambiguous::BadEscape) };
                match char::from_u32(high * 16 + low).expect("two hexadecimal digits are below 256") {
                    '\0' => return Err(Ambiguous::Nul),
                    '/' => return Err(Ambiguous::EncodedSlash),
                    '\\' => return Err(Ambiguous::Backslash),
                    plain if plain.is_ascii_alphanumeric() || "-._~".contains(plain) => decoded.push(plain),
                    _ => decoded.extend(path[at..at + 3].chars().map(|digit| digit.to_ascii_uppercase())),
                }
                at += 3;
                continue;
            }
            _ => decoded.push(char::from(byte)),
        }
        at += 1;
    }
    Ok(decoded)
}

/// Merges slashes and resolves dot segments of a path that begins with `/`.
fn resolve(path: &str, normal: &mut String) -> Result<(), Ambiguous> {
    let mut segments = path[1..].split('/').peekable();
    normal.push('/');
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" | "." => {}
            ".." => {
                // `normal` ends with the slash behind the segment that goes.
                let parent = normal[..normal.len() - 1].rfind('/').map_or(1, |slash| slash + 1);
                normal.truncate(parent);
            }
            _ => {
                if let Some((name, _)) = segment.split_once(';')
                    && (matches!(name, "." | "..") || (name.is_empty() && !last))
                {
                    return Err(Ambiguous::PathParameter);
                }
                normal.push_str(segment);
                if !last {
                    normal.push('/');
                }
            }
        }
    }
    Ok(())
}
