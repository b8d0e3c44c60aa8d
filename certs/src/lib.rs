//! SPIFFE identities, keys, the certificate authority and TLS configurations.
//!
//! This crate does no I/O and takes the clock as an argument. Every certificate passes the same judge,
//! [`verify_chain`]: what a peer presents in a handshake, what the authority has just signed, and what a sidecar
//! received from it. The rules are listed, numbered and sourced in [`rules::Rule`].

mod anchors;
pub mod bundle;
mod certificate;
mod der;
pub mod issuer;
pub mod key;
mod leaf;
mod pem;
pub mod rules;
pub mod spiffe;
pub mod tls_config;
mod verifier;
pub mod verify;

pub use bundle::TrustBundle;
pub use issuer::{CertificateAuthority, IssuerError};
pub use key::PrivateKey;
pub use rules::Rule;
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use tls_config::{ClientAuth, ExpectedServer, Svid};
pub use verify::{Peer, VerifyError, verify_chain};

/// Makes aws-lc-rs the process-wide rustls provider. Idempotent; call it first in `main` and in tests.
///
/// The configurations of [`tls_config`] do not need it (they name their provider); other users of rustls in the process
/// do, because rustls refuses to guess when a dependency has turned on a second provider.
pub fn install_crypto_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
