//! Domain types to wire messages. Cannot fail: domain types are valid.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use weft_certs::{SpiffeId, TrustBundle};

use super::proto;
use crate::policy::AppliedPolicy;
use crate::resource::{Limit, NamespacedName, RateLimit};
use crate::workload::{Endpoint, Inbound, MeshedWorkload, ProtocolHint, Service, ServicePort, Traffic};

/// The field that marks a policy which the control plane itself could not understand. No version knows it as a policy's.
pub(super) const UNREADABLE: &str = "unreadable";

pub(super) fn inbound(inbound: &Inbound) -> proto::Inbound {
    proto::Inbound {
        namespace: inbound.namespace.clone(),
        workload: inbound.workload.clone(),
        service_account: inbound.service_account.clone(),
        services: inbound.services.iter().map(ToString::to_string).collect(),
        default_policy: inbound.policy.default_policy().as_str().to_owned(),
        authorization_policies: inbound.policy.policies().iter().map(authorization_policy).collect(),
        rate_limit_policies: rate_limits(&inbound.rate_limits),
        ports: ports(&inbound.ports),
    }
}

fn policy(name: &NamespacedName, spec: &Value) -> proto::Policy {
    proto::Policy {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        spec_json: spec.to_string().into_bytes(),
    }
}

fn authorization_policy(applied: &AppliedPolicy) -> proto::Policy {
    match applied {
        AppliedPolicy::Readable(readable) => policy(&readable.name, &readable.spec_json()),
        AppliedPolicy::Unreadable { name, why } => policy(name, &json!({UNREADABLE: why})),
    }
}

/// One message for each run of limits of one policy, so that their order stays.
fn rate_limits(limits: &[RateLimit]) -> Vec<proto::Policy> {
    limits
        .chunk_by(|a, b| a.policy == b.policy)
        .map(|run| {
            let limits: Vec<Value> = run
                .iter()
                .map(|limit| {
                    let RateLimit { policy: _, name, requests, window, burst, per } = limit.clone();
                    Limit { name, requests, window, burst, per }.to_json()
                })
                .collect();
            policy(&run[0].policy, &json!({ "limits": limits }))
        })
        .collect()
}

fn ports(ports: &BTreeMap<u16, ProtocolHint>) -> Vec<proto::InboundPort> {
    ports
        .iter()
        .map(|(port, hint)| proto::InboundPort { port: (*port).into(), protocol: protocol(*hint).to_owned() })
        .collect()
}

pub(super) fn protocol(hint: ProtocolHint) -> &'static str {
    match hint {
        ProtocolHint::Detect => "detect",
        ProtocolHint::Http1 => "http1",
        ProtocolHint::Http2 => "http2",
        ProtocolHint::Opaque => "opaque",
    }
}

fn address(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn service(service: &Service) -> proto::Service {
    proto::Service {
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        addresses: service.addresses.iter().map(address).collect(),
        ports: service.ports.iter().map(service_port).collect(),
        traffic: (service.traffic != Traffic::DEFAULT).then(|| traffic(&service.traffic)),
    }
}

/// Only what is not as the default has it.
fn traffic(traffic: &Traffic) -> proto::Traffic {
    let default = Traffic::DEFAULT;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let unless = |set: u32, default: u32| (set != default).then_some(set);
    proto::Traffic {
        request_timeout_ms: traffic.request_timeout.map(millis),
        idle_timeout_ms: traffic.idle_timeout.map(millis),
        connect_timeout_ms: Some(traffic.connect_timeout).filter(|set| *set != default.connect_timeout).map(millis),
        max_connections: unless(traffic.max_connections, default.max_connections),
        max_requests: unless(traffic.max_requests, default.max_requests),
        max_pending: unless(traffic.max_pending, default.max_pending),
        retry_budget: unless(traffic.retry_budget, default.retry_budget),
        eject_after: unless(traffic.eject_after, default.eject_after),
    }
}

fn service_port(port: &ServicePort) -> proto::ServicePort {
    proto::ServicePort {
        port: port.port.into(),
        protocol: protocol(port.protocol).to_owned(),
        endpoints: port.endpoints.iter().map(endpoint).collect(),
        routes: port.routes.iter().map(|route| serde_json::to_vec(&**route).expect("a route is plain data")).collect(),
    }
}

fn endpoint(endpoint: &Endpoint) -> proto::Endpoint {
    proto::Endpoint {
        address: address(&endpoint.address.ip()),
        port: endpoint.address.port().into(),
        workload: endpoint.workload.clone(),
        spiffe_id: endpoint.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

pub(super) fn meshed_workloads(workloads: &[&MeshedWorkload], removed: Vec<String>) -> proto::MeshedWorkloads {
    proto::MeshedWorkloads {
        removed,
        workloads: workloads
            .iter()
            .map(|workload| proto::MeshedWorkload {
                namespace: workload.name.namespace.clone(),
                name: workload.name.name.clone(),
                addresses: workload.addresses.iter().map(address).collect(),
                spiffe_id: workload.identity.to_string(),
                ports: ports(&workload.ports),
            })
            .collect(),
    }
}

pub(super) fn denied_identities(ids: &[SpiffeId]) -> proto::DeniedIdentities {
    proto::DeniedIdentities { ids: ids.iter().map(ToString::to_string).collect() }
}

pub(super) fn bundle(bundle: &TrustBundle) -> proto::TrustBundle {
    proto::TrustBundle {
        trust_domain: bundle.trust_domain.to_string(),
        roots: bundle.roots.iter().map(|root| root.to_vec()).collect(),
    }
}
