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
use weft_certs::CertificateAuthority;

use super::caller::{Caller, identify};
use super::limit::SignLimit;
use super::token::TokenKey;
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
    tokens: TokenKey,
    lifetimes: Lifetimes,
    limit: Mutex<SignLimit>,
    publisher: Arc<Publisher>,
    metrics: Metrics,
}

impl SignService {
    /// Signs with `authority` for whom `tokens` or a certificate proves.
    pub fn new(
        authority: watch::Receiver<Arc<CertificateAuthority>>,
        tokens: TokenKey,
        lifetimes: Lifetimes,
        publisher: Arc<Publisher>,
        metrics: Metrics,
    ) -> Self {
        let limit = Mutex::new(SignLimit::new(lifetimes.longest));
        Self { authority, tokens, lifetimes, limit, publisher, metrics }
    }

    fn admit(&self, caller: &Caller) -> Result<(), (SignResult, Status)> {
        let id = &caller.id;
        if self.publisher.is_denied(id) {
            tracing::warn!(%id, proof = %caller.proof, "refused a certificate: the identity is denied");
            return Err((SignResult::denied, Status::permission_denied("this identity is denied")));
        }
        let replicas = self.publisher.replicas(id);
        let taken = self.limit.lock().unwrap_or_else(PoisonError::into_inner).take(id, replicas, Instant::now());
        taken.map_err(|wait| {
            tracing::warn!(%id, proof = %caller.proof, ?wait, "refused a certificate: the identity asks too often");
            let wait = wait.as_secs().saturating_add(1);
            (
                SignResult::limited,
                Status::resource_exhausted(format!("too many requests of this identity; wait {wait}s")),
            )
        })
    }

    fn issue(
        &self,
        caller: &Caller,
        request: &SignRequest,
        now: SystemTime,
    ) -> Result<proto::SignResponse, (SignResult, Status)> {
        let authority = Arc::clone(&self.authority.borrow());
        let lifetime = self.lifetimes.grant(request.lifetime);
        if authority.not_after() <= now {
            tracing::error!("no certificate can be issued: the signing certificate has expired; renew it");
            return Err((SignResult::error, Status::unavailable("the control plane cannot sign; its log says why")));
        }
        // What is left that can fail is the request itself.
        let chain = authority.sign(&request.certificate_request, &caller.id, lifetime, now).map_err(|fault| {
            tracing::warn!(id = %caller.id, proof = %caller.proof, %fault, "refused a certificate: the request is not acceptable");
            (SignResult::invalid, Status::invalid_argument(fault.to_string()))
        })?;
        let expires = time::OffsetDateTime::from(authority.not_after().min(now + lifetime));
        tracing::info!(
            id = %caller.id, proof = %caller.proof, %expires, sha256 = fingerprint(&chain), "issued a certificate"
        );
        Ok(wire::encode_sign_response(&chain, &authority.trust_bundle()))
    }
}

#[tonic::async_trait]
impl proto::certificate_authority_server::CertificateAuthority for SignService {
    async fn sign(&self, request: Request<proto::SignRequest>) -> Result<Response<proto::SignResponse>, Status> {
        let now = SystemTime::now();
        let info = request.extensions().get::<ConnectionInfo>().cloned();
        let peer = info.as_ref().and_then(|info| info.peer.as_ref());
        let remote = info.as_ref().map(|info| info.remote.to_string()).unwrap_or_default();
        let caller = identify(peer, request.metadata(), &self.tokens, now);
        let answer = caller
            .map_err(|reason| {
                tracing::warn!(remote, %reason, "refused a certificate: the caller proved no identity");
                let status = Status::unauthenticated(
                    "no valid join token or client certificate; the control plane's log says why",
                );
                (SignResult::unauthenticated, status)
            })
            .and_then(|caller| {
                self.admit(&caller)?;
                let request = wire::decode_sign_request(request.into_inner())
                    .map_err(|fault| (SignResult::invalid, Status::invalid_argument(fault.to_string())))?;
                self.issue(&caller, &request, now)
            });
        match answer {
            Ok(response) => {
                self.metrics.signed(SignResult::issued);
                Ok(Response::new(response))
            }
            Err((result, status)) => {
                self.metrics.signed(result);
                Err(status)
            }
        }
    }
}

/// SHA-256 of the leaf's DER, as `openssl x509 -fingerprint -sha256` shows it but for the colons.
fn fingerprint(chain: &[CertificateDer<'static>]) -> String {
    let hash = digest::digest(&digest::SHA256, chain.first().map_or(&[][..], |leaf| leaf));
    hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}
