//! WebSocket: a table of conversations, each of which must go through the mesh as it goes without; over HTTP/1.1, over
//! HTTP/2 (RFC 8441), and by way of nginx and HAProxy.
mod conversation;
mod echo;

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use weft_loadtests::lab::{Pod, Task};
use weft_loadtests::mesh::eventually;

use crate::fixture::{Case, PATIENCE, Pair, port, within};
use crate::{haproxy, nginx};
use conversation::{Way, conversations, hold, one_frame};

pub const CASES: &[Case] = &[
    Case::new("websocket_conversations_over_http1_go_as_without_a_mesh", &[], over_http1),
    Case::new("websocket_conversations_over_http2_go_as_without_a_mesh", &[], over_http2),
    Case::new("websockets_pass_nginx_as_a_client_of_the_mesh", &["nginx"], by_nginx),
    Case::new("websockets_pass_haproxy_on_both_sides_over_either_http", &["haproxy"], by_haproxy),
    Case::new("a_websocket_over_http2_is_judged_as_the_get_that_it_is_over_http1", &[], judged),
    Case::new("connect_is_refused_unless_it_begins_a_websocket", &[], connect_refused),
];

/// Echo on a port of the server: WebSocket over HTTP/1.1 and HTTP/2.
fn serve(pair: &Pair, port: u16) -> Result<Task<Result<()>>> {
    let listener = pair.server.pod.listen(port)?;
    Ok(pair.server.pod.start(move || echo::serve(listener))?)
}

/// What every conversation comes to, in the pod, at an address.
fn transcripts(pod: &Pod, target: SocketAddr, way: Way) -> Result<Vec<(String, String)>> {
    let all = pod.run(move || async move {
        let mut all = Vec::new();
        for (name, frames) in conversations() {
            let held = tokio::time::timeout(PATIENCE, hold(target, way, frames)).await;
            let came = held.with_context(|| format!("{name}: not done within {PATIENCE:?}"))??;
            all.push((name, came));
        }
        anyhow::Ok(all)
    })??;
    Ok(all)
}

fn compare(pair: &Pair, direct: SocketAddr, meshed: SocketAddr, way: Way) -> Result<()> {
    let expected = transcripts(&pair.server.pod, direct, way)?;
    let got = transcripts(&pair.client.pod, meshed, way)?;
    for ((name, expected), (_, got)) in expected.iter().zip(&got) {
        ensure!(expected == got, "{name}:\nwithout the mesh {expected}\nwith it {got}");
    }
    // The application is no idler: what is whole comes back whole.
    let find = |name: &str| got.iter().find(|(known, _)| known == name).map(|(_, came)| came.as_str());
    let large = find("9.2.6 binary of 16 MiB").context("the conversation")?;
    ensure!(large.starts_with("binary of 16777216 "), "{large}");
    let split = find("5.6 ping between fragments").context("the conversation")?;
    ensure!(split.starts_with("pong of 4 ") && split.contains("text of 10 "), "{split}");
    Ok(())
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn over_http1() -> Result<()> {
    let pair = Pair::start("ws-one")?;
    let _echo = serve(&pair, 8080)?;
    compare(&pair, loopback(8080), pair.address(port::SEEN), Way::Http1)?;
    within_one(&pair, pair.address(port::HTTP1), Way::Http1)?;
    pair.carried_requests("http1", conversations().len() as f64)
}

fn over_http2() -> Result<()> {
    let pair = Pair::start("ws-two")?;
    let _echo = serve(&pair, 8080)?;
    compare(&pair, loopback(8080), pair.address(port::SEEN), Way::Http2)?;
    within_one(&pair, pair.address(port::HTTP2), Way::Http2)?;
    pair.carried_requests("http2", conversations().len() as f64)
}

/// One frame there and back.
fn within_one(pair: &Pair, target: SocketAddr, way: Way) -> Result<()> {
    let came = within(&pair.client.pod, move || hold(target, way, one_frame()))?;
    ensure!(came.starts_with("text of 5 "), "{came}");
    Ok(())
}

const PROXY: &str = "server {
    listen 127.0.0.1:7000;
    location / {
        proxy_pass http://10.96.0.10:80; proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection 'upgrade';
    }
}\n";

fn by_nginx() -> Result<()> {
    let pair = Pair::start("ws-nginx")?;
    let _echo = serve(&pair, 8080)?;
    let works = || within_one(&pair, loopback(7000), Way::Http1);
    let _nginx = pair.serve_beside_client(nginx::nginx(&pair.client.pod, PROXY)?, works)?;
    compare(&pair, loopback(8080), loopback(7000), Way::Http1)
}

fn by_haproxy() -> Result<()> {
    let pair = Pair::start("ws-haproxy")?;
    let _echo = serve(&pair, 8081)?;
    let server = haproxy::haproxy(&pair.server.pod, haproxy::SERVER)?;
    let _server = pair.serve(server, || within_one(&pair, pair.address(port::SEEN), Way::Http1))?;
    let client = haproxy::haproxy(&pair.client.pod, haproxy::CLIENT)?;
    let _client = pair.serve_beside_client(client, || within_one(&pair, loopback(7001), Way::Http1))?;
    for port in [7001, 7003] {
        compare(&pair, loopback(8081), loopback(port), Way::Http1).with_context(|| format!("port {port}"))?;
    }
    // The second went over HTTP/2, as HAProxy's extended CONNECT.
    pair.carried_requests("http2", conversations().len() as f64)
}

fn judged() -> Result<()> {
    let pair = Pair::start("ws-judged")?;
    let _echo = serve(&pair, 8080)?;
    pair.mesh.write(
        "deny.yaml",
        "apiVersion: policy.weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: no-chat, namespace: shop}\n\
         spec: {action: Deny, rules: [{to: [{methods: [GET], paths: [/chat]}]}]}\n",
    )?;
    let target = pair.address(port::SEEN);
    let ask = |way| within(&pair.client.pod, move || async move { Ok(hold(target, way, one_frame()).await) });
    eventually("the policy is in force", PATIENCE, || Ok(ask(Way::Http1)?.is_err()))?;
    for way in [Way::Http1, Way::Http2] {
        let refused = ask(way)?.err().context("it is denied")?.to_string();
        ensure!(refused.contains("403"), "{way:?}: {refused}");
    }
    Ok(())
}

fn connect_refused() -> Result<()> {
    let pair = Pair::start("ws-connect")?;
    let _echo = serve(&pair, 8080)?;
    let target = pair.address(port::SEEN);
    let outside = pair.mesh.lab.pod(weft_loadtests::lab::PodSpec::new("outside"))?;
    let inbound = pair.server.pod.address(8080);
    for (pod, target) in [(&pair.client.pod, target), (&outside, inbound)] {
        for protocol in [None, Some("connect-udp"), Some("connect-tcp"), Some("WebSocket")] {
            let status = within(pod, move || conversation::connect_status(target, protocol))?;
            ensure!(status == 405, "{protocol:?} at {target}: {status}");
        }
        let status = within(pod, move || conversation::connect_status(target, Some("websocket")))?;
        ensure!(status == 200, "at {target}: {status}");
    }
    Ok(())
}
