//! Attestation on Kubernetes: a projected service account token with audience `weft`, which the API server judges
//! (TokenReview, authentication.k8s.io/v1).
//!
//! Only tokens that are bound to a pod count: the API server refuses them once that very pod, by its UID, is deleted, so
//! nobody who kept a copy gets another certificate. Every certificate takes a review, the renewed one too. While the API
//! server cannot be asked, a certificate may be renewed by itself, if a pod with its identity is known.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use weft_certs::{SpiffeId, TrustDomain};

use super::caller::{Caller, Proof, Unproven, may_be_a_workload};

/// Audience of the tokens.
pub const AUDIENCE: &str = "weft";
/// Longer texts are refused unread, in bytes; real tokens have 1 to 2 KiB.
const LONGEST: usize = 16 * 1024;
/// Reviews under way at one time: the API server shall not feel a fleet that starts.
const REVIEWS: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(5);
/// For so long a refused token is refused again without asking, and at most so many of them are remembered.
const REFUSED_FOR: Duration = Duration::from_secs(10);
const REMEMBERED: usize = 4096;
/// Of `status.user.extra`: set for tokens that are bound to a pod.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server about tokens.
pub struct TokenReviews {
    reviews: Api<TokenReview>,
    trust_domain: TrustDomain,
    permits: Semaphore,
    refused: Mutex<HashMap<[u8; 32], Instant>>,
}

/// Why a token proves nothing. For the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// Not worth asking.
    #[error("this is not a service account token for audience {AUDIENCE}: {0}")]
    Format(&'static str),
    /// The API server does not know it.
    #[error("the API server refuses the token: {0}")]
    Refused(String),
    /// The API server knows it, but it is not one that a sidecar has.
    #[error("the token {0}")]
    Unfit(String),
    /// The API server could not be asked.
    #[error("the API server cannot be asked about the token: {0}")]
    Unavailable(String),
}

impl TokenReviews {
    /// Asks with `client`, for identities of `trust_domain`.
    pub fn new(client: Client, trust_domain: TrustDomain) -> Self {
        Self { reviews: Api::all(client), trust_domain, permits: Semaphore::new(REVIEWS), refused: Mutex::default() }
    }

    /// The trust domain of those that are identified.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Who holds `token`.
    ///
    /// # Errors
    /// Why nobody does.
    pub async fn identify(&self, token: &str) -> Result<Caller, Unproven> {
        for_us(token)?;
        let hash: [u8; 32] =
            digest::digest(&digest::SHA256, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
        if self.is_refused(&hash) {
            return Err(ReviewError::Refused("it was refused a moment ago".to_owned()).into());
        }
        let _permit = self.permits.acquire().await.expect("this semaphore is never closed");
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = tokio::time::timeout(TIMEOUT, self.reviews.create(&PostParams::default(), &review)).await;
        let unavailable = |fault: String| Unproven::from(ReviewError::Unavailable(fault));
        let review = answer.map_err(|_| unavailable(format!("no answer within {TIMEOUT:?}")))?.map_err(failed)?;
        let caller = judge(&review.status.unwrap_or_default(), &self.trust_domain);
        if caller.is_err() {
            self.remember(hash);
        }
        caller
    }

    fn is_refused(&self, hash: &[u8; 32]) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(hash).is_some_and(|at| at.elapsed() < REFUSED_FOR)
    }

    fn remember(&self, hash: [u8; 32]) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REMEMBERED {
            refused.retain(|_, at| at.elapsed() < REFUSED_FOR);
        }
        if refused.len() < REMEMBERED {
            refused.insert(hash, Instant::now());
        }
    }
}

/// What a question without an answer means. A refusal is no outage: who can provoke one must not be let in by another proof.
fn failed(fault: kube::Error) -> Unproven {
    let fault = match fault {
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            ReviewError::Refused(format!("{} ({})", status.message, status.code))
        }
        fault => ReviewError::Unavailable(fault.to_string()),
    };
    fault.into()
}

/// Refuses what no API server needs to be asked about. Nothing that is read here is believed.
fn for_us(token: &str) -> Result<(), ReviewError> {
    #[derive(Deserialize)]
    struct Claims {
        aud: serde_json::Value,
    }
    if token.len() > LONGEST {
        return Err(ReviewError::Format("it is too long"));
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(ReviewError::Format("it has not three parts"));
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| ReviewError::Format("its payload is not base64url"))?;
    let claims: Claims =
        serde_json::from_slice(&payload).map_err(|_| ReviewError::Format("its payload has no audience"))?;
    let is_ours = match &claims.aud {
        serde_json::Value::String(one) => one == AUDIENCE,
        serde_json::Value::Array(many) => many.iter().any(|one| one == AUDIENCE),
        _ => false,
    };
    if is_ours { Ok(()) } else { Err(ReviewError::Format("it is for another audience")) }
}

/// What the API server's answer proves.
fn judge(status: &TokenReviewStatus, trust_domain: &TrustDomain) -> Result<Caller, Unproven> {
    if let Some(fault) = status.error.as_deref().filter(|fault| !fault.is_empty()) {
        return Err(ReviewError::Refused(fault.chars().take(200).collect()).into());
    }
    if status.authenticated != Some(true) {
        return Err(ReviewError::Refused("not authenticated".to_owned()).into());
    }
    // An API server that does not know of audiences would answer for its own.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(ReviewError::Unfit(format!("is not for audience {AUDIENCE}")).into());
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(ReviewError::Unfit("is not a service account's".to_owned()).into());
    };
    let extra = |key| user.extra.as_ref().and_then(|extra| extra.get(key)).and_then(|values| values.first());
    let (Some(pod), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err(ReviewError::Unfit("is not bound to a pod".to_owned()).into());
    };
    let id = SpiffeId::for_service_account(trust_domain, namespace, account)
        .map_err(|fault| ReviewError::Unfit(format!("names {namespace}/{account}: {fault}")))?;
    may_be_a_workload(&id, trust_domain).map_err(|why| ReviewError::Unfit(format!("is of {id}, {why}")))?;
    Ok(Caller { id, proof: Proof::Pod { name: pod.clone(), uid: uid.clone() } })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::parse("cluster.local").expect("valid")
    }

    fn status(change: impl FnOnce(&mut Value)) -> TokenReviewStatus {
        let mut status = json!({
            "authenticated": true, "audiences": ["weft"],
            "user": {
                "username": "system:serviceaccount:shop:orders",
                "extra": {POD_NAME: ["orders-1"], POD_UID: ["1234"]},
            },
        });
        change(&mut status);
        serde_json::from_value(status).expect("a status")
    }

    #[test]
    fn a_caller_is_the_service_account_of_its_pod() {
        let caller = judge(&status(|_| ()), &domain()).expect("identified");
        assert_eq!(caller.id.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
        assert_eq!(caller.proof.to_string(), "token of pod orders-1 (1234)");
    }

    #[test]
    fn what_the_api_server_does_not_vouch_for_proves_nothing() {
        type Change = fn(&mut Value);
        let rows: &[(&str, Change)] = &[
            ("not authenticated", |status| status["authenticated"] = json!(false)),
            ("expired", |status| status["error"] = json!("token has expired")),
            ("another audience", |status| status["audiences"] = json!(["https://kubernetes.default.svc"])),
            ("no audience", |status| drop(status.as_object_mut().expect("an object").remove("audiences"))),
            ("a person", |status| status["user"]["username"] = json!("system:admin")),
            ("a legacy token without a pod", |status| status["user"]["extra"] = json!({})),
            ("a token bound to a node", |status| {
                status["user"]["extra"] = json!({"authentication.kubernetes.io/node-name": ["n"]});
            }),
            ("the control plane's own name", |status| {
                status["user"]["username"] = json!("system:serviceaccount:weft-system:weft-control-plane");
            }),
            ("no user", |status| status["user"] = Value::Null),
        ];
        for (case, change) in rows {
            let found = judge(&status(*change), &domain());
            assert!(found.is_err(), "{case}: {found:?}");
        }
    }

    #[test]
    fn only_an_api_server_that_does_not_answer_is_unavailable() {
        for (code, expected) in
            [(400, false), (401, false), (403, false), (422, false), (429, true), (500, true), (503, true)]
        {
            let status = kube::core::Status { code, ..kube::core::Status::failure("no", "Reason") };
            let found = failed(kube::Error::Api(Box::new(status)));
            let unavailable = matches!(found, Unproven::Review(ReviewError::Unavailable(_)));
            assert_eq!(unavailable, expected, "{code}: {found}");
        }
    }

    #[test]
    fn the_api_server_is_not_asked_about_what_is_no_token_of_ours() {
        let token = |claims: &Value| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()));
        for good in [json!({"aud": "weft"}), json!({"aud": ["other", "weft"]})] {
            assert_eq!(for_us(&token(&good)), Ok(()), "{good}");
        }
        let other = token(&json!({"aud": ["kubernetes"]}));
        let long = format!("e30.{}.c2ln", "A".repeat(LONGEST));
        for bad in ["", "a.b", "a.b.c.d", "e30.!!.c2ln", "e30.e30.c2ln", "weft-join-v1.e30.c2ln", &other, &long] {
            assert!(for_us(bad).is_err(), "{}", &bad[..bad.len().min(40)]);
        }
    }
}
