//! Section C: HTTP/2 abused, inside mTLS. While a row runs, a second connection is served.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Bench, STALL, Want};
use crate::recorder::Seen;
use crate::wire::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Outcome, PATIENCE, PING, PRIORITY,
    PUSH_PROMISE, REFUSED_STREAM, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, headers, literal, next_frame,
    opening,
};

pub const TESTS: &[Test] = &[
    ("malformed_http2_never_reaches_the_application", malformed),
    ("a_flood_of_frames_ends_its_connection_and_no_other", floods),
    ("streams_that_are_reset_at_once_start_few_requests", resets),
    ("answers_that_are_not_taken_are_dropped_and_hold_little", stalled_windows),
    ("streams_beyond_the_limit_are_refused", too_many_streams),
];

const METHOD: (&[u8], &[u8]) = (b":method", b"GET");
const SCHEME: (&[u8], &[u8]) = (b":scheme", b"http");
const PATH: (&[u8], &[u8]) = (b":path", b"/public/x");
const AUTHORITY: (&[u8], &[u8]) = (b":authority", b"server");
const GOOD: [(&[u8], &[u8]); 4] = [METHOD, SCHEME, PATH, AUTHORITY];

fn request(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    headers(1, &block(fields), END_STREAM)
}

fn with(field: (&[u8], &[u8])) -> Vec<u8> {
    request(&[&GOOD[..], &[field]].concat())
}

/// A POST of which the body follows.
fn post(more: &[(&[u8], &[u8])]) -> Vec<u8> {
    let fields = [&[(&b":method"[..], &b"POST"[..]), SCHEME, PATH, AUTHORITY], more].concat();
    headers(1, &block(&fields), 0)
}

/// Refused with a stream or connection error, or with 400 or 431.
const BAD: Want = Want::Bad(&[400, 405, 431]);
/// The stream ends after its request was handed over, which is why it was allowed.
const ABORTED: Want = Want::Aborted(&[0, 400]);

/// Row, what is sent after the opening, outcome. Everything is on stream 1.
fn table() -> Vec<(u32, Vec<u8>, Want)> {
    let mut rows: Vec<(u32, Vec<u8>, Want)> = Vec::new();
    let mut bad = |row: u32, bytes: Vec<u8>| rows.push((row, bytes, BAD));
    bad(62, request(&[METHOD, METHOD, SCHEME, PATH, AUTHORITY]));
    bad(62, request(&[METHOD, SCHEME, PATH, PATH, AUTHORITY]));
    bad(62, request(&[METHOD, SCHEME, AUTHORITY]));
    bad(62, request(&[SCHEME, PATH, AUTHORITY]));
    bad(62, request(&[METHOD, SCHEME, PATH, AUTHORITY, (b":unknown", b"x")]));
    bad(62, request(&[METHOD, SCHEME, PATH, (b"x", b"y"), AUTHORITY]));
    for path in [&b""[..], b"public/x", b"/public/ x", b"/public/x\r\nx: y"] {
        bad(62, request(&[METHOD, SCHEME, (b":path", path), AUTHORITY]));
    }
    for (name, value) in [
        (&b"X-Upper"[..], &b"a"[..]),
        (b"x", b"a\rb"),
        (b"x", b"a\nb"),
        (b"x", b"a\0b"),
        (b"x:y", b"a"),
        (b"x y", b"a"),
    ] {
        bad(63, with((name, value)));
    }
    for (name, value) in [
        (&b"connection"[..], &b"close"[..]),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"websocket"),
        (b"te", b"gzip"),
        (b"keep-alive", b"5"),
        (b"proxy-connection", b"close"),
    ] {
        bad(64, with((name, value)));
    }
    bad(65, with((b"content-length", b"5")));
    bad(
        65,
        [post(&[(b"content-length", b"5"), (b"content-length", b"6")]), frame(DATA, END_STREAM, 1, b"hello")].concat(),
    );
    for scheme in ["ftp", "gopher"] {
        bad(66, request(&[METHOD, (b":scheme", scheme.as_bytes()), PATH, AUTHORITY]));
    }
    for authority in ["u@server", "server/x"] {
        bad(66, request(&[METHOD, SCHEME, PATH, (b":authority", authority.as_bytes())]));
    }
    bad(67, request(&[METHOD, SCHEME, PATH]));
    bad(73, with((b"x", &[b'y'; 70 * 1024])));
    let crumbs: Vec<(&[u8], &[u8])> = vec![(b"cookie", b"0123456789=0123456789"); 1500];
    bad(73, request(&[&GOOD[..], &crumbs].concat()));
    let tiny: Vec<(&[u8], &[u8])> = vec![(b"a", b"b"); 10_000];
    bad(73, request(&[&GOOD[..], &tiny].concat()));
    let good = block(&GOOD);
    // An index that nobody defined, a table larger than allowed, an end of string in Huffman's code.
    bad(74, headers(1, &[&good[..], &[0xff, 0xff, 0x7f]].concat(), END_STREAM));
    bad(74, headers(1, &[&[0x3f, 0xe1, 0xff, 0xff, 0x7f][..], &good].concat(), END_STREAM));
    bad(74, headers(1, &[&good[..], &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]].concat(), END_STREAM));
    bad(74, frame(HEADERS, END_STREAM | END_HEADERS | 8, 1, &[&[255][..], &good].concat()));
    let mut mebibyte = vec![0x10, 0, 0, DATA, 0, 0, 0, 0, 1];
    mebibyte.resize(9 + (1 << 20), 0);
    bad(75, mebibyte);
    bad(75, frame(DATA, 0, 1, b"hello"));
    bad(75, frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &good].concat()));
    bad(75, headers(2, &good, END_STREAM));
    bad(76, frame(SETTINGS, 0, 0, &[0; 5]));
    bad(76, frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]));
    bad(76, frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]));
    bad(76, frame(WINDOW_UPDATE, 0, 0, &[0; 4]));
    bad(
        76,
        [frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])]
            .concat(),
    );
    bad(79, request(&[(b":method", b"CONNECT"), (b":protocol", b"websocket"), SCHEME, PATH, AUTHORITY]));
    bad(79, request(&[(b":method", b"CONNECT"), (b":authority", b"127.0.0.1:4243")]));
    bad(
        79,
        [headers(1, &block(&[(b":method", b"CONNECT"), AUTHORITY]), 0), frame(DATA, END_STREAM, 1, b"hello")].concat(),
    );

    let post_of = |length: &'static [u8]| post(&[(b"content-length", length)]);
    rows.push((65, [post_of(b"10"), frame(DATA, END_STREAM, 1, b"hello")].concat(), ABORTED));
    rows.push((65, [post_of(b"3"), frame(DATA, END_STREAM, 1, b"hello")].concat(), ABORTED));
    let whole: fn(&[Seen]) -> bool = |seen| seen.len() == 1 && seen[0].complete;
    rows.push((66, request(&[METHOD, (b":scheme", b"HttpS"), PATH, AUTHORITY]), Want::Served(whole)));
    rows.push((75, [frame(0x42, 0, 0, b"unknown"), request(&GOOD)].concat(), Want::Served(whole)));
    rows.push((
        74,
        [frame(SETTINGS, 0, 0, &[0, 1, 0xff, 0xff, 0xff, 0xff]), request(&GOOD)].concat(),
        Want::Served(whole),
    ));
    // The body does not come, and is no gRPC stream.
    rows.push((43, post(&[]), Want::Aborted(&[408])));
    rows
}

pub fn rows() -> Vec<u32> {
    // Those beside the table have tests of their own below.
    table().iter().map(|(row, ..)| *row).filter(|row| *row > 61).chain([68, 69, 70, 71, 72, 77, 78]).collect()
}

fn malformed() -> Result<()> {
    let bench = Bench::start("malformed2")?;
    let before = bench.memory()?;
    for (row, bytes, want) in table() {
        let name = format!("row {row}: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(120)]));
        let sent = [opening(&[]), bytes].concat();
        bench.judge(&name, &bench.http2, want, || bench.send_http2(&bench.http2, sent, false))?;
    }
    let grown = bench.memory()?.saturating_sub(before);
    ensure!(grown < 10 << 20, "the sidecar's memory grew by {grown} bytes");
    Ok(())
}

/// Sends pieces until the connection ends, as fast as they are taken; answers are read meanwhile unless `deaf`. Returns
/// what came last and how many pieces went out.
fn flood(
    bench: &Bench,
    first: Vec<u8>,
    piece: impl Fn(u32) -> Vec<u8> + Send + 'static,
    most: u32,
    deaf: bool,
) -> Result<(Outcome, u32)> {
    let (way, target) = (bench.http2.clone(), bench.target());
    bench.attacker.run(move || async move {
        let (mut reader, mut writer) = tokio::io::split(way.open(target).await?);
        let sent = std::cell::Cell::new(0);
        let writing = async {
            writer.write_all(&[opening(&[]), first].concat()).await?;
            for number in 0..most {
                writer.write_all(&piece(number)).await?;
                writer.flush().await?;
                sent.set(number + 1);
            }
            // A connection that is left open must be ended by the other side all the same.
            std::future::pending::<std::io::Result<()>>().await
        };
        let mut outcome = Outcome::default();
        let reading = async {
            if deaf {
                std::future::pending::<()>().await;
            }
            while let Some(frame) = next_frame(&mut reader).await {
                if frame.kind == GOAWAY {
                    outcome.go_away = Some(frame.code(4));
                }
            }
            outcome.closed = true;
        };
        let ended = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                _ = writing => deaf,
                () = reading => true,
            }
        })
        .await;
        // The writer may notice first; what was said last is still to be read.
        if !matches!(ended, Ok(true)) {
            let rest = async {
                while let Some(frame) = next_frame(&mut reader).await {
                    if frame.kind == GOAWAY {
                        outcome.go_away = Some(frame.code(4));
                    }
                }
            };
            tokio::time::timeout(PATIENCE, rest).await.context("the connection stays open")?;
        }
        anyhow::Ok((outcome, sent.get()))
    })?
}

/// A flood that must end its connection: after it memory is as before, and a second connection was served all along.
fn ends(
    bench: &Bench,
    row: u32,
    first: Vec<u8>,
    piece: impl Fn(u32) -> Vec<u8> + Send + 'static,
    deaf: bool,
) -> Result<()> {
    let before = (bench.counters()?, bench.memory()?);
    let (outcome, sent) = flood(bench, first, piece, 60_000, deaf).with_context(|| format!("row {row}"))?;
    ensure!(sent < 60_000, "row {row}: all {sent} were taken: {outcome:?}");
    weft_loadtests::mesh::eventually("it is counted", PATIENCE, || Ok(bench.counters()?.refused > before.0.refused))
        .with_context(|| format!("row {row}: {outcome:?}, {:?}, {:?}", before.0, bench.counters()))?;
    bench.good(&bench.http2).with_context(|| format!("after row {row}"))?;
    let grown = bench.memory()?.saturating_sub(before.1);
    ensure!(grown < 10 << 20, "row {row}: the sidecar's memory grew by {grown} bytes");
    bench.lives()
}

fn floods() -> Result<()> {
    let bench = Bench::start("floods")?;
    let open = || headers(1, &block(&[(b":method", b"POST"), SCHEME, PATH, AUTHORITY]), 0);
    let unfinished = || frame(HEADERS, END_STREAM, 1, &block(&GOOD));
    ends(&bench, 69, unfinished(), |_| frame(CONTINUATION, 0, 1, &[]), false)?;
    ends(&bench, 69, unfinished(), |n| frame(CONTINUATION, 0, 1, &literal(format!("x{n}").as_bytes(), b"y")), false)?;
    ends(&bench, 70, open(), |_| frame(DATA, 0, 1, &[]), false)?;
    ends(&bench, 71, vec![], |_| frame(PING, 0, 0, &[7; 8]), false)?;
    ends(&bench, 71, vec![], |_| frame(SETTINGS, 0, 0, &[]), false)?;
    ends(&bench, 71, vec![], |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]), false)?;
    ends(&bench, 71, vec![], |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), false)?;
    ends(&bench, 71, vec![], |_| frame(PING, ACK, 0, &[7; 8]), false)?;
    ends(&bench, 72, vec![], |_| frame(PING, 0, 0, &[7; 8]), true)?;
    // 20,000 bytes, each in a frame of its own, of which the application reads none: what it cannot have is not taken.
    let before = bench.memory()?;
    let hang = || headers(1, &block(&[(b":method", b"POST"), SCHEME, (b":path", b"/public/hang"), AUTHORITY]), 0);
    let (way, target) = (bench.http2.clone(), bench.target());
    let bytes = [opening(&[]), hang(), frame(DATA, 0, 1, b"x").repeat(20_000)].concat();
    let held = bench.attacker.start(move || wire::http2(way, target, bytes, true))?;
    std::thread::sleep(Duration::from_millis(500));
    bench.good(&bench.http2)?;
    let grown = bench.memory()?.saturating_sub(before);
    ensure!(grown < 10 << 20, "row 70: the sidecar's memory grew by {grown} bytes");
    drop(held);
    bench.lives()
}

fn resets() -> Result<()> {
    let bench = Bench::start("resets")?;
    let call = |number: u32| {
        let stream = 2 * number + 1;
        [headers(stream, &block(&GOOD), END_STREAM), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    bench.recorder.take();
    ends(&bench, 68, vec![], call, false)?;
    let seen = bench.recorder.take().len();
    ensure!(seen <= 101, "row 68: {seen} requests reached the application");
    // Ten at a time, so slowly that each begins before it is reset.
    let (way, target) = (bench.http2.clone(), bench.target());
    let before = bench.counters()?;
    bench.attacker.run(move || async move {
        let (mut reader, mut writer) = tokio::io::split(way.open(target).await?);
        let writing = async {
            writer.write_all(&opening(&[])).await?;
            for number in 0..2_000_u32 {
                let ten = || (0..10).map(|n| 2 * (10 * number + n) + 1);
                let open: Vec<u8> = ten().flat_map(|stream| headers(stream, &block(&GOOD), END_STREAM)).collect();
                writer.write_all(&open).await?;
                writer.flush().await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
                let reset: Vec<u8> = ten().flat_map(|stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).collect();
                writer.write_all(&reset).await?;
                writer.flush().await?;
            }
            std::io::Result::Ok(())
        };
        let reading = async { while next_frame(&mut reader).await.is_some() {} };
        tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                _ = writing => {}
                () = reading => {}
            }
        })
        .await
        .context("the connection stays open")
    })??;
    weft_loadtests::mesh::eventually("it is counted", PATIENCE, || Ok(bench.counters()?.refused > before.refused))?;
    let seen = bench.recorder.take().len();
    ensure!(seen <= 150, "row 68, slowly: {seen} requests reached the application");
    bench.good(&bench.http2)?;
    bench.lives()
}

/// Row 77.
fn stalled_windows() -> Result<()> {
    let bench = Bench::start("stalled")?;
    let before = bench.memory()?;
    let (way, target) = (bench.http2.clone(), bench.target());
    let asked = |stream: u32| {
        let fields = [METHOD, SCHEME, (&b":path"[..], &b"/public/bytes/1048576"[..]), AUTHORITY];
        headers(stream, &block(&fields), END_STREAM)
    };
    for window in [0_u32, 1, 65_535] {
        let bytes = [opening(&[(4, window)]), (0..100).flat_map(|n| asked(2 * n + 1)).collect()].concat();
        let (way, most) = (way.clone(), std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0)));
        let reset = bench.attacker.start(move || async move {
            let (mut reader, mut writer) = tokio::io::split(way.open(target).await?);
            writer.write_all(&bytes).await?;
            writer.flush().await?;
            let mut reset = 0;
            while reset < 100 {
                let frame = next_frame(&mut reader).await.context("the connection ended")?;
                reset += u32::from(frame.kind == RST_STREAM);
            }
            // The connection lives on.
            writer.write_all(&frame(PING, 0, 0, &[1; 8])).await?;
            writer.flush().await?;
            while next_frame(&mut reader).await.context("the connection ended")?.kind != PING {}
            anyhow::Ok(reset)
        })?;
        let started = std::time::Instant::now();
        while started.elapsed() < STALL {
            let grown = bench.memory()?.saturating_sub(before);
            most.fetch_max(grown, std::sync::atomic::Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(100));
        }
        let reset = reset.join_timeout(PATIENCE)?.context("stalled streams stay")??;
        let most = most.load(std::sync::atomic::Ordering::Relaxed);
        println!("row 77, window {window}: {reset} streams reset, at most {} KiB more memory", most >> 10);
        ensure!(most < 10 << 20, "window {window}: the sidecar's memory grew by {most} bytes");
    }
    bench.good(&bench.http2)?;
    bench.lives()
}

/// Row 78.
fn too_many_streams() -> Result<()> {
    let bench = Bench::start("streams")?;
    let (way, target) = (bench.http2.clone(), bench.target());
    bench.recorder.take();
    let hang = block(&[METHOD, SCHEME, (b":path", b"/public/hang"), AUTHORITY]);
    let bytes = [opening(&[]), (0..1_000).flat_map(|n| headers(2 * n + 1, &hang, END_STREAM)).collect()].concat();
    let refused = bench.attacker.run(move || async move {
        let (mut reader, mut writer) = tokio::io::split(way.open(target).await?);
        writer.write_all(&bytes).await?;
        writer.flush().await?;
        let mut refused = 0;
        let reading = async {
            while let Some(frame) = next_frame(&mut reader).await {
                refused += u32::from(frame.kind == RST_STREAM && frame.code(0) == REFUSED_STREAM);
                if refused == 750 {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, reading).await;
        anyhow::Ok(refused)
    })??;
    let seen = bench.recorder.take().len();
    ensure!(refused == 750 && seen <= 250, "{refused} refused, {seen} reached the application");
    bench.good(&bench.http2)?;
    bench.lives()
}
