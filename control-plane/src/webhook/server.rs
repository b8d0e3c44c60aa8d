//! The webhooks' port: POST /inject and POST /validate for API servers, GET /ready.
//!
//! Anybody in the cluster may connect, so everything is bounded: connections (in all and from one address), handshakes,
//! headers, bodies, values in a body, and time. Nothing that comes in stops the loop or the process; what cannot be
//! answered is an error to its caller alone, and the API server's failure policy decides what follows.
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use weft_api::resource::NamespacedName;

use super::admission;
use super::certificate::Serving;
use super::review::{Answer, Malformed, Review};
use crate::listener::Rest;
use crate::metrics::{Metrics, ReviewResult, Webhook};

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the headers of a connection's first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time until the next request. Longer than API servers keep an idle connection (90 s), so that they close it and no
/// request meets a closing connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for a whole request. API servers wait for 10 s unless the configuration says otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at one time.
const CONNECTIONS: usize = 256;
/// Connections at one time from one address: no pod can keep the API servers out.
const CONNECTIONS_OF_AN_ADDRESS: usize = 64;
/// API servers take objects of 3 MiB, and a review may hold two of them.
const MAX_BODY_BYTES: usize = 7 << 20;
/// Bodies above this size, or of unknown size, are read a few at a time.
const SMALL_BODY_BYTES: usize = 256 << 10;
/// Large bodies at one time.
const LARGE_BODIES: usize = 4;
/// Reviews that are being judged at one time: it takes the processor, and memory for the values.
const JUDGED: usize = 2;
/// How long what is under way may take once it is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Decides on a pod that is being created. An error: it cannot be decided now, for a reason that is not the pod's.
pub type Inject = Arc<dyn Fn(Review) -> BoxFuture<'static, Result<Answer, String>> + Send + Sync>;
/// Whether a Service is known.
pub type Services = Arc<dyn Fn(&NamespacedName) -> bool + Send + Sync>;

/// Who decides.
#[derive(Clone)]
pub struct Hooks {
    /// What /inject answers.
    pub inject: Inject,
    /// Which Services there are, for the warnings of /validate; `None`: it does not warn of those that are not there.
    pub services: Option<Services>,
    /// What is counted.
    pub metrics: Metrics,
}

/// Serves on `listener` until `stop`, with the certificate that `certificates` has at each moment; `not_ready` says why
/// calls are not answered.
pub async fn serve(
    listener: TcpListener,
    mut certificates: watch::Receiver<Option<Arc<Serving>>>,
    hooks: Hooks,
    not_ready: watch::Sender<Option<String>>,
    stop: CancellationToken,
) {
    let router = router(hooks.clone());
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let addresses = Addresses::default();
    let tasks = TaskTracker::new();
    let mut rest = Rest::new();
    loop {
        let serving = certificates.borrow_and_update().clone();
        let reason = serving.is_none().then(|| "the webhooks have no certificate yet".to_owned());
        not_ready.send_if_modified(|known| std::mem::replace(known, reason.clone()) != reason);
        let Some(serving) = serving else {
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = certificates.changed() => continue,
                else => break,
            }
        };
        let (accepted, permit) = tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = certificates.changed() => continue,
            accepted = async {
                let permit = Arc::clone(&connections).acquire_owned().await.expect("this semaphore is never closed");
                (listener.accept().await, permit)
            } => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(fault) => {
                rest.after(&fault).await;
                continue;
            }
        };
        rest.over();
        let _ = stream.set_nodelay(true);
        let Some(place) = addresses.take(remote.ip()) else {
            tracing::debug!(%remote, "too many connections to the webhooks from this address");
            continue;
        };
        let (router, acceptor, stop) = (router.clone(), TlsAcceptor::from(Arc::clone(&serving.tls)), stop.clone());
        let failures = hooks.metrics.handshake_failures.clone();
        tasks.spawn(async move {
            let _held = (permit, place);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve_connection(TokioIo::new(stream), remote, router, stop).await,
                Ok(Err(fault)) => {
                    failures.inc();
                    tracing::debug!(%remote, %fault, "TLS handshake with the webhooks failed");
                }
                Err(_) => {
                    failures.inc();
                    tracing::debug!(%remote, "TLS handshake with the webhooks took too long");
                }
            }
        });
    }
    not_ready.send_replace(Some("the webhooks are stopping".into()));
    tasks.close();
    let _ = tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await;
}

async fn serve_connection(
    stream: TokioIo<tokio_rustls::server::TlsStream<TcpStream>>,
    remote: SocketAddr,
    router: Router,
    stop: CancellationToken,
) {
    let asked = CancellationToken::new();
    let first = asked.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        first.cancel();
        let mut router = router.clone();
        async move {
            let answered = tokio::time::timeout(REQUEST_TIMEOUT, router.call(request)).await;
            Ok::<_, Infallible>(match answered {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => closing(StatusCode::REQUEST_TIMEOUT, "the request took longer than 10 s\n"),
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    let mut first_request = std::pin::pin!(tokio::time::timeout(FIRST_REQUEST_TIMEOUT, asked.cancelled()));
    let (mut waiting, mut stopping) = (true, false);
    loop {
        tokio::select! {
            done = connection.as_mut() => {
                if let Err(fault) = done {
                    tracing::debug!(%remote, %fault, "connection to the webhooks");
                }
                return;
            }
            came = first_request.as_mut(), if waiting => match came {
                Ok(()) => waiting = false,
                Err(_) => return tracing::debug!(%remote, "no request to the webhooks came in time"),
            },
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// How many connections there are from each address.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place among those of its address.
struct Place {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    fn take(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        (*count < CONNECTIONS_OF_AN_ADDRESS).then(|| {
            *count += 1;
            Place { addresses: self.clone(), address }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[derive(Clone)]
struct Shared {
    hooks: Hooks,
    large: Arc<Semaphore>,
    judged: Arc<Semaphore>,
}

fn router(hooks: Hooks) -> Router {
    let shared =
        Shared { hooks, large: Arc::new(Semaphore::new(LARGE_BODIES)), judged: Arc::new(Semaphore::new(JUDGED)) };
    Router::new()
        .route("/inject", post(inject))
        .route("/validate", post(validate))
        .route("/ready", get(|| async { "ready\n" }))
        .with_state(shared)
}

async fn inject(State(shared): State<Shared>, request: Request) -> Response {
    let answered = async {
        let body = shared.read(request).await?;
        let review = shared.judge(move || Review::parse(&body)).await?.map_err(NoAnswer::malformed)?;
        if (review.kind.group.as_str(), review.kind.kind.as_str()) != ("", "Pod") {
            let kind = &review.kind.kind;
            return Err(NoAnswer::new(StatusCode::BAD_REQUEST, format!("{kind} is no Pod; send only pods to /inject")));
        }
        let uid = review.uid.clone();
        let answer = (shared.hooks.inject)(review).await.map_err(NoAnswer::undecided)?;
        Ok((uid, answer))
    };
    shared.respond(Webhook::inject, answered.await)
}

async fn validate(State(shared): State<Shared>, request: Request) -> Response {
    let answered = async {
        let body = shared.read(request).await?;
        let services = shared.hooks.services.clone();
        let judged = shared.judge(move || {
            let review = Review::parse(&body)?;
            let answer = admission::answer(&review, services.as_deref());
            if let Answer::Refuse { message } = &answer {
                tracing::info!(
                    kind = review.kind.kind,
                    namespace = review.namespace,
                    name = review.object_name(),
                    user = review.user,
                    message,
                    "refused an object"
                );
            }
            Ok((review.uid, answer))
        });
        judged.await?.map_err(NoAnswer::malformed)
    };
    shared.respond(Webhook::validate, answered.await)
}

/// A request that gets no AdmissionReview.
struct NoAnswer {
    status: StatusCode,
    message: String,
    result: ReviewResult,
}

impl NoAnswer {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), result: ReviewResult::malformed }
    }

    fn malformed(fault: Malformed) -> Self {
        Self::new(StatusCode::BAD_REQUEST, fault.to_string())
    }

    fn undecided(fault: String) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: fault, result: ReviewResult::error }
    }
}

impl Shared {
    async fn read(&self, request: Request) -> Result<axum::body::Bytes, NoAnswer> {
        check_headers(request.headers())?;
        let announced = content_length(request.headers());
        if announced.is_some_and(|bytes| bytes > MAX_BODY_BYTES) {
            return Err(too_large());
        }
        let _permit = match announced {
            Some(bytes) if bytes <= SMALL_BODY_BYTES => None,
            _ => Some(self.large.acquire().await.expect("this semaphore is never closed")),
        };
        to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|fault| {
            let mut cause: Option<&dyn std::error::Error> = Some(&fault);
            while let Some(fault) = cause {
                if fault.is::<http_body_util::LengthLimitError>() {
                    return too_large();
                }
                cause = fault.source();
            }
            NoAnswer::new(StatusCode::BAD_REQUEST, format!("the body did not come whole: {fault}"))
        })
    }

    /// Runs `task`, which takes the processor for a while, beside the runtime.
    async fn judge<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> Result<T, NoAnswer> {
        let permit = Arc::clone(&self.judged).acquire_owned().await.expect("this semaphore is never closed");
        // The permit goes with the task, which goes on when its caller has given up.
        let judged = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            task()
        });
        judged.await.map_err(|fault| {
            tracing::error!(%fault, "a review could not be judged");
            NoAnswer::undecided("the review could not be judged; the control plane's log says why".into())
        })
    }

    fn respond(&self, webhook: Webhook, answered: Result<(String, Answer), NoAnswer>) -> Response {
        match answered {
            Ok((uid, answer)) => {
                self.hooks.metrics.reviewed(
                    webhook,
                    match answer {
                        Answer::Allow { .. } => ReviewResult::allowed,
                        Answer::Patch { .. } => ReviewResult::patched,
                        Answer::Refuse { .. } => ReviewResult::refused,
                    },
                );
                Json(answer.to_json(&uid)).into_response()
            }
            Err(NoAnswer { status, message, result }) => {
                self.hooks.metrics.reviewed(webhook, result);
                match result {
                    ReviewResult::error => tracing::warn!(?webhook, message, "a review was not answered"),
                    // Anybody can cause this as often as they like.
                    _ => tracing::debug!(?webhook, message, "no review"),
                }
                closing(status, &format!("{message}\n"))
            }
        }
    }
}

fn too_large() -> NoAnswer {
    NoAnswer::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {MAX_BODY_BYTES} bytes"))
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn check_headers(headers: &HeaderMap) -> Result<(), NoAnswer> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(NoAnswer::new(
            StatusCode::BAD_REQUEST,
            "the content type is not application/json; send an AdmissionReview as JSON",
        ));
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(NoAnswer::new(StatusCode::BAD_REQUEST, "the body is encoded; send it as it is"));
    }
    Ok(())
}

/// An answer after which the connection ends: what is left of the request is not read.
fn closing(status: StatusCode, message: &str) -> Response {
    (status, [(header::CONNECTION, "close")], Body::from(message.to_owned())).into_response()
}
