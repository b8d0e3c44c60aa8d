//! What is written: chains and rules as nf_tables expressions. Pure.
//!
//! Numbers of attributes and expressions are those of the kernel's `linux/netfilter/nf_tables.h`.
use std::net::IpAddr;

use ipnet::IpNet;

use super::PortRange;
use super::netlink::{Attributes, Batch, RedirectError};

/// Name of the table, in family inet.
pub(super) const TABLE: &str = "weft";

const OUTBOUND: &str = "outbound";
const INBOUND: &str = "inbound";
const UNCAPTURED: &str = "uncaptured";

/// Rules that a list of ports or subnets may make; a batch of them must fit in a socket buffer.
const LIST_MAX: usize = 256;

/// How the proxy's own connections are told from the application's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyTraffic {
    /// The user the proxy runs as, and nobody else.
    pub uid: Option<u32>,
    /// The mark the proxy sets on its sockets, where only one user is mapped.
    pub mark: Option<u32>,
}

/// What to redirect and what not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The proxy's own connections; at least one of the two must be given, else they would loop.
    pub proxy: ProxyTraffic,
    /// Where the application's connections go.
    pub outbound_port: u16,
    /// Where connections that enter go.
    pub inbound_port: u16,
    /// Never redirected when entered.
    pub admin_port: u16,
    /// Ports of this pod that are reached without the sidecar; at most 256 ranges.
    pub skip_inbound_ports: Vec<PortRange>,
    /// Ports elsewhere that the application reaches without the sidecar; at most 256 ranges.
    pub skip_outbound_ports: Vec<PortRange>,
    /// Addresses that the application reaches without the sidecar; at most 256.
    pub skip_subnets: Vec<IpNet>,
}

impl Rules {
    /// Refuses rules that would loop or cannot be carried.
    pub fn check(&self) -> Result<(), RedirectError> {
        let fault = |text: &str| Err(RedirectError::Rules(text.into()));
        if self.proxy == ProxyTraffic::default() {
            return fault("the proxy's own connections cannot be told apart and would loop: give its user or its mark");
        }
        if self.proxy.mark == Some(0) {
            return fault("mark 0 is every socket's: give another");
        }
        let ports = [self.outbound_port, self.inbound_port, self.admin_port];
        if ports.contains(&0) || ports[0] == ports[1] || ports[1] == ports[2] || ports[0] == ports[2] {
            return fault("the outbound, inbound and admin ports must be three different ports above 0");
        }
        let longest = self.skip_inbound_ports.len().max(self.skip_outbound_ports.len()).max(self.skip_subnets.len());
        if longest > LIST_MAX {
            return fault("more than 256 entries in a list of ports or subnets: write ranges or wider subnets");
        }
        Ok(())
    }
}

/// Adds the table (so that deleting it succeeds), deletes it, writes it anew; one transaction.
pub(super) fn install_batch(rules: &Rules) -> Batch {
    let mut batch = Batch::default();
    batch.add_table(TABLE);
    batch.delete_table(TABLE);
    batch.add_table(TABLE);

    batch.add_chain(TABLE, OUTBOUND, "nat", hook::OUTPUT, priority::DSTNAT);
    let mut add = |comment: &str, expressions: Expressions| {
        batch.add_rule(TABLE, OUTBOUND, comment, &expressions.0);
    };
    add("not tcp", Expressions::default().not_tcp().verdict_return());
    if let Some(uid) = rules.proxy.uid {
        add("proxy user", Expressions::default().meta_u32(meta::SKUID, uid).counted_return());
    }
    if let Some(mark) = rules.proxy.mark {
        add("proxy mark", Expressions::default().meta_u32(meta::MARK, mark).counted_return());
    }
    add("loopback", Expressions::default().interface(meta::OIFNAME, "lo").counted_return());
    for subnet in &rules.skip_subnets {
        add(&format!("subnet {subnet}"), Expressions::default().destination(subnet).counted_return());
    }
    for ports in &rules.skip_outbound_ports {
        add(&format!("port {ports}"), Expressions::default().destination_port(*ports).counted_return());
    }
    add("redirect", Expressions::default().counter().redirect(rules.outbound_port));

    batch.add_chain(TABLE, INBOUND, "nat", hook::PREROUTING, priority::DSTNAT);
    let mut add = |comment: &str, expressions: Expressions| {
        batch.add_rule(TABLE, INBOUND, comment, &expressions.0);
    };
    add("not tcp", Expressions::default().not_tcp().verdict_return());
    add("loopback", Expressions::default().interface(meta::IIFNAME, "lo").counted_return());
    let admin = PortRange::single(rules.admin_port);
    for ports in std::iter::once(&admin).chain(&rules.skip_inbound_ports) {
        add(&format!("port {ports}"), Expressions::default().destination_port(*ports).counted_return());
    }
    add("redirect", Expressions::default().counter().redirect(rules.inbound_port));

    batch.add_chain(TABLE, UNCAPTURED, "filter", hook::OUTPUT, priority::FILTER);
    let mut add = |comment: &str, expressions: Expressions| {
        batch.add_rule(TABLE, UNCAPTURED, comment, &expressions.0);
    };
    add("tcp", Expressions::default().l4proto(protocol::TCP).verdict_return());
    add("loopback", Expressions::default().interface(meta::OIFNAME, "lo").verdict_return());
    if let Some(uid) = rules.proxy.uid {
        add("proxy user", Expressions::default().meta_u32(meta::SKUID, uid).counted_return());
    }
    if let Some(mark) = rules.proxy.mark {
        add("proxy mark", Expressions::default().meta_u32(meta::MARK, mark).counted_return());
    }
    add("udp", Expressions::default().l4proto(protocol::UDP).counted_return());
    // Neighbour discovery and errors of the kernel itself are ICMP too: kept apart from what an application chose.
    add("icmp", Expressions::default().l4proto(protocol::ICMP).counted_return());
    add("icmpv6", Expressions::default().l4proto(protocol::ICMPV6).counted_return());
    add("other", Expressions::default().counted_return());
    batch
}

pub(super) fn cleanup_batch() -> Batch {
    let mut batch = Batch::default();
    batch.add_table(TABLE);
    batch.delete_table(TABLE);
    batch
}

mod hook {
    pub(super) const PREROUTING: u32 = 0;
    pub(super) const OUTPUT: u32 = 3;
}

mod priority {
    pub(super) const DSTNAT: i32 = -100;
    pub(super) const FILTER: i32 = 0;
}

mod protocol {
    pub(super) const ICMP: u8 = 1;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ICMPV6: u8 = 58;
}

/// `enum nft_meta_keys`.
mod meta {
    pub(super) const MARK: u32 = 3;
    pub(super) const IIFNAME: u32 = 6;
    pub(super) const OIFNAME: u32 = 7;
    pub(super) const SKUID: u32 = 10;
    pub(super) const NFPROTO: u32 = 15;
    pub(super) const L4PROTO: u32 = 16;
}

/// `enum nft_cmp_ops`.
mod cmp {
    pub(super) const EQ: u32 = 0;
    pub(super) const NEQ: u32 = 1;
}

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const VERDICT_RETURN: i32 = -5;
const IFNAMSIZ: usize = 16;

/// The expressions of one rule, in the order in which the kernel runs them; each match ends the rule if it fails.
#[derive(Default)]
struct Expressions(Attributes);

impl Expressions {
    fn push(mut self, name: &str, fill: impl FnOnce(&mut Attributes)) -> Self {
        const LIST_ELEM: u16 = 1;
        self.0.nest(LIST_ELEM, |element| {
            element.text(1, name);
            element.nest(2, fill);
        });
        self
    }

    /// Loads a meta key into register 1.
    fn meta(self, key: u32) -> Self {
        self.push("meta", |data| {
            data.be32(1, REGISTER_1);
            data.be32(2, key);
        })
    }

    /// Loads `len` bytes of a header into register 1.
    fn payload(self, base: u32, offset: u32, len: u32) -> Self {
        self.push("payload", |data| {
            data.be32(1, REGISTER_1);
            data.be32(2, base);
            data.be32(3, offset);
            data.be32(4, len);
        })
    }

    /// Compares register 1 with bytes.
    fn compare(self, operation: u32, value: &[u8]) -> Self {
        self.push("cmp", |data| {
            data.be32(1, REGISTER_1);
            data.be32(2, operation);
            data.nest(3, |operand| operand.bytes(1, value));
        })
    }

    fn meta_u32(self, key: u32, value: u32) -> Self {
        // These two live in registers in the host's byte order.
        self.meta(key).compare(cmp::EQ, &value.to_ne_bytes())
    }

    fn interface(self, key: u32, name: &str) -> Self {
        let mut padded = [0; IFNAMSIZ];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.meta(key).compare(cmp::EQ, &padded)
    }

    fn l4proto(self, protocol: u8) -> Self {
        self.meta(meta::L4PROTO).compare(cmp::EQ, &[protocol])
    }

    fn not_tcp(self) -> Self {
        self.meta(meta::L4PROTO).compare(cmp::NEQ, &[protocol::TCP])
    }

    /// Destination address within a prefix, of that prefix's family.
    fn destination(self, subnet: &IpNet) -> Self {
        let family = |family: u8| self.meta(meta::NFPROTO).compare(cmp::EQ, &[family]);
        match (subnet.network(), subnet.netmask()) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => {
                family(NFPROTO_IPV4).masked_destination(16, &address.octets(), &mask.octets())
            }
            (IpAddr::V6(address), IpAddr::V6(mask)) => {
                family(NFPROTO_IPV6).masked_destination(24, &address.octets(), &mask.octets())
            }
            _ => unreachable!("a prefix and its mask are of one family"),
        }
    }

    fn masked_destination(self, offset: u32, address: &[u8], mask: &[u8]) -> Self {
        let len = address.len() as u32;
        let loaded = self.payload(PAYLOAD_NETWORK, offset, len);
        let masked = loaded.push("bitwise", |data| {
            data.be32(1, REGISTER_1);
            data.be32(2, REGISTER_1);
            data.be32(3, len);
            data.nest(4, |operand| operand.bytes(1, mask));
            data.nest(5, |operand| operand.bytes(1, &vec![0; mask.len()]));
        });
        masked.compare(cmp::EQ, address)
    }

    /// Destination port of TCP; the chain's first rule has let everything else go.
    fn destination_port(self, ports: PortRange) -> Self {
        let loaded = self.payload(PAYLOAD_TRANSPORT, 2, 2);
        if ports.first == ports.last {
            return loaded.compare(cmp::EQ, &ports.first.to_be_bytes());
        }
        loaded.push("range", |data| {
            data.be32(1, REGISTER_1);
            data.be32(2, 0);
            data.nest(3, |operand| operand.bytes(1, &ports.first.to_be_bytes()));
            data.nest(4, |operand| operand.bytes(1, &ports.last.to_be_bytes()));
        })
    }

    fn counter(self) -> Self {
        self.push("counter", |_| ())
    }

    fn verdict_return(self) -> Self {
        self.push("immediate", |data| {
            data.be32(1, REGISTER_VERDICT);
            data.nest(2, |operand| operand.nest(2, |verdict| verdict.be32(1, VERDICT_RETURN.cast_unsigned())));
        })
    }

    fn counted_return(self) -> Self {
        self.counter().verdict_return()
    }

    fn redirect(self, port: u16) -> Self {
        let loaded = self.push("immediate", |data| {
            data.be32(1, REGISTER_1);
            data.nest(2, |operand| operand.bytes(1, &port.to_be_bytes()));
        });
        loaded.push("redir", |data| data.be32(1, REGISTER_1))
    }
}
