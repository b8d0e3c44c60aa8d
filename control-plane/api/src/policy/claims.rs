//! The claims of a token whose signature, issuer, audience and times were verified: what conditions and limits may read.
//!
//! Nothing here verifies anything. Values are compared as text; what has no text of its own (an object) is no value.
use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// Claims of a verified token.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Claims(Map<String, Value>);

/// One value of a claim, without a copy.
#[derive(Clone, Copy)]
pub(super) enum ClaimValue<'a> {
    Text(&'a str),
    Number(&'a Number),
    Boolean(bool),
    /// An object, or a list within a list.
    Nested,
}

impl Claims {
    /// Wraps the payload of a token that was verified.
    pub fn new(payload: Map<String, Value>) -> Self {
        Self(payload)
    }

    /// The claim at `path`. The claim that has the whole name comes first (`https://example.org/groups`); only without
    /// one the dots lead into objects (`realm_access.roles`).
    pub fn get(&self, path: &str) -> Option<&Value> {
        if let Some(claim) = self.0.get(path) {
            return Some(claim);
        }
        let mut names = path.split('.');
        let first = self.0.get(names.next()?)?;
        names.try_fold(first, |claim, name| claim.as_object()?.get(name))
    }

    /// The values of the claim at `path`: a text; of the claim `scope`, its words (RFC 8693 section 4.2); of a list, its
    /// items; numbers and booleans in JSON's spelling. Without such a claim, or where it holds nothing: none.
    pub fn values(&self, path: &str) -> impl Iterator<Item = Cow<'_, str>> {
        self.each(path).filter_map(|value| match value {
            ClaimValue::Text(text) => Some(Cow::Borrowed(text)),
            ClaimValue::Number(number) => Some(Cow::Owned(number.to_string())),
            ClaimValue::Boolean(true) => Some(Cow::Borrowed("true")),
            ClaimValue::Boolean(false) => Some(Cow::Borrowed("false")),
            ClaimValue::Nested => None,
        })
    }

    /// As [`Claims::values`], with what has no text.
    pub(super) fn each(&self, path: &str) -> impl Iterator<Item = ClaimValue<'_>> {
        let (one, list) = match self.get(path) {
            None => (None, [].as_slice()),
            Some(Value::Array(items)) => (None, items.as_slice()),
            Some(claim) => (Some(claim), [].as_slice()),
        };
        let words = match one {
            Some(Value::String(text)) if path == "scope" => Some(text),
            _ => None,
        };
        let one = one.filter(|_| words.is_none());
        let words = words.into_iter().flat_map(|text| text.split(' ')).map(ClaimValue::Text);
        let items = one.into_iter().chain(list).filter_map(|value| match value {
            Value::Null => None,
            Value::String(text) => Some(ClaimValue::Text(text)),
            Value::Number(number) => Some(ClaimValue::Number(number)),
            Value::Bool(value) => Some(ClaimValue::Boolean(*value)),
            Value::Array(_) | Value::Object(_) => Some(ClaimValue::Nested),
        });
        words.chain(items).filter(|value| !matches!(value, ClaimValue::Text("")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_found_by_its_whole_name_then_through_objects_and_read_as_texts() {
        let Value::Object(payload) = json!({
            "sub": "alice", "scope": "stock:read  stock:write", "level": 3, "ratio": 1.5, "staff": true, "nothing": null,
            "groups": ["a b", "c", "", 7, false, null, {"x": 1}], "empty": "", "scopes": "a b",
            "realm_access": {"roles": ["admin"], "scope": "x y"}, "realm_access.name": "whole", "deep": {"a.b": "no"},
            "https://example.org/team": "blue",
        }) else {
            unreachable!()
        };
        let claims = Claims::new(payload);
        let rows: &[(&str, &[&str])] = &[
            ("sub", &["alice"]),
            ("scope", &["stock:read", "stock:write"]),
            ("scopes", &["a b"]),
            ("level", &["3"]),
            ("ratio", &["1.5"]),
            ("staff", &["true"]),
            ("groups", &["a b", "c", "7", "false"]),
            ("realm_access.roles", &["admin"]),
            ("realm_access.scope", &["x y"]),
            ("realm_access.name", &["whole"]),
            ("https://example.org/team", &["blue"]),
            ("nothing", &[]),
            ("empty", &[]),
            ("absent", &[]),
            ("realm_access", &[]),
            ("realm_access.absent", &[]),
            ("sub.x", &[]),
            ("deep.a.b", &[]),
            ("", &[]),
        ];
        for (path, expected) in rows {
            assert_eq!(claims.values(path).collect::<Vec<_>>(), *expected, "{path}");
        }
        assert_eq!(claims.each("groups").count(), 5, "an object counts as a value without text");
    }
}
