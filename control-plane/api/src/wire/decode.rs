//! Wire messages to domain types: every name, address, number and list is checked and bounded.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_certs::{SpiffeId, TrustBundle, TrustDomain};

use super::encode::{UNREADABLE, protocol as protocol_name};
use super::{WireError, proto};
use crate::policy::{AppliedPolicy, PolicySet};
use crate::resource::node::At;
use crate::resource::{
    AuthorizationPolicy, DefaultPolicy, MAX_TEXT_BYTES, NamespacedName, RateLimit, RateLimitPolicy, is_dns_label,
    is_dns_subdomain, parse_text,
};
use crate::routing::Route;
use crate::workload::{Endpoint, Inbound, MeshedWorkload, ProtocolHint, Service, ServicePort, Traffic};

/// Services that one sidecar may know.
pub(super) const MAX_SERVICES: usize = 20_000;
/// Policies of one kind that may apply to a workload.
pub const MAX_POLICIES: usize = 1_000;
/// Ports of a workload or Service.
pub const MAX_PORTS: usize = 1_000;
/// Addresses of a workload or Service.
pub const MAX_ADDRESSES: usize = 64;
/// Endpoints of a Service's port.
pub const MAX_ENDPOINTS: usize = 20_000;
/// Routes of a Service's port.
pub const MAX_ROUTES: usize = 1_000;
/// Workloads of the mesh, and identities on the denied list.
pub(super) const MAX_WORKLOADS: usize = 200_000;
/// Certificates of a trust bundle or a chain, and bytes of one.
const MAX_CERTIFICATES: usize = 64;
const MAX_CERTIFICATE_BYTES: usize = 16 << 10;

pub(super) fn bounded(field: &str, length: usize, most: usize) -> Result<(), WireError> {
    if length <= most {
        return Ok(());
    }
    Err(WireError::new(field, format!("{length} entries, where at most {most} are accepted")))
}

/// Reads `namespace/name`.
pub(super) fn reference(text: &str, field: impl Fn() -> String) -> Result<NamespacedName, WireError> {
    match text.split_once('/') {
        Some((namespace, name)) => named(namespace, name, field),
        None => Err(WireError::new(field(), "not `namespace/name`")),
    }
}

fn named(namespace: &str, name: &str, field: impl Fn() -> String) -> Result<NamespacedName, WireError> {
    if is_dns_label(namespace) && is_dns_subdomain(name) {
        return Ok(NamespacedName::new(namespace, name));
    }
    Err(WireError::new(field(), "not a valid namespace and name"))
}

fn address(bytes: &[u8], field: impl Fn() -> String) -> Result<IpAddr, WireError> {
    let address = match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6),
        _ => return Err(WireError::new(field(), "an address has 4 or 16 bytes")),
    };
    if address.is_unspecified() || address.is_multicast() || address.to_canonical() != address {
        return Err(WireError::new(field(), "not the address of one host in its usual form"));
    }
    Ok(address)
}

fn addresses(messages: &[Vec<u8>], field: &str) -> Result<Vec<IpAddr>, WireError> {
    let field = format!("{field}.addresses");
    bounded(&field, messages.len(), MAX_ADDRESSES)?;
    messages.iter().enumerate().map(|(index, bytes)| address(bytes, || format!("{field}[{index}]"))).collect()
}

pub(super) fn port(number: u32, field: impl Fn() -> String) -> Result<u16, WireError> {
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| WireError::new(field(), "a port is 1 to 65535"))
}

fn protocol(name: &str, field: impl Fn() -> String) -> Result<ProtocolHint, WireError> {
    [ProtocolHint::Detect, ProtocolHint::Http1, ProtocolHint::Http2, ProtocolHint::Opaque]
        .into_iter()
        .find(|hint| protocol_name(*hint) == name)
        .ok_or_else(|| WireError::new(field(), "not a known protocol"))
}

fn identity(uri: &str, field: impl Fn() -> String) -> Result<SpiffeId, WireError> {
    SpiffeId::parse(uri).map_err(|_| WireError::new(field(), "not a SPIFFE ID"))
}

fn ports(messages: &[proto::InboundPort], field: &str) -> Result<BTreeMap<u16, ProtocolHint>, WireError> {
    let field = format!("{field}.ports");
    bounded(&field, messages.len(), MAX_PORTS)?;
    let mut ports = BTreeMap::new();
    for (index, message) in messages.iter().enumerate() {
        let number = port(message.port, || format!("{field}[{index}].port"))?;
        let hint = protocol(&message.protocol, || format!("{field}[{index}].protocol"))?;
        if ports.insert(number, hint).is_some() {
            return Err(WireError::new(format!("{field}[{index}].port"), "listed twice"));
        }
    }
    Ok(ports)
}

pub(super) fn inbound(message: &proto::Inbound, denied: &Arc<Vec<SpiffeId>>) -> Result<Inbound, WireError> {
    let name = named(&message.namespace, &message.workload, || "inbound.workload".to_owned())?;
    if !is_dns_subdomain(&message.service_account) {
        return Err(WireError::new("inbound.service_account", "not a valid name"));
    }
    let default = DefaultPolicy::from_name(&message.default_policy)
        .ok_or_else(|| WireError::new("inbound.default_policy", "not a known default"))?;
    bounded("inbound.services", message.services.len(), MAX_SERVICES)?;
    let services = message.services.iter().enumerate();
    let services = services.map(|(index, name)| reference(name, || format!("inbound.services[{index}]")));
    let (mut policies, mut rate_limits) = (Vec::new(), Vec::new());
    bounded("inbound.authorization_policies", message.authorization_policies.len(), MAX_POLICIES)?;
    for (index, message) in message.authorization_policies.iter().enumerate() {
        let name = policy_name(message, || format!("inbound.authorization_policies[{index}]"))?;
        policies.push(match read_spec(message, |spec| AuthorizationPolicy::parse_spec(name.clone(), spec)) {
            Ok(policy) => AppliedPolicy::Readable(Arc::new(policy)),
            Err(why) => AppliedPolicy::Unreadable { name, why },
        });
    }
    bounded("inbound.rate_limit_policies", message.rate_limit_policies.len(), MAX_POLICIES)?;
    for (index, message) in message.rate_limit_policies.iter().enumerate() {
        let name = policy_name(message, || format!("inbound.rate_limit_policies[{index}]"))?;
        match read_spec(message, |spec| RateLimitPolicy::parse_spec(name.clone(), spec)) {
            Ok(policy) => rate_limits.extend::<Vec<RateLimit>>(policy.rate_limits().collect()),
            // A limit that is not understood cannot be kept to, and no limit would be wider than what was asked for.
            Err(why) => policies.push(AppliedPolicy::Unreadable { name, why }),
        }
    }
    Ok(Inbound {
        namespace: name.namespace,
        workload: name.name,
        service_account: message.service_account.clone(),
        services: services.collect::<Result<_, _>>()?,
        policy: Arc::new(PolicySet::compile(default, denied.clone(), policies)),
        rate_limits: Arc::new(rate_limits),
        ports: ports(&message.ports, "inbound")?,
    })
}

fn policy_name(message: &proto::Policy, field: impl Fn() -> String) -> Result<NamespacedName, WireError> {
    named(&message.namespace, &message.name, field)
}

/// Reads a policy's `spec` by `parse`; the error says why it cannot be understood.
fn read_spec<T>(
    message: &proto::Policy,
    parse: impl FnOnce(&At<'_>) -> Result<T, crate::resource::ResourceError>,
) -> Result<T, String> {
    if message.spec_json.len() > MAX_TEXT_BYTES {
        return Err(format!("its spec has {} bytes", message.spec_json.len()));
    }
    let text = std::str::from_utf8(&message.spec_json).map_err(|_| "its spec is not UTF-8".to_owned())?;
    let node = parse_text(text, 0).map_err(|error| error.message)?;
    if let Some(why) = node.field(UNREADABLE).and_then(crate::resource::node::Node::as_text) {
        return Err(why.to_owned());
    }
    parse(&At::new("spec", &node)).map_err(|error| error.message)
}

fn service(message: &proto::Service, field: &str) -> Result<Service, WireError> {
    bounded(&format!("{field}.ports"), message.ports.len(), MAX_PORTS)?;
    let mut ports: Vec<ServicePort> = Vec::with_capacity(message.ports.len());
    for (index, message) in message.ports.iter().enumerate() {
        let port = service_port(message, &format!("{field}.ports[{index}]"))?;
        if ports.iter().any(|other| other.port == port.port) {
            return Err(WireError::new(format!("{field}.ports[{index}].port"), "listed twice"));
        }
        ports.push(port);
    }
    Ok(Service {
        name: named(&message.namespace, &message.name, || format!("{field}.name"))?,
        addresses: addresses(&message.addresses, field)?,
        ports,
        traffic: message.traffic.as_ref().map_or(Traffic::DEFAULT, traffic),
    })
}

/// What is not said, or not by a control plane of an older version, is as the default has it.
fn traffic(message: &proto::Traffic) -> Traffic {
    let time = |millis: Option<u64>| millis.map(Duration::from_millis);
    let default = Traffic::DEFAULT;
    Traffic {
        request_timeout: time(message.request_timeout_ms).or(default.request_timeout),
        idle_timeout: time(message.idle_timeout_ms).or(default.idle_timeout),
        connect_timeout: time(message.connect_timeout_ms).unwrap_or(default.connect_timeout),
        max_connections: message.max_connections.unwrap_or(default.max_connections),
        max_requests: message.max_requests.unwrap_or(default.max_requests),
        max_pending: message.max_pending.unwrap_or(default.max_pending),
        retry_budget: message.retry_budget.unwrap_or(default.retry_budget).min(100),
        eject_after: message.eject_after.unwrap_or(default.eject_after),
    }
}

fn service_port(message: &proto::ServicePort, field: &str) -> Result<ServicePort, WireError> {
    bounded(&format!("{field}.endpoints"), message.endpoints.len(), MAX_ENDPOINTS)?;
    let endpoints = message.endpoints.iter().enumerate();
    Ok(ServicePort {
        port: port(message.port, || format!("{field}.port"))?,
        protocol: protocol(&message.protocol, || format!("{field}.protocol"))?,
        endpoints: endpoints
            .map(|(index, message)| endpoint(message, || format!("{field}.endpoints[{index}]")))
            .collect::<Result<_, _>>()?,
        routes: routes(&message.routes, field)?,
    })
}

/// A route that cannot be read answers for all that it may have matched: where those requests should go is unknown.
fn routes(messages: &[Vec<u8>], field: &str) -> Result<Vec<Arc<Route>>, WireError> {
    bounded(&format!("{field}.routes"), messages.len(), MAX_ROUTES)?;
    let read = |json: &Vec<u8>| {
        let route = serde_json::from_slice(json).unwrap_or_else(|error| Route::unreadable(&error.to_string()));
        Arc::new(route)
    };
    Ok(messages.iter().map(read).collect())
}

fn endpoint(message: &proto::Endpoint, field: impl Fn() -> String) -> Result<Endpoint, WireError> {
    if !message.workload.is_empty() && !is_dns_subdomain(&message.workload) {
        return Err(WireError::new(format!("{}.workload", field()), "not a valid name"));
    }
    let ip = address(&message.address, || format!("{}.address", field()))?;
    let port = port(message.port, || format!("{}.port", field()))?;
    let identity = match message.spiffe_id.as_str() {
        "" => None,
        uri => Some(identity(uri, || format!("{}.spiffe_id", field()))?),
    };
    Ok(Endpoint { address: SocketAddr::new(ip, port), workload: message.workload.clone(), identity })
}

pub(super) fn meshed_workloads(message: Option<&proto::MeshedWorkloads>) -> Result<Vec<MeshedWorkload>, WireError> {
    let Some(message) = message else { return Ok(Vec::new()) };
    bounded("meshed_workloads", message.workloads.len(), MAX_WORKLOADS)?;
    let workloads = message.workloads.iter().enumerate();
    workloads
        .map(|(index, message)| {
            let field = format!("meshed_workloads[{index}]");
            Ok(MeshedWorkload {
                name: named(&message.namespace, &message.name, || format!("{field}.name"))?,
                addresses: addresses(&message.addresses, &field)?,
                identity: identity(&message.spiffe_id, || format!("{field}.spiffe_id"))?,
                ports: ports(&message.ports, &field)?,
            })
        })
        .collect()
}

pub(super) fn services(messages: &[proto::Service]) -> Result<Vec<Service>, WireError> {
    bounded("services", messages.len(), MAX_SERVICES)?;
    messages.iter().enumerate().map(|(index, message)| service(message, &format!("services[{index}]"))).collect()
}

pub(super) fn denied_identities(message: &proto::DeniedIdentities) -> Result<Vec<SpiffeId>, WireError> {
    bounded("denied_identities", message.ids.len(), MAX_WORKLOADS)?;
    let ids = message.ids.iter().enumerate();
    ids.map(|(index, uri)| identity(uri, || format!("denied_identities[{index}]"))).collect()
}

/// Bounds the certificates and takes them as they are; what they hold is judged where they are used.
pub(super) fn certificates(messages: &[Vec<u8>], field: &str) -> Result<Vec<Vec<u8>>, WireError> {
    bounded(field, messages.len(), MAX_CERTIFICATES)?;
    match messages.iter().position(|der| !(1..=MAX_CERTIFICATE_BYTES).contains(&der.len())) {
        None => Ok(messages.to_vec()),
        Some(index) => Err(WireError::new(format!("{field}[{index}]"), "not a certificate by its size")),
    }
}

pub(super) fn bundle(message: &proto::TrustBundle, field: &str) -> Result<TrustBundle, WireError> {
    let trust_domain = TrustDomain::parse(&message.trust_domain)
        .map_err(|_| WireError::new(format!("{field}.trust_domain"), "not a trust domain"))?;
    let field = format!("{field}.roots");
    let roots = certificates(&message.roots, &field)?.into_iter().map(Into::into).collect::<Vec<_>>();
    if roots.is_empty() {
        return Err(WireError::new(field, "a bundle without roots trusts nobody"));
    }
    TrustBundle::from_der(trust_domain, roots).map_err(|_| WireError::new(field, "one of them cannot be a root"))
}
