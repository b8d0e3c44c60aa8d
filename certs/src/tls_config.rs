//! rustls configurations: TLS 1.3 only, X25519MLKEM768 before X25519, no resumption, no early data.
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, ServerName};

use crate::{Peer, PrivateKey, SpiffeId, TrustBundle, VerifyError};

/// An X.509-SVID with its key and the bundle that judges its peers: all that a TLS configuration needs.
pub struct Svid {}

impl Svid {
    /// Puts together what the authority returned; verifies that the leaf is valid under `bundle` and belongs to `key`.
    pub fn new(_chain: Vec<CertificateDer<'static>>, _key: &PrivateKey, _bundle: TrustBundle, _now: SystemTime) -> Result<Self, VerifyError> {
        todo!()
    }
    /// Whose identity this is.
    pub fn id(&self) -> &SpiffeId {
        todo!()
    }
    /// Start of validity.
    pub fn not_before(&self) -> SystemTime {
        todo!()
    }
    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        todo!()
    }
    /// The bundle that judges peers.
    pub fn bundle(&self) -> &TrustBundle {
        todo!()
    }
    /// SHA-256 of the leaf's DER.
    pub fn fingerprint(&self) -> [u8; 32] {
        todo!()
    }
}

/// Whether a server demands a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without one the handshake fails.
    Required,
    /// A presented one is judged all the same; see `peer_of`.
    Optional,
}

/// Which identities a client accepts from the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ExpectedServer {
    /// One of these, exactly.
    OneOf(Arc<[SpiffeId]>),
}

/// A server configuration that presents `svid`.
pub fn server_config(_svid: &Svid, _client_auth: ClientAuth, _alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
    todo!()
}

/// A client configuration that presents `svid` (none: anonymous) and accepts servers of `bundle` that are `expected`.
pub fn client_config(_svid: Option<&Svid>, _bundle: &TrustBundle, _expected: ExpectedServer, _alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    todo!()
}

/// The name given to rustls for a connection; it is not sent (SNI is off) and not judged (the SPIFFE ID is).
pub fn server_name() -> ServerName<'static> {
    todo!()
}

/// The peer of a finished handshake (`None`: it presented no certificate). The chain was verified in the handshake; this
/// reads its identity and expiry.
pub fn peer_of(_connection: &rustls::CommonState) -> Option<Peer> {
    todo!()
}
