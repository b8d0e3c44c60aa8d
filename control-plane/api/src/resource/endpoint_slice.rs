//! The addresses behind a Service, as Kubernetes knows them. Files have none: there a Service's selector decides.
use std::net::IpAddr;

use super::NamespacedName;

/// Part of the addresses behind a Service, as Kubernetes knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its own name.
    pub name: NamespacedName,
    /// The Service that it belongs to.
    pub service: NamespacedName,
    /// Its TCP ports.
    pub ports: Vec<SlicePort>,
    /// Its addresses.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port at which every address of a slice serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service's port; empty where it has none.
    pub name: String,
    /// The number at the address.
    pub port: u16,
}

/// One address of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Where.
    pub address: IpAddr,
    /// The pod there, of the slice's namespace. `None`: no pod, such as an address written by hand.
    pub pod: Option<String>,
    /// Whether it shall get new connections.
    pub ready: bool,
    /// Whether it still serves, for example while it ends.
    pub serving: bool,
    /// Zones whose callers it is for; empty: no hint.
    pub zones: Vec<String>,
}
