//! Asks an admin port by its address: a sidecar's or a control plane's of this host.
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Bytes of the longest answer.
const ANSWER_MAX: usize = 64 << 20;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `address` (`127.0.0.1:4291`, with or without `http://`) answers to `path`. It is asked under a loopback name, as
/// admin ports want it.
///
/// # Errors
/// What to tell an operator.
pub(super) async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let address = address.trim_start_matches("http://").trim_end_matches('/');
    match tokio::time::timeout(PATIENCE, exchange(address, path)).await {
        Ok(answer) => answer,
        Err(_) => bail!("{address} did not answer within {PATIENCE:?}"),
    }
}

async fn exchange(address: &str, path: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}; is its admin port there?"))?;
    let silent = || format!("{address} gave no answer of HTTP");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(silent)?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, address)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .with_context(|| format!("cannot ask for {path}"))?;
    let response = sender.send_request(request).await.with_context(silent)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|fault| anyhow::anyhow!("the answer of {address} broke off: {fault}"))?.to_bytes();
    connection.abort();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status != StatusCode::OK {
        bail!("{address} answered {path} with {status}: {}", crate::kubernetes::output::printable(&text));
    }
    Ok(text)
}

/// A query of `pairs`, percent-encoded.
pub(super) fn query(pairs: &[(String, String)]) -> String {
    let encoded = |text: &str| {
        text.bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect::<String>()
    };
    pairs.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect::<Vec<_>>().join("&")
}
