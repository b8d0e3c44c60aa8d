//! Text that stems from a request, made fit for a log line or an attribute: bounded, and without characters that could
//! act on a terminal or reorder what is read.
use std::borrow::Cow;

/// At most `max` bytes of `text`, marked with `…` when cut.
///
/// Control characters (C0, DEL, C1), line and paragraph separators and bidirectional controls become U+FFFD.
pub(super) fn bounded(text: &str, max: usize) -> Cow<'_, str> {
    let cut = text.len() > max;
    let kept = if cut { &text[..text.floor_char_boundary(max)] } else { text };
    if !cut && !kept.contains(is_active) {
        return Cow::Borrowed(kept);
    }
    let mut out: String = kept.chars().map(|c| if is_active(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if cut {
        out.push('…');
    }
    Cow::Owned(out)
}

fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_character_and_loses_what_acts_on_a_terminal() {
        for (given, max, expected) in [
            ("plain \"text\"", 64, "plain \"text\""),
            ("\u{1b}[2Jx", 64, "\u{fffd}[2Jx"),
            ("a\r\nb\0\u{7f}\u{85}", 64, "a\u{fffd}\u{fffd}b\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{202e}gnp", 64, "\u{fffd}gnp"),
            ("abcdef", 3, "abc…"),
            ("aéé", 2, "a…"),
        ] {
            assert_eq!(bounded(given, max), expected, "{given:?}");
        }
    }
}
