//! The admin endpoints: /metrics, /ready and /live for everybody; /workloads, /config/errors, /config/idle-policies
//! and /api/v1/calls, which tell of the mesh, for callers on loopback that name this host as loopback (a web page cannot reach them by rebinding a name).
//!
//! Nothing here changes anything. A caller that sends its headers slower than 2 seconds is cut off.
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::calls::HOURS;
use crate::metrics;
use crate::publish::Publisher;
use crate::replicas::ask::Replicas;
use crate::replicas::count;

/// Time for a request's headers, and for the next request of a kept connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections at one time.
const CONNECTIONS: usize = 128;

/// What the endpoints show.
#[derive(Clone)]
pub struct Admin {
    /// The mesh as it is published.
    pub publisher: Arc<Publisher>,
    /// The other replicas, where there may be some.
    pub replicas: Option<Replicas>,
    /// Why the webhooks do not answer, where there are some.
    pub webhooks: Option<watch::Receiver<Option<String>>>,
    /// What is counted.
    pub registry: Arc<Registry>,
}

/// Serves on `listener` until `stop`.
pub async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) {
    let router = router(admin);
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("this semaphore is never closed");
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, remote)) = accepted else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let router = router.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(Remote(remote));
            let mut router = router.clone();
            async move { Ok::<_, Infallible>(router.call(request).await.unwrap_or_else(|never| match never {})) }
        });
        tokio::spawn(async move {
            let _permit = permit;
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(fault) = connection.await {
                tracing::debug!(%remote, %fault, "admin connection");
            }
        });
    }
}

/// Where a request comes from.
#[derive(Clone, Copy)]
struct Remote(SocketAddr);

fn router(admin: Admin) -> Router {
    let private = Router::new()
        .route("/workloads", get(workloads))
        .route("/config/errors", get(config_errors))
        .route("/config/idle-policies", get(idle_policies))
        .route("/api/v1/calls", get(judged_calls))
        .route_layer(middleware::from_fn(loopback_only));
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(show_metrics))
        .merge(private)
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> Response {
    let webhooks = || admin.webhooks.as_ref().and_then(|webhooks| webhooks.borrow().clone());
    match admin.publisher.not_ready().or_else(webhooks) {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

async fn show_metrics(State(admin): State<Admin>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (content_type, metrics::encode(&admin.registry)).into_response()
}

async fn workloads(State(admin): State<Admin>) -> Response {
    let own = admin.publisher.status();
    let Some(replicas) = admin.replicas else { return Json(own).into_response() };
    let others = replicas.reports().await.reports;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Json(count::merged(own, &others, now)).into_response()
}

async fn config_errors(State(admin): State<Admin>) -> Response {
    Json(admin.publisher.config_errors()).into_response()
}

async fn idle_policies(State(admin): State<Admin>) -> Response {
    Json(admin.publisher.idle_policies()).into_response()
}

/// What is asked of the calls.
#[derive(serde::Deserialize)]
struct CallsQuery {
    /// How far back, the present hour among them.
    #[serde(default = "all_hours")]
    hours: u32,
    /// Calls to this namespace alone.
    namespace: Option<String>,
}

fn all_hours() -> u32 {
    HOURS
}

async fn judged_calls(State(admin): State<Admin>, query: Result<Query<CallsQuery>, QueryRejection>) -> Response {
    let query = match query {
        Ok(Query(query)) if (1..=HOURS).contains(&query.hours) => query,
        _ => {
            let remedy =
                format!("write ?hours=N with N from 1 to {HOURS}, and &namespace=NAME if you want one alone\n");
            return (StatusCode::BAD_REQUEST, remedy).into_response();
        }
    };
    let mut list = match &admin.replicas {
        Some(replicas) => replicas.calls(query.hours).await,
        None => admin.publisher.judged_calls(query.hours),
    };
    if let Some(namespace) = query.namespace {
        list.calls.retain(|row| row.destination.namespace == namespace);
    }
    Json(list).into_response()
}

async fn loopback_only(request: Request, next: Next) -> Response {
    let from_here =
        request.extensions().get::<Remote>().is_some_and(|Remote(remote)| remote.ip().to_canonical().is_loopback());
    let names_us = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).is_some_and(is_loopback);
    if from_here && names_us {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "only from this host, by its loopback address: curl http://127.0.0.1:<port>/…\n")
            .into_response()
    }
}

/// Whether a Host header, with or without port, names loopback.
fn is_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    host == "[::1]" || name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_loopback_names_are_loopback() {
        for (host, expected) in [
            ("127.0.0.1:4291", true),
            ("127.0.0.1", true),
            ("[::1]:4291", true),
            ("[::1]", true),
            ("localhost:4291", true),
            ("localhost", true),
            ("evil.test", false),
            ("evil.test:4291", false),
            ("127.0.0.1.evil.test", false),
            ("10.0.0.1:4291", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
