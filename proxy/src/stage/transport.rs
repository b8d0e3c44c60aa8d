//! The one stream type of the data path: TCP or TLS over it, with first bytes that may have been read already.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::detect::Rewound;
use super::socket::Socket;

/// A connection, whatever protects it.
pub enum Transport {
    /// Plain TCP, inside the pod or to a peer outside the mesh.
    Plain(TcpStream),
    /// mTLS, we are the server.
    Server(Box<tokio_rustls::server::TlsStream<Socket>>),
    /// mTLS, we are the client.
    Client(Box<tokio_rustls::client::TlsStream<Socket>>),
}

/// A [`Transport`] whose first bytes may have been looked at.
pub type Stream = Rewound<Transport>;

impl Transport {
    /// The TCP connection below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Server(stream) => stream.get_ref().0.tcp(),
            Self::Client(stream) => stream.get_ref().0.tcp(),
        }
    }

    /// Makes its end a reset, so that the other side cannot take what it got for complete.
    pub fn reset(self) {
        super::accept::reset_ref(self.tcp());
    }

    /// With `seen` to be read before anything else.
    pub fn rewind(self, seen: BytesMut) -> Stream {
        Rewound::new(seen, self)
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Transport::Plain($stream) => $call,
            Transport::Server($stream) => $call,
            Transport::Client($stream) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Server(stream) => stream.is_write_vectored(),
            Self::Client(stream) => stream.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
