//! A cluster of an API server alone, control planes beside it, and sidecars of pods that only the API server knows.
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_loadtests::kubernetes::{ApiServer, ApiServerOptions};

pub const WEFT: &str = env!("CARGO_BIN_EXE_weft");
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done` gives a value; `what` says what for.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let since = Instant::now();
    loop {
        let last = done();
        match last {
            Ok(Some(value)) => return Ok(value),
            _ if since.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(50)),
            Ok(None) => bail!("not within {PATIENCE:?}: {what}"),
            Err(error) => return Err(error).with_context(|| format!("not within {PATIENCE:?}: {what}")),
        }
    }
}

/// An API server with Weft's kinds.
pub struct Cluster {
    pub api: ApiServer,
    pub directory: TempDir,
}

impl Cluster {
    pub fn start() -> Result<Self> {
        Self::with(ApiServerOptions::default())
    }

    pub fn with(options: ApiServerOptions) -> Result<Self> {
        let cluster = Self::bare(options)?;
        let crds = Command::new(WEFT).arg("crds").output()?;
        cluster.api.apply(&String::from_utf8(crds.stdout)?)?;
        cluster.api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
        cluster.api.apply("{apiVersion: v1, kind: Namespace, metadata: {name: weft-system}}")?;
        Ok(cluster)
    }

    /// An API server that has never heard of Weft.
    pub fn bare(options: ApiServerOptions) -> Result<Self> {
        Ok(Self { api: ApiServer::start(options)?, directory: TempDir::new()? })
    }

    /// Makes the namespace `name`, with `annotations`.
    pub fn namespace(&self, name: &str, annotations: Value) -> Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations},
        });
        self.api.apply(&namespace.to_string()).map(drop)
    }

    /// Makes a pod that runs at `address` as far as the API server knows, with its service account.
    pub fn pod(&self, pod: &PodSpec<'_>) -> Result<()> {
        let PodSpec { namespace, name, account, address, meshed } = *pod;
        let labels = json!({"app": account});
        let sidecar = json!([{"name": "weft-proxy", "image": "weft-proxy:test", "restartPolicy": "Always"}]);
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}},
            {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {
                    "serviceAccountName": account,
                    "containers": [{"name": "app", "image": "app:test", "ports": [{"name": "http", "containerPort": 8080}]}],
                    "initContainers": if meshed { sidecar } else { json!([]) },
                },
            },
        ]});
        self.api.apply(&objects.to_string())?;
        let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}}).to_string();
        let patch = ["patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", &status];
        self.api.kubectl(&patch).map(drop)
    }

    /// Makes the Service `name` with one slice of `pods` (name, address, ready).
    pub fn service(&self, namespace: &str, name: &str, address: &str, pods: &[(&str, &str, bool)]) -> Result<()> {
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|(pod, address, ready)| {
                json!({
                    "addresses": [address], "conditions": {"ready": ready},
                    "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace},
                })
            })
            .collect();
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "clusterIP": address, "selector": {"app": name},
                    "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
                },
            },
            {
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {
                    "name": format!("{name}-1"), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": endpoints,
            },
        ]});
        self.api.apply(&objects.to_string()).map(drop)
    }

    /// Starts a control plane of the replica `pod`, which may do everything.
    pub fn control_plane(&self, pod: &str, arguments: &[&str]) -> Result<ControlPlane> {
        self.control_plane_as(&self.api.kubeconfig(), pod, arguments)
    }

    /// Starts a control plane of the replica `pod`, which may do what the user of `kubeconfig` may.
    pub fn control_plane_as(&self, kubeconfig: &Path, pod: &str, arguments: &[&str]) -> Result<ControlPlane> {
        let state = self.directory.path().join(pod);
        fs::create_dir_all(&state)?;
        let mut command = Command::new(WEFT);
        command
            .args(["control-plane", "--kubernetes", "--log-format=json", "--admin-listen=127.0.0.1:0"])
            .arg(format!("--pod-name={pod}"))
            .arg(format!("--state={}", state.join("state").display()))
            .args(arguments)
            .env("KUBECONFIG", kubeconfig);
        for listen in ["--listen=", "--webhook-listen="] {
            if !arguments.iter().any(|argument| argument.starts_with(listen)) {
                command.arg(format!("{listen}127.0.0.1:0"));
            }
        }
        let process = Process::start(command, state.join("log"))?;
        let started = process.line("control plane started")?;
        let address = |field: &str| -> Result<SocketAddr> {
            let text = started[field].as_str().with_context(|| format!("no {field} in {started}"))?;
            Ok(text.parse()?)
        };
        let control_plane = ControlPlane {
            address: address("address")?,
            admin: address("admin")?,
            state: state.join("state"),
            process,
        };
        eventually("the control plane is ready", || {
            Ok(get(control_plane.admin, "/ready").ok().filter(|(status, _)| *status == 200))
        })?;
        Ok(control_plane)
    }

    /// A token of the pod, as its kubelet would ask for it.
    pub fn token(&self, pod: &PodSpec<'_>, audience: &str) -> Result<String> {
        let PodSpec { namespace, name, account, .. } = *pod;
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", name];
        let token = ["create", "token", account, "-n", namespace, "--audience", audience];
        Ok(self.api.kubectl(&[&token[..], &bound[..]].concat())?.trim().to_owned())
    }

    /// Starts the sidecar of `pod`, without redirect rules.
    pub fn sidecar(&self, pod: &PodSpec<'_>, control_plane: &ControlPlane) -> Result<Sidecar> {
        let token = self.directory.path().join(format!("token-{}", pod.name));
        fs::write(&token, self.token(pod, "weft")?)?;
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
        let mut ports = Vec::new();
        for socket in sockets {
            ports.push(socket?.local_addr()?.port());
        }
        let mut command = Command::new(WEFT);
        command
            .args(["proxy", "--workload", pod.name, "--control-plane", &control_plane.address.to_string()])
            .arg("--trust-bundle")
            .arg(control_plane.state.join("trust-bundle.pem"))
            .arg("--token-file")
            .arg(token)
            .args([format!("--outbound-port={}", ports[0]), format!("--inbound-port={}", ports[1])])
            .arg(format!("--admin-port={}", ports[2]));
        let process = Process::start(command, self.directory.path().join(format!("log-{}", pod.name)))?;
        Ok(Sidecar { admin: SocketAddr::from(([127, 0, 0, 1], ports[2])), process })
    }
}

/// A pod.
#[derive(Clone, Copy)]
pub struct PodSpec<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// Its service account, and the value of its label `app`.
    pub account: &'a str,
    pub address: &'a str,
    pub meshed: bool,
}

/// A pod of namespace `shop` with a sidecar.
pub fn meshed<'a>(name: &'a str, account: &'a str, address: &'a str) -> PodSpec<'a> {
    PodSpec { namespace: "shop", name, account, address, meshed: true }
}

pub struct ControlPlane {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub state: PathBuf,
    pub process: Process,
}

impl ControlPlane {
    /// The row of a workload in `/workloads`.
    pub fn workload(&self, name: &str) -> Result<Option<Value>> {
        let (_, body) = get(self.admin, "/workloads")?;
        let rows: Vec<Value> = serde_json::from_str(&body)?;
        Ok(rows.into_iter().find(|row| row["name"] == name))
    }
}

pub struct Sidecar {
    pub admin: SocketAddr,
    pub process: Process,
}

impl Sidecar {
    pub fn config(&self) -> Result<Value> {
        let (_, body) = get(self.admin, "/config")?;
        Ok(serde_json::from_str(&body)?)
    }

    /// Waits until `/config` has what `wanted` looks for.
    pub fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(what, || Ok(Some(self.config()?).filter(&wanted)))
            .with_context(|| format!("{:#}\n{}", self.config().unwrap_or_default(), self.process.tail()))
    }
}

/// A process that ends with the value; what it prints is in a file.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log)?;
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Self { child, log })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs yet.
    pub fn runs(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.id())).is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Waits for a JSON line whose message is `message`.
    pub fn line(&self, message: &str) -> Result<Value> {
        let found = || {
            let text = fs::read_to_string(&self.log)?;
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            Ok(lines.into_iter().find(|line| line["message"] == message))
        };
        eventually(message, found).with_context(|| self.tail())
    }

    /// What it printed.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of this host that the API server accepts as an endpoint's; nothing is sent to find it.
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.254:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

/// GET over plain HTTP/1.1.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the header")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    ensure!(!head.to_ascii_lowercase().contains("transfer-encoding: chunked"), "a chunked answer");
    Ok((status, body.to_owned()))
}
