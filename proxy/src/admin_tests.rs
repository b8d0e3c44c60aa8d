//! Promises of the admin port.
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::telemetry::{AccessLogMode, DEFAULT_SERIES_BUDGET, LineSink, Party, TelemetrySettings};

const REMOTE: &str = "10.1.2.3";

fn admin(readiness: Readiness) -> (Arc<Admin>, watch::Sender<Readiness>) {
    let (lines, _guard) = LineSink::new(std::io::sink());
    let settings = TelemetrySettings {
        workload: Party::new("orders", "shop"),
        series_budget: DEFAULT_SERIES_BUDGET,
        access_log: AccessLogMode::Off,
        otlp: None,
    };
    let telemetry = Telemetry::new(settings, lines).expect("settings without a collector");
    let (sender, receiver) = watch::channel(readiness);
    let config: ConfigProvider = Box::new(|| json!({"version": 7}));
    let prober = Prober::new(Default::default(), [4240, 4243, 4291], None);
    let explain: ExplainProvider = Box::new(|asked| match asked.get("path") {
        Some(path) => Ok(json!({"path": path})),
        None => Err("give ?path=".into()),
    });
    (Admin::new(telemetry, receiver, config, explain, prober), sender)
}

fn ask(admin: &Admin, peer: &str, request: http::request::Builder) -> StatusCode {
    let request = request.body(()).expect("a well-formed request");
    admin.answer(peer.parse().expect("an address"), &request).status()
}

#[test]
fn only_metrics_and_probes_answer_another_pod() {
    let (admin, _sender) = admin(Readiness::ready());
    for (method, path, remote, local) in [
        ("GET", "/metrics", 200, 200),
        ("HEAD", "/metrics", 200, 200),
        ("GET", "/metrics?name=x", 200, 200),
        ("GET", "/ready", 200, 200),
        ("GET", "/live", 200, 200),
        ("GET", "/config", 403, 200),
        ("GET", "/explain?path=%2Fa", 403, 200),
        ("GET", "/explain", 403, 400),
        ("GET", "/refusals?last=3", 403, 200),
        ("GET", "/refusals?last=all", 403, 400),
        ("POST", "/config", 403, 405),
        ("POST", "/metrics", 405, 405),
        ("PUT", "/log-level", 404, 404),
        ("POST", "/shutdown", 404, 404),
        ("GET", "/shutdown", 404, 404),
        ("GET", "/config_dump", 404, 404),
        ("GET", "/env", 404, 404),
        ("GET", "/debug/pprof", 404, 404),
        ("GET", "/%2e/config", 404, 404),
        ("GET", "/%63onfig", 404, 404),
        ("GET", "//config", 404, 404),
        ("GET", "/config/", 404, 404),
        ("GET", "/metrics/../config", 404, 404),
        ("GET", "/CONFIG", 404, 404),
        ("GET", "http://127.0.0.1/config", 404, 404),
    ] {
        let build = || Request::builder().method(method).uri(path).header(HOST, "127.0.0.1:4291");
        assert_eq!(ask(&admin, REMOTE, build()).as_u16(), remote, "{method} {path} from another pod");
        for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(ask(&admin, peer, build()).as_u16(), local, "{method} {path} from {peer}");
        }
    }
}

#[test]
fn a_page_of_a_foreign_host_cannot_read_the_configuration_through_a_browser() {
    let (admin, _sender) = admin(Readiness::ready());
    for (host, expected) in [
        ("localhost:4291", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1", 200),
        ("[::1]:4291", 200),
        ("evil.test", 403),
        ("localhost.evil.test", 403),
        ("127.0.0.1.evil.test:4291", 403),
        ("", 403),
        ("10.0.0.1:4291", 403),
    ] {
        let request = Request::builder().uri("/config").header(HOST, host);
        assert_eq!(ask(&admin, "127.0.0.1", request).as_u16(), expected, "{host:?}");
    }
    let request = Request::builder().uri("/config");
    assert_eq!(ask(&admin, "127.0.0.1", request), StatusCode::FORBIDDEN, "HTTP/1.1 demands the field");
    let request = Request::builder().method("GET").uri("/config").header(HOST, "localhost").header(HOST, "evil.test");
    assert_eq!(ask(&admin, "127.0.0.1", request), StatusCode::FORBIDDEN, "two names are no name");
}

#[test]
fn readiness_says_what_is_missing_and_follows_it() {
    let (admin, sender) = admin(Readiness::waiting("no certificate yet: the control plane has not answered"));
    let request = || Request::builder().uri("/ready");
    assert_eq!(ask(&admin, REMOTE, request()), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        ask(&admin, REMOTE, Request::builder().uri("/live")),
        StatusCode::OK,
        "waiting is not a reason to be restarted"
    );
    sender.send_replace(Readiness::ready());
    assert_eq!(ask(&admin, REMOTE, request()), StatusCode::OK);
}

#[test]
fn query_parameters_are_decoded_once() {
    let expected = [("path", "/a b"), ("x", "%2f"), ("y", ""), ("z", "%zz\u{fffd}")];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(parameters("path=%2Fa+b&x=%252f&y&&z=%zz%ff"), expected);
}

async fn served(readiness: Readiness) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let (admin, sender) = admin(readiness);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let task = tokio::spawn(async move {
        let _sender = sender;
        serve(listener, admin).await;
    });
    (address, task)
}

/// Sends `request` and reads until the server closes.
async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_scraper_chooses_between_open_metrics_and_the_classic_text() {
    let (address, server) = served(Readiness::ready()).await;
    let get =
        |accept: &str| format!("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    let open = exchange(address, &get("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")).await;
    assert!(open.contains("content-type: application/openmetrics-text") && open.ends_with("# EOF\n"), "{open}");
    let classic = exchange(address, &get("text/plain")).await;
    assert!(classic.contains("content-type: text/plain; version=0.0.4") && !classic.contains("# EOF"), "{classic}");
    assert!(classic.contains("# TYPE weft_config_updates_total counter\n"), "{classic}");
    server.abort();
}

#[tokio::test]
async fn a_header_of_more_than_8_kib_is_refused() {
    let (address, server) = served(Readiness::ready()).await;
    let answer = exchange(address, &format!("GET /live HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(9000))).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    server.abort();
}

/// Takes the two seconds themselves: sockets have no paused clock.
#[tokio::test]
async fn a_slow_client_is_closed_by_the_header_timeout() {
    let (address, server) = served(Readiness::ready()).await;
    let (first, second) = ("GET /live HT", "GET /live HTTP/1.1\r\nhost: x\r\n\r\nGET /live HT");
    // The client never closes: that these return at all is the promise.
    let (of_first, of_second) = tokio::join!(exchange(address, first), exchange(address, second));
    assert_eq!(of_first.matches("200 OK").count(), 0, "{of_first}");
    assert_eq!(of_second.matches("200 OK").count(), 1, "{of_second}");
    server.abort();
}

#[tokio::test]
async fn beyond_the_bound_a_connection_is_closed_and_later_ones_are_served_again() {
    let (address, server) = served(Readiness::ready()).await;
    let request = "GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let from = async |last: usize| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        let last = u8::try_from(last).expect("few addresses");
        socket.bind(([127, 0, 0, last], 0).into()).expect("all of 127.0.0.0/8 is ours");
        socket.connect(address).await.expect("the server listens")
    };
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_OF_AN_ADDRESS {
        held.push(from(1).await);
    }
    assert_eq!(exchange(address, request).await, "", "one address has no more");
    let mut other = from(2).await;
    other.write_all(request.as_bytes()).await.expect("open");
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "another address is served: {answer}");

    for number in CONNECTIONS_OF_AN_ADDRESS..CONNECTIONS {
        held.push(from(3 + number / CONNECTIONS_OF_AN_ADDRESS).await);
    }
    let mut last = from(9).await;
    let _ = last.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = last.read_to_end(&mut answer).await;
    assert_eq!(answer, b"", "closed without an answer");
    drop(held);
    // The server learns of the closed connections in its own time: ask until it answers.
    while exchange(address, request).await.is_empty() {
        tokio::task::yield_now().await;
    }
    server.abort();
}
