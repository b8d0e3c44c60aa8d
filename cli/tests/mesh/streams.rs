//! Byte streams that follow one another on kept mTLS connections: none is lost, none reaches another, each is judged.
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_loadtests::apps;
use weft_loadtests::lab::{Frames, PodSpec, testing::Test};
use weft_loadtests::mesh::{MeshOptions, WorkloadSpec, eventually};

use crate::fixture::{PATIENCE, Pair, WEFT, seen, within};
use crate::identity::{attacker, authority, issue};

pub const TESTS: &[Test] = &[
    ("many_short_streams_share_few_handshakes_and_each_is_judged_and_counted", short),
    ("bytes_of_one_stream_never_reach_another_under_a_hundred_at_once", nonces),
    ("a_server_that_ends_its_side_first_is_heard_and_hears_the_rest", server_ends_first),
    ("a_reset_goes_through_each_way_and_leaves_nothing_for_the_next_stream", resets),
    ("a_server_that_speaks_first_is_heard_on_kept_connections_too", server_first),
    ("a_client_that_was_silent_may_speak_http_or_bytes", silent),
    ("a_policy_change_refuses_the_next_stream_of_a_kept_connection_and_allows_it_again", policy),
    ("streams_of_one_connection_are_limited_one_by_one", limited),
    ("certificates_are_renewed_under_short_streams_without_a_failed_one", renewal),
    ("a_sidecar_that_stops_loses_no_stream", drain),
    ("hostile_frames_of_a_peer_with_a_good_certificate_reach_no_application", hostile),
];

/// TCP connections that the wire has seen to port 9000 of `server`, by their source.
fn connections(frames: &Frames, server: IpAddr) -> usize {
    let to_server = |segment: weft_loadtests::lab::Segment<'_>| {
        (segment.destination == SocketAddr::new(server, 9000)).then_some(segment.source)
    };
    frames.iter().filter_map(|frame| frame.segment()).filter_map(to_server).collect::<BTreeSet<_>>().len()
}

/// Connects, sends, ends its side, and reads to the end.
async fn ask(target: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(target).await?;
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let (sent, read) = tokio::join!(
        async {
            writer.write_all(question).await?;
            writer.shutdown().await
        },
        reader.read_to_end(&mut answer)
    );
    sent.and(read).map(|_| answer)
}

/// An application that treats each connection with `serve`, in turn.
async fn one_by_one<F>(listener: StdListener, mut serve: impl FnMut(TcpStream) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        serve(listener.accept().await?.0).await?;
    }
}

fn echo(pair: &Pair) -> Result<weft_loadtests::lab::Task<std::io::Result<()>>> {
    let listener = pair.server.pod.listen(9000)?;
    Ok(pair.server.pod.start(move || apps::tcp_echo(listener))?)
}

fn server_ip(pair: &Pair) -> IpAddr {
    pair.server.pod.address(9000).ip()
}

fn short() -> Result<()> {
    const STREAMS: u32 = 200;
    let pair = Pair::start("short")?;
    let _app = echo(&pair)?;
    let capture = pair.mesh.lab.capture()?;
    let raw = pair.raw();
    within(&pair.client.pod, move || async move {
        for number in 0..STREAMS {
            let answer = ask(raw, &number.to_be_bytes()).await?;
            ensure!(answer == number.to_be_bytes(), "{number}: {answer:?}");
        }
        Ok(())
    })?;
    let used = connections(&capture.stop()?, server_ip(&pair));
    // Each of two workers keeps its own, and a stream may begin before the end of the one before has come back.
    ensure!((1..=12).contains(&used), "{used} connections for {STREAMS} streams");
    for pod in [&pair.client, &pair.server] {
        let counted = pod.metric("weft_tcp_connections_total", &["tls=\"true\""])?;
        ensure!(counted == f64::from(STREAMS), "{counted} in {}", pod.metrics()?);
        let bytes = pod.metric("weft_tcp_bytes_total", &["tls=\"true\"", "flow=\"received\""])?;
        ensure!(bytes == f64::from(STREAMS * 4), "{bytes}");
    }
    let judged = pair.server.metric("weft_authorization_decisions_total", &["decision=\"allow\""])?;
    ensure!(judged == f64::from(STREAMS), "{judged}");
    eventually("all are closed", PATIENCE, || Ok(pair.server.metric("weft_tcp_open_connections", &[])? == 0.0))
}

fn nonces() -> Result<()> {
    let pair = Pair::start("nonces")?;
    let _app = echo(&pair)?;
    let raw = pair.raw();
    within(&pair.client.pod, move || async move {
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..100_usize {
            clients.spawn(async move {
                for round in 0..10_usize {
                    // From one byte to beyond a frame; every byte says whose it is.
                    let length = 1 + (client * 7919 + round * 104_729) % 90_000;
                    let nonce = format!("<{client}/{round}>");
                    let question: Vec<u8> = nonce.bytes().cycle().take(length).collect();
                    // Some break off instead of listening to the end.
                    if (client + round) % 7 == 0 {
                        let mut stream = TcpStream::connect(raw).await?;
                        stream.write_all(&question).await?;
                        stream.set_zero_linger()?;
                        continue;
                    }
                    let answer = ask(raw, &question).await.with_context(|| nonce.clone())?;
                    ensure!(answer == question, "{nonce}: {} of {length} bytes", answer.len());
                }
                Ok(())
            });
        }
        while let Some(client) = clients.join_next().await {
            client??;
        }
        Ok(())
    })
}

fn server_ends_first() -> Result<()> {
    let pair = Pair::start("serverends")?;
    let listener = pair.server.pod.listen(9000)?;
    let (report, heard) = std::sync::mpsc::channel();
    let _app = pair.server.pod.start(move || {
        one_by_one(listener, move |mut stream| {
            let report = report.clone();
            async move {
                let mut first = [0; 5];
                stream.read_exact(&mut first).await?;
                stream.write_all(b"enough").await?;
                stream.shutdown().await?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await?;
                Ok(report.send(rest.len())?)
            }
        })
    })?;
    let raw = pair.raw();
    within(&pair.client.pod, move || async move {
        for _ in 0..3 {
            let mut stream = TcpStream::connect(raw).await?;
            stream.write_all(b"hello").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            ensure!(answer == b"enough", "{answer:?}");
            // The server has ended its side, and reads on.
            stream.write_all(&vec![7; 1 << 20]).await?;
            stream.shutdown().await?;
        }
        Ok(())
    })?;
    for _ in 0..3 {
        let heard = heard.recv_timeout(PATIENCE)?;
        ensure!(heard == 1 << 20, "{heard}");
    }
    Ok(())
}

fn resets() -> Result<()> {
    let pair = Pair::start("resets")?;
    let listener = pair.server.pod.listen(9000)?;
    let (report, ends) = std::sync::mpsc::channel();
    // What it is told to do is in the first byte.
    let _app = pair.server.pod.start(move || {
        one_by_one(listener, move |mut stream| {
            let report = report.clone();
            async move {
                let command = stream.read_u8().await?;
                match command {
                    b'r' => {
                        stream.write_all(b"some of it").await?;
                        let mut more = [0; 4];
                        stream.read_exact(&mut more).await?;
                        stream.set_zero_linger()?;
                    }
                    b'l' => {
                        stream.write_all(b"listening").await?;
                        let end = stream.read_to_end(&mut Vec::new()).await;
                        report.send(end.map_err(|error| error.kind()))?;
                    }
                    _ => {
                        let mut rest = vec![command];
                        stream.read_to_end(&mut rest).await?;
                        stream.write_all(&rest).await?;
                    }
                }
                Ok(())
            }
        })
    })?;
    let raw = pair.raw();
    let capture = pair.mesh.lab.capture()?;
    for _ in 0..3 {
        within(&pair.client.pod, move || async move {
            // The server breaks off.
            let mut stream = TcpStream::connect(raw).await?;
            stream.write_all(b"r").await?;
            stream.read_exact(&mut [0; 10]).await?;
            stream.write_all(b"more").await?;
            let end = stream.read_to_end(&mut Vec::new()).await;
            ensure!(end.is_err(), "a reset, not an end: {end:?}");
            // The client breaks off.
            let mut stream = TcpStream::connect(raw).await?;
            stream.write_all(b"l").await?;
            stream.read_exact(&mut [0; 9]).await?;
            stream.set_zero_linger()?;
            drop(stream);
            let answer = ask(raw, b"clean").await?;
            ensure!(answer == b"clean", "{answer:?}");
            Ok(())
        })?;
        let end = ends.recv_timeout(PATIENCE)?;
        ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "the application sees the client's reset: {end:?}");
    }
    let used = connections(&capture.stop()?, server_ip(&pair));
    ensure!(used <= 6, "connections survive the resets of their streams: {used} for 9 streams");
    Ok(())
}

fn server_first() -> Result<()> {
    let pair = Pair::start("serverfirst")?;
    let listener = pair.server.pod.listen(9000)?;
    let _app = pair.server.pod.start(move || apps::tcp_greeter(listener, b"220 ready\r\n"))?;
    let capture = pair.mesh.lab.capture()?;
    let raw = pair.raw();
    within(&pair.client.pod, move || async move {
        for round in 0..40_u8 {
            let mut stream = TcpStream::connect(raw).await?;
            let mut greeting = [0; 11];
            stream.read_exact(&mut greeting).await?;
            ensure!(&greeting == b"220 ready\r\n", "{greeting:?}");
            stream.write_all(&[round; 3]).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            ensure!(answer == [round; 3], "{answer:?}");
        }
        Ok(())
    })?;
    let used = connections(&capture.stop()?, server_ip(&pair));
    ensure!((1..=8).contains(&used), "{used} connections for 40 streams");
    Ok(())
}

fn silent() -> Result<()> {
    let pair = Pair::start("silent")?;
    let http = pair.server.pod.listen(9000)?;
    let _app = pair.server.pod.start(move || async move { apps::http(http, "silent").await })?;
    let raw = pair.raw();
    // Silent for longer than any client that speaks first: this is what is tested, not a way to wait for something.
    let silence = Duration::from_millis(30);
    let body = within(&pair.client.pod, move || async move {
        let mut bodies = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(raw).await?;
            tokio::time::sleep(silence).await;
            stream.write_all(b"GET /late HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            bodies.push(body.to_owned());
        }
        Ok(bodies.pop().unwrap_or_default())
    })?;
    ensure!(seen(&body)?.path == "/late", "{body}");
    for pod in [&pair.client, &pair.server] {
        ensure!(pod.metric("weft_requests_total", &["status=\"200\""])? == 3.0);
        ensure!(pod.metric("weft_tcp_connections_total", &[])? == 0.0, "a stream that was taken back counts as none");
    }
    // Bytes after a silence.
    let listener = pair.server.pod.listen(9001)?;
    let _echo = pair.server.pod.start(move || apps::tcp_echo(listener))?;
    let target = pair.server.pod.address(9001);
    let echoed = within(&pair.client.pod, move || async move {
        let mut stream = TcpStream::connect(target).await?;
        tokio::time::sleep(silence).await;
        stream.write_all(b"\x00late").await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    })?;
    ensure!(echoed == b"\x00late", "{echoed:?}");
    Ok(())
}

const CLIENT_ON_9000: &str = "
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: raw, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  action: Allow
  rules: [{from: [{serviceAccounts: [client]}], to: [{ports: [9000]}]}]
";

fn policy() -> Result<()> {
    let pair = Pair::start("streampolicy")?;
    let _app = echo(&pair)?;
    let raw = pair.raw();
    let works = || pair.client.pod.run(move || async move { ask(raw, b"ping").await });
    ensure!(works()?? == b"ping");
    for _ in 0..2 {
        pair.mesh.write("policy.yaml", &CLIENT_ON_9000.replace("[client]", "[somebody-else]"))?;
        pair.settle()?;
        let refused = works()?;
        ensure!(refused.is_err(), "reset: {refused:?}");
        pair.mesh.write("policy.yaml", CLIENT_ON_9000)?;
        pair.settle()?;
        ensure!(works()?? == b"ping");
    }
    let denied =
        pair.server.metric("weft_authorization_decisions_total", &["decision=\"deny\"", "policy=\"shop/raw\""])?;
    ensure!(denied == 2.0, "{denied} in {}", pair.server.metrics()?);
    Ok(())
}

fn limited() -> Result<()> {
    let pair = Pair::start("streamlimit")?;
    let _app = echo(&pair)?;
    let limit = "
apiVersion: policy.weft.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: fair, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  limits: [{name: per-client, requests: 5, window: 1h, burst: 5, per: Client, scope: Pod}]
";
    pair.mesh.write("limit.yaml", limit)?;
    pair.settle()?;
    let capture = pair.mesh.lab.capture()?;
    let raw = pair.raw();
    let outcomes: Vec<bool> = pair.client.pod.run(move || async move {
        let mut outcomes = Vec::new();
        for _ in 0..8 {
            outcomes.push(ask(raw, b"ping").await.is_ok_and(|answer| answer == b"ping"));
        }
        outcomes
    })?;
    ensure!(outcomes == [true, true, true, true, true, false, false, false], "{outcomes:?}");
    let limited = pair.server.metric("weft_rate_limit_decisions_total", &["decision=\"limit\""])?;
    ensure!(limited == 3.0, "{limited}");
    let used = connections(&capture.stop()?, server_ip(&pair));
    ensure!(used <= 6, "a refused stream does not cost its connection: {used} for 8 streams");
    Ok(())
}

fn renewal() -> Result<()> {
    let mut options = MeshOptions::new(WEFT);
    options.certificate_lifetime = "6s".to_owned();
    let pair = Pair::with("streamrenewal", options)?;
    let _app = echo(&pair)?;
    let capture = pair.mesh.lab.capture()?;
    let raw = pair.raw();
    let streams = within(&pair.client.pod, move || async move {
        let end = tokio::time::Instant::now() + Duration::from_secs(15);
        let mut streams = 0;
        while tokio::time::Instant::now() < end {
            let answer = ask(raw, b"still there").await.with_context(|| format!("stream {streams}"))?;
            ensure!(answer == b"still there", "stream {streams}: {answer:?}");
            streams += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(streams)
    })?;
    let used = connections(&capture.stop()?, server_ip(&pair));
    // Certificates of 6 s are replaced after 3 to 4 s, and connections retired with them.
    ensure!((3..=60).contains(&used) && streams > 300, "{used} connections for {streams} streams");
    Ok(())
}

fn drain() -> Result<()> {
    let mut options = MeshOptions::new(WEFT);
    options.proxy_arguments.extend(["--lame-duck".into(), "8s".into()]);
    let pair = Pair::with("streamdrain", options)?;
    let other = pair.mesh.pod(WorkloadSpec::new("server-2", "server"))?;
    pair.settle()?;
    let _app = echo(&pair)?;
    let listener = other.pod.listen(9000)?;
    let _other_app = other.pod.start(move || apps::tcp_echo(listener))?;
    let raw = pair.raw();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let streams = pair.client.pod.start(move || async move {
        let mut streams = 0;
        while !told.load(Ordering::SeqCst) {
            let answer = ask(raw, b"ping").await.with_context(|| format!("stream {streams}"))?;
            ensure!(answer == b"ping", "stream {streams}: {answer:?}");
            streams += 1;
        }
        anyhow::Ok(streams)
    })?;
    // One that is open stays so until it ends.
    let (told, stopping) = (Arc::clone(&stop), pair.server.pod.address(9000));
    let long = pair.client.pod.start(move || async move {
        let mut stream = TcpStream::connect(stopping).await?;
        stream.write_all(b"long").await?;
        stream.read_exact(&mut [0; 4]).await?;
        while !told.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stream.write_all(b"end").await?;
        stream.shutdown().await?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        anyhow::Ok(rest)
    })?;
    let opened = || pair.client.metric("weft_tcp_connections_total", &[]);
    eventually("both servers are called", Duration::from_secs(60), || {
        Ok(pair.server.metric("weft_tcp_connections_total", &[])? > 20.0
            && other.metric("weft_tcp_connections_total", &[])? > 20.0)
    })?;
    let sidecar = pair.server.sidecar()?;
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_for_line(|line| line.contains("draining"), PATIENCE)?;
    let before = opened()?;
    eventually("streams go on", PATIENCE, || Ok(opened()? > before + 100.0))?;
    stop.store(true, Ordering::SeqCst);
    ensure!(streams.join()?? > 40);
    ensure!(long.join()?? == b"end");
    ensure!(sidecar.wait(PATIENCE)?.success());
    Ok(())
}

fn hostile() -> Result<()> {
    let pair = Pair::start("hostileframes")?;
    let listener = pair.server.pod.listen(9000)?;
    let bytes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&bytes);
    let _app = pair.server.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut piece = [0; 1024];
                while let Ok(read @ 1..) = stream.read(&mut piece).await {
                    counted.fetch_add(read, Ordering::SeqCst);
                    let _ = stream.write_all(&piece[..read]).await;
                }
            });
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    })?;
    let stranger = pair.mesh.lab.pod(PodSpec::new("stranger"))?;
    let target = pair.server.pod.address(9000);
    let open = [1, 0, 0, 4, 1, 0, 0x23, 0x28];
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("bytes without frames", b"GET / HTTP/1.1\r\nhost: s\r\n\r\n".to_vec()),
        ("data before a stream", vec![2, 0, 0, 4, 1, 2, 3, 4]),
        ("another port", vec![1, 0, 0, 4, 1, 0, 0x1f, 0x90, 2, 0, 0, 1, 7]),
        ("another version", vec![1, 0, 0, 4, 2, 0, 0x23, 0x28, 2, 0, 0, 1, 7]),
        ("unknown flags", vec![1, 0, 0, 4, 1, 0xff, 0x23, 0x28, 2, 0, 0, 1, 7]),
        ("a stream within a stream", [open, open].concat()),
        ("an unknown type", [&open[..], &[77, 0, 0, 0]].concat()),
        ("an oversized frame", [&open[..], &[2, 0xff, 0xff, 0xff]].concat()),
        ("an empty frame", [&open[..], &[2, 0, 0, 0]].concat()),
        ("data after the end", [&open[..], &[3, 0, 0, 0, 2, 0, 0, 1, 7]].concat()),
    ];
    let expected = rows.len() as f64;
    let config = || -> Result<rustls::ClientConfig> {
        let good = issue(&authority(&pair.mesh)?, "spiffe://cluster.local/ns/shop/sa/client", SystemTime::now())?;
        let mut config = attacker(Some(good))?;
        config.alpn_protocols = vec![b"weft/tcp".to_vec()];
        Ok(config)
    };
    let speak = |config: rustls::ClientConfig, text: Vec<u8>, wanted: usize| {
        stranger.run(move || async move {
            let stream = TcpStream::connect(target).await?;
            let name = rustls::pki_types::ServerName::try_from("server.invalid")?;
            let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            stream.write_all(&text).await?;
            let mut answer = vec![0; wanted];
            let end = match wanted {
                0 => stream.read_to_end(&mut answer).await.map(drop),
                _ => stream.read_exact(&mut answer).await.map(drop),
            };
            anyhow::Ok((end, answer))
        })
    };
    for (what, text) in rows {
        let (end, answer) = speak(config()?, text, 0)??;
        ensure!(end.is_err() && !answer.contains(&7), "{what}: the connection is reset: {end:?} {answer:?}");
    }
    let label = ["reason=\"bad_frame\""];
    eventually("each is counted", PATIENCE, || {
        Ok(pair.server.metric("weft_connections_refused_total", &label)? == expected)
    })?;
    ensure!(bytes.load(Ordering::SeqCst) == 0, "the application saw a byte");
    // The same peer is served when it keeps to the protocol.
    let text = [&open[..], &[2, 0, 0, 2, b'o', b'k']].concat();
    let (end, answer) = speak(config()?, text, 6)??;
    ensure!(end.is_ok() && answer == [2, 0, 0, 2, b'o', b'k'], "{end:?} {answer:?}");
    Ok(())
}
