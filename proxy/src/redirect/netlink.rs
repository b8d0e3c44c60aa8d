//! Carries nf_tables messages to the kernel and reads its answers: RFC 3549 framing, `linux/netfilter/nfnetlink.h`.
//!
//! A batch is one transaction: all of it or nothing. The kernel's answers are read as far as they say what they are;
//! anything malformed is an error, never a panic.
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Counter;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const SUBSYSTEM: u16 = 10 << 8;
const NFNL_BATCH_BEGIN: u16 = 0x10;
const NFNL_BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
/// Length of `nlmsghdr` and of `nfgenmsg` behind it.
const HEADER: usize = 16;
const GENMSG: usize = 4;
/// The kernel fills dumps of at most 32 KiB a datagram.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Netlink answers at once; this only bounds a fault.
const ANSWER_SECONDS: i64 = 5;

/// Why rules could not be written, removed or read, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// The rules themselves.
    #[error("redirect rules: {0}")]
    Rules(String),
    /// No CAP_NET_ADMIN.
    #[error(
        "not allowed to write redirect rules: run as a user with CAP_NET_ADMIN in the pod's network namespace (an init \
         container with capabilities.add: [NET_ADMIN]), or use the CNI plugin where pods must not have it"
    )]
    NotPermitted,
    /// The kernel lacks something.
    #[error("the kernel cannot do it ({step}: {errno}): it needs {needs}, built in or as loaded modules on the node")]
    Unsupported {
        /// What was tried.
        step: String,
        /// What it answered.
        errno: Errno,
        /// Configuration options.
        needs: &'static str,
    },
    /// The kernel refused for another reason.
    #[error("the kernel refused the redirect rules ({step}): {errno}")]
    Refused {
        /// What was tried.
        step: String,
        /// What it answered.
        errno: Errno,
    },
    /// The kernel's answer made no sense.
    #[error("unexpected answer from nf_tables: {0}")]
    Answer(String),
}

impl RedirectError {
    fn of(step: &str, errno: Errno) -> Self {
        let step = step.to_owned();
        let needs = match errno {
            Errno::EPERM | Errno::EACCES => return Self::NotPermitted,
            Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP => {
                "CONFIG_NETFILTER_NETLINK, CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"
            }
            // An unknown chain type or expression is answered with ENOENT.
            Errno::ENOENT if step.contains("nat") => "CONFIG_NF_CONNTRACK, CONFIG_NF_NAT and CONFIG_NFT_NAT",
            Errno::ENOENT => "CONFIG_NFT_REDIR, CONFIG_NFT_COUNTER and CONFIG_NF_TABLES_INET",
            Errno::EINVAL if step == "batch" => "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
            _ => return Self::Refused { step, errno },
        };
        Self::Unsupported { step, errno, needs }
    }
}

/// Attributes in the making: type, length, value, padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("attributes here are far below 64 KiB");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with its terminating NUL.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat());
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NLA_F_NESTED, &inner.0);
    }
}

/// A transaction in the making.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<(u16, u16, Attributes)>,
    /// What each message does, for errors.
    steps: Vec<String>,
}

impl Batch {
    fn push(&mut self, kind: u16, flags: u16, step: String, attributes: Attributes) {
        self.messages.push((kind, flags, attributes));
        self.steps.push(step);
    }

    pub(super) fn add_table(&mut self, table: &str) {
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        self.push(NEWTABLE, NLM_F_CREATE, format!("add table inet {table}"), attributes);
    }

    pub(super) fn delete_table(&mut self, table: &str) {
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        self.push(DELTABLE, 0, format!("delete table inet {table}"), attributes);
    }

    /// A base chain of `kind` (`nat`, `filter`) whose policy is accept.
    pub(super) fn add_chain(&mut self, table: &str, chain: &str, kind: &str, hook: u32, priority: i32) {
        const NF_ACCEPT: u32 = 1;
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        attributes.text(3, chain);
        attributes.nest(4, |base| {
            base.be32(1, hook);
            base.be32(2, priority.cast_unsigned());
        });
        attributes.be32(5, NF_ACCEPT);
        attributes.text(7, kind);
        self.push(NEWCHAIN, NLM_F_CREATE, format!("add {kind} chain {chain}"), attributes);
    }

    /// Appends a rule; `comment` (at most 127 bytes) is shown by `nft` and names the rule in [`Counter`].
    pub(super) fn add_rule(&mut self, table: &str, chain: &str, comment: &str, expressions: &Attributes) {
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        attributes.text(2, chain);
        attributes.bytes(4 | NLA_F_NESTED, &expressions.0);
        attributes.bytes(7, &comment_data(comment));
        self.push(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, format!("add rule `{comment}` to {chain}"), attributes);
    }

    /// The datagram: begin, the messages with sequence numbers from 1, end. The last message asks to be acknowledged;
    /// failures are always answered.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        message(&mut out, NFNL_BATCH_BEGIN, NLM_F_REQUEST, 0, NFPROTO_UNSPEC, SUBSYSTEM >> 8, &Attributes::default());
        for (index, (kind, flags, attributes)) in self.messages.iter().enumerate() {
            let ack = if index + 1 == self.messages.len() { NLM_F_ACK } else { 0 };
            message(&mut out, *kind, NLM_F_REQUEST | ack | flags, index as u32 + 1, NFPROTO_INET, 0, attributes);
        }
        let end = self.messages.len() as u32 + 1;
        message(&mut out, NFNL_BATCH_END, NLM_F_REQUEST, end, NFPROTO_UNSPEC, SUBSYSTEM >> 8, &Attributes::default());
        out
    }
}

/// `nft`'s format of a comment: a type (0), a length, the text with its NUL.
fn comment_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(127)];
    [&[0, text.len() as u8 + 1], text, b"\0"].concat()
}

fn message(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, family: u8, resource: u16, attributes: &Attributes) {
    let len = (HEADER + GENMSG + attributes.0.len()) as u32;
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(&attributes.0);
}

/// A netlink socket to nf_tables of the caller's network namespace.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open() -> Result<Self, RedirectError> {
        let fault = |errno| RedirectError::of("open a netlink socket", errno);
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(fault)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(fault)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS)).map_err(fault)?;
        Ok(Self(fd))
    }

    fn send(&self, datagram: &[u8]) -> Result<(), RedirectError> {
        let sent = sendto(self.0.as_raw_fd(), datagram, &NetlinkAddr::new(0, 0), MsgFlags::empty());
        sent.map(drop).map_err(|errno| RedirectError::of("send to netlink", errno))
    }

    /// Receives datagrams and hands their messages to `each` until it returns a value.
    fn receive<T>(
        &self,
        mut each: impl FnMut(&Message<'_>) -> Result<Option<T>, RedirectError>,
    ) -> Result<T, RedirectError> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            let len = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|errno| RedirectError::of("receive from netlink", errno))?;
            for message in messages(&buffer[..len]) {
                if let Some(value) = each(&message?)? {
                    return Ok(value);
                }
            }
        }
    }

    /// Runs a batch: all of it, or an error and nothing.
    pub(super) fn transact(&self, batch: Batch) -> Result<(), RedirectError> {
        self.send(&batch.encode())?;
        let last = batch.messages.len() as u32;
        self.receive(|message| match message.outcome()? {
            Some(Ok(())) if message.seq == last => Ok(Some(())),
            Some(Ok(())) | None => Ok(None),
            Some(Err(errno)) => {
                let step = message.seq.checked_sub(1).and_then(|index| batch.steps.get(index as usize));
                Err(RedirectError::of(step.map_or("batch", String::as_str), errno))
            }
        })
    }

    pub(super) fn table_exists(&self, table: &str) -> Result<bool, RedirectError> {
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        let mut request = Vec::new();
        message(&mut request, GETTABLE, NLM_F_REQUEST, 1, NFPROTO_INET, 0, &attributes);
        self.send(&request)?;
        self.receive(|message| match message.outcome()? {
            Some(Err(Errno::ENOENT)) => Ok(Some(false)),
            Some(Err(errno)) => Err(RedirectError::of("read the table", errno)),
            Some(Ok(())) | None => Ok((message.kind == NEWTABLE).then_some(true)),
        })
    }

    /// All rules of `table` that have a comment and a counter.
    pub(super) fn counters(&self, table: &str) -> Result<Vec<Counter>, RedirectError> {
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        let mut request = Vec::new();
        message(&mut request, GETRULE, NLM_F_REQUEST | NLM_F_DUMP, 1, NFPROTO_INET, 0, &attributes);
        self.send(&request)?;
        let mut found = Vec::new();
        self.receive(|message| match message.outcome()? {
            Some(Err(Errno::ENOENT)) => Ok(Some(())),
            Some(Err(errno)) => Err(RedirectError::of("read the counters", errno)),
            _ if message.kind == NLMSG_DONE => Ok(Some(())),
            _ => {
                if message.kind == NEWRULE {
                    found.extend(rule_counter(message.attributes(), table)?);
                }
                Ok(None)
            }
        })?;
        Ok(found)
    }
}

/// A message of the kernel.
#[derive(Debug)]
struct Message<'a> {
    kind: u16,
    seq: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// `Ok` for an acknowledgement, `Err` for a failure; `None` if this message is neither.
    fn outcome(&self) -> Result<Option<Result<(), Errno>>, RedirectError> {
        if self.kind != NLMSG_ERROR {
            return Ok(None);
        }
        let code =
            self.body.first_chunk::<4>().ok_or_else(|| RedirectError::Answer("an error without a code".into()))?;
        Ok(Some(match i32::from_ne_bytes(*code) {
            0 => Ok(()),
            code => Err(Errno::from_raw(code.wrapping_neg())),
        }))
    }

    fn attributes(&self) -> &'a [u8] {
        self.body.get(GENMSG..).unwrap_or_default()
    }
}

/// The messages of a datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, RedirectError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let word = |at: usize| datagram.get(at..at + 4)?.first_chunk::<4>().copied();
        let half = |at: usize| datagram.get(at..at + 2)?.first_chunk::<2>().copied();
        let header = word(0).zip(half(4)).zip(word(8));
        let message = header.and_then(|((len, kind), seq)| {
            let len = u32::from_ne_bytes(len) as usize;
            let body = datagram.get(HEADER..len)?;
            Some((len, Message { kind: u16::from_ne_bytes(kind), seq: u32::from_ne_bytes(seq), body }))
        });
        Some(match message {
            Some((len, message)) => {
                datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
                Ok(message)
            }
            None => {
                datagram = &[];
                Err(RedirectError::Answer("a message longer than its datagram".into()))
            }
        })
    })
}

/// The attributes of `bytes` as (type without flags, value); ends at the first that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, rest) = bytes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & NLA_TYPE_MASK, value))
    })
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// Chain, comment and counter of a rule of `table`; `None` if it is of another table or lacks one of them.
fn rule_counter(rule: &[u8], table: &str) -> Result<Option<Counter>, RedirectError> {
    // Old kernels ignore the table in the request and list them all.
    if find(rule, 1).map(text).as_deref() != Some(table) {
        return Ok(None);
    }
    let counter = find(rule, 4)
        .into_iter()
        .flat_map(attributes)
        .find_map(|(_, element)| (text(find(element, 1)?) == "counter").then(|| find(element, 2)).flatten());
    let comment = find(rule, 7).and_then(|data| match data {
        [0, len, rest @ ..] => rest.get(..usize::from(*len)).map(text),
        _ => None,
    });
    let (Some(counter), Some(comment), Some(chain)) = (counter, comment, find(rule, 2)) else { return Ok(None) };
    let number = |kind: u16| {
        let value = find(counter, kind).and_then(|bytes| bytes.first_chunk::<8>());
        value
            .map(|bytes| u64::from_be_bytes(*bytes))
            .ok_or_else(|| RedirectError::Answer("a counter without a value".into()))
    };
    Ok(Some(Counter { chain: text(chain), rule: comment, bytes: number(1)?, packets: number(2)? }))
}

#[cfg(test)]
#[path = "netlink_tests.rs"]
mod tests;
