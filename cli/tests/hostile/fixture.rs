//! The mesh that hostile cases are sent to, and what must hold after each of them.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use weft_certs::{CertificateAuthority, PrivateKey, SpiffeId, TrustDomain};
use weft_loadtests::lab::{Pod, PodSpec};
use weft_loadtests::mesh::{ADMIN_PORT, Mesh, MeshOptions, MeshPod, WorkloadSpec, eventually, get, sum_of};

use crate::recorder::{Recorder, Seen};
use crate::wire::{self, Outcome, PATIENCE, Way};

pub const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// Where the application listens.
pub const PORT: u16 = 8080;
/// Address of the Service `server`.
pub const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
/// What a stalled caller is given, so that tests need not wait for a minute.
pub const STALL: Duration = Duration::from_secs(2);

const SERVER: &str = "
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: server}
  ports: [{name: web, port: 80, targetPort: 8080}]
";

/// The policy under test: who asks from the attacker's address or with the client's certificate may read `/public/*`.
fn policy(attacker: IpAddr) -> String {
    format!(
        "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: readers, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: server}}]
  action: Allow
  rules:
  - from: [{{serviceAccounts: [client]}}, {{ipBlocks: [\"{attacker}/32\"]}}]
    to: [{{methods: [GET, HEAD, POST, OPTIONS], paths: [\"/public/*\"]}}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: closed, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: server}}]
  action: Deny
  rules:
  - to: [{{paths: [\"/admin*\"]}}]
  - to: [{{hosts: [secret.test]}}]
  - when: [{{header: x-role, in: [admin]}}]
  - from: [{{ipBlocks: [\"192.0.2.0/24\"]}}]
"
    )
}

/// A server with a sidecar, a recording application, and an attacker without one.
pub struct Bench {
    pub mesh: Mesh,
    pub server: MeshPod,
    pub client: MeshPod,
    pub attacker: Pod,
    pub recorder: Recorder,
    /// Inside mTLS, ALPN `weft/http1` and `weft/h2`.
    pub http1: Way,
    pub http2: Way,
}

/// What a case must come to.
#[derive(Clone, Copy)]
pub enum Want {
    /// Refused by policy: 403, and the application sees nothing.
    Denied,
    /// Refused as malformed, with one of these statuses or (0) without an answer; the connection ends; the application
    /// sees nothing.
    Bad(&'static [u16]),
    /// Let in and broken off: the application never sees it whole, the connection ends.
    Aborted(&'static [u16]),
    /// Served, and seen by the application as the check says.
    Served(fn(&[Seen]) -> bool),
}

impl Bench {
    pub fn start(name: &str) -> Result<Self> {
        Self::with(name, |_| {})
    }

    pub fn with(name: &str, change: impl FnOnce(&mut MeshOptions)) -> Result<Self> {
        let mut options = MeshOptions::new(WEFT);
        change(&mut options);
        if !options.proxy_arguments.iter().any(|argument| argument == "--stall-timeout") {
            options.proxy_arguments.extend(["--stall-timeout".into(), format!("{}s", STALL.as_secs())]);
        }
        let mesh = Mesh::start(name, options)?;
        mesh.write("server.yaml", SERVER)?;
        let attacker = mesh.lab.pod(PodSpec::new("attacker"))?;
        mesh.write("policy.yaml", &policy(attacker.ipv4().context("the lab gives IPv4")?.into()))?;
        let server = mesh.pod(WorkloadSpec::new("server-1", "server"))?;
        let client = mesh.pod(WorkloadSpec::new("client-1", "client"))?;
        for pod in [&server, &client] {
            eventually("the sidecar knows the policy and the Service", PATIENCE, || {
                let (_, config) = get(&pod.pod, SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)), "/config")?;
                Ok(config.contains("client-1") || config.contains("shop/closed") || config.contains("10.96.0.10"))
            })?;
        }
        let recorder = Recorder::start(&server.pod, PORT)?;
        let certificate = |alpn: &[u8]| Ok::<_, anyhow::Error>(Way::Mutual(Arc::new(caller(&mesh, "client", alpn)?)));
        let (http1, http2) = (certificate(b"weft/http1")?, certificate(b"weft/h2")?);
        let bench = Self { mesh, server, client, attacker, recorder, http1, http2 };
        eventually("a good request is served", PATIENCE, || Ok(bench.good(&Way::Plain).is_ok()))?;
        bench.recorder.take();
        Ok(bench)
    }

    pub fn target(&self) -> SocketAddr {
        self.server.pod.address(PORT)
    }

    pub fn send_http1(&self, way: &Way, bytes: Vec<u8>, answers: usize, to_end: bool) -> Result<Outcome> {
        let (way, target) = (way.clone(), self.target());
        self.attacker.run(move || wire::http1(way, target, bytes, answers, to_end))?
    }

    pub fn send_http2(&self, way: &Way, bytes: Vec<u8>, to_end: bool) -> Result<Outcome> {
        let (way, target) = (way.clone(), self.target());
        self.attacker.run(move || wire::http2(way, target, bytes, to_end))?
    }

    /// A request that must be served, on a connection of its own.
    pub fn good(&self, way: &Way) -> Result<()> {
        let way = match way {
            Way::Plain => Way::Plain,
            Way::Mutual(_) => self.http1.clone(),
        };
        let bytes = b"GET /public/good HTTP/1.1\r\nhost: server\r\nx-nonce: good\r\nconnection: close\r\n\r\n".to_vec();
        let outcome = self.send_http1(&way, bytes, 1, true)?;
        ensure!(outcome.statuses == [200], "a good request: {outcome:?}");
        Ok(())
    }

    /// Sums of the server's counters.
    pub fn counters(&self) -> Result<Counters> {
        let text = self.server.metrics()?;
        let decisions = |decision: &str| sum_of(&text, "weft_authorization_decisions_total", &[decision]);
        let answered = |status: &u16| {
            let labels = ["direction=\"inbound\"".to_owned(), format!("status=\"{status}\"")];
            sum_of(&text, "weft_requests_total", &[&labels[0], &labels[1]])
        };
        Ok(Counters {
            denied: decisions("decision=\"deny\""),
            allowed: decisions("decision=\"allow\""),
            malformed: [400, 405, 408, 414, 417, 431].iter().map(answered).sum(),
            refused: sum_of(&text, "weft_connections_refused_total", &["direction=\"inbound\""]),
        })
    }

    /// Runs one attempt and judges all that must hold after it.
    pub fn judge(&self, name: &str, way: &Way, want: Want, attempt: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        self.recorder.take();
        let before = self.counters()?;
        let outcome = attempt().with_context(|| name.to_owned())?;
        self.verdict(want, &outcome, before).with_context(|| format!("{name}: {outcome:?}"))?;
        self.good(way).with_context(|| format!("after {name}"))?;
        self.lives().with_context(|| format!("after {name}"))
    }

    fn verdict(&self, want: Want, outcome: &Outcome, before: Counters) -> Result<()> {
        let reset = outcome.reset.is_some() || outcome.go_away.is_some();
        let status = outcome.statuses.first().copied().unwrap_or(0);
        match want {
            Want::Denied => ensure!(outcome.statuses == [403], "not denied"),
            Want::Bad(statuses) | Want::Aborted(statuses) => {
                ensure!(outcome.statuses.len() <= 1, "answered more than once");
                ensure!(statuses.contains(&status) || (status == 0 && reset), "answered {status}, not {statuses:?}");
                ensure!(outcome.closed || reset || !outcome.text.starts_with("HTTP/1"), "the connection stays");
            }
            Want::Served(_) => {
                ensure!(outcome.statuses.iter().all(|status| *status == 200) && status == 200, "not served")
            }
        }
        // Whether the parser itself ended a stream, which counts nothing.
        let silent = status == 0 && outcome.reset.is_some();
        eventually("its own counter moves by one", PATIENCE, || {
            let now = self.counters()?;
            Ok(match want {
                Want::Denied => now.denied - before.denied == 1.0,
                Want::Bad(_) => silent || now.refusals() - before.refusals() == 1.0,
                Want::Aborted(_) => now.allowed - before.allowed == 1.0,
                Want::Served(_) => now.allowed - before.allowed >= 1.0,
            })
        })
        .with_context(|| format!("before {before:?}, now {:?}", self.counters()))?;
        let now = self.counters()?;
        let seen = self.recorder.take();
        match want {
            Want::Denied | Want::Bad(_) => {
                ensure!(seen.is_empty(), "the application saw {seen:?}");
                ensure!(now.allowed == before.allowed, "it was allowed: {before:?}, {now:?}");
            }
            Want::Aborted(_) => {
                ensure!(seen.iter().all(|seen| !seen.complete), "the application saw it whole: {seen:?}")
            }
            Want::Served(check) => ensure!(check(&seen), "the application saw {seen:?}"),
        }
        Ok(())
    }

    /// The sidecar runs, and nothing in it panicked.
    pub fn lives(&self) -> Result<()> {
        let sidecar = self.server.sidecar()?;
        ensure!(sidecar.try_wait().is_none(), "the sidecar has ended: {}", sidecar.stderr());
        ensure!(sidecar.count_lines(|line| line.contains("panicked")) == 0, "it panicked: {}", sidecar.stderr());
        Ok(())
    }

    /// A client that shows no certificate.
    pub fn without_certificate(&self, alpn: &[u8]) -> Arc<rustls::ClientConfig> {
        weft_certs::install_crypto_provider();
        let mut config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer))
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    }

    /// Resident memory of the server's sidecar, in bytes.
    pub fn memory(&self) -> Result<u64> {
        self.server.sidecar()?.resident_memory().context("the sidecar's memory can be read")
    }
}

/// What the invariants compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counters {
    pub denied: f64,
    pub allowed: f64,
    pub malformed: f64,
    pub refused: f64,
}

impl Counters {
    pub fn refusals(self) -> f64 {
        self.denied + self.malformed + self.refused
    }
}

/// A client of the mesh that believes any server: what an attacker with a certificate uses.
pub fn caller(mesh: &Mesh, account: &str, alpn: &[u8]) -> Result<rustls::ClientConfig> {
    weft_certs::install_crypto_provider();
    let pem = std::fs::read_to_string(mesh.state().join("ca.pem"))?;
    let key_at = pem.find("-----BEGIN PRIVATE").context("ca.pem holds a key")?;
    let certificate_at = pem.find("-----BEGIN CERTIFICATE").context("ca.pem holds a certificate")?;
    let (certificate, key) = match key_at > certificate_at {
        true => pem.split_at(key_at),
        false => (&pem[certificate_at..], &pem[..certificate_at]),
    };
    let (domain, now) = (TrustDomain::parse("cluster.local")?, SystemTime::now());
    let authority = CertificateAuthority::from_pem(&domain, certificate, key, "", now)?;
    let key = PrivateKey::generate();
    let id = SpiffeId::for_service_account(&domain, "shop", account)?;
    let chain = authority.sign(&key.certificate_request(), &id, Duration::from_secs(600), now)?;
    let mut config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key.to_pkcs8_der()))?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

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
