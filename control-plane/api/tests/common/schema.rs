//! The schemas of the kinds, and as much of the API server's validation by them as they use: all but CEL.
use serde_json::{Map, Value};
use weft_api::resource::crds;

/// The schema of the kind; for documents of another kind there is none.
pub fn schema_of(kind: &str) -> Value {
    let crd = crds().into_iter().find(|crd| crd["spec"]["names"]["kind"] == kind);
    crd.expect(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// The documents of one of the files below `tests/crd`, each with its first line, a comment.
pub fn rows(text: &str) -> impl Iterator<Item = (&str, &str, Value)> {
    text.split("---\n").map(|document| {
        let comment = document.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a comment comes first");
        (comment, document, read(document))
    })
}

/// A document as the parser of resources reads it: `yes` is a text.
pub fn read(document: &str) -> Value {
    serde_saphyr::from_str_with_options(document, serde_saphyr::options! { strict_booleans: true }).expect(document)
}

/// The messages of the CEL rules in a schema.
pub fn cel_messages(schema: &Value) -> Vec<&str> {
    let mut messages = Vec::new();
    match schema {
        Value::Object(fields) => {
            let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array);
            messages.extend(rules.into_iter().flatten().map(|rule| rule["message"].as_str().unwrap()));
            messages.extend(fields.values().flat_map(cel_messages));
        }
        Value::Array(items) => messages.extend(items.iter().flat_map(cel_messages)),
        _ => {}
    }
    messages
}

/// The value as the API server hands it on: with the defaults of the fields that are left out.
pub fn with_defaults(schema: &Value, mut value: Value) -> Value {
    let none = Map::new();
    if let Value::Object(fields) = &mut value {
        for (name, schema) in schema["properties"].as_object().unwrap_or(&none) {
            if let Some(default) = schema.get("default") {
                fields.entry(name).or_insert_with(|| default.clone());
            }
            if let Some(field) = fields.get_mut(name) {
                *field = with_defaults(schema, field.take());
            }
        }
    }
    if let Value::Array(items) = &mut value {
        for item in items {
            *item = with_defaults(&schema["items"], item.take());
        }
    }
    value
}

/// What the schema has against the value, and what it would drop of it. An unknown keyword is a panic: nothing that a
/// schema says is passed over.
pub fn faults(schema: &Value, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    check(schema, value, "", &mut faults);
    faults
}

fn check(schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    let length = match value {
        Value::String(text) => text.chars().count(),
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    };
    let length_u64 = u64::try_from(length).unwrap();
    for (keyword, demand) in schema.as_object().expect("a schema is an object") {
        let holds = match keyword.as_str() {
            "type" => match demand.as_str().unwrap() {
                "string" => value.is_string(),
                "integer" => value.is_i64() || value.is_u64(),
                "boolean" => value.is_boolean(),
                "array" => value.is_array(),
                "object" => value.is_object(),
                other => panic!("type {other}"),
            },
            "enum" => demand.as_array().unwrap().contains(value),
            "minLength" => !value.is_string() || demand.as_u64().unwrap() <= length_u64,
            "maxLength" => !value.is_string() || demand.as_u64().unwrap() >= length_u64,
            "minItems" => !value.is_array() || demand.as_u64().unwrap() <= length_u64,
            "maxItems" => !value.is_array() || demand.as_u64().unwrap() >= length_u64,
            "minProperties" => !value.is_object() || demand.as_u64().unwrap() <= length_u64,
            "minimum" => value.as_i64().is_none_or(|value| demand.as_i64().unwrap() <= value),
            "maximum" => value.as_i64().is_none_or(|value| demand.as_i64().unwrap() >= value),
            "required" => {
                let names = demand.as_array().unwrap();
                !value.is_object() || names.iter().all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            "properties" => {
                let keeps = schema["x-kubernetes-preserve-unknown-fields"] == true;
                check_fields(demand.as_object().unwrap(), value, keeps, path, faults);
                true
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    check(demand, value, &format!("{path}.{name}"), faults);
                }
                true
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(demand, value, &format!("{path}[{index}]"), faults);
                }
                true
            }
            "x-kubernetes-list-type" => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let key = |item: &Value| match demand.as_str().unwrap() {
                    "atomic" => None,
                    "set" => Some(item.clone()),
                    "map" => item.get(schema["x-kubernetes-list-map-keys"][0].as_str().unwrap()).cloned(),
                    other => panic!("list type {other}"),
                };
                let keys: Vec<Value> = items.iter().filter_map(key).collect();
                keys.iter().enumerate().all(|(index, key)| !keys[..index].contains(key))
            }
            "description" | "default" | "format" | "x-kubernetes-preserve-unknown-fields" => true,
            "x-kubernetes-list-map-keys" | "x-kubernetes-validations" => true,
            // Of the status, which no user writes.
            "pattern" => true,
            other => panic!("the keyword {other} is not checked"),
        };
        if !holds {
            faults.push(format!("`{path}`: {keyword} is {demand}"));
        }
    }
}

fn check_fields(
    properties: &Map<String, Value>,
    value: &Value,
    keeps_others: bool,
    path: &str,
    faults: &mut Vec<String>,
) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match properties.get(name) {
            // An empty field with a default is a field that was left out.
            Some(schema) if value.is_null() && schema.get("default").is_some() => {}
            Some(schema) => check(schema, value, &path, faults),
            None if keeps_others => {}
            None => faults.push(format!("`{path}` would be dropped")),
        }
    }
}
