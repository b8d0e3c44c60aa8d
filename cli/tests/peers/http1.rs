//! HTTP/1 as a byte-level client sees it: pipelining, server-sent events, answers that need no reading ahead.
use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::answers;
use crate::fixture::{Case, Pair, port, within};

pub const CASES: &[Case] = &[
    Case::new("pipelined_requests_are_answered_in_their_order", &[], pipelining),
    Case::new("each_server_sent_event_arrives_before_the_next_is_made", &[], events),
    Case::new("what_cannot_have_a_body_has_none_and_the_connection_goes_on", &[], empty_answers),
];

fn pipelining() -> Result<()> {
    let pair = Pair::start("pipelining")?;
    let _app = pair.tell(8080)?;
    let target = pair.address(port::SEEN);
    let answers = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(target).await?;
        // The first takes longest: it must not be overtaken. Bodies lie between the requests.
        let mut all = String::new();
        for number in 0..20 {
            let delay = (20 - number) * 5;
            all += &format!("POST /delay/{delay} HTTP/1.1\r\nhost: s\r\ncontent-length: 4\r\n\r\nGET ");
        }
        all += "GET /last HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n";
        stream.write_all(all.as_bytes()).await?;
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await?;
        Ok(answers)
    })?;
    let paths: Vec<&str> =
        answers.split("\"path\":\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)).collect();
    let mut expected: Vec<String> = (0..20).map(|number| format!("/delay/{}", (20 - number) * 5)).collect();
    expected.push("/last".to_owned());
    ensure!(paths == expected, "{paths:?}");
    ensure!(answers.matches("\"body_length\":4").count() == 20, "{answers}");
    Ok(())
}

/// Reads from `stream` until what came contains `text`.
async fn until(stream: &mut TcpStream, text: &str) -> Result<String> {
    let mut seen = Vec::new();
    loop {
        let length = stream.read_buf(&mut seen).await?;
        let so_far = String::from_utf8_lossy(&seen);
        if so_far.contains(text) {
            return Ok(so_far.into_owned());
        }
        ensure!(length > 0, "it ended without {text:?}: {so_far}");
    }
}

fn events() -> Result<()> {
    let pair = Pair::start("events")?;
    let listener = pair.server.pod.listen(9000)?;
    let _answers = pair.server.pod.start(move || answers::serve(listener))?;
    let target = pair.address(port::OTHER);
    within(&pair.client.pod, move || async move {
        let mut events = TcpStream::connect(target).await?;
        events.write_all(b"GET /events HTTP/1.1\r\nhost: s\r\naccept: text/event-stream\r\n\r\n").await?;
        let head = until(&mut events, "data: 1\n\n").await?;
        ensure!(head.contains("content-type: text/event-stream") && !head.contains("content-length"), "{head}");
        // The server makes the next event only when it is asked to, after the last has arrived.
        let mut control = TcpStream::connect(target).await?;
        for number in 2..50 {
            control.write_all(b"POST /next HTTP/1.1\r\nhost: s\r\ncontent-length: 0\r\n\r\n").await?;
            until(&mut control, "\r\n\r\n").await?;
            until(&mut events, &format!("data: {number}\n\n")).await?;
        }
        Ok(())
    })?;
    // The same over HTTP/2.
    within(&pair.client.pod, move || async move {
        let (client, connection) = h2::client::handshake(TcpStream::connect(target).await?).await?;
        tokio::task::spawn_local(async move { drop(connection.await) });
        let mut client = client.ready().await?;
        let request = |path: &str| http::Request::get(format!("http://s{path}")).body(());
        let (events, _) = client.send_request(request("/events")?, true)?;
        let mut events = events.await?.into_body();
        for number in 49..80 {
            let event = events.data().await.ok_or_else(|| anyhow::anyhow!("the stream ended"))??;
            events.flow_control().release_capacity(event.len())?;
            ensure!(event == format!("data: {number}\n\n"), "{event:?}");
            client = client.ready().await?;
            let (next, _) = client.send_request(request("/next")?, true)?;
            ensure!(next.await?.status() == 200);
        }
        Ok(())
    })?;
    pair.carried_requests("http1", 48.0)?;
    pair.carried_requests("http2", 31.0)
}

/// HEAD, 204 and 304: whatever their fields say of a body, the next answer follows at once.
fn empty_answers() -> Result<()> {
    let pair = Pair::start("empty")?;
    let listener = pair.server.pod.listen(8080)?;
    let _app = pair.server.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                while let Ok(head) = until(&mut stream, "\r\n\r\n").await {
                    let answer = match head.split(' ').nth(1).unwrap_or_default() {
                        "/204" => "HTTP/1.1 204 Nothing\r\n\r\n",
                        "/304" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\netag: \"a\"\r\n\r\n",
                        "/head" => "HTTP/1.1 200 Fine\r\ncontent-length: 7\r\n\r\n",
                        "/chunked-head" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                        _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nthere",
                    };
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    })?;
    let target = pair.address(port::SEEN);
    let heads = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(target).await?;
        let mut heads = Vec::new();
        for (method, path) in [("GET", "/204"), ("GET", "/304"), ("HEAD", "/head"), ("HEAD", "/chunked-head")] {
            stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: s\r\n\r\n").as_bytes()).await?;
            let head = until(&mut stream, "\r\n\r\n").await?;
            ensure!(head.ends_with("\r\n\r\n"), "{path} has a body: {head}");
            heads.push(head);
            stream.write_all(b"GET /next HTTP/1.1\r\nhost: s\r\n\r\n").await?;
            let next = until(&mut stream, "there").await?;
            ensure!(next.starts_with("HTTP/1.1 200 OK") && next.ends_with("\r\n\r\nthere"), "after {path}: {next}");
        }
        Ok(heads)
    })?;
    ensure!(heads[0].starts_with("HTTP/1.1 204 Nothing\r\n"), "{heads:?}");
    ensure!(heads[1].starts_with("HTTP/1.1 304 ") && heads[1].contains("etag: \"a\""), "{heads:?}");
    ensure!(heads[2].starts_with("HTTP/1.1 200 Fine\r\n") && heads[2].contains("content-length: 7"), "{heads:?}");
    ensure!(!heads[3].contains("content-length"), "{heads:?}");
    Ok(())
}
