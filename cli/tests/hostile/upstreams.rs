//! Rows 80 and 81: a server outside the mesh that abuses the sidecar of its client.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_loadtests::lab::Task;
use weft_loadtests::lab::testing::Test;
use weft_loadtests::mesh::{MeshPod, WorkloadSpec, eventually, get};

use crate::fixture::Bench;
use crate::wire::{
    self, ACK, END_STREAM, GOAWAY, HEADERS, Outcome, PATIENCE, RST_STREAM, SETTINGS, Way, block, frame, headers,
    opening,
};

pub const TESTS: &[Test] = &[
    ("a_server_that_answers_nonsense_is_answered_for_with_502", nonsense),
    ("a_server_that_ends_http2_streams_and_connections_is_answered_for_with_502_or_a_reset", http2_endings),
    ("a_call_whose_client_has_left_is_cancelled_at_the_server", cancelled),
];

pub fn rows() -> Vec<u32> {
    vec![80, 81]
}

const EVIL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 66));

/// A pod outside the mesh behind the Service `evil`.
fn evil(bench: &Bench) -> Result<MeshPod> {
    let pod = bench.mesh.pod(WorkloadSpec::new("evil-1", "evil").without_sidecar())?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: evil, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.66, selector: {app: evil}, ports: [{port: 80, targetPort: 8080, appProtocol: http}, \
                   {name: h2, port: 81, targetPort: 8080, appProtocol: kubernetes.io/h2c}]}\n";
    bench.mesh.write("evil.yaml", &service.replace("{port: 80,", "{name: web, port: 80,"))?;
    eventually("the client's sidecar knows the server", PATIENCE, || {
        let (_, config) = get(&bench.client.pod, SocketAddr::from(([127, 0, 0, 1], 4291)), "/config")?;
        Ok(config.contains("evil-1"))
    })?;
    Ok(pod)
}

/// Runs `answer` on each connection, and counts them.
fn serve<F>(
    pod: &MeshPod,
    answer: impl Fn(TcpStream) -> F + Send + 'static,
) -> Result<(Arc<AtomicUsize>, Task<std::io::Result<()>>)>
where
    F: Future<Output = std::io::Result<()>> + 'static,
{
    let listener = pod.pod.listen(8080)?;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let task = pod.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::task::spawn_local(answer(stream));
        }
    })?;
    Ok((count, task))
}

/// Reads a request's head, writes `answer`, and closes.
async fn say(mut stream: TcpStream, answer: Arc<[u8]>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    let _ = stream.read(&mut [0; 1]).await;
    Ok(())
}

fn ask(bench: &Bench) -> Result<Outcome> {
    let bytes = b"POST /x HTTP/1.1\r\nhost: evil\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi".to_vec();
    bench.client.pod.run(move || wire::http1(Way::Plain, SocketAddr::new(EVIL, 80), bytes, 1, true))?
}

fn nonsense() -> Result<()> {
    let bench = Bench::start("nonsense")?;
    let pod = evil(&bench)?;
    let many = |line: &str, count: usize| line.repeat(count);
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n";
    let rows: Vec<(&str, String, &[u16])> = vec![
        ("garbage", "\x00\x01\x02\x03 nonsense\r\n\r\n".into(), &[502]),
        ("no status", "HTTP/1.1 OK\r\n\r\n".into(), &[502]),
        ("another version", "HTTP/3.0 200 OK\r\n\r\n".into(), &[502]),
        ("nothing", String::new(), &[502]),
        ("1 MiB of fields", format!("{ok}{}\r\nok", many("x: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 32_768)), &[502]),
        ("101 fields", format!("{ok}{}\r\nok", many("x: a\r\n", 101)), &[502]),
        ("10,000 interim answers and no other", many("HTTP/1.1 102 Processing\r\n\r\n", 10_000), &[502]),
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk".into(), &[502]),
        ("a folded field", format!("{ok}x: a\r\n b\r\n\r\nok"), &[502]),
        (
            "a switch that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".into(),
            &[502],
        ),
        // The head was passed on when the body turned out to be short: the client must see that it is.
        ("a body that is cut", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok".into(), &[]),
        (
            "a chunk that is none",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n".into(),
            &[],
        ),
        ("a good answer", format!("{ok}\r\nok"), &[200]),
    ];
    for (name, answer, statuses) in rows {
        let answer: Arc<[u8]> = answer.into_bytes().into();
        let (count, task) = serve(&pod, move |stream| say(stream, Arc::clone(&answer)))?;
        let outcome = ask(&bench).with_context(|| name.to_owned())?;
        let whole = outcome.statuses == statuses && (statuses != [502] || outcome.text.contains("x-weft-error"));
        // A chunked answer that breaks off has no end that a client could take for one.
        let cut = statuses.is_empty() && !outcome.text.ends_with("\r\n0\r\n\r\n") && outcome.closed;
        ensure!(whole || cut, "{name}: {outcome:?}");
        // The request has a body and is not repeated.
        ensure!(count.load(Ordering::Relaxed) == 1, "{name}: {} connections", count.load(Ordering::Relaxed));
        task.stop();
    }
    let client = bench.client.sidecar()?;
    ensure!(
        client.try_wait().is_none() && client.count_lines(|line| line.contains("panicked")) == 0,
        "{}",
        client.stderr()
    );
    bench.good(&Way::Plain)
}

/// Waits for the first request, then writes `answer` of its stream.
async fn say2(mut stream: TcpStream, answer: fn(u32) -> Vec<u8>) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&[frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat()).await?;
    while let Some(request) = wire::next_frame(&mut stream).await {
        if request.kind == HEADERS {
            stream.write_all(&answer(request.stream)).await?;
        }
    }
    Ok(())
}

/// A name, what the server answers a stream with, and the statuses that the caller may get.
type EndingRow = (&'static str, fn(u32) -> Vec<u8>, &'static [u16]);

fn http2_endings() -> Result<()> {
    let bench = Bench::start("endings")?;
    let pod = evil(&bench)?;
    let rows: [EndingRow; 6] = [
        ("every stream is reset", |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 2]), &[502]),
        ("a GOAWAY that takes nothing", |_| frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]), &[502, 503]),
        ("a GOAWAY with an error", |_| frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]), &[502, 503]),
        (
            "100 KiB of fields",
            |stream| headers(stream, &[&[0x88][..], &block(&[(b"x", &[b'y'; 100 * 1024])])].concat(), END_STREAM),
            &[502],
        ),
        ("no frame", |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), &[502]),
        ("settings that are none", |_| frame(SETTINGS, 0, 0, &[0; 5]), &[502]),
    ];
    for (name, answer, statuses) in rows {
        let (count, task) = serve(&pod, move |stream| say2(stream, answer))?;
        let fields: [(&[u8], &[u8]); 4] =
            [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", b"evil")];
        let bytes = [opening(&[]), headers(1, &block(&fields), END_STREAM)].concat();
        let outcome =
            bench.client.pod.run(move || wire::http2(Way::Plain, SocketAddr::new(EVIL, 81), bytes, false))??;
        // A reset of the server's is passed on with its code.
        let answered = outcome.statuses.len() == 1 && statuses.contains(&outcome.statuses[0]);
        ensure!(answered || (outcome.statuses.is_empty() && outcome.reset.is_some()), "{name}: {outcome:?}");
        ensure!(count.load(Ordering::Relaxed) <= 3, "{name}: {} connections", count.load(Ordering::Relaxed));
        task.stop();
    }
    let client = bench.client.sidecar()?;
    ensure!(
        client.try_wait().is_none() && client.count_lines(|line| line.contains("panicked")) == 0,
        "{}",
        client.stderr()
    );
    bench.good(&Way::Plain)
}

fn cancelled() -> Result<()> {
    let bench = Bench::start("cancelled")?;
    let pod = evil(&bench)?;
    let ended = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&ended);
    let (count, _task) = serve(&pod, move |mut stream| {
        let told = Arc::clone(&told);
        async move {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await?;
            told.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    })?;
    bench.client.pod.run({
        let count = Arc::clone(&count);
        move || async move {
            let mut stream = TcpStream::connect(SocketAddr::new(EVIL, 80)).await?;
            stream.write_all(b"GET /x HTTP/1.1\r\nhost: evil\r\n\r\n").await?;
            let asked = async {
                while count.load(Ordering::Relaxed) == 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, asked).await.context("the server was not asked")?;
            socket2_linger(&stream)?;
            anyhow::Ok(())
        }
    })??;
    eventually("the server's connection ends", PATIENCE, || Ok(ended.load(Ordering::Relaxed) == 1))
}

/// The client leaves with a reset, as one that is killed may.
fn socket2_linger(stream: &TcpStream) -> Result<()> {
    #[expect(deprecated, reason = "a linger of nothing never blocks")]
    stream.set_linger(Some(std::time::Duration::ZERO))?;
    Ok(())
}
