//! The redirect rules of a pod: all its TCP passes through the sidecar.
//!
//! One table `inet weft` in the network namespace of the caller, written over netlink in one transaction that replaces
//! what was there before: no `nft` or `iptables` binary, IPv4 and IPv6 alike, nothing half done. It holds
//! - `outbound` (nat, output hook): TCP of the application goes to the outbound port;
//! - `inbound` (nat, prerouting hook): TCP that enters goes to the inbound port;
//! - `uncaptured` (filter, output hook): counts what cannot be captured (UDP and the rest) and lets it pass.
//!
//! Not redirected, and counted by a rule each: the proxy's own connections (by user or mark, else they would loop),
//! loopback, the skipped ports and subnets, and always the admin port. UDP is never touched.
//!
//! `validate` proves that rules are at work which somebody else wrote. [`rules`] decides what is written, [`netlink`] carries it. Needs CAP_NET_ADMIN in the network namespace, nothing else.
mod init;
mod netlink;
mod rules;
mod validate;

pub use init::{InitArgs, InitReport, List, PortRange, parse_ports, parse_subnets, run_init};
pub use netlink::RedirectError;
pub use rules::{ProxyTraffic, Rules};
pub use validate::{ValidateArgs, ValidateError, ValidateReport, run_validate};

/// What one rule has seen. NAT rules see the first packet of each connection, `uncaptured` sees every packet.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Counter {
    /// `outbound`, `inbound` or `uncaptured`.
    pub chain: String,
    /// What the rule does, in words: `redirect`, `proxy user`, `loopback`, `port 22`, `subnet 10.0.0.0/8`, `udp` …
    pub rule: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Writes `rules`, replacing those of an earlier call: repeating it changes nothing but the counters, which start anew.
pub fn install(rules: &Rules) -> Result<(), RedirectError> {
    rules.check()?;
    netlink::Socket::open()?.transact(rules::install_batch(rules))
}

/// Removes the rules; having none is success.
pub fn cleanup() -> Result<(), RedirectError> {
    // Adding the table first makes the removal succeed whether or not it existed.
    netlink::Socket::open()?.transact(rules::cleanup_batch())
}

/// Whether the table exists in this network namespace.
pub fn installed() -> Result<bool, RedirectError> {
    netlink::Socket::open()?.table_exists(rules::TABLE)
}

/// What each rule has seen since the rules were written; empty when there are none.
pub fn counters() -> Result<Vec<Counter>, RedirectError> {
    netlink::Socket::open()?.counters(rules::TABLE)
}
