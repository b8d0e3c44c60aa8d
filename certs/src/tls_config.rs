//! rustls configurations: TLS 1.3 only, X25519MLKEM768 before X25519, no resumption, no early data.
//!
//! Every handshake is judged by [`crate::verify_chain`] on both sides; host names are never looked at. Without
//! resumption no connection can skip that judgement, so an expired or replaced certificate or bundle has no afterlife.
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rcgen::PublicKeyData;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;

use crate::anchors::Anchors;
use crate::bundle::TrustBundle;
use crate::certificate::{Certificate, fingerprint};
use crate::key::PrivateKey;
use crate::spiffe::SpiffeId;
use crate::verifier::ChainVerifier;
use crate::verify::{Peer, VerifyError, judge};

pub use crate::verifier::{refusal, verify_error};

/// An X.509-SVID with its key and the bundle that judges its peers: all that a TLS configuration needs. Cheap to clone.
#[derive(Clone)]
pub struct Svid(Arc<Inner>);

struct Inner {
    peer: Peer,
    not_before: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    resolver: Arc<SingleCertAndKey>,
    anchors: Arc<Anchors>,
}

impl Svid {
    /// Puts together what the authority returned; verifies that the leaf is valid under `bundle` and belongs to `key`.
    ///
    /// # Errors
    /// The chain breaks a rule or is not trusted at `now`, or [`VerifyError::WrongKey`].
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKey,
        bundle: TrustBundle,
        now: SystemTime,
    ) -> Result<Self, VerifyError> {
        let Some((leaf, rest)) = chain.split_first() else {
            return Err(VerifyError::Malformed("there is no certificate".into()));
        };
        let anchors = Arc::new(Anchors::new(bundle));
        let peer = judge(leaf, rest, &anchors, now)?;
        let certificate = Certificate::parse(leaf)?;
        if certificate.public_key != key.pair.subject_public_key_info() {
            return Err(VerifyError::WrongKey);
        }
        let signing_key = aws_lc_rs::sign::any_ecdsa_type(&PrivateKeyDer::Pkcs8(key.to_pkcs8_der()))
            .expect("a PrivateKey is ECDSA P-256 in PKCS#8, which the provider reads");
        let not_before = certificate.not_before;
        let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain.clone(), signing_key)));
        Ok(Svid(Arc::new(Inner { peer, not_before, chain, resolver, anchors })))
    }

    /// Whose identity this is.
    pub fn id(&self) -> &SpiffeId {
        &self.0.peer.id
    }

    /// Start of validity.
    pub fn not_before(&self) -> SystemTime {
        self.0.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.0.peer.not_after
    }

    /// The chain that is presented: DER, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// The bundle that judges peers.
    pub fn bundle(&self) -> &TrustBundle {
        &self.0.anchors.bundle
    }

    /// SHA-256 of the leaf's DER.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.0.peer.fingerprint
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("id", self.id()).field("not_after", &self.not_after()).finish_non_exhaustive()
    }
}

/// Whether a server demands a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without one the handshake fails.
    Required,
    /// A presented one is judged all the same; see `peer_of`.
    Optional,
}

/// Which identities a client accepts from the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ExpectedServer {
    /// One of these, exactly.
    OneOf(Arc<[SpiffeId]>),
}

impl ExpectedServer {
    pub(crate) fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            ExpectedServer::OneOf(ids) => ids.contains(id),
        }
    }
}

/// A server configuration that presents `svid`. `alpn` is in order of preference; a client that offers none of it is
/// refused, one that offers no ALPN at all is served.
pub fn server_config(svid: &Svid, client_auth: ClientAuth, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
    let verifier = ChainVerifier::of_clients(svid.0.anchors.clone(), provider(), client_auth);
    let mut config = rustls::ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 cipher suites and groups")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(svid.0.resolver.clone());
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// A client configuration that presents `svid` (none: anonymous) and accepts servers of `bundle` that are `expected`.
///
/// One for each destination: certificates, keys and roots are shared with `svid`, so it costs little to make.
pub fn client_config(
    svid: Option<&Svid>,
    bundle: &TrustBundle,
    expected: ExpectedServer,
    alpn: &[&[u8]],
) -> Arc<rustls::ClientConfig> {
    let anchors = match svid {
        Some(svid) if svid.bundle() == bundle => svid.0.anchors.clone(),
        _ => Arc::new(Anchors::new(bundle.clone())),
    };
    let verifier = ChainVerifier::of_servers(anchors, provider(), expected);
    let builder = rustls::ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 cipher suites and groups")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(svid.0.resolver.clone()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Arc::new(config)
}

/// The name given to rustls for a connection; it is not sent (SNI is off) and not judged (the SPIFFE ID is).
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("peer.invalid").expect("a valid DNS name")
}

/// The peer of a finished handshake (`None`: it presented no certificate, or the handshake has not ended). The chain
/// was verified in the handshake; this reads its identity and expiry.
pub fn peer_of(connection: &rustls::CommonState) -> Option<Peer> {
    // Before the end the peer has shown a certificate, but not that it holds the key.
    if connection.is_handshaking() {
        return None;
    }
    let leaf = connection.peer_certificates()?.first()?;
    let certificate = Certificate::parse(leaf).ok()?;
    Some(Peer { id: certificate.id().ok()?, not_after: certificate.not_after, fingerprint: fingerprint(leaf) })
}

/// The one provider: TLS 1.3 suites only, hybrid post-quantum key exchange first.
fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        use aws_lc_rs::{cipher_suite, kx_group};
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
            ..aws_lc_rs::default_provider()
        })
    })
}
