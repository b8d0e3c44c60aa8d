//! An HTTP server that tells what it received.

use super::accept;
use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

/// Pieces of a streamed answer, in bytes.
const PIECE: u64 = 16 << 10;

/// What the server received, as it tells in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The name that the server was given.
    pub server: String,
    /// The client's address.
    pub peer: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// The method.
    pub method: String,
    /// The path as received, with the query.
    pub path: String,
    /// The authority of the request target, or else the `host` header.
    pub host: String,
    /// Names in lower case and values in the order of their names' first appearance; bytes that are not UTF-8 are
    /// replaced.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body.
    pub body_length: u64,
}

impl Request {
    /// The first value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Serves HTTP/1.1 and HTTP/2 (with prior knowledge) on the same port. Reads the body of each request, then answers
/// with status 200 and a [`Request`] in JSON. The path can ask for something else:
///
/// * `/bytes/N`: N bytes, streamed;
/// * `/status/N`: status N, with the usual answer;
/// * `/delay/N`: the usual answer after N milliseconds;
/// * `/close`: the usual answer, and over HTTP/1.1 the connection closes after it.
///
/// # Errors
/// The socket is not a listening one.
pub async fn http(listener: TcpListener, name: &str) -> io::Result<()> {
    let name: Arc<str> = name.into();
    let serve = |connection: tokio::net::TcpStream| {
        let name = name.clone();
        async move {
            let peer: Arc<str> = connection.peer_addr().map(|peer| peer.to_string()).unwrap_or_default().into();
            let service = service_fn(move |request| answer(name.clone(), peer.clone(), request));
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http2().max_concurrent_streams(1000);
            let _ = server.serve_connection(TokioIo::new(connection), service).await;
        }
    };
    accept(listener, serve).await
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(
    server: Arc<str>,
    peer: Arc<str>,
    request: http::Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    let (parts, mut body) = request.into_parts();
    let mut body_length = 0;
    while let Some(frame) = body.frame().await {
        body_length += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let host = parts.uri.authority().map(|authority| authority.to_string());
    let received = Request {
        server: server.to_string(),
        peer: peer.to_string(),
        version: format!("{:?}", parts.version),
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map_or("*", |path| path.as_str()).to_owned(),
        host: host.or_else(|| parts.headers.get(header::HOST).map(text)).unwrap_or_default(),
        headers: parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body_length,
    };
    let mut steps = parts.uri.path().trim_start_matches('/').split('/');
    let (wish, number) = (steps.next().unwrap_or_default(), steps.next().and_then(|step| step.parse::<u64>().ok()));
    if let ("bytes", Some(length)) = (wish, number) {
        return Ok(Response::new(stream_of(length)));
    }
    let answer = json(&received);
    let length = answer.len();
    // Over HTTP/2 hyper would send what must not follow the head.
    let bare = parts.method == http::Method::HEAD || matches!((wish, number), ("status", Some(204 | 304)));
    let mut response = Response::new(Full::new(if bare { Bytes::new() } else { answer }).boxed_unsync());
    if parts.method == http::Method::HEAD {
        response.headers_mut().insert(header::CONTENT_LENGTH, http::HeaderValue::from(length));
    }
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    match (wish, number) {
        ("status", Some(status)) => {
            let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            *response.status_mut() = status.unwrap_or(StatusCode::BAD_REQUEST);
        }
        ("delay", Some(delay)) => tokio::time::sleep(Duration::from_millis(delay)).await,
        ("close", _) if parts.version == http::Version::HTTP_11 => {
            response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
        }
        _ => {}
    }
    Ok(response)
}

fn json(received: &Request) -> Bytes {
    serde_json::to_vec(received).expect("strings and numbers are always JSON").into()
}

fn stream_of(length: u64) -> Body {
    static ZEROES: [u8; PIECE as usize] = [b'0'; PIECE as usize];
    let pieces = stream::unfold(length, |left| async move {
        let piece = left.min(PIECE);
        let data = Bytes::from_static(&ZEROES[..piece as usize]);
        (piece > 0).then(|| (Ok(Frame::data(data)), left - piece))
    });
    StreamBody::new(pieces).boxed_unsync()
}
