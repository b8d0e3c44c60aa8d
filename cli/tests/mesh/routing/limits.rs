//! Mirrors, time limits and retries: what a request is given beside its way.
use std::sync::mpsc;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::lab::Task;
use weft_loadtests::mesh::{MeshPod, WorkloadSpec, eventually};

use super::scene::{Scene, http_route};
use crate::fixture::PATIENCE;

/// A request as an application got it.
#[derive(Debug)]
struct Got {
    head: String,
    body: Vec<u8>,
}

/// Serves HTTP/1 on port 8080 by hand: each request is told, read whole, and answered with what `answer` makes of how many
/// of the same request line came before.
fn record(
    pod: &MeshPod,
    answer: impl Fn(usize) -> Vec<u8> + Send + 'static,
) -> Result<(mpsc::Receiver<Got>, Task<std::io::Result<()>>)> {
    let (tell, told) = mpsc::channel();
    let listener = pod.pod.listen(8080)?;
    let task = pod.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut lines: Vec<String> = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await?;
            if let Some(got) = read(&mut stream).await {
                let line = got.head.lines().next().unwrap_or_default().to_owned();
                let before = lines.iter().filter(|known| **known == line).count();
                lines.push(line);
                let _ = tell.send(got);
                let _ = stream.write_all(&answer(before)).await;
                // Held open for those that leave their answer unfinished.
                tokio::spawn(async move { stream.read(&mut [0; 1]).await });
            }
        }
    })?;
    Ok((told, task))
}

async fn read(stream: &mut TcpStream) -> Option<Got> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    while bytes.len() < end + length.unwrap_or_default() {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Got { head, body: bytes.split_off(end) })
}

fn answer(status: &str, length: usize, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes()
}

fn fine() -> Vec<u8> {
    answer("200 OK", 4, "fine")
}

pub fn mirror() -> Result<()> {
    let scene = Scene::empty("mirror")?;
    let (originals, _original) = record(&scene.v1, |_| fine())?;
    let (copies, copy) = record(&scene.v2, |_| answer("500 Internal Server Error", 0, ""))?;
    let rule = |more: &str, to: &str| {
        http_route(&format!(
            "  - filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: X-Set, value: new}}]}}}}, \
             {{type: RequestMirror, requestMirror: {{backendRef: {{name: {to}, port: 80}}{more}}}}}]\n    backendRefs: [{{name: v1, port: 80}}]\n"
        ))
    };
    scene.route(&rule("", "v2"))?;
    let body: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    for body in [Vec::new(), body] {
        let answered = scene.ask_with("POST", "/orders?q=1", &[], body.clone())?;
        ensure!(answered.status == 200 && answered.body == "fine", "{answered:?}");
        for told in [&originals, &copies] {
            let got = told.recv_timeout(PATIENCE)?;
            let right = got.head.starts_with("POST /orders?q=1 HTTP/1.1\r\n") && got.head.contains("x-set: new\r\n");
            ensure!(right && got.body == body, "{} with {} bytes", got.head, got.body.len());
            ensure!(got.head.contains("sa/client"), "{}", got.head);
        }
    }
    let counted =
        |result: &str| scene.client.metric("weft_mirrored_requests_total", &[&format!("result=\"{result}\"")]);
    eventually("the copies are counted", PATIENCE, || Ok(counted("success")? == 2.0))?;
    // Counted by themselves, and not among what our application asked for.
    let asked = scene.client.metric("weft_requests_total", &["direction=\"outbound\""])?;
    ensure!(asked == 2.0, "{asked} in {}", scene.client.metrics()?);

    scene.route(&rule(", percent: 0", "v2"))?;
    ensure!(scene.get("/")?.status == 200 && counted("success")? == 2.0);
    // Nobody listens any more; nobody was ever there; it is not even a Service.
    drop((copy, copies));
    for (to, failures) in [("v2", 10.0), ("nobody", 20.0)] {
        scene.route(&rule("", to))?;
        for _ in 0..10 {
            ensure!(scene.ask_with("POST", "/", &[], vec![7; 10_000])?.status == 200);
        }
        if to == "nobody" {
            eventually("failures are counted", PATIENCE, || Ok(counted("failure")? == failures))?;
        }
    }
    scene.route(&rule("", "missing"))?;
    ensure!(scene.get("/")?.status == 200, "a mirror that is no Service is dropped");
    Ok(())
}

pub fn timeouts() -> Result<()> {
    let (scene, _apps) = Scene::start("timeouts")?;
    let half = scene.mesh.pod(WorkloadSpec::new("half-1", "nobody"))?;
    let _half = record(&half, |_| answer("200 OK", 100, "a part"))?;
    scene.route(&http_route(
        "  - matches: [{path: {type: PathPrefix, value: /delay}}]
    timeouts: {request: 300ms}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /delay}, headers: [{name: x-limit, value: backend}]}]
    timeouts: {request: 20s, backendRequest: 300ms}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /delay}, headers: [{name: x-limit, value: none}]}]
    timeouts: {request: 0s}
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /half}}]
    timeouts: {request: 500ms}
    backendRefs: [{name: nobody, port: 80}]\n",
    ))?;
    for (target, header, status, label) in [
        ("/delay/20000", "x-limit: request", 504, Some("request_timeout")),
        ("/delay/20000", "x-limit: backend", 504, Some("backend_timeout")),
        ("/delay/1", "x-limit: request", 200, None),
        ("/delay/600", "x-limit: none", 200, None),
    ] {
        let answer = scene.ask("GET", target, &[header])?;
        ensure!((answer.status, answer.header("x-weft-error")) == (status, label), "{target} {header}: {answer:?}");
    }
    let line = scene.client.sidecar()?.wait_for_line(|line| line.contains("backend_timeout"), PATIENCE)?;
    ensure!(line.contains("\"status\":504") && line.contains("\"route\":\"shop/routes#1\""), "{line}");
    // After its head an answer can only be cut: the caller sees that it is not whole.
    let answer = scene.get("/half")?;
    ensure!(answer.status == 200 && answer.body.len() < 100, "{answer:?}");
    let line = scene.client.sidecar()?.wait_for_line(|line| line.contains("\"/half\""), PATIENCE)?;
    ensure!(line.contains("\"reason\":\"request_timeout\""), "{line}");
    Ok(())
}

pub fn retries() -> Result<()> {
    let scene = Scene::empty("retries")?;
    let (told, _app) = record(&scene.v1, |before| match before {
        0 | 1 => answer("503 Service Unavailable", 4, "busy"),
        _ => fine(),
    })?;
    let long = 200_000;
    for (target, retry, method, body, attempts, status) in [
        ("/get", "{codes: [503], attempts: 2, backoff: 10ms}", "GET", 0, 3, 200),
        ("/post", "{codes: [503], attempts: 2, backoff: 10ms}", "POST", 20_000, 3, 200),
        ("/too-few", "{codes: [503], attempts: 1, backoff: 10ms}", "GET", 0, 2, 503),
        ("/not-said", "{codes: [503]}", "GET", 0, 3, 200),
        ("/other-status", "{codes: [500], attempts: 2, backoff: 10ms}", "GET", 0, 1, 503),
        // What is not kept whole cannot be sent again.
        ("/long", "{codes: [503], attempts: 2, backoff: 10ms}", "POST", long, 1, 503),
        // No time is left for a wait of that length.
        ("/too-late", "{codes: [503], attempts: 2, backoff: 10s}", "GET", 0, 1, 503),
    ] {
        scene.route(&http_route(&format!(
            "  - retry: {retry}\n    timeouts: {{request: 5s}}\n    backendRefs: [{{name: v1, port: 80}}]\n"
        )))?;
        let answered = scene.ask_with(method, target, &[], vec![7; body])?;
        ensure!(answered.status == status, "{target}: {answered:?}");
        let got: Vec<Got> = told.try_iter().collect();
        ensure!(got.len() == attempts, "{target}: {got:?}");
        ensure!(got.iter().all(|got| got.body == vec![7; body]), "{target}: each attempt has the whole body");
    }
    Ok(())
}
