//! Signs certificates: a proven identity gets a certificate for exactly that identity, for a limited time.
//!
//! Nothing of the request is used but its public key. Callers that prove nothing are all told the same; the reason is in
//! the log, where each issued certificate has its line too.
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use weft_api::wire::{self, SignRequest, proto};
use weft_certs::{CertificateAuthority, Peer};

use super::caller::{Attestation, Caller, Unproven};
use super::limit::SignLimit;
use super::token_review::ReviewError;
use crate::audit::{self, Audit, Entry};
use crate::cluster::events::Events;
use crate::listener::ConnectionInfo;
use crate::metrics::{Metrics, SignResult};
use crate::publish::Publisher;

/// How long certificates live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// The shortest that may be asked for.
    pub shortest: Duration,
    /// The longest that may be asked for, and what is given to who does not ask.
    pub longest: Duration,
}

impl Lifetimes {
    /// What a caller gets.
    pub fn grant(self, wanted: Option<Duration>) -> Duration {
        wanted.map_or(self.longest, |wanted| wanted.clamp(self.shortest, self.longest))
    }
}

/// The gRPC service `CertificateAuthority`.
pub struct SignService {
    authority: watch::Receiver<Arc<CertificateAuthority>>,
    attestation: Attestation,
    lifetimes: Lifetimes,
    limit: Mutex<SignLimit>,
    publisher: Arc<Publisher>,
    audit: Arc<Audit>,
    events: Events,
    metrics: Metrics,
}

impl SignService {
    /// Signs with `authority` for whom `attestation` recognizes.
    pub fn new(
        authority: watch::Receiver<Arc<CertificateAuthority>>,
        attestation: Attestation,
        lifetimes: Lifetimes,
        publisher: Arc<Publisher>,
        audit: Arc<Audit>,
        events: Events,
        metrics: Metrics,
    ) -> Self {
        let limit = Mutex::new(SignLimit::new(lifetimes.longest));
        Self { authority, attestation, lifetimes, limit, publisher, audit, events, metrics }
    }

    async fn answer(
        &self,
        asked: &Asked<'_>,
        request: Request<proto::SignRequest>,
    ) -> Result<proto::SignResponse, NotIssued> {
        let known = &self.publisher;
        let caller = self.attestation.identify(asked.peer, request.metadata(), known, asked.now).await?;
        self.admit(&caller)?;
        let refused = |because| NotIssued { caller: Some(Box::new(caller.clone())), because };
        let request = wire::decode_sign_request(request.into_inner())
            .map_err(|fault| refused(Because::Invalid(fault.to_string())))?;
        self.issue(&caller, &request, asked).map_err(refused)
    }

    fn admit(&self, caller: &Caller) -> Result<(), NotIssued> {
        let refused = |because| NotIssued { caller: Some(Box::new(caller.clone())), because };
        if self.publisher.is_denied(&caller.id) {
            return Err(refused(Because::Denied));
        }
        let replicas = self.publisher.replicas(&caller.id);
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        limit.take(&caller.id, replicas, Instant::now()).map_err(|wait| refused(Because::TooOften(wait)))
    }

    fn issue(&self, caller: &Caller, request: &SignRequest, asked: &Asked<'_>) -> Result<proto::SignResponse, Because> {
        let (authority, now) = (Arc::clone(&self.authority.borrow()), asked.now);
        let lifetime = self.lifetimes.grant(request.lifetime);
        if authority.not_after() <= now {
            return Err(Because::IssuerExpired);
        }
        // What is left that can fail is the request itself.
        let chain = authority
            .sign(&request.certificate_request, &caller.id, lifetime, now)
            .map_err(|fault| Because::Invalid(fault.to_string()))?;
        let issued = Entry::CertificateIssued {
            id: caller.id.as_str(),
            proof: &caller.proof.to_string(),
            remote: &asked.remote,
            expires: &audit::timestamp(authority.not_after().min(now + lifetime)),
            sha256: &fingerprint(&chain),
        };
        self.audit.record(&issued);
        if let Entry::CertificateIssued { id, proof, remote, expires, sha256 } = issued {
            tracing::info!(id, proof, remote, expires, sha256, "issued a certificate");
        }
        Ok(wire::encode_sign_response(&chain, &authority.trust_bundle()))
    }

    fn refuse(&self, asked: &Asked<'_>, refused: &NotIssued) -> Status {
        let caller = refused.caller.as_deref();
        let (id, reason) = (caller.map(|caller| caller.id.as_str()), refused.because.to_string());
        let recorded = self.audit.record(&Entry::CertificateRefused { id, remote: &asked.remote, reason: &reason });
        if recorded {
            tracing::warn!(id, remote = asked.remote, reason, "refused a certificate");
        }
        if let Some(notice) = caller.and_then(|caller| caller.notice(&refused.because.in_short())) {
            self.events.tell(notice);
        }
        let (result, status) = refused.because.told();
        self.metrics.signed(result);
        status
    }
}

/// Who asks from where, and when.
struct Asked<'a> {
    peer: Option<&'a Peer>,
    remote: String,
    now: SystemTime,
}

/// No certificate, and for whom.
struct NotIssued {
    caller: Option<Box<Caller>>,
    because: Because,
}

/// Why there is no certificate: for the log.
#[derive(Debug, thiserror::Error)]
enum Because {
    #[error("the caller proved no identity: {0}")]
    Unproven(Unproven),
    #[error("the identity is denied")]
    Denied,
    #[error("the identity asks too often; it may again in {}s", .0.as_secs() + 1)]
    TooOften(Duration),
    #[error("the request is not acceptable: {0}")]
    Invalid(String),
    #[error("the signing certificate has expired; renew it")]
    IssuerExpired,
}

impl Because {
    /// Without what differs each time, so that the same is not told as something new.
    fn in_short(&self) -> String {
        match self {
            Self::TooOften(_) => "the identity asks too often; something restarts in a loop".to_owned(),
            _ => self.to_string(),
        }
    }

    /// What is counted, and what the caller is told.
    fn told(&self) -> (SignResult, Status) {
        match self {
            Self::Unproven(Unproven::Review(ReviewError::Unavailable(_))) => {
                (SignResult::error, Status::unavailable("the control plane cannot verify tokens now; its log says why"))
            }
            Self::Unproven(_) => (
                SignResult::unauthenticated,
                Status::unauthenticated("no valid token or client certificate; the control plane's log says why"),
            ),
            Self::Denied => (SignResult::denied, Status::permission_denied(self.to_string())),
            Self::TooOften(_) => (SignResult::limited, Status::resource_exhausted(self.to_string())),
            Self::Invalid(_) => (SignResult::invalid, Status::invalid_argument(self.to_string())),
            Self::IssuerExpired => {
                (SignResult::error, Status::unavailable("the control plane cannot sign; its log says why"))
            }
        }
    }
}

impl From<Unproven> for NotIssued {
    fn from(unproven: Unproven) -> Self {
        Self { caller: None, because: Because::Unproven(unproven) }
    }
}

#[tonic::async_trait]
impl proto::certificate_authority_server::CertificateAuthority for SignService {
    async fn sign(&self, request: Request<proto::SignRequest>) -> Result<Response<proto::SignResponse>, Status> {
        let info = request.extensions().get::<ConnectionInfo>().cloned();
        let asked = Asked {
            peer: info.as_ref().and_then(|info| info.peer.as_ref()),
            remote: info.as_ref().map(|info| info.remote.to_string()).unwrap_or_default(),
            now: SystemTime::now(),
        };
        match self.answer(&asked, request).await {
            Ok(response) => {
                self.metrics.signed(SignResult::issued);
                Ok(Response::new(response))
            }
            Err(refused) => Err(self.refuse(&asked, &refused)),
        }
    }
}

/// SHA-256 of the leaf's DER, as `openssl x509 -fingerprint -sha256` shows it but for the colons.
fn fingerprint(chain: &[CertificateDer<'static>]) -> String {
    let hash = digest::digest(&digest::SHA256, chain.first().map_or(&[][..], |leaf| leaf));
    hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}
