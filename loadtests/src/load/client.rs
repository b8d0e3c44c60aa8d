//! One client connection of either HTTP version, opened again when it has closed.

use super::Version;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// What to ask, and whom.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) url: Uri,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) version: Version,
    pub(super) timeout: Duration,
    pub(super) address: Option<SocketAddr>,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) bytes: u64,
}

/// A connection that opens when it is needed. Over HTTP/1.1 requests take turns.
#[derive(Debug)]
pub(super) struct Connection {
    target: Target,
    open: Mutex<Option<Sender>>,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    pub(super) fn new(target: Target) -> Self {
        Self { target, open: Mutex::default() }
    }

    /// Sends the target's request and reads the whole answer. The error is a text without addresses or times, so that
    /// equal faults have equal texts.
    pub(super) async fn request(&self) -> Result<Answer, String> {
        let exchange = Box::pin(self.exchange());
        let result = tokio::time::timeout(self.target.timeout, exchange).await;
        let result = result.unwrap_or_else(|_| Err("no answer in time".into()));
        if result.is_err() && self.target.version != Version::Http2 {
            // The rest of the answer may still be on its way.
            *self.open.lock().await = None;
        }
        result
    }

    async fn exchange(&self) -> Result<Answer, String> {
        let mut open = self.open.lock().await;
        if open.as_ref().is_none_or(Sender::is_closed) {
            *open = Some(self.connect().await?);
        }
        match open.as_mut() {
            Some(Sender::Http1(sender)) => {
                sender.ready().await.map_err(text)?;
                let answer = read(sender.send_request(self.target.request()).await.map_err(text)?).await?;
                if self.target.version == Version::Http1Close {
                    *open = None;
                }
                Ok(answer)
            }
            Some(Sender::Http2(sender)) => {
                let mut sender = sender.clone();
                drop(open);
                sender.ready().await.map_err(text)?;
                read(sender.send_request(self.target.request()).await.map_err(text)?).await
            }
            None => Err("not connected".into()),
        }
    }

    async fn connect(&self) -> Result<Sender, String> {
        let failed = |error: std::io::Error| format!("connect: {error}");
        let stream = match self.target.address {
            Some(address) => TcpStream::connect(address).await,
            None => {
                let host = self.target.url.host().unwrap_or_default().trim_matches(['[', ']']);
                TcpStream::connect((host, self.target.url.port_u16().unwrap_or(80))).await
            }
        };
        let stream = stream.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let stream = TokioIo::new(stream);
        if self.target.version == Version::Http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.map_err(text)?;
            tokio::spawn(connection);
            Ok(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(stream).await.map_err(text)?;
            tokio::spawn(connection);
            Ok(Sender::Http1(sender))
        }
    }
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

impl Target {
    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        if self.version == Version::Http2 {
            *request.version_mut() = http::Version::HTTP_2;
            *request.uri_mut() = self.url.clone();
            return request;
        }
        // RFC 9112 section 3.2.1: to a server that is no proxy the target is the path alone, with a Host header.
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
        if !request.headers().contains_key(header::HOST)
            && let Some(host) =
                self.url.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        if self.version == Version::Http1Close {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        request
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, String> {
    let (status, mut body, mut bytes) = (response.status(), response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        bytes += frame.map_err(text)?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(Answer { status, bytes })
}

/// The error with its causes.
fn text(error: hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
