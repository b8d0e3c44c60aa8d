//! How many allocations an HTTP/1.1 request takes. They are counted, of a worker and its connections in this process over
//! real sockets, because nobody sees them grow; times are left to the benchmark.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::watch;
use weft_api::policy::PolicySet;
use weft_api::resource::{DefaultPolicy, NamespacedName};
use weft_api::workload::{Endpoint, Inbound, ProtocolHint, Service, ServicePort, Traffic, WorkloadConfig};
use weft_certs::{CertificateAuthority, PrivateKey, SpiffeId, Svid, TrustDomain};

use super::{Closing, Mirrors, Phase, Worker, inbound, outbound};
use crate::stage::accept::{LocalAddresses, OriginalDst};
use crate::stage::balance::Balancer;
use crate::stage::connect::{HttpVersion, Identity, Upstreams};
use crate::stage::detect::ServerFirst;
use crate::stage::policy::Caller;
use crate::stage::rate_limit::Limiter;
use crate::stage::route::MeshView;
use crate::stage::tls::{ALPN_ALL, Lifetime};
use crate::stage::transport::Transport;
use crate::telemetry::{
    AccessLogMode, DEFAULT_SERIES_BUDGET, Direction, Ends, LineSink, Party, Protocol, Telemetry, TelemetrySettings,
};

const REQUEST: &[u8] = b"GET /items/42 HTTP/1.1\r\nhost: server.shop.svc\r\nuser-agent: test\r\naccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello";
/// The Service that leads to the server.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const REQUESTS: u64 = 100;

/// Rows: the most that a request may take on its way in, and on its way out. What is left is hyper's buffers, channels and
/// header maps, the future and the record of the request, and the copy by which it can be sent again.
#[test]
fn a_request_takes_no_more_allocations_than_it_is_known_to() {
    for (direction, most) in [(Direction::Inbound, 12), (Direction::Outbound, 11)] {
        let each = allocations_a_request(direction);
        assert!(each <= most, "{direction:?}: {each} allocations a request, pinned at {most}");
    }
}

fn allocations_a_request(direction: Direction) -> u64 {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
    let mut client = runtime.block_on(start(direction));
    ask(&runtime, &mut client, 20);
    allocation_counter::measure(|| ask(&runtime, &mut client, REQUESTS)).count_total.div_ceil(REQUESTS)
}

/// Makes requests, one after another. Client and server allocate nothing by themselves.
fn ask(runtime: &LocalRuntime, client: &mut TcpStream, requests: u64) {
    runtime.block_on(async {
        let mut answer = [0; 1024];
        for _ in 0..requests {
            client.write_all(REQUEST).await.expect("sent");
            let mut length = 0;
            while !answer[..length].ends_with(b"hello") {
                match client.read(&mut answer[length..]).await.expect("readable") {
                    0 => panic!("cut: {}", String::from_utf8_lossy(&answer[..length])),
                    more => length += more,
                }
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer[..length]));
        }
    });
}

/// A server, a worker's connection to it, and its client.
async fn start(direction: Direction) -> TcpStream {
    let (server, there) = listener().await;
    tokio::task::spawn_local(serve(server));
    let (listener, here) = listener().await;
    let (client, accepted) = tokio::join!(TcpStream::connect(here), listener.accept());
    let (stream, peer) = accepted.expect("somebody connects");
    let stream = Transport::Plain(stream).rewind(BytesMut::new());
    let worker = Rc::new(worker(there));
    let ends = Ends {
        direction,
        source: Party::new("client", "shop"),
        destination: Party::new("server", "shop"),
        protocol: Protocol::Tcp,
        tls: false,
    };
    let closing = Closing::default();
    match direction {
        Direction::Inbound => {
            let connection = inbound::Connection {
                identity: worker.identity(),
                ends,
                caller: Caller { peer: None, address: peer.ip() },
                client_cert: None,
                target: there,
                application: worker.balancer.application(there),
                peer,
                lifetime: Lifetime::unbounded(),
                closing,
                worker,
            };
            tokio::task::spawn_local(Rc::new(connection).http(stream, HttpVersion::Http1));
        }
        Direction::Outbound => {
            let original = OriginalDst((SERVICE, 80).into());
            let connection = outbound::Connection { worker, ends, original, peer, closing };
            tokio::task::spawn_local(Rc::new(connection).http(stream, HttpVersion::Http1));
        }
    }
    client.expect("it listens")
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

async fn serve(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.expect("somebody connects");
    let mut request = [0; 2048];
    let mut length = 0;
    loop {
        match stream.read(&mut request[length..]).await.expect("readable") {
            0 => return,
            more => length += more,
        }
        if request[..length].ends_with(b"\r\n\r\n") {
            length = 0;
            stream.write_all(ANSWER).await.expect("sent");
        }
    }
}

fn worker(server: SocketAddr) -> Worker {
    let settings = TelemetrySettings {
        workload: Party::new("client", "shop"),
        series_budget: DEFAULT_SERIES_BUDGET,
        access_log: AccessLogMode::Errors,
        otlp: None,
    };
    let (lines, _) = LineSink::new(std::io::sink());
    // The senders may go: a value that was told stays.
    Worker {
        view: watch::channel(Some(Arc::new(view(server)))).1,
        identity: watch::channel(Some(Arc::new(identity()))).1,
        limiter: watch::channel(Arc::new(Limiter::new(&[], None))).1,
        phase: keep_open(Phase::Serving),
        upstreams: Rc::new(Upstreams::new(None)),
        server_first: ServerFirst::default(),
        balancer: Balancer::new(Arc::default(), 1),
        mirrors: Mirrors::default(),
        telemetry: Telemetry::new(settings, lines).expect("valid settings").worker(),
        stall: None,
        own_ports: [1, 2, 3],
        local: LocalAddresses::default(),
        open: Arc::default(),
    }
}

/// A watch whose end would be taken for news.
fn keep_open<T: Send + Sync + 'static>(value: T) -> watch::Receiver<T> {
    let (sender, receiver) = watch::channel(value);
    tokio::task::spawn_local(async move { sender.closed().await });
    receiver
}

fn view(server: SocketAddr) -> MeshView {
    let name = NamespacedName::new("shop", "server");
    let endpoint = Endpoint { address: server, workload: "server-1".into(), identity: None };
    let port = ServicePort { port: 80, protocol: ProtocolHint::Http1, endpoints: vec![endpoint], routes: Vec::new() };
    let service = Service {
        name: name.clone(),
        addresses: vec![IpAddr::V4(SERVICE)],
        ports: vec![port],
        traffic: Traffic::DEFAULT,
    };
    MeshView::new(WorkloadConfig {
        inbound: Inbound {
            namespace: "shop".into(),
            workload: "server-1".into(),
            service_account: "server".into(),
            services: vec![name.clone()],
            policy: Arc::new(PolicySet::compile(DefaultPolicy::Allow, Arc::default(), [])),
            rate_limits: Arc::default(),
            ports: BTreeMap::new(),
        },
        services: Arc::new(BTreeMap::from([(name, Arc::new(service))])),
        meshed_workloads: Arc::default(),
        denied_identities: Arc::default(),
    })
}

fn identity() -> Identity {
    let (domain, hour, now) =
        (TrustDomain::parse("cluster.local").expect("valid"), Duration::from_secs(3600), SystemTime::now());
    let authority = CertificateAuthority::self_signed(&domain, hour, now).expect("an authority");
    let id = SpiffeId::for_service_account(&domain, "shop", "client").expect("valid");
    let key = PrivateKey::generate();
    let chain = authority.sign(&key.certificate_request(), &id, hour / 2, now).expect("signed");
    let svid = Svid::new(chain, &key, authority.trust_bundle(), now).expect("its own certificate");
    let server = weft_certs::tls_config::server_config(&svid, weft_certs::tls_config::ClientAuth::Required, &ALPN_ALL);
    Identity { svid, server }
}
