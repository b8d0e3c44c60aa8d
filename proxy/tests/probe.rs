//! The kubelet's checks through the sidecar's admin port, in a pod of the lab with the redirect in force.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use weft_loadtests::lab::{Lab, Pod, PodSpec, Task, testing};
use weft_proxy::admin::{Admin, Readiness};
use weft_proxy::probe::Prober;
use weft_proxy::redirect::{self, ProxyTraffic, Rules};
use weft_proxy::telemetry::{AccessLogMode, DEFAULT_SERIES_BUDGET, LineSink, Party, Telemetry, TelemetrySettings};

/// Longer than anything takes here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const MARK: u32 = 0x2102;
const OWN_PORTS: [u16; 3] = [4240, 4243, 4291];

fn main() {
    testing::main(&[
        ("the_kubelet_learns_of_the_application_through_the_sidecar", the_kubelet_learns_of_the_application),
        ("a_handler_that_fails_gets_no_answer", a_handler_that_fails_gets_no_answer),
    ]);
}

/// The pod `pod` has the redirect, an application on its own addresses (8080) and one on loopback (8081).
struct Scene {
    _lab: Lab,
    pod: Pod,
    node: Pod,
    _servers: Vec<Task<()>>,
}

fn scene() -> Result<Scene> {
    let lab = Lab::new("probe")?;
    let (pod, node) = (lab.pod(PodSpec::new("pod"))?, lab.pod(PodSpec::new("node"))?);
    let rules = Rules {
        proxy: ProxyTraffic { uid: None, mark: Some(MARK) },
        outbound_port: OWN_PORTS[0],
        inbound_port: OWN_PORTS[1],
        admin_port: OWN_PORTS[2],
        skip_inbound_ports: vec![],
        skip_outbound_ports: vec![],
        skip_subnets: vec![],
    };
    pod.run(move || async move { redirect::install(&rules) })??;
    let addresses: Vec<SocketAddr> = pod.addresses().iter().map(|address| SocketAddr::new(*address, 8080)).collect();
    let mut servers = Vec::new();
    for address in addresses.into_iter().chain(["127.0.0.1:8081".parse()?, "[::1]:8081".parse()?]) {
        servers.push(pod.start(move || application(address))?);
    }
    let admin = pod.listen(OWN_PORTS[2])?;
    servers.push(pod.start(move || async move {
        let listener = TcpListener::from_std(admin).expect("it is a listening socket");
        weft_proxy::admin::serve(listener, sidecar().expect("valid settings")).await;
    })?);
    Ok(Scene { _lab: lab, pod, node, _servers: servers })
}

/// Answers every request with 200 for `/good` and 503 for the rest.
async fn application(address: SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("an address of the pod");
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {}
            let status = if request.starts_with(b"GET /good ") { "200 OK" } else { "503 Service Unavailable" };
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
        });
    }
}

fn sidecar() -> Result<std::sync::Arc<Admin>> {
    let (lines, _guard) = LineSink::new(std::io::sink());
    let settings = TelemetrySettings {
        workload: Party::new("orders", "shop"),
        series_budget: DEFAULT_SERIES_BUDGET,
        access_log: AccessLogMode::Off,
        otlp: None,
    };
    let get = |port: u16, path: &str| json!({"httpGet": {"port": port, "path": path}});
    let probes = json!({
        "app/liveness": {"action": get(8080, "/good"), "timeoutSeconds": 20},
        "app/readiness": {"action": get(8080, "/bad"), "timeoutSeconds": 20},
        "app/startup": {"action": {"tcpSocket": {"port": 8080}}, "timeoutSeconds": 20},
        "local/liveness": {"action": get(8081, "/good"), "timeoutSeconds": 20},
        "local/readiness": {"action": {"tcpSocket": {"port": 8081}}, "timeoutSeconds": 20},
        "app/post-start/5ec4e7": {"action": get(8080, "/good")},
        "app/pre-stop/5ec4e7": {"action": get(8080, "/bad")},
    });
    let prober =
        Prober::new(weft_api::probe::parse(&probes.to_string()).map_err(anyhow::Error::msg)?, OWN_PORTS, Some(MARK));
    let (_, readiness) = watch::channel(Readiness::ready());
    let explain = Box::new(|_: &BTreeMap<String, String>| Ok(json!({})));
    Ok(Admin::new(Telemetry::new(settings, lines)?, readiness, Box::new(|| json!({})), explain, prober))
}

/// The status of a request for `path` from `from`; 0 where the connection ends without an answer.
fn ask(from: &Pod, admin: SocketAddr, path: &'static str) -> Result<u16> {
    from.run(move || async move {
        let ask = async {
            let mut stream = TcpStream::connect(admin).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            match answer.strip_prefix("HTTP/1.1 ") {
                Some(rest) => anyhow::Ok(rest.get(..3).context("a status")?.parse()?),
                None => Ok(0),
            }
        };
        tokio::time::timeout(PATIENCE, ask).await.context("no end")?
    })?
    .with_context(|| format!("asking {admin} for {path}"))
}

fn the_kubelet_learns_of_the_application() -> Result<()> {
    let scene = scene()?;
    for address in scene.pod.addresses() {
        let admin = SocketAddr::new(*address, OWN_PORTS[2]);
        for (path, status) in [
            ("/probe/app/liveness", 200),
            ("/probe/app/readiness", 503),
            ("/probe/app/startup", 200),
            ("/probe/local/liveness", 503),
            ("/probe/local/readiness", 503),
            ("/probe/app/liveness?port=8081", 404),
            ("/probe/app/liveness/", 404),
            ("/probe/other/liveness", 404),
            ("/probe/", 404),
            ("/probe/app/pre-stop", 404),
            ("/probe/app/pre-stop/guessed", 404),
        ] {
            let seen = ask(&scene.node, admin, path)?;
            ensure!(seen == status, "{path}: {seen}, not {status}");
        }
    }
    for loopback in ["127.0.0.1:4291", "[::1]:4291"] {
        let seen = ask(&scene.pod, loopback.parse()?, "/probe/local/liveness")?;
        ensure!(seen == 400, "{loopback}: {seen}: an application on loopback must not pass for one that is reachable");
    }
    Ok(())
}

/// The kubelet takes any answer to a lifecycle handler for success.
fn a_handler_that_fails_gets_no_answer() -> Result<()> {
    let scene = scene()?;
    let admin = SocketAddr::new(scene.pod.addresses()[0], OWN_PORTS[2]);
    ensure!(ask(&scene.node, admin, "/probe/app/post-start/5ec4e7")? == 200);
    ensure!(ask(&scene.node, admin, "/probe/app/pre-stop/5ec4e7")? == 0);
    Ok(())
}
