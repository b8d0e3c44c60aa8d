//! Whether this node's plugin does its work: gathered here, told on `/ready`.
//!
//! The port says yes or no and why, to anybody who reaches it, and does nothing else.
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

/// Connections at a time.
const CONNECTIONS: usize = 16;
const CONNECTION: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_millis(100);

/// What is missing, by part.
#[derive(Clone, Debug)]
struct Missing {
    node: Option<String>,
    api: Option<String>,
}

/// Told by each part how it is doing; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Readiness(Arc<watch::Sender<Missing>>);

impl Readiness {
    /// Nothing is there yet.
    pub(super) fn starting() -> Self {
        let missing = Missing {
            node: Some("the plugin is not installed yet".into()),
            api: Some("the API server has not answered yet".into()),
        };
        Self(Arc::new(watch::Sender::new(missing)))
    }

    /// Plugin and entry are in their places, or not.
    pub(super) fn node(&self, state: Result<(), String>) {
        self.0.send_modify(|missing| missing.node = state.err());
    }

    /// The API server answers, or not.
    pub(super) fn api(&self, state: Result<(), String>) {
        self.0.send_modify(|missing| missing.api = state.err());
    }

    /// Whether plugin and entry are in their places.
    pub(super) fn is_installed(&self) -> bool {
        self.0.borrow().node.is_none()
    }

    fn reasons(&self) -> Vec<String> {
        let missing = self.0.borrow();
        missing.node.iter().chain(&missing.api).cloned().collect()
    }
}

/// Serves `/ready` and `/live` on `listener`; never ends.
pub(super) async fn serve(listener: TcpListener, readiness: Readiness) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(fault) => {
                tracing::warn!(%fault, "cannot accept a probe");
                sleep(REST).await;
                continue;
            }
        };
        let readiness = readiness.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let answer = service_fn(|request| {
                let response = answer(&request, &readiness);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            // How a probe's connection ends is its own affair.
            let _ = timeout(CONNECTION, connection).await;
        });
    }
}

fn answer(request: &Request<Incoming>, readiness: &Readiness) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/live") => (StatusCode::OK, "live\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/ready") => match readiness.reasons() {
            reasons if reasons.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
            reasons => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n"))),
        },
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "there are /ready and /live\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}
