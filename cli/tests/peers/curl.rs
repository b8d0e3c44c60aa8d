//! curl, over HTTP/1.0, HTTP/1.1 and HTTP/2 with prior knowledge, by IPv4 and IPv6.
use anyhow::{Context, Result, ensure};
use weft_loadtests::apps;

use crate::answers;
use crate::fixture::{Case, HOST, PATIENCE, Pair, curl, find, folder, port, program};

pub const CASES: &[Case] = &[
    Case::new("curl_gets_the_right_framing_whatever_http_it_speaks", &["curl"], framing),
    Case::new("curl_keeps_its_connections_as_each_http_says", &["curl"], keep_alive),
    Case::new("curl_uploads_in_chunks_and_sized_bodies_arrive_as_they_were_framed", &["curl"], uploads),
    Case::new("curl_is_told_to_continue_only_by_the_application", &["curl"], expectations),
    Case::new("curl_sends_and_gets_trailers", &["curl"], trailers),
    Case::new("an_http_1_0_server_is_spoken_to_and_answers_in_1_1", &["curl", "python3"], old_server),
];

/// What curl is asked, what its output must contain, and what not.
struct Row {
    arguments: &'static [&'static str],
    path: &'static str,
    contains: &'static [&'static str],
    lacks: &'static [&'static str],
}

const NO_BODY: &[&str] = &["transfer-encoding", "\"path\""];

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { arguments: &["--http1.0"], path: "/old", contains: &["HTTP/1.0 200 OK", "\"version\":\"HTTP/1.1\""], lacks: &["transfer-encoding"] },
    Row { arguments: &["--http1.0"], path: "/bytes/5", contains: &["HTTP/1.0 200 OK", "\n00000"], lacks: &["transfer-encoding", "keep-alive"] },
    Row { arguments: &["--http1.1", "--raw"], path: "/bytes/5", contains: &["HTTP/1.1 200 OK", "transfer-encoding: chunked", "\n5\r\n00000\r\n0\r\n"], lacks: &["content-length"] },
    Row { arguments: &["--http1.1", "--head"], path: "/head", contains: &["HTTP/1.1 200 OK", "content-length: ", "application/json"], lacks: NO_BODY },
    Row { arguments: &["--http1.0", "--head"], path: "/head", contains: &["HTTP/1.0 200 OK", "content-length: "], lacks: NO_BODY },
    Row { arguments: &["--http1.1"], path: "/status/204", contains: &["HTTP/1.1 204 No Content"], lacks: NO_BODY },
    Row { arguments: &["--http1.1"], path: "/status/304", contains: &["HTTP/1.1 304 Not Modified"], lacks: NO_BODY },
    Row { arguments: &["--http1.1"], path: "/status/418", contains: &["HTTP/1.1 418 ", "\"path\":\"/status/418\""], lacks: &[] },
    Row { arguments: &["--http2-prior-knowledge"], path: "/two", contains: &["HTTP/2 200", "\"version\":\"HTTP/2.0\""], lacks: &["connection"] },
    Row { arguments: &["--http2-prior-knowledge", "--head"], path: "/head", contains: &["HTTP/2 200", "content-length: "], lacks: NO_BODY },
    Row { arguments: &["--http2-prior-knowledge"], path: "/status/204", contains: &["HTTP/2 204"], lacks: NO_BODY },
    Row { arguments: &["--http2-prior-knowledge"], path: "/status/304", contains: &["HTTP/2 304"], lacks: NO_BODY },
    Row { arguments: &["--http1.1", "-X", "OPTIONS"], path: "/any", contains: &["\"method\":\"OPTIONS\""], lacks: &[] },
    Row { arguments: &["--http2"], path: "/upgrade-to-h2c", contains: &["HTTP/1.1 200"], lacks: &["HTTP/1.1 101", "\"upgrade\"", "http2-settings"] },
    Row { arguments: &["--http1.1", "--request-target", "*", "-X", "OPTIONS"], path: "/", contains: &["HTTP/1.1 "], lacks: &["HTTP/1.1 502"] },
];

fn framing() -> Result<()> {
    let pair = Pair::start("curl-framing")?;
    let _app = pair.tell(8080)?;
    for family in ["-4", "-6"] {
        for row in ROWS {
            // A port that is declared to be HTTP of one version takes the other too.
            for port in [port::SEEN, port::HTTP1, port::HTTP2] {
                let url = format!("http://{HOST}:{port}{}", row.path);
                let answer = curl(&pair.client.pod, &[row.arguments, &["--include", family, &url]].concat())?;
                let context = || format!("{:?} {url}: {answer}", row.arguments);
                for part in row.contains {
                    ensure!(answer.contains(part), "no {part:?} in {}", context());
                }
                for part in row.lacks {
                    ensure!(!answer.contains(part), "{part:?} in {}", context());
                }
            }
        }
    }
    pair.carried_requests("http1", 60.0)?;
    pair.carried_requests("http2", 24.0)
}

fn keep_alive() -> Result<()> {
    let pair = Pair::start("curl-keep")?;
    let _app = pair.tell(8080)?;
    let url = format!("http://{HOST}/[1-3]");
    // Not HTTP/2: Debian 12's curl cannot use such a connection twice with every server.
    let rows: [(&[&str], &str); 4] = [
        (&["--http1.1"], "1 0 0 "),
        (&["--http1.1", "-H", "connection: close"], "1 1 1 "),
        (&["--http1.0"], "1 1 1 "),
        (&["--http1.0", "-H", "connection: keep-alive"], "1 0 0 "),
    ];
    for (arguments, connections) in rows {
        let count = ["-4", "--write-out", "%{num_connects} ", "--output", "/dev/null", &url];
        let answer = curl(&pair.client.pod, &[arguments, &count].concat())?;
        ensure!(answer == connections, "{arguments:?}: {answer}");
    }
    Ok(())
}

fn uploads() -> Result<()> {
    let pair = Pair::start("curl-up")?;
    let _app = pair.tell(8080)?;
    let file = pair.client.pod.directory().join("upload");
    std::fs::write(&file, vec![b'x'; 3_000_000])?;
    let file = format!("@{}", file.display());
    let url = format!("http://{HOST}/upload");
    let rows: [(&[&str], &str); 4] = [
        (&["--http1.1"], "[\"content-length\",\"3000000\"]"),
        (&["--http1.1", "-H", "transfer-encoding: chunked"], "[\"transfer-encoding\",\"chunked\"]"),
        (&["--http1.0"], "[\"content-length\",\"3000000\"]"),
        (&["--http2-prior-knowledge"], "[\"content-length\",\"3000000\"]"),
    ];
    for (arguments, header) in rows {
        let answer = curl(&pair.client.pod, &[arguments, &["--data-binary", &file, &url]].concat())?;
        let seen: apps::Request = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        ensure!(seen.body_length == 3_000_000 && answer.contains(header), "{arguments:?}: {answer}");
    }
    Ok(())
}

/// curl holds its body back for as long as it likes: what it sends shows who told it to go on.
fn expectations() -> Result<()> {
    let pair = Pair::start("curl-expect")?;
    let _app = pair.tell(8080)?;
    let listener = pair.server.pod.listen(9000)?;
    let _answers = pair.server.pod.start(move || answers::serve(listener))?;
    let expect = |url: String| -> Result<String> {
        let patient = ["--silent", "--verbose", "--http1.1", "--max-time", "15", "--expect100-timeout", "60"];
        let body = ["-H", "expect: 100-continue", "--data-binary", "0123456789", &url];
        let process = pair.client.pod.spawn(program("curl")?.args(patient).args(body))?;
        ensure!(process.wait(PATIENCE)?.success(), "{}{}", process.stdout(), process.stderr());
        Ok(process.stdout() + &process.stderr())
    };
    let answer = expect(format!("http://{HOST}/wanted"))?;
    ensure!(answer.contains("< HTTP/1.1 100") && answer.contains("\"body_length\":10"), "{answer}");
    let answer = expect(format!("http://{HOST}:{}/refuse", port::OTHER))?;
    ensure!(answer.contains("< HTTP/1.1 401") && answer.contains("not you"), "{answer}");
    ensure!(!answer.contains("< HTTP/1.1 100"), "the application did not ask for the body: {answer}");
    Ok(())
}

fn trailers() -> Result<()> {
    let pair = Pair::start("curl-trailers")?;
    let listener = pair.server.pod.listen(9000)?;
    let _answers = pair.server.pod.start(move || answers::serve(listener))?;
    let url = format!("http://{HOST}:{}/trailers", port::OTHER);
    let one = ["--http1.1", "--raw", "--include", "-H", "te: trailers", "-H", "connection: te", "-d", "12345", &url];
    let answer = curl(&pair.client.pod, &one)?;
    ensure!(answer.contains("5 bytes") && answer.ends_with("\r\n0\r\nx-seen: none\r\n\r\n"), "{answer:?}");
    let answer = curl(&pair.client.pod, &["--http1.1", "--raw", "--include", "-d", "12345", &url])?;
    ensure!(answer.ends_with("\r\n0\r\n\r\n"), "who did not ask for trailers gets none: {answer:?}");
    let answer = curl(&pair.client.pod, &["--http2-prior-knowledge", "--include", "-d", "12345", &url])?;
    ensure!(answer.contains("5 bytes") && answer.contains("x-seen: none"), "{answer:?}");
    Ok(())
}

/// Python's server speaks HTTP/1.0 and ends its answers by closing.
fn old_server() -> Result<()> {
    let pair = Pair::start("curl-old")?;
    let place = folder(&pair.server.pod)?;
    std::fs::write(format!("{place}/page"), "an old page\n")?;
    let python = find("python3").context("it was there a moment ago")?;
    let server = weft_loadtests::lab::Program::new(python).args(["-m", "http.server", "8080", "--directory", &place]);
    let url = format!("http://{HOST}/page");
    let _server = pair.serve(server, || curl(&pair.client.pod, &["-4", "--fail", &url]).map(drop))?;
    let answer = curl(&pair.client.pod, &["-4", "--http1.1", "--include", &url])?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("an old page\n"), "{answer}");
    // The listing of a folder has a length, what is not found has none in HTTP/1.0 of this server.
    let answer = curl(&pair.client.pod, &["-4", "--http1.1", "--include", &format!("http://{HOST}/none")])?;
    ensure!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    pair.carried_requests("http1", 3.0)
}
