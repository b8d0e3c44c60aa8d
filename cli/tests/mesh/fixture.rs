//! What the tests share: the demo application's mesh, and clients.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use weft_loadtests::apps;
use weft_loadtests::lab::{Pod, Task};
use weft_loadtests::mesh::{ADMIN_PORT, Mesh, MeshOptions, MeshPod, WorkloadSpec, eventually, get};

pub const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// Address of the Service `server`.
pub const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const SERVER_SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: server}
  ports:
  - {name: web, port: 80, targetPort: 8080}
  - {name: raw, port: 9000, targetPort: 9000}
";

/// A mesh with a `client` and a `server`, which is behind the Service `server`.
pub struct Pair {
    pub mesh: Mesh,
    pub client: MeshPod,
    pub server: MeshPod,
}

impl Pair {
    pub fn start(name: &str) -> Result<Self> {
        Self::with(name, MeshOptions::new(WEFT))
    }

    pub fn with(name: &str, options: MeshOptions) -> Result<Self> {
        let mesh = Mesh::start(name, options)?;
        mesh.write("server.yaml", SERVER_SERVICE)?;
        let server = mesh.pod(WorkloadSpec::new("server-1", "server"))?;
        let client = mesh.pod(WorkloadSpec::new("client-1", "client"))?;
        mesh.lab.hosts([("server.shop.svc", SERVICE)])?;
        Ok(Self { mesh, client, server })
    }

    /// Waits until both sidecars run what the control plane says now.
    pub fn settle(&self) -> Result<()> {
        settle(&self.mesh, &[&self.client, &self.server])
    }

    /// Serves the echo application on port 8080 of the server.
    pub fn serve_http(&self) -> Result<Task<std::io::Result<()>>> {
        serve_http(&self.server)
    }

    pub fn web(&self) -> SocketAddr {
        SocketAddr::new(SERVICE, 80)
    }

    pub fn raw(&self) -> SocketAddr {
        SocketAddr::new(SERVICE, 9000)
    }

    /// GET from the client through the mesh.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        get(&self.client.pod, self.web(), path)
    }
}

pub fn serve_http(server: &MeshPod) -> Result<Task<std::io::Result<()>>> {
    let listener = server.pod.listen(8080)?;
    let name = server.spec.name.clone();
    Ok(server.pod.start(move || async move { apps::http(listener, &name).await })?)
}

/// The echo application's account of the request it got.
pub fn seen(body: &str) -> Result<apps::Request> {
    serde_json::from_str(body).with_context(|| format!("not the echo application's answer: {body}"))
}

/// Runs a future in the pod and waits for it.
pub fn within<T, F>(pod: &Pod, make: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    F: Future<Output = Result<T>>,
    T: Send + 'static,
{
    pod.run(make)?
}

/// Waits until the sidecars run a configuration that is newer than this moment's, after a file was written.
///
/// A write may change nothing for a sidecar, so the proof is a marker: a Service made here, seen in `/config`.
pub fn settle(mesh: &Mesh, pods: &[&MeshPod]) -> Result<()> {
    static MARKERS: AtomicU32 = AtomicU32::new(0);
    let marker = format!("marker-{}", MARKERS.fetch_add(1, Ordering::Relaxed));
    mesh.write(
        "zz-marker.yaml",
        &format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {marker}, namespace: shop}}\nspec: {{ports: [{{port: 1}}]}}\n"),
    )?;
    for pod in pods {
        eventually("the sidecar has the new configuration", PATIENCE, || {
            let (_, config) = get(&pod.pod, SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)), "/config")?;
            Ok(config.contains(&marker))
        })?;
    }
    Ok(())
}
