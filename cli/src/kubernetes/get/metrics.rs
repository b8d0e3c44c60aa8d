//! Reads the text that sidecars show under `/metrics` (Prometheus text format and OpenMetrics).
//!
//! A line that is not understood is passed over: what is shown is what could be read.

/// One line: a name, labels and a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    labels: Vec<(String, String)>,
    pub(super) value: f64,
}

impl Sample {
    /// The value of a label; empty where there is none.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// All samples of `text`.
pub(super) fn samples(text: &str) -> impl Iterator<Item = Sample> + '_ {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample)
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    // Behind the value may stand a time, and behind a `#` an exemplar.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what stands behind it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((found, behind));
        }
        let (key, quoted) = rest.split_once("=\"")?;
        let (value, behind) = unquoted(quoted)?;
        found.push((key.to_owned(), value));
        rest = behind;
    }
}

/// A value up to its closing quotation mark, and what stands behind it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "\
# HELP weft_requests HTTP requests
# TYPE weft_requests counter
weft_requests_total{source=\"a\",destination=\"b \\\"c\\\\\"} 7
weft_request_duration_seconds_bucket{le=\"+Inf\"} 9 # {trace_id=\"x\"} 0.5
weft_control_plane_connected 1
nonsense
half{a=\"b
# EOF
";
        let all: Vec<Sample> = samples(text).collect();
        assert_eq!(all.len(), 3, "{all:?}");
        assert_eq!((all[0].name.as_str(), all[0].value), ("weft_requests_total", 7.0));
        assert_eq!((all[0].label("source"), all[0].label("destination"), all[0].label("none")), ("a", "b \"c\\", ""));
        assert_eq!((all[1].label("le"), all[1].value), ("+Inf", 9.0));
        assert_eq!((all[2].name.as_str(), all[2].value), ("weft_control_plane_connected", 1.0));
    }
}
