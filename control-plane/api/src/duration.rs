//! Durations as people write them: a whole number and a unit, such as `500ms`, `10s`, `5m`, `1h` or `7d`.
use std::time::Duration;

/// The units, each with its milliseconds.
pub const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a duration.
///
/// # Errors
/// What to write instead.
pub fn parse(text: &str) -> Result<Duration, String> {
    let fault = || format!("'{text}' is not a duration; write for example 500ms, 10s, 5m, 1h or 7d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(fault)?;
    let number: u64 = text[..split].parse().map_err(|_| fault())?;
    let (_, millis) = UNITS.iter().find(|(unit, _)| *unit == &text[split..]).ok_or_else(fault)?;
    number.checked_mul(*millis).map(Duration::from_millis).ok_or_else(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_is_a_duration_and_nothing_else_is() {
        let good =
            [("500ms", 500), ("0s", 0), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("7d", 604_800_000)];
        for (text, millis) in good {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5h", "1 h", "1w", "1H", "18446744073709551615d", "99999999999999999999s"]
        {
            let fault = parse(text).expect_err(text);
            assert!(fault.contains("write for example"), "{fault}");
        }
    }
}
