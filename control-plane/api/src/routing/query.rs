//! Query parameters as routes see them: the first of each name, percent escapes and `+` decoded (WHATWG URL,
//! "application/x-www-form-urlencoded"), nothing refused. Compared without a copy.
use std::borrow::Cow;

/// The value of the first parameter called `name`, still encoded. `Some("")`: it has none.
pub(super) fn first<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').filter(|pair| !pair.is_empty()).find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        is(key, name).then_some(value)
    })
}

/// Whether the encoded text says `plain`.
pub(super) fn is(encoded: &str, plain: &str) -> bool {
    decoded(encoded.as_bytes()).eq(plain.bytes())
}

/// The encoded text, decoded.
pub(super) fn decode(encoded: &str) -> Cow<'_, [u8]> {
    match encoded.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        true => Cow::Owned(decoded(encoded.as_bytes()).collect()),
        false => Cow::Borrowed(encoded.as_bytes()),
    }
}

/// An escape that is none stands for itself, as every browser reads it.
fn decoded(encoded: &[u8]) -> impl Iterator<Item = u8> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *encoded.get(at)?;
        let digit = |index: usize| encoded.get(index).and_then(|digit| char::from(*digit).to_digit(16));
        let escaped = match byte {
            b'%' => digit(at + 1).zip(digit(at + 2)).and_then(|(high, low)| u8::try_from(high * 16 + low).ok()),
            _ => None,
        };
        at += if escaped.is_some() { 3 } else { 1 };
        Some(escaped.unwrap_or(if byte == b'+' { b' ' } else { byte }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_parameter_of_a_name_counts_decoded() {
        for (query, name, value) in [
            ("a=1&b=2", "b", Some("2")),
            ("a=1&a=2", "a", Some("1")),
            ("ab=1", "a", None),
            ("a", "a", Some("")),
            ("&&a=", "a", Some("")),
            ("a=b=c", "a", Some("b=c")),
            ("a%62=x%20y+z", "ab", Some("x y z")),
            ("a=%zz%4", "a", Some("%zz%4")),
            ("a=%C3%A4", "a", Some("ä")),
            ("A=1", "a", None),
            ("", "a", None),
        ] {
            let found = first(query, name);
            assert_eq!(found.is_some(), value.is_some(), "{query}");
            if let (Some(found), Some(value)) = (found, value) {
                assert!(is(found, value), "{query}: {found}");
                assert_eq!(*decode(found), *value.as_bytes(), "{query}");
                assert!(!is(found, "something else"), "{query}");
            }
        }
    }
}
