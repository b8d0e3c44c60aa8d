//! Section F: the admin port answers little, to few, and not for long.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::lab::Pod;
use weft_loadtests::lab::testing::Test;
use weft_loadtests::mesh::{ADMIN_PORT, eventually, get};

use crate::fixture::Bench;
use crate::wire::{self, Outcome, PATIENCE, Way};

pub const TESTS: &[Test] = &[
    ("the_admin_port_does_nothing_and_tells_a_neighbour_little", asked_for_more),
    ("slow_and_many_clients_of_the_admin_port_hold_up_nothing", slow_and_many),
];

pub fn rows() -> Vec<u32> {
    vec![103, 104, 105, 106]
}

fn ask(pod: &Pod, address: SocketAddr, line: &str, fields: &str) -> Result<Outcome> {
    let bytes = format!("{line} HTTP/1.1\r\nconnection: close\r\n{fields}\r\n").into_bytes();
    pod.run(move || wire::http1(Way::Plain, address, bytes, 1, true))?
}

fn asked_for_more() -> Result<()> {
    let bench = Bench::start("adminasked")?;
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN_PORT);
    let remote = bench.server.pod.address(ADMIN_PORT);
    let host = "host: localhost\r\n";
    let rows: &[(u32, &str, &str)] = &[
        (103, "POST /shutdown", host),
        (103, "PUT /log-level", host),
        (103, "GET /config_dump", host),
        (103, "GET /env", host),
        (103, "GET /debug/pprof", host),
        (104, "GET /shutdown", host),
        (104, "POST /quitquitquit", host),
        (104, "DELETE /config", host),
        (104, "POST /metrics", host),
        (105, "GET /%2e/shutdown", host),
        (105, "GET //shutdown", host),
        (105, "GET /metrics/../shutdown", host),
        (105, "GET //config", host),
        (105, "GET /metrics/../config", host),
        (105, "GET /config", "host: evil.test\r\n"),
        (105, "GET http://evil.test/config", host),
        (105, "GET /shutdown", "host: localhost\r\nx-http-method-override: POST\r\n"),
    ];
    for (row, line, fields) in rows {
        for (pod, address) in [(&bench.attacker, remote), (&bench.server.pod, local)] {
            let outcome = ask(pod, address, line, fields)?;
            ensure!(matches!(outcome.statuses[..], [403..=405]), "row {row}: {line} from {}: {outcome:?}", pod.name());
        }
    }
    for (path, from_outside) in [
        ("/config", 403),
        ("/explain?from=x&port=1", 403),
        ("/refusals", 403),
        ("/metrics", 200),
        ("/ready", 200),
        ("/live", 200),
    ] {
        let outcome = ask(&bench.attacker, remote, &format!("GET {path}"), host)?;
        ensure!(outcome.statuses == [from_outside], "row 103: {path}: {outcome:?}");
    }
    bench.good(&Way::Plain)?;
    bench.lives()
}

/// Row 106.
fn slow_and_many() -> Result<()> {
    let bench = Bench::start("adminslow")?;
    let remote = bench.server.pod.address(ADMIN_PORT);
    let ended = bench.attacker.run(move || async move {
        let slow = |_| async move {
            let Ok(mut stream) = TcpStream::connect(remote).await else { return };
            let mut read = [0; 64];
            // A byte at a time, until the other side has had enough.
            loop {
                if stream.write_all(b"G").await.is_err() {
                    return;
                }
                tokio::select! {
                    count = stream.read(&mut read) => if !matches!(count, Ok(1..)) { return },
                    () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
                }
            }
        };
        let all = futures_util::future::join_all((0..1_000).map(slow));
        tokio::time::timeout(PATIENCE, all).await.context("slow clients are kept").map(|all| all.len())
    })??;
    ensure!(ended == 1_000);
    bench.good(&Way::Plain)?;
    let scrapes = bench.attacker.run(move || async move {
        let scrape = |_| async move {
            let bytes = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".to_vec();
            wire::http1(Way::Plain, remote, bytes, 1, true).await.is_ok_and(|outcome| outcome.statuses == [200])
        };
        futures_util::future::join_all((0..200).map(scrape)).await.into_iter().filter(|served| *served).count()
    })?;
    ensure!(scrapes >= 64, "{scrapes} of 200 scrapes were served");
    eventually("it serves on", PATIENCE, || {
        Ok(get(&bench.attacker, remote, "/metrics").is_ok_and(|(status, _)| status == 200))
    })?;
    bench.good(&Way::Plain)?;
    bench.lives()
}
