//! gRPC's interoperability cases: tonic and Go as clients and as servers, in all four pairings, and what a call becomes
//! when the sidecars cannot or must not carry it.
mod client;
mod messages;
mod server;

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tonic::Code;
use weft_loadtests::lab::{Process, Task};
use weft_loadtests::mesh::eventually;

use crate::fixture::{Case, HOST, PATIENCE, Pair, port, program, run, within};
use crate::nginx::nginx;

pub const CASES: &[Case] = &[
    Case::new("grpc_from_tonic_to_tonic", &[], tonic_to_tonic),
    Case::new("grpc_from_tonic_to_go", &["grpc-interop-server"], tonic_to_go),
    Case::new("grpc_from_go_to_tonic", &["grpc-interop-client"], go_to_tonic),
    Case::new("grpc_from_go_to_go", &["grpc-interop-client", "grpc-interop-server"], go_to_go),
    Case::new("grpc_from_tonic_to_tonic_by_way_of_nginx", &["nginx"], by_nginx),
    Case::new("a_grpc_call_that_is_not_carried_ends_with_a_status", &[], statuses),
    Case::new("a_cancelled_grpc_call_is_cancelled_at_the_server", &[], cancellation),
];

/// The cases of gRPC's interoperability tests that need neither TLS nor credentials of their own.
const INTEROP: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
];

fn serve_tonic(pair: &Pair) -> Result<Task<Result<()>>> {
    let listener = pair.server.pod.listen(8080)?;
    Ok(pair.server.pod.start(move || server::serve(listener, server::Counts::default()))?)
}

/// The protocol is seen on one port, and declared on the other.
fn from_tonic(pair: &Pair) -> Result<()> {
    for port in [port::SEEN, port::HTTP2] {
        for case in INTEROP {
            let target = pair.address(port);
            within(&pair.client.pod, move || client::run(case, target))
                .with_context(|| format!("{case}, port {port}"))?;
        }
    }
    carried(pair)
}

fn from_go(pair: &Pair) -> Result<()> {
    for port in [port::SEEN, port::HTTP2] {
        for case in INTEROP {
            let port = port.to_string();
            let arguments = ["-server_host", HOST, "-server_port", &port, "-test_case", case];
            run(&pair.client.pod, "grpc-interop-client", &arguments).with_context(|| format!("{case}, port {port}"))?;
        }
    }
    carried(pair)
}

/// The sidecars read the statuses: OK, UNKNOWN (of the status cases) and UNIMPLEMENTED.
fn carried(pair: &Pair) -> Result<()> {
    pair.carried_requests("grpc", 28.0)?;
    for (status, least) in [("0", 12.0), ("2", 4.0), ("12", 4.0)] {
        let labels = ["direction=\"inbound\"", "tls=\"true\"", &format!("grpc_status=\"{status}\"")];
        let count = pair.server.metric("weft_requests_total", &labels)?;
        ensure!(count >= least, "status {status} was counted {count} times: {}", pair.server.metrics()?);
    }
    Ok(())
}

fn tonic_to_tonic() -> Result<()> {
    let pair = Pair::start("grpc-tt")?;
    let _server = serve_tonic(&pair)?;
    from_tonic(&pair)
}

fn go_to_tonic() -> Result<()> {
    let pair = Pair::start("grpc-gt")?;
    let _server = serve_tonic(&pair)?;
    from_go(&pair)
}

const PROXY: &str = "server {
    listen 127.0.0.1:7000 http2;
    location / { grpc_pass grpc://10.96.0.10:82; client_max_body_size 0; }
}\n";

fn by_nginx() -> Result<()> {
    let pair = Pair::start("grpc-nginx")?;
    let _server = serve_tonic(&pair)?;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, 7000));
    let run = |case: &'static str| within(&pair.client.pod, move || client::run(case, target));
    let _nginx = pair.serve_beside_client(nginx(&pair.client.pod, PROXY)?, || run("empty_unary"))?;
    for case in INTEROP {
        run(case).with_context(|| (*case).to_owned())?;
    }
    pair.carried_requests("grpc", 14.0)
}

fn serve_go(pair: &Pair) -> Result<Process> {
    let target = pair.address(port::HTTP2);
    let pod = &pair.client.pod;
    let works = || within(pod, move || client::run("empty_unary", target));
    pair.serve(program("grpc-interop-server")?.args(["-port", "8080"]), works)
}

fn tonic_to_go() -> Result<()> {
    let pair = Pair::start("grpc-tg")?;
    let _server = serve_go(&pair)?;
    from_tonic(&pair)
}

fn go_to_go() -> Result<()> {
    let pair = Pair::start("grpc-gg")?;
    let _server = serve_go(&pair)?;
    from_go(&pair)
}

fn statuses() -> Result<()> {
    let pair = Pair::start("grpc-status")?;
    let call = |port: u16| {
        let target = pair.address(port);
        within(&pair.client.pod, move || async move { Ok(client::empty_call(target).await?.err()) })
    };
    let nobody = call(port::HTTP2)?.context("nobody listens")?;
    ensure!(nobody.code() == Code::Unavailable && nobody.message().contains("refused"), "{nobody:?}");
    let _server = serve_tonic(&pair)?;
    ensure!(call(port::HTTP2)?.is_none(), "it is served now");
    pair.mesh.write(
        "deny.yaml",
        "apiVersion: policy.weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: no-calls, namespace: shop}\n\
         spec: {action: Deny, rules: [{to: [{paths: [/grpc.testing.TestService/EmptyCall]}]}]}\n",
    )?;
    let mut last = None;
    eventually("the policy is in force", PATIENCE, || {
        last = call(port::HTTP2)?;
        Ok(last.is_some())
    })
    .with_context(|| pair.mesh.control_plane().map(|process| process.stdout()).unwrap_or_default())?;
    let denied = last.context("it is denied")?;
    ensure!(denied.code() == Code::PermissionDenied && denied.message().contains("no-calls"), "{denied:?}");
    Ok(())
}

fn cancellation() -> Result<()> {
    let pair = Pair::start("grpc-cancel")?;
    let counts = server::Counts::default();
    let listener = pair.server.pod.listen(8080)?;
    let counted = counts.clone();
    let _server = pair.server.pod.start(move || server::serve(listener, counted))?;
    let target = pair.address(port::SEEN);
    let (tell, told) = tokio::sync::oneshot::channel();
    let client = pair.client.pod.start(move || client::drop_when_told(target, told))?;
    eventually("the server has the first message", PATIENCE, || Ok(counts.begun() == 1))?;
    ensure!(counts.cancelled() == 0, "it is not cancelled yet");
    let _ = tell.send(());
    client.join()??;
    eventually("the handler has ended", PATIENCE, || Ok(counts.cancelled() == 1))?;
    within(&pair.client.pod, move || client::run("cancel_after_first_response", target))?;
    eventually("the second handler has ended", PATIENCE, || Ok(counts.cancelled() == 2))
}
