//! An application that records every request it reads, as it reads it: HTTP/1 by a parser of its own that is as strict as
//! the standard, HTTP/2 by hyper.
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::lab::{Pod, Task};

/// A request as the application read it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Request line and fields, or what HTTP/2 has in their place; one a line.
    pub head: String,
    pub body: Vec<u8>,
    /// Whether the body came to its end.
    pub complete: bool,
}

impl Seen {
    /// The request target.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The values of a field, by its name in lower case.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }
}

/// What was recorded, and the task that records.
pub struct Recorder {
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: Task<std::io::Result<()>>,
}

impl Recorder {
    /// Serves on `port` of the pod.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let listener = pod.listen(port)?;
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let records = Arc::clone(&seen);
        let task = pod.start(move || async move {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                let records = Arc::clone(&records);
                tokio::task::spawn_local(async move {
                    let _ = serve(stream, records).await;
                });
            }
        })?;
        Ok(Self { seen, _task: task })
    }

    /// What was recorded since it was last taken.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn record(records: &Mutex<Vec<Seen>>, seen: Seen) -> usize {
    let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
    records.push(seen);
    records.len() - 1
}

fn update(records: &Mutex<Vec<Seen>>, head: &str, body: &[u8], complete: bool) {
    let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
    // The list may have been taken meanwhile.
    if let Some(seen) = records.iter_mut().rev().find(|seen| seen.head == head) {
        seen.body = body.to_vec();
        seen.complete = complete;
    }
}

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn serve(mut stream: TcpStream, records: Arc<Mutex<Vec<Seen>>>) -> Result<()> {
    let mut first = [0; 24];
    let peeked = stream.peek(&mut first).await?;
    if peeked > 3 && H2_PREFACE.starts_with(&first[..peeked]) {
        let service = service_fn(move |request| http2(request, Arc::clone(&records)));
        let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.max_concurrent_streams(2_000).max_header_list_size(1 << 20);
        return Ok(server.serve_connection(TokioIo::new(stream), service).await?);
    }
    let mut buffer = BytesMut::new();
    while http1(&mut stream, &mut buffer, &records).await? {}
    Ok(())
}

/// What a target asks the application for: `/…/bytes/N` or `/…/status/N`.
fn asked(target: &str, what: &str) -> Option<u64> {
    let (_, number) = target.split_once(what)?;
    number.split(['?', '/']).next()?.parse().ok()
}

async fn http2(
    request: Request<Incoming>,
    records: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let target = request.uri().path_and_query().map_or("", |path| path.as_str()).to_owned();
    let mut head = format!(
        "{} {target} HTTP/2\n:authority: {}\n",
        request.method(),
        request.uri().authority().map_or("", |a| a.as_str())
    );
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    record(&records, Seen { head: head.clone(), ..Seen::default() });
    if target.contains("/hang") {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    let mut body = request.into_body();
    let mut read = Vec::new();
    let complete = loop {
        match body.frame().await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => read.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
        }
    };
    update(&records, &head, &read, complete);
    let size = asked(&target, "/bytes/").unwrap_or(2);
    let mut response = Response::new(Full::new(Bytes::from(vec![b'k'; size as usize])));
    if let Some(status) = asked(&target, "/status/").and_then(|status| StatusCode::from_u16(status as u16).ok()) {
        *response.status_mut() = status;
    }
    Ok(response)
}

/// One request; whether another may follow.
async fn http1(stream: &mut TcpStream, buffer: &mut BytesMut, records: &Mutex<Vec<Seen>>) -> Result<bool> {
    let Some(end) = until(stream, buffer, b"\r\n\r\n").await? else {
        if !buffer.is_empty() {
            // Bytes that are no request are as bad as a request.
            record(records, Seen { head: String::from_utf8_lossy(buffer).into_owned(), ..Seen::default() });
        }
        return Ok(false);
    };
    let head = buffer.split_to(end + 4);
    let head = String::from_utf8_lossy(&head).replace("\r\n", "\n");
    let seen = Seen { head: head.trim_end().to_owned(), ..Seen::default() };
    let (length, coding) = (seen.values("content-length").join(","), seen.values("transfer-encoding").join(","));
    let target = seen.target().to_owned();
    let head = seen.head.clone();
    record(records, seen.clone());
    if target.contains("/early-401") {
        stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
        return Ok(false);
    }
    if target.contains("/hang") {
        let _ = stream.read_buf(buffer).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    if !seen.values("upgrade").is_empty() {
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await?;
        return echo(stream, buffer).await;
    }
    let body = match (length.parse::<usize>(), coding.as_str()) {
        (Ok(length), "") => sized(stream, buffer, length).await?,
        (Err(_), "chunked") => chunked(stream, buffer).await?,
        _ if length.is_empty() && coding.is_empty() => Some(Vec::new()),
        _ => anyhow::bail!("a framing that the application cannot read: {head}"),
    };
    let complete = body.is_some();
    update(records, &head, &body.unwrap_or_default(), complete);
    if !complete {
        return Ok(false);
    }
    let size = asked(&target, "/bytes/").unwrap_or(2);
    let status = asked(&target, "/status/").unwrap_or(200);
    stream.write_all(format!("HTTP/1.1 {status} Answer\r\ncontent-length: {size}\r\n\r\n").as_bytes()).await?;
    if !head.starts_with("HEAD ") {
        stream.write_all(&vec![b'k'; size as usize]).await?;
    }
    Ok(true)
}

async fn until(stream: &mut TcpStream, buffer: &mut BytesMut, what: &[u8]) -> Result<Option<usize>> {
    loop {
        if let Some(at) = buffer.windows(what.len()).position(|window| window == what) {
            return Ok(Some(at));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn sized(stream: &mut TcpStream, buffer: &mut BytesMut, length: usize) -> Result<Option<Vec<u8>>> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(buffer.split_to(length).to_vec()))
}

async fn chunked(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = until(stream, buffer, b"\r\n").await? else { return Ok(None) };
        let line = buffer.split_to(end + 2);
        let size = usize::from_str_radix(std::str::from_utf8(&line[..end])?, 16)?;
        if size == 0 {
            loop {
                let Some(end) = until(stream, buffer, b"\r\n").await? else { return Ok(None) };
                let line = buffer.split_to(end + 2);
                if end == 0 {
                    return Ok(Some(body));
                }
                body.extend_from_slice(b"trailer ");
                body.extend_from_slice(&line);
            }
        }
        let Some(data) = sized(stream, buffer, size + 2).await? else { return Ok(None) };
        body.extend_from_slice(&data[..size]);
    }
}

async fn echo(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<bool> {
    loop {
        stream.write_all(&buffer.split()).await?;
        if stream.read_buf(buffer).await? == 0 {
            stream.shutdown().await?;
            return Ok(false);
        }
    }
}
