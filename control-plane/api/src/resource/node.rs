//! A document as a tree whose every value knows its line, and readers that demand a shape of it.
//!
//! All resources are read through [`At`], so every wrong type, unknown field and empty list gives the same kind of error
//! with the place it stands at. Nothing of a closed object is ever ignored.
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use super::ResourceError;
use super::error::{listed, nearest, quoted};
use super::schema::Fault;

/// Entries that a list in one of Weft's own kinds may have.
pub(crate) const MAX_ITEMS: usize = 1_000;
/// Numbers that a port may have.
pub(crate) const PORTS: RangeInclusive<u32> = 1..=65_535;

/// A value with its line (counted from 1).
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Boolean(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Object(Vec<Entry>),
}

/// A field of an object.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) node: Node,
}

impl Node {
    /// The field `key` of an object.
    pub(crate) fn field(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Object(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
            _ => None,
        }
    }
    /// The text, if it is one.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
    fn what(&self) -> String {
        match &self.value {
            Value::Null => "empty".into(),
            Value::Boolean(value) => format!("the boolean `{value}`"),
            Value::Integer(value) => format!("the number `{value}`"),
            Value::Float(value) => format!("the number `{value}`"),
            Value::Text(text) => format!("the text {}", quoted(text)),
            Value::List(_) => "a list".into(),
            Value::Object(_) => "an object".into(),
        }
    }
}

/// A value together with the path of fields that leads to it.
#[derive(Clone, Debug)]
pub(crate) struct At<'n> {
    path: String,
    node: &'n Node,
}

/// Which fields an object of one of Weft's own kinds has.
pub(crate) struct Shape {
    /// All fields.
    pub(crate) known: &'static [&'static str],
    /// Fields of the design that this version does not have.
    pub(crate) later: &'static [&'static str],
}

impl<'n> At<'n> {
    pub(crate) fn new(path: impl Into<String>, node: &'n Node) -> Self {
        Self { path: path.into(), node }
    }
    pub(crate) fn node(&self) -> &'n Node {
        self.node
    }
    pub(crate) fn line(&self) -> usize {
        self.node.line
    }
    /// `` `path` message``.
    pub(crate) fn error(&self, message: impl fmt::Display, remedy: impl Into<String>) -> ResourceError {
        ResourceError::new(self.node.line, format!("`{}` {message}", self.path), remedy)
    }
    pub(crate) fn fault(&self, fault: &Fault) -> ResourceError {
        self.error(fault.message, fault.remedy)
    }
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    pub(crate) fn text(&self) -> Result<&'n str, ResourceError> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            Value::Boolean(_) | Value::Integer(_) | Value::Float(_) => Err(self
                .error(format_args!("must be a text, not {}", self.node.what()), "Write it between quotation marks.")),
            _ => Err(self.error(format_args!("must be a text, not {}", self.node.what()), "Write one text.")),
        }
    }
    /// The meaning of a text that is one of `words`.
    pub(crate) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, ResourceError> {
        let text = self.text()?;
        words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.error(format_args!("is {}", quoted(text)), format!("Write {}.", words.join(" or ")))
        })
    }
    pub(crate) fn boolean(&self) -> Result<bool, ResourceError> {
        match &self.node.value {
            Value::Boolean(value) => Ok(*value),
            _ => {
                Err(self
                    .error(format_args!("must be true or false, not {}", self.node.what()), "Write `true` or `false`."))
            }
        }
    }
    pub(crate) fn integer(&self, range: RangeInclusive<u32>) -> Result<u32, ResourceError> {
        let wanted = format!("Write a whole number from {} to {}.", range.start(), range.end());
        match &self.node.value {
            Value::Integer(value) => match u32::try_from(*value) {
                Ok(value) if range.contains(&value) => Ok(value),
                _ => Err(self.error(format_args!("is {value}, which is out of range"), wanted)),
            },
            _ => Err(self.error(format_args!("must be a whole number, not {}", self.node.what()), wanted)),
        }
    }
    pub(crate) fn port(&self) -> Result<u16, ResourceError> {
        let port = self.integer(PORTS)?;
        Ok(u16::try_from(port).expect("the range was checked"))
    }
    /// The number, if it is written as one.
    pub(crate) fn is_integer(&self) -> bool {
        matches!(self.node.value, Value::Integer(_))
    }
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.node.value, Value::Text(_))
    }

    /// The items of a list that has 1 to [`MAX_ITEMS`].
    pub(crate) fn items(&self) -> Result<Vec<At<'n>>, ResourceError> {
        let items = self.items_or_none()?;
        if items.is_empty() {
            return Err(self.error(
                "is an empty list, which could be read as nothing or as everything",
                "Leave the field out, or list something.",
            ));
        }
        Ok(items)
    }
    /// The items of a list that has at most [`MAX_ITEMS`].
    pub(crate) fn items_or_none(&self) -> Result<Vec<At<'n>>, ResourceError> {
        let items = self.open_items()?;
        if items.len() > MAX_ITEMS {
            return Err(self.error(
                format_args!("has {} items", items.len()),
                format!("Write at most {MAX_ITEMS}; split the resource in two."),
            ));
        }
        Ok(items)
    }
    /// The items of a list of any length.
    pub(crate) fn open_items(&self) -> Result<Vec<At<'n>>, ResourceError> {
        match &self.node.value {
            Value::List(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| At { path: format!("{}[{index}]", self.path), node })
                .collect()),
            Value::Null => Err(self.error("is empty", "Leave the field out, or list something.")),
            _ => Err(self.error(
                format_args!("must be a list, not {}", self.node.what()),
                "Write `[…]`, or one `- ` line for each item.",
            )),
        }
    }

    /// The fields of an object that has no others than `shape` says.
    pub(crate) fn closed(&self, shape: &Shape) -> Result<Fields<'n>, ResourceError> {
        let fields = self.open()?;
        for entry in fields.entries {
            let key = entry.key.as_str();
            if shape.known.contains(&key) {
                continue;
            }
            let whole = self.child_path(key);
            let (message, remedy) = if shape.later.contains(&key) {
                (
                    format!("`{whole}` is not supported by this version"),
                    format!("Leave it out; the fields supported here are {}.", listed(shape.known.iter().copied())),
                )
            } else {
                let remedy = match nearest(key, shape.known.iter().chain(shape.later).copied()) {
                    Some(right) => format!("Write `{right}`."),
                    None => format!("The fields here are {}.", listed(shape.known.iter().copied())),
                };
                let place = if self.path.is_empty() { "the document".to_owned() } else { format!("`{}`", self.path) };
                (format!("{} in {place} is not a field", quoted(key)), remedy)
            };
            return Err(ResourceError::new(entry.line, message, remedy));
        }
        Ok(fields)
    }
    /// The fields of an object that may have others.
    pub(crate) fn open(&self) -> Result<Fields<'n>, ResourceError> {
        match &self.node.value {
            Value::Object(entries) => Ok(Fields { at: self.clone(), entries }),
            Value::Null => Err(self.error("is empty", "Write its fields, or leave it out.")),
            _ => Err(self.error(
                format_args!("must be an object, not {}", self.node.what()),
                "Write `name: value` lines below it.",
            )),
        }
    }
    /// An object whose values are all texts.
    pub(crate) fn text_map(&self) -> Result<BTreeMap<String, String>, ResourceError> {
        let fields = self.open()?;
        fields
            .entries
            .iter()
            .map(|entry| {
                let value = At { path: self.child_path(&entry.key), node: &entry.node };
                Ok((entry.key.clone(), value.text()?.to_owned()))
            })
            .collect()
    }
    fn child_path(&self, key: &str) -> String {
        let key: String = key.chars().take(64).flat_map(char::escape_debug).collect();
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

/// The fields of an object.
pub(crate) struct Fields<'n> {
    at: At<'n>,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// The field `key`, if it is there; in a closed object an empty value is there too, and no reader accepts it.
    pub(crate) fn get(&self, key: &str) -> Option<At<'n>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(At { path: self.at.child_path(key), node: &entry.node })
    }
    /// The field `key`; in a manifest of Kubernetes an empty value is the same as none.
    pub(crate) fn get_non_null(&self, key: &str) -> Option<At<'n>> {
        self.get(key).filter(|at| !at.is_null())
    }
    pub(crate) fn require(&self, key: &str, remedy: &str) -> Result<At<'n>, ResourceError> {
        self.get(key).ok_or_else(|| {
            let path = self.at.child_path(key);
            ResourceError::new(self.at.line(), format!("`{path}` is missing"), remedy)
        })
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
