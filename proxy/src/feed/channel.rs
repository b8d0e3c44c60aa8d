//! The gRPC channel to the control plane: TLS 1.3, the control plane's SPIFFE ID checked, our own presented once we have
//! one.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use weft_certs::{ExpectedServer, SpiffeId, Svid, TrustBundle};

use crate::stage::connect::dial;
use crate::stage::tls;

/// For one address of the control plane to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// ALPN of gRPC (RFC 9113 section 3.2).
const ALPN_GRPC: &[u8] = b"h2";

/// Where the control plane is and how it proves itself.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// `host:port`.
    pub address: String,
    /// Its identity.
    pub id: SpiffeId,
    /// Mark of the proxy's own connections.
    pub mark: Option<u32>,
}

impl ControlPlane {
    /// Connects; `svid` (none before the first certificate) authenticates us.
    pub async fn connect(&self, svid: Option<&Svid>, bundle: &TrustBundle) -> Result<Channel, tonic::transport::Error> {
        let expected = ExpectedServer::OneOf(Arc::from([self.id.clone()]));
        let config = weft_certs::tls_config::client_config(svid, bundle, expected, &[ALPN_GRPC]);
        let (address, mark) = (self.address.clone(), self.mark);
        let connector = service_fn(move |_: Uri| {
            let (address, config) = (address.clone(), Arc::clone(&config));
            async move {
                let tcp = first_that_answers(&address, mark).await?;
                let (stream, _) = tls::originate(tcp, config).await.map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://control-plane")
            .connect_timeout(Duration::from_secs(15))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
    }
}

async fn first_that_answers(address: &str, mark: Option<u32>) -> io::Result<tokio::net::TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
    for address in addresses {
        match dial(address, mark, CONNECT_TIMEOUT).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
