//! Certificates decide who is who, on both sides, and are renewed without a dropped request.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_certs::{CertificateAuthority, PrivateKey, SpiffeId, TrustDomain};
use weft_loadtests::lab::{PodSpec, testing::Test};
use weft_loadtests::load::{Pace, Plan};
use weft_loadtests::mesh::{Mesh, MeshOptions, WorkloadSpec, eventually, get};

use crate::fixture::{PATIENCE, Pair, WEFT, settle};

pub const TESTS: &[Test] = &[
    ("a_client_with_a_bad_certificate_is_refused_before_the_application_sees_a_byte", bad_clients),
    ("a_caller_cannot_have_its_proven_identity_dropped_on_the_way_to_the_application", hop_by_hop),
    ("a_server_with_a_bad_certificate_gets_no_byte_of_the_request", bad_servers),
    ("a_destination_of_the_mesh_that_stops_offering_tls_is_never_reached_in_plaintext", downgrade),
    ("certificates_are_renewed_under_load_without_a_failed_request", renewal),
    ("a_token_gives_only_the_identity_that_it_was_made_for", foreign_token),
    ("the_audit_log_verifies_and_an_altered_or_missing_line_is_found", audit),
];

/// A certificate with its key, as an attacker may hold them.
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The mesh's own authority, read as only the test can: its state directory is 0700.
pub fn authority(mesh: &Mesh) -> Result<CertificateAuthority> {
    let pem = std::fs::read_to_string(mesh.state().join("ca.pem"))?;
    let split = pem.find("-----BEGIN CERTIFICATE").context("ca.pem holds a certificate")?;
    let (key, certificate) = match pem.find("PRIVATE KEY") < Some(split) {
        true => pem.split_at(split),
        false => {
            let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE").context("ca.pem holds a key")?);
            (key, certificate)
        }
    };
    let domain = TrustDomain::parse("cluster.local")?;
    Ok(CertificateAuthority::from_pem(&domain, certificate, key, "", SystemTime::now())?)
}

pub fn issue(authority: &CertificateAuthority, id: &str, now: SystemTime) -> Result<Credentials> {
    let key = PrivateKey::generate();
    let chain = authority.sign(&key.certificate_request(), &SpiffeId::parse(id)?, Duration::from_secs(600), now)?;
    Ok(Credentials { chain, key: PrivateKeyDer::Pkcs8(key.to_pkcs8_der()) })
}

/// Bad credentials with the reason that the metric must name.
fn bad_credentials(mesh: &Mesh, role: &str) -> Result<Vec<(&'static str, Credentials, &'static str)>> {
    let now = SystemTime::now();
    let mesh_ca = authority(mesh)?;
    let forger =
        CertificateAuthority::self_signed(&TrustDomain::parse("cluster.local")?, Duration::from_secs(86400), now)?;
    let foreign =
        CertificateAuthority::self_signed(&TrustDomain::parse("evil.example")?, Duration::from_secs(86400), now)?;
    let good_name = format!("spiffe://cluster.local/ns/shop/sa/{role}");
    // The root is younger than an hour, so a leaf that expired an hour ago is made with a root of that time.
    Ok(vec![
        ("forged", issue(&forger, &good_name, now)?, "unknown_issuer"),
        (
            "of another trust domain",
            issue(&foreign, "spiffe://evil.example/ns/shop/sa/client", now)?,
            "wrong_trust_domain",
        ),
        ("expired", expired(&mesh_ca, &good_name)?, "expired"),
    ])
}

/// Signed by the mesh's own key, with a validity that lies in the past.
fn expired(authority: &CertificateAuthority, id: &str) -> Result<Credentials> {
    let issuer_key = rcgen::KeyPair::from_pem(&authority.key_pem())?;
    let issuer = rcgen::Issuer::from_ca_cert_pem(&authority.certificates_pem(), issuer_key)?;
    let key = rcgen::KeyPair::generate()?;
    let mut leaf = rcgen::CertificateParams::default();
    leaf.distinguished_name = rcgen::DistinguishedName::new();
    leaf.subject_alt_names = vec![rcgen::SanType::URI(id.try_into()?)];
    leaf.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(2);
    leaf.not_after = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
    leaf.is_ca = rcgen::IsCa::ExplicitNoCa;
    leaf.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    let certificate = leaf.signed_by(&key, &issuer)?;
    Ok(Credentials {
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| anyhow::anyhow!("{e}"))?,
    })
}

/// A client that believes any server: what an attacker uses.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

pub fn attacker(credentials: Option<Credentials>) -> Result<rustls::ClientConfig> {
    weft_certs::install_crypto_provider();
    let builder = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match credentials {
        Some(credentials) => builder.with_client_auth_cert(credentials.chain, credentials.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"weft/http1".to_vec()];
    Ok(config)
}

/// Sends a request over TLS; the answer's bytes, or the error.
async fn ask(target: SocketAddr, config: rustls::ClientConfig) -> Result<Vec<u8>> {
    ask_with(target, config, "connection: close\r\n").await
}

async fn ask_with(target: SocketAddr, config: rustls::ClientConfig, headers: &str) -> Result<Vec<u8>> {
    let stream = TcpStream::connect(target).await?;
    let name = rustls::pki_types::ServerName::try_from("server.invalid")?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(format!("GET /attack HTTP/1.1\r\nhost: s\r\n{headers}\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A caller of the mesh that speaks for itself, without a sidecar that would clean its request.
fn hop_by_hop() -> Result<()> {
    let pair = Pair::start("hop")?;
    let _app = pair.serve_http()?;
    let stranger = pair.mesh.lab.pod(PodSpec::new("stranger"))?;
    let target = pair.server.pod.address(8080);
    let good = issue(&authority(&pair.mesh)?, "spiffe://cluster.local/ns/shop/sa/client", SystemTime::now())?;
    let config = attacker(Some(good))?;
    let headers = "connection: close, x-forwarded-client-cert, content-length, host\r\n\
                   x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/admin\r\n";
    let answer = stranger.run(move || ask_with(target, config, headers))??;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("sa/client") && !answer.contains("sa/admin"),
        "{answer}"
    );
    Ok(())
}

fn bad_clients() -> Result<()> {
    let pair = Pair::start("badclient")?;
    let listener = pair.server.pod.listen(8080)?;
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    let _app = pair.server.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            if stream.read(&mut [0; 1024]).await? > 0 {
                counted.fetch_add(1, Ordering::SeqCst);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await?;
            }
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    })?;
    let stranger = pair.mesh.lab.pod(PodSpec::new("stranger"))?;
    let target = pair.server.pod.address(8080);
    for (what, credentials, reason) in bad_credentials(&pair.mesh, "client")? {
        let label = format!("reason=\"{reason}\"");
        let before = pair.server.metric("weft_connections_refused_total", &[&label])?;
        let config = attacker(Some(credentials))?;
        let answer = stranger.run(move || ask(target, config))?;
        ensure!(answer.is_err(), "{what}: {:?}", answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
        eventually("the refusal is counted with its reason", PATIENCE, || {
            Ok(pair.server.metric("weft_connections_refused_total", &[&label])? == before + 1.0)
        })
        .with_context(|| format!("{what}: {}", pair.server.metrics().unwrap_or_default()))?;
    }
    let anonymous = attacker(None)?;
    ensure!(stranger.run(move || ask(target, anonymous))?.is_err(), "without a certificate");
    ensure!(hits.load(Ordering::SeqCst) == 0, "the application saw a byte");
    // The same attacker with a certificate of the mesh gets through: it is the certificate that decides.
    let good = issue(&authority(&pair.mesh)?, "spiffe://cluster.local/ns/shop/sa/client", SystemTime::now())?;
    let config = attacker(Some(good))?;
    let answer = stranger.run(move || ask(target, config))??;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200") && hits.load(Ordering::SeqCst) == 1,
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

/// Serves TLS with `credentials` on one connection after another; says how many bytes of requests it could read.
async fn impostor(listener: std::net::TcpListener, credentials: Credentials, read: Arc<AtomicUsize>) -> Result<()> {
    weft_certs::install_crypto_provider();
    let mut config = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(credentials.chain, credentials.key)?;
    config.alpn_protocols = [b"weft/http1".as_slice(), b"weft/tcp", b"weft/h2"].map(<[u8]>::to_vec).into();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        if let Ok(mut stream) = acceptor.accept(stream).await {
            let mut bytes = [0; 1024];
            if let Ok(count) = stream.read(&mut bytes).await {
                read.fetch_add(count, Ordering::SeqCst);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    }
}

fn bad_servers() -> Result<()> {
    let pair = Pair::start("badserver")?;
    let mut cases = bad_credentials(&pair.mesh, "impostor")?;
    let right_authority = authority(&pair.mesh)?;
    let other_name = issue(&right_authority, "spiffe://cluster.local/ns/shop/sa/client", SystemTime::now())?;
    cases.push(("of another service account", other_name, "unexpected_identity"));
    let good = issue(&right_authority, "spiffe://cluster.local/ns/shop/sa/impostor", SystemTime::now())?;
    cases.push(("good", good, ""));
    for (number, (what, credentials, reason)) in cases.into_iter().enumerate() {
        // The control plane takes it for a workload of the mesh; what answers there is not its sidecar.
        let pod = pair.mesh.pod_without_sidecar(WorkloadSpec::new(&format!("impostor-{number}"), "impostor"))?;
        settle(&pair.mesh, &[&pair.client])?;
        let listener = pod.pod.listen(8080)?;
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let _server = pod.pod.start(move || impostor(listener, credentials, counted))?;
        let (status, body) = get(&pair.client.pod, pod.pod.address(8080), "/secret")?;
        match reason {
            "" => ensure!(status == 200 && read.load(Ordering::SeqCst) > 0, "good: {status} {body}"),
            reason => {
                ensure!(status == 502, "{what}: {status} {body}");
                ensure!(read.load(Ordering::SeqCst) == 0, "{what}: the impostor read a byte");
                ensure!(!body.contains("ok\n") && !reason.is_empty(), "{what}: {body}");
            }
        }
    }
    Ok(())
}

fn downgrade() -> Result<()> {
    let pair = Pair::start("downgrade")?;
    let pod = pair.mesh.pod_without_sidecar(WorkloadSpec::new("bare", "bare"))?;
    settle(&pair.mesh, &[&pair.client])?;
    let listener = pod.pod.listen(8080)?;
    let _plain = pod.pod.start(move || async move { weft_loadtests::apps::http(listener, "bare").await })?;
    let capture = pair.mesh.lab.capture()?;
    let (status, body) = get(&pair.client.pod, pod.pod.address(8080), "/secret-4711")?;
    ensure!(status == 502, "{status} {body}");
    ensure!(!capture.stop()?.contains("secret-4711"), "it went out in plaintext");
    Ok(())
}

fn renewal() -> Result<()> {
    let mut options = MeshOptions::new(WEFT);
    options.certificate_lifetime = "6s".to_owned();
    let pair = Pair::with("renewal", options)?;
    let _app = pair.serve_http()?;
    let url = format!("http://{}/", pair.web()).parse()?;
    let report = pair.client.pod.run(move || async move {
        let load = Plan::get(url).connections(8).pace(Pace::Open { per_second: 100.0 }).start()?;
        tokio::time::sleep(Duration::from_secs(15)).await;
        anyhow::Ok(load.stop().await)
    })??;
    ensure!(report.failed() == 0 && report.answered() == report.status(200) && report.status(200) > 500, "{report:?}");
    for pod in [&pair.client, &pair.server] {
        let renewals = pod.metric("weft_certificate_renewals_total", &["result=\"success\""])?;
        ensure!(renewals >= 3.0, "{renewals} in {}", pod.metrics()?);
    }
    Ok(())
}

fn foreign_token() -> Result<()> {
    let pair = Pair::start("token")?;
    // A sidecar that holds client's token says that it stands beside server-2, which is another service account's.
    let pod = pair.mesh.pod_without_sidecar(WorkloadSpec::new("server-2", "server"))?;
    let token = pair.mesh.token(&WorkloadSpec::new("client-1", "client"))?;
    let thief = weft_loadtests::mesh::MeshPod { spec: WorkloadSpec::new("server-2", "client"), ..pod };
    let sidecar = pair.mesh.spawn_sidecar(&thief)?;
    let line = sidecar.wait_for_line(|line| line.contains("PermissionDenied"), PATIENCE)?;
    ensure!(!token.as_os_str().is_empty() && line.contains("not connected"), "{line}");
    Ok(())
}

fn audit() -> Result<()> {
    let pair = Pair::start("audit")?;
    let state = pair.mesh.state();
    let verify = || pair.mesh.weft(["audit".as_ref(), "verify".as_ref(), "--state".as_ref(), state.as_os_str()]);
    verify()?;
    let file = state.join("audit.jsonl");
    let log = std::fs::read_to_string(&file)?;
    ensure!(log.contains("spiffe://cluster.local/ns/shop/sa/client"), "{log}");
    std::fs::write(&file, log.replace("sa/client", "sa/clienT"))?;
    ensure!(verify().is_err(), "an altered line is found");
    let without_second: String =
        log.lines().enumerate().filter(|(n, _)| *n != 1).map(|(_, line)| format!("{line}\n")).collect();
    std::fs::write(&file, without_second)?;
    ensure!(verify().is_err(), "a missing line is found");
    Ok(())
}
