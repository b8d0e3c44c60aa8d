//! Schemas of the kinds as the Kubernetes API server takes them (structural OpenAPI v3), in the terms of the parser.
//!
//! A schema accepts at least what the parser accepts. It refuses what the API server can refuse in words that help:
//! wrong types, missing fields, words of no enumeration, numbers out of range, lists too short or too long, fields that
//! exclude each other. How names, patterns and addresses are spelt it leaves to the parser, whose errors say what to write.
use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::node::{MAX_ITEMS, Shape};

/// What a reader and a schema say alike when they refuse something.
pub(crate) struct Fault {
    /// What is wrong: follows the field's name.
    pub(crate) message: &'static str,
    /// What to write instead: a sentence.
    pub(crate) remedy: &'static str,
}

/// The schema of one value.
pub(crate) struct Schema(Value);

impl Schema {
    fn new(kind: &str, description: &str) -> Self {
        Self(json!({"description": description, "type": kind}))
    }

    /// The schema of what no parser of ours reads.
    pub(crate) fn foreign(schema: Value) -> Self {
        Self(schema)
    }

    /// A text of `bytes`. The API server counts characters, which are never more than bytes.
    pub(crate) fn text(description: &str, bytes: RangeInclusive<usize>) -> Self {
        let schema = Self::new("string", description).with("maxLength", *bytes.end());
        if *bytes.start() > 0 { schema.with("minLength", *bytes.start()) } else { schema }
    }

    /// A text of any length.
    pub(crate) fn any_text(description: &str) -> Self {
        Self::new("string", description)
    }

    /// One of the words that [`At::one_of`](super::node::At::one_of) reads.
    pub(crate) fn one_of<T>(description: &str, words: &[(&'static str, T)]) -> Self {
        Self::new("string", description).with("enum", words.iter().map(|(word, _)| *word).collect::<Vec<_>>())
    }

    pub(crate) fn integer(description: &str, range: RangeInclusive<u32>) -> Self {
        let schema = Self::new("integer", description).with("format", "int32");
        schema.with("minimum", *range.start()).with("maximum", *range.end())
    }

    pub(crate) fn boolean(description: &str) -> Self {
        Self::new("boolean", description)
    }

    /// A list of `least` to [`MAX_ITEMS`] items.
    pub(crate) fn list(description: &str, least: usize, items: Self) -> Self {
        let schema = Self::new("array", description).with("items", items.0).with("maxItems", MAX_ITEMS);
        let schema = schema.with("x-kubernetes-list-type", "atomic");
        if least > 0 { schema.with("minItems", least) } else { schema }
    }

    /// A list of fewer items.
    pub(crate) fn at_most(self, items: usize) -> Self {
        self.with("maxItems", items)
    }

    /// A list in which no value stands twice.
    pub(crate) fn distinct(self) -> Self {
        self.with("x-kubernetes-list-type", "set")
    }

    /// A list of objects that the field `key` tells apart.
    pub(crate) fn keyed_by(self, key: &str) -> Self {
        self.with("x-kubernetes-list-type", "map").with("x-kubernetes-list-map-keys", [key].as_slice())
    }

    /// An object with the fields of `shape`, in its order. Others are a mistake of ours, and a panic.
    ///
    /// Unknown fields are kept, not pruned: the API server drops them silently unless the client asks it not to, and a
    /// misspelt restriction would become none before anybody saw it. Kept, they reach the webhook and the control plane,
    /// which refuse them and name the field that was meant. The price is that the API server's own strict validation
    /// (`kubectl --validate=strict`) does not warn of them.
    pub(crate) fn object<const N: usize>(
        description: &str,
        shape: &Shape,
        required: &[&str],
        fields: [(&str, Self); N],
    ) -> Self {
        let names = fields.each_ref().map(|(name, _)| *name);
        assert_eq!(names, shape.known, "the schema has the fields that the parser reads");
        let properties: Map<String, Value> =
            fields.into_iter().map(|(name, schema)| (name.to_owned(), schema.0)).collect();
        let schema = Self::new("object", description).with("properties", properties);
        let schema = schema.with("x-kubernetes-preserve-unknown-fields", true);
        if required.is_empty() { schema } else { schema.with("required", required) }
    }

    /// An object whose values are texts.
    pub(crate) fn text_map(description: &str, values: Self) -> Self {
        Self::new("object", description).with("additionalProperties", values.0).not_empty()
    }

    /// An object with at least one field.
    pub(crate) fn not_empty(self) -> Self {
        self.with("minProperties", 1)
    }

    /// What the API server writes where the field is left out: the same that the parser would take.
    pub(crate) fn default(self, value: impl Into<Value>) -> Self {
        self.with("default", value.into())
    }

    /// Demands that the CEL expression `rule` is true; else the field `at` (with its leading dot; empty: this value)
    /// has the fault.
    pub(crate) fn rule(mut self, rule: impl Into<String>, at: &str, fault: &Fault) -> Self {
        let mut rule = json!({"rule": rule.into(), "message": format!("{}. {}", fault.message, fault.remedy)});
        if !at.is_empty() {
            rule["fieldPath"] = at.into();
        }
        match &mut self.0["x-kubernetes-validations"] {
            Value::Array(rules) => rules.push(rule),
            none => *none = json!([rule]),
        }
        self
    }

    fn with(mut self, keyword: &str, value: impl Into<Value>) -> Self {
        self.0[keyword] = value.into();
        self
    }

    /// The schema as JSON.
    pub(crate) fn into_json(self) -> Value {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_the_fields_that_its_parser_reads_or_is_not_made() {
        const SHAPE: Shape = Shape { known: &["a", "b"], later: &["c"] };
        let field = |name| (name, Schema::boolean("Whether."));
        let object = Schema::object("Both.", &SHAPE, &["b"], ["a", "b"].map(field)).into_json();
        assert_eq!(object["properties"].as_object().unwrap().len(), 2);
        for fields in [["a", "c"], ["b", "a"]] {
            let make = || Schema::object("Others.", &SHAPE, &[], fields.map(field)).into_json();
            assert!(std::panic::catch_unwind(make).is_err(), "{fields:?}");
        }
    }
}
