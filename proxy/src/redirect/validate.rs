//! `weft-proxy validate`: proves, before the application starts, that somebody else's redirect rules are at work.
//!
//! Where the CNI plugin writes the rules, the pod itself has no rights to. Here an ordinary user of the pod connects to an
//! address that is nobody's; with rules the connection comes back to the sidecar's outbound port, where this program
//! listens in the sidecar's place. Anything else fails, and the kubelet starts no application. Needs no capability.
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use ipnet::IpNet;
use socket2::SockRef;

use super::init::{List, PROXY_UID, PortRange, parse_ports, parse_subnets};

/// Addresses that are for documentation and never answer (RFC 5737, RFC 3849, RFC 9637).
const V4: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
];
const V6: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1)),
];
/// How long one connection is waited for: a redirected one is there at once.
const ATTEMPT: Duration = Duration::from_secs(1);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(200);

/// Flags of `validate`.
#[derive(Args, Clone, Debug)]
pub struct ValidateArgs {
    /// Where connections must arrive: the sidecar's outbound port.
    #[arg(long, env = "WEFT_OUTBOUND_PORT", default_value_t = 4240)]
    pub outbound_port: u16,
    /// Ports that the rules leave alone; the proof uses another.
    #[arg(long, env = "WEFT_SKIP_OUTBOUND_PORTS", value_parser = parse_ports, default_value = "", hide_default_value = true)]
    pub skip_outbound_ports: List<PortRange>,
    /// Addresses that the rules leave alone; the proof uses another.
    #[arg(long, env = "WEFT_SKIP_SUBNETS", value_parser = parse_subnets, default_value = "", hide_default_value = true)]
    pub skip_subnets: List<IpNet>,
    /// How long to try.
    #[arg(long, env = "WEFT_VALIDATE_TIMEOUT", default_value = "10s", value_parser = weft_api::duration::parse)]
    pub timeout: Duration,
}

/// What was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidateReport {
    /// Families whose connections were captured.
    pub captured: Vec<&'static str>,
    /// Families of which the skipped ports and subnets leave nothing to capture.
    pub skipped: Vec<&'static str>,
}

impl fmt::Display for ValidateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let captured = if self.captured.is_empty() { "nothing".to_owned() } else { self.captured.join(" and ") };
        write!(f, "the redirect works: {captured} captured")?;
        if !self.skipped.is_empty() {
            write!(f, "; {} is skipped whole, as asked", self.skipped.join(" and "))?;
        }
        Ok(())
    }
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// The proof itself would pass by the rules.
    #[error(
        "this runs as user {PROXY_UID}, the sidecar's, whose connections are not redirected: run it as another, such as 2103"
    )]
    ProxyUser,
    /// Somebody else is where the connections must arrive.
    #[error("cannot listen on {0}: {1}; validate runs before the sidecar, and in its place")]
    Listen(SocketAddr, io::Error),
    /// A connection was not captured.
    #[error(
        "{family} connections of this pod are not captured ({seen}): the node's CNI plugin wrote no redirect rules for it. \
         See whether the plugin is ready on this node: kubectl get pods -A -o wide -l weft.dev/component=cni. \
         Rules are written when a pod's network is made: once the plugin is ready, delete this pod"
    )]
    NotCaptured {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// What became of the last connection.
        seen: String,
    },
    /// Neither family can leave the pod.
    #[error("this pod has a route for neither IPv4 nor IPv6: is its network there?")]
    NoNetwork,
}

/// Proves that connections of either family that can leave this network namespace are captured.
pub fn run_validate(args: &ValidateArgs) -> Result<ValidateReport, ValidateError> {
    if nix::unistd::Uid::effective().as_raw() == PROXY_UID {
        return Err(ValidateError::ProxyUser);
    }
    let mut report = ValidateReport { captured: Vec::new(), skipped: Vec::new() };
    let end = Instant::now() + args.timeout;
    let families = [("IPv4", &V4[..], IpAddr::V4(Ipv4Addr::LOCALHOST)), ("IPv6", &V6, IpAddr::V6(Ipv6Addr::LOCALHOST))];
    for (family, addresses, loopback) in families {
        if !addresses.iter().any(|address| has_route(*address)) {
            continue;
        }
        let Some(target) = target(addresses, args) else {
            report.skipped.push(family);
            continue;
        };
        let arrival = SocketAddr::new(loopback, args.outbound_port);
        let listener = TcpListener::bind(arrival)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|fault| ValidateError::Listen(arrival, fault))?;
        while let Err(seen) = attempt(&listener, target) {
            if Instant::now() >= end {
                return Err(ValidateError::NotCaptured { family, seen });
            }
            sleep(BETWEEN_ATTEMPTS);
        }
        report.captured.push(family);
    }
    if report.captured.is_empty() && report.skipped.is_empty() {
        return Err(ValidateError::NoNetwork);
    }
    Ok(report)
}

/// Whether a packet to `address` could leave. Connecting a UDP socket looks for a route and sends nothing.
fn has_route(address: IpAddr) -> bool {
    let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 1))).is_ok()
}

/// An address and port that the rules do not leave alone.
fn target(addresses: &[IpAddr], args: &ValidateArgs) -> Option<SocketAddr> {
    let skipped = |address: IpAddr| args.skip_subnets.0.iter().any(|subnet| subnet.contains(&address));
    let address = *addresses.iter().find(|address| !skipped(**address))?;
    let port = (1..=u16::MAX).find(|port| !args.skip_outbound_ports.0.iter().any(|range| range.contains(*port)))?;
    Some(SocketAddr::new(address, port))
}

/// Connects to `target` and looks whether that arrives at `listener`; an error says what happened instead.
fn attempt(listener: &TcpListener, target: SocketAddr) -> Result<(), String> {
    let stream = TcpStream::connect_timeout(&target, ATTEMPT).map_err(|fault| format!("{target}: {fault}"))?;
    let ours = stream.local_addr().map_err(|fault| fault.to_string())?;
    let end = Instant::now() + ATTEMPT;
    loop {
        match listener.accept() {
            Ok((arrived, peer)) if peer == ours => {
                let socket = SockRef::from(&arrived);
                let original = if peer.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
                return match original.ok().and_then(|address| address.as_socket()) {
                    Some(original) if original == target => Ok(()),
                    other => Err(format!("{target}: arrived, but as meant for {other:?}")),
                };
            }
            Ok(_) => {}
            Err(fault) if fault.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                sleep(Duration::from_millis(5));
            }
            Err(_) => return Err(format!("{target}: answered by somebody else")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        validate: ValidateArgs,
    }

    #[test]
    fn the_proof_uses_what_the_rules_do_not_leave_alone() {
        for (flags, v4, v6) in [
            (&[][..], Some("192.0.2.1:1"), Some("[2001:db8::1]:1")),
            (&["--skip-outbound-ports=1-10,22"], Some("192.0.2.1:11"), Some("[2001:db8::1]:11")),
            (&["--skip-subnets=192.0.0.0/8,2001::/16"], Some("198.51.100.1:1"), Some("[3fff::1]:1")),
            (&["--skip-subnets=0.0.0.0/0"], None, Some("[2001:db8::1]:1")),
            (&["--skip-outbound-ports=1-65535"], None, None),
        ] {
            let args = Cli::try_parse_from([&["validate"], flags].concat()).expect("flags").validate;
            let seen = [&V4[..], &V6].map(|addresses| target(addresses, &args).map(|target| target.to_string()));
            assert_eq!(seen.each_ref().map(Option::as_deref), [v4, v6], "{flags:?}");
        }
    }
}
