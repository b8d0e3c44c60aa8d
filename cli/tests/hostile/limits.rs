//! What a sidecar bounds, and how it stops: descriptors, connections, slow heads, and a drain that loses nothing.
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::lab::Signal;
use weft_loadtests::lab::testing::Test;
use weft_loadtests::mesh::eventually;

use crate::fixture::{Bench, WEFT};
use crate::wire::{self, GOAWAY, PATIENCE, Way, block, headers, next_frame, opening};

pub const TESTS: &[Test] = &[
    ("a_sidecar_that_runs_out_of_descriptors_serves_again_when_there_are_some", out_of_descriptors),
    ("connections_beyond_the_bound_are_refused_and_counted_and_others_live", connection_bound),
    ("a_head_that_takes_too_long_ends_its_connection", slow_heads),
    ("an_answer_that_is_not_taken_over_http1_ends_its_connection", stalled_reader),
    ("a_draining_sidecar_says_goaway_twice_and_connection_close_and_keeps_what_runs", drain),
    ("a_drain_ends_at_its_deadline", deadline),
];

/// Connections that say nothing, held until dropped.
async fn silent(target: std::net::SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(target)).await {
            held.push(stream);
        }
    }
    held
}

/// Its own limit is taken, whatever the sidecar asks for: `ulimit` sets both.
fn out_of_descriptors() -> Result<()> {
    let script = std::env::temp_dir().join(format!("weft-few-files-{}", std::process::id()));
    let bench = Bench::with("emfile", |options| {
        let text =
            format!("#!/bin/sh\n[ \"$1\" = proxy ] && [ \"$2\" != init ] && ulimit -n 100\nexec {WEFT} \"$@\"\n");
        std::fs::write(&script, text).expect("the directory for temporary files can be written");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        options.weft = script.clone().into();
        options.proxy_arguments.extend(["--max-connections".into(), "10000".into()]);
    })?;
    let target = bench.target();
    let held = bench.attacker.start(move || async move {
        let _held = silent(target, 300).await;
        std::future::pending::<()>().await;
    })?;
    let sidecar = bench.server.sidecar()?;
    sidecar.wait_for_line(|line| line.contains("cannot accept connections"), PATIENCE)?;
    held.stop();
    eventually("it serves again", PATIENCE, || Ok(bench.good(&Way::Plain).is_ok()))?;
    std::fs::remove_file(&script)?;
    bench.lives()
}

fn connection_bound() -> Result<()> {
    let bench =
        Bench::with("bound", |options| options.proxy_arguments.extend(["--max-connections".into(), "20".into()]))?;
    let target = bench.target();
    let held = bench.attacker.start(move || async move {
        let _held = silent(target, 60).await;
        std::future::pending::<()>().await;
    })?;
    let refused = || bench.server.metric("weft_connections_refused_total", &["reason=\"too_many_connections\""]);
    eventually("those beyond the bound are refused", PATIENCE, || Ok(refused()? >= 40.0))?;
    // The application's own connections have their own bound.
    let web = std::net::SocketAddr::new(crate::fixture::SERVICE, 80);
    let own = bench
        .server
        .pod
        .run(move || async move { Ok::<_, anyhow::Error>(TcpStream::connect(web).await.is_ok()) })??;
    ensure!(own, "the application cannot connect");
    held.stop();
    eventually("there is room again", PATIENCE, || Ok(bench.good(&Way::Plain).is_ok()))?;
    bench.lives()
}

fn slow_heads() -> Result<()> {
    let bench = Bench::start("slowheads")?;
    let target = bench.target();
    let before = bench.counters()?.refused;
    let (first, second) = (bench.http1.clone(), bench.http2.clone());
    let rows: Vec<(Way, Vec<u8>)> = vec![
        (first.clone(), b"GET /public/x HT".to_vec()),
        (first, b"GET /public/x HTTP/1.1\r\nhost: server\r\n".to_vec()),
        (Way::Plain, b"GET /public/x HTTP/1.1\r\nhost: server\r\nx: ".to_vec()),
        (second.clone(), vec![]),
        (second, wire::PREFACE[..20].to_vec()),
    ];
    let count = rows.len();
    bench.attacker.run(move || async move {
        let one = |(way, bytes): (Way, Vec<u8>)| async move {
            let mut stream = way.open(target).await?;
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            // A byte now and then does not help.
            let (mut reader, mut writer) = tokio::io::split(stream);
            let dripping = async {
                loop {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    if bytes.len() > 20 && (writer.write_all(b"a").await.is_err() || writer.flush().await.is_err()) {
                        std::future::pending::<()>().await;
                    }
                }
            };
            let mut end = Vec::new();
            let reading = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut end));
            tokio::select! {
                () = dripping => {}
                ended = reading => drop(ended.context("it is kept")?),
            }
            anyhow::Ok(())
        };
        futures_util::future::join_all(rows.into_iter().map(one)).await.into_iter().collect::<Result<Vec<_>>>()
    })??;
    let label = ["reason=\"slow_header\""];
    eventually("each is counted", PATIENCE, || {
        Ok(bench.server.metric("weft_connections_refused_total", &label)? == count as f64)
    })
    .with_context(|| format!("{before} before; {}", bench.server.metrics().unwrap_or_default()))?;
    bench.good(&Way::Plain)?;
    bench.lives()
}

fn stalled_reader() -> Result<()> {
    let bench = Bench::start("stalledreader")?;
    let target = bench.target();
    let open = || bench.server.metric("weft_requests_total", &["direction=\"inbound\""]);
    let before = open()?;
    let held = bench.attacker.start(move || async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"GET /public/bytes/100000000 HTTP/1.1\r\nhost: server\r\n\r\n").await?;
        std::future::pending::<std::io::Result<()>>().await
    })?;
    // A request is counted when it has ended.
    eventually("it is given up", PATIENCE, || Ok(open()? == before + 1.0))?;
    drop(held);
    bench.good(&Way::Plain)?;
    bench.lives()
}

const GOOD: [(&[u8], &[u8]); 4] =
    [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/public/x"), (b":authority", b"server")];

fn drain() -> Result<()> {
    let bench = Bench::with("drain", |options| {
        options.proxy_arguments.extend(["--lame-duck".into(), "3s".into(), "--drain-timeout".into(), "20s".into()]);
    })?;
    let (target, first, second) = (bench.target(), bench.http1.clone(), bench.http2.clone());
    let (is_open, open) = std::sync::mpsc::channel();
    let clients = bench.attacker.start(move || async move {
        // A request that is under way when the drain begins, on each version.
        let mut one = first.open(target).await?;
        one.write_all(b"POST /public/x HTTP/1.1\r\nhost: server\r\ncontent-length: 5\r\n\r\n").await?;
        one.flush().await?;
        let mut two = second.open(target).await?;
        two.write_all(&[opening(&[]), headers(1, &block(&GOOD), 0)].concat()).await?;
        two.flush().await?;
        let _ = is_open.send(());
        let mut last_streams = Vec::new();
        let (mut reader, mut writer) = tokio::io::split(two);
        while last_streams.is_empty() {
            let frame = next_frame(&mut reader).await.context("the HTTP/2 connection ended without a GOAWAY")?;
            match frame.kind {
                GOAWAY => last_streams.push(frame.code(0)),
                wire::PING if frame.flags == 0 => {
                    writer.write_all(&wire::frame(wire::PING, wire::ACK, 0, &frame.payload)).await?;
                    writer.flush().await?;
                }
                _ => {}
            }
        }
        // A stream that was opened before the GOAWAY arrived is served, and so is what runs.
        let crossing = headers(3, &block(&GOOD), wire::END_STREAM);
        writer.write_all(&[crossing, wire::frame(wire::DATA, wire::END_STREAM, 1, b"hello")].concat()).await?;
        writer.flush().await?;
        one.write_all(b"hello").await?;
        one.flush().await?;
        let answer = wire::read_http1(&mut one, 1, true).await?;
        let mut ended = 0;
        while let Some(frame) = next_frame(&mut reader).await {
            match frame.kind {
                GOAWAY => last_streams.push(frame.code(0)),
                wire::PING if frame.flags == 0 => {
                    writer.write_all(&wire::frame(wire::PING, wire::ACK, 0, &frame.payload)).await?;
                    writer.flush().await?;
                }
                wire::HEADERS | wire::DATA if frame.flags & wire::END_STREAM != 0 => ended += 1,
                _ => {}
            }
        }
        anyhow::Ok((answer, last_streams, ended))
    })?;
    open.recv_timeout(PATIENCE)?;
    eventually("both requests have arrived", PATIENCE, || Ok(bench.counters()?.allowed >= 2.0))?;
    bench.server.sidecar()?.signal(Signal::SIGTERM);
    let (answer, last_streams, ended) = clients.join_timeout(PATIENCE)?.context("the connections stay open")??;
    ensure!(answer.statuses == [200] && answer.closed && answer.text.contains("connection: close"), "{answer:?}");
    ensure!(last_streams == [0x7fff_ffff, 3] && ended == 2, "GOAWAY up to {last_streams:?}, {ended} answers");
    ensure!(bench.server.sidecar()?.wait(PATIENCE)?.success());
    Ok(())
}

fn deadline() -> Result<()> {
    let bench = Bench::with("deadline", |options| {
        options.proxy_arguments.extend(["--lame-duck".into(), "0s".into(), "--drain-timeout".into(), "1s".into()]);
        options.proxy_arguments.extend(["--stall-timeout".into(), "0s".into()]);
    })?;
    let target = bench.target();
    let held = bench.attacker.start(move || async move {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"GET /public/hang HTTP/1.1\r\nhost: server\r\n\r\n").await?;
        let mut end = Vec::new();
        let _ = stream.read_to_end(&mut end).await;
        anyhow::Ok(end)
    })?;
    eventually("the request runs", PATIENCE, || Ok(bench.counters()?.allowed >= 2.0))?;
    bench.server.sidecar()?.signal(Signal::SIGTERM);
    let status = bench.server.sidecar()?.wait(PATIENCE)?;
    ensure!(status.success(), "{status}");
    let end = held.join_timeout(PATIENCE)?.context("the connection outlives the sidecar")??;
    ensure!(end.is_empty(), "{end:?}");
    Ok(())
}
