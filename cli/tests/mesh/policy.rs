//! Who may call whom, and how often, enforced at the server's side and explained.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::apps;
use weft_loadtests::lab::{Pod, Program, testing::Test};
use weft_loadtests::mesh::{WorkloadSpec, eventually, get, run_to_end};

use crate::fixture::{PATIENCE, Pair, WEFT, seen, within};

pub const TESTS: &[Test] = &[
    ("a_call_that_no_rule_allows_gets_403_that_names_the_policy_and_is_counted", denied),
    ("a_stranger_without_identity_is_refused_by_default", stranger),
    ("a_policy_that_is_edited_takes_effect_on_open_connections_within_a_second_or_so", edited),
    ("an_open_byte_stream_is_closed_when_policy_no_longer_permits_it", stream_closed),
    ("a_stream_that_was_permitted_when_it_was_opened_is_refused_if_forbidden_when_it_speaks", silent_then_forbidden),
    ("a_byte_stream_is_refused_where_policy_speaks_of_http", http_policy_and_bytes),
    ("the_application_receives_the_path_that_was_judged", normalized),
    ("a_request_without_a_single_reading_gets_400", ambiguous),
    ("over_http2_a_request_that_names_two_hosts_is_refused", one_host),
    ("what_a_caller_claims_about_its_identity_is_removed", spoofed),
    ("a_burst_beyond_the_limit_gets_429_with_retry_after_and_spares_other_clients", limited),
    ("a_grpc_call_is_refused_in_its_own_terms", grpc),
    ("a_policy_in_shadow_mode_refuses_nothing_and_reports_what_it_would", shadowed),
];

const ONLY_CLIENT_MAY_READ: &str = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Allow
  rules:
  - from: [{serviceAccounts: [client]}]
    to: [{methods: [GET], paths: [\"/public/*\", \"/items/{id}\"]}]
";

/// Sends raw bytes and returns all that comes back.
fn raw(pod: &Pod, target: SocketAddr, request: &str) -> Result<String> {
    let request = request.to_owned();
    within(pod, move || async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })
}

fn denied() -> Result<()> {
    let pair = Pair::start("denied")?;
    let _app = pair.serve_http()?;
    pair.mesh.write("policy.yaml", ONLY_CLIENT_MAY_READ)?;
    pair.settle()?;
    ensure!(pair.get("/public/a")?.0 == 200 && pair.get("/items/7")?.0 == 200);
    let (status, body) = pair.get("/items/7/price")?;
    ensure!(status == 403 && body.contains("shop/readers"), "{status} {body}");
    let answer =
        raw(&pair.client.pod, pair.web(), "DELETE /items/7 HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")?;
    ensure!(answer.starts_with("HTTP/1.1 403") && answer.contains("shop/readers"), "{answer}");
    let labels = ["decision=\"deny\"", "policy=\"shop/readers\""];
    let denials = pair.server.metric("weft_authorization_decisions_total", &labels)?;
    ensure!(denials == 2.0, "{denials} in {}", pair.server.metrics()?);
    let line = pair
        .server
        .sidecar()?
        .wait_for_line(|line| line.contains("denied") && line.contains("shop/readers"), PATIENCE)?;
    ensure!(line.contains("spiffe://cluster.local/ns/shop/sa/client"), "{line}");
    Ok(())
}

fn stranger() -> Result<()> {
    let pair = Pair::start("stranger")?;
    let _app = pair.serve_http()?;
    let stranger = pair.mesh.pod(WorkloadSpec::new("stranger", "stranger").without_sidecar())?;
    let (status, body) = get(&stranger.pod, pair.server.pod.address(8080), "/")?;
    ensure!(status == 403 && body.contains("default"), "{status} {body}");
    // As bytes: reset.
    let target = pair.server.pod.address(8080);
    let answer = stranger.pod.run(move || async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"\x00\x01\x02\x03not http").await?;
        stream.read_to_end(&mut Vec::new()).await
    })?;
    ensure!(answer.is_err(), "{answer:?}");
    Ok(())
}

fn edited() -> Result<()> {
    let pair = Pair::start("edited")?;
    let _app = pair.serve_http()?;
    pair.mesh.write("policy.yaml", ONLY_CLIENT_MAY_READ)?;
    pair.settle()?;
    ensure!(pair.get("/reports/1")?.0 == 403);
    pair.mesh.write("policy.yaml", &ONLY_CLIENT_MAY_READ.replace("/public/*", "/reports/*"))?;
    eventually("the edit allows", PATIENCE, || Ok(pair.get("/reports/1")?.0 == 200))?;
    ensure!(pair.get("/public/a")?.0 == 403);
    pair.mesh.write("policy.yaml", ONLY_CLIENT_MAY_READ)?;
    eventually("the edit forbids", PATIENCE, || Ok(pair.get("/reports/1")?.0 == 403))
}

const CLIENT_ON_9000: &str = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: raw, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Allow
  rules: [{from: [{serviceAccounts: [client]}], to: [{ports: [9000]}]}]
";

fn stream_closed() -> Result<()> {
    let pair = Pair::start("streams")?;
    let listener = pair.server.pod.listen(9000)?;
    let _app = pair.server.pod.start(move || apps::tcp_echo(listener))?;
    pair.mesh.write("policy.yaml", CLIENT_ON_9000)?;
    pair.settle()?;
    let target = pair.raw();
    let stream = pair.client.pod.start(move || async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"ping").await?;
        stream.read_exact(&mut [0; 4]).await?;
        // Ends only when the stream is closed from the other side.
        stream.read(&mut [0; 4]).await
    })?;
    eventually("the stream is open", PATIENCE, || Ok(pair.server.metric("weft_tcp_open_connections", &[])? == 1.0))?;
    pair.mesh.write("policy.yaml", &CLIENT_ON_9000.replace("[client]", "[somebody-else]"))?;
    let end = stream.join_timeout(PATIENCE)?;
    ensure!(matches!(end, Some(Ok(0) | Err(_))), "{end:?}");
    eventually("it is counted as closed", PATIENCE, || {
        Ok(pair.server.metric("weft_tcp_open_connections", &[])? == 0.0)
    })?;
    let last = ["policy", "explain", "--admin", "127.0.0.1:4291", "--last", "1"];
    let told = run_to_end(&pair.server.pod, Program::new(WEFT).args(last))?;
    ensure!(told.contains("bytes by") && told.contains("caller shop/client is not in [shop/somebody-else]"), "{told}");
    Ok(())
}

fn http_policy_and_bytes() -> Result<()> {
    let pair = Pair::start("opaquehttp")?;
    let _app = pair.serve_http()?;
    let deny = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Deny
  rules: [{to: [{paths: [\"/admin*\"]}]}]
";
    pair.mesh.write("policy.yaml", deny)?;
    pair.settle()?;
    ensure!(pair.get("/open")?.0 == 200);
    ensure!(pair.get("/admin")?.0 == 403);
    // Not HTTP by its first bytes; a lenient server might still read a request in it.
    let answer = raw(&pair.client.pod, pair.web(), "\0GET /admin HTTP/1.1\r\nhost: s\r\n\r\n");
    ensure!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(String::is_empty), "{answer:?}");
    Ok(())
}

fn normalized() -> Result<()> {
    let pair = Pair::start("paths")?;
    let _app = pair.serve_http()?;
    pair.mesh.write("policy.yaml", ONLY_CLIENT_MAY_READ)?;
    pair.settle()?;
    let rows = [
        ("/public/./x", 200, "/public/x"),
        ("//public//x?q=//1", 200, "/public/x?q=//1"),
        ("/items/%37", 200, "/items/7"),
        ("/public/../admin", 403, ""),
        ("/public/%2e%2e/admin", 403, ""),
        ("/public/a%2fb", 400, ""),
        ("/public\\..\\admin", 400, ""),
        ("/public/%00", 400, ""),
        ("/public/%zz", 400, ""),
    ];
    for (path, expected, received) in rows {
        let (status, body) = pair.get(path)?;
        ensure!(status == expected, "{path}: {status} {body}");
        if status == 200 {
            ensure!(seen(&body)?.path == received, "{path}: {body}");
        }
    }
    Ok(())
}

fn ambiguous() -> Result<()> {
    let pair = Pair::start("ambiguous")?;
    let _app = pair.serve_http()?;
    let rows = [
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: u@a\r\nconnection: close\r\n\r\n",
        "get / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET stock HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ];
    for request in rows {
        let answer = raw(&pair.client.pod, pair.web(), request)?;
        ensure!(answer.starts_with("HTTP/1.1 400"), "{request}: {answer}");
    }
    // Two of them are no HTTP at all, and are counted as such where they came in.
    let malformed = pair.client.metric("weft_connections_refused_total", &["reason=\"malformed_http\""])?;
    ensure!(malformed == 2.0, "{malformed} in {}", pair.client.metrics()?);
    Ok(())
}

fn spoofed() -> Result<()> {
    let pair = Pair::start("spoof")?;
    let _app = pair.serve_http()?;
    let request = "GET / HTTP/1.1\r\nhost: server\r\nconnection: close, x-kept, X-Forwarded-Client-Cert\r\nx-kept: no\r\n\
                   x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/admin\r\n\
                   x_forwarded_client_cert: URI=spiffe://cluster.local/ns/shop/sa/admin\r\n\r\n";
    let answer = raw(&pair.client.pod, pair.web(), request)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ensure!(answer.contains("sa/client") && !answer.contains("sa/admin") && !answer.contains("x-kept"), "{answer}");
    Ok(())
}

fn limited() -> Result<()> {
    let pair = Pair::start("limited")?;
    let other = pair.mesh.pod(WorkloadSpec::new("other-1", "other"))?;
    let _app = pair.serve_http()?;
    let limit = "
apiVersion: policy.weft.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: fair, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  limits: [{name: per-client, requests: 5, window: 1h, burst: 5, per: Client, scope: Pod}]
";
    pair.mesh.write("limit.yaml", limit)?;
    pair.settle()?;
    let statuses: Vec<u16> = (0..8).map(|_| Ok(pair.get("/")?.0)).collect::<Result<_>>()?;
    ensure!(statuses == [200, 200, 200, 200, 200, 429, 429, 429], "{statuses:?}");
    let answer = raw(&pair.client.pod, pair.web(), "GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")?;
    ensure!(answer.contains("retry-after: ") && answer.contains("shop/fair"), "{answer}");
    ensure!(get(&other.pod, pair.web(), "/")?.0 == 200, "another client has its own budget");
    let labels = ["policy=\"shop/fair\"", "limit=\"per-client\"", "decision=\"limit\""];
    let limited = pair.server.metric("weft_rate_limit_decisions_total", &labels)?;
    ensure!(limited == 4.0, "{limited} in {}", pair.server.metrics()?);
    Ok(())
}

fn grpc() -> Result<()> {
    let pair = Pair::start("grpc")?;
    let _app = pair.serve_http()?;
    pair.mesh.write("policy.yaml", ONLY_CLIENT_MAY_READ)?;
    pair.settle()?;
    let request = "POST /shop.Inventory/Reserve HTTP/1.1\r\nhost: server\r\ncontent-type: application/grpc\r\n\
                   connection: close\r\ncontent-length: 0\r\n\r\n";
    let answer = raw(&pair.client.pod, pair.web(), request)?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status: 7"), "{answer}");
    Ok(())
}

fn shadowed() -> Result<()> {
    let pair = Pair::start("shadow")?;
    let _app = pair.serve_http()?;
    pair.mesh.write("policy.yaml", &ONLY_CLIENT_MAY_READ.replace("action: Allow", "action: Allow\n  mode: Shadow"))?;
    pair.settle()?;
    ensure!(pair.get("/elsewhere")?.0 == 200, "a Shadow policy refuses nothing");
    let counted = |decision: &str| {
        pair.server.metric("weft_authorization_decisions_total", &[decision, "policy=\"shop/readers\""])
    };
    ensure!(counted("decision=\"shadow_deny\"")? == 1.0, "{}", pair.server.metrics()?);
    ensure!(pair.get("/public/a")?.0 == 200 && counted("decision=\"shadow_deny\"")? == 1.0);
    Ok(())
}

/// The permit of a stream must be that of its first byte, not of its connection.
fn silent_then_forbidden() -> Result<()> {
    let pair = Pair::start("silent")?;
    let listener = pair.server.pod.listen(9000)?;
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    let _app = pair.server.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let counted = Arc::clone(&counted);
            tokio::spawn(
                async move { counted.fetch_add(stream.read(&mut [0; 16]).await.unwrap_or(0), Ordering::SeqCst) },
            );
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    })?;
    pair.mesh.write("policy.yaml", CLIENT_ON_9000)?;
    pair.settle()?;
    let (target, speak) = (pair.raw(), pair.mesh.lab.directory().join("speak"));
    let signal = speak.clone();
    let stream = pair.client.pod.start(move || async move {
        let mut stream = TcpStream::connect(target).await?;
        while !signal.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        stream.write_all(b"\x00late").await?;
        stream.read(&mut [0; 4]).await
    })?;
    // Time enough for the sidecars to open the stream all the way: both sides are silent, so nothing tells of it.
    std::thread::sleep(std::time::Duration::from_millis(500));
    pair.mesh.write("policy.yaml", &CLIENT_ON_9000.replace("[client]", "[somebody-else]"))?;
    pair.settle()?;
    std::fs::write(&speak, "")?;
    let end = stream.join_timeout(PATIENCE)?;
    ensure!(matches!(end, Some(Ok(0) | Err(_))), "{end:?}");
    ensure!(hits.load(Ordering::SeqCst) == 0, "the application saw a byte that policy forbids");
    Ok(())
}

fn one_host() -> Result<()> {
    let pair = Pair::start("onehost")?;
    let _app = pair.serve_http()?;
    let web = pair.web();
    let answers = within(&pair.client.pod, move || async move {
        let stream = TokioIo::new(TcpStream::connect(web).await?);
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        let mut answers = Vec::new();
        for host in ["smuggled.test", "judged.test"] {
            let request = http::Request::get("http://judged.test/x").header("host", host);
            let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
            let status = answer.status().as_u16();
            answers.push((status, answer.into_body().collect().await?.to_bytes()));
        }
        Ok(answers)
    })?;
    let [(refused, _), (served, body)] = &answers[..] else { anyhow::bail!("two answers: {answers:?}") };
    ensure!(*refused == 400 && *served == 200 && String::from_utf8_lossy(body).contains("judged.test"), "{answers:?}");
    Ok(())
}
