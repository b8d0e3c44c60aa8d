//! What `/config` and `/explain` of the admin port answer: the configuration in force, and what policy says of a call.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use serde_json::{Value, json};
use weft_api::policy::{AppliedPolicy, HttpRequest, Source, path};
use weft_certs::SpiffeId;

use crate::stage::connect::Identity;
use crate::stage::route::MeshView;

/// The configuration in force, without keys.
pub(crate) fn config(view: Option<&MeshView>, identity: Option<&Identity>) -> Value {
    let identity = identity.map(|identity| {
        json!({
            "spiffe_id": identity.svid.id().as_str(),
            "not_before": unix(identity.svid.not_before()),
            "not_after": unix(identity.svid.not_after()),
            "trust_domain": identity.svid.bundle().trust_domain.as_str(),
            "roots": identity.svid.bundle().roots.len(),
        })
    });
    let view = view.map(|view| {
        let inbound = &view.config.inbound;
        let services: Vec<Value> = view
            .config
            .services
            .values()
            .map(|service| {
                json!({
                    "name": service.name.to_string(),
                    "addresses": service.addresses,
                    "ports": service.ports.iter().map(|port| json!({
                        "port": port.port,
                        "protocol": format!("{:?}", port.protocol).to_lowercase(),
                        "routes": port.routes.iter().map(|route| route.name.to_string()).collect::<Vec<_>>(),
                        "endpoints": port.endpoints.iter().map(|endpoint| json!({
                            "address": endpoint.address,
                            "workload": endpoint.workload,
                            "identity": endpoint.identity.as_ref().map(SpiffeId::as_str),
                        })).collect::<Vec<_>>(),
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "workload": format!("{}/{}", inbound.namespace, inbound.workload),
            "service_account": inbound.service_account,
            "stands_behind": inbound.services.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "default_policy": inbound.policy.default_policy().as_str(),
            "policies": inbound.policy.policies().iter().map(policy).collect::<Vec<_>>(),
            "rate_limits": inbound.rate_limits.iter().map(|limit| json!({
                "policy": limit.policy.to_string(), "limit": limit.name, "requests": limit.requests,
                "window_ms": limit.window.as_millis() as u64, "burst": limit.burst,
                "per": format!("{:?}", limit.per),
            })).collect::<Vec<_>>(),
            "services": services,
            "meshed_workloads": view.config.meshed_workloads.len(),
            "denied_identities": view.config.denied_identities.iter().map(SpiffeId::as_str).collect::<Vec<_>>(),
        })
    });
    json!({ "identity": identity, "configuration": view })
}

fn policy(applied: &AppliedPolicy) -> Value {
    match applied {
        AppliedPolicy::Readable(policy) => json!({ "name": policy.name.to_string(), "spec": policy.spec_json() }),
        AppliedPolicy::Unreadable { name, why } => json!({ "name": name.to_string(), "unreadable": why }),
    }
}

/// What policy says of a call: `from` (a SPIFFE ID, or an address for a caller outside the mesh), `port`, and for HTTP
/// `method`, `path` and `host`.
pub(crate) fn explain(view: Option<&MeshView>, query: &BTreeMap<String, String>) -> Result<Value, String> {
    let view = view.ok_or("there is no configuration yet")?;
    let text = |name: &str| query.get(name).map(String::as_str);
    let from = text("from").ok_or("from is missing: give a SPIFFE ID or an address")?;
    let port: u16 =
        text("port").ok_or("port is missing")?.parse().map_err(|_| "port is not a number from 0 to 65535")?;
    let (identity, address) = match from.parse::<IpAddr>() {
        Ok(address) => (None, address),
        Err(_) => (
            Some(SpiffeId::parse(from).map_err(|e| format!("from is neither an address nor a SPIFFE ID: {e}"))?),
            IpAddr::from([0, 0, 0, 0]),
        ),
    };
    let headers = HeaderMap::new();
    let path = path::normalize(text("path").unwrap_or("/")).map_err(|why| format!("path: {}", why.label()))?;
    let host =
        path::normalize_host(text("host").unwrap_or("localhost")).map_err(|why| format!("host: {}", why.label()))?;
    let http =
        text("method").map(|method| HttpRequest { method, path: &path, host: &host, headers: &headers, claims: None });
    let decision = view.config.inbound.policy.decide(Source { identity: identity.as_ref(), address }, port, http);
    Ok(
        json!({ "allowed": decision.allowed, "policy": decision.label().to_string(), "explanation": decision.explain() }),
    )
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
