//! The gRPC health protocol (grpc.health.v1), as far as a probe asks: `Check` answers SERVING.
use std::convert::Infallible;
use std::net::Ipv6Addr;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::StreamBody;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::PORT;

/// The only method that there is.
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// One message without compression: field 1 (status) is 1 (SERVING).
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x01];
const OK: HeaderValue = HeaderValue::from_static("0");
const UNIMPLEMENTED: HeaderValue = HeaderValue::from_static("12");

/// Serves until it is told to stop.
pub(super) async fn serve() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await?;
    println!("health listens on port {PORT}");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => return Ok(()),
        };
        let (stream, _) = accepted?;
        let service = service_fn(async |request| Ok::<_, Infallible>(answer(&request)));
        let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection);
    }
}

fn answer(request: &Request<Incoming>) -> Response<impl Body<Data = Bytes, Error = Infallible> + use<>> {
    let is_check = request.uri().path() == CHECK;
    let message = is_check.then(|| Frame::data(Bytes::from_static(SERVING)));
    let status = if is_check { OK } else { UNIMPLEMENTED };
    let trailers = Frame::trailers(HeaderMap::from_iter([(header::HeaderName::from_static("grpc-status"), status)]));
    let mut response = Response::new(StreamBody::new(stream::iter(message.into_iter().chain([trailers]).map(Ok))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
