//! Normalization of hosts (RFC 9110 section 7.2, RFC 3986 section 3.2.2), stricter than either: what is no name that a
//! resolver would take, and no address in its usual form, is refused.
use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::path::Ambiguous;

/// Normalizes a Host or `:authority`: lower case, without port or one trailing dot.
///
/// A name has labels of 1 to 63 bytes of `[A-Za-z0-9_-]`, 253 in all; a label `xn--…` must be Punycode of something that
/// is not ASCII. A name whose last label is a number must be an IPv4 address in dotted decimal. An IPv6 address stands in
/// brackets and is returned so, in its canonical form (RFC 5952).
///
/// # Errors
/// [`Ambiguous::BadHost`]: HTTP 400. An empty host is one.
pub fn normalize_host(host: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(Ambiguous::BadHost)?;
        check_port(rest)?;
        let canonical = format!("[{}]", address.parse::<Ipv6Addr>().map_err(|_| Ambiguous::BadHost)?);
        let literal = &host[..address.len() + 2];
        return Ok(if canonical == literal { Cow::Borrowed(literal) } else { Cow::Owned(canonical) });
    }
    let name_end = host.find(':').unwrap_or(host.len());
    let (name, port) = host.split_at(name_end);
    check_port(port)?;
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 {
        return Err(Ambiguous::BadHost);
    }
    let mut last = "";
    for label in name.split('.') {
        check_label(label)?;
        last = label;
    }
    if is_number(last) && name.parse::<Ipv4Addr>().is_err() {
        return Err(Ambiguous::BadHost);
    }
    Ok(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
}

/// Nothing, or `:` with a port of at most 65535 (RFC 3986 allows the number to be missing).
fn check_port(port: &str) -> Result<(), Ambiguous> {
    let Some(digits) = port.strip_prefix(':') else {
        return if port.is_empty() { Ok(()) } else { Err(Ambiguous::BadHost) };
    };
    let valid =
        digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits.is_empty() || digits.parse::<u16>().is_ok());
    if valid { Ok(()) } else { Err(Ambiguous::BadHost) }
}

fn check_label(label: &str) -> Result<(), Ambiguous> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !(1..=63).contains(&label.len()) || !label.bytes().all(allowed) {
        return Err(Ambiguous::BadHost);
    }
    match label.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("xn--") && !is_punycode(&label[4..]) => Err(Ambiguous::BadHost),
        _ => Ok(()),
    }
}

/// Whether resolvers may read the label as a number, as WHATWG URL's "ends in a number" has it.
fn is_number(label: &str) -> bool {
    let hexadecimal = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    label.bytes().all(|byte| byte.is_ascii_digit())
        || label.strip_prefix("0x").or_else(|| label.strip_prefix("0X")).is_some_and(hexadecimal)
}

/// Whether `encoded` (what follows `xn--`) decodes to text that is not ASCII (RFC 3492 section 6.2). A label that
/// decodes to ASCII would be a second spelling of another name.
fn is_punycode(encoded: &str) -> bool {
    const BASE: u32 = 36;
    const T_MIN: u32 = 1;
    const T_MAX: u32 = 26;
    let (basic, extended) = encoded.rsplit_once('-').unwrap_or(("", encoded));
    if extended.is_empty() {
        return false;
    }
    let mut length = u32::try_from(basic.len()).expect("a label has at most 63 bytes");
    let (mut code_point, mut position, mut bias) = (128_u32, 0_u32, 72_u32);
    let mut digits = extended.bytes();
    let mut first = true;
    while digits.len() > 0 {
        let start = position;
        let (mut weight, mut k) = (1_u32, BASE);
        loop {
            let Some(digit) = digits.next().and_then(|digit| char::from(digit).to_digit(36)) else { return false };
            // Punycode counts the letters first: a to z are 0 to 25, 0 to 9 are 26 to 35.
            let digit = if digit < 10 { digit + 26 } else { digit - 10 };
            let Some(moved) = digit.checked_mul(weight).and_then(|step| position.checked_add(step)) else {
                return false;
            };
            position = moved;
            let threshold = k.saturating_sub(bias).clamp(T_MIN, T_MAX);
            if digit < threshold {
                break;
            }
            let Some(heavier) = weight.checked_mul(BASE - threshold) else { return false };
            weight = heavier;
            k += BASE;
        }
        length += 1;
        bias = {
            let mut delta = (position - start) / if first { 700 } else { 2 };
            delta += delta / length;
            let mut k = 0;
            while delta > ((BASE - T_MIN) * T_MAX) / 2 {
                delta /= BASE - T_MIN;
                k += BASE;
            }
            k + (BASE - T_MIN + 1) * delta / (delta + 38)
        };
        first = false;
        let Some(next) = code_point.checked_add(position / length) else { return false };
        code_point = next;
        position = position % length + 1;
        if char::from_u32(code_point).is_none_or(|decoded| decoded.is_ascii()) {
            return false;
        }
    }
    true
}
