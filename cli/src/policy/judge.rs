//! Judges a call as the sidecar of the called workload would: what has no single reading is refused first, then policy is
//! asked.
use std::net::IpAddr;

use weft_api::case::{Call, Callee, Caller};
use weft_api::policy::Source;
use weft_api::verdict::Verdict;
use weft_certs::{SpiffeId, TrustDomain};

use super::mesh::{Mesh, Target};

/// What becomes of a call at each workload that it may reach.
///
/// # Errors
/// What to write instead.
pub(super) fn judge(mesh: &Mesh, call: &Call) -> Result<Vec<(Target, Verdict)>, String> {
    let source = Origin::of(&call.from, &mesh.trust_domain)?;
    let targets = mesh.targets(&call.to, call.port)?;
    Ok(targets
        .into_iter()
        .map(|target| {
            let policy = &target.inbound.policy;
            let verdict = Verdict::of(policy, source.as_source(), target.port, call.request.as_ref(), &target.host);
            (target, verdict)
        })
        .collect())
}

/// Who calls, as the engine has it.
struct Origin {
    identity: Option<SpiffeId>,
    address: IpAddr,
}

impl Origin {
    fn of(caller: &Caller, trust_domain: &TrustDomain) -> Result<Self, String> {
        let unspecified = IpAddr::from([0, 0, 0, 0]);
        Ok(match caller {
            Caller::Outside(address) => Self { identity: None, address: *address },
            Caller::Identity(id) => Self { identity: Some(id.clone()), address: unspecified },
            Caller::Account(name) => {
                let id = SpiffeId::for_service_account(trust_domain, &name.namespace, &name.name);
                Self { identity: Some(id.map_err(|fault| format!("`call.from`: {fault}"))?), address: unspecified }
            }
        })
    }

    fn as_source(&self) -> Source<'_> {
        Source { identity: self.identity.as_ref(), address: self.address }
    }
}

/// `GET /stock/1 by shop/orders to shop/inventory`.
pub(super) fn summary(call: &Call) -> String {
    let what = match &call.request {
        Some(request) => format!("{} {}", request.method, request.path),
        None => "bytes".to_owned(),
    };
    let from = match &call.from {
        Caller::Account(name) => name.to_string(),
        Caller::Identity(id) => id.to_string(),
        Caller::Outside(address) if address.is_unspecified() => "outside".to_owned(),
        Caller::Outside(address) => address.to_string(),
    };
    let to = match &call.to {
        Callee::Named(name) => name.to_string(),
        Callee::Described { namespace, labels, .. } => {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{namespace}/{{{}}}", labels.join(","))
        }
    };
    let port = call.port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{what} by {from} to {to}{port}")
}
