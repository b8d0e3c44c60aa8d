//! Writes the little DER (ITU-T X.690) that a leaf certificate needs.
use std::time::SystemTime;

use time::OffsetDateTime;

pub(crate) const BOOLEAN_TRUE: &[u8] = &[0x01, 0x01, 0xff];

/// One element: tag, definite length in its shortest form, contents.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = length.to_be_bytes();
    let significant = &bytes[bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len() - 1)..];
    let mut out = Vec::with_capacity(length + 2 + significant.len());
    out.push(tag);
    if length >= 0x80 {
        out.push(0x80 | significant.len() as u8);
    }
    out.extend_from_slice(significant);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// `SEQUENCE`.
pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(0x30, parts)
}

/// `OCTET STRING`.
pub(crate) fn octet_string(contents: &[u8]) -> Vec<u8> {
    element(0x04, &[contents])
}

/// `BIT STRING` of whole bytes.
pub(crate) fn bit_string(contents: &[u8]) -> Vec<u8> {
    element(0x03, &[&[0], contents])
}

/// `UTCTime` through 2049, `GeneralizedTime` after (RFC 5280 section 4.1.2.5), cut to whole seconds.
/// `None` outside the years 1950 to 9999.
pub(crate) fn time(at: SystemTime) -> Option<Vec<u8>> {
    let seconds = match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).ok()?,
        Err(before) => -i64::try_from(before.duration().as_secs()).ok()?,
    };
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    let rest =
        format!("{:02}{:02}{:02}{:02}{:02}Z", u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second());
    match at.year() {
        year @ 1950..=2049 => Some(element(0x17, &[format!("{:02}{rest}", year % 100).as_bytes()])),
        year @ 2050..=9999 => Some(element(0x18, &[format!("{year}{rest}").as_bytes()])),
        _ => None,
    }
}
