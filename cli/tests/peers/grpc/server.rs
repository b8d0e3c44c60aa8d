//! `grpc.testing.TestService` by tonic.
use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::messages::*;

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, counts: Counts) -> Result<()> {
    listener.set_nonblocking(true)?;
    let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
    let server = tonic::transport::Server::builder().add_service(TestService { counts });
    Ok(server.serve_with_incoming(incoming).await?)
}

/// Counts streams of requests: those whose first message came, and those that ended before their handler was done.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<[AtomicUsize; 2]>);

impl Counts {
    pub fn begun(&self) -> usize {
        self.0[0].load(Ordering::SeqCst)
    }

    pub fn cancelled(&self) -> usize {
        self.0[1].load(Ordering::SeqCst)
    }
}

/// Counts itself as cancelled unless it was told of a good end.
struct Handling {
    counts: Counts,
    done: bool,
}

impl Handling {
    fn begun(&self) {
        self.counts.0[0].fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        if !self.done {
            self.counts.0[1].fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[derive(Clone)]
struct TestService {
    counts: Counts,
}

impl NamedService for TestService {
    const NAME: &'static str = SERVICE;
}

type Outputs = Pin<Box<dyn Stream<Item = Result<StreamingOutputResponse, Status>> + Send>>;

impl Service<http::Request<Body>> for TestService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let handling = Handling { counts: self.counts.clone(), done: false };
        Box::pin(async move {
            let asked = request.headers().clone();
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(echo(&asked, dispatch(&method, request, handling).await))
        })
    }
}

async fn dispatch(method: &str, request: http::Request<Body>, mut handling: Handling) -> http::Response<Body> {
    match method {
        "EmptyCall" => {
            let answer = service_fn(async |_: Request<Empty>| Ok(Response::new(Empty {})));
            handling.done = true;
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        "UnaryCall" => {
            handling.done = true;
            Grpc::new(ProstCodec::default()).unary(service_fn(unary), request).await
        }
        "StreamingInputCall" => {
            let mut handling = Some(handling);
            let answer = service_fn(move |request: Request<Streaming<StreamingInputRequest>>| {
                aggregate(request.into_inner(), handling.take())
            });
            Grpc::new(ProstCodec::default()).client_streaming(answer, request).await
        }
        "StreamingOutputCall" => {
            handling.done = true;
            let answer = service_fn(async |request: Request<StreamingOutputRequest>| {
                let outputs: Outputs = Box::pin(outputs(request.into_inner()));
                Ok(Response::new(outputs))
            });
            Grpc::new(ProstCodec::default()).server_streaming(answer, request).await
        }
        "FullDuplexCall" => {
            let mut handling = Some(handling);
            let answer = service_fn(move |request: Request<Streaming<StreamingOutputRequest>>| {
                full_duplex(request.into_inner(), handling.take())
            });
            Grpc::new(ProstCodec::default()).streaming(answer, request).await
        }
        _ => {
            handling.done = true;
            Status::unimplemented("").into_http()
        }
    }
}

fn wished(status: Option<EchoStatus>) -> Result<(), Status> {
    match status {
        Some(EchoStatus { code, message }) if code != 0 => Err(Status::new(Code::from_i32(code), message)),
        _ => Ok(()),
    }
}

async fn unary(request: Request<SimpleRequest>) -> Result<Response<SimpleResponse>, Status> {
    let request = request.into_inner();
    wished(request.response_status)?;
    Ok(Response::new(SimpleResponse { payload: payload(request.response_size as usize) }))
}

async fn aggregate(
    mut requests: Streaming<StreamingInputRequest>,
    mut handling: Option<Handling>,
) -> Result<Response<StreamingInputResponse>, Status> {
    let mut size = 0;
    while let Some(input) = requests.message().await? {
        if size == 0 {
            handling.iter().for_each(Handling::begun);
        }
        size += input.payload.map_or(0, |payload| payload.body.len() as i32);
    }
    handling.iter_mut().for_each(|handling| handling.done = true);
    Ok(Response::new(StreamingInputResponse { aggregated_payload_size: size }))
}

fn outputs(request: StreamingOutputRequest) -> impl Stream<Item = Result<StreamingOutputResponse, Status>> + Send {
    let first = match wished(request.response_status) {
        Ok(()) => stream::iter(None).right_stream(),
        Err(status) => stream::iter(Some(Err(status))).left_stream(),
    };
    first.chain(stream::iter(request.response_parameters).then(async |wish| {
        tokio::time::sleep(Duration::from_micros(wish.interval_us as u64)).await;
        Ok(StreamingOutputResponse { payload: payload(wish.size as usize) })
    }))
}

/// Answers once there is a first message, as most servers do.
async fn full_duplex(
    mut requests: Streaming<StreamingOutputRequest>,
    handling: Option<Handling>,
) -> Result<Response<Outputs>, Status> {
    let first = requests.message().await.transpose();
    let ended = first.is_none();
    handling.iter().for_each(Handling::begun);
    let more = stream::unfold((requests, handling, ended), |(mut requests, mut handling, ended)| async move {
        match if ended { Ok(None) } else { requests.message().await } {
            Ok(Some(request)) => Some((Ok(request), (requests, handling, false))),
            // The end of the client's messages is the only good one.
            Ok(None) => {
                handling.iter_mut().for_each(|handling| handling.done = true);
                None
            }
            Err(status) => Some((Err(status), (requests, None, true))),
        }
    });
    let outputs = stream::iter(first).chain(more).flat_map(|request| match request {
        Ok(request) => outputs(request).left_stream(),
        Err(status) => stream::iter([Err(status)]).right_stream(),
    });
    Ok(Response::new(Box::pin(outputs)))
}

/// Sends back what the cases ask for: one field before, one after the messages; and tells the deadline.
fn echo(asked: &HeaderMap, mut response: http::Response<Body>) -> http::Response<Body> {
    for (from, to) in [(ECHO_INITIAL, ECHO_INITIAL), ("grpc-timeout", SEEN_TIMEOUT)] {
        if let Some(value) = asked.get(from) {
            response.headers_mut().insert(to, value.clone());
        }
    }
    let Some(trailing): Option<HeaderValue> = asked.get(ECHO_TRAILING).cloned() else { return response };
    response.map(|body| {
        Body::new(body.map_frame(move |mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                trailers.insert(ECHO_TRAILING, trailing.clone());
            }
            frame
        }))
    })
}
