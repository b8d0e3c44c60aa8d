//! What is measured: two pods, a client's and a server's, with something between them. One file a peer says how it is set
//! up; the server, the client and the work are the same for all.

mod certificates;
mod envoy;
mod haproxy;
mod programs;
mod weft;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::server;
use crate::lab::{Lab, Pod, PodSpec, Process, Program, Task};
use crate::mesh::Mesh;

pub use programs::Programs;
pub(crate) use programs::find as find_programs;

/// Ports of the server.
pub(crate) const HTTP1: u16 = 8080;
/// See [`HTTP1`].
pub(crate) const HTTP2: u16 = 8081;
/// See [`HTTP1`].
pub(crate) const OPAQUE: u16 = 9000;
const PORTS: [u16; 3] = [HTTP1, HTTP2, OPAQUE];
/// Where a peer that is not transparent listens beside the client: the server's ports plus this.
const CLIENT_SIDE: u16 = 10_000;
/// Where it listens beside the server.
const SERVER_SIDE: u16 = 20_000;
/// How long a peer may take to carry the first exchange.
const PATIENCE: Duration = Duration::from_secs(20);

/// What can be between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum PeerKind {
    /// Nothing.
    Direct,
    /// Two relays of bytes, without TLS: the floor.
    Relay,
    /// Two sidecars of Weft.
    Weft,
    /// Two Envoys.
    Envoy,
    /// Two HAProxys.
    Haproxy,
}

impl PeerKind {
    /// All of them.
    pub fn all() -> Vec<Self> {
        vec![Self::Direct, Self::Relay, Self::Weft, Self::Envoy, Self::Haproxy]
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Weft => "weft",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
        }
    }
}

/// Two pods with servers in one of them and a peer between them.
pub(crate) struct Pair {
    pub(crate) client: Pod,
    /// Where the client finds the servers, by port.
    address: IpAddr,
    offset: u16,
    /// The client's and the server's.
    pub(crate) sidecars: Vec<Process>,
    _servers: Vec<Task<std::io::Result<()>>>,
    _network: Network,
}

/// Ends with the pair.
enum Network {
    Lab(#[expect(dead_code, reason = "held for its end")] Lab),
    Mesh(#[expect(dead_code, reason = "held for its end")] Box<Mesh>),
}

impl Pair {
    /// Starts a peer and waits until it carries exchanges.
    pub(crate) fn start(kind: PeerKind, programs: &Programs, proxy_arguments: &[String]) -> Result<Self> {
        let pair = match kind {
            PeerKind::Weft => weft::start(programs.weft.as_deref().context("there is no weft")?, proxy_arguments)?,
            _ => {
                let pods = Pods::make(kind)?;
                match kind {
                    PeerKind::Envoy => envoy::start(pods, programs)?,
                    PeerKind::Haproxy => haproxy::start(pods, programs)?,
                    PeerKind::Relay => relay(pods)?,
                    PeerKind::Direct | PeerKind::Weft => {
                        let address = pods.server_address()?.into();
                        pods.pair(address, 0, Vec::new())?
                    }
                }
            }
        };
        for port in PORTS {
            pair.wait_for(port).with_context(|| format!("{} on port {port}", kind.name()))?;
        }
        Ok(pair)
    }

    fn new(
        client: Pod,
        server: &Pod,
        address: IpAddr,
        offset: u16,
        sidecars: Vec<Process>,
        network: Network,
    ) -> Result<Self> {
        let (one, two, three) = (server.listen(HTTP1)?, server.listen(HTTP2)?, server.listen(OPAQUE)?);
        let servers = vec![
            server.start(move || server::http1(one))?,
            server.start(move || server::http2(two))?,
            server.start(move || server::opaque(three))?,
        ];
        Ok(Self { client, address, offset, sidecars, _servers: servers, _network: network })
    }

    /// Where the client finds the server's `port`.
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port + self.offset)
    }

    /// CPU time of both sidecars since their start; `None` without sidecars.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let times: Vec<Duration> = self.sidecars.iter().filter_map(Process::cpu_time).collect();
        (!times.is_empty()).then(|| times.iter().sum())
    }

    /// Resident memory of both sidecars in bytes; `None` without sidecars.
    pub(crate) fn resident_memory(&self) -> Option<u64> {
        let sizes: Vec<u64> = self.sidecars.iter().filter_map(Process::resident_memory).collect();
        (!sizes.is_empty()).then(|| sizes.iter().sum())
    }

    /// What is wrong with the sidecars: those that ended, with their last words.
    pub(crate) fn check(&self) -> Result<()> {
        for sidecar in &self.sidecars {
            if let Some(status) = sidecar.try_wait() {
                bail!("{sidecar} ended with {status}: {}{}", tail(&sidecar.stdout()), tail(&sidecar.stderr()));
            }
        }
        Ok(())
    }

    /// Waits until an exchange with the server's `port` succeeds.
    fn wait_for(&self, port: u16) -> Result<()> {
        let address = self.address(port);
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            match self.client.run(move || tokio::time::timeout(Duration::from_secs(2), exchange(address, port)))? {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => ensure!(Instant::now() < deadline, "not ready: {error}"),
                Err(_) => ensure!(Instant::now() < deadline, "not ready: it does not answer"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Asks for the first byte of an answer, in the protocol of the server's `port`.
async fn exchange(address: SocketAddr, port: u16) -> std::io::Result<()> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let (words, wanted): (&[u8], &[u8]) = match port {
        HTTP1 => (b"GET / HTTP/1.1\r\nhost: server.shop.svc\r\n\r\n", b"HTTP/1.1 200"),
        // The preface and empty SETTINGS; a GET of `/` with a literal authority (RFC 9113 sections 3.4, 6.2, 6.5). The
        // frames that come first are the other side's settings, whatever stands behind it.
        HTTP2 => (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x07\x01\x05\0\0\0\x01\x82\x86\x84\x41\x02ab",
            b"",
        ),
        _ => (&[server::WISH_ONE; server::WISH], b"x"),
    };
    stream.write_all(words).await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::Error::other("it closed the connection"));
        }
        let enough = match port {
            // HEADERS on stream 1 of an answer: type 1; what is indexed first is `:status: 200` (RFC 7541 appendix A).
            HTTP2 => {
                answer.windows(10).any(|frame| frame[3] == 1 && frame[5..9] == [0, 0, 0, 1] && frame[9] & 0x7f == 8)
            }
            _ => answer.len() >= wanted.len(),
        };
        if enough && answer.starts_with(wanted) {
            return Ok(());
        }
        if enough {
            let text = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
            return Err(std::io::Error::other(format!("it answered {text:?}")));
        }
    }
}

/// Two pods without anything between them yet.
struct Pods {
    lab: Lab,
    client: Pod,
    server: Pod,
}

impl Pods {
    fn make(kind: PeerKind) -> Result<Self> {
        let lab = Lab::new(kind.name())?;
        let (client, server) = (lab.pod(PodSpec::new("client"))?, lab.pod(PodSpec::new("server"))?);
        Ok(Self { lab, client, server })
    }

    fn server_address(&self) -> Result<Ipv4Addr> {
        self.server.ipv4().context("the lab gives every pod an IPv4 address")
    }

    fn pair(self, address: IpAddr, offset: u16, sidecars: Vec<Process>) -> Result<Pair> {
        Pair::new(self.client, &self.server, address, offset, sidecars, Network::Lab(self.lab))
    }
}

fn relay(pods: Pods) -> Result<Pair> {
    let server = pods.server_address()?;
    let pairs = |listen: &dyn Fn(u16) -> String, to: &dyn Fn(u16) -> String| -> Vec<String> {
        PORTS.iter().map(|port| format!("{}={}", listen(*port), to(*port))).collect()
    };
    let beside_client =
        pairs(&|port| format!("127.0.0.1:{}", port + CLIENT_SIDE), &|port| format!("{server}:{}", port + SERVER_SIDE));
    let beside_server = pairs(&|port| format!("{server}:{}", port + SERVER_SIDE), &|port| format!("127.0.0.1:{port}"));
    let start = |pod: &Pod, pairs: Vec<String>| -> Result<Process> {
        let process = pod.spawn(Program::this().arg("relay").args(pairs).open_files(OPEN_FILES))?;
        process.wait_for_line(|line| line == "ready", PATIENCE)?;
        Ok(process)
    };
    let sidecars = vec![start(&pods.client, beside_client)?, start(&pods.server, beside_server)?];
    pods.pair(Ipv4Addr::LOCALHOST.into(), CLIENT_SIDE, sidecars)
}

/// What every peer may open.
const OPEN_FILES: u64 = 20_000;

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
