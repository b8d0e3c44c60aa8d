//! What can be read between two addresses, on all interfaces of this network namespace: on a node's own, between its
//! pods. Needs CAP_NET_RAW.
use std::io::{Error, ErrorKind, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use weft_loadtests::lab::{Frame, Segment, packet_socket};

use super::{PRINT, WatchArgs};

/// The largest frame: 64 KiB of IP and its headers, with room to spare.
const LARGEST_FRAME: usize = 256 << 10;
/// What a TLS record of application data begins with, RFC 8446 section 5.1.
const APPLICATION_DATA: [u8; 3] = [0x17, 0x03, 0x03];

#[derive(Clone, Debug, Default)]
struct Seen {
    segments: u64,
    bytes: u64,
    tls_records: u64,
    with_text: u64,
}

/// Until told to stop.
pub(super) async fn watch(args: &WatchArgs) -> anyhow::Result<()> {
    anyhow::ensure!(!args.text.is_empty(), "--text must not be empty");
    let mut terminate = signal(SignalKind::terminate())?;
    let socket = packet_socket().context("open a packet socket (CAP_NET_RAW)")?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let so_far = || line(&seen.lock().unwrap_or_else(PoisonError::into_inner));
    let (failed, mut fault) = tokio::sync::oneshot::channel();
    let (counted, args) = (seen.clone(), args.clone());
    // Ends with the process.
    std::thread::spawn(move || drop(failed.send(read(socket, &args, &counted))));
    let mut every = tokio::time::interval(PRINT);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            fault = &mut fault => return Err(fault?).context("read from the wire"),
            _ = every.tick() => println!("{}", so_far()),
        }
    }
    println!("{}", so_far());
    Ok(())
}

/// Counts what comes until it cannot be read.
fn read(mut socket: impl Read, args: &WatchArgs, seen: &Mutex<Seen>) -> Error {
    let mut frame = Frame { at: SystemTime::now(), bytes: Vec::new() };
    loop {
        frame.bytes.resize(LARGEST_FRAME, 0);
        match socket.read(&mut frame.bytes) {
            Ok(length) => frame.bytes.truncate(length),
            Err(fault) if fault.kind() == ErrorKind::Interrupted => continue,
            Err(fault) => return fault,
        }
        if let Some(segment) = frame.segment() {
            count(&mut seen.lock().unwrap_or_else(PoisonError::into_inner), args, &segment);
        }
    }
}

fn count(seen: &mut Seen, args: &WatchArgs, segment: &Segment<'_>) {
    let ends = (segment.source.ip(), segment.destination.ip());
    if ends != (args.one, args.other) && ends != (args.other, args.one) {
        return;
    }
    let text = args.text.as_bytes();
    seen.segments += 1;
    seen.bytes += segment.payload.len() as u64;
    seen.tls_records += u64::from(segment.payload.starts_with(&APPLICATION_DATA));
    seen.with_text += u64::from(segment.payload.windows(text.len()).any(|window| window == text));
}

fn line(seen: &Seen) -> serde_json::Value {
    let Seen { segments, bytes, tls_records, with_text } = seen;
    json!({"segments": segments, "bytes": bytes, "tls_records": tls_records, "with_text": with_text})
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;

    #[test]
    fn only_segments_between_the_two_addresses_are_counted_in_both_directions() {
        let address = |last: u8| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
        let args = WatchArgs { one: address(1), other: address(2), text: "secret".into() };
        let mut seen = Seen::default();
        for (from, to, payload) in [
            (1, 2, b"GET /secret".as_slice()),
            (2, 1, b"200 no secre"),
            (2, 1, b"\x17\x03\x03\x00\x10noise"),
            (1, 3, b"secret"),
            (3, 2, b"secret"),
        ] {
            let end = |last| SocketAddr::new(address(last), 80);
            let (source, destination) = (end(from), end(to));
            count(&mut seen, &args, &Segment { source, destination, sequence: 0, syn: false, reset: false, payload });
        }
        assert_eq!((seen.segments, seen.tls_records, seen.with_text), (3, 1, 1));
    }
}
