//! Section E: whatever address is asked for, no connection loops, and nobody is reached past the sidecar.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use weft_loadtests::lab::Pod;
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Bench, PORT, Want};
use crate::wire::{self, PATIENCE, Way};

pub const TESTS: &[Test] = &[
    ("no_address_of_a_sidecars_port_leads_into_it_or_round_in_a_circle", own_ports),
    ("an_application_on_loopback_alone_is_not_reached_from_outside", loopback_only),
    ("who_leaves_its_pod_past_its_sidecar_arrives_without_an_identity", past_the_sidecar),
    ("addresses_that_nobody_can_have_are_refused_and_do_no_harm", odd_addresses),
];

pub fn rows() -> Vec<u32> {
    vec![96, 99, 100, 101]
}

/// What a bare client gets: its bytes, or none.
fn touch(pod: &Pod, target: SocketAddr) -> Result<Option<Vec<u8>>> {
    pod.run(move || async move {
        let attempt = async {
            let mut stream = TcpStream::connect(target).await.ok()?;
            stream.write_all(b"GET /public/x HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await.ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok()?;
            Some(answer)
        };
        tokio::time::timeout(PATIENCE, attempt).await.map_err(|_| anyhow::anyhow!("{target} neither answers nor ends"))
    })?
}

/// Row 96.
fn own_ports() -> Result<()> {
    let bench = Bench::start("ownports")?;
    let own = &bench.server.pod;
    let v6 = own.ipv6().context("the lab gives both families")?;
    let mapped = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
    let inside = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        mapped,
        own.address(1).ip(),
        v6.into(),
    ];
    let outside = [own.address(1).ip(), v6.into()];
    let from = |pod, addresses: &[IpAddr]| addresses.iter().map(|address| (pod, *address)).collect::<Vec<_>>();
    let ways = [from(&bench.attacker, &outside), from(&bench.client.pod, &outside), from(own, &inside)].concat();
    for port in [4240, 4243] {
        for (pod, address) in &ways {
            let target = SocketAddr::new(*address, port);
            bench.recorder.take();
            let before = bench.counters()?.refused;
            let answer = touch(pod, target)?;
            // The client's own sidecar may answer for a destination that it did not reach.
            let answered_for = answer.as_deref().is_some_and(|answer| answer.starts_with(b"HTTP/1.1 502"));
            ensure!(
                answer.as_ref().is_none_or(Vec::is_empty) || answered_for,
                "{} to {target}: {answer:?}",
                pod.name()
            );
            ensure!(bench.recorder.take().is_empty(), "{} to {target} reached the application", pod.name());
            let refused = bench.counters()?.refused - before;
            ensure!(refused <= 2.0, "{} to {target} went round: {refused}", pod.name());
        }
    }
    for (pod, address) in ways {
        let answer = touch(pod, SocketAddr::new(address, 4291))?.unwrap_or_default();
        let text = String::from_utf8_lossy(&answer);
        let nothing = ["HTTP/1.1 404", "HTTP/1.1 502"].iter().any(|status| text.starts_with(status));
        ensure!(text.is_empty() || nothing, "{} to {address}: {text}", pod.name());
    }
    bench.good(&Way::Plain)?;
    bench.lives()
}

/// Row 99.
fn loopback_only() -> Result<()> {
    let bench = Bench::start("loopback")?;
    let listener = bench.server.pod.run(|| async { std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 8081)) })??;
    let accepted = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&accepted);
    let _app = bench.server.pod.start(move || async move {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            listener.accept().await?;
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        #[allow(unreachable_code)]
        std::io::Result::Ok(())
    })?;
    let target = bench.server.pod.address(8081);
    for way in [bench.http1.clone(), Way::Plain] {
        let bytes = b"GET /public/x HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n".to_vec();
        let outcome = bench.attacker.run(move || wire::http1(way, target, bytes, 1, true))??;
        ensure!(!outcome.statuses.contains(&200), "{outcome:?}");
    }
    ensure!(accepted.load(std::sync::atomic::Ordering::Relaxed) == 0, "the application was reached");
    bench.good(&Way::Plain)
}

/// Row 100: a process with the sidecar's mark is not captured; the other pod's sidecar refuses it all the same.
fn past_the_sidecar() -> Result<()> {
    let bench = Bench::start("past")?;
    let target = bench.server.pod.address(PORT);
    let attempt = || {
        bench.client.pod.run(move || async move {
            let socket = TcpSocket::new_v4()?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &0x2102)?;
            let mut stream = socket.connect(target).await?;
            stream.write_all(b"GET /public/x HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await?;
            wire::read_http1(&mut stream, 1, true).await
        })?
    };
    bench.judge("row 100", &Way::Plain, Want::Denied, attempt)
}

/// Row 101.
fn odd_addresses() -> Result<()> {
    let bench = Bench::start("odd")?;
    let odd: [SocketAddr; 7] = [
        SocketAddr::from(([169, 254, 169, 254], 80)),
        SocketAddr::from(([224, 0, 0, 1], 80)),
        SocketAddr::from(([255, 255, 255, 255], 80)),
        SocketAddr::from(([0, 0, 0, 0], 80)),
        SocketAddr::from(([10, 96, 0, 10], 0)),
        "[ff02::1]:80".parse()?,
        SocketAddr::V6(std::net::SocketAddrV6::new("fe80::1".parse()?, 80, 0, 2)),
    ];
    for target in odd {
        let connected = bench.client.pod.run(move || async move {
            let attempt = async {
                let mut stream = TcpStream::connect(target).await?;
                stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await?;
                std::io::Result::Ok(answer)
            };
            tokio::time::timeout(Duration::from_secs(5), attempt).await
        })?;
        // To a neighbour that is not there the system itself may try for long.
        if let Ok(answer) = connected {
            ensure!(answer.as_ref().map_or(true, Vec::is_empty), "{target}: {answer:?}");
        }
        let client = bench.client.sidecar()?;
        ensure!(client.try_wait().is_none() && client.count_lines(|line| line.contains("panicked")) == 0);
    }
    bench.good(&Way::Plain)
}
