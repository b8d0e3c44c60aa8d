//! Asks the admin port of a pod through the API server, as `kubectl port-forward` does.
//!
//! The request arrives in the pod on loopback and names loopback, so it sees what the admin port shows nobody else. The
//! answer is a pod's word: it is bounded in time and size.
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;

use super::client::{Cluster, explain};
use super::names::ADMIN_PORT;

/// The longest answer that is read: `/workloads` of 100,000 workloads has half of it.
const ANSWER_MAX: usize = 64 << 20;
/// Where the operator has set no limit, a pod that does not answer still holds up nobody for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pods asked at one time.
pub(super) const AT_ONCE: usize = 16;

/// What the admin port of a pod answers under `path`.
///
/// # Errors
/// What to tell an operator.
pub(super) async fn get(cluster: &Cluster, namespace: &str, pod: &str, path: &str) -> Result<String, String> {
    match tokio::time::timeout(cluster.timeout.unwrap_or(PATIENCE), ask(cluster, namespace, pod, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("port {ADMIN_PORT} of the pod did not answer in time")),
    }
}

/// The same, read as JSON.
///
/// # Errors
/// What to tell an operator.
pub(super) async fn get_json<T: DeserializeOwned>(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    path: &str,
) -> Result<T, String> {
    let text = get(cluster, namespace, pod, path).await?;
    serde_json::from_str(&text)
        .map_err(|fault| format!("its answer to {path} is not what this version expects: {fault}"))
}

async fn ask(cluster: &Cluster, namespace: &str, pod: &str, path: &str) -> Result<String, String> {
    let api = cluster.api::<Pod>(Some(namespace));
    let mut forwarder = api.portforward(pod, &[ADMIN_PORT]).await.map_err(|fault| explain(&fault))?;
    let stream = forwarder.take_stream(ADMIN_PORT).expect("the port that was asked for, taken once");
    let refused = forwarder.take_error(ADMIN_PORT).expect("the port that was asked for, taken once");
    let answer = exchange(TokioIo::new(stream), path).await;
    let answer = match answer {
        Ok(answer) => Ok(answer),
        // The kubelet's word says more than that the stream ended; it comes with the end of the stream.
        Err(fault) => match tokio::time::timeout(Duration::from_millis(500), refused).await {
            Ok(Some(word)) => Err(format!("port {ADMIN_PORT} of the pod cannot be reached: {}", word.trim())),
            _ => Err(fault),
        },
    };
    forwarder.abort();
    answer
}

async fn exchange<S>(stream: TokioIo<S>, path: &str) -> Result<String, String>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let failed = |fault: hyper::Error| format!("port {ADMIN_PORT} of the pod gave no answer: {fault}");
    let (mut sender, connection) = http1::handshake(stream).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, format!("127.0.0.1:{ADMIN_PORT}"))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("a path of ours");
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX);
    let body = body.collect().await.map_err(|fault| format!("its answer to {path} broke off: {fault}"))?.to_bytes();
    connection.abort();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::OK { Ok(text) } else { Err(format!("it answered {path} with {status}: {}", text.trim())) }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::service::service_fn;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// What is made of the answer of an admin port that answers with `status` and what it was asked.
    async fn answered(status: StatusCode) -> Result<String, String> {
        let (ours, theirs) = tokio::io::duplex(1024);
        let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
            let host = request.headers()[header::HOST].to_str().unwrap_or_default().to_owned();
            let mut response = http::Response::new(Full::new(Bytes::from(format!("{} {host}", request.uri()))));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        });
        let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
        let (answer, served) = tokio::join!(exchange(TokioIo::new(ours), "/workloads"), server);
        served.expect("a connection that ends well");
        answer
    }

    #[tokio::test]
    async fn the_admin_port_is_asked_under_a_loopback_name() {
        assert_eq!(answered(StatusCode::OK).await, Ok("/workloads 127.0.0.1:4291".to_owned()));
        let refused = answered(StatusCode::FORBIDDEN).await.expect_err("no answer");
        assert_eq!(refused, "it answered /workloads with 403 Forbidden: /workloads 127.0.0.1:4291");
    }

    #[tokio::test]
    async fn a_stream_that_ends_or_is_no_http_is_a_fault() {
        for said in ["", "220 mail.test ESMTP\r\n"] {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(said.as_bytes()).await.expect("room for it");
            drop(theirs);
            let fault = exchange(TokioIo::new(ours), "/metrics").await.expect_err("no answer");
            assert!(fault.contains("gave no answer"), "{fault}");
        }
    }
}
