//! What the data path tells telemetry: the ends of a connection, how a request ended, what was refused.
//!
//! Everything that becomes a metric label comes from the model or from code (names of workloads, reasons that are
//! string literals), never from a request's content, so the number of series is bounded by the mesh and not by callers.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Which half of the sidecar a connection went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the network to the application.
    Inbound,
    /// From the application to the network.
    Outbound,
}

impl Direction {
    /// The word used in labels and log fields.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What is spoken, once it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 that is not gRPC.
    Http2,
    /// gRPC.
    Grpc,
    /// A byte stream.
    Tcp,
}

impl Protocol {
    /// The word used in labels and log fields.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// One end of a connection, as the model names it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Party {
    /// Name of the workload or service; at most 253 bytes of it are used in labels.
    pub name: Arc<str>,
    /// Its namespace; empty outside the mesh.
    pub namespace: Arc<str>,
}

impl Party {
    /// A party of the model.
    pub fn new(name: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), namespace: namespace.into() }
    }

    /// Somebody whom the model does not know: always this one word, never an address.
    pub fn unknown() -> Self {
        Self::new("unknown", "")
    }
}

/// The labels that every series of a connection carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// Which half of the sidecar.
    pub direction: Direction,
    /// Who calls.
    pub source: Party,
    /// Who is called.
    pub destination: Party,
    /// What is spoken.
    pub protocol: Protocol,
    /// Whether the hop between the pods is mutual TLS of the mesh.
    pub tls: bool,
}

/// What authorization decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
    /// It passed, and would not have if the policies in Shadow mode were enforced.
    ShadowDeny,
}

impl Verdict {
    /// The word used in labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::ShadowDeny => "shadow_deny",
        }
    }
}

/// What the sidecar did to keep a destination's trouble small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficEvent {
    /// A request was sent once more.
    Repeated,
    /// A request could have been sent once more, and was not: the budget was spent, or nobody else could serve it.
    NotRepeated,
    /// A request or connection was refused, by the limit of that name.
    Shed(&'static str),
    /// An endpoint is passed over for a while, for that reason.
    Ejected(&'static str),
}

/// How a request or a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Passed on; the other side's answer (whatever its status) went back.
    Forwarded,
    /// Refused by authorization.
    Denied {
        /// `namespace/name` of the policy, or the word for the namespace's default.
        policy: &'a str,
        /// The rule or the reason, as the policy engine says it.
        reason: &'a str,
    },
    /// Refused by a rate limit.
    Limited {
        /// `namespace/name` of the policy.
        policy: &'a str,
        /// Name of the limit in that policy.
        limit: &'a str,
    },
    /// Could not be served.
    Failed {
        /// Why, for the log and the trace.
        reason: &'a str,
    },
    /// The caller went away first.
    Cancelled,
}

impl Outcome<'_> {
    /// The word used in log fields and span attributes.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Denied { .. } => "denied",
            Self::Limited { .. } => "limited",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A finished HTTP request.
#[derive(Clone, Copy, Debug)]
pub struct RequestEvent<'a> {
    /// Its connection's ends.
    pub ends: &'a Ends,
    /// Method, as sent.
    pub method: &'a str,
    /// Path without query (a query is cut off here too, should there be one).
    pub path: &'a str,
    /// Host without port.
    pub host: &'a str,
    /// Status of the response; 0: none was sent.
    pub status: u16,
    /// `grpc-status` of the response or its trailers.
    pub grpc_status: Option<u16>,
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// The sidecar's own share of `duration`.
    pub overhead: Option<Duration>,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// How often it was sent again.
    pub retries: u32,
    /// How it ended.
    pub outcome: Outcome<'a>,
    /// SPIFFE ID of the other side of the mesh hop.
    pub peer_identity: Option<&'a str>,
    /// Address of the other side: the caller's (inbound) or the endpoint's (outbound).
    pub peer_address: Option<SocketAddr>,
    /// The rule of a route that decided where it went: `namespace/name#rule`.
    pub route: Option<&'a str>,
}

/// The end of a byte stream, for the access log.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionEvent<'a> {
    /// How it ended.
    pub outcome: Outcome<'a>,
    /// SPIFFE ID of the other side of the mesh hop.
    pub peer_identity: Option<&'a str>,
    /// Address of the other side.
    pub peer_address: Option<SocketAddr>,
}

/// A connection that was refused before it had ends to count it under.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Which half of the sidecar.
    pub direction: Direction,
    /// A metric label: a literal of the code such as `plaintext`, `tls_expired`, `not_redirected`, `loop`.
    pub reason: &'static str,
    /// More for the log; truncated and escaped there.
    pub detail: Option<&'a str>,
    /// SPIFFE ID, if the other side had proven one.
    pub peer_identity: Option<&'a str>,
    /// Address of the other side.
    pub peer_address: Option<SocketAddr>,
}

/// Ids of a span, as 32 and 16 lower-case hexadecimal digits when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceIds {
    /// W3C trace-id; never zero.
    pub trace_id: u128,
    /// W3C parent-id of the next hop; never zero.
    pub span_id: u64,
}
