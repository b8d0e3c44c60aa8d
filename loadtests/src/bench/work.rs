//! The clients. One thread makes all load of a measurement, with as little work of its own as can be, so that what is
//! measured is what stands between it and the server.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::row::Work;
use super::server::{ANSWER, WISH, WISH_ONE, WISH_STREAM};
use crate::load::Histogram;

/// A client whose request fails waits this long: what is away shall not be hammered.
const REST: Duration = Duration::from_millis(20);
const REQUEST: &[u8] =
    b"GET /items/42?colour=blue HTTP/1.1\r\nhost: server.shop.svc\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
const LAST_REQUEST: &[u8] =
    b"GET /items/42?colour=blue HTTP/1.1\r\nhost: server.shop.svc\r\nuser-agent: bench\r\naccept: */*\r\nconnection: close\r\n\r\n";

/// What was done so far; read while the work goes on.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Requests or exchanges with a whole answer; of a stream, bytes.
    done: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    most: u64,
    latency: Mutex<Histogram>,
    fault: Mutex<Option<String>>,
}

impl Meter {
    pub(crate) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { most, ..Self::default() })
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Latencies since the last call.
    pub(crate) fn take_latency(&self) -> Histogram {
        std::mem::take(&mut self.latency.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.done() >= self.most
    }

    /// Counts one exchange that was due at `due`.
    async fn count(&self, due: Instant, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                self.latency.lock().unwrap_or_else(PoisonError::into_inner).record(due.elapsed());
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Does `work` with the server at `address` until the meter says that it is over.
pub(crate) async fn run(work: Work, address: SocketAddr, meter: Arc<Meter>) {
    let mut clients = JoinSet::new();
    match work {
        Work::Http1 { connections } => {
            for _ in 0..connections {
                clients.spawn_local(http1(address, Arc::clone(&meter)));
            }
        }
        Work::Http1Paced { per_second, connections } => {
            let (due, wanted) = mpsc::unbounded_channel();
            pace(per_second, due, Arc::clone(&meter));
            let wanted = Rc::new(tokio::sync::Mutex::new(wanted));
            for _ in 0..connections {
                clients.spawn_local(http1_paced(address, Rc::clone(&wanted), Arc::clone(&meter)));
            }
        }
        Work::Http1New { at_once } => {
            for _ in 0..at_once {
                clients.spawn_local(again(Arc::clone(&meter), move || http1_new(address)));
            }
        }
        Work::TcpNew { at_once } => {
            for _ in 0..at_once {
                clients.spawn_local(again(Arc::clone(&meter), move || tcp_new(address)));
            }
        }
        Work::TcpBulk => drop(clients.spawn_local(tcp_bulk(address, meter))),
        Work::Http2 { connections, streams } => {
            for _ in 0..connections {
                clients.spawn_local(http2(address, streams, Arc::clone(&meter)));
            }
        }
        Work::IdleConnections { connections } => return idle_connections(address, connections, &meter).await,
        Work::Idle => {}
    }
    while clients.join_next().await.is_some() {}
}

/// Repeats `exchange` until it is over.
async fn again<F: Future<Output = io::Result<()>>>(meter: Arc<Meter>, exchange: impl Fn() -> F) {
    while !meter.is_over() {
        let due = Instant::now();
        let outcome = exchange().await;
        meter.count(due, outcome).await;
    }
}

/// A connection that is opened again when it fails.
struct Http1 {
    address: SocketAddr,
    open: Option<TcpStream>,
    buffer: BytesMut,
}

impl Http1 {
    fn new(address: SocketAddr) -> Self {
        Self { address, open: None, buffer: BytesMut::with_capacity(8192) }
    }

    async fn exchange(&mut self) -> io::Result<()> {
        let mut stream = match self.open.take() {
            Some(stream) => stream,
            None => connect(self.address).await?,
        };
        stream.write_all(REQUEST).await?;
        read_answer(&mut stream, &mut self.buffer).await?;
        self.open = Some(stream);
        Ok(())
    }
}

async fn http1(address: SocketAddr, meter: Arc<Meter>) {
    let mut client = Http1::new(address);
    while !meter.is_over() {
        let due = Instant::now();
        let outcome = client.exchange().await;
        meter.count(due, outcome).await;
    }
}

type Wanted = Rc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Instant>>>;

async fn http1_paced(address: SocketAddr, wanted: Wanted, meter: Arc<Meter>) {
    let mut client = Http1::new(address);
    loop {
        let Some(due) = wanted.lock().await.recv().await else { return };
        let outcome = client.exchange().await;
        meter.count(due, outcome).await;
    }
}

/// Says when a request is due, by a thread of its own: a runtime's timer is a millisecond coarse.
fn pace(per_second: u32, due: mpsc::UnboundedSender<Instant>, meter: Arc<Meter>) {
    let interval = Duration::from_secs(1) / per_second;
    thread::spawn(move || {
        let mut next = Instant::now();
        while !meter.is_over() && due.send(next).is_ok() {
            next += interval;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
}

async fn http1_new(address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(address).await?;
    stream.write_all(LAST_REQUEST).await?;
    let mut buffer = BytesMut::with_capacity(2048);
    read_answer(&mut stream, &mut buffer).await?;
    // The server's side ends first: so the waiting (RFC 9293 section 3.6) is not for a port of the client.
    match stream.read(&mut [0; 1]).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("bytes came after the last answer")),
    }
}

/// Reads one answer with status 200 and a length; nothing may follow it.
async fn read_answer(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<()> {
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        read_some(stream, buffer).await?;
    };
    if !buffer.starts_with(b"HTTP/1.1 200 ") {
        let line = buffer[..].split(|byte| *byte == b'\r').next().unwrap_or_default();
        return Err(io::Error::other(format!("the answer was {}", String::from_utf8_lossy(line))));
    }
    let length = content_length(&buffer[..head]).ok_or_else(|| io::Error::other("the answer has no length"))?;
    while buffer.len() < head + length {
        read_some(stream, buffer).await?;
    }
    buffer.advance(head + length);
    match buffer.is_empty() {
        true => Ok(()),
        false => Err(io::Error::other("more came than the answer")),
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))?;
    std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()
}

async fn read_some(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<()> {
    buffer.reserve(4096);
    match stream.read_buf(buffer).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the answer did")),
        _ => Ok(()),
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn tcp_new(address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(address).await?;
    stream.write_all(&[WISH_ONE; WISH]).await?;
    let mut buffer = [0; 2 * ANSWER];
    let mut length = 0;
    loop {
        match stream.read(&mut buffer[length..]).await? {
            0 if length == ANSWER => return Ok(()),
            0 => return Err(io::Error::other(format!("{length} bytes came instead of {ANSWER}"))),
            more => length += more,
        }
    }
}

async fn tcp_bulk(address: SocketAddr, meter: Arc<Meter>) {
    let stream = async {
        let mut stream = connect(address).await?;
        stream.write_all(&[WISH_STREAM; WISH]).await?;
        let mut buffer = vec![0; 256 << 10];
        while !meter.is_over() {
            match stream.read(&mut buffer).await? {
                0 => return Err(io::Error::other("the stream ended")),
                count => meter.done.fetch_add(count as u64, Ordering::Relaxed),
            };
        }
        io::Result::Ok(())
    };
    if let Err(error) = stream.await {
        meter.count(Instant::now(), Err(error)).await;
    }
}

async fn http2(address: SocketAddr, streams: usize, meter: Arc<Meter>) {
    let connected = async {
        let stream = TokioIo::new(connect(address).await?);
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), stream).await.map_err(io::Error::other)
    };
    let (sender, connection) = match connected.await {
        Ok(connected) => connected,
        Err(error) => return meter.count(Instant::now(), Err(error)).await,
    };
    let driver = tokio::task::spawn_local(connection);
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        let (sender, meter) = (sender.clone(), Arc::clone(&meter));
        clients.spawn_local(again(meter, move || ask(sender.clone())));
    }
    while clients.join_next().await.is_some() {}
    driver.abort();
}

async fn ask(mut sender: http2::SendRequest<Empty<Bytes>>) -> io::Result<()> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::from_static("http://server.shop.svc/items/42?colour=blue");
    *request.version_mut() = http::Version::HTTP_2;
    sender.ready().await.map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if response.status() != 200 {
        return Err(io::Error::other(format!("the answer was {}", response.status())));
    }
    let (mut body, mut length) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        length += frame.map_err(io::Error::other)?.data_ref().map_or(0, Bytes::len);
    }
    match length {
        ANSWER => Ok(()),
        _ => Err(io::Error::other(format!("{length} bytes came instead of {ANSWER}"))),
    }
}

/// Opens connections, a few at a time, makes one request on each, and holds them until it is over.
async fn idle_connections(address: SocketAddr, connections: usize, meter: &Arc<Meter>) {
    const AT_ONCE: usize = 16;
    let next = Rc::new(Cell::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (next, meter) = (Rc::clone(&next), Arc::clone(meter));
        clients.spawn_local(async move {
            let mut held = Vec::new();
            while next.get() < connections && !meter.is_over() {
                next.set(next.get() + 1);
                let mut client = Http1::new(address);
                let due = Instant::now();
                let outcome = client.exchange().await;
                meter.count(due, outcome).await;
                held.push(client.open);
            }
            held
        });
    }
    let held = clients.join_all().await;
    while !meter.is_over() {
        tokio::time::sleep(REST).await;
    }
    drop(held);
}
