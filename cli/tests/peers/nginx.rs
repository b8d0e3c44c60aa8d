//! nginx as the application, and nginx as a reverse proxy that reaches the application through the mesh.
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use weft_loadtests::apps;
use weft_loadtests::lab::{Pod, Program};

use crate::fixture::{Case, HOST, NOBODY, Pair, curl, folder, port, program};

pub const CASES: &[Case] = &[
    Case::new("nginx_serves_files_ranges_and_compressed_answers", &["nginx", "curl"], server),
    Case::new("nginx_serves_http2_with_prior_knowledge", &["nginx", "curl"], server_http2),
    Case::new("nginx_as_a_client_is_served_over_http_1_0_and_1_1", &["nginx", "curl"], client),
];

/// nginx with these servers, all its files in the pod's folder.
pub fn nginx(pod: &Pod, servers: &str) -> Result<Program> {
    let place = folder(pod)?;
    let mut config =
        format!("daemon off; pid {place}/nginx.pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n");
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(config, "{kind}_temp_path {place}/{kind};")?;
    }
    config += &servers.replace("PLACE", &place);
    config += "}\n";
    let file = pod.directory().join("nginx.conf");
    std::fs::write(&file, config)?;
    Ok(program("nginx")?.uid(NOBODY).arg("-c").arg(file).args(["-e", "stderr"]))
}

const FILES: &str = "server {
    listen 8080; listen [::]:8080;
    root PLACE; gzip on; gzip_types text/plain; gzip_min_length 1000; default_type text/plain;
    absolute_redirect off;
    location = /moved { return 301 /page; }
    location = /nothing { return 204; }
}\n";

fn server() -> Result<()> {
    let pair = Pair::start("nginx-server")?;
    let page: String = (0..200_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    std::fs::write(pair.server.pod.directory().join("page"), &page)?;
    let url = format!("http://{HOST}/page");
    let get = |arguments: &[&str]| curl(&pair.client.pod, arguments);
    let _nginx = pair.serve(nginx(&pair.server.pod, FILES)?, || get(&["--fail", &url]).map(drop))?;
    for http in ["--http1.0", "--http1.1"] {
        ensure!(get(&[http, &url])? == page, "the page is not what nginx has");
        let compressed = get(&[http, "--compressed", "--include", &url])?;
        ensure!(compressed.contains("content-encoding: gzip") && compressed.ends_with(&page), "{http}: gzip");
    }
    let range = get(&["--include", "--range", "26-51", &url])?;
    ensure!(range.starts_with("HTTP/1.1 206") && range.ends_with("\r\n\r\nabcdefghijklmnopqrstuvwxyz"), "{range}");
    ensure!(range.contains("content-range: bytes 26-51/200000"), "{range}");
    let several = get(&["--include", "--range", "0-0,25-25", &url])?;
    ensure!(several.contains("multipart/byteranges") && several.contains("\r\n\r\nz\r\n"), "{several}");
    let bad = get(&["--include", "--range", "300000-", &url])?;
    ensure!(bad.starts_with("HTTP/1.1 416"), "{bad}");
    let head = get(&["--head", &url])?;
    ensure!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 200000"), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).context("an etag")?;
    let unchanged = get(&["--include", "-H", &format!("if-none-match: {tag}"), &url])?;
    ensure!(unchanged.starts_with("HTTP/1.1 304") && unchanged.ends_with("\r\n\r\n"), "{unchanged}");
    let moved = get(&["--include", &format!("http://{HOST}/moved")])?;
    ensure!(moved.contains("301 Moved") && moved.contains("location: /page"), "{moved}");
    let sizes = ["--write-out", "%{size_download}/%{num_connects} ", "--output", "/dev/null", &format!("{url}?[1-50]")];
    let sizes = get(&sizes)?;
    ensure!(sizes == format!("200000/1 {}", "200000/0 ".repeat(49)), "50 pages over one connection: {sizes}");
    pair.carried_requests("http1", 60.0)
}

fn server_http2() -> Result<()> {
    let pair = Pair::start("nginx-h2")?;
    let page = "two ".repeat(100_000);
    std::fs::write(pair.server.pod.directory().join("page"), &page)?;
    let servers = "server { listen 8080 http2; listen [::]:8080 http2; root PLACE; }\n";
    let get = |port: u16| {
        let url = format!("http://{HOST}:{port}/page");
        curl(&pair.client.pod, &["--fail", "--http2-prior-knowledge", &url])
    };
    let _nginx = pair.serve(nginx(&pair.server.pod, servers)?, || get(port::SEEN).map(drop))?;
    for port in [port::SEEN, port::HTTP2] {
        ensure!(get(port)? == page, "the page is not what nginx has");
    }
    pair.carried_requests("http2", 2.0)
}

/// `proxy_pass` as it is by default speaks HTTP/1.0 and a connection a request; the other is what its manual recommends.
const PROXY: &str = "upstream kept { server server.shop.svc:80; keepalive 4; }
server {
    listen 127.0.0.1:7000;
    location /plain/ { proxy_pass http://server.shop.svc:80/; }
    location /kept/ { proxy_pass http://kept/; proxy_http_version 1.1; proxy_set_header Connection ''; }
    location /unbuffered/ { proxy_pass http://kept/; proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off; }
}\n";

fn client() -> Result<()> {
    let pair = Pair::start("nginx-client")?;
    let _app = pair.tell(8080)?;
    let get = |arguments: &[&str]| curl(&pair.client.pod, arguments);
    let ready = ["--fail", "http://127.0.0.1:7000/plain/"];
    let _nginx = pair.serve_beside_client(nginx(&pair.client.pod, PROXY)?, || get(&ready).map(drop))?;
    let upload = pair.client.pod.directory().join("upload");
    std::fs::write(&upload, vec![b'u'; 700_000])?;
    let upload = format!("@{}", upload.display());
    for way in ["plain", "kept", "unbuffered"] {
        let url = format!("http://127.0.0.1:7000/{way}");
        let told = get(&["--fail", &format!("{url}/told?a=b")])?;
        let told: apps::Request = serde_json::from_str(&told).with_context(|| told.clone())?;
        ensure!(told.path == "/told?a=b" && told.version == "HTTP/1.1", "{told:?}");
        ensure!(told.header("x-forwarded-client-cert").is_some_and(|proof| proof.contains("sa/client")), "{told:?}");
        ensure!(get(&["--fail", &format!("{url}/bytes/300000")])? == "0".repeat(300_000), "{way}");
        for chunked in [&[][..], &["-H", "transfer-encoding: chunked"]] {
            let target = format!("{url}/up");
            let all = [chunked, &["--fail", "--data-binary", &upload, &target]].concat();
            let told = get(&all)?;
            ensure!(told.contains("\"body_length\":700000"), "{way} {chunked:?}: {told}");
        }
        let head = get(&["--head", &format!("{url}/head")])?;
        ensure!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: "), "{way}: {head}");
        let nothing = get(&["--include", &format!("{url}/status/204")])?;
        ensure!(nothing.starts_with("HTTP/1.1 204"), "{way}: {nothing}");
    }
    pair.carried_requests("http1", 18.0)
}
