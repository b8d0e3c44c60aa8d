//! What the tests share: two pods with a Service between them, and the programs of this machine.
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use weft_loadtests::apps;
use weft_loadtests::lab::{Pod, Process, Program, Task};
use weft_loadtests::mesh::{Mesh, MeshOptions, MeshPod, WorkloadSpec, eventually, run_to_end};

pub const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// Name of the Service; it has an address of each family.
pub const HOST: &str = "server.shop.svc";
pub const IPV4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
pub const IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10));
pub const PATIENCE: Duration = Duration::from_secs(20);
/// A user other than root: some programs refuse to be root, others would change to a user that the lab does not map.
pub const NOBODY: u32 = 65534;

/// The Service's ports. Of most nothing is declared: the sidecars look.
pub mod port {
    /// To the server's port 8080.
    pub const SEEN: u16 = 80;
    /// To 8080, declared as HTTP/1.
    pub const HTTP1: u16 = 81;
    /// To 8080, declared as HTTP/2.
    pub const HTTP2: u16 = 82;
    /// To 9000.
    pub const OTHER: u16 = 90;
    /// To 9000, declared as a byte stream.
    pub const BYTES: u16 = 91;
    /// To 8443.
    pub const TLS: u16 = 443;
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  selector: {app: server}
  ports:
  - {name: seen, port: 80, targetPort: 8080}
  - {name: declared-one, port: 81, targetPort: 8080, appProtocol: http}
  - {name: declared-two, port: 82, targetPort: 8080, appProtocol: kubernetes.io/h2c}
  - {name: other, port: 90, targetPort: 9000}
  - {name: declared-bytes, port: 91, targetPort: 9000, appProtocol: tcp}
  - {name: secret, port: 443, targetPort: 8443}
";

/// A test and the programs that it needs.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub needs: &'static [&'static str],
    pub run: fn() -> Result<()>,
}

impl Case {
    pub const fn new(name: &'static str, needs: &'static [&'static str], run: fn() -> Result<()>) -> Self {
        Self { name, needs, run }
    }

    /// The first program that is not here.
    pub fn missing(&self) -> Option<&'static str> {
        self.needs.iter().find(|name| find(name).is_none()).copied()
    }
}

/// Where a program is: in a folder of `WEFT_PEERS`, of `PATH`, where Debian keeps servers, or where `.ci/run` puts its
/// tools.
pub fn find(name: &str) -> Option<PathBuf> {
    let given = ["WEFT_PEERS", "PATH"].into_iter().filter_map(std::env::var_os);
    let mut folders: Vec<PathBuf> =
        given.flat_map(|folders: OsString| std::env::split_paths(&folders).collect::<Vec<_>>()).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
    let tools = std::env::var_os("WEFT_CI_TOOLS").map(PathBuf::from).or_else(|| Some(cache?.join("weft-ci")));
    folders.extend(tools.map(|tools| tools.join("bin")));
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut postgres: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    postgres.sort();
    folders.extend(postgres.into_iter().rev());
    folders.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

pub fn program(name: &str) -> Result<Program> {
    Ok(Program::new(find(name).with_context(|| format!("{name} was there a moment ago"))?))
}

/// Runs a program in a pod to its end and returns its standard output.
pub fn run<S: AsRef<std::ffi::OsStr>>(pod: &Pod, name: &str, arguments: &[S]) -> Result<String> {
    run_to_end(pod, program(name)?.args(arguments)).with_context(|| name.to_owned())
}

/// Runs curl and returns what it got, byte for byte, then what it wrote of itself (`--write-out`).
pub fn curl(pod: &Pod, arguments: &[&str]) -> Result<String> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let output = pod.directory().join(format!("curl-{}", RUNS.fetch_add(1, Ordering::Relaxed)));
    let curl = program("curl")?.args(["--silent", "--show-error", "--max-time", "15"]);
    let curl = match arguments.contains(&"--output") {
        true => curl,
        false => curl.arg("--output").arg(&output),
    };
    let told = run_to_end(pod, curl.args(arguments)).with_context(|| format!("curl {arguments:?}"))?;
    // Without a body there may be no file.
    let got = std::fs::read(&output).unwrap_or_default();
    Ok(String::from_utf8_lossy(&got).into_owned() + told.trim_end_matches('\n'))
}

/// Runs a future in the pod and waits for it.
pub fn within<T, F>(pod: &Pod, make: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    F: Future<Output = Result<T>>,
    T: Send + 'static,
{
    pod.run(move || async move {
        let work = tokio::time::timeout(PATIENCE, make());
        work.await.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {PATIENCE:?}")))
    })?
}

/// A mesh with a `client` and a `server`, which is behind the Service `server`.
pub struct Pair {
    pub mesh: Mesh,
    pub client: MeshPod,
    pub server: MeshPod,
}

impl Pair {
    pub fn start(name: &str) -> Result<Self> {
        let mesh = Mesh::start(name, MeshOptions::new(WEFT))?;
        mesh.write("server.yaml", SERVICE)?;
        mesh.write(
            "namespace.yaml",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {weft.dev/default-policy: allow}}\n",
        )?;
        let server = mesh.pod(WorkloadSpec::new("server-1", "server"))?;
        let client = mesh.pod(WorkloadSpec::new("client-1", "client"))?;
        mesh.lab.hosts([(HOST, IPV4), (HOST, IPV6)])?;
        Ok(Self { mesh, client, server })
    }

    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IPV4, port)
    }

    /// Serves the application that tells what it received on a port of the server.
    pub fn tell(&self, port: u16) -> Result<Task<std::io::Result<()>>> {
        let listener = self.server.pod.listen(port)?;
        Ok(self.server.pod.start(move || async move { apps::http(listener, "server").await })?)
    }

    /// Starts a server program and waits until `works`.
    pub fn serve(&self, program: Program, mut works: impl FnMut() -> Result<()>) -> Result<Process> {
        start(&self.server.pod, program, &mut works)
    }

    /// As [`Self::serve`], in the client's pod.
    pub fn serve_beside_client(&self, program: Program, mut works: impl FnMut() -> Result<()>) -> Result<Process> {
        start(&self.client.pod, program, &mut works)
    }

    /// Waits until the server's sidecar has counted requests of `protocol` that came by mutual TLS, at least so many.
    pub fn carried_requests(&self, protocol: &str, least: f64) -> Result<()> {
        self.carried("weft_requests_total", &format!("protocol=\"{protocol}\""), least)
    }

    /// The same of byte streams.
    pub fn carried_streams(&self, least: f64) -> Result<()> {
        self.carried("weft_tcp_connections_total", "protocol=\"tcp\"", least)
    }

    fn carried(&self, metric: &str, protocol: &str, least: f64) -> Result<()> {
        let labels = ["direction=\"inbound\"", "tls=\"true\"", "source=\"client\"", protocol];
        eventually(&format!("{metric} {labels:?} is {least} or more"), PATIENCE, || {
            Ok(self.server.metric(metric, &labels)? >= least)
        })
        .with_context(|| self.server.metrics().unwrap_or_default())
    }
}

fn start(pod: &Pod, program: Program, works: &mut dyn FnMut() -> Result<()>) -> Result<Process> {
    let process = pod.spawn(program)?;
    let mut last = String::new();
    eventually("the program serves", PATIENCE, || {
        anyhow::ensure!(process.try_wait().is_none(), "it ended: {}{}", process.stdout(), process.stderr());
        let done = works();
        last = done.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        Ok(done.is_ok())
    })
    .with_context(|| format!("{last}; its output: {}{}", process.stdout(), process.stderr()))?;
    Ok(process)
}

/// The folder of a pod as text, for configuration files.
pub fn folder(pod: &Pod) -> Result<String> {
    Ok(pod.directory().to_str().context("a UTF-8 path")?.to_owned())
}
