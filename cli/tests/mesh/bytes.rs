//! Every byte arrives, whole and once: large bodies, half-closed streams, many connections, HTTP/2, upgrades.
use anyhow::{Context, Result, ensure};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::apps;
use weft_loadtests::lab::testing::Test;
use weft_loadtests::load::{Plan, Version};

use crate::fixture::{Pair, seen, within};

pub const TESTS: &[Test] = &[
    ("a_100_mib_body_arrives_whole_in_both_directions", large_bodies),
    ("a_half_closed_stream_of_100_mib_arrives_whole_and_is_answered", half_close),
    ("a_thousand_connections_at_once_are_served", thousand),
    ("http2_with_prior_knowledge_stays_http2_to_the_application", http2),
    ("a_websocket_upgrade_becomes_a_byte_stream_both_ways", upgrade),
    ("an_expectation_of_100_continue_is_met", expect_continue),
    ("a_cut_answer_is_not_shown_as_complete", cut_answer),
];

const LARGE: usize = 100 << 20;

fn large_bodies() -> Result<()> {
    let pair = Pair::start("large")?;
    let _app = pair.serve_http()?;
    let web = pair.web();
    let (downloaded, answer) = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(web).await?;
        stream
            .write_all(format!("GET /bytes/{LARGE} HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut download = Vec::with_capacity(LARGE + 1024);
        stream.read_to_end(&mut download).await?;
        let mut stream = TcpStream::connect(web).await?;
        let head = format!("POST /upload HTTP/1.1\r\nhost: s\r\nconnection: close\r\ncontent-length: {LARGE}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let piece = vec![7; 1 << 20];
        for _ in 0..LARGE / piece.len() {
            stream.write_all(&piece).await?;
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok((download.len() - download.windows(4).position(|w| w == b"\r\n\r\n").context("a head")? - 4, answer))
    })?;
    // A streamed answer has chunk framing too.
    ensure!(downloaded >= LARGE, "{downloaded}");
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    ensure!(seen(body)?.body_length == LARGE as u64, "{answer}");
    Ok(())
}

fn half_close() -> Result<()> {
    let pair = Pair::start("half")?;
    let listener = pair.server.pod.listen(9000)?;
    let _app = pair.server.pod.start(move || apps::tcp_digest(listener))?;
    let raw = pair.raw();
    let answer = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(raw).await?;
        let piece: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        for _ in 0..LARGE / piece.len() {
            stream.write_all(&piece).await?;
        }
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })?;
    // sha256 of the bytes 0 to 255, repeated 409600 times.
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let piece: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    (0..LARGE / piece.len()).for_each(|_| digest.update(&piece));
    let expected: String = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(answer == format!("{LARGE} {expected}\n"), "{answer}");
    Ok(())
}

fn thousand() -> Result<()> {
    let pair = Pair::start("thousand")?;
    let _app = pair.serve_http()?;
    let echo = pair.server.pod.listen(9000)?;
    let _echo = pair.server.pod.start(move || apps::tcp_echo(echo))?;
    let url = format!("http://{}/delay/200", pair.web()).parse()?;
    let report = pair.client.pod.run(move || async move {
        let mut load =
            Plan::get(url).connections(1000).requests(3000).timeout(std::time::Duration::from_secs(60)).start()?;
        load.finished().await;
        anyhow::Ok(load.stop().await)
    })??;
    ensure!(report.status(200) == 3000 && report.failed() == 0, "{report:?}");
    let raw = pair.raw();
    let echoed = within(&pair.client.pod, move || async move {
        let mut streams = Vec::new();
        for number in 0..1000_u32 {
            let mut stream = TcpStream::connect(raw).await?;
            stream.write_all(&number.to_be_bytes()).await?;
            streams.push(stream);
        }
        let mut right = 0;
        for (number, stream) in streams.iter_mut().enumerate() {
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).await?;
            right += usize::from(u32::from_be_bytes(answer) as usize == number);
        }
        Ok(right)
    })?;
    ensure!(echoed == 1000, "{echoed}");
    Ok(())
}

fn http2() -> Result<()> {
    let pair = Pair::start("h2")?;
    let _app = pair.serve_http()?;
    let url = format!("http://{}/two", pair.web()).parse()?;
    let report = pair.client.pod.run(move || async move {
        let mut load = Plan::get(url)
            .body(Method::POST, vec![1; 100_000])
            .version(Version::Http2)
            .connections(2)
            .streams(50)
            .requests(2000)
            .start()?;
        load.finished().await;
        anyhow::Ok(load.stop().await)
    })??;
    ensure!(report.status(200) == 2000 && report.failed() == 0, "{report:?}");
    let count = pair.server.metric("weft_requests_total", &["protocol=\"http2\"", "status=\"200\"", "tls=\"true\""])?;
    ensure!(count == 2000.0, "{count}");
    Ok(())
}

fn upgrade() -> Result<()> {
    let pair = Pair::start("upgrade")?;
    // A server that agrees to any upgrade, then echoes.
    let listener = pair.server.pod.listen(8080)?;
    let _app = pair.server.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let asked = String::from_utf8_lossy(&head).to_lowercase();
            if !asked.contains("upgrade: websocket") || !asked.contains("connection: upgrade") {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await?;
                continue;
            }
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
                .await?;
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await?;
            writer.shutdown().await?;
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    })?;
    let web = pair.web();
    let echoed = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(web).await?;
        stream.write_all(b"GET /chat HTTP/1.1\r\nhost: s\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        let sent = vec![0x81; 1 << 20];
        let (mut reader, mut writer) = stream.split();
        let (written, read) = tokio::join!(
            async {
                writer.write_all(&sent).await?;
                writer.shutdown().await
            },
            async {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).await.map(|_| all)
            }
        );
        written?;
        Ok(read? == sent)
    })?;
    ensure!(echoed);
    Ok(())
}

fn expect_continue() -> Result<()> {
    let pair = Pair::start("expect")?;
    let _app = pair.serve_http()?;
    let web = pair.web();
    let (interim, answer) = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(web).await?;
        let head =
            "PUT /doc HTTP/1.1\r\nhost: s\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        let mut interim = Vec::new();
        while !interim.ends_with(b"\r\n\r\n") {
            interim.push(stream.read_u8().await?);
        }
        stream.write_all(b"hello").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok((String::from_utf8(interim)?, answer))
    })?;
    ensure!(interim.starts_with("HTTP/1.1 100"), "{interim}");
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"body_length\":5"), "{answer}");
    Ok(())
}

fn cut_answer() -> Result<()> {
    let pair = Pair::start("cut")?;
    // Promises 1000 bytes, sends 10 and dies.
    let listener = pair.server.pod.listen(8080)?;
    let _app = pair.server.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let _ = stream.read(&mut [0; 4096]).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n0123456789").await?;
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    })?;
    let web = pair.web();
    let ended = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(web).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: s\r\n\r\n").await?;
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer).await;
        Ok((end.is_ok(), answer))
    })?;
    let text = String::from_utf8_lossy(&ended.1);
    let promised = text.contains("content-length: 1000");
    ensure!(promised && text.ends_with("0123456789"), "the connection must end short of what was promised: {text}");
    Ok(())
}
