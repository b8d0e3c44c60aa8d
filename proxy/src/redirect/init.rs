//! `weft-proxy init` and `weft proxy init`: settings from flags and environment, then one call.
use std::fmt;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;

use super::{Counter, ProxyTraffic, RedirectError, Rules};
use crate::config::parse_mark;

/// Ports, first to last inclusive: `22` or `8000-8010`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl PortRange {
    /// One port.
    pub fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("`{text}` is not a port or a range of ports; write 22 or 8000-8010");
        // `parse` alone would take a sign.
        let port =
            |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten();
        let text = text.trim();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = port(first).zip(port(last)).filter(|(first, last)| *first > 0 && first <= last);
        range.map(|(first, last)| Self { first, last }).ok_or_else(fault)
    }
}

/// Flags of `init`. Where a flag means the same as one of the sidecar's it reads the same variable, so that a pod is
/// configured once.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// Where the application's connections go: the sidecar's outbound port.
    #[arg(long, env = "WEFT_OUTBOUND_PORT", default_value_t = 4240)]
    pub outbound_port: u16,
    /// Where connections that enter the pod go: the sidecar's inbound port.
    #[arg(long, env = "WEFT_INBOUND_PORT", default_value_t = 4243)]
    pub inbound_port: u16,
    /// Port that is never redirected: the sidecar's /metrics, /ready, /live.
    #[arg(long, env = "WEFT_ADMIN_PORT", default_value_t = 4291)]
    pub admin_port: u16,
    /// User that the sidecar runs as, and nobody else: its connections are not redirected [default: 2102, or none when
    /// --proxy-mark is given].
    #[arg(long, env = "WEFT_PROXY_UID")]
    pub proxy_uid: Option<u32>,
    /// Socket mark of the sidecar's connections, such as `0x2102`, where it cannot have a user of its own.
    #[arg(long, env = "WEFT_PROXY_MARK", value_parser = parse_mark)]
    pub proxy_mark: Option<u32>,
    /// Ports of this pod that are reached without the sidecar, such as `22,8000-8010`. They are outside the mesh: no
    /// mTLS, no policy.
    #[arg(long, env = "WEFT_SKIP_INBOUND_PORTS", value_parser = parse_ports, default_value = "", hide_default_value = true)]
    pub skip_inbound_ports: List<PortRange>,
    /// Ports elsewhere that the application reaches without the sidecar, such as `5432`.
    #[arg(long, env = "WEFT_SKIP_OUTBOUND_PORTS", value_parser = parse_ports, default_value = "", hide_default_value = true)]
    pub skip_outbound_ports: List<PortRange>,
    /// Addresses that the application reaches without the sidecar, such as `10.0.0.0/8,fd00::/8,192.0.2.7`.
    #[arg(long, env = "WEFT_SKIP_SUBNETS", value_parser = parse_subnets, default_value = "", hide_default_value = true)]
    pub skip_subnets: List<IpNet>,
    /// Remove the rules instead.
    #[arg(long)]
    pub cleanup: bool,
}

/// The user of the sidecar's container.
pub(super) const PROXY_UID: u32 = 2102;

/// Entries separated by commas; none when empty, as a template that had nothing to fill in leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

fn parse_list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<List<T>, String> {
    let entries = text.split(',').filter(|_| !text.trim().is_empty());
    entries.map(parse).collect::<Result<_, _>>().map(List)
}

/// Ports and ranges of ports as in a flag: `22,8000-8010`.
pub fn parse_ports(text: &str) -> Result<List<PortRange>, String> {
    parse_list(text, PortRange::from_str)
}

/// Subnets and addresses as in a flag: `10.0.0.0/8,fd00::/8,192.0.2.7`.
pub fn parse_subnets(text: &str) -> Result<List<IpNet>, String> {
    parse_list(text, parse_subnet)
}

/// A prefix, or one address.
fn parse_subnet(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let single = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    let subnet = text.parse::<IpNet>().ok().or_else(single);
    subnet.ok_or_else(|| format!("`{text}` is not a subnet; write 10.0.0.0/8, fd00::/8 or an address"))
}

impl InitArgs {
    /// The rules that these flags ask for.
    pub fn rules(&self) -> Rules {
        let uid = self.proxy_uid.or(if self.proxy_mark.is_none() { Some(PROXY_UID) } else { None });
        Rules {
            proxy: ProxyTraffic { uid, mark: self.proxy_mark },
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            admin_port: self.admin_port,
            skip_inbound_ports: self.skip_inbound_ports.0.clone(),
            skip_outbound_ports: self.skip_outbound_ports.0.clone(),
            skip_subnets: self.skip_subnets.0.iter().map(IpNet::trunc).collect(),
        }
    }
}

/// What `init` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitReport {
    /// The rules are in force; the counters of each, read back from the kernel.
    Installed(Vec<Counter>),
    /// There are no rules (any more).
    Removed,
}

impl fmt::Display for InitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed(rules) => {
                write!(f, "redirect rules are in force ({} counted rules in table inet weft)", rules.len())
            }
            Self::Removed => write!(f, "no redirect rules are in force"),
        }
    }
}

/// Does what `args` ask for, in the network namespace of the caller, and reads back that it is so.
pub fn run_init(args: &InitArgs) -> Result<InitReport, RedirectError> {
    if args.cleanup {
        super::cleanup()?;
        return Ok(InitReport::Removed);
    }
    super::install(&args.rules())?;
    let rules = super::counters()?;
    if rules.is_empty() {
        return Err(RedirectError::Answer(
            "the rules were accepted but are not there; does something else manage nftables here?".into(),
        ));
    }
    Ok(InitReport::Installed(rules))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        init: InitArgs,
    }

    fn parse(flags: &[&str]) -> Result<Rules, String> {
        let parsed = Cli::try_parse_from(std::iter::once(&"init").chain(flags));
        parsed.map(|cli| cli.init.rules()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn flags_become_rules() {
        let rules = parse(&["--skip-inbound-ports", "22,8000-8010", "--skip-subnets", "10.1.2.3/8,fd00::/8,192.0.2.7"])
            .expect("valid");
        assert_eq!((rules.outbound_port, rules.inbound_port, rules.admin_port), (4240, 4243, 4291));
        assert_eq!(rules.proxy, ProxyTraffic { uid: Some(2102), mark: None });
        assert_eq!(rules.skip_inbound_ports, [PortRange::single(22), PortRange { first: 8000, last: 8010 }]);
        let subnets: Vec<String> = rules.skip_subnets.iter().map(ToString::to_string).collect();
        assert_eq!(subnets, ["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"]);
        let empty = parse(&["--skip-inbound-ports", "", "--skip-subnets", ""]).expect("nothing to skip");
        assert!(empty.skip_inbound_ports.is_empty() && empty.skip_subnets.is_empty());
        let marked = parse(&["--proxy-mark", "0x2102"]).expect("valid");
        assert_eq!(marked.proxy, ProxyTraffic { uid: None, mark: Some(0x2102) }, "a mark alone exempts no user");
    }

    #[test]
    fn a_wrong_flag_says_what_to_write() {
        for (flags, hint) in [
            (["--skip-inbound-ports", "ssh"], "write 22 or 8000-8010"),
            (["--skip-inbound-ports", "8010-8000"], "write 22 or 8000-8010"),
            (["--skip-inbound-ports", "22,"], "write 22 or 8000-8010"),
            (["--skip-inbound-ports", "0"], "write 22 or 8000-8010"),
            (["--skip-outbound-ports", "+22"], "write 22 or 8000-8010"),
            (["--skip-outbound-ports", "65536"], "write 22 or 8000-8010"),
            (["--skip-subnets", "10.0.0.0/33"], "write 10.0.0.0/8"),
            (["--proxy-mark", "0"], "write for example 0x2102"),
        ] {
            let fault = parse(&flags).expect_err("refused");
            assert!(fault.contains(hint), "{flags:?}: {fault}");
        }
    }

    #[test]
    fn rules_that_would_loop_are_refused() {
        let good = parse(&[]).expect("valid");
        assert_eq!(good.check(), Ok(()));
        for (rules, hint) in [
            (Rules { proxy: ProxyTraffic::default(), ..good.clone() }, "would loop"),
            (Rules { proxy: ProxyTraffic { uid: None, mark: Some(0) }, ..good.clone() }, "mark 0"),
            (Rules { inbound_port: 4240, ..good.clone() }, "three different ports"),
            (Rules { skip_subnets: vec!["10.0.0.0/8".parse().expect("a subnet"); 257], ..good.clone() }, "256"),
        ] {
            let fault = rules.check().expect_err("refused").to_string();
            assert!(fault.contains(hint), "{fault}");
        }
    }
}
