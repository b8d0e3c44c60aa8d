//! How answers look: tables as kubectl prints them, JSON and YAML.
//!
//! Names and messages come from a cluster. What of them could act on a terminal is shown, not obeyed.
use std::io::{self, ErrorKind, Write as _};

use clap::ValueEnum;
use serde::Serialize;

/// Form of an answer that programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Form of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl ListFormat {
    /// The form for programs, if it is one.
    pub(crate) fn machine(self) -> Option<Format> {
        match self {
            Self::Wide => None,
            Self::Json => Some(Format::Json),
            Self::Yaml => Some(Format::Yaml),
        }
    }
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// Always shown.
    Always(&'static str),
    /// Shown with `-o wide`.
    Wide(&'static str),
}

/// Rows under headings.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: Vec<Column>) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row with a cell for each column; an empty cell is shown as `-`.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows
            .push(cells.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { printable(cell) }).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Aligned, three spaces between columns, nothing behind the last.
    pub(crate) fn render(&self, wide: bool) -> String {
        let shown: Vec<(usize, &str)> = self
            .columns
            .iter()
            .enumerate()
            .filter_map(|(at, column)| match column {
                Column::Always(name) => Some((at, *name)),
                Column::Wide(name) => wide.then_some((at, *name)),
            })
            .collect();
        let width = |(at, name): &(usize, &str)| {
            let cells = self.rows.iter().map(|row| row[*at].chars().count());
            cells.chain([name.chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = shown.iter().map(width).collect();
        let mut text = String::new();
        let headings: Vec<&str> = shown.iter().map(|(_, name)| *name).collect();
        let rows = self.rows.iter().map(|row| shown.iter().map(|(at, _)| row[*at].as_str()).collect());
        for cells in std::iter::once(headings).chain(rows) {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}   "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `value` as text of that form.
pub(crate) fn machine<T: Serialize>(value: &T, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        Format::Yaml => serde_saphyr::to_string(value)?,
    })
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no fault.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(fault) if fault.kind() != ErrorKind::BrokenPipe => Err(fault.into()),
        _ => Ok(()),
    }
}

/// One line of `text` without what could act on a terminal or reorder what is read.
pub(crate) fn printable(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.split(['\n', '\r'])
        .map(|line| {
            line.trim().chars().map(|c| if acts(c) { char::REPLACEMENT_CHARACTER } else { c }).collect::<String>()
        })
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// A length of time in at most two units, as kubectl shows ages: `45s`, `12m`, `5h30m`, `3d4h`.
pub(crate) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, 0) => format!("{hours}h"),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, 0, _) => format!("{days}d"),
        (days, hours, _) if days < 10 => format!("{days}d{hours}h"),
        (days, _, _) => format!("{days}d"),
    }
}

/// `1 pod`, `3 pods`.
pub(crate) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The first few names, and how many more there are.
pub(super) fn some_of<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_wide_shows_more_of_it() {
        let mut table = Table::new(vec![Column::Always("NAME"), Column::Wide("NODE"), Column::Always("READY")]);
        table.row(vec!["orders-1".into(), "node-a".into(), "2/2".into()]);
        table.row(vec!["db".into(), String::new(), "1/2".into()]);
        assert_eq!(table.render(false), "NAME       READY\norders-1   2/2\ndb         1/2\n");
        assert_eq!(table.render(true), "NAME       NODE     READY\norders-1   node-a   2/2\ndb         -        1/2\n");
    }

    #[test]
    fn what_a_cluster_says_cannot_act_on_the_terminal() {
        for (given, expected) in [
            ("plain", "plain"),
            ("\u{1b}[2Jx", "\u{fffd}[2Jx"),
            ("one\n  two\r\n", "one; two"),
            ("\u{202e}gnp", "\u{fffd}gnp"),
        ] {
            assert_eq!(printable(given), expected, "{given:?}");
        }
    }

    #[test]
    fn spans_have_at_most_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m"),
            (3_600, "1h"),
            (5_400, "1h30m"),
            (90_000, "1d1h"),
            (86_400 * 30 + 7_200, "30d"),
        ] {
            assert_eq!(span(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn long_lists_are_cut_and_say_so() {
        assert_eq!(some_of(&["a", "b"]), "a, b");
        assert_eq!(some_of(&["a", "b", "c", "d", "e"]), "a, b, c, d, e");
        assert_eq!(some_of(&["a", "b", "c", "d", "e", "f"]), "a, b, c, d, e and 1 more");
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let value = serde_json::json!({"items": [{"name": "a", "ready": true, "note": null}]});
        let read: serde_json::Value =
            serde_saphyr::from_str(&machine(&value, Format::Yaml).expect("YAML")).expect("readable");
        assert_eq!(read, value);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&machine(&value, Format::Json).expect("JSON")).expect("readable"),
            value
        );
    }
}
