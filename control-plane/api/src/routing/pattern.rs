//! Regular expressions of routes: RE2's syntax, matched in time linear in what is compared, and bounded in size.
use regex::bytes::{Regex, RegexBuilder};

/// Bytes that a regular expression may have.
pub const MAX_REGEX_BYTES: usize = 1_024;
/// Bytes that its compiled form may take, and what it may keep while it is matched: `\w{100}` is short and large.
const MAX_COMPILED_BYTES: usize = 256 * 1024;
/// Nested groups.
const MAX_NESTING: u32 = 50;

/// A regular expression that fits a whole text or does not fit it. Letter case counts; `.` is any character but a line
/// feed; no look-around and no back-references.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// Why a regular expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// It is longer than [`MAX_REGEX_BYTES`].
    #[error("the regular expression has more than {MAX_REGEX_BYTES} bytes: write a shorter one, or several matches")]
    TooLong,
    /// It is short and becomes large.
    #[error("the regular expression becomes too large when compiled: write smaller repetitions")]
    TooLarge,
    /// It is not in RE2's syntax.
    #[error("the regular expression is not in RE2's syntax: {0}")]
    Syntax(String),
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// It is not in RE2's syntax, or too large.
    pub fn compile(text: &str) -> Result<Self, BadPattern> {
        if text.len() > MAX_REGEX_BYTES {
            return Err(BadPattern::TooLong);
        }
        let build = |text: &str| {
            RegexBuilder::new(text)
                .size_limit(MAX_COMPILED_BYTES)
                .dfa_size_limit(MAX_COMPILED_BYTES)
                .nest_limit(MAX_NESTING)
                .build()
        };
        // By itself first: `a)(b` would be sound between the brackets that make it fit the whole text.
        let refused = |error: regex::Error| match error {
            regex::Error::CompiledTooBig(_) => BadPattern::TooLarge,
            // The last line says what is wrong, the ones before point to where.
            error => BadPattern::Syntax(error.to_string().lines().last().unwrap_or_default().trim().to_owned()),
        };
        build(text).map_err(refused)?;
        build(&format!("^(?:{text})$")).map_err(refused).map(Self)
    }

    /// Whether it fits the whole of `text`.
    pub fn fits(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_expression_fits_the_whole_text_or_does_not_fit_it() {
        for (pattern, text, fits) in [
            ("a|ab", "ab", true),
            ("a|ab", "abc", false),
            ("b", "abc", false),
            ("/items/[0-9]+", "/items/17", true),
            ("/items/[0-9]+", "/items/17\n", false),
            ("(?i)blue", "BLUE", true),
            ("blue", "BLUE", false),
            (r"\w+", "größe", true),
            (".*", "a\nb", false),
            ("(?m)a$", "a\nb", false),
            ("", "", true),
            ("", "a", false),
        ] {
            let compiled = Pattern::compile(pattern).expect("a sound pattern");
            assert_eq!(compiled.fits(text.as_bytes()), fits, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn what_is_not_re2_or_becomes_too_large_is_refused_with_the_reason() {
        for (pattern, reason) in [
            ("a)(b", "unopened group"),
            ("(a", "unclosed group"),
            (r"(a)\1", "backreferences are not supported"),
            ("(?=a)b", "look-around"),
            ("(?x)a # and the bracket is part of the comment", "unclosed group"),
            (r"(\w{100}){100}", "too large"),
            (&"(".repeat(200), "not in RE2"),
            (&"a".repeat(2_000), "more than 1024 bytes"),
        ] {
            let refused = Pattern::compile(pattern).expect_err(pattern).to_string();
            assert!(refused.contains(reason), "{pattern}: {refused}");
        }
    }
}
