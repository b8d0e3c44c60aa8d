//! A control plane on loopback, and sidecars that are nothing but a client.
#![allow(dead_code, unreachable_pub, missing_docs)]
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use weft_api::resource::DefaultPolicy;
use weft_api::wire::proto::certificate_authority_client::CertificateAuthorityClient;
use weft_api::wire::proto::discovery_client::DiscoveryClient;
use weft_api::wire::{self, SidecarMessage, SignRequest, proto};
use weft_api::workload::WorkloadConfig;
use weft_certs::{ExpectedServer, PrivateKey, Svid, TrustBundle, TrustDomain, tls_config};
use weft_control_plane::ca::store::Store;
use weft_control_plane::config::{SourceSettings, control_plane_id};
use weft_control_plane::{Running, Settings};

/// Long enough for the slowest machine; reached only by a failing test.
pub const LONG: Duration = Duration::from_secs(30);

/// A control plane with directories of its own.
pub struct Mesh {
    pub directory: TempDir,
    pub running: Option<Running>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

pub fn settings(directory: &Path) -> Settings {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Settings {
        source: SourceSettings::Directory(directory.join("resources")),
        default_policy: DefaultPolicy::Authenticated,
        trust_domain: TrustDomain::parse("cluster.local").expect("valid"),
        state: directory.join("state"),
        listen: any,
        admin_listen: any,
        certificate_lifetime: Duration::from_secs(3600),
        shortest_lifetime: Duration::from_secs(300),
        issuer: None,
        denied_identities: None,
    }
}

impl Mesh {
    pub async fn start(files: &[(&str, &str)]) -> Self {
        Self::start_with(files, |_| {}).await
    }

    pub async fn start_with(files: &[(&str, &str)], change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("resources")).expect("made");
        for (name, text) in files {
            std::fs::write(directory.path().join("resources").join(name), text).expect("written");
        }
        let mut settings = settings(directory.path());
        change(&mut settings);
        let running = weft_control_plane::start(settings).await.expect("started");
        let (address, admin) = (running.address, running.admin_address);
        Self { directory, running: Some(running), address, admin }
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    pub async fn start_again(&mut self) {
        let running = weft_control_plane::start(settings(self.directory.path())).await.expect("started");
        (self.address, self.admin) = (running.address, running.admin_address);
        self.running = Some(running);
    }

    pub async fn stop(&mut self) {
        self.running.take().expect("running").stop().await;
    }

    pub fn resource(&self, name: &str) -> PathBuf {
        self.directory.path().join("resources").join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.resource(name), text).expect("written");
    }

    pub fn bundle(&self) -> TrustBundle {
        let pem = std::fs::read_to_string(self.state().join("trust-bundle.pem")).expect("readable");
        TrustBundle::from_pem(TrustDomain::parse("cluster.local").expect("valid"), &pem).expect("a bundle")
    }

    pub fn token(&self, namespace: &str, service_account: &str) -> String {
        let key = Store::open(&self.state()).expect("opened").existing_token_key().expect("a key");
        key.create(namespace, service_account, LONG * 2, SystemTime::now()).expect("a token")
    }

    pub async fn channel(&self, svid: Option<&Svid>) -> Channel {
        self.try_channel(svid).await.expect("connected")
    }

    pub async fn try_channel(&self, svid: Option<&Svid>) -> Result<Channel, tonic::transport::Error> {
        let bundle = self.bundle();
        let expected = ExpectedServer::OneOf(Arc::from([control_plane_id(&bundle.trust_domain)]));
        let config = tls_config::client_config(svid, &bundle, expected, &[b"h2"]);
        let address = self.address;
        let connect = tower::service_fn(move |_| {
            let connector = TlsConnector::from(Arc::clone(&config));
            async move {
                let stream = TcpStream::connect(address).await?;
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(tls_config::server_name(), stream).await?))
            }
        });
        Endpoint::from_static("http://control-plane").connect_with_connector(connect).await
    }

    /// Asks for a certificate on a connection of its own.
    pub async fn sign(&self, svid: Option<&Svid>, token: Option<&str>, request: Vec<u8>) -> Result<Issued, Status> {
        sign(self.channel(svid).await, token, request, None).await
    }

    /// A sidecar's identity, by a join token.
    pub async fn svid(&self, namespace: &str, service_account: &str) -> Svid {
        let key = PrivateKey::generate();
        let token = self.token(namespace, service_account);
        let (chain, bundle) = self.sign(None, Some(&token), key.certificate_request()).await.expect("issued");
        Svid::new(chain, &key, bundle, SystemTime::now()).expect("a valid SVID")
    }

    /// Opens the stream of `workload`.
    pub async fn sidecar(&self, svid: &Svid, workload: &str) -> Result<Sidecar, Status> {
        let (say, said) = mpsc::channel(16);
        let hello = SidecarMessage::Hello { workload: workload.to_owned(), version: "test".to_owned() };
        say.send(wire::encode_sidecar_message(&hello)).await.expect("room");
        let channel = self.channel(Some(svid)).await;
        let updates = DiscoveryClient::new(channel).stream(ReceiverStream::new(said)).await?.into_inner();
        Ok(Sidecar { say, updates, config: None, version: 0 })
    }

    /// The body of an admin endpoint.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path, "127.0.0.1").await
    }

    /// Asks an admin endpoint until `fits` says so.
    pub async fn until(&self, path: &str, fits: impl Fn(&str) -> bool) -> String {
        let asking = async {
            loop {
                let (_, body) = self.get(path).await;
                if fits(&body) {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, asking).await.unwrap_or_else(|_| panic!("{path} never was as expected"))
    }
}

pub async fn get(address: SocketAddr, path: &str, host: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("received");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

pub type Issued = (Vec<CertificateDer<'static>>, TrustBundle);

pub async fn sign(
    channel: Channel,
    token: Option<&str>,
    certificate_request: Vec<u8>,
    lifetime: Option<Duration>,
) -> Result<Issued, Status> {
    let message = wire::encode_sign_request(&SignRequest { certificate_request, lifetime });
    let mut request = Request::new(message);
    if let Some(token) = token {
        let bearer = format!("Bearer {token}").parse().expect("ascii");
        request.metadata_mut().insert("authorization", bearer);
    }
    let response = CertificateAuthorityClient::new(channel).sign(request).await?.into_inner();
    let (chain, bundle) = wire::decode_sign_response(&response).expect("a valid response");
    Ok((chain.into_iter().map(CertificateDer::from).collect(), bundle))
}

/// One open stream.
pub struct Sidecar {
    pub say: mpsc::Sender<proto::SidecarMessage>,
    pub updates: Streaming<proto::Update>,
    pub config: Option<WorkloadConfig>,
    pub version: u64,
}

impl Sidecar {
    /// The next update, applied and acknowledged.
    pub async fn next(&mut self) -> Result<WorkloadConfig, Status> {
        let update = self.receive().await?;
        self.say(&SidecarMessage::Ack { version: update.version, error: None }).await;
        Ok(self.config.clone().expect("applied"))
    }

    /// The next update, applied.
    pub async fn receive(&mut self) -> Result<proto::Update, Status> {
        let received = tokio::time::timeout(LONG, self.updates.message()).await.expect("an update in time")?;
        let update = received.ok_or_else(|| Status::cancelled("the stream ended"))?;
        assert!(update.version > self.version, "version {} after {}", update.version, self.version);
        self.version = update.version;
        self.config = Some(wire::apply(self.config.as_ref(), &update).expect("a valid update"));
        Ok(update)
    }

    /// Updates until `fits` says so.
    pub async fn until(&mut self, fits: impl Fn(&WorkloadConfig) -> bool) -> WorkloadConfig {
        loop {
            let config = self.next().await.expect("an update");
            if fits(&config) {
                return config;
            }
        }
    }

    pub async fn say(&mut self, message: &SidecarMessage) {
        self.say.send(wire::encode_sidecar_message(message)).await.expect("the stream is open");
    }
}

/// Workload `name` of namespace shop, with a Service of the same name.
pub fn workload(name: &str, address: &str) -> String {
    format!(
        r"
apiVersion: policy.weft.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}
spec: {{addresses: [{address}], serviceAccount: {name}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"
    )
}

/// A policy that lets `caller` call `service`.
pub fn allow(name: &str, service: &str, caller: &str) -> String {
    format!(
        r"
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: {service}}}]
  action: Allow
  rules: [{{from: [{{serviceAccounts: [{caller}]}}]}}]
"
    )
}
