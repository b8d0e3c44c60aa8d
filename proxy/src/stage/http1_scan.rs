//! Follows the bytes of HTTP/1 requests from one message to the next, without reading more than it needs: line ends, and
//! the fields that frame.
//!
//! It knows fewer faults than the parser behind it, and only must agree with it about where a message ends: what it
//! takes for framing is a strict part of what the parser does, all else is a fault here (RFC 9112 sections 6 and 7).
use memchr::memchr;

/// Longest request line: the target fits in it with its method.
const LONGEST_REQUEST_LINE: usize = 32 * 1024;
/// As much of a line is kept as holds any field that frames, when two reads share the line.
const KEPT: usize = 64;

/// Why a request has no single reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Several lengths, or a length and chunks.
    Framing,
    /// A transfer coding that is not `chunked` alone.
    TransferCoding,
    /// A line that ends in a line feed alone.
    BareLineFeed,
    /// A line that goes on a line before (obs-fold).
    FoldedLine,
    /// The request line is longer than 32 KiB.
    TargetTooLong,
}

impl Fault {
    /// All there are.
    pub const ALL: [Self; 5] =
        [Self::Framing, Self::TransferCoding, Self::BareLineFeed, Self::FoldedLine, Self::TargetTooLong];
}

/// What a piece of the connection held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to stop at.
    More,
    /// The head that ends after `count` bytes has an `Upgrade` field.
    Switch(usize),
    /// The head that ends after `count` bytes has a fault; it is the `heads`th.
    Faulty {
        /// Bytes up to its end.
        count: usize,
        /// Its number.
        heads: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// The request line of the `heads`th head is too long; `count` bytes are of it.
    TooLong {
        /// Bytes of the line.
        count: usize,
        /// Its number.
        heads: u64,
    },
    /// What follows `count` bytes is neither a chunk nor the end of chunks.
    BadChunk(usize),
}

/// Where in which message the connection is.
#[derive(Debug, Default)]
pub struct Scan {
    at: At,
    line: Line,
    head: Head,
    heads: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Head,
    Body(u64),
    Chunk(Chunk),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    FirstDigit,
    Size(u64),
    Space(u64),
    Extension(u64),
    SizeEnd(u64),
    Data(u64),
    DataEnd,
    DataLineFeed,
    /// Of the line so far: whether it is empty.
    Trailer {
        empty: bool,
    },
    TrailerEnd {
        empty: bool,
    },
}

/// The line that a read ended in.
#[derive(Debug)]
struct Line {
    kept: [u8; KEPT],
    len: usize,
    last: u8,
}

impl Default for Line {
    fn default() -> Self {
        Self { kept: [0; KEPT], len: 0, last: 0 }
    }
}

/// What is known of the head that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    request_line: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    fault: Option<Fault>,
}

impl Scan {
    /// Looks at the next bytes. After anything but [`Event::More`] and [`Event::Switch`] nothing more can be said;
    /// after a switch it goes on with what follows `count`.
    pub fn next(&mut self, bytes: &[u8]) -> Event {
        let mut pos = 0;
        while pos < bytes.len() {
            match self.at {
                At::Head => {
                    let Some(line_feed) = memchr(b'\n', &bytes[pos..]) else {
                        self.line.keep(&bytes[pos..]);
                        return match self.too_long() {
                            true => Event::TooLong { count: bytes.len(), heads: self.heads + 1 },
                            false => Event::More,
                        };
                    };
                    let end = pos + line_feed;
                    let ended = self.end_line(&bytes[pos..end]);
                    match ended {
                        LineEnd::Head => {
                            if let Some(event) = self.end_head(end + 1) {
                                return event;
                            }
                        }
                        LineEnd::TooLong => return Event::TooLong { count: end, heads: self.heads + 1 },
                        LineEnd::Line => {}
                    }
                    pos = end + 1;
                }
                At::Body(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - pos);
                    pos += here;
                    let left = left - here as u64;
                    self.at = if left == 0 { At::Head } else { At::Body(left) };
                }
                At::Chunk(Chunk::Data(left)) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - pos);
                    pos += here;
                    let left = left - here as u64;
                    self.at = At::Chunk(if left == 0 { Chunk::DataEnd } else { Chunk::Data(left) });
                }
                At::Chunk(chunk) => {
                    let Some(at) = step(chunk, bytes[pos]) else { return Event::BadChunk(pos) };
                    self.at = at;
                    pos += 1;
                }
            }
        }
        Event::More
    }

    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        self.at == At::Head && (self.head.request_line || self.line.len > 0)
    }

    fn too_long(&self) -> bool {
        !self.head.request_line && self.line.len > LONGEST_REQUEST_LINE
    }

    /// `here`: what the last bytes held of the line, without its line feed.
    fn end_line(&mut self, here: &[u8]) -> LineEnd {
        let len = self.line.len + here.len();
        let before = here.last().copied().unwrap_or(if self.line.len > 0 { self.line.last } else { 0 });
        let carriage_return = before == b'\r';
        if !carriage_return {
            self.head.fault.get_or_insert(Fault::BareLineFeed);
        }
        let content = len - usize::from(carriage_return);
        let ended = match (content, self.head.request_line) {
            (0, true) => LineEnd::Head,
            // Empty lines before a request are skipped (RFC 9112 section 2.2).
            (0, false) => LineEnd::Line,
            (_, false) if len > LONGEST_REQUEST_LINE => LineEnd::TooLong,
            (_, false) => {
                self.head.request_line = true;
                LineEnd::Line
            }
            (_, true) if self.line.len == 0 => {
                self.head.field(&here[..content.min(KEPT)], content);
                LineEnd::Line
            }
            (_, true) => {
                self.line.keep(here);
                let kept = content.min(KEPT);
                self.head.field(&self.line.kept[..kept], content);
                LineEnd::Line
            }
        };
        self.line.len = 0;
        ended
    }

    /// What follows the head that ends after `count` bytes.
    fn end_head(&mut self, count: usize) -> Option<Event> {
        self.heads += 1;
        let head = std::mem::take(&mut self.head);
        if let Some(fault) = head.fault {
            return Some(Event::Faulty { count, heads: self.heads, fault });
        }
        self.at = match (head.chunked, head.length) {
            (true, _) => At::Chunk(Chunk::FirstDigit),
            (false, None | Some(0)) => At::Head,
            (false, Some(length)) => At::Body(length),
        };
        head.upgrade.then_some(Event::Switch(count))
    }
}

enum LineEnd {
    Line,
    Head,
    TooLong,
}

impl Line {
    fn keep(&mut self, bytes: &[u8]) {
        if let Some(room) = self.kept.get_mut(self.len..) {
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
        }
        self.len += bytes.len();
        self.last = bytes.last().copied().unwrap_or(self.last);
    }
}

impl Head {
    /// `line`: the field's line, at least its first [`KEPT`] bytes; `len`: how long it is.
    fn field(&mut self, line: &[u8], len: usize) {
        let name = match line[0] {
            b'c' | b'C' => &b"content-length"[..],
            b't' | b'T' => b"transfer-encoding",
            b'u' | b'U' => b"upgrade",
            b' ' | b'\t' => {
                self.fault.get_or_insert(Fault::FoldedLine);
                return;
            }
            _ => return,
        };
        let (Some(given), Some(b':')) = (line.get(..name.len()), line.get(name.len())) else { return };
        if !given.eq_ignore_ascii_case(name) {
            return;
        }
        let value = line[name.len() + 1..].trim_ascii();
        let whole = line.len() == len;
        match name[0] {
            b'u' => self.upgrade = true,
            b'c' => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                match length.filter(|_| whole && digits && self.length.is_none() && !self.chunked) {
                    Some(length) => self.length = Some(length),
                    None => _ = self.fault.get_or_insert(Fault::Framing),
                }
            }
            _ if self.length.is_some() || self.chunked => _ = self.fault.get_or_insert(Fault::Framing),
            _ if whole && value.eq_ignore_ascii_case(b"chunked") => self.chunked = true,
            _ => _ = self.fault.get_or_insert(Fault::TransferCoding),
        }
    }
}

/// One byte of what frames a chunk.
fn step(chunk: Chunk, byte: u8) -> Option<At> {
    let digit = char::from(byte).to_digit(16).map(u64::from);
    Some(At::Chunk(match (chunk, byte) {
        (Chunk::FirstDigit, _) => Chunk::Size(digit?),
        (Chunk::Size(size) | Chunk::Space(size), b' ' | b'\t') => Chunk::Space(size),
        (Chunk::Size(size) | Chunk::Space(size), b';') => Chunk::Extension(size),
        (Chunk::Size(size) | Chunk::Space(size) | Chunk::Extension(size), b'\r') => Chunk::SizeEnd(size),
        (Chunk::Size(size), _) => Chunk::Size(size.checked_mul(16)?.checked_add(digit?)?),
        (Chunk::Extension(_), b'\n') => return None,
        (Chunk::Extension(size), _) => Chunk::Extension(size),
        (Chunk::SizeEnd(0), b'\n') => Chunk::Trailer { empty: true },
        (Chunk::SizeEnd(size), b'\n') => Chunk::Data(size),
        (Chunk::DataEnd, b'\r') => Chunk::DataLineFeed,
        (Chunk::DataLineFeed, b'\n') => Chunk::FirstDigit,
        (Chunk::Trailer { .. }, b'\n') => return None,
        (Chunk::Trailer { empty }, b'\r') => Chunk::TrailerEnd { empty },
        (Chunk::Trailer { .. }, _) => Chunk::Trailer { empty: false },
        (Chunk::TrailerEnd { empty: true }, b'\n') => return Some(At::Head),
        (Chunk::TrailerEnd { empty: false }, b'\n') => Chunk::Trailer { empty: true },
        (Chunk::Space(_) | Chunk::SizeEnd(_) | Chunk::DataEnd | Chunk::DataLineFeed | Chunk::TrailerEnd { .. }, _)
        | (Chunk::Data(_), _) => return None,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(bytes: &[u8], pieces: &[usize]) -> (Vec<Event>, u64, bool) {
        let mut scan = Scan::default();
        let mut rest = bytes;
        let mut told = Vec::new();
        let mut pieces = pieces.iter().cycle();
        while !rest.is_empty() {
            let count = pieces.next().copied().unwrap_or(rest.len()).clamp(1, rest.len());
            match scan.next(&rest[..count]) {
                Event::More => rest = &rest[count..],
                Event::Switch(count) => {
                    told.push(Event::Switch(0));
                    rest = &rest[count..];
                }
                Event::Faulty { heads, fault, .. } => {
                    told.push(Event::Faulty { count: 0, heads, fault });
                    break;
                }
                Event::TooLong { heads, .. } => {
                    told.push(Event::TooLong { count: 0, heads });
                    break;
                }
                Event::BadChunk(_) => {
                    told.push(Event::BadChunk(0));
                    break;
                }
            }
        }
        (told, scan.heads, scan.in_head())
    }

    fn faulty(heads: u64, fault: Fault) -> Vec<Event> {
        vec![Event::Faulty { count: 0, heads, fault }]
    }

    fn rows() -> Vec<(String, Vec<Event>, u64, bool)> {
        let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let post = "POST / HTTP/1.1\r\nhost: a\r\n";
        let long = "a".repeat(LONGEST_REQUEST_LINE);
        vec![
            (format!("{get}{get}"), vec![], 2, false),
            (format!("\r\n{get}GET"), vec![], 1, true),
            (
                format!("{post}Content-Length: 28\r\n\r\nGET /smuggled HTTP/1.1\nx: y\n\n{get}"),
                faulty(2, Fault::BareLineFeed),
                2,
                false,
            ),
            (format!("{post}content-length:  5 \r\n\r\nGET /{get}"), vec![], 2, false),
            (
                format!(
                    "{post}Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\nA ;x=y\r\n0123456789\r\n0\r\nt: u\r\n\r\n{get}"
                ),
                vec![],
                2,
                false,
            ),
            (format!("{post}transfer-encoding: chunked\r\n\r\n0\r\n\n"), vec![Event::BadChunk(0)], 1, false),
            (format!("{post}transfer-encoding: chunked\r\n\r\n0x5\r\n"), vec![Event::BadChunk(0)], 1, false),
            (format!("{post}transfer-encoding: chunked\r\n\r\n5\n"), vec![Event::BadChunk(0)], 1, false),
            (format!("{post}transfer-encoding: chunked\r\n\r\n5;a\n"), vec![Event::BadChunk(0)], 1, false),
            (
                format!("{post}transfer-encoding: chunked\r\n\r\n11111111111111111\r\n"),
                vec![Event::BadChunk(0)],
                1,
                false,
            ),
            (format!("{post}transfer-encoding: chunked\r\n\r\n1\r\nab"), vec![Event::BadChunk(0)], 1, false),
            (
                format!("{get}{post}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"),
                faulty(2, Fault::Framing),
                2,
                false,
            ),
            (
                format!("{post}transfer-encoding: chunked\r\nx: y\r\ncontent-length: 5\r\n\r\n"),
                faulty(1, Fault::Framing),
                1,
                false,
            ),
            (format!("{post}content-length: 5\r\ncontent-length: 5\r\n\r\n"), faulty(1, Fault::Framing), 1, false),
            (format!("{post}content-length: 5, 5\r\n\r\n"), faulty(1, Fault::Framing), 1, false),
            (format!("{post}content-length: +5\r\n\r\n"), faulty(1, Fault::Framing), 1, false),
            (format!("{post}content-length:{}5\r\n\r\n", " ".repeat(80)), faulty(1, Fault::Framing), 1, false),
            (format!("{post}content-length: 99999999999999999999\r\n\r\n"), faulty(1, Fault::Framing), 1, false),
            (format!("{post}transfer-encoding: gzip, chunked\r\n\r\n"), faulty(1, Fault::TransferCoding), 1, false),
            (
                format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"),
                faulty(1, Fault::Framing),
                1,
                false,
            ),
            (format!("{post}transfer-encoding: \x0bchunked\r\n\r\n"), faulty(1, Fault::TransferCoding), 1, false),
            (format!("{post}x: y\r\n z\r\n\r\n"), faulty(1, Fault::FoldedLine), 1, false),
            (get.replace("\r\n", "\n"), faulty(1, Fault::BareLineFeed), 1, false),
            (format!("{post}x: y\n\r\n"), faulty(1, Fault::BareLineFeed), 1, false),
            (format!("{post}x: y\r\n\n"), faulty(1, Fault::BareLineFeed), 1, false),
            (format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"), vec![Event::TooLong { count: 0, heads: 1 }], 0, false),
            (format!("{post}upgrade: websocket\r\n\r\n{get}"), vec![Event::Switch(0)], 2, false),
            (format!("{post}{}: 5\r\nx: {long}\r\n\r\n", "content-lengthy"), vec![], 1, false),
        ]
    }

    #[test]
    fn every_fault_is_found_wherever_reads_are_cut() {
        for (bytes, expected, heads, in_head) in rows() {
            let shown = &bytes[..bytes.len().min(200)];
            for pieces in [&[][..], &[1], &[2], &[7], &[63], &[64, 1], &[100, 3]] {
                let (told, counted, open) = events(bytes.as_bytes(), pieces);
                assert_eq!((&told, counted), (&expected, heads), "{shown:?} in {pieces:?}");
                let ended = !matches!(told.last(), None | Some(Event::Switch(_)));
                assert!(ended || open == in_head, "{shown:?} in {pieces:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_found_does_not_depend_on_how_reads_are_cut(
            bytes in proptest::collection::vec(
                prop_oneof![
                    Just("POST / HTTP/1.1\r\n"), Just("content-length: 3\r\n"), Just("transfer-encoding: chunked\r\n"),
                    Just("\r\n"), Just("\n"), Just("abc"), Just("3\r\n"), Just("0\r\n"), Just("x: y\r\n"), Just(" "),
                    Just("upgrade: x\r\n"), Just("\r"), Just(";"), Just("Host: a"),
                ],
                0..24,
            ),
            pieces in proptest::collection::vec(1_usize..40, 1..6),
        ) {
            let bytes = bytes.concat();
            prop_assert_eq!(events(bytes.as_bytes(), &[]), events(bytes.as_bytes(), &pieces));
        }
    }
}
