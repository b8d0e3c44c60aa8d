//! YAML texts as parts that can be printed as they were, and as values.
use serde_json::Value;

/// As `kubectl` reads YAML: numbers with a leading zero are octal (file modes), a field that is named twice is an error.
pub(super) fn parse(document: &str) -> anyhow::Result<Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let value: Option<Value> = serde_saphyr::from_str_with_options(document, options)?;
    Ok(value.unwrap_or_default())
}

/// Splits at the markers `---`, which stand at the start of a line for nothing else (YAML 1.2 section 9.1.2). Each part
/// but the first begins with its marker; what holds no value is left out.
pub(super) fn documents_of(text: &str) -> Vec<&str> {
    let mut documents = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        if is_marked(line) && at > start {
            documents.push(&text[start..at]);
            start = at;
        }
        at += line.len();
    }
    documents.push(&text[start..]);
    let blank = |line: &str| line.is_empty() || line.starts_with('#');
    documents.retain(|document| {
        let content = document.strip_prefix("---").unwrap_or(document);
        !content.lines().all(|line| blank(line.trim()))
    });
    documents
}

/// Whether it begins with a marker.
pub(super) fn is_marked(text: &str) -> bool {
    text.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// The line of `text`, from 1, where its part `document` begins.
pub(super) fn line_of(text: &str, document: &str) -> usize {
    let at = document.as_ptr() as usize - text.as_ptr() as usize;
    text[..at].matches('\n').count() + 1
}
