//! Tells HTTP/1, HTTP/2 and TLS from other bytes by looking at the first ones, which are kept and replayed.
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hashbrown::HashSet;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What a byte stream was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// An HTTP/1 request line begins.
    Http1,
    /// The HTTP/2 preface (RFC 9113 section 3.4).
    Http2,
    /// Anything else.
    Opaque,
}

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest method token that still counts as HTTP; longer first words are opaque.
const LONGEST_METHOD: usize = 24;
/// A request line that is longer than this is left to the HTTP parser to refuse.
const MOST_BYTES: usize = 16 * 1024;

/// Judges the first bytes; `None`: more are needed.
///
/// HTTP/1 is a word of letters and `-`, and a line that ends in a word which begins with `HTTP/`. Whether the request is
/// a good one is not asked here.
pub fn judge(bytes: &[u8]) -> Option<Detected> {
    let compared = bytes.len().min(H2_PREFACE.len());
    if bytes[..compared] == H2_PREFACE[..compared] {
        return (compared == H2_PREFACE.len()).then_some(Detected::Http2);
    }
    let method = bytes.iter().take_while(|b| b.is_ascii_alphabetic() || **b == b'-').count();
    if method > LONGEST_METHOD || method == 0 {
        return Some(Detected::Opaque);
    }
    match bytes.get(method) {
        // Methods are upper-case (RFC 9110 section 9.1): other words are not worth waiting for.
        None if bytes.iter().any(u8::is_ascii_lowercase) => return Some(Detected::Opaque),
        None => return None,
        Some(b' ') => {}
        Some(_) => return Some(Detected::Opaque),
    }
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    match line.rsplit(|b| *b == b' ').next() {
        Some(version) if version.starts_with(b"HTTP/") => Some(Detected::Http1),
        _ => Some(Detected::Opaque),
    }
}

/// Reads until the stream can be judged; an early end of stream decides for `Opaque`. Cancel-safe: what was read is in
/// `seen`.
///
/// `stall`: a caller whose first bytes may or may not begin HTTP, and who then waits, is taken for `Opaque` after this
/// time, since it may be waiting for an answer. `None`: it is waited for.
pub async fn first_bytes<S: AsyncRead + Unpin>(
    stream: &mut S,
    seen: &mut BytesMut,
    stall: Option<Duration>,
) -> io::Result<Detected> {
    loop {
        if !seen.is_empty()
            && let Some(detected) = judge(seen)
        {
            return Ok(detected);
        }
        if seen.len() >= MOST_BYTES {
            return Ok(Detected::Http1);
        }
        let read = match stall.filter(|_| !seen.is_empty()) {
            None => stream.read_buf(seen).await,
            Some(stall) => match tokio::time::timeout(stall, stream.read_buf(seen)).await {
                Ok(read) => read,
                Err(_) => return Ok(Detected::Opaque),
            },
        };
        if read? == 0 {
            return Ok(Detected::Opaque);
        }
    }
}

/// Reads until it is clear whether HTTP/2 begins; all that is not its preface is HTTP/1's, to be served or refused. For
/// streams that are known to be HTTP. Cancel-safe: what was read is in `seen`.
pub async fn http_version<S: AsyncRead + Unpin>(stream: &mut S, seen: &mut BytesMut) -> io::Result<Detected> {
    loop {
        let compared = seen.len().min(H2_PREFACE.len());
        if seen[..compared] != H2_PREFACE[..compared] {
            return Ok(Detected::Http1);
        }
        if compared == H2_PREFACE.len() {
            return Ok(Detected::Http2);
        }
        if stream.read_buf(seen).await? == 0 {
            return Ok(Detected::Http1);
        }
    }
}

/// How long is waited for the rest of what may be a request line, where bytes would be let pass too.
pub const STALL: Duration = Duration::from_millis(50);

/// Destinations whose server spoke first when one was last called: the caller's first bytes are not waited for there.
#[derive(Debug, Default)]
pub struct ServerFirst {
    known: RefCell<HashSet<SocketAddr>>,
}

/// Of destinations that are remembered.
const MOST_KNOWN: usize = 1024;

impl ServerFirst {
    /// Whether the server is likely to speak first.
    pub fn contains(&self, destination: SocketAddr) -> bool {
        self.known.borrow().contains(&destination)
    }
    /// It did.
    pub fn remember(&self, destination: SocketAddr) {
        let mut known = self.known.borrow_mut();
        if known.len() < MOST_KNOWN {
            known.insert(destination);
        }
    }
    /// It did not.
    pub fn forget(&self, destination: SocketAddr) {
        self.known.borrow_mut().remove(&destination);
    }
}

/// A stream whose first bytes were already read.
#[derive(Debug)]
pub struct Rewound<S> {
    seen: Bytes,
    inner: S,
}

impl<S> Rewound<S> {
    /// `seen` is read again before `inner`.
    pub fn new(seen: BytesMut, inner: S) -> Self {
        Self { seen: seen.freeze(), inner }
    }
    /// With bytes that are read again before all else.
    pub fn unread(self, bytes: &[u8]) -> Self {
        Self { seen: [bytes, &self.seen].concat().into(), inner: self.inner }
    }
    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
    /// Takes it apart: bytes not yet read again, and the stream.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.seen, self.inner)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let count = self.seen.len().min(buf.remaining());
        buf.put_slice(&self.seen[..count]);
        self.seen.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol_or_ask_for_more() {
        let rows: &[(&[u8], Option<Detected>)] = &[
            (b"GET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"get /x HTTP/1.0\n", Some(Detected::Http1)),
            (b"M-SEARCH * HTTP/1.1\r\nHost: a", Some(Detected::Http1)),
            (b"GET / HTTP/2.0\r\n", Some(Detected::Http1)),
            (b"GET /", None),
            (b"PRI * HT", None),
            (H2_PREFACE, Some(Detected::Http2)),
            (b"PRI * HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"\x16\x03\x01\x00\xa5", Some(Detected::Opaque)),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Detected::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Detected::Opaque)),
            (b"EHLO mail\r\n", Some(Detected::Opaque)),
            (b"PING\r\n", Some(Detected::Opaque)),
            (b"SSH-2.0-OpenSSH\r\n", Some(Detected::Opaque)),
            (b"ping", Some(Detected::Opaque)),
            (b"PING", None),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", Some(Detected::Opaque)),
        ];
        for (bytes, expected) in rows {
            assert_eq!(judge(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn a_rewound_stream_gives_every_byte_once() {
        let (mut client, mut server) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HTTP/1.1\r\n\r\n").await.expect("duplex is open");
        drop(client);
        let mut seen = BytesMut::new();
        assert_eq!(first_bytes(&mut server, &mut seen, None).await.expect("readable"), Detected::Http1);
        let mut all = Vec::new();
        Rewound::new(seen, server).read_to_end(&mut all).await.expect("readable");
        assert_eq!(all, b"GET / HTTP/1.1\r\n\r\n");
    }

    #[tokio::test]
    async fn of_what_is_known_to_be_http_the_preface_alone_is_http2() {
        let rows: &[(&[&[u8]], Detected)] = &[
            (&[b"GET / HTTP/1.1\r\n"], Detected::Http1),
            (&[b"P", b"OST / HTTP/1.1\r\n"], Detected::Http1),
            (&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"], Detected::Http2),
            (&[b"PRI * HTTP/2.0\r\n", b"\r\nSM\r\n\r\n"], Detected::Http2),
            (&[b"PRI * HTTP/2.0\r\n"], Detected::Http1),
            (&[b"\x16\x03\x01"], Detected::Http1),
            (&[], Detected::Http1),
        ];
        for (pieces, expected) in rows {
            let (mut client, mut server) = tokio::io::duplex(64);
            let say = async move {
                for piece in *pieces {
                    tokio::io::AsyncWriteExt::write_all(&mut client, piece).await.expect("duplex is open");
                    tokio::task::yield_now().await;
                }
            };
            let mut seen = BytesMut::new();
            let ((), version) = tokio::join!(say, http_version(&mut server, &mut seen));
            assert_eq!(version.expect("readable"), *expected, "{pieces:?}");
            assert!(pieces.concat().starts_with(&seen), "what was read is kept: {seen:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_waits_after_a_word_is_not_held_up() {
        let (mut client, mut server) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"PING").await.expect("duplex is open");
        let mut seen = BytesMut::new();
        assert_eq!(first_bytes(&mut server, &mut seen, Some(STALL)).await.expect("readable"), Detected::Opaque);
        assert_eq!(&seen[..], b"PING");
        let endless = tokio::time::timeout(Duration::from_secs(3600), first_bytes(&mut server, &mut seen, None)).await;
        assert!(endless.is_err(), "without a stall it is waited for");
    }
}
