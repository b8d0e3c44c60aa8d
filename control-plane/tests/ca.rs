//! Who gets a certificate, for which name and for how long.
mod common;

use std::time::{Duration, SystemTime};

use common::{LONG, Mesh, sign, workload};
use tonic::Code;
use weft_certs::{PrivateKey, Svid, TrustDomain, verify_chain};
use weft_control_plane::ca::store::Store;
use weft_control_plane::ca::token::{KEY_LENGTH, TokenKey};

fn csr() -> Vec<u8> {
    PrivateKey::generate().certificate_request()
}

#[tokio::test]
async fn a_good_token_gets_a_certificate_for_its_identity_and_the_bundle() {
    let mesh = Mesh::start(&[]).await;
    let (chain, bundle) = mesh.sign(None, Some(&mesh.token("shop", "orders")), csr()).await.expect("issued");
    assert_eq!(bundle, mesh.bundle());
    let peer = verify_chain(&chain, &bundle, SystemTime::now()).expect("a valid SVID");
    assert_eq!(peer.id.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
}

#[tokio::test]
async fn a_certificate_can_be_renewed_with_itself_and_for_nobody_else() {
    let mesh = Mesh::start(&[]).await;
    let svid = mesh.svid("shop", "orders").await;
    let users = mesh.token("shop", "users");
    for token in [None, Some(users.as_str())] {
        let (chain, bundle) = mesh.sign(Some(&svid), token, csr()).await.expect("issued");
        let peer = verify_chain(&chain, &bundle, SystemTime::now()).expect("a valid SVID");
        assert_eq!(peer.id, *svid.id());
    }
}

#[tokio::test]
async fn whoever_proves_nothing_gets_nothing_and_learns_nothing() {
    let mesh = Mesh::start(&[]).await;
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let elsewhere = TokenKey::new(domain, &[7; KEY_LENGTH]);
    let key = Store::open(&mesh.state()).expect("opened").existing_token_key().expect("a key");
    let expired = SystemTime::now() - Duration::from_secs(3600);
    let mut messages = Vec::new();
    for (case, token) in [
        ("none", None),
        ("garbage", Some("garbage".to_owned())),
        ("of another key", Some(elsewhere.create("shop", "orders", LONG, SystemTime::now()).expect("made"))),
        ("expired", Some(key.create("shop", "orders", LONG, expired).expect("made"))),
        ("altered", Some(mesh.token("shop", "orders").replace("weft-join-v1.", "weft-join-v1.e"))),
        ("8 KiB", Some("x".repeat(8 * 1024))),
    ] {
        let status = mesh.sign(None, token.as_deref(), csr()).await.expect_err(case);
        assert_eq!(status.code(), Code::Unauthenticated, "{case}: {status:?}");
        messages.push(status.message().to_owned());
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "the messages tell cases apart: {messages:?}");
    let (_, metrics) = mesh.get("/metrics").await;
    assert!(metrics.contains("weft_certificates_issued_total{result=\"unauthenticated\"} 6"), "{metrics}");
    assert!(metrics.contains("weft_certificates_issued_total{result=\"issued\"} 0"), "{metrics}");
}

#[tokio::test]
async fn a_request_that_asks_for_more_gets_an_ordinary_leaf() {
    let mesh = Mesh::start(&[]).await;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut asks = rcgen::CertificateParams::new(vec!["admin.cluster.local".to_owned()]).expect("valid");
    asks.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    asks.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    asks.subject_alt_names
        .push(rcgen::SanType::URI("spiffe://cluster.local/ns/shop/sa/admin".try_into().expect("ascii")));
    let request = asks.serialize_request(&key).expect("a request").der().to_vec();
    let (chain, bundle) = mesh.sign(None, Some(&mesh.token("shop", "orders")), request).await.expect("issued");
    // The verifier refuses CA certificates, key usages of a CA, and more than one name.
    let peer = verify_chain(&chain, &bundle, SystemTime::now()).expect("a valid SVID");
    assert_eq!(peer.id.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
}

#[tokio::test]
async fn a_request_that_is_none_is_refused() {
    let mesh = Mesh::start(&[]).await;
    let token = mesh.token("shop", "orders");
    let mut forged = csr();
    *forged.last_mut().expect("not empty") ^= 1;
    let mut trailing = csr();
    trailing.push(0);
    for (case, request) in [
        ("empty", Vec::new()),
        ("garbage", vec![0x30; 300]),
        ("a broken signature", forged),
        ("trailing bytes", trailing),
        ("20 KiB", vec![0; 20 * 1024]),
    ] {
        let status = mesh.sign(None, Some(&token), request).await.expect_err(case);
        assert_eq!(status.code(), Code::InvalidArgument, "{case}: {status:?}");
    }
    let status = mesh.sign(None, Some(&token), vec![0; 5 << 20]).await.expect_err("5 MiB");
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    mesh.sign(None, Some(&token), csr()).await.expect("and it goes on");
}

#[tokio::test]
async fn a_wanted_lifetime_is_clamped() {
    let mesh = Mesh::start(&[]).await;
    let token = mesh.token("shop", "orders");
    for (wanted, granted) in [(None, 3600), (Some(1), 300), (Some(600), 600), (Some(u64::from(u32::MAX)), 3600)] {
        let before = SystemTime::now();
        let wanted = wanted.map(Duration::from_secs);
        let (chain, bundle) = sign(mesh.channel(None).await, Some(&token), csr(), wanted).await.expect("issued");
        let peer = verify_chain(&chain, &bundle, SystemTime::now()).expect("a valid SVID");
        let lifetime = peer.not_after.duration_since(before).expect("in the future").as_secs();
        assert!((granted - 2..=granted + 30).contains(&lifetime), "{wanted:?} became {lifetime}s");
    }
}

#[tokio::test]
async fn an_identity_that_asks_too_often_is_limited_and_costs_nobody_else() {
    let mesh = Mesh::start(&[]).await;
    let token = mesh.token("shop", "greedy");
    let channel = mesh.channel(None).await;
    let mut limited = None;
    for _ in 0..40 {
        if let Err(status) = sign(channel.clone(), Some(&token), csr(), None).await {
            limited = Some(status.code());
            break;
        }
    }
    assert_eq!(limited, Some(Code::ResourceExhausted));
    mesh.svid("shop", "modest").await;
}

#[tokio::test]
async fn a_denied_identity_gets_no_certificate_by_any_proof() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let denied = directory.path().join("denied.txt");
    std::fs::write(&denied, "# nobody yet\n").expect("written");
    let mesh = Mesh::start_with(&[], |settings| settings.denied_identities = Some(denied.clone())).await;
    let svid = mesh.svid("shop", "orders").await;
    std::fs::write(&denied, "spiffe://cluster.local/ns/shop/sa/orders # stolen\n").expect("written");
    mesh.until("/metrics", |body| body.contains("weft_denied_identities 1\n")).await;
    let status = mesh.sign(Some(&svid), None, csr()).await.expect_err("denied");
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = mesh.sign(None, Some(&mesh.token("shop", "orders")), csr()).await.expect_err("denied");
    assert_eq!(status.code(), Code::PermissionDenied);
    mesh.svid("shop", "users").await;
}

#[tokio::test]
async fn what_is_not_tls_or_no_http2_never_stops_the_next_caller() {
    use tokio::io::AsyncWriteExt as _;
    let mesh = Mesh::start(&[("orders.yaml", &workload("orders", "10.0.0.1"))]).await;
    let mut open = Vec::new();
    for n in 0..100 {
        let mut stream = tokio::net::TcpStream::connect(mesh.address).await.expect("connected");
        match n % 3 {
            0 => stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent"),
            1 => stream.write_all(&[0x16, 0x03, 0x01, 0xff, 0xff]).await.expect("sent"),
            _ => {}
        }
        // Some go away, some stay and say nothing more.
        if n % 2 == 0 {
            open.push(stream);
        }
    }
    let svid = mesh.svid("shop", "orders").await;
    mesh.sidecar(&svid, "orders").await.expect("a stream").next().await.expect("an update");
}

#[tokio::test]
async fn a_restart_keeps_keys_and_a_certificate_stays_good() {
    let mut mesh = Mesh::start(&[]).await;
    let (svid, token, bundle) = (mesh.svid("shop", "orders").await, mesh.token("shop", "users"), mesh.bundle());
    mesh.restart().await;
    assert_eq!(mesh.bundle(), bundle);
    mesh.sign(Some(&svid), None, csr()).await.expect("renewed by the certificate of before");
    let key = PrivateKey::generate();
    let (chain, bundle) = mesh.sign(None, Some(&token), key.certificate_request()).await.expect("the token of before");
    Svid::new(chain, &key, bundle, SystemTime::now()).expect("valid");
}

#[tokio::test]
async fn what_was_issued_and_refused_is_in_an_audit_log_that_is_whole() {
    let mut mesh = Mesh::start(&[("orders.yaml", &workload("orders", "10.0.0.1"))]).await;
    let svid = mesh.svid("shop", "orders").await;
    mesh.sign(None, Some("weft-join-v1.secret.secret"), csr()).await.expect_err("refused");
    assert!(mesh.sidecar(&svid, "users").await.is_err());
    mesh.restart().await;
    mesh.svid("shop", "orders").await;
    mesh.stop().await;
    let log = std::fs::read_to_string(mesh.state().join("audit.jsonl")).expect("readable");
    for (event, times) in [
        ("started", 2),
        ("resource-applied", 4),
        ("certificate-issued", 2),
        ("certificate-refused", 1),
        ("stream-refused", 1),
    ] {
        assert_eq!(log.matches(&format!("\"event\":\"{event}\"")).count(), times, "{event} in {log}");
    }
    let issued = log.lines().find(|line| line.contains("certificate-issued")).expect("there");
    let fingerprint: String = svid.fingerprint().iter().map(|byte| format!("{byte:02X}")).collect();
    assert!(issued.contains("spiffe://cluster.local/ns/shop/sa/orders") && issued.contains(&fingerprint), "{issued}");
    assert!(!log.contains("secret"), "a token is in the log");
    let found = weft_control_plane::verify_audit(&mesh.state()).expect("whole");
    assert!(found.contains("lines 1 to 10 are whole"), "{found}");
}
