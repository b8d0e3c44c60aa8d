//! Captured Ethernet frames: searching them, following TCP streams, writing them for other tools.
//!
//! Only what was captured is judged; nothing here sends. IPv4 and IPv6 without extension headers are understood, other
//! frames are kept and searched as they are.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// One Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When it was read.
    pub at: SystemTime,
    /// All of it, from the destination's hardware address on.
    pub bytes: Vec<u8>,
}

/// A TCP segment inside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Sequence number of the first byte of `payload` (of the SYN, if it is one).
    pub sequence: u32,
    /// Whether it opens a connection.
    pub syn: bool,
    /// Whether it resets a connection.
    pub reset: bool,
    /// Data, without padding.
    pub payload: &'a [u8],
}

impl Frame {
    /// The TCP segment of this frame, if it has one.
    pub fn segment(&self) -> Option<Segment<'_>> {
        let (ethernet, packet) = self.bytes.split_at_checked(14)?;
        let (source, destination, tcp) = match ethernet[12..14] {
            [0x08, 0x00] => ipv4(packet)?,
            [0x86, 0xdd] => ipv6(packet)?,
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        let flags = *tcp.get(13)?;
        Some(Segment {
            source: SocketAddr::new(source, port(0)?),
            destination: SocketAddr::new(destination, port(2)?),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            syn: flags & 0x02 != 0,
            reset: flags & 0x04 != 0,
            payload: tcp.get(header..)?,
        })
    }
}

/// RFC 791 section 3.1. A total length of 0 means a segment too large for the field: it ends with the frame.
fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let total = if total == 0 { packet.len() } else { total };
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let is_tcp = *packet.get(9)? == 6;
    is_tcp.then_some(())?;
    Some((address(12)?.into(), address(16)?.into(), packet.get(header..total)?))
}

/// RFC 8200 section 3, with TCP as the next header.
fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    let end = if length == 0 { packet.len() } else { 40 + length };
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let is_tcp = *packet.get(6)? == 6;
    is_tcp.then_some(())?;
    Some((address(8)?.into(), address(24)?.into(), packet.get(40..end)?))
}

/// One direction of a TCP connection, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// The data. More than one piece means that the capture missed data between them.
    pub pieces: Vec<Vec<u8>>,
}

/// What a capture saw, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frames(Vec<Frame>);

impl Frames {
    /// Frames in the order in which they were seen.
    pub fn new(frames: Vec<Frame>) -> Self {
        Self(frames)
    }

    /// All frames.
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.0.iter()
    }

    /// The number of frames.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The frames between two addresses, in both directions.
    pub fn between(&self, one: IpAddr, other: IpAddr) -> Self {
        let matches = |frame: &&Frame| {
            frame.segment().is_some_and(|segment| {
                let ends = (segment.source.ip(), segment.destination.ip());
                ends == (one, other) || ends == (other, one)
            })
        };
        Self(self.0.iter().filter(matches).cloned().collect())
    }

    /// Whether `needle` was on the wire: in one frame, or in a TCP stream across segments.
    pub fn contains(&self, needle: impl AsRef<[u8]>) -> bool {
        let needle = needle.as_ref();
        self.0.iter().any(|frame| find(&frame.bytes, needle))
            || self.streams().iter().flat_map(|stream| &stream.pieces).any(|piece| find(piece, needle))
    }

    /// The TCP streams: segments put in order, repeated data dropped. A SYN starts a new stream, so that a port that
    /// is used again does not mix two connections.
    pub fn streams(&self) -> Vec<Stream> {
        let mut open: BTreeMap<(SocketAddr, SocketAddr), usize> = BTreeMap::new();
        let mut found: Vec<((SocketAddr, SocketAddr), Vec<Segment<'_>>)> = Vec::new();
        for segment in self.0.iter().filter_map(Frame::segment) {
            let ends = (segment.source, segment.destination);
            let same = open.get(&ends).copied().filter(|at| !segment.syn || repeats(&found[*at].1, &segment));
            let at = same.unwrap_or_else(|| {
                found.push((ends, Vec::new()));
                found.len() - 1
            });
            open.insert(ends, at);
            found[at].1.push(segment);
        }
        let streams = found.into_iter().map(|((source, destination), segments)| Stream {
            source,
            destination,
            pieces: assemble(segments),
        });
        streams.filter(|stream| !stream.pieces.is_empty()).collect()
    }

    /// Writes a pcap file (the classic format, microseconds, link type 1: Ethernet), which Wireshark and tcpdump read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_pcap(&self, path: &Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(std::fs::File::create(path)?);
        let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1];
        for word in header {
            file.write_all(&word.to_le_bytes())?;
        }
        for frame in &self.0 {
            let at = frame.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            let length = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX);
            // Seconds are 32 bits in this format.
            for word in [at.as_secs() as u32, at.subsec_micros(), length, length] {
                file.write_all(&word.to_le_bytes())?;
            }
            file.write_all(&frame.bytes)?;
        }
        file.flush()
    }
}

/// Whether a SYN is the one that opened this stream, sent again.
fn repeats(stream: &[Segment<'_>], syn: &Segment<'_>) -> bool {
    stream.first().is_some_and(|first| first.syn && first.sequence == syn.sequence)
}

/// Puts the segments of one stream in order. Sequence numbers are compared relative to the first, modulo 2^32 (RFC 9293
/// section 3.4).
fn assemble(segments: Vec<Segment<'_>>) -> Vec<Vec<u8>> {
    let Some(first) = segments.first() else { return Vec::new() };
    let start = first.sequence.wrapping_add(u32::from(first.syn));
    // A segment from before the first, seen late, has a negative offset.
    let offset = |segment: &Segment<'_>| {
        let sequence = segment.sequence.wrapping_add(u32::from(segment.syn));
        i64::from(sequence.wrapping_sub(start).cast_signed())
    };
    let mut data: Vec<_> = segments.iter().filter(|segment| !segment.payload.is_empty()).collect();
    data.sort_by_key(|segment| offset(segment));
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut end = i64::MIN;
    for segment in data {
        let from = offset(segment);
        let known = usize::try_from(end.saturating_sub(from)).unwrap_or(0);
        if from > end {
            pieces.push(Vec::new());
        }
        let fresh = segment.payload.get(known..).unwrap_or_default();
        if let Some(piece) = pieces.last_mut() {
            piece.extend_from_slice(fresh);
        }
        end = end.max(from + segment.payload.len() as i64);
    }
    pieces
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u8 = 0x02;

    /// An IPv4 frame with padding, as short Ethernet frames have.
    fn frame(port: u16, sequence: u32, flags: u8, payload: &[u8]) -> Frame {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00, 0x45, 0]);
        bytes.extend((40 + payload.len() as u16).to_be_bytes());
        bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 77, 0, 2, 10, 77, 0, 3]);
        bytes.extend(port.to_be_bytes());
        bytes.extend(80u16.to_be_bytes());
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 5 << 4, flags, 0, 0, 0, 0, 0, 0]);
        bytes.extend(payload);
        bytes.extend([0; 6]);
        Frame { at: UNIX_EPOCH, bytes }
    }

    fn pieces(frames: Vec<Frame>) -> Vec<Vec<Vec<u8>>> {
        Frames::new(frames).streams().into_iter().map(|stream| stream.pieces).collect()
    }

    #[test]
    fn a_needle_across_segments_is_found_whatever_their_order() {
        let parts: [&[u8]; 3] = [b"the sec", b"ret is ", b"out"];
        for start in [1000, u32::MAX - 8] {
            let one = frame(4000, start.wrapping_add(1), 0, parts[0]);
            let two = frame(4000, start.wrapping_add(8), 0, parts[1]);
            let three = frame(4000, start.wrapping_add(15), 0, parts[2]);
            let syn = frame(4000, start, SYN, b"");
            for order in [
                vec![&syn, &one, &two, &three],
                vec![&syn, &three, &one, &two],
                vec![&syn, &one, &one, &two, &syn, &three, &two],
            ] {
                let frames = Frames::new(order.into_iter().cloned().collect());
                assert!(frames.contains("secret is out"), "start {start}: {:?}", frames.streams());
                assert!(!frames.contains("secrets"));
            }
        }
    }

    #[test]
    fn a_gap_is_not_bridged_and_a_reused_port_is_a_new_stream() {
        let gap = vec![frame(4000, 0, SYN, b""), frame(4000, 1, 0, b"ab"), frame(4000, 9, 0, b"cd")];
        assert_eq!(pieces(gap), [[b"ab".to_vec(), b"cd".to_vec()]]);
        let reused = vec![
            frame(4000, 0, SYN, b""),
            frame(4000, 1, 0, b"ab"),
            frame(4000, 70, SYN, b""),
            frame(4000, 71, 0, b"cd"),
        ];
        assert_eq!(pieces(reused), [[b"ab".to_vec()], [b"cd".to_vec()]]);
    }

    #[test]
    fn overlapping_data_is_taken_once_and_padding_not_at_all() {
        let frames = vec![frame(1, 5, 0, b"abcd"), frame(1, 7, 0, b"cdef"), frame(1, 6, 0, b"b")];
        assert_eq!(pieces(frames), [[b"abcdef".to_vec()]]);
    }

    #[test]
    fn cut_off_frames_are_no_segments() {
        let whole = frame(1, 5, 0, b"abcd").bytes;
        for length in 0..whole.len() - 6 {
            let frame = Frame { at: UNIX_EPOCH, bytes: whole[..length].to_vec() };
            assert_eq!(frame.segment(), None, "{length} bytes");
        }
    }

    #[test]
    fn a_pcap_file_has_its_header_and_a_record_a_frame() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let frames = Frames::new(vec![frame(1, 5, 0, b"abcd"), frame(1, 9, 0, b"")]);
        frames.write_pcap(file.path())?;
        let bytes = std::fs::read(file.path())?;
        assert_eq!(bytes[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(bytes.len(), 24 + frames.iter().map(|frame| 16 + frame.bytes.len()).sum::<usize>());
        Ok(())
    }
}
