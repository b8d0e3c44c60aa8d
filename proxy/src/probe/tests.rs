//! Promises of the checks, against real servers on loopback.
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use weft_api::probe::HttpGet;

use super::*;

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OWN_PORTS: [u16; 3] = [4240, 4243, 4291];

async fn check(action: Action) -> Result<(), Failure> {
    let probe = Probe { action, timeout_seconds: Some(20) };
    let prober = Prober::new([("app/liveness".to_owned(), probe)].into(), OWN_PORTS, None);
    let agent = HeaderValue::from_static("kube-probe/1.36");
    prober.perform(prober.find("app/liveness").expect("declared"), ADDRESS, Some(&agent)).await
}

fn http_get(port: u16, path: &str, tls: bool) -> Action {
    Action::HttpGet(HttpGet { port, path: path.to_owned(), tls, headers: vec![("Host".to_owned(), "shop".to_owned())] })
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((ADDRESS, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

/// Says by its status what it was asked.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().expect("a text"));
    let host = request.uri().authority().map_or_else(|| header("host"), |authority| authority.as_str());
    let expected = host == "shop" && header("user-agent") == "kube-probe/1.36" && header("accept") == "*/*";
    let response = Response::builder();
    let response = match request.uri().path() {
        "/ok" if expected => response.status(204),
        "/moved" => response.status(302).header("location", "ok"),
        "/elsewhere" => response.status(307).header("location", "http://192.0.2.1/"),
        "/loop" => response.status(301).header("location", "/loop"),
        "/to-sidecar" => response.status(302).header("location", "http://127.0.0.1:4291/ready"),
        "/not-modified" => response.status(304),
        "/teapot" => response.status(418),
        _ => response.status(500),
    };
    Ok(response.body(Full::default()).expect("a response"))
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, http2: bool) {
    let io = TokioIo::new(stream);
    let _ = if http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service_fn(answer)).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(io, service_fn(answer)).await
    };
}

async fn http_server() -> u16 {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, false));
        }
    });
    port
}

#[tokio::test]
async fn an_http_check_succeeds_by_the_kubelets_rules() {
    let port = http_server().await;
    for (path, status) in [
        ("/ok", None),
        ("/moved", None),
        ("/elsewhere", None),
        ("/not-modified", None),
        ("/teapot", Some(418)),
        ("/broken", Some(500)),
    ] {
        let result = check(http_get(port, path, false)).await;
        let seen = result.as_ref().err().map(|failure| failure.status.expect("a status").as_u16());
        assert_eq!(seen, status, "{path}: {result:?}");
    }
    for (path, reason) in [("/loop", "redirects"), ("/to-sidecar", "the sidecar's own")] {
        let failure = check(http_get(port, path, false)).await.expect_err(path);
        assert!(failure.reason.contains(reason) && failure.status.is_none(), "{failure:?}");
    }
}

#[tokio::test]
async fn the_certificate_of_the_application_is_not_judged() {
    weft_certs::install_crypto_provider();
    let certified = rcgen::generate_simple_self_signed(["elsewhere.test".to_owned()]).expect("a certificate");
    for (versions, alpn) in [
        (&[&rustls::version::TLS13][..], "h2"),
        (&[&rustls::version::TLS13], "http/1.1"),
        (&[&rustls::version::TLS12], "http/1.1"),
        (&[&rustls::version::TLS12], ""),
    ] {
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let mut config = rustls::ServerConfig::builder_with_protocol_versions(versions)
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .expect("a configuration");
        config.alpn_protocols =
            Some(alpn).filter(|alpn| !alpn.is_empty()).map(|alpn| alpn.into()).into_iter().collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (listener, port) = listener().await;
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            serve(acceptor.accept(stream).await.expect("a handshake"), alpn == "h2").await;
        });
        assert_eq!(check(http_get(port, "/ok", true)).await, Ok(()), "{versions:?} {alpn}");
    }
}

#[tokio::test]
async fn a_tcp_check_needs_a_connection_and_no_more() {
    let (listener, port) = listener().await;
    assert_eq!(check(Action::TcpSocket { port }).await, Ok(()));
    drop(listener);
    assert!(check(Action::TcpSocket { port }).await.expect_err("refused").reason.contains("cannot connect"));
    for port in OWN_PORTS {
        assert!(check(Action::TcpSocket { port }).await.expect_err("refused").reason.contains("sidecar's own"));
    }
}

#[tokio::test]
async fn a_grpc_check_asks_for_the_service_and_believes_only_serving() {
    for (service, healthy, reason) in [
        ("shop.Orders", &b"\x08\x01"[..], None),
        ("shop.Orders", b"\x08\x02", Some("not SERVING")),
        ("shop.Other", b"", Some("gRPC status 5")),
    ] {
        let (listener, port) = listener().await;
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = http_body_util::BodyExt::collect(request.into_body()).await.expect("a body").to_bytes();
                let known = asked.ends_with(b"shop.Orders");
                let mut trailers = ::http::HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(if known { "0" } else { "5" }));
                let length = u8::try_from(healthy.len()).expect("small");
                let message = [&[0, 0, 0, 0, length][..], healthy].concat();
                let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from(message))), Ok(Frame::trailers(trailers))];
                Ok::<_, Infallible>(Response::new(StreamBody::new(tokio_stream::iter(frames))))
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        let result = check(Action::Grpc { port, service: service.to_owned() }).await;
        match (result, reason) {
            (Ok(()), None) => {}
            (Err(failure), Some(reason)) => assert!(failure.reason.contains(reason), "{failure:?}"),
            (result, reason) => panic!("{service}: {result:?}, not {reason:?}"),
        }
    }
    let port = http_server().await;
    let failure = check(Action::Grpc { port, service: String::new() }).await.expect_err("no gRPC");
    assert!(failure.reason.contains("does not speak gRPC"), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_answer_in_time_fails() {
    let (_listener, port) = listener().await;
    let failure = check(http_get(port, "/ok", false)).await.expect_err("no answer");
    assert_eq!(failure.reason, "no answer within 20 s");
}

#[test]
fn only_what_was_declared_can_be_asked_for() {
    let probe = Probe { action: Action::TcpSocket { port: 80 }, timeout_seconds: None };
    let prober = Prober::new([("app/pre-stop/5e3f".to_owned(), probe)].into(), OWN_PORTS, None);
    assert!(prober.find("app/pre-stop/5e3f").expect("declared").is_handler());
    for key in
        ["", "app", "app/pre-stop", "app/pre-stop/", "app/pre-stop/5e3f/", "app/pre-stop/5e3f?x", "APP/pre-stop/5e3f"]
    {
        assert!(prober.find(key).is_none(), "{key}");
    }
}
