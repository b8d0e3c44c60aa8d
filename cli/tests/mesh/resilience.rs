//! What happens when something fails: the control plane, a peer, a file, the disk.
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::apps;
use weft_loadtests::lab::{Process, Program, Signal, Task, testing::Test};
use weft_loadtests::load::{Pace, Plan, Report, Version};
use weft_loadtests::mesh::{MeshOptions, WorkloadSpec, eventually, get};

use crate::fixture::{PATIENCE, Pair, WEFT, serve_http, settle};

pub const TESTS: &[Test] = &[
    ("a_sidecar_that_gets_sigterm_under_load_loses_no_request", sigterm_http1),
    ("a_sidecar_that_gets_sigterm_under_load_loses_no_http2_request", sigterm_http2),
    ("a_sidecar_that_gets_sigterm_finishes_the_transfers_that_run", sigterm_streams),
    ("traffic_goes_on_while_the_control_plane_is_killed_and_new_pods_join_when_it_is_back", control_plane_killed),
    ("a_sidecar_that_starts_without_a_control_plane_is_not_ready_and_lets_nothing_through", no_control_plane),
    ("a_malformed_file_is_reported_with_its_line_and_the_last_good_state_stays", malformed_file),
    ("an_unreadable_directory_leaves_the_last_good_state_in_force", unreadable_directory),
    ("a_full_disk_stops_neither_the_control_plane_nor_renewals", full_disk),
    ("a_killed_sidecar_lets_nothing_through_in_plaintext_and_comes_back", sidecar_killed),
    ("an_endpoint_that_is_gone_is_passed_over", dead_endpoint),
    ("rules_can_be_written_twice_and_removed", rules_idempotent),
];

/// Starts load from the client: GETs and POSTs with bodies, which must not be repeated.
fn start_load(pair: &Pair, version: Version) -> Result<Task<Result<Report>>> {
    let url: http::Uri = format!("http://{}/", pair.web()).parse()?;
    let stop = pair.mesh.lab.directory().join("stop-load");
    Ok(pair.client.pod.start(move || async move {
        let pace = Pace::Open { per_second: 150.0 };
        let reads = Plan::get(url.clone()).version(version).connections(8).pace(pace).start()?;
        let writes =
            Plan::get(url).version(version).body(Method::POST, vec![7; 3000]).connections(8).pace(pace).start()?;
        while !stop.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut report = reads.stop().await;
        report.merge(&writes.stop().await);
        Ok(report)
    })?)
}

fn end_load(pair: &Pair, load: Task<Result<Report>>) -> Result<Report> {
    std::fs::write(pair.mesh.lab.directory().join("stop-load"), "")?;
    load.join()?
}

fn none_failed(report: &Report, at_least: u64) -> Result<()> {
    let whole = report.failed() == 0 && report.answered() == report.status(200) && report.status(200) >= at_least;
    ensure!(whole, "{report:?}");
    Ok(())
}

fn sigterm(name: &str, version: Version) -> Result<()> {
    let pair = Pair::start(name)?;
    let second = pair.mesh.pod(WorkloadSpec::new("server-2", "server"))?;
    let _apps = (pair.serve_http()?, serve_http(&second)?);
    settle(&pair.mesh, &[&pair.client])?;
    let load = start_load(&pair, version)?;
    let served = |pod: &weft_loadtests::mesh::MeshPod| pod.metric("weft_requests_total", &["status=\"200\""]);
    eventually("both servers are in use", PATIENCE, || Ok(served(&pair.server)? > 20.0 && served(&second)? > 20.0))?;
    let sidecar = second.sidecar()?;
    sidecar.signal(Signal::SIGTERM);
    let status = sidecar.wait(Duration::from_secs(20))?;
    ensure!(status.success(), "{status}: {}", sidecar.stdout());
    std::thread::sleep(Duration::from_millis(500));
    none_failed(&end_load(&pair, load)?, 300)
}

fn sigterm_http1() -> Result<()> {
    sigterm("term1", Version::Http1)
}

fn sigterm_http2() -> Result<()> {
    sigterm("term2", Version::Http2)
}

fn sigterm_streams() -> Result<()> {
    let pair = Pair::start("term3")?;
    let listener = pair.server.pod.listen(9000)?;
    let _app = pair.server.pod.start(move || apps::tcp_digest(listener))?;
    let raw = pair.raw();
    let transfer = pair.client.pod.start(move || async move {
        let mut stream = TcpStream::connect(raw).await?;
        for _ in 0..30 {
            stream.write_all(&[1; 10_000]).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    })?;
    eventually("the transfer runs", PATIENCE, || Ok(pair.server.metric("weft_tcp_open_connections", &[])? == 1.0))?;
    pair.server.sidecar()?.signal(Signal::SIGTERM);
    let answer = transfer.join()??;
    ensure!(answer.starts_with("300000 "), "{answer}");
    ensure!(pair.server.sidecar()?.wait(PATIENCE)?.success());
    Ok(())
}

fn control_plane_killed() -> Result<()> {
    let mut pair = Pair::start("cpkill")?;
    let _app = pair.serve_http()?;
    let load = start_load(&pair, Version::Http1)?;
    eventually("the load runs", PATIENCE, || Ok(pair.server.metric("weft_requests_total", &[])? > 20.0))?;
    let control_plane = pair.mesh.take_control_plane().context("it runs")?;
    control_plane.signal(Signal::SIGKILL);
    control_plane.wait(PATIENCE)?;
    eventually(
        "the sidecars notice",
        PATIENCE,
        || Ok(pair.server.metric("weft_control_plane_connected", &[])? == 0.0),
    )?;
    std::thread::sleep(Duration::from_secs(2));
    pair.mesh.start_control_plane()?;
    eventually(
        "the sidecars return",
        PATIENCE,
        || Ok(pair.server.metric("weft_control_plane_connected", &[])? == 1.0),
    )?;
    let late = pair.mesh.pod(WorkloadSpec::new("late", "late"))?;
    ensure!(get(&late.pod, pair.web(), "/")?.0 == 200);
    none_failed(&end_load(&pair, load)?, 300)
}

fn no_control_plane() -> Result<()> {
    let mut pair = Pair::start("nocp")?;
    let _app = pair.serve_http()?;
    let late = pair.mesh.pod_without_sidecar(WorkloadSpec::new("late", "late"))?;
    pair.mesh.redirect(&late.pod)?;
    let control_plane = pair.mesh.take_control_plane().context("it runs")?;
    control_plane.signal(Signal::SIGKILL);
    control_plane.wait(PATIENCE)?;
    let sidecar = pair.mesh.spawn_sidecar(&late)?;
    sidecar.wait_for_line(|line| line.contains("no certificate from the control plane"), PATIENCE)?;
    let (status, body) = get(&late.pod, SocketAddr::from(([127, 0, 0, 1], 4291)), "/ready")?;
    ensure!(status == 503 && body.contains("no certificate yet"), "{status} {body}");
    // Its application's call waits in the kernel's queue, and is served, judged and secured, once that is possible.
    let capture = pair.mesh.lab.capture()?;
    let web = pair.web();
    let waiting = late.pod.start(move || async move {
        let mut stream = TcpStream::connect(web).await?;
        stream.write_all(b"GET /early-4711 HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    })?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(pair.server.metric("weft_requests_total", &[])? == 0.0, "nothing is served unjudged");
    pair.mesh.start_control_plane()?;
    let answer = waiting.join()??;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("sa/late"), "{answer}");
    ensure!(!capture.stop()?.contains("early-4711"));
    Ok(())
}

const DENY_ALL: &str = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec: {action: Deny, rules: []}
";

fn malformed_file() -> Result<()> {
    let pair = Pair::start("malformed")?;
    let _app = pair.serve_http()?;
    pair.mesh.write("policy.yaml", DENY_ALL)?;
    pair.settle()?;
    ensure!(pair.get("/")?.0 == 403);
    let log = pair.mesh.control_plane().context("it runs")?;
    let rows = [
        (DENY_ALL.replace("rules:", "ruless:"), "Write `rules`"),
        (DENY_ALL.replace("Deny", "Denny"), "Write `Allow` or `Deny`"),
        ("kind: AuthorizationPolicy\n  bad: [indent".to_owned(), "policy.yaml"),
    ];
    for (broken, remedy) in rows {
        let before = log.count_lines(|line| line.contains("policy.yaml") && line.contains("\"line\""));
        pair.mesh.write("policy.yaml", &broken)?;
        eventually("it is reported with file and line", PATIENCE, || {
            Ok(log.count_lines(|line| line.contains("policy.yaml") && line.contains("\"line\"")) > before)
        })?;
        let report = log.stdout();
        ensure!(report.lines().any(|line| line.contains("\"ERROR\"") && line.contains(remedy)), "{report}");
        pair.settle()?;
        ensure!(pair.get("/")?.0 == 403, "the last good policy stays in force");
    }
    // Mended, it takes effect.
    pair.mesh.write("policy.yaml", &DENY_ALL.replace("Deny, rules: []", "Deny, rules: [{to: [{paths: [/no]}]}]"))?;
    eventually("the mended file is in force", PATIENCE, || Ok(pair.get("/")?.0 == 200))
}

fn unreadable_directory() -> Result<()> {
    let pair = Pair::start("unreadable")?;
    let _app = pair.serve_http()?;
    pair.mesh.write("policy.yaml", DENY_ALL)?;
    pair.settle()?;
    let (resources, aside) = (pair.mesh.resources(), pair.mesh.lab.directory().join("aside"));
    std::fs::rename(&resources, &aside)?;
    let log = pair.mesh.control_plane().context("it runs")?;
    log.wait_for_line(|line| line.contains("\"ERROR\"") && line.contains("resources"), Duration::from_secs(20))?;
    ensure!(pair.get("/")?.0 == 403, "the last good policy stays in force");
    std::fs::rename(&aside, &resources)?;
    pair.mesh.write("policy.yaml", &DENY_ALL.replace("Deny, rules: []", "Deny, rules: [{to: [{paths: [/no]}]}]"))?;
    eventually("it is read again by itself", Duration::from_secs(20), || Ok(pair.get("/")?.0 == 200))
}

fn full_disk() -> Result<()> {
    let mut options = MeshOptions::new(WEFT);
    options.certificate_lifetime = "8s".to_owned();
    let mut pair = Pair::with("fulldisk", options)?;
    let _app = pair.serve_http()?;
    // A tmpfs holds the lab's files, resources and keys alike; it has no room left from here on.
    let filler = pair.mesh.lab.directory().join("filler");
    fill(&filler)?;
    let attempt = std::fs::write(pair.mesh.lab.directory().join("more"), vec![0; 1 << 16]);
    ensure!(attempt.is_err(), "the disk is not full");
    let control_plane = pair.mesh.take_control_plane().context("it runs")?;
    control_plane.signal(Signal::SIGKILL);
    control_plane.wait(PATIENCE)?;
    pair.mesh.start_control_plane().context("it starts with the keys that are there")?;
    let before = pair.server.metric("weft_certificate_renewals_total", &["result=\"success\""])?;
    eventually("certificates are renewed", Duration::from_secs(20), || {
        Ok(pair.server.metric("weft_certificate_renewals_total", &["result=\"success\""])? >= before + 2.0)
    })?;
    ensure!(pair.get("/")?.0 == 200);
    std::fs::remove_file(filler)?;
    Ok(())
}

/// Writes until there is no room.
fn fill(path: &std::path::Path) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    for size in [1 << 20, 1 << 12, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
    Ok(())
}

fn sidecar_killed() -> Result<()> {
    let mut pair = Pair::start("sckill")?;
    let _app = pair.serve_http()?;
    ensure!(pair.get("/")?.0 == 200);
    let sidecar: Process = pair.client.sidecar.take().context("it runs")?;
    sidecar.signal(Signal::SIGKILL);
    sidecar.wait(PATIENCE)?;
    let capture = pair.mesh.lab.capture()?;
    let attempt = get(&pair.client.pod, pair.server.pod.address(8080), "/secret-4711");
    ensure!(attempt.is_err(), "{attempt:?}");
    ensure!(!capture.stop()?.contains("secret-4711"), "the rules stay when the sidecar is gone");
    pair.client.sidecar = Some(pair.mesh.start_sidecar(&pair.client)?);
    ensure!(pair.get("/")?.0 == 200);
    Ok(())
}

fn dead_endpoint() -> Result<()> {
    let pair = Pair::start("dead")?;
    let mut second = pair.mesh.pod(WorkloadSpec::new("server-2", "server"))?;
    let _apps = (pair.serve_http()?, serve_http(&second)?);
    settle(&pair.mesh, &[&pair.client])?;
    // Gone without a word, while the control plane still names it.
    let sidecar = second.sidecar.take().context("it runs")?;
    sidecar.signal(Signal::SIGKILL);
    sidecar.wait(PATIENCE)?;
    for number in 0..40 {
        let (status, body) = pair.get("/")?;
        ensure!(status == 200, "call {number}: {status} {body}");
    }
    Ok(())
}

fn rules_idempotent() -> Result<()> {
    let pair = Pair::start("rules")?;
    let _app = pair.serve_http()?;
    pair.mesh.redirect(&pair.client.pod)?;
    let (_, body) = pair.get("/")?;
    ensure!(body.contains("sa/client"), "{body}");
    let remove = Program::new(WEFT).args(["proxy", "init", "--proxy-mark", "0x2102", "--cleanup"]);
    for _ in 0..2 {
        weft_loadtests::mesh::run_to_end(&pair.client.pod, remove.clone())?;
    }
    let (status, body) = get(&pair.client.pod, pair.server.pod.address(8080), "/")?;
    ensure!(status == 403, "uncaptured, the call has no identity: {status} {body}");
    Ok(())
}
