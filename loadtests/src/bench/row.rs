//! What is measured, and how good Weft wants to be at it.

use std::fmt;

/// One row of the table: work, and Weft's bars.
#[derive(Debug)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is done.
    pub what: &'static str,
    /// What CPU time is counted for.
    pub unit: &'static str,
    pub(crate) work: Work,
    pub(crate) bars: &'static [Bar],
}

/// The work of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    /// HTTP/1.1, the connections kept, each asks again when it has its answer.
    Http1 { connections: usize },
    /// HTTP/1.1, requests due at a rate, whatever the answers.
    Http1Paced { per_second: u32, connections: usize },
    /// HTTP/1.1, a connection for each request.
    Http1New { at_once: usize },
    /// HTTP/2 with prior knowledge.
    Http2 { connections: usize, streams: usize },
    /// Bytes that are no protocol, a connection for each exchange.
    TcpNew { at_once: usize },
    /// One stream of bytes from server to client.
    TcpBulk,
    /// Connections that each made one request and stay open.
    IdleConnections { connections: usize },
    /// Nothing, after the start.
    Idle,
}

impl Work {
    /// Whether it needs sidecars that have done nothing before.
    pub(crate) fn needs_fresh_pair(self) -> bool {
        matches!(self, Self::IdleConnections { .. } | Self::Idle)
    }

    /// Requests, connections or bytes after which a measurement ends early: the load is bounded in count too. New
    /// connections leave addresses in TIME_WAIT behind.
    pub(crate) fn most(self) -> u64 {
        match self {
            Self::Http1New { .. } | Self::TcpNew { .. } => 20_000,
            Self::TcpBulk => 32 << 30,
            _ => 2_000_000,
        }
    }
}

/// One condition that Weft wants to meet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// At most this share of Envoy's CPU time.
    Cpu(f64),
    /// At least this multiple of Envoy's throughput.
    Throughput(f64),
    /// Latency p50 and p99 not above HAProxy's.
    LatencyOfHaproxy,
    /// At most this much memory for each connection, in KiB, both sidecars together.
    KibEach(f64),
    /// At most this much resident memory of one sidecar, in MiB.
    Resident(f64),
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(bar) => write!(f, "CPU ≤ {bar:.2} of Envoy's"),
            Self::Throughput(bar) => write!(f, "throughput ≥ {bar:.2} of Envoy's"),
            Self::LatencyOfHaproxy => write!(f, "p50 and p99 ≤ HAProxy's"),
            Self::KibEach(bar) => write!(f, "≤ {bar:.0} KiB each"),
            Self::Resident(bar) => write!(f, "≤ {bar:.0} MiB"),
        }
    }
}

/// All rows.
pub static ROWS: [Row; 9] = [
    Row {
        name: "http1",
        what: "HTTP/1.1 keep-alive, closed loop, 32 connections",
        unit: "request",
        work: Work::Http1 { connections: 32 },
        bars: &[Bar::Cpu(0.22)],
    },
    Row {
        name: "http1-1000",
        what: "HTTP/1.1 keep-alive, open loop, 1,000 requests/s",
        unit: "request",
        work: Work::Http1Paced { per_second: 1_000, connections: 32 },
        bars: &[Bar::Cpu(0.38), Bar::LatencyOfHaproxy],
    },
    Row {
        name: "http1-3000",
        what: "HTTP/1.1 keep-alive, open loop, 3,000 requests/s",
        unit: "request",
        work: Work::Http1Paced { per_second: 3_000, connections: 32 },
        bars: &[Bar::Cpu(0.38), Bar::LatencyOfHaproxy],
    },
    Row {
        name: "http1-new",
        what: "HTTP/1.1, a new client connection each request, 16 at once",
        unit: "request",
        work: Work::Http1New { at_once: 16 },
        bars: &[Bar::Cpu(0.30)],
    },
    Row {
        name: "tcp-new",
        what: "opaque TCP, a new connection each exchange, 16 at once",
        unit: "connection",
        work: Work::TcpNew { at_once: 16 },
        bars: &[Bar::Cpu(0.20)],
    },
    Row {
        name: "tcp-bulk",
        what: "opaque TCP, one stream, server to client",
        unit: "GiB",
        work: Work::TcpBulk,
        bars: &[Bar::Cpu(0.75), Bar::Throughput(1.25)],
    },
    Row {
        name: "http2",
        what: "HTTP/2, 2 connections of 100 streams, closed loop",
        unit: "request",
        work: Work::Http2 { connections: 2, streams: 100 },
        bars: &[Bar::Cpu(0.20)],
    },
    Row {
        // Of the 20,000 descriptors that an ordinary hard limit grants, the client needs one for each connection, and a
        // peer that reserves two would not start with more.
        name: "idle-connections",
        what: "8,000 idle HTTP/1.1 connections that made one request each",
        unit: "connection",
        work: Work::IdleConnections { connections: 8_000 },
        bars: &[Bar::KibEach(8.0)],
    },
    Row {
        name: "idle",
        what: "resident memory of one sidecar after its start",
        unit: "sidecar",
        work: Work::Idle,
        bars: &[Bar::Resident(8.0)],
    },
];

/// The row of this name.
///
/// # Errors
/// There is none; the message lists those that there are.
pub fn find(name: &str) -> Result<&'static Row, String> {
    let names = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
    ROWS.iter()
        .find(|row| row.name == name)
        .ok_or_else(|| format!("there is no row `{name}`; write one of {}", names()))
}
