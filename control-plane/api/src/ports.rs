//! Ports as people list them, `22,8000-8010`: read once, sorted, ranges that touch made one.
use std::fmt;
use std::str::FromStr;

/// Bytes that a list may have before it is read: more than all 65,535 ports written out.
const MAX_TEXT_BYTES: usize = 512 * 1024;

/// A set of ports above 0, as ranges in rising order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortRanges(Vec<(u16, u16)>);

impl PortRanges {
    /// Ranges that a list may come to: the redirect rules carry no more.
    pub const MAX_RANGES: usize = 256;

    /// Whether there is no port.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// First and last port of each range.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.0.iter().copied()
    }
}

impl FromStr for PortRanges {
    type Err = String;

    /// Reads a list; an empty text is an empty list.
    ///
    /// # Errors
    /// What to write instead.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(format!("has {} bytes; write ranges such as 8000-8010", text.len()));
        }
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut ranges = text.split(',').map(|entry| range(entry.trim())).collect::<Result<Vec<_>, _>>()?;
        ranges.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        if joined.len() > Self::MAX_RANGES {
            return Err(format!(
                "comes to {} separate ranges; write at most {}, by wider ranges",
                joined.len(),
                Self::MAX_RANGES
            ));
        }
        Ok(Self(joined))
    }
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let shown = || -> String { text.chars().take(32).flat_map(char::escape_debug).collect() };
    if text.is_empty() {
        return Err("has an entry without a port; write for example 22,8000-8010".to_owned());
    }
    let plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    if !plain(first) || !plain(last) {
        return Err(format!("has `{}`, which is no port and no range; write for example 22 or 8000-8010", shown()));
    }
    let port = |digits: &str| digits.parse::<u16>().ok().filter(|port| *port > 0);
    let (Some(first), Some(last)) = (port(first), port(last)) else {
        return Err(format!("has `{}`; ports go from 1 to 65535", shown()));
    };
    if first > last {
        return Err(format!("has `{first}-{last}`, which runs backwards; write {last}-{first}"));
    }
    Ok((first, last))
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_into_ranges_that_neither_overlap_nor_touch() {
        let all: String = (1..=65_535).rev().map(|port: u32| port.to_string()).collect::<Vec<_>>().join(",");
        for (text, shown) in [
            ("", ""),
            (" ", ""),
            ("22", "22"),
            ("8000-8010, 22", "22,8000-8010"),
            ("5,4,3,1", "1,3-5"),
            ("10-20,15-30,31", "10-31"),
            ("1-65535,80", "1-65535"),
            (all.as_str(), "1-65535"),
        ] {
            let ranges: PortRanges = text.parse().expect("a list");
            assert_eq!(ranges.to_string(), shown);
            assert_eq!(ranges.to_string().parse(), Ok(ranges));
        }
        let ranges: PortRanges = "22,8000-8010".parse().expect("a list");
        for (port, within) in
            [(21, false), (22, true), (23, false), (7999, false), (8000, true), (8010, true), (0, false)]
        {
            assert_eq!(ranges.contains(port), within, "{port}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_with_what_to_write() {
        let every_other: String = (1..=600).map(|port| (port * 2).to_string()).collect::<Vec<_>>().join(",");
        for (text, hint) in [
            ("-1", "write for example 22 or 8000-8010"),
            ("+1", "write for example 22 or 8000-8010"),
            ("abc", "write for example 22 or 8000-8010"),
            ("1-2-3", "write for example 22 or 8000-8010"),
            ("70000", "1 to 65535"),
            ("0", "1 to 65535"),
            ("99999999999999999999", "1 to 65535"),
            ("80-20", "write 20-80"),
            ("22,", "without a port"),
            (",", "without a port"),
            (every_other.as_str(), "at most 256"),
            ("\u{202e}\n", "write for example 22 or 8000-8010"),
        ] {
            let fault = text.parse::<PortRanges>().expect_err("refused");
            assert!(fault.contains(hint) && fault.len() < 200 && !fault.contains('\n'), "{fault}");
        }
    }
}
