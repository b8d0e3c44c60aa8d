//! A real API server of Kubernetes with its etcd, for tests: no node, no root, random ports of loopback, any number at once.
//!
//! Its programs are looked for as the ecosystem does it: in the folder that `KUBEBUILDER_ASSETS` names, else in
//! `~/.cache/kubebuilder-assets`. It ends with the value, and with the process that made it.
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

/// How long the API server may take to be ready: a slow machine's patience.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// Services' addresses.
const SERVICES: &str = "10.96.0.0/16";

/// The folder with `etcd`, `kube-apiserver` and `kubectl`.
///
/// # Errors
/// What is missing, as a reason to skip a test.
pub fn assets() -> Result<PathBuf, String> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/kubebuilder-assets"));
    let folder = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).or_else(home);
    let folder = folder.ok_or("KUBEBUILDER_ASSETS is not set")?;
    for program in ["etcd", "kube-apiserver", "kubectl"] {
        if !folder.join(program).is_file() {
            return Err(format!("no {program} in {}; set KUBEBUILDER_ASSETS", folder.display()));
        }
    }
    Ok(folder)
}

/// How an API server is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApiServerOptions {
    /// With the controller manager: Deployments make pods, Services get EndpointSlices, garbage is collected. Pods stay
    /// Pending all the same.
    pub controllers: bool,
}

/// An API server that runs.
pub struct ApiServer {
    assets: PathBuf,
    directory: TempDir,
    options: ApiServerOptions,
    port: u16,
    etcd_port: u16,
    etcd: Option<Running>,
    server: Option<Running>,
    controllers: Option<Running>,
}

impl ApiServer {
    /// Starts one and waits until it is ready.
    pub fn start(options: ApiServerOptions) -> Result<Self> {
        let assets = assets().map_err(anyhow::Error::msg)?;
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { TempDir::with_prefix_in("weft-api.", memory)? } else { TempDir::new()? };
        let [port, etcd_port, peers] = free_ports()?;
        let mut server =
            Self { assets, directory, options, port, etcd_port, etcd: None, server: None, controllers: None };
        server.write_keys()?;
        let (clients, peers) = (server.etcd_url(), format!("http://127.0.0.1:{peers}"));
        let data = server.path("etcd");
        server.etcd = Some(server.run(
            "etcd",
            &[
                "--name=one",
                &format!("--data-dir={}", data.display()),
                &format!("--listen-client-urls={clients}"),
                &format!("--advertise-client-urls={clients}"),
                &format!("--listen-peer-urls={peers}"),
                &format!("--initial-advertise-peer-urls={peers}"),
                &format!("--initial-cluster=one={peers}"),
                "--unsafe-no-fsync",
                "--log-level=error",
            ],
        )?);
        server.start_api_server()?;
        if options.controllers {
            server.start_controllers()?;
        }
        Ok(server)
    }

    /// A kubeconfig of a cluster administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// The API server's process, for measuring and stopping.
    pub fn stop_api_server(&mut self) {
        self.server = None;
    }

    /// Starts the API server again with what etcd holds, and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        let path = |name: &str| self.path(name).display().to_string();
        let mut arguments = vec![
            format!("--etcd-servers={}", self.etcd_url()),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--allow-privileged".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            format!("--cert-dir={}", path("server")),
            format!("--token-auth-file={}", path("tokens.csv")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", path("accounts.pub")),
            format!("--service-account-signing-key-file={}", path("accounts.key")),
            "--profiling=false".to_owned(),
            // To the endpoints of a webhook's Service, for nobody carries what is sent to its address.
            "--enable-aggregator-routing".to_owned(),
        ];
        if !self.options.controllers {
            // Nobody makes the default service accounts.
            arguments.push("--disable-admission-plugins=ServiceAccount".to_owned());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.server = Some(self.run("kube-apiserver", &arguments)?);
        self.wait("the API server is ready", |server| server.kubectl(&["get", "--raw=/readyz"]).is_ok())
    }

    fn start_controllers(&mut self) -> Result<()> {
        let [port, ..] = free_ports()?;
        let path = |name: &str| self.path(name).display().to_string();
        let arguments = [
            format!("--kubeconfig={}", path("kubeconfig")),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            "--kube-api-qps=500".to_owned(),
            "--kube-api-burst=1000".to_owned(),
            format!("--service-account-private-key-file={}", path("accounts.key")),
            format!("--cert-dir={}", path("controllers")),
            "--use-service-account-credentials".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.controllers = Some(self.run("kube-controller-manager", &arguments)?);
        let made = |server: &Self| server.kubectl(&["get", "serviceaccount", "default"]).is_ok();
        self.wait("the controllers make service accounts", made)
    }

    /// Runs `kubectl` as an administrator; standard output, or an error that holds what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        said(self.kubectl_command().args(arguments).output()?, arguments)
    }

    /// `kubectl apply -f -` with `yaml`.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.with_input(&["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml)
    }

    /// Runs `kubectl` with `input` on its standard input.
    pub fn with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kubectl.spawn()?;
        // kubectl reads all of it before it answers.
        child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
        said(child.wait_with_output()?, arguments)
    }

    fn kubectl_command(&self) -> Command {
        let mut kubectl = Command::new(self.assets.join("kubectl"));
        kubectl.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.directory.path());
        kubectl
    }

    /// The folder of programs.
    pub fn assets(&self) -> &Path {
        &self.assets
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    fn write_keys(&self) -> Result<()> {
        let token: [u8; 16] = {
            let mut token = [0; 16];
            aws_lc_rs::rand::fill(&mut token)?;
            token
        };
        let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        self.write("tokens.csv", &format!("{token},admin,admin,system:masters\n"))?;
        let pem = |label: &str, der: &[u8]| {
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
        };
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
        let public: PublicKeyX509Der<'_> = key.public_key().as_der()?;
        self.write("accounts.key", &pem("PRIVATE KEY", key.to_pkcs8v1()?.as_ref()))?;
        self.write("accounts.pub", &pem("PUBLIC KEY", public.as_ref()))?;
        let authority = self.path("server").join("apiserver.crt");
        self.write(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
                 clusters: [{{name: test, cluster: {{server: \"https://127.0.0.1:{}\", certificate-authority: {}}}}}]\n\
                 contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\n\
                 users: [{{name: admin, user: {{token: \"{token}\"}}}}]\n",
                self.port,
                authority.display()
            ),
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.path(name))?;
        Ok(file.write_all(text.as_bytes())?)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Running> {
        let log = File::options().append(true).create(true).open(self.path(&format!("{program}.log")))?;
        // Should this process be killed, what it started ends too.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(self.assets.join(program)).args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        Ok(Running { child })
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let since = Instant::now();
        while !done(self) {
            let running = [&mut self.etcd, &mut self.server, &mut self.controllers];
            let ended = running.into_iter().flatten().find_map(|running| running.child.try_wait().ok().flatten());
            if let Some(status) = ended {
                bail!("a program of the API server ended ({status}):\n{}", self.last_words());
            }
            ensure!(since.elapsed() < PATIENCE, "still not: {what}:\n{}", self.last_words());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let logs = ["etcd", "kube-apiserver", "kube-controller-manager"].map(|name| self.path(&format!("{name}.log")));
        let tail = |text: String| text.lines().rev().take(8).map(str::to_owned).collect::<Vec<_>>().join("\n");
        logs.iter().filter_map(|log| fs::read_to_string(log).ok()).map(tail).collect::<Vec<_>>().join("\n--\n")
    }
}

fn said(output: Output, arguments: &[&str]) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "kubectl {}: {}{text}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Ports that were free a moment ago.
fn free_ports() -> Result<[u16; 3]> {
    let sockets = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)));
    let mut ports = [0; 3];
    for (port, socket) in ports.iter_mut().zip(sockets) {
        *port = socket?.local_addr()?.port();
    }
    Ok(ports)
}

struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
