//! Section D, as far as it is of bytes: what comes in place of a handshake, or after one. Certificates are judged in
//! the tests of `weft-certs` and in the mesh's.
use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::lab::PodSpec;
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Bench, Want};
use crate::wire::{self, Outcome, PATIENCE, Way};

pub const TESTS: &[Test] = &[
    ("who_has_no_identity_reaches_nothing_that_wants_one", no_identity),
    ("a_broken_handshake_ends_and_costs_little", broken),
];

pub fn rows() -> Vec<u32> {
    vec![82, 83, 88, 89, 90, 91, 92]
}

/// Rows 82 and 83.
fn no_identity() -> Result<()> {
    let bench = Bench::start("noidentity")?;
    let stranger = bench.mesh.lab.pod(PodSpec::new("stranger"))?;
    let target = bench.target();
    let request = || b"GET /public/x HTTP/1.1\r\nhost: server\r\n\r\n".to_vec();
    let plain = || stranger.run(move || wire::http1(Way::Plain, target, request(), 1, false))?;
    bench.judge("row 82", &Way::Plain, Want::Denied, plain)?;
    let config = bench.without_certificate(b"weft/http1");
    let anonymous = || {
        stranger.run(move || async move {
            // In TLS 1.3 the client has finished before the server has judged.
            let outcome = wire::http1(Way::Mutual(config), target, request(), 1, true).await;
            Ok(outcome.unwrap_or(Outcome { closed: true, ..Outcome::default() }))
        })?
    };
    bench.judge("row 83", &Way::Plain, Want::Bad(&[0]), anonymous)
}

/// A ClientHello with what the rows vary: the version that is offered, ALPN names, server names.
fn hello(version: [u8; 2], alpn: &[&[u8]], names: &[&[u8]]) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, bytes: &[u8]| [&kind.to_be_bytes()[..], &sized(bytes)].concat();
    let protocols: Vec<u8> = alpn.iter().flat_map(|name| [&[name.len() as u8][..], name].concat()).collect();
    let servers: Vec<u8> = names.iter().flat_map(|name| [&[0][..], &sized(name)].concat()).collect();
    let mut extensions = vec![
        extension(43, &[&[2][..], &version].concat()),
        extension(10, &sized(&[0, 29])),
        extension(13, &sized(&[4, 3])),
        extension(51, &sized(&[&[0, 29][..], &sized(&[9; 32])].concat())),
    ];
    if !alpn.is_empty() {
        extensions.push(extension(16, &sized(&protocols)));
    }
    if !names.is_empty() {
        extensions.push(extension(0, &sized(&servers)));
    }
    let body = [&[3, 3][..], &[7; 32], &[0], &sized(&[0x13, 1]), &[1, 0], &sized(&extensions.concat())].concat();
    let handshake = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&handshake)].concat()
}

/// Rows 88 to 92.
fn broken() -> Result<()> {
    let bench = Bench::start("broken")?;
    let ours: &[&[u8]] = &[b"weft/http1"];
    let good = || hello([3, 4], ours, &[]);
    let many: Vec<&[u8]> = vec![b"x"; 100];
    let long = [b'a'; 300];
    let pieces = |bytes: Vec<u8>| bytes.into_iter().map(|byte| vec![byte]).collect::<Vec<_>>();
    let one = |bytes: Vec<u8>| vec![bytes];
    let record = |bytes: &[u8]| [&[22, 3, 1][..], &(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let fragments: Vec<u8> = good()[5..].chunks(good().len().div_ceil(20)).flat_map(record).collect();
    let big: Vec<u8> = [1, 0, 0xff, 0xff].into_iter().chain([0; 0xffff]).collect();
    let big: Vec<u8> = big.chunks(16_000).flat_map(record).collect();
    let rows: Vec<(u32, &str, Vec<Vec<u8>>)> = vec![
        (88, "TLS 1.0", one(hello([3, 1], ours, &[]))),
        (88, "TLS 1.1", one(hello([3, 2], ours, &[]))),
        (88, "TLS 1.2", one(hello([3, 3], ours, &[]))),
        (88, "SSL 2", one(b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80".to_vec())),
        (89, "no ALPN", one(hello([3, 4], &[], &[]))),
        (89, "another ALPN", one(hello([3, 4], &[b"http/1.0"], &[]))),
        (89, "100 ALPN names", one(hello([3, 4], &many, &[]))),
        (89, "an address as name", one(hello([3, 4], ours, &[b"192.0.2.1"]))),
        (89, "a long name", one(hello([3, 4], ours, &[&long]))),
        (89, "a NUL in a name", one(hello([3, 4], ours, &[b"a\0b"]))),
        (89, "two names", one(hello([3, 4], ours, &[b"a", b"b"]))),
        (89, "upper case", one(hello([3, 4], ours, &[b"A.TEST"]))),
        (90, "a byte at a time", pieces(good())),
        (90, "20 records", one(fragments)),
        (90, "64 KiB", one(big)),
        (90, "33 empty records", one(b"\x16\x03\x01\x00\x00".repeat(33))),
        (91, "an alert in the midst", one([good(), b"\x15\x03\x03\x00\x02\x01\x00".to_vec()].concat())),
        (91, "an unknown alert", one([good(), b"\x15\x03\x03\x00\x02\x02\xfe".to_vec()].concat())),
        (91, "garbage behind", one([good(), vec![0xaa; 4096]].concat())),
        (92, "early data", one([good(), b"\x17\x03\x03\x00\x20".to_vec(), vec![5; 32]].concat())),
    ];
    let target = bench.target();
    for (row, name, pieces) in rows {
        bench.recorder.take();
        let allowed = bench.counters()?.allowed;
        let ended = bench.attacker.run(move || async move {
            let mut stream = TcpStream::connect(target).await?;
            stream.set_nodelay(true)?;
            for piece in pieces {
                if stream.write_all(&piece).await.is_err() {
                    return anyhow::Ok(true);
                }
                tokio::task::yield_now().await;
            }
            // Whoever has said hello and cannot go on says no more.
            stream.shutdown().await.ok();
            let mut answer = Vec::new();
            Ok(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.is_ok())
        })??;
        ensure!(ended, "row {row}, {name}: the connection stays open");
        let name = format!("row {row}, {name}");
        ensure!(bench.recorder.take().is_empty(), "{name}: the application saw something");
        ensure!(bench.counters()?.allowed == allowed, "{name}: it was allowed");
        bench.good(&bench.http1)?;
        bench.lives()?;
    }
    Ok(())
}
