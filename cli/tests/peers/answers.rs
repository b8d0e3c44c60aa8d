//! A server whose answers come piece by piece: trailers, server-sent events, early endings. HTTP/1.1 and HTTP/2.
use std::convert::Infallible;
use std::net::TcpListener;

use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, TRAILER};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves on `listener`:
///
/// * `/trailers`: reads the body, answers with its length, and with a trailer `x-seen` that repeats the request's `x-sum`;
/// * `/events`: an event for each number that `/next` has reached, the first at once;
/// * `/refuse`: 401 without reading the body;
/// * `/empty/STATUS`: that status with no body.
pub async fn serve(listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (next, _) = watch::channel(1_u64);
    loop {
        let (stream, _) = listener.accept().await?;
        let next = next.clone();
        let service = service_fn(move |request| answer(next.clone(), request));
        tokio::spawn(async move {
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

pub fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

async fn answer(next: watch::Sender<u64>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    if let Some(status) = path.strip_prefix("/empty/") {
        let mut response = Response::new(text(""));
        *response.status_mut() = status.parse().unwrap_or(StatusCode::BAD_REQUEST);
        return Ok(response);
    }
    match path.as_str() {
        "/trailers" => trailers(request).await,
        "/events" => {
            let events = WatchStream::new(next.subscribe());
            let events = events.map(|number| Ok(Frame::data(Bytes::from(format!("data: {number}\n\n")))));
            let mut response = Response::new(StreamBody::new(events).boxed_unsync());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            Ok(response)
        }
        "/next" => {
            next.send_modify(|number| *number += 1);
            Ok(Response::new(text("")))
        }
        "/refuse" => {
            let mut response = Response::new(text("not you\n"));
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            Ok(response)
        }
        _ => {
            let mut response = Response::new(text("no such path\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            Ok(response)
        }
    }
}

async fn trailers(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let collected = request.into_body().collect().await?;
    let sum = collected.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
    let length = collected.to_bytes().len();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-seen", sum.unwrap_or(HeaderValue::from_static("none")));
    let frames = [Frame::data(Bytes::from(format!("{length} bytes\n"))), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-seen"));
    Ok(response)
}
