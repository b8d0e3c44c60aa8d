//! Two HAProxys: mTLS between them, ACLs with the caller's certificate, rate tracking, statistics. It cannot mark its
//! connections and so cannot stand behind a redirect here: it listens on ports of its own.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::certificates::{self, Files};
use super::{CLIENT_SIDE, HTTP1, HTTP2, OPAQUE, OPEN_FILES, Pair, Pods, Programs, SERVER_SIDE};
use crate::lab::{Pod, Process, Program};

pub(super) fn start(pods: Pods, programs: &Programs) -> Result<Pair> {
    let program = programs.haproxy.as_deref().context("there is no haproxy")?;
    let server = pods.server_address()?;
    let (of_client, of_server) = certificates::make(pods.lab.directory())?;
    let start = |pod: &Pod, config: String| -> Result<Process> {
        let file = pod.directory().join("haproxy.cfg");
        std::fs::write(&file, config)?;
        Ok(pod.spawn(Program::new(program).args(["-db", "-f"]).arg(file).open_files(OPEN_FILES))?)
    };
    let sidecars = vec![
        start(&pods.client, beside_client(&of_client, server))?,
        start(&pods.server, beside_server(&of_server, server))?,
    ];
    pods.pair(Ipv4Addr::LOCALHOST.into(), CLIENT_SIDE, sidecars)
}

/// A connection from either side may take two descriptors.
const COMMON: &str = "
global
  nbthread 2
  maxconn 9500
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
frontend statistics
  mode http
  bind 127.0.0.1:4291
  http-request use-service prometheus-exporter if { path /metrics }
";

fn beside_client(files: &Files, server: Ipv4Addr) -> String {
    let tls = format!("ssl crt {} ca-file {} verify required", files.both.display(), files.authority.display());
    let mut config = String::from(COMMON);
    for (port, mode, listen, to) in
        [(HTTP1, "http", "", ""), (HTTP2, "http", "proto h2", "alpn h2"), (OPAQUE, "tcp", "", "")]
    {
        let (here, there) = (port + CLIENT_SIDE, port + SERVER_SIDE);
        config.push_str(&format!(
            "listen out{port}\n  mode {mode}\n  bind 127.0.0.1:{here} {listen}\n  server one {server}:{there} {tls} {to}\n"
        ));
        if mode == "http" {
            config.push_str("  http-reuse always\n");
        }
    }
    config
}

fn beside_server(files: &Files, server: Ipv4Addr) -> String {
    let tls = format!("ssl crt {} ca-file {} verify required", files.both.display(), files.authority.display());
    let mut config = String::from(COMMON);
    for (port, listen, to) in [(HTTP1, "", ""), (HTTP2, "alpn h2", "proto h2")] {
        let here = port + SERVER_SIDE;
        config.push_str(&format!(
            "listen in{port}
  mode http
  bind {server}:{here} {tls} {listen}
  stick-table type string len 64 size 10k expire 60s store http_req_rate(1s)
  acl known ssl_c_s_dn(CN) -m str client
  acl admin ssl_c_s_dn(CN) -m str admin
  http-request deny if METH_DELETE
  http-request deny unless known {{ method GET POST }} {{ path_beg /items / }} || admin
  http-request track-sc0 ssl_c_s_dn(CN)
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 100000000 }}
  http-request set-header x-forwarded-client-cert Hash=%[ssl_c_sha1,hex];Subject=%[ssl_c_s_dn]
  http-reuse always
  server one 127.0.0.1:{port} {to}
"
        ));
    }
    let here = OPAQUE + SERVER_SIDE;
    config.push_str(&format!(
        "listen in{OPAQUE}
  mode tcp
  bind {server}:{here} {tls}
  stick-table type string len 64 size 10k expire 60s store conn_rate(1s)
  acl known ssl_c_s_dn(CN) -m str client
  tcp-request session reject unless known
  tcp-request session track-sc0 ssl_c_s_dn(CN)
  tcp-request session reject if {{ sc_conn_rate(0) gt 100000000 }}
  server one 127.0.0.1:{OPAQUE}
"
    ));
    config
}
