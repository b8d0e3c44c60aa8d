//! The kubelet's checks of the application, which the sidecar performs in its place.
//!
//! The kubelet has no identity in the mesh, so the injector turns its checks to `/probe/<key>` on the admin port. Here
//! each is done as the kubelet does it (requests, redirects, what counts as success), on the very address that it came
//! to: an application that listens on loopback alone fails as it would without a sidecar.
//!
//! What was not declared when the pod was made cannot be asked for, the address cannot be chosen, and nothing that the
//! application answers is passed on but its status: the port is open to the pod's network.
mod grpc;
mod http;
mod tls;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::http::{HeaderValue, StatusCode};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use weft_api::probe::{Action, Probe, Probes};

/// How long a check without a time limit of its own may take: a lifecycle handler, which the kubelet ends.
const LONGEST: Duration = Duration::from_secs(3600);

/// The checks of this pod.
#[derive(Debug)]
pub struct Prober {
    declared: Probes,
    own_ports: [u16; 3],
    mark: Option<u32>,
    /// How each went last, so that the log tells of changes.
    last: Mutex<HashMap<String, bool>>,
}

/// Why a check failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// In words.
    pub reason: String,
    /// The application's own status, where it answered with one.
    pub status: Option<StatusCode>,
}

impl Failure {
    fn new(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), status: None }
    }
}

/// A check that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'p> {
    key: &'p str,
    probe: &'p Probe,
}

impl Asked<'_> {
    /// How long it may take.
    pub fn timeout(&self) -> Duration {
        self.probe.timeout_seconds.map_or(LONGEST, |seconds| Duration::from_secs(seconds.into()))
    }

    /// Whether it is a lifecycle handler. The kubelet takes any answer to one for success.
    pub fn is_handler(&self) -> bool {
        self.probe.timeout_seconds.is_none()
    }
}

impl Prober {
    /// `own_ports` are the sidecar's, which are never asked; `mark` lets its connections pass the redirect.
    pub fn new(declared: Probes, own_ports: [u16; 3], mark: Option<u32>) -> Self {
        Self { declared, own_ports, mark, last: Mutex::default() }
    }

    /// The check under `key`, if one was declared.
    pub fn find(&self, key: &str) -> Option<Asked<'_>> {
        self.declared.get_key_value(key).map(|(key, probe)| Asked { key, probe })
    }

    /// Performs a check on `address`, which must be the pod's own. `user_agent` is how the asking kubelet names itself.
    pub async fn perform(
        &self,
        asked: Asked<'_>,
        address: IpAddr,
        user_agent: Option<&HeaderValue>,
    ) -> Result<(), Failure> {
        let attempt = async {
            match &asked.probe.action {
                Action::HttpGet(get) => http::get(self, address, get, user_agent).await,
                Action::TcpSocket { port } => self.connect(address, *port).await.map(drop),
                Action::Grpc { port, service } => {
                    grpc::check(self.connect(address, *port).await?, address, *port, service).await
                }
            }
        };
        let timeout = asked.timeout();
        let result = match tokio::time::timeout(timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(format_args!("no answer within {} s", timeout.as_secs()))),
        };
        self.tell(asked.key, &result);
        result
    }

    /// Logs a check that went otherwise than the last time.
    fn tell(&self, key: &str, result: &Result<(), Failure>) {
        let before = self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), result.is_ok());
        // The secret of a handler's key is not for the log.
        let probe = key.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
        match result {
            Err(failure) if before != Some(false) => {
                tracing::info!(probe, reason = failure.reason, "a check of the application fails");
            }
            Ok(()) if before == Some(false) => tracing::info!(probe, "a check of the application succeeds again"),
            _ => {}
        }
    }

    async fn connect(&self, address: IpAddr, port: u16) -> Result<TcpStream, Failure> {
        if self.own_ports.contains(&port) {
            return Err(Failure::new(format_args!("port {port} is the sidecar's own")));
        }
        let address = SocketAddr::new(address, port);
        let connected = async {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(mark) = self.mark {
                SockRef::from(&socket).set_mark(mark)?;
            }
            socket.set_nodelay(true)?;
            socket.connect(address).await
        };
        connected.await.map_err(|fault: io::Error| Failure::new(format_args!("cannot connect to {address}: {fault}")))
    }
}

/// A fault of HTTP with its cause.
fn told(fault: &hyper::Error) -> String {
    std::error::Error::source(fault).map_or_else(|| fault.to_string(), |cause| format!("{fault}: {cause}"))
}

#[cfg(test)]
mod tests;
