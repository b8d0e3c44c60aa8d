//! The frames of a `weft/tcp` connection, on which one byte stream follows another. Pure: bytes in, frames out.
//!
//! ```text
//! type u8 │ length u24, big-endian │ payload
//! 1 OPEN    4            version u8 = 1, flags u8, port u16: a stream begins; from the client only
//! 2 DATA    1 to 65,532  bytes of the stream
//! 3 END     0            this direction has no more bytes (half-close)
//! 4 RESET   0            this direction is broken off, and so is the stream
//! ```
//! Each direction of a stream ends with exactly one END or RESET. When both have, the connection may carry the next stream.
//! What is not written above has no reading: the connection ends.
use std::io;

/// Of this protocol. Another one is refused.
pub const VERSION: u8 = 1;
/// Bytes before a frame's payload.
pub const HEADER: usize = 4;
/// Most bytes in one DATA frame: with its header it fills four TLS records.
pub const MOST_DATA: usize = 64 * 1024 - HEADER;
/// Longest of the frames that are not DATA.
pub const LONGEST_CONTROL: usize = HEADER + OPEN_PAYLOAD;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const RESET: u8 = 4;
const OPEN_PAYLOAD: usize = 4;
const UNDECIDED: u8 = 1;

/// What begins a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Where the stream goes: the port that the connection itself was made to.
    pub port: u16,
    /// The client has not spoken yet. Until it does, it may take the stream back with RESET, and nothing has happened.
    pub undecided: bool,
}

/// One frame, of DATA the header only: its payload is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A stream begins.
    Open(Open),
    /// So many bytes of the stream follow.
    Data(usize),
    /// No more bytes this way.
    End,
    /// Broken off.
    Reset,
}

/// Why what a peer sent is not of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such type.
    #[error("frame type {0} is unknown")]
    Type(u8),
    /// A length that its type does not have.
    #[error("a frame of type {kind} cannot be {length} bytes long")]
    Length {
        /// Its type.
        kind: u8,
        /// Its length.
        length: usize,
    },
    /// Spoken by a newer sidecar.
    #[error("version {0} of the frame protocol is not spoken here; upgrade this sidecar")]
    Version(u8),
    /// Flags that nobody has defined.
    #[error("flags {0:#04x} of an OPEN frame are unknown")]
    Flags(u8),
    /// A stream for another port than the connection's.
    #[error("a stream to port {asked} on a connection to port {port}")]
    Port {
        /// What the peer asked for.
        asked: u16,
        /// What it connected to.
        port: u16,
    },
    /// A frame where it means nothing.
    #[error("an unexpected frame: {0:?}")]
    Unexpected(Frame),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Writes `frame` (of DATA the header) to the beginning of `out`; returns how many bytes it took.
pub fn encode(frame: Frame, out: &mut [u8; LONGEST_CONTROL]) -> usize {
    let (kind, length) = match frame {
        Frame::Open(_) => (OPEN, OPEN_PAYLOAD),
        Frame::Data(length) => (DATA, length),
        Frame::End => (END, 0),
        Frame::Reset => (RESET, 0),
    };
    debug_assert!(length <= MOST_DATA);
    // The lower three bytes are the length.
    out[..HEADER].copy_from_slice(&(length as u32).to_be_bytes());
    out[0] = kind;
    let Frame::Open(Open { port, undecided }) = frame else { return HEADER };
    out[HEADER] = VERSION;
    out[HEADER + 1] = if undecided { UNDECIDED } else { 0 };
    out[HEADER + 2..].copy_from_slice(&port.to_be_bytes());
    LONGEST_CONTROL
}

/// Reads frames from pieces of any size. Holds no more than one header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decoder {
    held: [u8; LONGEST_CONTROL],
    have: u8,
}

impl Decoder {
    /// Bytes that are missing to the end of the header, or of a frame without data. Never 0.
    pub fn wanted(&self) -> usize {
        let whole = if self.held[0] == OPEN && self.have() >= HEADER { LONGEST_CONTROL } else { HEADER };
        whole - self.have()
    }

    /// Whether it stands between two frames.
    pub fn is_between(&self) -> bool {
        self.have == 0
    }

    /// Takes at most [`Self::wanted`] bytes. Returns the frame that they complete; the payload of DATA is the caller's to
    /// read.
    ///
    /// # Errors
    /// The frame has no reading. What follows it has none either.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        let from = self.have();
        self.held[from..from + bytes.len()].copy_from_slice(bytes);
        self.have += bytes.len() as u8;
        if self.have() < HEADER {
            return Ok(None);
        }
        let [kind, high, middle, low] = self.held[..HEADER] else { return Ok(None) };
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let frame = match (kind, length) {
            (OPEN, OPEN_PAYLOAD) if self.have() < LONGEST_CONTROL => return Ok(None),
            (OPEN, OPEN_PAYLOAD) => Frame::Open(self.open()?),
            (DATA, 1..=MOST_DATA) => Frame::Data(length),
            (END, 0) => Frame::End,
            (RESET, 0) => Frame::Reset,
            (OPEN..=RESET, _) => return Err(FrameError::Length { kind, length }),
            _ => return Err(FrameError::Type(kind)),
        };
        *self = Self::default();
        Ok(Some(frame))
    }

    fn open(&self) -> Result<Open, FrameError> {
        let [version, flags, high, low] = self.held[HEADER..] else { unreachable!("the payload of OPEN is 4 bytes") };
        match (version, flags) {
            (VERSION, 0 | UNDECIDED) => {
                Ok(Open { port: u16::from_be_bytes([high, low]), undecided: flags == UNDECIDED })
            }
            (VERSION, _) => Err(FrameError::Flags(flags)),
            _ => Err(FrameError::Version(version)),
        }
    }

    fn have(&self) -> usize {
        usize::from(self.have)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(frame: Frame, payload: &[u8]) -> Vec<u8> {
        let mut head = [0; LONGEST_CONTROL];
        let length = encode(frame, &mut head);
        [&head[..length], payload].concat()
    }

    /// Frames with their payload, and how it ended.
    type Decoded = (Vec<(Frame, Vec<u8>)>, Result<(), FrameError>);

    /// Reads a text that is fed in pieces of the given sizes, in turn.
    fn decode(mut text: &[u8], pieces: &[usize]) -> Decoded {
        let (mut decoder, mut found, mut sizes) = (Decoder::default(), Vec::new(), pieces.iter().cycle());
        while !text.is_empty() {
            let size = *sizes.next().expect("sizes never end");
            let wanted = decoder.wanted();
            assert!(wanted > 0 && wanted <= LONGEST_CONTROL);
            let (piece, rest) = text.split_at(size.min(wanted).min(text.len()));
            text = rest;
            match decoder.take(piece) {
                Err(error) => return (found, Err(error)),
                Ok(None) => {}
                Ok(Some(frame)) => {
                    let payload = if let Frame::Data(length) = frame { length.min(text.len()) } else { 0 };
                    let (payload, rest) = text.split_at(payload);
                    text = rest;
                    found.push((frame, payload.to_vec()));
                }
            }
        }
        (found, Ok(()))
    }

    #[test]
    fn frames_look_as_documented() {
        let open = Open { port: 0x1f90, undecided: false };
        for (frame, expected) in [
            (Frame::Open(open), &[1, 0, 0, 4, 1, 0, 0x1f, 0x90][..]),
            (Frame::Open(Open { undecided: true, ..open }), &[1, 0, 0, 4, 1, 1, 0x1f, 0x90]),
            (Frame::Data(0xff03), &[2, 0, 0xff, 3]),
            (Frame::End, &[3, 0, 0, 0]),
            (Frame::Reset, &[4, 0, 0, 0]),
        ] {
            assert_eq!(encoded(frame, &[]), expected, "{frame:?}");
        }
    }

    #[test]
    fn what_is_not_documented_has_no_reading() {
        for (bytes, expected) in [
            (&[0, 0, 0, 0][..], FrameError::Type(0)),
            (&[5, 0, 0, 0], FrameError::Type(5)),
            (&[255, 255, 255, 255], FrameError::Type(255)),
            (b"GET / HTTP/1.1\r\n", FrameError::Type(b'G')),
            (&[1, 0, 0, 3, 1, 0, 0], FrameError::Length { kind: 1, length: 3 }),
            (&[1, 0, 0, 5, 1, 0, 0, 0, 0], FrameError::Length { kind: 1, length: 5 }),
            (&[1, 0, 0, 4, 2, 0, 0, 80], FrameError::Version(2)),
            (&[1, 0, 0, 4, 0, 0, 0, 80], FrameError::Version(0)),
            (&[1, 0, 0, 4, 1, 2, 0, 80], FrameError::Flags(2)),
            (&[2, 0, 0, 0], FrameError::Length { kind: 2, length: 0 }),
            (&[2, 0, 0xff, 0xfd], FrameError::Length { kind: 2, length: MOST_DATA + 1 }),
            (&[2, 0xff, 0xff, 0xff], FrameError::Length { kind: 2, length: 0xff_ffff }),
            (&[3, 0, 0, 1, 0], FrameError::Length { kind: 3, length: 1 }),
            (&[4, 1, 0, 0], FrameError::Length { kind: 4, length: 0x1_0000 }),
        ] {
            assert_eq!(decode(bytes, &[1]).1, Err(expected), "{bytes:?}");
        }
    }

    #[test]
    fn a_frame_that_is_cut_short_is_not_a_frame() {
        let whole = encoded(Frame::Open(Open { port: 80, undecided: false }), &[]);
        for length in 1..whole.len() {
            let mut decoder = Decoder::default();
            for byte in &whole[..length] {
                assert_eq!(decoder.take(&[*byte]), Ok(None));
            }
            assert!(!decoder.is_between());
            assert!(decoder.wanted() <= whole.len() - length);
        }
    }

    fn frame() -> impl Strategy<Value = (Frame, Vec<u8>)> {
        prop_oneof![
            (any::<u16>(), any::<bool>()).prop_map(|(port, undecided)| (Frame::Open(Open { port, undecided }), vec![])),
            prop::collection::vec(any::<u8>(), 1..300).prop_map(|bytes| (Frame::Data(bytes.len()), bytes)),
            Just((Frame::End, vec![])),
            Just((Frame::Reset, vec![])),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_whatever_the_pieces(
            frames in prop::collection::vec(frame(), 0..20),
            pieces in prop::collection::vec(1..9_usize, 1..5),
        ) {
            let text: Vec<u8> = frames.iter().flat_map(|(frame, payload)| encoded(*frame, payload)).collect();
            prop_assert_eq!(decode(&text, &pieces), (frames, Ok(())));
        }

        #[test]
        fn any_bytes_are_read_the_same_whatever_the_pieces_and_never_panic(
            text in prop::collection::vec(prop_oneof![0..6_u8, any::<u8>()], 0..200),
            pieces in prop::collection::vec(1..9_usize, 1..5),
        ) {
            prop_assert_eq!(decode(&text, &pieces), decode(&text, &[LONGEST_CONTROL]));
        }
    }
}
