//! Section A: what path, host, method and fields mean, over HTTP/1.1 and HTTP/2, inside mTLS and in plaintext.
use anyhow::{Result, ensure};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Bench, SERVICE, Want};
use crate::recorder::Seen;
use crate::wire::{self, Way, block, headers, opening};

pub const TESTS: &[Test] = &[
    ("what_a_request_means_over_http1", over_http1),
    ("what_a_request_means_over_http2", over_http2),
    ("an_application_cannot_choose_another_destination_than_the_one_it_connected_to", no_relay),
];

/// A request in the terms that both versions have.
struct Ask {
    method: Vec<u8>,
    target: Vec<u8>,
    hosts: Vec<Vec<u8>>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Ask {
    fn get(target: impl AsRef<[u8]>) -> Self {
        let target = target.as_ref().to_vec();
        Self { method: b"GET".to_vec(), target, hosts: vec![b"server.test".to_vec()], fields: Vec::new() }
    }

    fn public() -> Self {
        Self::get("/public/x")
    }

    fn method(mut self, method: &str) -> Self {
        self.method = method.into();
        self
    }

    fn hosts(mut self, hosts: &[&str]) -> Self {
        self.hosts = hosts.iter().map(|host| host.as_bytes().to_vec()).collect();
        self
    }

    fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    fn http1(&self) -> Vec<u8> {
        let mut bytes = [&self.method[..], b" ", &self.target, b" HTTP/1.1\r\n"].concat();
        for host in &self.hosts {
            bytes.extend([b"host: ", &host[..], b"\r\n"].concat());
        }
        for (name, value) in &self.fields {
            bytes.extend([&name[..], b": ", value, b"\r\n"].concat());
        }
        bytes.extend(b"\r\n");
        bytes
    }

    /// The first host is `:authority`, as a client would have it, the others are `host` fields.
    fn http2(&self) -> Vec<u8> {
        let mut fields: Vec<(&[u8], &[u8])> =
            vec![(b":method", &self.method), (b":scheme", b"http"), (b":path", &self.target)];
        let mut hosts = self.hosts.iter();
        fields.extend(hosts.next().map(|host| (&b":authority"[..], &host[..])));
        fields.extend(hosts.map(|host| (&b"host"[..], &host[..])));
        let lower: Vec<_> = self.fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        fields.extend(lower.iter().map(|(name, value)| (&name[..], &value[..])));
        [opening(&[]), headers(1, &block(&fields), wire::END_STREAM)].concat()
    }
}

const BAD: Want = Want::Bad(&[400]);
/// By its first bytes it may be no HTTP at all, and is cut off as a byte stream that nobody may send.
const BAD_OR_CUT: Want = Want::Bad(&[400, 0]);

fn target_is(seen: &[Seen], target: &str) -> bool {
    seen.len() == 1 && seen[0].target() == target
}

/// Row, request, outcome.
fn table() -> Vec<(u32, Ask, Want)> {
    let mut rows: Vec<(u32, Ask, Want)> = Vec::new();
    let mut all = |row: u32, targets: &[&str], want: Want| {
        rows.extend(targets.iter().map(|target| (row, Ask::get(target), want)));
    };
    all(1, &["/public/../admin", "/public/./../admin", "/a/b/../../admin"], Want::Denied);
    all(1, &["/public/a/../b/./c"], Want::Served(|seen| target_is(seen, "/public/b/c")));
    all(2, &["/public/%2e%2e/admin", "/public/%2E./admin", "/%2e/admin"], Want::Denied);
    all(3, &["//admin", "/admin//x", "///admin"], Want::Denied);
    all(4, &["/%2fadmin", "/public%2f..%2fadmin", "/%2Fadmin"], BAD);
    all(5, &["/public\\..\\admin", "/%5cadmin"], BAD);
    all(6, &["/%61dmin", "/adm%69n"], Want::Denied);
    all(7, &["/%252e%252e/admin", "/%25%32%66admin"], Want::Denied);
    all(7, &["/public/%252e%252e/x"], Want::Served(|seen| target_is(seen, "/public/%252e%252e/x")));
    all(8, &["/admin%00", "/public%00/../admin"], BAD);
    all(9, &["/admin%zz", "/admin%", "/admin%2"], BAD);
    all(10, &["/%c0%ae%c0%ae/admin", "/%c0%afadmin"], Want::Denied);
    all(12, &["/admin?x=1", "/admin?", "/admin?/public"], Want::Denied);
    all(13, &["/admin#x", "/user#section1"], Want::Denied);
    all(14, &["/ADMIN", "/Admin"], Want::Denied);
    all(15, &["/admin;a=b"], Want::Denied);
    for byte in [0x80_u8, 0xc3, 0xff] {
        rows.push((11, Ask::get([&b"/public/"[..], &[byte]].concat()), BAD));
    }
    rows.push((11, Ask::get("/public/é"), BAD));
    let mut hosts = |row: u32, hosts: &[&str], want: Want| {
        rows.extend(hosts.iter().map(|host| (row, Ask::public().hosts(&[host]), want)));
    };
    hosts(16, &["SECRET.test", "Secret.Test"], Want::Denied);
    hosts(17, &["secret.test:80", "secret.test:8080", "secret.test:65535"], Want::Denied);
    hosts(18, &["secret.test."], Want::Denied);
    hosts(18, &["secret.test.."], BAD);
    let label = "a".repeat(300);
    hosts(21, &["a/b", "u@a", "a, b", "a b", &label, "xn--99999999999"], BAD);
    hosts(20, &[""], BAD);
    rows.push((20, Ask::public().hosts(&[]), BAD));
    rows.push((19, Ask::public().hosts(&["allowed.test", "secret.test"]), BAD));
    rows.push((22, Ask::public().method("get"), BAD));
    rows.push((22, Ask::public().method("Get"), BAD));
    rows.push((23, Ask::public().method("FOO"), Want::Denied));
    rows.push((23, Ask::public().method(&"A".repeat(1024)), BAD_OR_CUT));
    rows.push((24, Ask::public().field("x-role", "user").field("x-role", "admin"), Want::Denied));
    rows.push((24, Ask::public().field("x-role", "user,admin"), Want::Denied));
    rows.push((25, Ask::public().field("X-RoLe", "admin"), Want::Denied));
    let claim = "By=spiffe://cluster.local/ns/shop/sa/server;URI=spiffe://cluster.local/ns/shop/sa/admin";
    let no_claim: fn(&[Seen]) -> bool = |seen| {
        seen.len() == 1
            && !seen[0].head.contains("sa/admin")
            && seen[0].values("x-forwarded-client-cert").len() <= 1
            && seen[0].values("x_forwarded_client_cert").is_empty()
    };
    rows.push((26, Ask::public().field("x-forwarded-client-cert", claim), Want::Served(no_claim)));
    rows.push((28, Ask::public().field("x_forwarded_client_cert", claim), Want::Served(no_claim)));
    // Weft has no other field that a request could carry in a decision; what looks like one means nothing.
    let mine: fn(&[Seen]) -> bool = |seen| seen.len() == 1 && seen[0].target() == "/public/x";
    for (name, value) in
        [("x-weft-identity", "admin"), ("x-envoy-original-path", "/admin"), ("x-original-url", "/admin")]
    {
        rows.push((27, Ask::public().field(name, value), Want::Served(mine)));
        rows.push((27, Ask::get("/admin").field(name, "/public/x"), Want::Denied));
    }
    rows.push((31, Ask::public().field("x-forwarded-for", "192.0.2.1"), Want::Served(mine)));
    rows
}

pub fn rows() -> Vec<u32> {
    let mut rows: Vec<u32> = table().iter().map(|(row, ..)| *row).collect();
    // Tested by `no_relay`.
    rows.push(29);
    rows
}

/// Whether the caller's identity is told as it was proven.
fn identity_is_told(bench: &Bench, way: &Way) -> Result<()> {
    bench.recorder.take();
    bench.good(way)?;
    let seen = bench.recorder.take();
    let told = seen.iter().flat_map(|seen| seen.values("x-forwarded-client-cert")).collect::<Vec<_>>().join(" ");
    match way {
        Way::Plain => ensure!(told.is_empty(), "{told}"),
        Way::Mutual(_) => ensure!(told.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "{told}"),
    }
    Ok(())
}

fn over_http1() -> Result<()> {
    let bench = Bench::start("semantics1")?;
    for (place, way) in [("mTLS", &bench.http1), ("plaintext", &Way::Plain)] {
        identity_is_told(&bench, way)?;
        for (row, ask, want) in table() {
            let bytes = ask.http1();
            let name = format!("row {row} over {place}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(120)]));
            let to_end = matches!(want, Want::Bad(_));
            bench.judge(&name, way, want, || bench.send_http1(way, bytes, 1, to_end))?;
        }
    }
    Ok(())
}

fn over_http2() -> Result<()> {
    let bench = Bench::start("semantics2")?;
    for (place, way) in [("mTLS", &bench.http2), ("plaintext", &Way::Plain)] {
        for (row, ask, want) in table() {
            let bytes = ask.http2();
            let name = format!(
                "row {row} over {place} in HTTP/2: {}",
                String::from_utf8_lossy(&ask.http1()[..60.min(ask.http1().len())])
            );
            bench.judge(&name, way, want, || bench.send_http2(way, bytes, false))?;
        }
    }
    Ok(())
}

/// Row 29. What an application says in its request never changes where its connection goes.
fn no_relay() -> Result<()> {
    let bench = Bench::start("norelay")?;
    let web = std::net::SocketAddr::new(SERVICE, 80);
    for fields in [
        "host: elsewhere.test",
        "host: server\r\nx-weft-destination: elsewhere:1",
        "host: server\r\nx-forwarded-host: e",
    ] {
        bench.recorder.take();
        let bytes = format!("GET /public/x HTTP/1.1\r\n{fields}\r\n\r\n").into_bytes();
        let outcome = bench.client.pod.run(move || wire::http1(Way::Plain, web, bytes, 1, false))??;
        ensure!(outcome.statuses == [200] && bench.recorder.take().len() == 1, "{fields}: {outcome:?}");
    }
    let bytes = b"GET http://10.96.0.99:81/public/x HTTP/1.1\r\nhost: server\r\n\r\n".to_vec();
    let outcome = bench.client.pod.run(move || wire::http1(Way::Plain, web, bytes, 1, false))??;
    ensure!(outcome.statuses == [200] && bench.recorder.take().len() == 1, "an absolute target: {outcome:?}");
    Ok(())
}
