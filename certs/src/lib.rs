//! SPIFFE identities, keys, the certificate authority and TLS configurations.
//!
//! This crate does no I/O and takes the clock as an argument.

pub mod issuer;
pub mod key;
pub mod spiffe;
pub mod tls_config;
pub mod verify;

pub use issuer::{CertificateAuthority, IssuerError};
pub use key::PrivateKey;
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use tls_config::{ClientAuth, ExpectedServer, Svid};
pub use verify::{Peer, TrustBundle, VerifyError};

/// Makes aws-lc-rs the process-wide rustls provider. Idempotent; call it first in `main` and in tests.
pub fn install_crypto_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
