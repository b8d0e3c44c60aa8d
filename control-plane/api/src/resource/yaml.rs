//! From one YAML document (JSON is a part of YAML) to a tree of nodes, without recursion: no text can exhaust the stack.
//!
//! Scalars are read by the core schema of YAML 1.2 (section 10.3.2): `yes` and `no` are texts. Numbers with a leading zero
//! are texts too, because YAML 1.1 reads them as octal; a reader of numbers then refuses them. A field that is named
//! twice, merge keys and tags other than `!!str` are refused rather than read in one of several ways.
use std::collections::{HashMap, HashSet};

use serde_saphyr::granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span, Tag};

use super::ResourceError;
use super::error::quoted;
use super::node::{Entry, Node, Value};

/// Depth of nesting, aliases expanded. Real manifests stay below 40.
const MAX_DEPTH: usize = 64;
/// Values in a document. The largest custom resource definitions have some 20,000.
const MAX_VALUES: usize = 100_000;
/// Values that anchors and aliases may copy in a document.
const MAX_COPIED_VALUES: usize = 20_000;
/// Bytes of text that they may copy.
const MAX_COPIED_BYTES: usize = 1 << 20;

const SYNTAX: &str = "Check indentation, quotation marks and colons near this line.";
const PLAINLY: &str = "Write the document plainly, without nesting or aliases of that size.";

/// Parses one document that stands behind `lines_before` lines. An empty document is [`Value::Null`].
pub(crate) fn parse_text(text: &str, lines_before: usize) -> Result<Node, ResourceError> {
    let mut options = Options::default();
    options.emit_comments = false;
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut tree =
        Tree { lines_before, open: Vec::new(), anchors: HashMap::new(), copied: Size::NOTHING, values: 0, root: None };
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => tree.take(event, span)?,
            Err(error) => return Err(syntax_error(&error, lines_before)),
        }
    }
    Ok(tree.root.unwrap_or(Node { line: lines_before + 1, value: Value::Null }))
}

fn syntax_error(error: &ScanError, lines_before: usize) -> ResourceError {
    let remedy = if *error.kind() == ErrorKind::RecursionLimitExceeded { PLAINLY } else { SYNTAX };
    let message: String = error.info().chars().take(300).flat_map(char::escape_debug).collect();
    ResourceError::new(lines_before + error.marker().line(), format!("the YAML cannot be read: {message}"), remedy)
}

/// The tree while it grows: the collections that are open, outermost first.
struct Tree {
    lines_before: usize,
    open: Vec<Collection>,
    anchors: HashMap<usize, Anchored>,
    copied: Size,
    values: usize,
    root: Option<Node>,
}

/// A finished node that an alias may repeat.
struct Anchored {
    node: Node,
    size: Size,
}

/// How many values a node has with all below it, how many bytes of text, and how many levels.
#[derive(Clone, Copy)]
struct Size {
    values: usize,
    bytes: usize,
    depth: usize,
}

impl Size {
    const NOTHING: Self = Self { values: 0, bytes: 0, depth: 0 };
    const COLLECTION: Self = Self { values: 1, bytes: 0, depth: 1 };

    fn scalar(bytes: usize) -> Self {
        Self { bytes, ..Self::COLLECTION }
    }
    fn add(&mut self, child: Self) {
        self.values += child.values;
        self.bytes += child.bytes;
        self.depth = self.depth.max(child.depth + 1);
    }
}

struct Collection {
    line: usize,
    anchor: usize,
    size: Size,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Object { entries: Vec<Entry>, names: HashSet<String>, key: Option<(String, usize)> },
}

impl Tree {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ResourceError> {
        let line = self.lines_before + span.start.line();
        self.values += 1;
        if self.values > MAX_VALUES {
            let message = format!("the document has more than {MAX_VALUES} values");
            return Err(ResourceError::new(line, message, PLAINLY));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let as_text = is_text(tag.as_deref(), line)? || style != ScalarStyle::Plain;
                // A field's name is a text whatever it looks like, but the merge key is no name.
                if let Some(Collection { content: Content::Object { key: key @ None, names, .. }, size, .. }) =
                    self.open.last_mut()
                {
                    if text == "<<" && !as_text {
                        return Err(ResourceError::new(
                            line,
                            "`<<` merges fields, which is not supported",
                            "Write the fields out.",
                        ));
                    }
                    if !names.insert(text.clone().into_owned()) {
                        let message = format!("the field {} is written twice", quoted(&text));
                        return Err(ResourceError::new(line, message, "Write each field once."));
                    }
                    size.bytes += text.len();
                    *key = Some((text.into_owned(), line));
                    return Ok(());
                }
                let size = Size::scalar(text.len());
                let value = if as_text { Value::Text(text.into_owned()) } else { plain(&text) };
                self.add(Node { line, value }, anchor, size)
            }
            Event::SequenceStart(_, anchor, tag) => self.begin(line, anchor, tag.as_deref(), Content::List(Vec::new())),
            Event::MappingStart(_, anchor, tag) => {
                let content = Content::Object { entries: Vec::new(), names: HashSet::new(), key: None };
                self.begin(line, anchor, tag.as_deref(), content)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(collection) = self.open.pop() else { return Ok(()) };
                let value = match collection.content {
                    Content::List(items) => Value::List(items),
                    Content::Object { entries, .. } => Value::Object(entries),
                };
                self.add(Node { line: collection.line, value }, collection.anchor, collection.size)
            }
            Event::Alias(anchor) => {
                let Some(anchored) = self.anchors.get(&anchor) else {
                    return Err(ResourceError::new(line, "the alias stands within what it repeats", PLAINLY));
                };
                let size = anchored.size;
                self.check_place(line)?;
                self.check_depth(line, size.depth)?;
                self.charge(line, size)?;
                let node = self.anchors[&anchor].node.clone();
                self.add(node, 0, size)
            }
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(ResourceError::new(line, "a second document begins within the first", SYNTAX))
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, line: usize, anchor: usize, tag: Option<&Tag>, content: Content) -> Result<(), ResourceError> {
        is_text(tag, line)?;
        self.check_place(line)?;
        self.check_depth(line, 1)?;
        self.open.push(Collection { line, anchor, size: Size::COLLECTION, content });
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node, anchor: usize, size: Size) -> Result<(), ResourceError> {
        self.check_place(node.line)?;
        self.check_depth(node.line, size.depth)?;
        if anchor != 0 {
            self.charge(node.line, size)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), size });
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.size.add(size);
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Object { entries, key, .. } => {
                let (key, line) = key.take().expect("`check_place` saw a key");
                entries.push(Entry { key, line, node });
            }
        }
        Ok(())
    }

    /// Counts a copy of that size.
    fn charge(&mut self, line: usize, size: Size) -> Result<(), ResourceError> {
        self.copied.add(size);
        if self.copied.values <= MAX_COPIED_VALUES && self.copied.bytes <= MAX_COPIED_BYTES {
            return Ok(());
        }
        let message =
            format!("anchors and aliases repeat more than {MAX_COPIED_VALUES} values or {MAX_COPIED_BYTES} bytes");
        Err(ResourceError::new(line, message, PLAINLY))
    }

    /// Refuses a value where the name of a field must stand.
    fn check_place(&self, line: usize) -> Result<(), ResourceError> {
        match self.open.last() {
            Some(Collection { content: Content::Object { key: None, .. }, .. }) => {
                Err(ResourceError::new(line, "the name of a field is not a plain text", "Write `name: value`."))
            }
            _ => Ok(()),
        }
    }

    fn check_depth(&self, line: usize, depth: usize) -> Result<(), ResourceError> {
        if self.open.len() + depth <= MAX_DEPTH {
            return Ok(());
        }
        Err(ResourceError::new(line, format!("the document has more than {MAX_DEPTH} levels"), PLAINLY))
    }
}

/// Whether a tag makes its scalar a text. Tags that say what would be read anyway are accepted.
fn is_text(tag: Option<&Tag>, line: usize) -> Result<bool, ResourceError> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema_tag("str") => Ok(true),
        Some(tag) if tag.is_yaml_core_schema_tag("map") || tag.is_yaml_core_schema_tag("seq") => Ok(false),
        Some(tag) => {
            let message = format!("the tag {} is not supported", quoted(&tag.original()));
            Err(ResourceError::new(line, message, "Leave the tag out."))
        }
    }
}

/// A scalar without quotation marks.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Boolean(true),
        "false" | "False" | "FALSE" => return Value::Boolean(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let has_leading_zero =
        digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    let in_base = |digits: &str, base| match digits.bytes().all(|digit| char::from(digit).is_digit(base)) {
        true => i128::from_str_radix(digits, base).ok(),
        false => None,
    };
    let integer = if let Some(digits) = text.strip_prefix("0x") {
        in_base(digits, 16)
    } else if let Some(digits) = text.strip_prefix("0o") {
        in_base(digits, 8)
    } else {
        in_base(digits, 10).and_then(|_| text.parse().ok()).filter(|_| !has_leading_zero)
    };
    if let Some(integer) = integer {
        return Value::Integer(integer);
    }
    match digits {
        ".nan" | ".NaN" | ".NAN" if digits == text => Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" if text.starts_with('-') => Value::Float(f64::NEG_INFINITY),
        ".inf" | ".Inf" | ".INF" => Value::Float(f64::INFINITY),
        _ if is_float(digits) && !has_leading_zero => {
            text.parse().map_or_else(|_| Value::Text(text.into()), Value::Float)
        }
        _ => Value::Text(text.into()),
    }
}

/// `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(text: &str) -> bool {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_is_valid = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !digits.is_empty() && is_digits(digits)
    });
    is_digits(whole) && is_digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent_is_valid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_read_by_the_core_schema() {
        let rows: &[(&str, &str)] = &[
            ("~", "Null"),
            ("null", "Null"),
            ("nUll", "Text(\"nUll\")"),
            ("True", "Boolean(true)"),
            ("yes", "Text(\"yes\")"),
            ("no", "Text(\"no\")"),
            ("0", "Integer(0)"),
            ("-0", "Integer(0)"),
            ("+12", "Integer(12)"),
            ("-12", "Integer(-12)"),
            ("0x1F", "Integer(31)"),
            ("0o17", "Integer(15)"),
            ("0x", "Text(\"0x\")"),
            ("0x+1", "Text(\"0x+1\")"),
            ("0755", "Text(\"0755\")"),
            ("-01", "Text(\"-01\")"),
            ("1_000", "Text(\"1_000\")"),
            ("18446744073709551616", "Integer(18446744073709551616)"),
            ("1.5", "Float(1.5)"),
            ("1e3", "Float(1000.0)"),
            (".5", "Float(0.5)"),
            ("1.", "Float(1.0)"),
            (".", "Text(\".\")"),
            ("-", "Text(\"-\")"),
            ("1e", "Text(\"1e\")"),
            ("e1", "Text(\"e1\")"),
            ("1.2.3", "Text(\"1.2.3\")"),
            ("10.0.0.1", "Text(\"10.0.0.1\")"),
            (".nan", "Float(NaN)"),
            ("-.nan", "Text(\"-.nan\")"),
            ("-.inf", "Float(-inf)"),
            ("inf", "Text(\"inf\")"),
            ("nan", "Text(\"nan\")"),
            ("é", "Text(\"é\")"),
        ];
        for (text, expected) in rows {
            assert_eq!(format!("{:?}", plain(text)), *expected, "{text}");
        }
        let huge = "9".repeat(60);
        assert!(matches!(plain(&huge), Value::Float(_)));
    }

    #[test]
    fn styles_tags_and_lines_are_kept_apart() {
        let node = parse_text("a: '1'\nb: \"x\\u00e9\"\nc: |\n  1\nd: !!str 1\n8080: {e: [1,\n 2]}\n", 10).unwrap();
        let text = |key: &str| node.field(key).and_then(Node::as_text).map(str::to_owned);
        assert_eq!(["a", "b", "c", "d"].map(text), ["1", "xé", "1\n", "1"].map(|text| Some(text.to_owned())));
        let list = node.field("8080").unwrap().field("e").unwrap();
        let Value::List(items) = &list.value else { panic!() };
        assert_eq!((items[0].line, items[1].line), (16, 17));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let rows = [
            ("a: 1\na: 2\n", 2, "the field `a` is written twice"),
            ("a: 1\n\"a\": 2\n", 2, "written twice"),
            ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, "`<<` merges fields"),
            ("a: !secret x\n", 1, "the tag `!secret` is not supported"),
            ("a: !!binary eA==\n", 1, "tag"),
            ("? [a]\n: b\n", 1, "name of a field"),
            ("? {a: b}\n: c\n", 1, "name of a field"),
            ("a: &x b\n*x : c\n", 2, "name of a field"),
            ("a: &a [*a]\n", 1, "stands within what it repeats"),
            ("a: *b\n", 1, "cannot be read"),
        ];
        for (text, line, message) in rows {
            let error = parse_text(text, 0).expect_err(text);
            assert!(error.message.contains(message), "{text}{error}");
            assert_eq!(error.line, line, "{text}{error}");
        }
        parse_text("'<<': 1\n", 0).expect("a quoted name is a name");
    }

    #[test]
    fn no_depth_exhausts_a_small_stack() {
        let block: String = (0..60).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        let texts = [block, format!("{}{}", "[".repeat(60), "]".repeat(60)), "[".repeat(100_000), "- ".repeat(100_000)];
        let parse = move || texts.iter().map(|text| parse_text(text, 0).is_ok()).collect::<Vec<_>>();
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(parse).unwrap();
        assert_eq!(thread.join().unwrap(), [true, true, false, false]);
    }

    #[test]
    fn copies_are_bounded_by_their_bytes_too() {
        let long = "x".repeat(100_000);
        let aliases = format!("a: &a {long}\nb: [{}]\n", "*a,".repeat(20));
        let nested = format!("{}{long}{}", "&n [".repeat(20), "]".repeat(20));
        for text in [aliases, nested] {
            let error = parse_text(&text, 0).unwrap_err();
            assert!(error.message.contains("anchors and aliases repeat more"), "{error}");
        }
    }

    #[test]
    fn aliases_add_to_the_depth() {
        let mut text = "a0: &a0 [x]\n".to_owned();
        for level in 1..80 {
            text += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
        }
        let error = parse_text(&text, 0).unwrap_err();
        assert!(error.message.contains("more than 64 levels"), "{error}");
    }
}
