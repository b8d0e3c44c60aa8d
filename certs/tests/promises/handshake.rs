//! A TLS handshake between two configurations, in memory, to its end.
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::KeyPair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection, SignatureScheme,
};
use weft_certs::tls_config::{client_config, peer_of, server_config, server_name, verify_error};
use weft_certs::{
    CertificateAuthority, ClientAuth, ExpectedServer, PrivateKey, SpiffeId, Svid, TrustBundle, VerifyError,
};

use crate::certificate::{Presented, hours};

pub const GREETING: &[u8] = b"hello";

/// How a handshake ended on both sides.
pub struct Ended {
    pub client: ClientConnection,
    pub server: ServerConnection,
    pub client_error: Option<Error>,
    pub server_error: Option<Error>,
    /// What the server's application could read of the client's greeting.
    pub read_by_server: Vec<u8>,
    pub read_by_client: Vec<u8>,
}

impl Ended {
    pub fn succeeded(&self) -> bool {
        self.client_error.is_none() && self.server_error.is_none() && self.read_by_server == GREETING
    }
}

/// Both sides send a greeting as soon as they can.
pub fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ended {
    let mut client = ClientConnection::new(client, server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    client.writer().write_all(GREETING).unwrap();
    server.writer().write_all(GREETING).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    let (mut read_by_client, mut read_by_server) = (Vec::new(), Vec::new());
    loop {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut to_server).unwrap();
        }
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        if to_server.is_empty() && to_client.is_empty() {
            return Ended { client, server, client_error, server_error, read_by_server, read_by_client };
        }
        let mut bytes = &to_server[..];
        while !bytes.is_empty() && server_error.is_none() {
            server.read_tls(&mut bytes).unwrap();
            server_error = server.process_new_packets().err();
            let _ = server.reader().read_to_end(&mut read_by_server);
        }
        let mut bytes = &to_client[..];
        while !bytes.is_empty() && client_error.is_none() {
            client.read_tls(&mut bytes).unwrap();
            client_error = client.process_new_packets().err();
            let _ = client.reader().read_to_end(&mut read_by_client);
        }
    }
}

/// An identity that an authority has issued.
pub fn svid(authority: &CertificateAuthority, id: &str) -> Svid {
    let (key, now) = (PrivateKey::generate(), SystemTime::now());
    let id = SpiffeId::parse(id).unwrap();
    let chain = authority.sign(&key.certificate_request(), &id, hours(1), now).unwrap();
    Svid::new(chain, &key, authority.trust_bundle(), now).unwrap()
}

pub fn expect(ids: &[&str]) -> ExpectedServer {
    ExpectedServer::OneOf(ids.iter().map(|id| SpiffeId::parse(id).unwrap()).collect())
}

/// Presents `presented` to our server, which trusts `bundle`.
pub fn judged_by_server(presented: &Presented, bundle: &TrustBundle) -> Result<SpiffeId, VerifyError> {
    let ended = handshake(presenting(presented), server_trusting(bundle));
    match &ended.server_error {
        None => {
            assert_eq!(ended.read_by_server, GREETING);
            Ok(peer_of(&ended.server).unwrap().id)
        }
        Some(error) => {
            assert_eq!(ended.read_by_server, b"", "not a byte of a refused client may reach the application");
            Err(verify_error(error).unwrap_or_else(|| panic!("refused for another reason: {error}")).clone())
        }
    }
}

/// Presents `presented` as a server to our client, which trusts `bundle` and expects `expected`.
pub fn judged_by_client(presented: &Presented, bundle: &TrustBundle, expected: &str) -> Result<SpiffeId, VerifyError> {
    let client = client_config(None, bundle, expect(&[expected]), &[]);
    let ended = handshake(client, hostile_server(presented));
    match &ended.client_error {
        None => {
            assert_eq!(ended.read_by_client, GREETING);
            Ok(peer_of(&ended.client).unwrap().id)
        }
        Some(error) => {
            assert_eq!(ended.read_by_server, b"", "not a byte may be sent to a refused server");
            Err(verify_error(error).unwrap_or_else(|| panic!("refused for another reason: {error}")).clone())
        }
    }
}

/// Our server. Its own identity comes from one more root, because a server cannot hold an identity that its bundle
/// refuses.
fn server_trusting(bundle: &TrustBundle) -> Arc<ServerConfig> {
    let now = SystemTime::now();
    let authority = CertificateAuthority::self_signed(&bundle.trust_domain, hours(10), now).unwrap();
    let key = PrivateKey::generate();
    let id = SpiffeId::for_service_account(&bundle.trust_domain, "test", "server").unwrap();
    let chain = authority.sign(&key.certificate_request(), &id, hours(1), now).unwrap();
    let mut bundle = bundle.clone();
    bundle.roots.extend(authority.trust_bundle().roots);
    server_config(&Svid::new(chain, &key, bundle, now).unwrap(), ClientAuth::Required, &[])
}

fn certified(presented: &Presented) -> Arc<SingleCertAndKey> {
    let key: &KeyPair = &presented.key;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    Arc::new(CertifiedKey::new(presented.chain.clone(), key).into())
}

/// A client that accepts every server, and presents what it is told to.
pub fn presenting(presented: &Presented) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAll))
        .with_client_cert_resolver(certified(presented));
    Arc::new(config)
}

fn hostile_server(presented: &Presented) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(certified(presented));
    Arc::new(config)
}

#[derive(Debug)]
pub struct AcceptAll;

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
