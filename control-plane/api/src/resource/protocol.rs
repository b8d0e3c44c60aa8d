//! What a port speaks, as its owner declared it: an annotation of ours, `appProtocol`, or the port's name.
use std::collections::BTreeMap;

use super::ResourceError;
use super::error::quoted;
use super::node::At;
use crate::workload::ProtocolHint;

/// Annotation of a Service that declares ports: `8080=http, 3306=tcp`. It wins over `appProtocol` and names.
pub const PORT_PROTOCOLS_ANNOTATION: &str = "weft.dev/port-protocols";

/// Protocols that are declared by name, as `appProtocol` (any) or as a port's name or its part before the first `-`.
/// Kubernetes' standard application protocols are KEP-3726's. `grpc-web` is spoken over HTTP/1.1 and HTTP/2 alike.
const NAMES: &[(&str, ProtocolHint)] = &[
    ("http", ProtocolHint::Http1),
    ("http1", ProtocolHint::Http1),
    ("ws", ProtocolHint::Http1),
    ("kubernetes.io/ws", ProtocolHint::Http1),
    ("http2", ProtocolHint::Http2),
    ("h2c", ProtocolHint::Http2),
    ("kubernetes.io/h2c", ProtocolHint::Http2),
    ("grpc", ProtocolHint::Http2),
    ("grpc-web", ProtocolHint::Detect),
    ("tcp", ProtocolHint::Opaque),
    ("tls", ProtocolHint::Opaque),
    ("https", ProtocolHint::Opaque),
    ("wss", ProtocolHint::Opaque),
    ("kubernetes.io/wss", ProtocolHint::Opaque),
    ("amqp", ProtocolHint::Opaque),
    ("amqps", ProtocolHint::Opaque),
    ("cassandra", ProtocolHint::Opaque),
    ("kafka", ProtocolHint::Opaque),
    ("ldap", ProtocolHint::Opaque),
    ("ldaps", ProtocolHint::Opaque),
    ("memcache", ProtocolHint::Opaque),
    ("memcached", ProtocolHint::Opaque),
    ("mongo", ProtocolHint::Opaque),
    ("mongodb", ProtocolHint::Opaque),
    ("mqtt", ProtocolHint::Opaque),
    ("mssql", ProtocolHint::Opaque),
    ("mysql", ProtocolHint::Opaque),
    ("nats", ProtocolHint::Opaque),
    ("postgres", ProtocolHint::Opaque),
    ("postgresql", ProtocolHint::Opaque),
    ("redis", ProtocolHint::Opaque),
    ("smtp", ProtocolHint::Opaque),
    ("ssh", ProtocolHint::Opaque),
    ("zookeeper", ProtocolHint::Opaque),
];

fn named(name: &str) -> Option<ProtocolHint> {
    NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, hint)| *hint)
}

/// What `appProtocol` says, or without it the port's name; else [`ProtocolHint::Detect`].
pub(crate) fn declared(app_protocol: Option<&str>, port_name: Option<&str>) -> ProtocolHint {
    if let Some(app_protocol) = app_protocol {
        return named(app_protocol).unwrap_or_default();
    }
    let Some(name) = port_name else { return ProtocolHint::Detect };
    let prefix = name.split_once('-').map_or(name, |(prefix, _)| prefix);
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        ProtocolHint::Detect
    } else {
        named(prefix).unwrap_or_default()
    }
}

/// Reads the value of [`PORT_PROTOCOLS_ANNOTATION`].
pub(crate) fn annotation(at: &At<'_>) -> Result<BTreeMap<u16, ProtocolHint>, ResourceError> {
    let remedy = "Write `port=protocol` pairs with commas between, such as `8080=http, 9090=grpc, 3306=tcp`.";
    let refuse = |part: &str| at.error(format_args!("holds {}, which declares no port", quoted(part)), remedy);
    let mut ports = BTreeMap::new();
    for part in at.text()?.split(',') {
        let (port, protocol) = part.split_once('=').ok_or_else(|| refuse(part))?;
        let port: u16 = port.trim().parse().ok().filter(|port| *port > 0).ok_or_else(|| refuse(part))?;
        let protocol = named(protocol.trim()).ok_or_else(|| refuse(part))?;
        if ports.insert(port, protocol).is_some() {
            return Err(refuse(part));
        }
    }
    Ok(ports)
}
