//! Judges a call as the sidecar of the called workload would: what has no single reading is refused first, then policy is
//! asked.
use std::borrow::Cow;
use std::net::IpAddr;

use http::HeaderMap;
use serde::Serialize;
use weft_api::case::{Call, Callee, Caller, Expected};
use weft_api::policy::path::{Ambiguous, check_method, normalize, normalize_host};
use weft_api::policy::{Decision, HttpRequest, PolicyTrace, Reason, Source, trace};
use weft_certs::{SpiffeId, TrustDomain};

use super::mesh::{Mesh, Target};

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// `allowed`, `refused` or `malformed`.
    pub(super) decision: &'static str,
    /// What an HTTP caller would see if the application said 200.
    pub(super) status: u16,
    /// The policy that decided, `default`, `denied-identities`, or what has more than one reading.
    pub(super) by: String,
    /// Its rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rule: Option<usize>,
    /// One sentence.
    pub(super) because: String,
    /// What each policy says.
    pub(super) trace: Vec<PolicyTrace>,
}

impl Verdict {
    pub(super) fn is(&self, expected: Expected) -> bool {
        self.decision == expected.as_str()
    }

    /// `shop/readers rule 0`, `default`.
    pub(super) fn decider(&self) -> String {
        match self.rule {
            Some(rule) => format!("{} rule {rule}", self.by),
            None => self.by.clone(),
        }
    }

    fn malformed(why: Ambiguous) -> Self {
        Self {
            decision: Expected::Malformed.as_str(),
            status: 400,
            by: why.label().to_owned(),
            rule: None,
            because: format!("refused with 400: {why}"),
            trace: Vec::new(),
        }
    }
}

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
            let verdict = at(&target, source.as_source(), call).unwrap_or_else(Verdict::malformed);
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

fn at(target: &Target, source: Source<'_>, call: &Call) -> Result<Verdict, Ambiguous> {
    let policy = &target.inbound.policy;
    let Some(request) = &call.request else {
        let decision = policy.decide(source, target.port, None);
        return Ok(verdict(&decision, trace(policy, source, target.port, None)));
    };
    check_method(&request.method)?;
    let path = normalize(&request.path)?;
    let host: Cow<'_, str> = match &request.host {
        // HTTP/1.0 may name none.
        Some(host) if host.is_empty() => "".into(),
        Some(host) => normalize_host(host)?,
        None => target.host.as_str().into(),
    };
    let (method, headers): (_, &HeaderMap) = (request.method.as_str(), &request.headers);
    let http = HttpRequest { method, path: &path, host: &host, headers, claims: request.claims.as_ref() };
    let decision = policy.decide(source, target.port, Some(http));
    Ok(verdict(&decision, trace(policy, source, target.port, Some(http))))
}

fn verdict(decision: &Decision<'_>, trace: Vec<PolicyTrace>) -> Verdict {
    let rule = match decision.reason {
        Reason::Rule(rule) => Some(rule),
        _ => None,
    };
    let (word, status) = if decision.allowed { (Expected::Allowed, 200) } else { (Expected::Refused, 403) };
    let (decision_word, by) = (word.as_str(), decision.label().to_string());
    Verdict { decision: decision_word, status, by, rule, because: decision.explain(), trace }
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
