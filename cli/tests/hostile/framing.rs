//! Section B: where an HTTP/1 message begins and ends, and what a connection may hold.
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Bench, Want};
use crate::recorder::Seen;
use crate::wire::{self, Way, block, headers, literal, opening};

pub const TESTS: &[Test] = &[
    ("where_a_request_begins_and_ends", framing),
    ("a_first_line_that_is_no_http_never_reaches_an_http_application", no_http),
    ("over_http2_a_port_of_http1_is_under_the_same_policy_and_grpc_timeouts_do_no_harm", other_version),
    ("a_websocket_carries_a_mebibyte_both_ways_and_closes_each_side_by_itself", websocket),
    ("what_a_caller_sends_makes_one_line_of_the_log", log_lines),
];

const BAD: Want = Want::Bad(&[400]);
const TOO_LARGE: Want = Want::Bad(&[431]);
/// Policy had let the request in when its body turned out to be none.
const ABORTED: Want = Want::Aborted(&[400, 0]);

fn get(fields: &str) -> Vec<u8> {
    format!("GET /public/x HTTP/1.1\r\nhost: server\r\n{fields}\r\n").into_bytes()
}

fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /public/x HTTP/1.1\r\nhost: server\r\n{fields}\r\n{body}").into_bytes()
}

fn chunks(body: &str) -> Vec<u8> {
    post("transfer-encoding: chunked\r\n", body)
}

fn one(seen: &[Seen]) -> bool {
    seen.len() == 1 && seen[0].complete
}

/// Row, bytes, answers that are waited for, outcome.
fn table() -> Vec<(u32, Vec<u8>, usize, Want)> {
    let mut rows: Vec<(u32, Vec<u8>, usize, Want)> = Vec::new();
    let mut bad = |row: u32, bytes: Vec<u8>| rows.push((row, bytes, 1, BAD));
    let smuggled = "0\r\n\r\nGET /admin HTTP/1.1\r\nhost: server\r\n\r\n";
    bad(32, post("content-length: 4\r\ntransfer-encoding: chunked\r\n", smuggled));
    bad(32, post("transfer-encoding: chunked\r\ncontent-length: 4\r\n", smuggled));
    for lengths in ["5\r\ncontent-length: 6", "5, 5", "5, 6"] {
        bad(33, post(&format!("content-length: {lengths}\r\n"), "hello!"));
    }
    bad(34, post("content-length: 5\r\ncontent-length: 5\r\n", "hello"));
    for length in ["+5", "-1", "0x5", "5 5", "", "18446744073709551617"] {
        bad(35, post(&format!("content-length: {length}\r\n"), "hello"));
    }
    for coding in ["xchunked", "chunked, identity", "identity", "\x0bchunked"] {
        bad(36, post(&format!("transfer-encoding: {coding}\r\n"), smuggled));
    }
    for coding in ["gzip, chunked", "identity, chunked"] {
        bad(37, post(&format!("transfer-encoding: {coding}\r\n"), smuggled));
    }
    bad(38, post("transfer-encoding : chunked\r\n", smuggled));
    let old = |fields: &str| format!("POST /public/x HTTP/1.0\r\nhost: server\r\n{fields}\r\n0\r\n\r\n").into_bytes();
    bad(39, old("transfer-encoding: chunked\r\n"));
    bad(39, old("connection: keep-alive\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n"));
    for fields in ["x: a\r\n b\r\n", "x: a\rb\r\n", "x: a\0b\r\n", ": a\r\n", "x y: a\r\n"] {
        bad(45, get(fields));
    }
    bad(46, b"GET /public/x HTTP/1.1\nhost: server\n\n".to_vec());
    bad(46, b"GET /public/x HTTP/1.1\r\nhost: server\n\r\n".to_vec());
    for line in [
        "GET /public/x HTTP/1.2",
        "GET /public/x HTTP/2.0",
        "GET /public/x HTTP/0.9",
        "GET  /public/x HTTP/1.1",
        "GET /public/x  HTTP/1.1",
    ] {
        bad(47, format!("{line}\r\nhost: server\r\n\r\n").into_bytes());
    }
    bad(54, b"GET https://server/public/x HTTP/1.1\r\nhost: server\r\n\r\n".to_vec());
    for connect in
        ["127.0.0.1:15000 HTTP/1.1", "/ HTTP/1.1", "http://x/y HTTP/1.1", "* HTTP/1.1", "127.0.0.1:15000 HTTP/1.0"]
    {
        rows.push((53, format!("CONNECT {connect}\r\nhost: server\r\n\r\n").into_bytes(), 1, Want::Bad(&[400, 405])));
    }

    for body in [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        "f0000000000000003\r\nabc",
        "11111111111111111\r\nabc",
    ] {
        rows.push((40, chunks(body), 1, ABORTED));
    }
    for body in
        ["5\nhello\n0\n\n", "5;\nhello\r\n0\r\n\r\n", "5;a\rb\r\nhello\r\n0\r\n\r\n", "5\r\nhelloworld\r\n0\r\n\r\n"]
    {
        rows.push((41, chunks(body), 1, ABORTED));
    }
    rows.push((42, chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(17 * 1024))), 1, ABORTED));
    rows.push((42, chunks(&format!("{}0\r\n\r\n", "1;aaaaaaaaaaaaaaaa\r\nx\r\n".repeat(10_000))), 1, ABORTED));
    rows.push((43, chunks("0\r\n\n"), 1, ABORTED));
    rows.push((43, chunks("5\r\nhello\r\n0\r\n"), 1, Want::Aborted(&[408])));
    rows.push((43, post("content-length: 10\r\n", "hello"), 1, Want::Aborted(&[408])));
    let inner = "GET /smuggled HTTP/1.1\r\nx: y\n";
    let first = format!("content-length: {}\r\n", inner.len());
    let both = [post(&first, inner), b"GET /public/b HTTP/1.1\r\nhost: server\r\n\r\n".to_vec()].concat();
    let exactly: fn(&[Seen]) -> bool = |seen| {
        seen.len() == 2
            && seen[0].body.starts_with(b"GET /smuggled")
            && seen[0].target() == "/public/x"
            && seen[1].target() == "/public/b"
    };
    rows.push((44, both, 2, Want::Served(exactly)));
    let trailers = "5\r\nhello\r\n0\r\nHost: evil\r\nContent-Length: 3\r\nTransfer-Encoding: x\r\nAuthorization: a\r\nCookie: b\r\nx-sum: 1\r\n\r\n";
    let fields = "te: trailers\r\ntrailer: host, content-length, transfer-encoding, authorization, cookie, x-sum\r\n\
                  transfer-encoding: chunked\r\n";
    let no_trailer: fn(&[Seen]) -> bool = |seen| {
        let body = String::from_utf8_lossy(&seen[0].body).to_ascii_lowercase();
        let forbidden = ["host:", "content-length:", "transfer-encoding:", "authorization:", "cookie:"];
        one(seen)
            && body.starts_with("hello")
            && seen[0].values("host") == ["server"]
            && seen[0].values("authorization").is_empty()
            && !forbidden.iter().any(|name| body.contains(name))
    };
    rows.push((48, post(fields, trailers), 1, Want::Served(no_trailer)));
    rows.push((49, post("expect: 100-continue\r\ncontent-length: 5\r\n", ""), 1, Want::Aborted(&[408])));
    rows.push((49, post("expect: foo\r\ncontent-length: 5\r\n", "hello"), 1, Want::Bad(&[417])));
    rows.push((49, post("expect: 100-continue\r\ncontent-length: 5\r\n", "hello"), 1, Want::Served(one)));
    let downgraded: fn(&[Seen]) -> bool =
        |seen| one(seen) && seen[0].values("upgrade").is_empty() && seen[0].values("http2-settings").is_empty();
    rows.push((
        50,
        get("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"),
        1,
        Want::Served(downgraded),
    ));
    rows.push((55, get(&"a: b\r\n".repeat(100)), 1, TOO_LARGE));
    rows.push((55, get(&format!("a: {}\r\n", "b".repeat(1000)).repeat(66)), 1, TOO_LARGE));
    rows.push((55, get(&format!("a: {}\r\n", "b".repeat(450 * 1024))), 1, TOO_LARGE));
    rows.push((
        56,
        format!("GET /public/{} HTTP/1.1\r\nhost: server\r\n\r\n", "a".repeat(70 * 1024)).into_bytes(),
        1,
        Want::Bad(&[414]),
    ));
    for field in ["traceparent", "user-agent", "connection", "grpc-status", "tracestate"] {
        rows.push((
            59,
            [&get("")[..35], b"\r\n", field.as_bytes(), b": \xff\xfe\r\n\r\n"].concat(),
            1,
            Want::Served(one),
        ));
    }
    let tracestate = (0..512).map(|n| format!("a{n}=b")).collect::<Vec<_>>().join(",");
    for (name, value) in [
        ("traceparent", "00-abc"),
        ("traceparent", "00-00000000000000000000000000000000-0000000000000000-01"),
        ("traceparent", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01"),
        ("traceparent", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", &tracestate),
        ("baggage", &"k=v,".repeat(2048)),
    ] {
        rows.push((60, get(&format!("{name}: {value}\r\n")), 1, Want::Served(one)));
    }
    rows
}

pub fn rows() -> Vec<u32> {
    // Those beside the table have tests of their own below.
    table().iter().map(|(row, ..)| *row).chain([51, 52, 57, 58, 61]).collect()
}

fn framing() -> Result<()> {
    let bench = Bench::start("framing")?;
    let before = bench.memory()?;
    for (place, way) in [("mTLS", &bench.http1), ("plaintext", &Way::Plain)] {
        for (row, bytes, answers, want) in table() {
            let name = format!("row {row} over {place}: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(140)]));
            let to_end = !matches!(want, Want::Served(_));
            bench.judge(&name, way, want, || bench.send_http1(way, bytes, answers, to_end))?;
        }
        // An answer that comes before the body was asked for is passed on, and ends the connection.
        let early =
            "POST /public/early-401 HTTP/1.1\r\nhost: server\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        let outcome = bench.send_http1(way, early.into(), 1, true)?;
        ensure!(outcome.statuses == [401] && outcome.closed, "row 49 over {place}: {outcome:?}");
    }
    let grown = bench.memory()?.saturating_sub(before);
    ensure!(grown < 10 << 20, "the sidecar's memory grew by {grown} bytes");
    Ok(())
}

/// Row 57: what is no HTTP at all is a byte stream, which nobody may send where policy speaks of HTTP.
fn no_http() -> Result<()> {
    let bench = Bench::start("nohttp")?;
    let noise: Vec<u8> = (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80).collect();
    let rows: &[&[u8]] = &[
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /public/x HTTP/1.1\r\nhost: server\r\n\r\n",
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x00\x01\x00\x02",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &noise,
        wire::PREFACE,
    ];
    for bytes in rows {
        let name = format!("row 57: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        bench.judge(&name, &Way::Plain, Want::Bad(&[0]), || bench.send_http1(&Way::Plain, bytes.to_vec(), 1, true))?;
    }
    Ok(())
}

/// Rows 51 and 58.
fn other_version() -> Result<()> {
    let bench = Bench::start("otherversion")?;
    let ask = |path: &[u8], more: Vec<u8>| {
        let fields: [(&[u8], &[u8]); 4] =
            [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"server")];
        [opening(&[]), headers(1, &[block(&fields), more].concat(), wire::END_STREAM)].concat()
    };
    for way in [&bench.http2, &Way::Plain] {
        bench.judge("row 51: denied", way, Want::Denied, || bench.send_http2(way, ask(b"/admin", vec![]), false))?;
        bench.judge("row 51: served", way, Want::Served(one), || {
            bench.send_http2(way, ask(b"/public/x", vec![]), false)
        })?;
        for timeout in ["99999999H", "-1S", "1X", "111111111111111111111111111111S", ""] {
            let fields = [literal(b"content-type", b"application/grpc"), literal(b"grpc-timeout", timeout.as_bytes())];
            let bytes = ask(b"/public/x", fields.concat());
            bench
                .judge(&format!("row 58: {timeout}"), way, Want::Served(one), || bench.send_http2(way, bytes, false))?;
        }
    }
    Ok(())
}

/// Row 52.
fn websocket() -> Result<()> {
    let bench = Bench::start("websocket")?;
    let target = bench.target();
    let sent: Vec<u8> = (0..1_u32 << 20).map(|n| (n % 251) as u8).collect();
    for way in [bench.http1.clone(), Way::Plain] {
        bench.recorder.take();
        let bytes = sent.clone();
        let echoed = bench.attacker.run(move || async move {
            let mut stream = way.open(target).await?;
            stream.write_all(&get("connection: upgrade\r\nupgrade: websocket\r\n")).await?;
            let mut head = [0; 16];
            stream.read_exact(&mut head).await?;
            ensure!(&head[..12] == b"HTTP/1.1 101", "{:?}", String::from_utf8_lossy(&head));
            let (mut reader, mut writer) = tokio::io::split(stream);
            let writing = async {
                writer.write_all(&bytes).await?;
                writer.shutdown().await
            };
            let mut read = Vec::new();
            let (wrote, read_all) = tokio::join!(writing, reader.read_to_end(&mut read));
            wrote?;
            let _ = read_all;
            anyhow::Ok(read)
        })??;
        ensure!(echoed.ends_with(&sent), "{} of {} bytes came back", echoed.len(), sent.len());
    }
    // An upgrade that the server does not take ends its connection: what follows it was never looked at.
    let outcome = bench.send_http1(&Way::Plain, b"GET /admin HTTP/1.1\r\nhost: server\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nGET /public/x HTTP/1.1\nhost: server\n\n".to_vec(), 1, true)?;
    ensure!(outcome.statuses == [403] && outcome.closed, "{outcome:?}");
    bench.lives()
}

/// Row 61.
fn log_lines() -> Result<()> {
    let bench = Bench::start("loglines")?;
    let long = format!("/public/{}", "a".repeat(8 * 1024));
    let requests = [
        get("user-agent: a\" level=error\r\n"),
        format!("GET {long} HTTP/1.1\r\nhost: server\r\n\r\n").into_bytes(),
        b"GET /public/a%22%20level=error%0a{} HTTP/1.1\r\nhost: server\r\n\r\n".to_vec(),
        b"GET /nowhere%1b[2J HTTP/1.1\r\nhost: server\r\n\r\n".to_vec(),
    ];
    for bytes in requests {
        let outcome = bench.send_http1(&Way::Plain, bytes, 1, false)?;
        ensure!(matches!(outcome.statuses[..], [200 | 403]), "{outcome:?}");
    }
    bench
        .judge("row 61", &Way::Plain, BAD, || bench.send_http1(&Way::Plain, get("user-agent: \x1b[2J\r\n"), 1, true))?;
    let sidecar = bench.server.sidecar()?;
    sidecar.wait_for_line(|line| line.contains("/nowhere"), Duration::from_secs(10))?;
    for line in sidecar.stdout().lines() {
        ensure!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "no line of JSON: {line}");
        ensure!(line.len() < 4_000 && !line.contains('\x1b'), "not cut or not escaped: {line}");
    }
    Ok(())
}
