//! A client, two versions of a server, and Services before them.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::lab::{Pod, Task};
use weft_loadtests::mesh::{Mesh, MeshOptions, MeshPod, WorkloadSpec};

use crate::fixture::{PATIENCE, WEFT, serve_http, settle, within};

/// `echo` stands before both versions; `grpc` is declared to be HTTP/2. Nobody is behind `nobody`. `far` is in another
/// namespace, with `v2` behind it by name only.
pub const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec:
  clusterIP: 10.96.0.30
  selector: {tier: none}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 90, targetPort: 8080}, {name: alt, port: 8081, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec:
  clusterIP: 10.96.0.31
  selector: {app: v1}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 90, targetPort: 8080}, {name: any, port: 91, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec:
  clusterIP: 10.96.0.32
  selector: {app: v2}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 90, targetPort: 8080}, {name: any, port: 91, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {clusterIP: 10.96.0.33, selector: {app: nobody}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {clusterIP: 10.96.0.34, selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

pub struct Scene {
    pub mesh: Mesh,
    pub client: MeshPod,
    pub v1: MeshPod,
    pub v2: MeshPod,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The server that answered.
    pub fn server(&self) -> Result<String> {
        Ok(crate::fixture::seen(&self.body)?.server)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl Scene {
    /// The mesh alone, with a client and a pod for each version.
    pub fn empty(name: &str) -> Result<Self> {
        let mesh = Mesh::start(name, MeshOptions::new(WEFT))?;
        mesh.write("services.yaml", SERVICES)?;
        let v1 = mesh.pod(WorkloadSpec::new("v1-1", "v1"))?;
        let v2 = mesh.pod(WorkloadSpec::new("v2-1", "v2"))?;
        let client = mesh.pod(WorkloadSpec::new("client-1", "client"))?;
        Ok(Self { mesh, client, v1, v2 })
    }

    /// With the echo application in both versions.
    pub fn start(name: &str) -> Result<(Self, [Task<std::io::Result<()>>; 2])> {
        let scene = Self::empty(name)?;
        let apps = [serve_http(&scene.v1)?, serve_http(&scene.v2)?];
        Ok((scene, apps))
    }

    /// Writes routes and waits until the client's sidecar has them.
    pub fn route(&self, yaml: &str) -> Result<()> {
        self.mesh.write("routes.yaml", yaml)?;
        settle(&self.mesh, &[&self.client])
    }

    /// Asks Service `echo` for `target` over HTTP/1.1.
    pub fn ask(&self, method: &str, target: &str, headers: &[&str]) -> Result<Answer> {
        self.ask_with(method, target, headers, Vec::new())
    }

    pub fn ask_with(&self, method: &str, target: &str, headers: &[&str], body: Vec<u8>) -> Result<Answer> {
        let mut request =
            format!("{method} {target} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|line| line.to_lowercase().starts_with("host:")) {
            request.push_str("host: echo\r\n");
        }
        for line in headers {
            request.push_str(line);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        raw(&self.client.pod, service(30, 80), [request.into_bytes(), body].concat())
    }

    pub fn get(&self, target: &str) -> Result<Answer> {
        self.ask("GET", target, &[])
    }

    /// Calls `/service/method` of Service `echo`, port 90, as gRPC does.
    pub fn call(&self, path: &str, headers: &[(&'static str, &'static str)]) -> Result<Answer> {
        let mut request = http::Request::post(format!("http://echo{path}")).header("te", "trailers");
        request = request.header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        http2(&self.client.pod, service(30, 90), request.body(Full::default())?)
    }
}

/// A Service's address.
pub fn service(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, last)), port)
}

/// Sends bytes and reads the answer until the connection ends.
pub fn raw(pod: &Pod, target: SocketAddr, request: Vec<u8>) -> Result<Answer> {
    let asked = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    let answer = within(pod, move || async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(&request).await?;
        let mut answer = Vec::new();
        // A reset after the answer is an end as well.
        let _ =
            tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.context("no end of the answer")?;
        Ok(answer)
    })?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer to {asked}: {text}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// One request over HTTP/2. Trailers are added to the head.
pub fn http2(pod: &Pod, target: SocketAddr, request: http::Request<Full<Bytes>>) -> Result<Answer> {
    within(pod, move || async move {
        let stream = TokioIo::new(TcpStream::connect(target).await?);
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()))
        };
        Ok(Answer {
            status: head.status.as_u16(),
            head: head.headers.iter().chain(&trailers).map(line).collect(),
            body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        })
    })
}

/// Asks `count` times over one connection and returns how often each server answered.
pub fn shares(pod: &Pod, target: SocketAddr, grpc: bool, count: u32) -> Result<Vec<String>> {
    within(pod, move || async move {
        let stream = TokioIo::new(TcpStream::connect(target).await?);
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        let mut servers = Vec::new();
        for _ in 0..count {
            let mut request = http::Request::post("http://echo/shop.Stock/Get");
            if grpc {
                request = request.header("content-type", "application/grpc");
            }
            let answer = sender.send_request(request.body(Full::<Bytes>::default())?).await?;
            ensure!(answer.status() == 200, "{answer:?}");
            let body = answer.into_body().collect().await?.to_bytes();
            servers.push(crate::fixture::seen(&String::from_utf8_lossy(&body))?.server);
        }
        Ok(servers)
    })
}

/// How many are `server`.
pub fn count(servers: &[String], server: &str) -> usize {
    servers.iter().filter(|known| *known == server).count()
}

/// An HTTPRoute of Service `echo`, all ports, with these rules.
pub fn http_route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: routes, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n{rules}"
    )
}
