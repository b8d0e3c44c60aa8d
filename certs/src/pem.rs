//! Reads PEM (RFC 7468) strictly: a file that holds something else than expected is refused, never half read.
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Enough for thousands of certificates.
const MAX_BYTES: usize = 1 << 20;
const LINE: usize = 64;

/// One `-----BEGIN label-----` section.
pub(crate) struct Section {
    pub(crate) label: String,
    pub(crate) der: Vec<u8>,
}

/// All sections of a text. Spaces at the ends of lines, blank lines, CRLF, a byte order mark and lines that begin with
/// `#` are skipped; any other text between sections is an error.
pub(crate) fn sections(text: &str) -> Result<Vec<Section>, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the PEM text has {} bytes; at most {MAX_BYTES} are read", text.len()));
    }
    let mut sections = Vec::new();
    let mut open: Option<(usize, String, String)> = None;
    for (line, number) in text.trim_start_matches('\u{feff}').lines().map(str::trim).zip(1..) {
        let begin = boundary(line, "BEGIN");
        open = match open {
            None if line.is_empty() || line.starts_with('#') => None,
            None => match begin {
                Some(label) => Some((number, label.to_owned(), String::new())),
                None => return Err(format!("line {number} is not PEM; remove all but -----BEGIN …----- sections")),
            },
            Some((start, label, _)) if begin.is_some() => {
                return Err(format!("line {number} begins a section before the {label} of line {start} has ended"));
            }
            Some((start, label, body)) => match boundary(line, "END") {
                Some(end) if end == label => {
                    let der = BASE64_STANDARD
                        .decode(&body)
                        .map_err(|error| format!("the {label} that begins in line {start} is not base64: {error}"))?;
                    sections.push(Section { label, der });
                    None
                }
                Some(end) => return Err(format!("line {number} ends a {end}, but line {start} began a {label}")),
                None => Some((start, label, body + line)),
            },
        };
    }
    match open {
        None => Ok(sections),
        Some((start, label, _)) => {
            Err(format!("the {label} that begins in line {start} has no end; the text is cut off"))
        }
    }
}

/// The DER of every section, all of which must be certificates.
pub(crate) fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let certificate = |section: Section| match section.label.as_str() {
        "CERTIFICATE" => Ok(section.der),
        label if label.ends_with("PRIVATE KEY") => {
            Err(format!("there is a {label} among the certificates; remove it, and replace it if others could read it"))
        }
        label => Err(format!("there is a {label} section; only CERTIFICATE sections belong here")),
    };
    sections(text)?.into_iter().map(certificate).collect()
}

/// A certificate as PEM, with lines of 64 characters.
pub(crate) fn encode_certificate(der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

fn boundary<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.strip_prefix("-----")?.strip_prefix(word)?.strip_prefix(' ')?.strip_suffix("-----")
}
