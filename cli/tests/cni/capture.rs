//! From a pod's start to its captured connections: the agent's plugin, the pod's network namespace, a sidecar.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use weft_loadtests::apps;
use weft_loadtests::lab::testing::Test;
use weft_loadtests::lab::{Pod, PodSpec, Process, Program, Task};
use weft_loadtests::mesh::{Mesh, MeshOptions, WorkloadSpec, get};
use weft_proxy::redirect;

use crate::agent::{Node, meshed};
use crate::api::Cluster;
use crate::call::PREVIOUS;

pub const TESTS: &[Test] = &[
    ("a_pod_that_waits_for_the_plugin_has_its_connections_captured", captured),
    ("a_pod_that_writes_its_own_rules_is_left_alone", left_alone),
    ("a_pod_whose_annotations_are_wrong_does_not_start_and_is_told_what_to_write", wrong_annotation),
    ("a_sidecar_serves_what_the_plugins_rules_bring_it", sidecar),
];

const PATIENCE: Duration = Duration::from_secs(20);

/// The path by which a container runtime names the pod's network namespace: of a process that is in it.
pub fn netns(pod: &Pod) -> Result<(Process, PathBuf)> {
    let pause = pod.spawn(Program::new("sleep").arg("600"))?;
    let path = PathBuf::from(format!("/proc/{}/ns/net", pause.id()));
    Ok((pause, path))
}

/// Answers each connection with `name`.
fn server(pod: &Pod, port: u16, name: &'static str) -> Result<Task<std::io::Result<()>>> {
    let listener = pod.listen(port)?;
    Ok(pod.start(move || apps::tcp_greeter(listener, name.as_bytes()))?)
}

/// Who answers a connection from `pod` to `to`.
fn greeting(pod: &Pod, to: SocketAddr, len: usize) -> Result<String> {
    let bytes = pod.run(move || async move {
        let ask = async {
            let mut greeting = vec![0; len];
            TcpStream::connect(to).await?.read_exact(&mut greeting).await?;
            anyhow::Ok(greeting)
        };
        tokio::time::timeout(PATIENCE, ask).await.context("no answer")?
    })?;
    Ok(String::from_utf8(bytes.with_context(|| format!("asking {to}"))?)?)
}

fn captured() -> Result<()> {
    let cluster = Cluster::new();
    let annotations = json!({
        "weft.dev/skip-inbound-ports": "8081-8082", "weft.dev/skip-outbound-ports": "8083",
        "weft.dev/skip-subnets": "192.0.2.0/24",
    });
    cluster.add("orders-1", annotations, meshed(), false);
    let node = Node::start("captured", cluster)?;
    let (pod, elsewhere) = (node.lab.pod(PodSpec::new("orders-1"))?, node.lab.pod(PodSpec::new("elsewhere"))?);
    let mut servers = vec![server(&pod, 4240, "outbound")?, server(&pod, 4243, "inbound.")?];
    for port in [8080, 8081, 8082, 8083] {
        servers.push(server(&pod, port, "orders-1")?);
        servers.push(server(&elsewhere, port, "faraway.")?);
    }
    let (_pause, netns) = netns(&pod)?;
    let add = node.call("ADD", "orders-1", &netns);
    node.call("CHECK", "orders-1", &netns).run()?.failed(101, "are gone")?;
    // The kubelet may repeat it.
    add.run()?.succeeded(PREVIOUS)?;
    add.run()?.succeeded(PREVIOUS)?;
    node.call("CHECK", "orders-1", &netns).run()?.succeeded("")?;
    for (own, other) in pod.addresses().iter().zip(elsewhere.addresses()) {
        for (port, inbound, outbound) in
            [(8080, "inbound.", "outbound"), (8081, "orders-1", "outbound"), (8083, "inbound.", "faraway.")]
        {
            let (there, here) = (SocketAddr::new(*other, port), SocketAddr::new(*own, port));
            ensure!(greeting(&pod, there, 8)? == outbound, "to {there}");
            ensure!(greeting(&elsewhere, here, 8)? == inbound, "from elsewhere to {here}");
        }
    }
    elsewhere.add_address(std::net::Ipv4Addr::new(192, 0, 2, 9))?;
    ensure!(greeting(&pod, "192.0.2.9:8080".parse()?, 8)? == "faraway.", "the subnet is skipped");
    let counters = pod.run(|| async { redirect::counters() })??;
    for rule in ["proxy user", "redirect", "port 8083", "port 8081-8082"] {
        ensure!(counters.iter().any(|counter| counter.rule == rule), "{rule}: {counters:?}");
    }
    let elsewhere_rules = elsewhere.run(|| async { redirect::counters() })??;
    ensure!(elsewhere_rules.is_empty(), "nobody else is redirected: {elsewhere_rules:?}");
    Ok(())
}

fn left_alone() -> Result<()> {
    let cluster = Cluster::new();
    cluster.add("own-rules", json!({}), json!([{"name": "weft-init"}, {"name": "weft-proxy"}]), false);
    cluster.add("unmeshed", json!({}), json!([]), false);
    let node = Node::start("alone", cluster)?;
    for name in ["own-rules", "unmeshed"] {
        let pod = node.lab.pod(PodSpec::new(name))?;
        let (_pause, netns) = netns(&pod)?;
        node.call("ADD", name, &netns).run()?.succeeded(PREVIOUS)?;
        node.call("CHECK", name, &netns).run()?.succeeded("")?;
        ensure!(!pod.run(|| async { redirect::installed() })??, "{name}");
    }
    Ok(())
}

fn wrong_annotation() -> Result<()> {
    let cluster = Cluster::new();
    cluster.add("orders-1", json!({"weft.dev/skip-inbound-ports": "ssh"}), meshed(), false);
    let node = Node::start("wrong", cluster)?;
    let pod = node.lab.pod(PodSpec::new("orders-1"))?;
    let (_pause, netns) = netns(&pod)?;
    let refused = node.call("ADD", "orders-1", &netns).run()?;
    refused.failed(100, "shop/orders-1")?;
    refused.failed(100, "write 22 or 8000-8010")
}

fn sidecar() -> Result<()> {
    let mesh = Mesh::start("plugin", MeshOptions::new(crate::WEFT))?;
    let cluster = Cluster::new();
    // In the lab there is one user only; the sidecar's connections are told by their mark.
    let containers = json!([{"name": "weft-validate"},
        {"name": "weft-proxy", "env": [{"name": "WEFT_PROXY_MARK", "value": "0x2102"}]}]);
    for name in ["server-1", "client-1"] {
        cluster.add(name, json!({}), containers.clone(), false);
    }
    let node = Node::start("plugin-node", cluster)?;
    let mut pods = Vec::new();
    for (name, app) in [("server-1", "server"), ("client-1", "client")] {
        let mut pod = mesh.pod_without_sidecar(WorkloadSpec::new(name, app))?;
        let (_pause, netns) = netns(&pod.pod)?;
        node.call("ADD", name, &netns).run()?.succeeded(PREVIOUS)?;
        pod.sidecar = Some(mesh.start_sidecar(&pod)?);
        pods.push(pod);
    }
    let (server, client) = (&pods[0], &pods[1]);
    let listener = server.pod.listen(8080)?;
    let _app = server.pod.start(move || async move { apps::http(listener, "server-1").await })?;
    let (status, body) = get(&client.pod, server.pod.address(8080), "/")?;
    ensure!(status == 200 && body.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "{status} {body}");
    let secured =
        server.metric("weft_requests_total", &["direction=\"inbound\"", "tls=\"true\"", "source=\"client\""])?;
    ensure!(secured == 1.0, "{secured}");
    Ok(())
}
