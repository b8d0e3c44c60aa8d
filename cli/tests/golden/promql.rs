//! Just enough of PromQL to find the series that an expression asks for.

/// Words that stand where a metric could and are none, and that a list of labels may follow.
const GROUPING: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: &[&str] = &["and", "or", "unless", "offset", "bool", "inf", "nan"];

/// The vector selectors of an expression: a metric, or braces, or both.
pub fn selectors(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => quoted(rest),
            // Durations are no metrics, nor are labels within braces.
            '[' => rest.find(']').map_or(rest.len(), |end| end + 1),
            '{' => {
                let length = braces(rest);
                found.push(rest[..length].to_owned());
                length
            }
            '0'..='9' => word(rest),
            'a'..='z' | 'A'..='Z' | '_' | ':' => {
                let name = &rest[..word(rest)];
                let after = rest[name.len()..].trim_start();
                if GROUPING.contains(&name) {
                    let list =
                        if after.starts_with('(') { after.find(')').map_or(after.len(), |end| end + 1) } else { 0 };
                    rest.len() - after.len() + list
                } else if OPERATORS.contains(&name) || after.starts_with('(') || is_aggregation(after) {
                    name.len()
                } else {
                    let labels = if after.starts_with('{') { braces(after) } else { 0 };
                    found.push(format!("{name}{}", &after[..labels]));
                    rest.len() - after.len() + labels
                }
            }
            other => other.len_utf8(),
        };
        rest = &rest[length..];
    }
    found
}

/// Whether the word before `after` is that of `sum by (…)`.
fn is_aggregation(after: &str) -> bool {
    ["by", "without"].contains(&&after[..word(after)])
}

fn word(text: &str) -> usize {
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len())
}

/// The length of the string that `text` begins with, quotes included.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

/// The length of the label matchers that `text` begins with, braces included.
fn braces(text: &str) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text.as_bytes()[at] {
            b'}' => return at + 1,
            b'"' => at += quoted(&text[at..]),
            _ => at += 1,
        }
    }
    text.len()
}

/// What [`selectors`] promises.
pub fn finds_what_is_asked_for() -> anyhow::Result<()> {
    let rows: &[(&str, &[&str])] = &[
        ("up", &["up"]),
        ("sum(rate(a_total[5m])) / 2.5e3", &["a_total"]),
        ("sum by (le, b) (rate(a{x=\"}\", y=~\"(1|\\\")\"}[5m]))", &["a{x=\"}\", y=~\"(1|\\\")\"}"]),
        ("a and on (job) group_left (x) b unless c:d:e offset 10m", &["a", "b", "c:d:e"]),
        ("{__name__=~\"a|b\", c=\"d\"}", &["{__name__=~\"a|b\", c=\"d\"}"]),
        ("topk(5, sum without (x) (a)) > bool 0 or absent(b) - time()", &["a", "b"]),
        ("max_over_time((a - time())[2h:1m])", &["a"]),
    ];
    for (expression, expected) in rows {
        let found = selectors(expression);
        anyhow::ensure!(found == *expected, "{expression}: {found:?}");
    }
    Ok(())
}
