//! Promises of the encoding; that the kernel understands it is proven by `tests/redirect.rs`.
use proptest::prelude::*;

use super::super::rules::{ProxyTraffic, Rules, install_batch};
use super::*;

fn rules() -> Rules {
    Rules {
        proxy: ProxyTraffic { uid: Some(2102), mark: Some(0x2102) },
        outbound_port: 4240,
        inbound_port: 4243,
        admin_port: 4291,
        skip_inbound_ports: vec!["22".parse().expect("a port")],
        skip_outbound_ports: vec!["8000-8010".parse().expect("a range")],
        skip_subnets: vec!["10.0.0.0/8".parse().expect("a subnet"), "fd00::/8".parse().expect("a subnet")],
    }
}

#[test]
fn attributes_are_padded_and_nested_as_the_kernel_expects() {
    let mut attributes = Attributes::default();
    attributes.text(1, "weft");
    attributes.nest(4, |nested| nested.be32(1, 3));
    let expected: Vec<u8> = [
        &9u16.to_ne_bytes()[..],
        &1u16.to_ne_bytes(),
        b"weft\0\0\0\0",
        &12u16.to_ne_bytes(),
        &(4u16 | 0x8000).to_ne_bytes(),
        &8u16.to_ne_bytes(),
        &1u16.to_ne_bytes(),
        &[0, 0, 0, 3],
    ]
    .concat();
    assert_eq!(attributes.0, expected);
}

#[test]
fn a_batch_replaces_the_table_in_one_transaction() {
    let datagram = install_batch(&rules()).encode();
    let all: Vec<Message<'_>> = messages(&datagram).collect::<Result<_, _>>().expect("our own messages");
    let kinds: Vec<u16> = all.iter().map(|message| message.kind).collect();
    assert_eq!(kinds[..4], [NFNL_BATCH_BEGIN, NEWTABLE, DELTABLE, NEWTABLE]);
    assert_eq!(kinds.last(), Some(&NFNL_BATCH_END));
    assert!(all.iter().enumerate().all(|(index, message)| message.seq == index as u32), "errors are told by number");
    for batch in [all.first(), all.last()].into_iter().flatten() {
        assert_eq!(batch.body, [0, 0, 0, 10], "begin and end name the subsystem, in network order");
    }
}

#[test]
fn every_rule_that_lets_a_connection_go_is_counted() {
    let datagram = install_batch(&rules()).encode();
    let mut seen = Vec::new();
    for message in messages(&datagram) {
        let message = message.expect("our own messages");
        if message.kind != NEWRULE {
            continue;
        }
        let rule = message.attributes();
        let expressions = find(rule, 4).expect("expressions");
        let names: Vec<String> =
            attributes(expressions).map(|(_, element)| text(find(element, 1).expect("a name"))).collect();
        let chain = text(find(rule, 2).expect("a chain"));
        let comment = text(&find(rule, 7).expect("a comment")[2..]);
        // What the chain does not concern, and what the next chain counts, needs no counter of its own.
        let passed_by =
            matches!(comment.as_str(), "not tcp" | "tcp") || (chain == "uncaptured" && comment == "loopback");
        assert_eq!(names.contains(&"counter".to_owned()), !passed_by, "{chain}: {comment}: {names:?}");
        seen.push(format!("{chain}: {comment}"));
    }
    assert_eq!(
        seen,
        [
            "outbound: not tcp",
            "outbound: proxy user",
            "outbound: proxy mark",
            "outbound: loopback",
            "outbound: subnet 10.0.0.0/8",
            "outbound: subnet fd00::/8",
            "outbound: port 8000-8010",
            "outbound: redirect",
            "inbound: not tcp",
            "inbound: loopback",
            "inbound: port 4291",
            "inbound: port 22",
            "inbound: redirect",
            "uncaptured: tcp",
            "uncaptured: loopback",
            "uncaptured: proxy user",
            "uncaptured: proxy mark",
            "uncaptured: udp",
            "uncaptured: icmp",
            "uncaptured: icmpv6",
            "uncaptured: other",
        ]
    );
}

#[test]
fn a_refusal_says_what_to_do() {
    for (step, errno, hint) in [
        ("batch", Errno::EPERM, "CAP_NET_ADMIN"),
        ("open a netlink socket", Errno::EPROTONOSUPPORT, "CONFIG_NF_TABLES"),
        ("add nat chain outbound", Errno::ENOENT, "CONFIG_NFT_NAT"),
        ("add rule `redirect` to outbound", Errno::ENOENT, "CONFIG_NFT_REDIR"),
        ("add rule `redirect` to outbound", Errno::ENOMEM, "add rule `redirect` to outbound"),
    ] {
        let fault = RedirectError::of(step, errno).to_string();
        assert!(fault.contains(hint), "{fault}");
    }
}

#[test]
fn an_error_that_is_unknown_here_is_not_success() {
    // 524 is the kernel's own ENOTSUPP, which no libc knows.
    for (code, success) in [(0, true), (-524, false), (-1, false)] {
        let body = i32::to_ne_bytes(code);
        let outcome = Message { kind: NLMSG_ERROR, seq: 1, body: &body }.outcome();
        assert_eq!(outcome.expect("well-formed").expect("an answer").is_ok(), success, "{code}");
    }
    assert!(Message { kind: NLMSG_ERROR, seq: 1, body: &[0] }.outcome().is_err(), "too short to say");
}

proptest! {
    #[test]
    fn no_answer_makes_the_reader_panic(datagram in proptest::collection::vec(any::<u8>(), 0..256)) {
        for message in messages(&datagram).flatten() {
            let _ = message.outcome();
            let _ = rule_counter(message.attributes(), "weft");
        }
        let _ = rule_counter(&datagram, "weft");
    }
}
