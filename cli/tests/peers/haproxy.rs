//! HAProxy on both sides at once: as a client of the mesh and as the server behind it, over HTTP/1 and HTTP/2.
use anyhow::{Context, Result, ensure};
use weft_loadtests::apps;
use weft_loadtests::lab::{Pod, Program};

use crate::fixture::{Case, NOBODY, Pair, curl, program};

pub const CASES: &[Case] =
    &[Case::new("haproxy_on_both_sides_carries_http1_and_http2_between_them", &["haproxy", "curl"], both)];

/// HAProxy with this configuration.
pub fn haproxy(pod: &Pod, config: &str) -> Result<Program> {
    let common = "global\n  maxconn 1000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  \
                  timeout tunnel 30s\n";
    let file = pod.directory().join("haproxy.cfg");
    std::fs::write(&file, format!("{common}{config}"))?;
    Ok(program("haproxy")?.uid(NOBODY).arg("-db").arg("-f").arg(file))
}

/// Beside the client: each of its ports goes to the mesh in another way.
pub const CLIENT: &str = "
listen one
  bind 127.0.0.1:7001
  server mesh 10.96.0.10:80
listen closing
  bind 127.0.0.1:7002
  option httpclose
  server mesh 10.96.0.10:81
listen two
  bind 127.0.0.1:7003
  server mesh 10.96.0.10:90 proto h2 ws h2
listen bytes
  bind 127.0.0.1:7004
  mode tcp
  server mesh [fd00:96::10]:91
";

/// The server: HTTP/1 on one port, HTTP/2 on the other, the application behind it on loopback.
pub const SERVER: &str = "
listen one
  bind :8080,:::8080
  server app 127.0.0.1:8081
listen two
  bind :9000,:::9000 proto h2
  server app 127.0.0.1:8081
";

fn both() -> Result<()> {
    let pair = Pair::start("haproxy")?;
    let _app = pair.tell(8081)?;
    let server = haproxy(&pair.server.pod, SERVER)?;
    let get = |arguments: &[&str]| curl(&pair.client.pod, arguments);
    let direct = ["--fail", "http://10.96.0.10/"];
    let _server = pair.serve(server, || get(&direct).map(drop))?;
    let ready = ["--fail", "http://127.0.0.1:7001/"];
    let _client = pair.serve_beside_client(haproxy(&pair.client.pod, CLIENT)?, || get(&ready).map(drop))?;
    let upload = pair.client.pod.directory().join("upload");
    std::fs::write(&upload, vec![b'u'; 700_000])?;
    let upload = format!("@{}", upload.display());
    for (port, http, by_bytes) in [
        (7001, "--http1.1", false),
        (7002, "--http1.1", false),
        (7003, "--http1.1", false),
        (7004, "--http2-prior-knowledge", true),
    ] {
        let url = format!("http://127.0.0.1:{port}");
        let told = get(&["--fail", http, &format!("{url}/told")])?;
        let told: apps::Request = serde_json::from_str(&told).with_context(|| told.clone())?;
        // Bytes are carried as they are: nobody can tell the application who called.
        ensure!(told.header("x-forwarded-client-cert").is_none() == by_bytes, "{port}: {told:?}");
        ensure!(get(&["--fail", http, &format!("{url}/bytes/300000")])? == "0".repeat(300_000), "{port}");
        for chunked in [&[][..], &["-H", "transfer-encoding: chunked"]] {
            let target = format!("{url}/up");
            let all = [chunked, &["--fail", http, "--data-binary", &upload, &target]].concat();
            let told = get(&all)?;
            ensure!(told.contains("\"body_length\":700000"), "{port} {chunked:?}: {told}");
        }
        let head = get(&["--head", http, &format!("{url}/head")])?;
        ensure!(head.contains(" 200") && head.contains("content-length: "), "{port}: {head}");
        let nothing = get(&["--include", http, &format!("{url}/status/204")])?;
        ensure!(nothing.contains(" 204"), "{port}: {nothing}");
    }
    pair.carried_requests("http1", 12.0)?;
    pair.carried_requests("http2", 6.0)?;
    pair.carried_streams(1.0)
}
