//! What is wrong with a resource, where, and what to write instead.
//!
//! Text of the user is only ever shown cut short and with control characters escaped, so that an error is safe to log.
use std::fmt;

use super::NamespacedName;

/// Why a resource was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceError {
    /// Line in the text that was parsed, counted from 1; 0 if the value did not come from a text.
    pub line: usize,
    /// The document's `kind`, if it is one that is read here.
    pub kind: Option<&'static str>,
    /// The document's name, as far as it could be read (for a cluster-wide kind the namespace is empty).
    pub name: Option<NamespacedName>,
    /// What is wrong: a clause that starts with the field.
    pub message: String,
    /// What to write instead: a sentence.
    pub remedy: String,
}

impl ResourceError {
    pub(crate) fn new(line: usize, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line, kind: None, name: None, message: message.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        match (&self.kind, &self.name) {
            (Some(kind), Some(name)) if name.namespace.is_empty() => write!(f, "{kind} {}: ", name.name)?,
            (Some(kind), Some(name)) => write!(f, "{kind} {name}: ")?,
            (Some(kind), None) => write!(f, "{kind}: ")?,
            (None, _) => {}
        }
        write!(f, "{}. {}", self.message, self.remedy)
    }
}

impl std::error::Error for ResourceError {}

/// `text` between backticks, escaped, at most 64 characters of it.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The entry of `known` that `word` was probably meant to be.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let lower = word.to_ascii_lowercase();
    if lower.len() > 64 {
        return None;
    }
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `a`, `b` and `c`.
pub(crate) fn listed<'k>(words: impl IntoIterator<Item = &'k str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}
