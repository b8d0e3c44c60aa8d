//! The webhooks' port over real sockets: what it answers, what it bounds, and how its certificate is replaced.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use weft_control_plane::metrics::{Metrics, ReviewLabels, ReviewResult, Webhook};
use weft_control_plane::webhook::certificate::{self, Serving, Stored};
use weft_control_plane::webhook::review::Answer;
use weft_control_plane::webhook::server::{self, Hooks};

/// Long enough for the slowest machine; reached only by a failing test.
const LONG: Duration = Duration::from_secs(30);

fn stored() -> Stored {
    weft_certs::install_crypto_provider();
    let names = certificate::names("weft-control-plane", "weft-system", None);
    Stored::make(&names, SystemTime::now()).expect("made")
}

fn serving(stored: &Stored) -> Option<Arc<Serving>> {
    Some(Arc::new(stored.open().expect("whole").serving(None, SystemTime::now()).expect("in date")))
}

/// A port that serves, and what it is served with.
struct Port {
    address: SocketAddr,
    certificates: watch::Sender<Option<Arc<Serving>>>,
    not_ready: watch::Receiver<Option<String>>,
    metrics: Metrics,
    /// Each lets one call of /inject be answered.
    injections: Arc<Semaphore>,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Port {
    async fn start(first: Option<Arc<Serving>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let (certificates, followed) = watch::channel(first);
        let (sender, not_ready) = watch::channel(Some("not started".to_owned()));
        let (metrics, injections, stop) = (Metrics::default(), Arc::new(Semaphore::new(0)), CancellationToken::new());
        let asked = Arc::clone(&injections);
        let hooks = Hooks {
            inject: Arc::new(move |review| {
                let asked = Arc::clone(&asked);
                Box::pin(async move {
                    asked.acquire().await.expect("open").forget();
                    match review.namespace.as_str() {
                        "away" => Err("the namespace cannot be read now".to_owned()),
                        "panics" => panic!("a fault of ours"),
                        _ => Ok(Answer::Patch { patch: json!([]), warnings: Vec::new() }),
                    }
                })
            }),
            services: None,
            metrics: metrics.clone(),
        };
        let served = tokio::spawn(server::serve(listener, followed, hooks, sender, stop.clone()));
        Self { address, certificates, not_ready, metrics, injections, stop, served }
    }

    async fn connect(&self, client: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("weft-control-plane.weft-system.svc").expect("a name");
        let stream = TcpStream::connect(self.address).await?;
        tokio::time::timeout(LONG, TlsConnector::from(client).connect(name, stream)).await.expect("in time")
    }

    fn counted(&self, webhook: Webhook, result: ReviewResult) -> u64 {
        self.metrics.admission_reviews.get_or_create(&ReviewLabels { webhook, result }).get()
    }
}

fn roots(stored: &Stored) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(
        CertificateDer::pem_slice_iter(stored.roots.as_bytes()).map(|der| der.expect("PEM")),
    );
    roots
}

fn client(stored: &Stored, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_protocol_versions(versions);
    Arc::new(builder.with_root_certificates(roots(stored)).with_no_client_auth())
}

/// Status and body of one request that is the last of its connection.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> (u16, String) {
    // A server that has refused the beginning need not read the rest.
    let _ = stream.write_all(request).await;
    read(stream).await
}

async fn read(stream: &mut TlsStream<TcpStream>) -> (u16, String) {
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.expect("in time");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

/// Until the server reads the body of what was sent.
async fn wait_for_continue(stream: &mut TlsStream<TcpStream>) {
    let mut answer = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    tokio::time::timeout(LONG, stream.read_exact(&mut answer)).await.expect("in time").expect("read");
    assert!(answer.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&answer));
}

fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

const JSON: &str = "content-type: application/json\r\n";

fn review(kind: &str, namespace: &str, spec: Value) -> Vec<u8> {
    let (group, version) = if kind == "Pod" { ("", "v1") } else { ("policy.weft.dev", "policy.weft.dev/v1alpha1") };
    let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "p"}, "spec": spec});
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u-1", "kind": {"group": group, "version": "v1", "kind": kind}, "operation": "CREATE",
        "namespace": namespace, "object": object, "oldObject": null,
    }});
    review.to_string().into_bytes()
}

#[tokio::test]
async fn reviews_are_answered_over_tls_1_2_and_1_3_and_counted() {
    let stored = stored();
    let port = Port::start(serving(&stored)).await;
    port.injections.add_permits(10);
    for (version, expected) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let rows = [
            ("/validate", review("AuthorizationPolicy", "shop", json!({"action": "Deny"})), true),
            ("/validate", review("AuthorizationPolicy", "shop", json!({"action": "deny"})), false),
            ("/inject", review("Pod", "shop", json!({})), true),
        ];
        for (path, body, allowed) in rows {
            let mut stream = port.connect(client(&stored, &[version])).await.expect("connected");
            assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
            let (status, answer) = ask(&mut stream, &request(path, JSON, &body)).await;
            assert_eq!(status, 200, "{path}: {answer}");
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            assert_eq!(answer["response"]["uid"], "u-1");
            assert_eq!(answer["response"]["allowed"], allowed, "{path}: {answer}");
        }
    }
    assert_eq!(port.counted(Webhook::validate, ReviewResult::allowed), 2);
    assert_eq!(port.counted(Webhook::validate, ReviewResult::refused), 2);
    assert_eq!(port.counted(Webhook::inject, ReviewResult::patched), 2);
    let mut stream = port.connect(client(&stored, &[&TLS13])).await.expect("connected");
    let ready = b"GET /ready HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n";
    assert_eq!(ask(&mut stream, ready).await, (200, "ready\n".to_owned()));
}

#[tokio::test]
async fn what_is_no_review_is_refused_and_the_next_call_is_answered() {
    let stored = stored();
    let port = Port::start(serving(&stored)).await;
    port.injections.add_permits(10);
    let good = review("Pod", "shop", json!({}));
    let large = vec![b' '; 10 << 20];
    let chunk = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
    let mut chunked =
        b"POST /inject HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ntransfer-encoding: chunked\r\n".to_vec();
    chunked.extend([JSON.as_bytes(), b"\r\n", &chunk.repeat(10), b"0\r\n\r\n"].concat());
    let nested = format!("{{\"request\":{{\"object\":{}", "[".repeat(10_000));
    let rows: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("an empty body", request("/inject", JSON, b""), 400, "the body is empty"),
        ("10 MiB", request("/inject", JSON, &large), 413, "more than"),
        ("10 MiB in chunks", chunked, 413, "more than"),
        ("nested", request("/inject", JSON, nested.as_bytes()), 400, "recursion limit"),
        ("compressed", request("/inject", &format!("{JSON}content-encoding: gzip\r\n"), &good), 400, "encoded"),
        ("no content type", request("/inject", "", &good), 400, "not application/json"),
        ("another content type", request("/inject", "content-type: text/yaml\r\n", &good), 400, "not application/json"),
        ("charset", request("/inject", "content-type: application/json; charset=utf-8\r\n", &good), 200, "u-1"),
        ("not a pod", request("/inject", JSON, &review("Workload", "shop", json!({}))), 400, "is no Pod"),
        ("cannot be decided", request("/inject", JSON, &review("Pod", "away", json!({}))), 500, "cannot be read now"),
        ("panics", request("/inject", JSON, &review("Pod", "panics", json!({}))), 0, ""),
        ("another path", request("/mutate", JSON, &good), 404, ""),
        ("another method", b"GET /inject HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n".to_vec(), 405, ""),
        ("no HTTP", b"\x00\x01\x02\r\n\r\n".to_vec(), 400, ""),
        ("long headers", request("/inject", &format!("x: {}\r\n", "x".repeat(1 << 20)), b""), 431, ""),
    ];
    for (name, request, expected, message) in rows {
        let mut stream = port.connect(client(&stored, &[&TLS13])).await.expect("connected");
        let (status, body) = ask(&mut stream, &request).await;
        assert_eq!(status, expected, "{name}: {body}");
        assert!(body.contains(message), "{name}: {body}");
    }
    assert_eq!(port.counted(Webhook::inject, ReviewResult::malformed), 8);
    assert_eq!(port.counted(Webhook::inject, ReviewResult::error), 1);
    let mut plain = TcpStream::connect(port.address).await.expect("connected");
    plain.write_all(&request("/inject", JSON, &good)).await.expect("sent");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LONG, plain.read_to_end(&mut answer)).await.expect("in time");
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP is not answered");
    let mut stream = port.connect(client(&stored, &[&TLS13])).await.expect("connected");
    assert_eq!(ask(&mut stream, &request("/inject", JSON, &good)).await.0, 200);
}

#[tokio::test]
async fn who_dawdles_is_cut_off() {
    let stored = stored();
    let port = Port::start(serving(&stored)).await;
    let mut silent = port.connect(client(&stored, &[&TLS13])).await.expect("connected");
    let mut headers = port.connect(client(&stored, &[&TLS13])).await.expect("connected");
    headers.write_all(b"POST /validate HTTP/1.1\r\nhost: we").await.expect("sent");
    let mut dripping = port.connect(client(&stored, &[&TLS13])).await.expect("connected");
    let whole = request("/validate", &format!("{JSON}expect: 100-continue\r\n"), b"{...");
    dripping.write_all(&whole[..whole.len() - 1]).await.expect("sent");
    wait_for_continue(&mut dripping).await;
    // From here on time passes whenever everybody waits.
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    assert_eq!(read(&mut silent).await, (0, String::new()));
    assert_eq!(read(&mut headers).await, (0, String::new()));
    assert!(before.elapsed() <= Duration::from_secs(10), "{:?}", before.elapsed());
    assert_eq!(read(&mut dripping).await.0, 408);
    assert!(before.elapsed() <= Duration::from_secs(11), "{:?}", before.elapsed());
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let stored = stored();
    let port = Port::start(serving(&stored)).await;
    let mut held = Vec::new();
    let refused = loop {
        match port.connect(client(&stored, &[&TLS13])).await {
            Ok(stream) => held.push(stream),
            Err(fault) => break fault,
        }
    };
    assert_eq!(held.len(), 64, "{refused}");
    // Another address of this host.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("bound");
    let stream = socket.connect(port.address).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let connected = TlsConnector::from(client(&stored, &[&TLS13])).connect(name, stream).await;
    let ready = b"GET /ready HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n";
    assert_eq!(ask(&mut connected.expect("served"), ready).await.0, 200);
}

#[tokio::test]
async fn the_certificate_is_replaced_for_new_connections_and_without_one_it_is_not_ready() {
    let (old, new) = (stored(), stored());
    let mut port = Port::start(None).await;
    let waits = |reason: &Option<String>| reason.as_deref().is_some_and(|reason| reason.contains("no certificate"));
    port.not_ready.wait_for(waits).await.expect("it runs");
    port.certificates.send_replace(serving(&old));
    port.not_ready.wait_for(Option::is_none).await.expect("it serves");
    let mut kept = port.connect(client(&old, &[&TLS13])).await.expect("connected");
    port.certificates.send_replace(serving(&new));
    let ready = b"GET /ready HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n";
    let mut stream = port.connect(client(&new, &[&TLS13])).await.expect("the new one is served");
    assert_eq!(ask(&mut stream, ready).await.0, 200);
    assert!(port.connect(client(&old, &[&TLS13])).await.is_err(), "the old one is not");
    assert_eq!(ask(&mut kept, ready).await.0, 200, "what is open goes on");
    port.certificates.send_replace(None);
    port.not_ready.wait_for(waits).await.expect("it runs");
}

#[tokio::test]
async fn callers_without_a_certificate_are_refused_where_one_is_demanded() {
    let (stored, callers, strangers) = (stored(), stored(), stored());
    let demanded = certificate::client_roots(&callers.roots).expect("roots");
    let opened = stored.open().expect("whole");
    let port = Port::start(Some(Arc::new(opened.serving(Some(&demanded), SystemTime::now()).expect("in date")))).await;
    let ready = b"GET /ready HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n";
    let presenting = |identity: &Stored| {
        let chain =
            CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).map(|der| der.expect("PEM")).collect();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("a key");
        let builder = ClientConfig::builder().with_root_certificates(roots(&stored));
        Arc::new(builder.with_client_auth_cert(chain, key).expect("a pair"))
    };
    // A serving certificate is not one for callers; a stranger's is of another authority.
    for config in [client(&stored, &[&TLS13]), client(&stored, &[&TLS12]), presenting(&callers), presenting(&strangers)]
    {
        // With TLS 1.3 a caller learns of its refusal when it reads.
        if let Ok(mut stream) = port.connect(config).await {
            assert_eq!(ask(&mut stream, ready).await, (0, String::new()));
        }
    }
}

#[tokio::test]
async fn what_is_under_way_is_answered_when_it_stops() {
    let stored = stored();
    let port = Port::start(serving(&stored)).await;
    let mut stream = port.connect(client(&stored, &[&TLS13])).await.expect("connected");
    let mut idle = port.connect(client(&stored, &[&TLS13])).await.expect("connected");
    let whole = request("/inject", &format!("{JSON}expect: 100-continue\r\n"), &review("Pod", "shop", json!({})));
    let (begun, rest) = whole.split_at(whole.len() - 1);
    stream.write_all(begun).await.expect("sent");
    wait_for_continue(&mut stream).await;
    port.stop.cancel();
    assert_eq!(read(&mut idle).await.0, 0, "idle connections end");
    stream.write_all(rest).await.expect("sent");
    port.injections.add_permits(1);
    assert_eq!(read(&mut stream).await.0, 200);
    tokio::time::timeout(LONG, port.served).await.expect("it ends").expect("without a fault");
    assert!(port.not_ready.borrow().as_deref().is_some_and(|reason| reason.contains("stopping")));
}
