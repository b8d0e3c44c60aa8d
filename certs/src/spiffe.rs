//! SPIFFE IDs as types that cannot hold an invalid one (SPIFFE-ID standard, sections 2.1 to 2.4).
use std::sync::Arc;

/// A trust domain name, such as `cluster.local`: 1 to 255 bytes of `[a-z0-9.-_]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID of a workload, compared byte for byte. Always has a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    path_start: usize,
}

/// Why a string is not a SPIFFE ID or trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpiffeIdError(pub String);

impl TrustDomain {
    /// Parses a trust domain name.
    pub fn parse(_name: &str) -> Result<Self, SpiffeIdError> {
        todo!()
    }
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// Parses `spiffe://<trust-domain>/<path>`.
    pub fn parse(_uri: &str) -> Result<Self, SpiffeIdError> {
        todo!()
    }
    /// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
    pub fn for_service_account(_domain: &TrustDomain, _namespace: &str, _service_account: &str) -> Result<Self, SpiffeIdError> {
        todo!()
    }
    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }
    /// The path with its leading slash.
    pub fn path(&self) -> &str {
        &self.uri[self.path_start..]
    }
    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.uri["spiffe://".len()..self.path_start]
    }
    /// `(namespace, service account)` if the path has Weft's form.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        todo!()
    }
}
impl std::fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.uri)
    }
}
impl std::fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.uri)
    }
}
impl std::fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
