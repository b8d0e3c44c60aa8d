//! The application: the same for all peers, and so light that it is never what is measured.

use std::io;
use std::net::TcpListener as StdListener;

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::apps::accept;

/// Bytes of each answer.
pub(crate) const ANSWER: usize = 1024;
/// Bytes that begin an opaque exchange: the first says what is wanted.
pub(crate) const WISH: usize = 16;
/// Wishes for one answer, after which the server ends the connection.
pub(crate) const WISH_ONE: u8 = 0x01;
/// Wishes for bytes without end.
pub(crate) const WISH_STREAM: u8 = 0x02;

/// Answers each HTTP/1.1 request (without body) with [`ANSWER`] bytes; keeps connections unless told otherwise.
pub(crate) async fn http1(listener: StdListener) -> io::Result<()> {
    accept(listener, |stream| async move { drop(serve_http1(stream).await) }).await
}

async fn serve_http1(mut stream: TcpStream) -> io::Result<()> {
    let answer = [
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {ANSWER}\r\n\r\n").as_bytes(),
        &[b'x'; ANSWER],
    ]
    .concat();
    let mut seen = BytesMut::with_capacity(4096);
    loop {
        while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            let request = seen.split_to(end + 4);
            stream.write_all(&answer).await?;
            if request.windows(17).any(|window| window.eq_ignore_ascii_case(b"connection: close")) {
                return stream.shutdown().await;
            }
        }
        seen.reserve(2048);
        if stream.read_buf(&mut seen).await? == 0 {
            return Ok(());
        }
    }
}

/// Answers each HTTP/2 request with [`ANSWER`] bytes.
pub(crate) async fn http2(listener: StdListener) -> io::Result<()> {
    let answer = Bytes::from_static(&[b'x'; ANSWER]);
    accept(listener, |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |_: http::Request<Incoming>| {
                let answer = answer.clone();
                async move { Ok::<_, std::convert::Infallible>(Response::new(Full::new(answer))) }
            });
            let mut server = http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(1000).auto_date_header(false);
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

/// Reads a wish, then answers it.
pub(crate) async fn opaque(listener: StdListener) -> io::Result<()> {
    accept(listener, |stream| async move { drop(serve_opaque(stream).await) }).await
}

async fn serve_opaque(mut stream: TcpStream) -> io::Result<()> {
    let mut wish = [0; WISH];
    stream.read_exact(&mut wish).await?;
    if wish[0] == WISH_ONE {
        stream.write_all(&[b'x'; ANSWER]).await?;
        return stream.shutdown().await;
    }
    let piece = vec![b'x'; 256 << 10];
    loop {
        stream.write_all(&piece).await?;
    }
}
