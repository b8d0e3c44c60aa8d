//! Join tokens: what a sidecar outside Kubernetes proves its identity with for its first certificate.
//!
//! `weft-join-v1.<payload>.<mac>`, both parts base64url without padding (RFC 4648 section 5). The payload is JSON; the MAC
//! is HMAC-SHA256 (RFC 2104) over everything before the last dot, under a key that never leaves the state directory. A
//! token names exactly one SPIFFE ID, one audience and one expiry, and can be used by whoever holds it, as often as
//! wanted, until it expires. Nothing of a token is parsed before its MAC was checked, and a token is never logged.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use weft_certs::{SpiffeId, TrustDomain};

/// Version of the format, part of what the MAC covers.
const PREFIX: &str = "weft-join-v1.";
/// Longer texts are refused unread, in bytes.
const LONGEST: usize = 4 * 1024;
/// Length of the key, in bytes.
pub const KEY_LENGTH: usize = 32;

/// The key that signs and checks join tokens of one trust domain. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct TokenKey {
    trust_domain: TrustDomain,
    key: hmac::Key,
}

/// A join token that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Whom it stands for.
    pub id: SpiffeId,
    /// Name of the token in logs. Not secret.
    pub token: String,
}

/// Why a join token was refused. For the log: callers learn nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Over 4 KiB.
    #[error("the join token is longer than {LONGEST} bytes")]
    TooLong,
    /// Not `weft-join-v1.<payload>.<mac>`.
    #[error("this is not a join token (weft-join-v1)")]
    Format,
    /// Made under another key, or altered.
    #[error("the join token was not made by this control plane, or was altered")]
    Signature,
    /// For somebody else.
    #[error("the join token is for audience {0}")]
    Audience(String),
    /// Too late.
    #[error("the join token {token} of {id} expired {}s ago; make one with: weft token create", .ago.as_secs())]
    Expired {
        /// Whom it stood for.
        id: String,
        /// Its name.
        token: String,
        /// For how long.
        ago: Duration,
    },
    /// No identity that a join token may name.
    #[error("the join token names {0}")]
    Identity(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    sub: String,
    aud: String,
    iat: u64,
    exp: u64,
    jti: String,
}

impl TokenKey {
    /// A key for the tokens of `trust_domain`.
    pub fn new(trust_domain: TrustDomain, key: &[u8; KEY_LENGTH]) -> Self {
        Self { trust_domain, key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// Whose tokens these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Makes a token that proves `namespace` and `service_account` until `ttl` from `now`.
    ///
    /// # Errors
    /// What is wrong with the names.
    pub fn create(
        &self,
        namespace: &str,
        service_account: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let id = SpiffeId::for_service_account(&self.trust_domain, namespace, service_account)
            .map_err(|fault| TokenError::Identity(format!("{namespace}/{service_account}: {fault}")))?;
        self.permitted(&id)?;
        let issued = seconds(now);
        let payload = Payload {
            sub: id.as_str().to_owned(),
            aud: self.audience(),
            iat: issued,
            exp: issued.saturating_add(ttl.as_secs()),
            jti: format!("{:016x}", rand::random::<u64>()),
        };
        let payload = serde_json::to_vec(&payload).expect("strings and numbers are JSON");
        let signed = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(payload));
        let mac = hmac::sign(&self.key, signed.as_bytes());
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac)))
    }

    /// Checks a token: its MAC in constant time, then audience, expiry and identity.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn check(&self, token: &str, now: SystemTime) -> Result<JoinToken, TokenError> {
        if token.len() > LONGEST {
            return Err(TokenError::TooLong);
        }
        if !token.starts_with(PREFIX) {
            return Err(TokenError::Format);
        }
        let (signed, mac) = token.rsplit_once('.').ok_or(TokenError::Format)?;
        let encoded = signed.strip_prefix(PREFIX).ok_or(TokenError::Format)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| TokenError::Format)?;
        hmac::verify(&self.key, signed.as_bytes(), &mac).map_err(|_| TokenError::Signature)?;

        let payload = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError::Format)?;
        let payload: Payload = serde_json::from_slice(&payload).map_err(|_| TokenError::Format)?;
        if payload.aud != self.audience() {
            return Err(TokenError::Audience(payload.aud));
        }
        if let Some(ago) = seconds(now).checked_sub(payload.exp) {
            return Err(TokenError::Expired { id: payload.sub, token: payload.jti, ago: Duration::from_secs(ago) });
        }
        let id = SpiffeId::parse(&payload.sub).map_err(|fault| TokenError::Identity(fault.to_string()))?;
        self.permitted(&id)?;
        Ok(JoinToken { id, token: payload.jti })
    }

    fn audience(&self) -> String {
        format!("weft-control-plane.{}", self.trust_domain)
    }

    /// A workload of this trust domain, and never the control plane: whoever could be it could tell sidecars anything.
    fn permitted(&self, id: &SpiffeId) -> Result<(), TokenError> {
        if id.trust_domain() != self.trust_domain.as_str() || id.service_account().is_none() {
            return Err(TokenError::Identity(format!("{id}, which is no service account of {}", self.trust_domain)));
        }
        if *id == crate::config::control_plane_id(&self.trust_domain) {
            return Err(TokenError::Identity(format!("{id}, which is the control plane's own; choose another name")));
        }
        Ok(())
    }
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKey").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(domain: &str, byte: u8) -> TokenKey {
        TokenKey::new(TrustDomain::parse(domain).expect("valid"), &[byte; KEY_LENGTH])
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn orders(key: &TokenKey) -> String {
        key.create("shop", "orders", Duration::from_secs(60), now()).expect("a token")
    }

    #[test]
    fn a_token_proves_exactly_the_identity_it_was_made_for() {
        let key = key("cluster.local", 1);
        let token = key.check(&orders(&key), now()).expect("accepted");
        assert_eq!(token.id.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
    }

    #[test]
    fn a_token_is_good_until_its_expiry_and_no_longer() {
        let key = key("cluster.local", 1);
        let token = orders(&key);
        assert!(key.check(&token, now() + Duration::from_secs(59)).is_ok());
        assert!(matches!(key.check(&token, now() + Duration::from_secs(60)), Err(TokenError::Expired { .. })));
    }

    #[test]
    fn whatever_was_altered_or_made_elsewhere_proves_nothing() {
        let ours = key("cluster.local", 1);
        let good = orders(&ours);
        let forged_payload = {
            let (_, mac) = good.rsplit_once('.').expect("three parts");
            let other = orders(&key("cluster.local", 2));
            let (signed, _) = other.rsplit_once('.').expect("three parts");
            format!("{signed}.{mac}")
        };
        for (case, token) in [
            ("another key", orders(&key("cluster.local", 2))),
            ("another trust domain and key", orders(&key("other.test", 3))),
            ("another trust domain, same key", orders(&key("other.test", 1))),
            ("the payload of another token", forged_payload),
            ("a cut MAC", good[..good.len() - 1].to_owned()),
            ("no MAC", good.rsplit_once('.').expect("three parts").0.to_owned()),
            ("an empty MAC", format!("{}.", good.rsplit_once('.').expect("three parts").0)),
            ("a later version", good.replace("-v1.", "-v2.")),
            ("garbage", "Zm9v".to_owned()),
            ("nothing", String::new()),
            ("1 MiB", format!("{PREFIX}{}", "A".repeat(1 << 20))),
        ] {
            assert!(ours.check(&token, now()).is_err(), "{case} was accepted");
        }
        assert!(ours.check(&good, now()).is_ok(), "and the good one still is");
    }

    #[test]
    fn no_token_is_made_for_the_control_plane_or_for_a_bad_name() {
        let key = key("cluster.local", 1);
        for (namespace, account) in
            [("weft-system", "weft-control-plane"), ("shop", "a/b"), ("shop", ""), ("..", "orders")]
        {
            let made = key.create(namespace, account, Duration::from_secs(60), now());
            assert!(matches!(made, Err(TokenError::Identity(_))), "{namespace}/{account}: {made:?}");
        }
    }
}
