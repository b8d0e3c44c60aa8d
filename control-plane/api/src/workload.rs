//! What one sidecar is told: plain, complete, already valid.
//!
//! The control plane's `compile` makes it, [`crate::wire`] carries it, the proxy obeys it.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_certs::SpiffeId;

use crate::policy::PolicySet;
use crate::resource::{NamespacedName, RateLimit};
use crate::routing::Route;

/// Everything one sidecar knows of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadConfig {
    /// The workload beside the sidecar.
    pub inbound: Inbound,
    /// Where the workload may go, by service.
    pub services: Arc<BTreeMap<NamespacedName, Arc<Service>>>,
    /// Every workload that is reached by mTLS or not at all, also when it is called by its own address.
    pub meshed_workloads: Arc<BTreeMap<NamespacedName, Arc<MeshedWorkload>>>,
    /// Identities that are refused whatever policy says.
    pub denied_identities: Arc<Vec<SpiffeId>>,
}

/// What the sidecar enforces for its own workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbound {
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the workload.
    pub workload: String,
    /// Its service account.
    pub service_account: String,
    /// The services it stands behind.
    pub services: Vec<NamespacedName>,
    /// Who may call it.
    pub policy: Arc<PolicySet>,
    /// How often.
    pub rate_limits: Arc<Vec<RateLimit>>,
    /// What is known of its ports; others are detected.
    pub ports: BTreeMap<u16, ProtocolHint>,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ProtocolHint {
    /// Not declared: the sidecar looks.
    #[default]
    Detect,
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge, gRPC.
    Http2,
    /// Bytes.
    Opaque,
}

/// A Service with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: NamespacedName,
    /// Its own addresses; none for a headless service.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// How calls to it are carried.
    pub traffic: Traffic,
}

/// How calls to a Service are carried: how long they may take, how many there may be, when one is made again. Everything
/// counts for each port of the Service, at each sidecar that calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// From a request to the head of its answer, over all attempts. `None`: as long as it takes, for long polls live.
    pub request_timeout: Option<Duration>,
    /// For how long the body of an answer may bring nothing. `None`: as long as it takes, for streams live.
    pub idle_timeout: Option<Duration>,
    /// For a TCP connection to be made.
    pub connect_timeout: Duration,
    /// Connections open at a time.
    pub max_connections: u32,
    /// Requests under way at a time.
    pub max_requests: u32,
    /// Requests that wait for a connection at a time.
    pub max_pending: u32,
    /// Requests that are sent again, in percent of those that came. 0: none is.
    pub retry_budget: u32,
    /// Failures in a row after which an endpoint is passed over for a while. 0: never.
    pub eject_after: u32,
}

impl Traffic {
    /// What holds where a Service says nothing.
    pub const DEFAULT: Self = Self {
        request_timeout: None,
        idle_timeout: None,
        connect_timeout: Duration::from_secs(3),
        max_connections: 10_000,
        max_requests: 10_000,
        max_pending: 1_024,
        retry_budget: 20,
        eject_after: 5,
    };
}

impl Default for Traffic {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The service's port, not the endpoints'.
    pub port: u16,
    /// What it speaks.
    pub protocol: ProtocolHint,
    /// Where it is served.
    pub endpoints: Vec<Endpoint>,
    /// The routes that decide where its requests go instead, as seen from the workload that is told; none: they go to its
    /// endpoints.
    pub routes: Vec<Arc<Route>>,
}

/// One place where a service is served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Address and port of the workload.
    pub address: SocketAddr,
    /// Name of the workload.
    pub workload: String,
    /// `Some`: reached by mTLS as this identity, or not at all. `None`: outside the mesh.
    pub identity: Option<SpiffeId>,
}

/// A workload inside the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshedWorkload {
    /// Its name.
    pub name: NamespacedName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who answers there.
    pub identity: SpiffeId,
    /// What is known of its ports.
    pub ports: BTreeMap<u16, ProtocolHint>,
}
