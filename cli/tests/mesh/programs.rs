//! Unmodified programs go through the sidecars: curl, nginx, psql with PostgreSQL. Run where they are installed.
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weft_loadtests::apps;
use weft_loadtests::lab::{Pod, PodSpec, Program, testing::Test};
use weft_loadtests::mesh::{eventually, find_program, get, run_to_end};

use crate::fixture::{PATIENCE, Pair, WEFT, within};

/// The tests whose programs are there, and names of those whose are not.
pub fn tests() -> (Vec<Test>, Vec<String>) {
    let all: [(Test, &str, bool); 4] = [
        (("curl_is_served_by_the_application", curl), "curl", find_program(CURL).is_some()),
        (("a_sidecar_is_no_relay_to_addresses_that_are_not_its_pods", no_relay), "ip", find_program(IP).is_some()),
        (("nginx_serves_curl", nginx), "nginx and curl", find_program(NGINX).is_some() && find_program(CURL).is_some()),
        (
            ("psql_works_with_postgresql", postgres),
            "PostgreSQL's server and psql",
            postgres_folder().is_some() && find_program(PSQL).is_some(),
        ),
    ];
    let (there, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, _, there)| *there);
    let missing = missing.into_iter().map(|((name, _), what, _)| format!("{name} (skipped: {what} not installed)"));
    (there.into_iter().map(|(test, _, _)| test).collect(), missing.collect())
}

const CURL: &[&str] = &["/usr/bin/curl", "/usr/local/bin/curl"];
const IP: &[&str] = &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"];
const NGINX: &[&str] = &["/usr/sbin/nginx", "/usr/bin/nginx"];
const PSQL: &[&str] = &["/usr/bin/psql", "/usr/local/bin/psql"];
/// A user other than root: PostgreSQL refuses to run as root, and nginx would change to a user that the lab does not map.
const NOBODY: u32 = 65534;

/// The newest of Debian's PostgreSQL servers.
fn postgres_folder() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.flatten().map(|entry| entry.path().join("bin"));
    folders.filter(|folder| folder.join("postgres").is_file() && folder.join("initdb").is_file()).max()
}

fn program(places: &[&str]) -> Result<Program> {
    Ok(Program::new(find_program(places).context("it was there a moment ago")?))
}

fn curl_in(pod: &Pod, arguments: &[&str]) -> Result<String> {
    run_to_end(pod, program(CURL)?.args(["--silent", "--show-error", "--max-time", "15"]).args(arguments))
}

fn curl() -> Result<()> {
    let pair = Pair::start("curl")?;
    let _app = pair.serve_http()?;
    let answer = curl_in(&pair.client.pod, &["http://server.shop.svc/by-name"])?;
    ensure!(answer.contains("\"path\":\"/by-name\"") && answer.contains("sa/client"), "{answer}");
    let answer = curl_in(&pair.client.pod, &["--http2-prior-knowledge", "-d", "a=b", "http://server.shop.svc/two"])?;
    ensure!(answer.contains("HTTP/2.0") && answer.contains("\"body_length\":3"), "{answer}");
    Ok(())
}

fn nginx() -> Result<()> {
    let pair = Pair::start("nginx")?;
    let folder = pair.server.pod.directory().to_owned();
    let page: String = (0..200_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    std::fs::write(folder.join("page.html"), &page)?;
    let config = format!(
        "daemon off; pid {0}/nginx.pid; error_log stderr;\nevents {{}}\n\
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
         uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n server {{ listen 8080; listen [::]:8080; root {0}; }} }}\n",
        folder.display()
    );
    std::fs::write(folder.join("nginx.conf"), config)?;
    let server = program(NGINX)?.uid(NOBODY).arg("-c").arg(folder.join("nginx.conf")).arg("-e").arg("stderr");
    let nginx = pair.server.pod.spawn(server)?;
    let copy = pair.client.pod.directory().join("copy.html");
    let fetch = ["--fail", "--output", copy.to_str().context("a UTF-8 path")?, "http://server.shop.svc/page.html"];
    eventually("nginx answers", PATIENCE, || Ok(curl_in(&pair.client.pod, &fetch).is_ok()))
        .with_context(|| format!("{}{}", nginx.stdout(), nginx.stderr()))?;
    ensure!(std::fs::read_to_string(&copy)? == page, "the page is not what nginx has");
    let sizes =
        ["--write-out", "%{size_download} ", "--output", "/dev/null", "http://server.shop.svc/page.html?[1-50]"];
    let sizes = curl_in(&pair.client.pod, &sizes)?;
    ensure!(
        sizes.split_whitespace().filter(|size| *size == "200000").count() == 50,
        "50 pages over one connection: {sizes}"
    );
    let head = curl_in(&pair.client.pod, &["--head", "http://server.shop.svc/page.html"])?;
    ensure!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: 200000"), "{head}");
    Ok(())
}

fn postgres() -> Result<()> {
    let pair = Pair::start("postgres")?;
    let bin = postgres_folder().context("it was there a moment ago")?;
    let data = pair.server.pod.directory().join("data");
    std::fs::create_dir(&data)?;
    let initdb = Program::new(bin.join("initdb")).uid(NOBODY).arg("-D").arg(&data);
    run_to_end(&pair.server.pod, initdb.args(["-U", "shop", "--auth=trust", "--no-sync", "--locale=C"]))
        .context("initdb")?;
    std::fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")?;
    let server = Program::new(bin.join("postgres")).uid(NOBODY).arg("-D").arg(&data);
    let server = pair.server.pod.spawn(server.args([
        "-p",
        "9000",
        "-c",
        "listen_addresses=*",
        "-c",
        "unix_socket_directories=",
    ]))?;
    let psql = |sql: &str| {
        let psql = program(PSQL)?.env("PGCONNECT_TIMEOUT", "10");
        let target = format!("host={} port=9000 user=shop dbname=postgres", Ipv4Addr::new(10, 96, 0, 10));
        run_to_end(&pair.client.pod, psql.args([target.as_str(), "-At", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    };
    eventually("PostgreSQL answers", Duration::from_secs(30), || {
        Ok(psql("select 1").is_ok_and(|answer| answer == "1\n"))
    })
    .with_context(|| server.stderr())?;
    let answer = psql("create table t as select generate_series(1, 100000) n; select count(*), sum(n) from t")?;
    ensure!(answer.ends_with("100000|5000050000\n"), "{answer}");
    let rows = psql("select repeat('x', 100) from t")?;
    ensure!(rows.len() == 101 * 100_000, "{}", rows.len());
    let tcp = pair.server.metric("weft_tcp_connections_total", &["tls=\"true\"", "source=\"client\""])?;
    ensure!(tcp >= 3.0, "{tcp}: by mutual TLS");
    psql("create table stock (sku text primary key, units bigint not null); insert into stock values ('4711', 2)")?;
    stock_is_in_postgresql(&pair)
}

/// The demo's inventory, as the chart `orders-demo` runs it.
fn stock_is_in_postgresql(pair: &Pair) -> Result<()> {
    let server = format!("host={} port=9000 user=shop dbname=postgres", Ipv4Addr::new(10, 96, 0, 10));
    let app = Program::new(WEFT).args(["demo-app", "inventory", "--postgres", &server]);
    let app = pair.client.pod.spawn(app)?;
    app.wait_for_line(|line| line.contains("listens"), PATIENCE)?;
    let ask = |method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: inventory\r\nconnection: close\r\n\r\n");
        within(&pair.client.pod, move || async move {
            let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        })
    };
    for (method, path, status, part) in [
        ("GET", "/ready", "200", "ready"),
        ("GET", "/stock/4711", "200", "\"left\":2"),
        ("POST", "/stock/4711", "200", "\"left\":1"),
        ("POST", "/stock/4711", "200", "\"left\":0"),
        ("POST", "/stock/4711", "409", "no 4711 is left"),
        ("GET", "/stock/4712", "404", "there is no 4712"),
        ("DELETE", "/stock/4711", "200", "deleted"),
        ("GET", "/stock/4711", "404", "there is no 4711"),
    ] {
        let answer = ask(method, path)?;
        let first = answer.lines().next().unwrap_or_default();
        ensure!(first.contains(status) && answer.contains(part), "{method} {path}: {answer}");
    }
    app.signal(Signal::SIGTERM);
    let status = app.wait(PATIENCE)?;
    ensure!(status.success(), "it ends when it is told to: {status}");
    Ok(())
}

/// A neighbour on the same link sends the server's pod what is meant for another: `ip` makes it its router.
fn no_relay() -> Result<()> {
    let pair = Pair::start("relay")?;
    // A policy that would let it through: only the address is wrong.
    pair.mesh.write(
        "namespace.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {weft.dev/default-policy: allow}}\n",
    )?;
    pair.settle()?;
    let secret = pair.mesh.lab.pod(PodSpec::new("bystander").address(Ipv4Addr::new(192, 0, 2, 7)))?;
    let listener = secret.listen(8080)?;
    let _app = secret.start(move || async move { apps::http(listener, "bystander").await })?;
    let neighbour = pair.mesh.lab.pod(PodSpec::new("neighbour"))?;
    let target = secret.address(8080);
    ensure!(get(&neighbour, target, "/")?.0 == 200, "without the detour it is reached");
    let router = pair.server.pod.ipv4().context("the lab gives both families")?.to_string();
    run_to_end(
        &neighbour,
        program(IP)?.args(["route", "add", "192.0.2.7/32", "via", &router, "dev", "eth0", "onlink"]),
    )?;
    let answer = get(&neighbour, target, "/");
    ensure!(answer.is_err(), "{answer:?}");
    let refused = pair.server.metric("weft_connections_refused_total", &["reason=\"not_local\""])?;
    ensure!(refused == 1.0, "{refused} in {}", pair.server.metrics()?);
    Ok(())
}
