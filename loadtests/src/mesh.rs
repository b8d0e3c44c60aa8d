//! A whole mesh in the lab: a control plane in a pod of its own, and pods with the redirect rules and a sidecar.
//!
//! Everything is the real program: `weft control-plane`, `weft token create`, `weft proxy init`, `weft proxy`. Used by
//! `weft demo` and by the end-to-end tests.
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::{Lab, Pod, PodSpec, Process, Program};

/// Socket mark of the sidecars' own connections: in the lab there is one user id only.
pub(crate) const PROXY_MARK: &str = "0x2102";
/// How long a process of the mesh may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);
const CONTROL_PLANE_PORT: u16 = 4280;
const CONTROL_PLANE_ADMIN: u16 = 4291;
/// The sidecar's admin port.
pub const ADMIN_PORT: u16 = 4291;

/// How a mesh is started.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// The `weft` binary.
    pub weft: OsString,
    /// The `weft-proxy` binary, which images of sidecars hold; `None`: sidecars are `weft proxy`.
    pub weft_proxy: Option<OsString>,
    /// Lifetime of certificates, such as `1h` or `10s`.
    pub certificate_lifetime: String,
    /// Further arguments of every sidecar.
    pub proxy_arguments: Vec<String>,
    /// Further arguments of the control plane.
    pub control_plane_arguments: Vec<String>,
}

impl MeshOptions {
    /// Certificates of an hour, and an access log of everything.
    pub fn new(weft: impl Into<OsString>) -> Self {
        Self {
            weft: weft.into(),
            weft_proxy: None,
            certificate_lifetime: "1h".to_owned(),
            proxy_arguments: vec!["--access-log".into(), "all".into()],
            control_plane_arguments: Vec::new(),
        }
    }
}

/// A control plane and what it needs, in a lab.
pub struct Mesh {
    /// The network.
    pub lab: Lab,
    options: MeshOptions,
    control_plane_pod: Pod,
    control_plane: Option<Process>,
}

/// What a workload of the mesh is.
#[derive(Clone, Debug)]
pub struct WorkloadSpec {
    /// Name of the pod and of the Workload.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Value of its label `app`.
    pub app: String,
    /// Its addresses; none: given by the lab, one of each family.
    pub addresses: Vec<IpAddr>,
    /// Whether it has a sidecar.
    pub mesh: bool,
}

impl WorkloadSpec {
    /// A workload of namespace `shop` whose service account and label are `app`.
    pub fn new(name: &str, app: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            service_account: app.to_owned(),
            app: app.to_owned(),
            addresses: Vec::new(),
            mesh: true,
        }
    }

    /// In another namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// With this address, alone or among others.
    #[must_use]
    pub fn address(mut self, address: impl Into<IpAddr>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// Without a sidecar.
    #[must_use]
    pub fn without_sidecar(mut self) -> Self {
        self.mesh = false;
        self
    }
}

/// A pod of the mesh with its sidecar.
pub struct MeshPod {
    /// The pod; programs spawned in it have their traffic captured.
    pub pod: Pod,
    /// What it is.
    pub spec: WorkloadSpec,
    /// Its sidecar; `None` without one, or once it was taken.
    pub sidecar: Option<Process>,
}

impl Mesh {
    /// Starts a control plane with an empty directory of resources.
    pub fn start(name: &str, options: MeshOptions) -> Result<Self> {
        let lab = Lab::new(name)?;
        std::fs::create_dir_all(lab.directory().join("resources"))?;
        let control_plane_pod = lab.pod(PodSpec::new("control-plane"))?;
        let mut mesh = Self { lab, options, control_plane_pod, control_plane: None };
        mesh.start_control_plane()?;
        Ok(mesh)
    }

    /// The watched directory of YAML files.
    pub fn resources(&self) -> PathBuf {
        self.lab.directory().join("resources")
    }

    /// The control plane's keys.
    pub fn state(&self) -> PathBuf {
        self.lab.directory().join("state")
    }

    /// The roots that sidecars are given.
    pub fn trust_bundle(&self) -> PathBuf {
        self.state().join("trust-bundle.pem")
    }

    /// The control plane's pod.
    pub fn control_plane_pod(&self) -> &Pod {
        &self.control_plane_pod
    }

    /// `host:port` of its gRPC services, of a family that `pod` has.
    pub fn control_plane_address(&self, pod: &Pod) -> SocketAddr {
        let (v4, v6) = (self.control_plane_pod.ipv4(), self.control_plane_pod.ipv6());
        match (pod.ipv4().and(v4), v6) {
            (None, Some(v6)) => SocketAddr::from((v6, CONTROL_PLANE_PORT)),
            _ => self.control_plane_pod.address(CONTROL_PLANE_PORT),
        }
    }

    /// The running control plane.
    pub fn control_plane(&self) -> Option<&Process> {
        self.control_plane.as_ref()
    }

    /// Takes the control plane away, for signals of the caller's choice; see [`Self::start_control_plane`].
    pub fn take_control_plane(&mut self) -> Option<Process> {
        self.control_plane.take()
    }

    /// Starts the control plane (again) and waits until it is ready.
    pub fn start_control_plane(&mut self) -> Result<()> {
        let program = Program::new(&self.options.weft)
            .args(["control-plane", "--log-format", "json", "--allow-short-lifetimes", "--listen", "[::]:4280"])
            .args(["--certificate-lifetime", self.options.certificate_lifetime.as_str()])
            .arg("--resources")
            .arg(self.resources())
            .arg("--state")
            .arg(self.state())
            .args(&self.options.control_plane_arguments);
        let process = self.control_plane_pod.spawn(program)?;
        wait_until_ready(&self.control_plane_pod, CONTROL_PLANE_ADMIN, &process).context("the control plane")?;
        self.control_plane = Some(process);
        Ok(())
    }

    /// Writes (or replaces) a file of resources, as an operator would: whole, by renaming.
    pub fn write(&self, file: &str, yaml: &str) -> Result<()> {
        let staged = self.resources().join(format!(".{file}.new"));
        std::fs::write(&staged, yaml)?;
        Ok(std::fs::rename(&staged, self.resources().join(file))?)
    }

    /// Runs `weft` in the control plane's pod and returns what it printed.
    pub fn weft<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        run_to_end(&self.control_plane_pod, Program::new(&self.options.weft).args(arguments))
    }

    /// Makes a pod, tells the control plane of it, and gives it rules and a sidecar (if it is to have one), all ready.
    pub fn pod(&self, spec: WorkloadSpec) -> Result<MeshPod> {
        let mut mesh_pod = self.pod_without_sidecar(spec)?;
        if mesh_pod.spec.mesh {
            self.redirect(&mesh_pod.pod)?;
            mesh_pod.sidecar = Some(self.start_sidecar(&mesh_pod)?);
        }
        Ok(mesh_pod)
    }

    /// The pod and its Workload alone.
    pub fn pod_without_sidecar(&self, spec: WorkloadSpec) -> Result<MeshPod> {
        let mut pod_spec = PodSpec::new(&spec.name);
        for address in &spec.addresses {
            pod_spec = pod_spec.address(*address);
        }
        let pod = self.lab.pod(pod_spec)?;
        let addresses: Vec<String> = pod.addresses().iter().map(|address| format!("\"{address}\"")).collect();
        let WorkloadSpec { name, namespace, service_account, app, mesh, .. } = &spec;
        let yaml = format!(
            "apiVersion: policy.weft.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\n\
             spec: {{addresses: [{}], serviceAccount: {service_account}, mesh: {mesh}}}\n",
            addresses.join(", ")
        );
        self.write(&format!("workload-{name}.yaml"), &yaml)?;
        Ok(MeshPod { pod, spec, sidecar: None })
    }

    /// Writes the redirect rules of a pod, as its init container would.
    pub fn redirect(&self, pod: &Pod) -> Result<()> {
        let init = Program::new(&self.options.weft).args(["proxy", "init", "--proxy-mark", PROXY_MARK]);
        run_to_end(pod, init).context("weft proxy init")?;
        Ok(())
    }

    /// Writes a join token for a workload and returns the file's path.
    pub fn token(&self, spec: &WorkloadSpec) -> Result<PathBuf> {
        let state = self.state();
        let create = [
            "token".as_ref(),
            "create".as_ref(),
            "--namespace".as_ref(),
            spec.namespace.as_ref(),
            "--service-account".as_ref(),
            spec.service_account.as_ref(),
            "--state".as_ref(),
            state.as_os_str(),
        ];
        let token = self.weft(create).context("weft token create")?;
        let file = self.lab.directory().join(format!("token-{}", spec.name));
        std::fs::write(&file, token.trim())?;
        Ok(file)
    }

    /// Starts a pod's sidecar and waits until it is ready.
    pub fn start_sidecar(&self, pod: &MeshPod) -> Result<Process> {
        let process = self.spawn_sidecar(pod)?;
        wait_until_ready(&pod.pod, ADMIN_PORT, &process)
            .with_context(|| format!("the sidecar of {}", pod.spec.name))?;
        Ok(process)
    }

    /// Starts a pod's sidecar without waiting.
    pub fn spawn_sidecar(&self, pod: &MeshPod) -> Result<Process> {
        let token = self.token(&pod.spec)?;
        let program = match &self.options.weft_proxy {
            Some(weft_proxy) => Program::new(weft_proxy),
            None => Program::new(&self.options.weft).arg("proxy"),
        };
        let program = program
            .args(["--workload", pod.spec.name.as_str(), "--proxy-mark", PROXY_MARK])
            .args(["--control-plane", self.control_plane_address(&pod.pod).to_string().as_str()])
            .arg("--trust-bundle")
            .arg(self.trust_bundle())
            .arg("--token-file")
            .arg(token)
            .args(&self.options.proxy_arguments);
        Ok(pod.pod.spawn(program)?)
    }
}

impl MeshPod {
    /// The sidecar's metrics.
    pub fn metrics(&self) -> Result<String> {
        let (_, text) = get(&self.pod, SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)), "/metrics")?;
        Ok(text)
    }

    /// Sum of the samples of `metric` whose labels contain all of `labels` (such as `status="200"`).
    pub fn metric(&self, metric: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum_of(&self.metrics()?, metric, labels))
    }

    /// The one running sidecar.
    pub fn sidecar(&self) -> Result<&Process> {
        self.sidecar.as_ref().context("this pod has no sidecar")
    }
}

/// Sum of the samples of `metric` in `text` whose labels contain all of `labels`.
pub fn sum_of(text: &str, metric: &str, labels: &[&str]) -> f64 {
    let sample = |line: &str| {
        let rest = line.strip_prefix(metric)?;
        let (given, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let wanted = labels.iter().all(|label| given.split(',').any(|one| one == *label));
        wanted.then(|| value.split(' ').next()?.parse::<f64>().ok())?
    };
    text.lines().filter_map(sample).sum()
}

/// A plain HTTP/1.1 GET made inside the pod: status and body.
pub fn get(pod: &Pod, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let answer = pod.run(move || async move {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    })??;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Runs a program in a pod to its end and returns its standard output.
pub fn run_to_end(pod: &Pod, program: Program) -> Result<String> {
    let process = pod.spawn(program)?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "ended with {status}: {}{}", process.stdout(), process.stderr());
    Ok(process.stdout())
}

/// Waits until `/ready` answers 200.
pub fn wait_until_ready(pod: &Pod, port: u16, process: &Process) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = String::from("no answer yet");
    while Instant::now() < deadline {
        if let Some(status) = process.try_wait() {
            bail!("ended with {status}: {}{}", tail(&process.stdout()), tail(&process.stderr()));
        }
        match get(pod, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/ready") {
            Ok((200, _)) => return Ok(()),
            Ok((status, body)) => last = format!("{status} {body}"),
            Err(error) => last = error.to_string(),
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    bail!(
        "not ready after {} s: {last}; its log: {}{}",
        PATIENCE.as_secs(),
        tail(&process.stdout()),
        tail(&process.stderr())
    )
}

/// Waits until `condition` holds; for what takes effect by itself.
pub fn eventually(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        if condition()? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Whether a program is on this machine.
pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    names.iter().map(Path::new).find(|path| path.is_file()).map(Path::to_path_buf)
}
