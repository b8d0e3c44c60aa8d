//! A client that says exactly what it is told to, over TCP or in an mTLS connection with a valid certificate.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an end is waited for that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How the sidecar is reached.
#[derive(Clone, Debug)]
pub enum Way {
    /// In plaintext, without an identity.
    Plain,
    /// With a certificate of the mesh.
    Mutual(Arc<rustls::ClientConfig>),
}

pub trait Wire: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Wire for S {}

impl Way {
    pub async fn open(&self, target: SocketAddr) -> Result<Box<dyn Wire>> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(match self {
            Self::Plain => Box::new(stream),
            Self::Mutual(config) => {
                let name = rustls::pki_types::ServerName::try_from("server.invalid")?;
                Box::new(tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
            }
        })
    }
}

/// How a request ended, as the client saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Statuses of the answers, in order; empty: none.
    pub statuses: Vec<u16>,
    /// The first answer's head and body.
    pub text: String,
    /// Of HTTP/2: codes of the RST_STREAM and GOAWAY frames that came.
    pub reset: Option<u32>,
    pub go_away: Option<u32>,
    /// Whether the connection was ended by the sidecar.
    pub closed: bool,
}

/// Writes `bytes` (the connection may end under it), then reads `answers` answers, then waits for the end if `to_end`.
pub async fn http1(way: Way, target: SocketAddr, bytes: Vec<u8>, answers: usize, to_end: bool) -> Result<Outcome> {
    let mut stream = way.open(target).await?;
    let written = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    let _ = tokio::time::timeout(PATIENCE, written).await.context("nothing took the bytes")?;
    read_http1(&mut stream, answers, to_end).await
}

pub async fn read_http1(stream: &mut (impl AsyncRead + Unpin), answers: usize, to_end: bool) -> Result<Outcome> {
    let mut read = Vec::new();
    let mut outcome = Outcome::default();
    let mut at = 0;
    let reading = async {
        loop {
            while let Some((status, length)) = answer(&read[at..]) {
                outcome.statuses.push(status);
                if at == 0 {
                    outcome.text = String::from_utf8_lossy(&read[..length]).into_owned();
                }
                at += length;
            }
            if outcome.statuses.len() >= answers && !to_end {
                return;
            }
            if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                outcome.closed = true;
                return;
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, reading).await;
    ensure!(ended.is_ok() || !outcome.statuses.is_empty(), "neither an answer nor an end within {PATIENCE:?}");
    Ok(outcome)
}

/// The status and length of a whole answer at the beginning of `bytes`; interim answers are passed over.
fn answer(bytes: &[u8]) -> Option<(u16, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let status: u16 = head.split(' ').nth(1)?.split("\r\n").next()?.parse().ok()?;
    if status == 100 {
        let (status, length) = answer(&bytes[end..])?;
        return Some((status, end + length));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    let length = end + length.unwrap_or(0);
    (bytes.len() >= length).then_some((status, length))
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// One frame (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field as a literal without indexing, plain (RFC 7541 section 6.2.2).
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        match text.len() {
            length @ 0..127 => bytes.push(length as u8),
            length => {
                bytes.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    bytes.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                bytes.push(rest as u8);
            }
        }
        bytes.extend(text);
    }
    bytes
}

/// A header block of literals.
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// A request without a body on `stream`; its block in as many frames as it takes.
pub fn headers(stream: u32, block: &[u8], flags: u8) -> Vec<u8> {
    let mut pieces = block.chunks(16_000).peekable();
    let mut bytes = Vec::new();
    let mut kind = HEADERS;
    let first = pieces.next().unwrap_or_default();
    let end = |more: bool| if more { 0 } else { END_HEADERS };
    bytes.extend(frame(kind, flags | end(pieces.peek().is_some()), stream, first));
    kind = CONTINUATION;
    while let Some(piece) = pieces.next() {
        bytes.extend(frame(kind, end(pieces.peek().is_some()), stream, piece));
    }
    bytes
}

/// What opens an HTTP/2 connection: preface and settings.
pub fn opening(settings: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    [PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()
}

/// A frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// A code in the payload, at `at`.
    pub fn code(&self, at: usize) -> u32 {
        self.payload.get(at..at + 4).map_or(u32::MAX, |code| u32::from_be_bytes([code[0], code[1], code[2], code[3]]))
    }
}

/// The next frame; `None`: the connection has ended.
pub async fn next_frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Some(Frame { kind: head[3], flags: head[4], stream, payload })
}

/// Writes `bytes`, then reads frames until stream 1 has ended, or, if `to_end`, until the connection has.
pub async fn http2(way: Way, target: SocketAddr, bytes: Vec<u8>, to_end: bool) -> Result<Outcome> {
    let stream = way.open(target).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    // Answers must be read meanwhile, or both sides would wait for each other.
    let writing = async {
        let _ = writer.write_all(&bytes).await;
        let _ = writer.flush().await;
        std::future::pending::<()>().await;
    };
    let mut outcome = Outcome::default();
    let reading = async {
        while let Some(frame) = next_frame(&mut reader).await {
            match frame.kind {
                HEADERS if frame.stream == 1 => outcome.statuses.push(status(&frame.payload)),
                RST_STREAM if frame.stream == 1 => outcome.reset = Some(frame.code(0)),
                GOAWAY => outcome.go_away = Some(frame.code(4)),
                _ => {}
            }
            let ended = matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
            if !to_end && frame.stream == 1 && (ended || frame.kind == RST_STREAM) {
                return false;
            }
        }
        true
    };
    tokio::select! {
        () = writing => {}
        closed = tokio::time::timeout(PATIENCE, reading) => {
            outcome.closed = closed.context("neither an answer nor an end of the HTTP/2 connection in time")?;
        }
    }
    Ok(outcome)
}

/// `:status`, which comes first, of a header block that is its encoder's first (RFC 7541 appendices A and B).
fn status(block: &[u8]) -> u16 {
    // Dynamic table size updates may come before.
    let block = block.iter().position(|byte| byte & 0xe0 != 0x20).map_or(block, |at| &block[at..]);
    match block {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        [_, length, text @ ..] if length & 0x80 == 0 => {
            std::str::from_utf8(&text[..usize::from(*length)]).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
        }
        [_, length, text @ ..] => digits(&text[..usize::from(length & 0x7f).min(text.len())]),
        _ => 0,
    }
}

/// Digits in Huffman's code: 0, 1 and 2 have five bits, the others six.
fn digits(coded: &[u8]) -> u16 {
    let bits: Vec<u16> =
        coded.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1))).collect();
    let value = |bits: &[u16]| bits.iter().fold(0, |value, bit| value << 1 | bit);
    let (mut at, mut number) = (0, 0);
    while let Some(five) = bits.get(at..at + 5) {
        if value(five) < 3 {
            number = number * 10 + value(five);
            at += 5;
            continue;
        }
        match bits.get(at..at + 6).map(value) {
            Some(six @ 25..=31) => number = number * 10 + six - 22,
            _ => break,
        }
        at += 6;
    }
    number
}
