//! A mesh under every kind of traffic that the dashboard and the alerts speak of, until it is dropped.
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use http::{HeaderValue, Method, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::apps;
use weft_loadtests::lab::Task;
use weft_loadtests::load::{Pace, Plan, Version};
use weft_loadtests::mesh::{Mesh, MeshOptions, MeshPod, WorkloadSpec};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
const INBOUND_PORT: u16 = 4243;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const LEGACY: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
const DEAD: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 12);

/// `dead` has a sidecar and no application behind it; `legacy` has no sidecar.
const RESOURCES: &str = "
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: server}
  ports: [{name: web, port: 80, targetPort: 8080}, {name: raw, port: 9000, targetPort: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: legacy, namespace: shop}
spec:
  clusterIP: 10.96.0.11
  selector: {app: legacy}
  ports: [{name: web, port: 80, targetPort: 8080}, {name: raw, port: 9000, targetPort: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: dead, namespace: shop}
spec: {clusterIP: 10.96.0.12, selector: {app: dead}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Allow
  rules:
  - from: [{serviceAccounts: [client]}]
    to: [{methods: [GET], paths: ['/public/*', '/status/*', '/delay/*']}]
  - from: [{serviceAccounts: [client]}]
    to: [{ports: [9000]}]
  - from: [{ipBlocks: [0.0.0.0/0]}]
    to: [{methods: [GET], paths: ['/public/*']}]
  - from: [{ipBlocks: [0.0.0.0/0]}]
    to: [{ports: [9000]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: trial, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Deny
  mode: Shadow
  rules: [{to: [{paths: ['/status/*']}]}]
---
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: misspelt, namespace: shop}
spec: {targetRefs: [{kind: Service, name: sevrer}], action: Deny}
---
apiVersion: policy.weft.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: fair-use, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  limits: [{name: per-client, requests: 30, window: 1s, per: Client}]
";

/// The mesh and what goes on in it.
pub struct Lab {
    pub mesh: Mesh,
    /// Those with a sidecar.
    pub meshed: Vec<MeshPod>,
    _others: Vec<MeshPod>,
    _traffic: Vec<Task<Result<Infallible>>>,
    _applications: Vec<Task<std::io::Result<()>>>,
}

impl Lab {
    pub fn start(name: &str) -> Result<Self> {
        let mut options = MeshOptions::new(WEFT);
        options.control_plane_arguments.extend(["--admin-listen", "[::]:4291"].map(String::from));
        let mesh = Mesh::start(name, options)?;
        mesh.write("resources.yaml", RESOURCES)?;
        let server = mesh.pod(WorkloadSpec::new("server-1", "server"))?;
        let dead = mesh.pod(WorkloadSpec::new("dead-1", "dead"))?;
        let client = mesh.pod(WorkloadSpec::new("client-1", "client"))?;
        let legacy = mesh.pod(WorkloadSpec::new("legacy-1", "legacy").without_sidecar())?;
        let stranger = mesh.pod(WorkloadSpec::new("stranger-1", "stranger").without_sidecar())?;

        let mut applications = Vec::new();
        for pod in [&server, &legacy] {
            let (listener, name) = (pod.pod.listen(8080)?, pod.spec.name.clone());
            applications.push(pod.pod.start(move || async move { apps::http(listener, &name).await })?);
            let echo = pod.pod.listen(9000)?;
            applications.push(pod.pod.start(move || apps::tcp_echo(echo))?);
        }

        let direct = server.pod.ipv4().map_or(server.pod.address(8080).ip(), IpAddr::from);
        let get = |host: IpAddr, port: u16, path: &str| -> Result<Plan> {
            Ok(Plan::get(format!("http://{host}:{port}{path}").parse()?))
        };
        let at = |per_second: f64, plan: Plan| plan.pace(Pace::Open { per_second });
        let grpc = |host: Ipv4Addr| -> Result<Plan> {
            let plan = get(host.into(), 80, "/shop.Inventory/Reserve")?.version(Version::Http2);
            let content_type = HeaderValue::from_static("application/grpc");
            Ok(plan.body(Method::POST, vec![0; 5]).header(header::CONTENT_TYPE, content_type))
        };
        let plans = vec![
            // More than the limit. Rates without a common measure: of two that keep in step, one may always come too late
            // for the limit, and never be answered.
            (&client, at(43.7, get(SERVER.into(), 80, "/public/a")?)),
            (&client, at(11.9, get(SERVER.into(), 80, "/status/503")?)),
            (&client, at(4.0, get(SERVER.into(), 80, "/refused")?)),
            // Slow enough for the alert on latency.
            (&client, at(3.7, get(SERVER.into(), 80, "/delay/1500")?.connections(10))),
            (&client, at(4.0, grpc(SERVER)?)),
            (&client, at(4.0, get(DEAD.into(), 80, "/")?)),
            (&client, at(4.0, grpc(DEAD)?)),
            (&client, at(4.0, get(LEGACY.into(), 80, "/")?)),
            (&stranger, at(4.0, get(direct, 8080, "/public/a")?)),
            (&stranger, at(4.0, get(direct, 8080, "/refused")?)),
        ];
        let mut traffic = Vec::new();
        for (from, plan) in plans {
            traffic.push(from.pod.start(move || load(plan))?);
        }
        let targets = [(&client, SERVER.into()), (&client, LEGACY.into()), (&stranger, direct)];
        for (from, target) in targets {
            traffic.push(from.pod.start(move || streams(SocketAddr::new(target, 9000)))?);
        }
        let forbidden = dead.pod.address(8080);
        for target in [SocketAddr::new(direct, INBOUND_PORT), forbidden] {
            traffic.push(stranger.pod.start(move || intrusions(target))?);
        }
        let (meshed, others) = (vec![server, dead, client], vec![legacy, stranger]);
        Ok(Self { mesh, meshed, _others: others, _traffic: traffic, _applications: applications })
    }
}

async fn load(plan: Plan) -> Result<Infallible> {
    let _load = plan.start()?;
    std::future::pending().await
}

/// Byte streams, made anew when they end: a sidecar may not know its destination yet.
async fn streams(target: SocketAddr) -> Result<Infallible> {
    loop {
        // It ends with an error only.
        let _ = exchange(target).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Byte streams one after the other, and one that stays.
async fn exchange(target: SocketAddr) -> Result<Infallible> {
    let mut kept = TcpStream::connect(target).await?;
    loop {
        let mut short = TcpStream::connect(target).await?;
        for stream in [&mut kept, &mut short] {
            stream.write_all(&[7; 1000]).await?;
            stream.read_exact(&mut [0; 1000]).await?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Bytes that are no HTTP, to where nobody lets them in.
async fn intrusions(target: SocketAddr) -> Result<Infallible> {
    loop {
        if let Ok(mut stream) = TcpStream::connect(target).await {
            let _ = stream.write_all(&[0; 100]).await;
            let _ = stream.read(&mut [0; 100]).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
