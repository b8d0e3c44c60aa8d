//! Byte streams: TLS of the application's own, silent clients, the two address families.
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use weft_loadtests::apps;
use weft_loadtests::mesh::get;

use crate::fixture::{Case, HOST, IPV4, IPV6, PATIENCE, Pair, curl, folder, port, program, within};
use crate::nginx::nginx;

pub const CASES: &[Case] = &[
    Case::new("tls_of_the_applications_own_passes_through", &["nginx", "curl", "openssl"], own_tls),
    Case::new("a_client_that_waits_to_be_greeted_is_told_that_nobody_listens", &[], nobody_listens),
    Case::new("an_application_that_listens_on_one_family_alone_is_reached_by_it", &[], one_family),
];

/// Writes `cert.pem` and `key.pem` of the Service into a folder.
pub fn self_signed(place: &str) -> Result<()> {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
    std::fs::write(format!("{place}/cert.pem"), made.cert.pem())?;
    std::fs::write(format!("{place}/key.pem"), made.signing_key.serialize_pem())?;
    // PostgreSQL takes no key that others may read.
    Ok(std::fs::set_permissions(format!("{place}/key.pem"), PermissionsExt::from_mode(0o600))?)
}

fn own_tls() -> Result<()> {
    let pair = Pair::start("own-tls")?;
    let place = folder(&pair.server.pod)?;
    self_signed(&place)?;
    std::fs::write(format!("{place}/page"), "s".repeat(500_000))?;
    let servers = "server {
        listen 8443 ssl http2; listen [::]:8443 ssl http2; root PLACE;
        ssl_certificate PLACE/cert.pem; ssl_certificate_key PLACE/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
    }\n";
    let authority = format!("{place}/cert.pem");
    let url = format!("https://{HOST}/page");
    let get = |more: &[&str]| curl(&pair.client.pod, &[&["--fail", "--cacert", &authority, &url], more].concat());
    let _nginx = pair.serve(nginx(&pair.server.pod, servers)?, || get(&[]).map(drop))?;
    for family in ["-4", "-6"] {
        for (tls, http) in [("--tlsv1.3", "--http2"), ("--tlsv1.3", "--http1.1"), ("--tls-max", "--http2")] {
            let version: &[&str] = if tls == "--tls-max" { &[tls, "1.2"] } else { &[tls] };
            let page = get(&[version, &[family, http]].concat())?;
            ensure!(page.len() == 500_000, "{family} {tls} {http}: {}", page.len());
        }
    }
    let target = format!("{HOST}:{}", port::TLS);
    let ask = ["s_client", "-connect", &target, "-CAfile", &authority, "-verify_return_error", "-brief"];
    let process = pair.client.pod.spawn(program("openssl")?.args(ask))?;
    ensure!(process.wait(PATIENCE)?.success(), "{}{}", process.stdout(), process.stderr());
    let told = process.stdout() + &process.stderr();
    ensure!(told.contains("Verification: OK") && told.contains("TLSv1.3"), "{told}");
    pair.carried_streams(7.0)
}

fn nobody_listens() -> Result<()> {
    let pair = Pair::start("nobody")?;
    for port in [port::OTHER, port::BYTES] {
        let target = pair.address(port);
        let ended = within(&pair.client.pod, move || async move {
            let ended = async { TcpStream::connect(target).await?.read(&mut [0; 16]).await };
            Ok(ended.await.map_err(|error| error.kind()))
        })?;
        ensure!(ended == Err(ErrorKind::ConnectionReset), "port {port}: {ended:?}");
    }
    Ok(())
}

/// Each address of the Service leads to the pod's address of the same family, as without a mesh.
fn one_family() -> Result<()> {
    let pair = Pair::start("family")?;
    let (v4, v6) = (pair.server.pod.ipv4(), pair.server.pod.ipv6());
    let (v4, v6) = (v4.context("the lab gives both")?, v6.context("the lab gives both")?);
    let only: [(SocketAddr, IpAddr, u16); 2] =
        [((v4, 8080).into(), IPV4, port::SEEN), ((v6, 9000).into(), IPV6, port::OTHER)];
    for (listens, service, port) in only {
        let server = pair.server.pod.start(move || async move {
            let listener = tokio::net::TcpListener::bind(listens).await?.into_std()?;
            apps::http(listener, "one").await
        })?;
        for _ in 0..20 {
            let answer = get(&pair.client.pod, SocketAddr::new(service, port), "/");
            let (status, body) = answer?;
            ensure!(status == 200, "{listens}: {status} {body}");
        }
        drop(server);
    }
    Ok(())
}
