//! TLS of the application's own passes through untouched: its certificate, its versions, its resumption.
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};

use crate::fixture::{Case, HOST, PATIENCE, Pair, curl, folder, port, program};
use crate::nginx::nginx;

pub const CASES: &[Case] =
    &[Case::new("tls_of_the_applications_own_passes_through", &["nginx", "curl", "openssl"], own_tls)];

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
