//! Plain HTTP/1.1 calls, as an application makes them: it knows names and nothing of the mesh.
//!
//! Never repeats a request that may have reached the other side, so that every fault of the mesh shows.
use std::collections::HashMap;
use std::error::Error;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// After this a call has failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body as text.
    pub(crate) body: String,
}

/// Connections that wait for the next call, by authority.
#[derive(Debug, Default)]
pub(crate) struct Client {
    idle: Mutex<HashMap<String, Vec<SendRequest<Empty<Bytes>>>>>,
}

impl Client {
    /// Calls `path` of `authority` (`name`, `name:port` or `address:port`; port 80 unless given).
    ///
    /// # Errors
    /// Without a complete answer within 5 s: why.
    pub(crate) async fn call(&self, method: Method, authority: &str, path: &str) -> Result<Answer, String> {
        let call = Box::pin(self.exchange(method, authority, path));
        tokio::time::timeout(TIMEOUT, call).await.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
    }

    async fn exchange(&self, method: Method, authority: &str, path: &str) -> Result<Answer, String> {
        let request = Request::builder().method(method).uri(path).header(header::HOST, authority);
        let mut request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        loop {
            let kept = self.take(authority);
            let fresh = kept.is_none();
            let mut connection = match kept {
                Some(connection) => connection,
                None => connect(authority).await?,
            };
            let response = match connection.try_send_request(request).await {
                Ok(response) => response,
                // A kept connection may have been closed meanwhile: what was not sent goes to the next.
                Err(mut refused) => match refused.take_message() {
                    Some(unsent) if !fresh => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(with_causes(&refused.into_error())),
                },
            };
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.map_err(|error| with_causes(&error))?.to_bytes();
            self.keep(authority, connection);
            return Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() });
        }
    }

    fn take(&self, authority: &str) -> Option<SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let waiting = idle.get_mut(authority)?;
        std::iter::from_fn(|| waiting.pop()).find(|connection| connection.is_ready())
    }

    fn keep(&self, authority: &str, connection: SendRequest<Empty<Bytes>>) {
        if !connection.is_closed() {
            let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            idle.entry(authority.to_owned()).or_default().push(connection);
        }
    }
}

async fn connect(authority: &str) -> Result<SendRequest<Empty<Bytes>>, String> {
    let failed = |error: std::io::Error| format!("connect to {authority}: {error}");
    let stream = match authority.rsplit_once(':') {
        Some(_) => TcpStream::connect(authority).await,
        None => TcpStream::connect((authority, 80)).await,
    };
    let stream = stream.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| with_causes(&error))?;
    tokio::spawn(connection);
    Ok(sender)
}

fn with_causes(error: &hyper::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
