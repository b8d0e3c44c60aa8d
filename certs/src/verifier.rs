//! rustls' questions about a peer's certificate, answered by [`crate::verify_chain`].
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, SignatureScheme,
};

use crate::anchors::Anchors;
use crate::rules::Rule;
use crate::tls_config::{ClientAuth, ExpectedServer};
use crate::verify::{Peer, VerifyError, judge};

/// Judges the other side of a handshake.
#[derive(Debug)]
pub(crate) struct ChainVerifier {
    anchors: Arc<Anchors>,
    signatures: WebPkiSupportedAlgorithms,
    mandatory: bool,
    /// `None`: any identity of the trust domain.
    expected: Option<ExpectedServer>,
}

impl ChainVerifier {
    pub(crate) fn of_clients(anchors: Arc<Anchors>, provider: &CryptoProvider, client_auth: ClientAuth) -> Self {
        let mandatory = client_auth == ClientAuth::Required;
        let signatures = provider.signature_verification_algorithms;
        ChainVerifier { anchors, signatures, mandatory, expected: None }
    }

    pub(crate) fn of_servers(anchors: Arc<Anchors>, provider: &CryptoProvider, expected: ExpectedServer) -> Self {
        let signatures = provider.signature_verification_algorithms;
        ChainVerifier { anchors, signatures, mandatory: true, expected: Some(expected) }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Peer, VerifyError> {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        let peer = judge(leaf, rest, &self.anchors, now)?;
        match &self.expected {
            Some(expected) if !expected.accepts(&peer.id) => {
                Err(VerifyError::Broken { rule: Rule::UnexpectedIdentity, detail: format!("it is {}", peer.id) })
            }
            _ => Ok(peer),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.signatures)
    }

    fn refuse_tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates, now).map_err(tls_error)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

impl ClientCertVerifier for ChainVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: mesh clients have one certificate, and the names of our roots are nobody's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates, now).map_err(tls_error)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

fn tls_error(error: VerifyError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Why we refused the peer's certificate, if that is what ended the handshake.
pub fn verify_error(error: &Error) -> Option<&VerifyError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
        _ => None,
    }
}

/// The same for the error of an asynchronous stream, which wraps the one of rustls.
pub fn refusal(error: &io::Error) -> Option<&VerifyError> {
    verify_error(error.get_ref()?.downcast_ref()?)
}
