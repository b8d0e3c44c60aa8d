//! What `/config` and `/explain` of the admin port answer: the configuration in force, and what policy says of a call.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use weft_api::case::{Caller, Request, parse_caller};
use weft_api::policy::{AppliedPolicy, Claims, Source};
use weft_api::verdict::Verdict;
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

/// What becomes of a call: `from` (a service account, a SPIFFE ID, an address, or `outside`), `port`, and of a request
/// `method`, `path`, `host`, `header.NAME` and `claim.NAME`.
pub(crate) fn explain(
    view: Option<&MeshView>,
    identity: Option<&Identity>,
    query: &BTreeMap<String, String>,
) -> Result<Value, String> {
    let inbound = &view.ok_or("there is no configuration yet")?.config.inbound;
    let text = |name: &str| query.get(name).map(String::as_str);
    if let Some(unknown) = query.keys().find(|name| !is_parameter(name)) {
        return Err(format!(
            "{} is not known; there are from, port, method, path, host, header.NAME and claim.NAME",
            unknown.escape_debug()
        ));
    }
    let from = text("from").ok_or("from is missing: give a service account, a SPIFFE ID or an address")?;
    let caller = parse_caller(from, &inbound.namespace).map_err(|remedy| format!("from: {remedy}"))?;
    let (caller, address) = match caller {
        Caller::Outside(address) => (None, address),
        Caller::Identity(id) => (Some(id), IpAddr::from([0, 0, 0, 0])),
        Caller::Account(name) => {
            let own = identity.ok_or("there is no certificate yet, so give the whole SPIFFE ID as from")?;
            let domain = &own.svid.bundle().trust_domain;
            let id = SpiffeId::for_service_account(domain, &name.namespace, &name.name);
            (Some(id.map_err(|fault| format!("from: {fault}"))?), IpAddr::from([0, 0, 0, 0]))
        }
    };
    let port = match (text("port"), inbound.ports.len()) {
        (Some(port), _) => port.parse().map_err(|_| "port is not a number from 0 to 65535")?,
        (None, 1) => *inbound.ports.keys().next().unwrap_or(&0),
        (None, _) => return Err("port is missing: give the workload's port".to_owned()),
    };
    let request = request(query)?;
    let host = inbound
        .services
        .first()
        .map_or_else(|| "localhost".to_owned(), |service| format!("{}.{}.svc", service.name, service.namespace));
    let source = Source { identity: caller.as_ref(), address };
    let verdict = Verdict::of(&inbound.policy, source, port, request.as_ref(), &host);
    let mut answer = serde_json::to_value(&verdict).map_err(|fault| fault.to_string())?;
    let limits: Vec<String> =
        inbound.rate_limits.iter().map(|limit| format!("{}/{}", limit.policy, limit.name)).collect();
    for (field, value) in [
        ("allowed", json!(verdict.allowed())),
        ("policy", json!(verdict.by)),
        ("explanation", json!(verdict.because)),
        ("workload", json!(format!("{}/{}", inbound.namespace, inbound.workload))),
        ("from", json!(caller.as_ref().map_or_else(|| address.to_string(), SpiffeId::to_string))),
        ("port", json!(port)),
        ("default_policy", json!(inbound.policy.default_policy().as_str())),
        ("rate_limits", json!(limits)),
    ] {
        answer[field] = value;
    }
    Ok(answer)
}

fn is_parameter(name: &str) -> bool {
    matches!(name, "from" | "port" | "method" | "path" | "host")
        || name.starts_with("header.")
        || name.starts_with("claim.")
}

/// The request that is asked about; `None`: a byte stream. A claim is read as JSON, or else as a text.
fn request(query: &BTreeMap<String, String>) -> Result<Option<Request>, String> {
    if query.keys().all(|name| matches!(name.as_str(), "from" | "port")) {
        return Ok(None);
    }
    let text = |name: &str| query.get(name).cloned();
    let (mut headers, mut claims) = (HeaderMap::new(), serde_json::Map::new());
    for (name, value) in query {
        if let Some(header) = name.strip_prefix("header.") {
            let parsed = header.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
            let (header, value) = parsed.ok_or_else(|| format!("{} is no header field", name.escape_debug()))?;
            headers.insert(header, value);
        }
        if let Some(claim) = name.strip_prefix("claim.") {
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
            claims.insert(claim.to_owned(), value);
        }
    }
    Ok(Some(Request {
        method: text("method").unwrap_or_else(|| "GET".to_owned()),
        path: text("path").unwrap_or_else(|| "/".to_owned()),
        host: text("host"),
        headers,
        claims: Some(claims).filter(|claims| !claims.is_empty()).map(Claims::new),
    }))
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
