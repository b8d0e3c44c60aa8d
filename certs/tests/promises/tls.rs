//! What a handshake between two configurations of this crate promises.
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    AlertDescription, ClientConfig, Error, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig, ServerConnection,
};
use weft_certs::tls_config::{client_config, peer_of, refusal, server_config, verify_error};
use weft_certs::{CertificateAuthority, ClientAuth, PrivateKey, SpiffeId, Svid, TrustDomain, VerifyError};

use crate::certificate::*;
use crate::handshake::*;

const CART: &str = "spiffe://td.example/ns/shop/sa/cart";
const STOCK: &str = "spiffe://td.example/ns/shop/sa/stock";

struct Mesh {
    authority: CertificateAuthority,
    cart: Svid,
    stock: Svid,
}

fn mesh() -> Mesh {
    let domain = TrustDomain::parse("td.example").unwrap();
    let authority = CertificateAuthority::self_signed(&domain, hours(10), SystemTime::now()).unwrap();
    let (cart, stock) = (svid(&authority, CART), svid(&authority, STOCK));
    Mesh { authority, cart, stock }
}

impl Mesh {
    /// Cart calls stock.
    fn client(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        client_config(Some(&self.cart), self.cart.bundle(), expect(&[STOCK]), alpn)
    }

    fn server(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        server_config(&self.stock, ClientAuth::Required, alpn)
    }
}

#[test]
fn both_sides_learn_the_other_identity_over_tls_13_with_a_post_quantum_key_exchange() {
    let mesh = mesh();
    let ended = handshake(mesh.client(&[b"weft/h2", b"weft/http1"]), mesh.server(&[b"weft/http1", b"weft/h2"]));
    assert!(ended.succeeded());
    assert_eq!(ended.read_by_client, GREETING);
    let (client, server) = (peer_of(&ended.server).unwrap(), peer_of(&ended.client).unwrap());
    for (peer, svid) in [(client, &mesh.cart), (server, &mesh.stock)] {
        assert_eq!(peer.id, *svid.id());
        assert_eq!(peer.not_after, svid.not_after());
        assert_eq!(peer.fingerprint, svid.fingerprint());
    }
    assert_eq!(ended.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(ended.client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(ended.server.alpn_protocol(), Some(&b"weft/http1"[..]), "the server's preference decides");
    assert_eq!(ended.server.server_name(), None, "no SNI is sent");
}

#[test]
fn a_second_connection_is_judged_afresh() {
    let mesh = mesh();
    let (client, server) = (mesh.client(&[]), mesh.server(&[]));
    for _ in 0..3 {
        let ended = handshake(client.clone(), server.clone());
        assert!(ended.succeeded());
        assert_eq!(ended.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(ended.client.tls13_tickets_received(), 0);
    }
    assert_eq!((server.max_early_data_size, server.send_tls13_tickets), (0, 0));
    assert!(!client.enable_early_data);
}

#[test]
fn a_client_without_a_certificate_is_refused_or_anonymous_as_the_server_demands() {
    let mesh = mesh();
    let anonymous = || client_config(None, mesh.stock.bundle(), expect(&[STOCK]), &[]);
    let refused = handshake(anonymous(), mesh.server(&[]));
    assert!(matches!(refused.server_error, Some(Error::NoCertificatesPresented)), "{:?}", refused.server_error);
    assert!(matches!(refused.client_error, Some(Error::AlertReceived(AlertDescription::CertificateRequired))));
    assert_eq!(refused.read_by_server, b"");

    let ended = handshake(anonymous(), server_config(&mesh.stock, ClientAuth::Optional, &[]));
    assert!(ended.succeeded());
    assert_eq!(peer_of(&ended.server), None);
    let ended = handshake(mesh.client(&[]), server_config(&mesh.stock, ClientAuth::Optional, &[]));
    assert_eq!(peer_of(&ended.server).unwrap().id.as_str(), CART);
}

#[test]
fn an_optional_certificate_is_judged_all_the_same() {
    let mesh = mesh();
    let stranger = svid(&self::mesh().authority, CART);
    let client = client_config(Some(&stranger), mesh.stock.bundle(), expect(&[STOCK]), &[]);
    let ended = handshake(client, server_config(&mesh.stock, ClientAuth::Optional, &[]));
    assert_eq!(verify_error(&ended.server_error.unwrap()).unwrap().reason(), "unknown_issuer");
    assert_eq!(ended.read_by_server, b"");
}

#[test]
fn a_server_is_accepted_only_as_one_of_the_expected() {
    let mesh = mesh();
    for (expected, accepted) in [(&[CART, STOCK][..], true), (&[CART], false), (&[], false)] {
        let client = client_config(Some(&mesh.cart), mesh.cart.bundle(), expect(expected), &[]);
        let ended = handshake(client, mesh.server(&[]));
        assert_eq!(ended.succeeded(), accepted, "{expected:?}");
        if let Some(error) = ended.client_error {
            let error = verify_error(&error).unwrap();
            assert_eq!((error.rule(), error.reason()), (11, "unexpected_identity"));
            assert!(error.to_string().contains(STOCK), "the message names who answered: {error}");
        }
    }
}

#[test]
fn the_reason_of_a_refusal_survives_the_error_of_a_stream() {
    let mesh = mesh();
    let client = client_config(None, mesh.stock.bundle(), expect(&[CART]), &[]);
    let error = handshake(client, mesh.server(&[])).client_error.unwrap();
    let error = io::Error::new(io::ErrorKind::InvalidData, error);
    assert_eq!(refusal(&error).unwrap().reason(), "unexpected_identity");
    assert!(refusal(&io::Error::from(io::ErrorKind::ConnectionReset)).is_none());
    assert!(verify_error(&Error::DecryptError).is_none());
}

#[test]
fn no_common_alpn_ends_the_handshake() {
    let mesh = mesh();
    let ended = handshake(mesh.client(&[b"http/1.1"]), mesh.server(&[b"weft/http1"]));
    assert!(matches!(ended.server_error, Some(Error::NoApplicationProtocol)));
    assert_eq!(ended.read_by_server, b"");
}

/// A client of plain rustls that offers only what `change` leaves.
fn other_client(change: impl FnOnce(&mut CryptoProvider), mesh: &Mesh) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    change(&mut provider);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAll))
        .with_no_client_auth();
    config.client_auth_cert_resolver = mesh.client(&[]).client_auth_cert_resolver.clone();
    Arc::new(config)
}

#[test]
fn x25519_is_accepted_and_other_groups_are_not() {
    use aws_lc_rs::kx_group::{SECP256R1, X25519};
    let mesh = mesh();
    let ended = handshake(other_client(|provider| provider.kx_groups = vec![X25519], &mesh), mesh.server(&[]));
    assert!(ended.succeeded());
    assert_eq!(ended.server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
    let ended = handshake(other_client(|provider| provider.kx_groups = vec![SECP256R1], &mesh), mesh.server(&[]));
    assert!(ended.server_error.is_some());
}

#[test]
fn older_versions_and_plaintext_are_refused() {
    let mesh = mesh();
    let old_hello = |version: [u8; 2]| {
        // One ECDSA suite, no compression, the curves and signatures that a TLS 1.2 client of that suite sends.
        let extensions = [0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3];
        let body = [&version[..], &[7; 32], &[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16], &extensions].concat();
        let message = [&[1, 0, 0, body.len() as u8], &body[..]].concat();
        [&[0x16, 3, 1, 0, message.len() as u8], &message[..]].concat()
    };
    for (what, bytes) in [
        ("TLS 1.0", old_hello([3, 1])),
        ("TLS 1.1", old_hello([3, 2])),
        ("TLS 1.2", old_hello([3, 3])),
        ("SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10]),
        ("plaintext", b"GET / HTTP/1.1\r\nhost: stock\r\n\r\n".to_vec()),
    ] {
        let mut server = ServerConnection::new(mesh.server(&[])).unwrap();
        let mut refusal = None;
        for byte in bytes {
            server.read_tls(&mut &[byte][..]).unwrap();
            refusal = refusal.or(server.process_new_packets().err());
        }
        let expected = |error: &Error| match what {
            "SSL 2" | "plaintext" => matches!(error, Error::InvalidMessage(_)),
            _ => matches!(error, Error::PeerIncompatible(_)),
        };
        assert!(refusal.as_ref().is_some_and(expected), "{what}: {refusal:?}");
    }
}

#[test]
fn a_certificate_without_its_key_does_not_authenticate() {
    let mesh = mesh();
    let stolen = Presented { chain: mesh.cart.chain().to_vec(), key: rcgen::KeyPair::generate().unwrap() };
    let ended = handshake(presenting(&stolen), mesh.server(&[]));
    assert!(ended.server_error.is_some());
    assert_eq!(ended.read_by_server, b"");
    assert_eq!(peer_of(&ended.server), None, "an unfinished handshake has no peer");
}

#[test]
fn a_bundle_with_the_old_and_the_new_root_serves_both() {
    let (old, new) = (mesh(), mesh());
    let mut both = old.cart.bundle().clone();
    both.roots.extend(new.cart.bundle().roots.iter().cloned());
    let client = client_config(Some(&old.cart), &both, expect(&[STOCK]), &[]);
    let key = PrivateKey::generate();
    let (id, now) = (SpiffeId::parse(STOCK).unwrap(), SystemTime::now());
    let chain = new.authority.sign(&key.certificate_request(), &id, hours(1), now).unwrap();
    let stock = Svid::new(chain, &key, both, now).unwrap();
    assert!(handshake(client, server_config(&stock, ClientAuth::Required, &[])).succeeded());
    let unaware = handshake(old.client(&[]), server_config(&stock, ClientAuth::Required, &[]));
    assert_eq!(verify_error(&unaware.client_error.unwrap()).unwrap().reason(), "unknown_issuer");
}

#[test]
fn an_identity_needs_its_own_key_and_its_own_bundle() {
    let mesh = mesh();
    let now = SystemTime::now();
    let make = |chain: &[_], key: &PrivateKey, bundle: &weft_certs::TrustBundle, now| {
        Svid::new(chain.to_vec(), key, bundle.clone(), now).map_err(|error| error.reason()).map(drop)
    };
    let key = PrivateKey::generate();
    let id = SpiffeId::parse(CART).unwrap();
    let chain = mesh.authority.sign(&key.certificate_request(), &id, hours(1), now).unwrap();
    let bundle = mesh.cart.bundle();
    assert_eq!(make(&chain, &key, bundle, now), Ok(()));
    assert_eq!(make(&chain, &PrivateKey::generate(), bundle, now), Err("wrong_key"));
    assert_eq!(make(&chain, &key, self::mesh().cart.bundle(), now), Err("unknown_issuer"));
    assert_eq!(make(&chain, &key, bundle, now + hours(2)), Err("expired"));
    assert_eq!(make(&[], &key, bundle, now), Err("malformed"));
    assert_eq!(VerifyError::WrongKey.rule(), 0);
}
