//! Traffic is captured without the application's knowledge, secured, and reaches the right place.
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::apps;
use weft_loadtests::lab::{Pod, PodSpec, testing::Test};
use weft_loadtests::mesh::{Mesh, MeshOptions, WorkloadSpec, get};

use crate::fixture::{PATIENCE, Pair, WEFT, seen, serve_http, within};

pub const TESTS: &[Test] = &[
    ("a_plain_http_call_travels_by_mutual_tls_between_the_right_identities", mutual_tls),
    ("no_byte_of_a_request_or_response_is_on_the_wire_in_plaintext", no_plaintext),
    ("a_call_to_a_workloads_own_address_is_secured_too", workload_address),
    ("a_direct_connection_to_a_proxy_port_is_refused_and_counted", direct_connections),
    ("a_server_that_speaks_first_is_heard", server_first),
    ("a_server_that_speaks_first_is_heard_on_a_port_declared_opaque", server_first_declared),
    ("an_ipv6_pod_is_reached_over_an_ipv6_service_address", ipv6),
    ("an_address_outside_the_mesh_is_passed_through_unchanged", outside),
    ("an_application_that_calls_itself_reaches_itself_once", own_address),
    ("a_port_that_the_service_does_not_have_is_refused", no_such_port),
    ("calls_spread_over_the_endpoints_of_a_service", spread),
];

fn mutual_tls() -> Result<()> {
    let pair = Pair::start("mtls")?;
    let _app = pair.serve_http()?;
    let (status, body) = pair.get("/whoami")?;
    ensure!(status == 200, "{status} {body}");
    let request = seen(&body)?;
    let proof = request.header("x-forwarded-client-cert").unwrap_or_default();
    ensure!(proof.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "{proof}");
    ensure!(proof.starts_with("By=spiffe://cluster.local/ns/shop/sa/server;"), "{proof}");
    for (pod, direction) in [(&pair.client, "outbound"), (&pair.server, "inbound")] {
        let labels = [
            format!("direction=\"{direction}\""),
            "source=\"client\"".into(),
            "destination=\"server\"".into(),
            "protocol=\"http1\"".into(),
            "status=\"200\"".into(),
            "tls=\"true\"".into(),
        ];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let count = pod.metric("weft_requests_total", &labels)?;
        ensure!(count == 1.0, "{direction}: {count} in {}", pod.metrics()?);
    }
    Ok(())
}

fn no_plaintext() -> Result<()> {
    let pair = Pair::start("wire")?;
    let _app = pair.serve_http()?;
    let echo = pair.server.pod.listen(9000)?;
    let _echo = pair.server.pod.start(move || apps::tcp_echo(echo))?;
    let capture = pair.mesh.lab.capture()?;
    let (status, body) = pair.get("/secret-path-4711")?;
    // The answer repeats the path, so both directions carried it.
    ensure!(status == 200 && body.contains("secret-path-4711"), "{status} {body}");
    let raw = pair.raw();
    let echoed = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(raw).await?;
        stream.write_all(b"secret-bytes-0815").await?;
        let mut answer = [0; 17];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    })?;
    ensure!(&echoed == b"secret-bytes-0815");
    let frames = capture.stop()?;
    for secret in ["secret-path-4711", "secret-bytes-0815", "HTTP/1.1"] {
        ensure!(!frames.contains(secret), "{secret} crossed the wire in plaintext");
    }
    // The capture can see what is not encrypted: the same bytes outside the mesh.
    let (one, other) = (pair.mesh.lab.pod(PodSpec::new("one"))?, pair.mesh.lab.pod(PodSpec::new("other"))?);
    let capture = pair.mesh.lab.capture()?;
    let listener = other.listen(9000)?;
    let _plain = other.start(move || apps::tcp_echo(listener))?;
    let target = other.address(9000);
    within(&one, move || async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"secret-bytes-0815").await?;
        stream.read_exact(&mut [0; 17]).await?;
        Ok(())
    })?;
    ensure!(capture.stop()?.contains("secret-bytes-0815"), "the capture would not have seen plaintext");
    Ok(())
}

fn workload_address() -> Result<()> {
    let pair = Pair::start("direct")?;
    let _app = pair.serve_http()?;
    let (status, body) = get(&pair.client.pod, pair.server.pod.address(8080), "/")?;
    ensure!(status == 200, "{status} {body}");
    ensure!(seen(&body)?.header("x-forwarded-client-cert").is_some_and(|proof| proof.contains("sa/client")), "{body}");
    Ok(())
}

/// What a bare TCP client sees: the bytes until the end, or the error.
fn probe(pod: &Pod, target: SocketAddr) -> Result<std::io::Result<Vec<u8>>> {
    Ok(pod.run(move || async move {
        let attempt = async {
            let mut stream = TcpStream::connect(target).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(PATIENCE, attempt).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    })?)
}

fn direct_connections() -> Result<()> {
    let pair = Pair::start("ports")?;
    let _app = pair.serve_http()?;
    let stranger = pair.mesh.lab.pod(PodSpec::new("stranger"))?;
    let own = &pair.server.pod;
    let v6 = own.ipv6().context("the lab gives both families")?;
    for port in [4240, 4243] {
        let from_outside = [own.address(port), SocketAddr::new(v6.into(), port)];
        let from_inside = [
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            own.address(port),
            SocketAddr::new(v6.into(), port),
        ];
        let attempts = from_outside.iter().map(|to| (&stranger, *to)).chain(from_inside.iter().map(|to| (own, *to)));
        for (from, to) in attempts {
            let answer = probe(from, to)?;
            ensure!(
                answer.as_ref().is_err_and(|e| e.kind() != std::io::ErrorKind::TimedOut),
                "{} to {to}: {answer:?}",
                from.name()
            );
        }
    }
    let refused = pair.server.metric("weft_connections_refused_total", &[])?;
    // Refused by the kernel, not by the sidecar: the outbound port has no listener on the pod's own two addresses.
    ensure!(refused == 4.0 + 6.0, "{refused} in {}", pair.server.metrics()?);
    ensure!(pair.get("/")?.0 == 200, "the sidecar serves on");
    Ok(())
}

fn greeting_from(pair: &Pair, port: u16) -> Result<()> {
    let listener = pair.server.pod.listen(9000)?;
    let _app = pair.server.pod.start(move || async move { apps::tcp_greeter(listener, b"220 welcome\r\n").await })?;
    let target = SocketAddr::new(crate::fixture::SERVICE, port);
    let greeting = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(target).await?;
        let mut greeting = [0; 13];
        stream.read_exact(&mut greeting).await?;
        stream.write_all(b"QUIT").await?;
        let mut echoed = [0; 4];
        stream.read_exact(&mut echoed).await?;
        Ok((greeting, echoed))
    })?;
    ensure!(&greeting.0 == b"220 welcome\r\n" && &greeting.1 == b"QUIT", "{greeting:?}");
    Ok(())
}

fn server_first() -> Result<()> {
    let pair = Pair::start("greeter")?;
    greeting_from(&pair, 9000)
}

fn server_first_declared() -> Result<()> {
    let pair = Pair::start("opaque")?;
    let before = crate::fixture::SERVER_SERVICE;
    pair.mesh.write("server.yaml", &before.replace("{name: raw,", "{name: raw, appProtocol: tcp,"))?;
    pair.settle()?;
    greeting_from(&pair, 9000)
}

fn ipv6() -> Result<()> {
    let mesh = Mesh::start("ipv6", MeshOptions::new(WEFT))?;
    mesh.write(
        "server.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: server, namespace: shop}\n\
         spec: {clusterIP: \"fd96::10\", selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}\n",
    )?;
    let address: Ipv6Addr = "fd10::5".parse()?;
    let server = mesh.pod(WorkloadSpec::new("server-1", "server").address(address))?;
    let client = mesh.pod(WorkloadSpec::new("client-1", "client").address("fd10::6".parse::<Ipv6Addr>()?))?;
    let listener = {
        let task = server.pod.run(move || async move { std::net::TcpListener::bind((address, 8080)) })?;
        task?
    };
    let _app = server.pod.start(move || async move { apps::http(listener, "server-1").await })?;
    let (status, body) = get(&client.pod, SocketAddr::new("fd96::10".parse::<IpAddr>()?, 80), "/six")?;
    ensure!(status == 200, "{status} {body}");
    let request = seen(&body)?;
    ensure!(request.header("x-forwarded-client-cert").is_some_and(|proof| proof.contains("sa/client")), "{body}");
    Ok(())
}

fn outside() -> Result<()> {
    let pair = Pair::start("outside")?;
    let host = pair.mesh.lab.pod(PodSpec::new("database").address(Ipv4Addr::new(192, 0, 2, 7)))?;
    let listener = host.listen(5000)?;
    let _app = host.start(move || apps::tcp_echo(listener))?;
    let target = host.address(5000);
    let bytes: Vec<u8> = (0..=255).collect();
    let sent = bytes.clone();
    let echoed = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(&sent).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    })?;
    ensure!(echoed == bytes);
    Ok(())
}

fn own_address() -> Result<()> {
    let pair = Pair::start("itself")?;
    let _app = pair.serve_http()?;
    let (status, body) = get(&pair.server.pod, pair.server.pod.address(8080), "/self")?;
    ensure!(status == 200 && seen(&body)?.path == "/self", "{status} {body}");
    // By its service address it goes out, and comes back to one of the service's workloads: itself.
    let (status, body) = get(&pair.server.pod, pair.web(), "/self-by-service")?;
    ensure!(status == 200 && seen(&body)?.path == "/self-by-service", "{status} {body}");
    Ok(())
}

fn no_such_port() -> Result<()> {
    let pair = Pair::start("noport")?;
    let answer = probe(&pair.client.pod, SocketAddr::new(crate::fixture::SERVICE, 81))?;
    ensure!(answer.is_err(), "{answer:?}");
    ensure!(pair.client.metric("weft_connections_refused_total", &["reason=\"no_such_port\""])? == 1.0);
    Ok(())
}

/// A request that takes a while, on a connection of its own.
fn ask_once(web: SocketAddr) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(web)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /delay/50 HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn spread() -> Result<()> {
    let pair = Pair::start("spread")?;
    let second = pair.mesh.pod(WorkloadSpec::new("server-2", "server"))?;
    let _apps = (pair.serve_http()?, serve_http(&second)?);
    let mut counts = [0; 2];
    let web = pair.web();
    let answers = pair.client.pod.run(move || async move {
        let mut answers = Vec::new();
        // Ten at once: load is what is under way.
        for _ in 0..6 {
            let asking: Vec<_> = (0..10).map(|_| tokio::task::spawn_blocking(move || ask_once(web))).collect();
            for asked in asking {
                answers.push(asked.await);
            }
        }
        answers
    })?;
    for answer in answers {
        let answer = answer??;
        counts[usize::from(answer.contains("server-2"))] += 1;
    }
    ensure!(counts[0] + counts[1] == 60 && counts.iter().all(|count| *count >= 5), "{counts:?}");
    Ok(())
}
