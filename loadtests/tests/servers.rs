//! The servers and the load generator keep their words. Needs no lab: all of it is on the loopback interface.

use anyhow::{Context, Result};
use http::{HeaderName, HeaderValue, Method, Uri};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::apps;
use weft_loadtests::load::{Pace, Plan, PlanError, Version};

fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Runs `test` on a runtime of its own.
fn run(test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.context("it hangs")? })
}

/// Starts the HTTP server; the result makes URLs of it.
fn serve() -> Result<impl Fn(&str) -> Uri> {
    let (listener, address) = listen()?;
    tokio::spawn(apps::http(listener, "test"));
    Ok(move |path: &str| format!("http://{address}{path}").parse().expect("it is a URL"))
}

async fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(bytes).await?;
    connection.shutdown().await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[test]
fn the_http_server_tells_what_it_received() -> Result<()> {
    run(async {
        let (listener, address) = listen()?;
        tokio::spawn(apps::http(listener, "inventory"));
        let request = "POST /a/b?c=d HTTP/1.1\r\nHost: shop\r\nX-Two: 1\r\nX-Two: 2\r\nConnection: close\r\n\
                       Content-Length: 5\r\n\r\nhello";
        let answer = String::from_utf8(exchange(address, request.as_bytes()).await?)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let received: apps::Request = serde_json::from_str(body)?;
        assert_eq!((received.server.as_str(), received.method.as_str()), ("inventory", "POST"));
        assert_eq!((received.path.as_str(), received.host.as_str()), ("/a/b?c=d", "shop"));
        assert_eq!((received.body_length, received.version.as_str()), (5, "HTTP/1.1"));
        let two: Vec<_> = received.headers.iter().filter(|(name, _)| name == "x-two").map(|(_, value)| value).collect();
        assert_eq!(two, ["1", "2"]);
        assert!(received.peer.starts_with("127.0.0.1:"));
        Ok(())
    })
}

#[test]
fn byte_stream_servers_echo_greet_and_see_the_end() -> Result<()> {
    run(async {
        let (listener, address) = listen()?;
        tokio::spawn(apps::tcp_echo(listener));
        let long = vec![7; 1_000_000];
        let (mut reader, mut writer) = TcpStream::connect(address).await?.into_split();
        let sent = long.clone();
        tokio::spawn(async move { writer.write_all(&sent).await });
        let mut back = vec![0; long.len()];
        reader.read_exact(&mut back).await?;
        assert!(back == long);

        let (listener, address) = listen()?;
        tokio::spawn(async { apps::tcp_greeter(listener, b"220 ready\r\n").await });
        let mut greeting = [0; 11];
        TcpStream::connect(address).await?.read_exact(&mut greeting).await?;
        assert_eq!(&greeting, b"220 ready\r\n");

        let (listener, address) = listen()?;
        tokio::spawn(apps::tcp_digest(listener));
        let answer = exchange(address, b"abc").await?;
        // The digest of "abc" in FIPS 180-4, appendix B.1.
        let wanted = b"3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
        assert_eq!(answer, wanted);
        Ok(())
    })
}

#[test]
fn load_counts_every_answer_by_its_status() -> Result<()> {
    for version in [Version::Http1, Version::Http1Close, Version::Http2] {
        run(async {
            let url = serve()?;
            let wait = Duration::from_secs(50);
            let plan = |path| Plan::get(url(path)).version(version).connections(3).streams(4).requests(200);
            for (path, status, bytes) in [("/status/503", 503, None), ("/bytes/70000", 200, Some(200 * 70_000))] {
                let report = plan(path).run(wait).await?;
                assert_eq!(report.by_status, BTreeMap::from([(status, 200)]), "{version:?} {path}: {report}");
                assert_eq!((report.latency.count(), report.failed()), (200, 0));
                assert!(bytes.is_none_or(|bytes| report.bytes == bytes));
            }
            let posted =
                plan("/").body(Method::POST, "x").header(HeaderName::from_static("x-a"), HeaderValue::from_static("b"));
            assert_eq!(posted.run(wait).await?.status(200), 200);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn open_load_keeps_its_rate_and_counts_waiting_as_latency() -> Result<()> {
    run(async {
        let url = serve()?;
        let pace = Pace::Open { per_second: 200.0 };
        let report = Plan::get(url("/")).pace(pace).connections(4).requests(60).run(Duration::from_secs(50)).await?;
        assert_eq!(report.status(200), 60);
        // The last is due after 59 intervals of 5 ms.
        assert!(report.elapsed >= Duration::from_millis(295), "{report}");
        // One connection and answers that take 20 ms each cannot keep the rate: the last waits for those before it.
        let slow = Plan::get(url("/delay/20")).pace(pace).requests(10).run(Duration::from_secs(50)).await?;
        assert!(slow.latency.max() >= Duration::from_millis(10 * 20 - 9 * 5), "{slow}");
        Ok(())
    })
}

#[test]
fn failures_are_counted_by_their_text_and_the_load_goes_on() -> Result<()> {
    run(async {
        let (listener, address) = listen()?;
        drop(listener);
        let url: Uri = format!("http://{address}/").parse()?;
        let report = Plan::get(url).requests(3).run(Duration::from_secs(50)).await?;
        assert_eq!((report.answered(), report.failed(), report.errors.len()), (0, 3, 1), "{report}");
        assert!(report.to_string().contains("refused"), "{report}");

        let url = serve()?;
        let late = Plan::get(url("/delay/60000")).timeout(Duration::from_millis(10)).requests(2);
        assert_eq!(late.run(Duration::from_secs(50)).await?.errors, BTreeMap::from([("no answer in time".into(), 2)]));
        let closing = Plan::get(url("/close")).requests(5).run(Duration::from_secs(50)).await?;
        assert_eq!((closing.status(200), closing.failed()), (5, 0), "{closing}");
        Ok(())
    })
}

#[test]
fn stopped_load_reports_and_sends_no_more() -> Result<()> {
    run(async {
        let url = serve()?;
        let load = Plan::get(url("/")).connections(2).start()?;
        while load.report().answered() < 10 {
            tokio::task::yield_now().await;
        }
        let report = load.stop().await;
        assert!(report.status(200) >= 10 && report.failed() == 0, "{report}");
        Ok(())
    })
}

#[test]
fn a_plan_that_makes_no_sense_is_refused() -> Result<()> {
    run(async {
        for url in ["https://a/", "/path", "a:80"] {
            let refused = Plan::get(url.parse()?).start().err();
            assert!(matches!(refused, Some(PlanError::Url(_))), "{url}: {refused:?}");
        }
        for per_second in [0.0, -1.0, f64::NAN] {
            let refused = Plan::get("http://a/".parse()?).pace(Pace::Open { per_second }).start().err();
            assert_eq!(refused, Some(PlanError::Rate), "{per_second}");
        }
        Ok(())
    })
}
