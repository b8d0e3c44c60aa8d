//! Two Envoys behind the same redirect as Weft's sidecars: original destination, mTLS both ways, RBAC, local rate limit,
//! forwarded-certificate header, statistics.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::certificates::{self, CLIENT, Files, SERVER};
use super::{OPAQUE, OPEN_FILES, Pair, Pods, Programs};
use crate::lab::{Pod, Process, Program};
use crate::mesh::{PROXY_MARK, run_to_end};

/// Where the redirect sends what leaves the pod.
const OUTBOUND: u16 = 4240;
/// Where it sends what enters.
const INBOUND: u16 = 4243;
/// The numbers of [`PROXY_MARK`], `SOL_SOCKET` and `SO_MARK`.
const MARK: (u32, u32, u32) = (0x2102, 1, 36);

pub(super) fn start(pods: Pods, programs: &Programs) -> Result<Pair> {
    let program = programs.envoy.as_deref().context("there is no envoy")?;
    let weft = programs.weft.as_deref().context("there is no weft, whose redirect rules are used")?;
    let address = pods.server_address()?;
    let (of_client, of_server) = certificates::make(pods.lab.directory())?;
    let start = |pod: &Pod, config: Value| -> Result<Process> {
        run_to_end(pod, Program::new(weft).args(["proxy", "init", "--proxy-mark", PROXY_MARK]))
            .context("write the redirect rules")?;
        let file = pod.directory().join("envoy.json");
        std::fs::write(&file, serde_json::to_string(&config)?)?;
        let program = Program::new(program).args(["--concurrency", "2", "--disable-hot-restart", "-l", "error", "-c"]);
        Ok(pod.spawn(program.arg(file).open_files(OPEN_FILES))?)
    };
    let sidecars = vec![
        start(&pods.client, config(listener("127.0.0.1", OUTBOUND, &of_client, false), cluster(Some(&of_client))))?,
        start(&pods.server, config(listener("0.0.0.0", INBOUND, &of_server, true), cluster(None)))?,
    ];
    pods.pair(address.into(), 0, sidecars)
}

fn config(listener: Value, cluster: Value) -> Value {
    json!({
        "admin": {"address": socket("127.0.0.1", 4291)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    })
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// A filter or socket, by the last part of its name in Envoy's API and its settings.
fn typed(name: &str, kind: &str, mut settings: Value) -> Value {
    settings["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{kind}"));
    json!({"name": name, "typed_config": settings})
}

fn listener(address: &str, port: u16, files: &Files, inbound: bool) -> Value {
    let mut opaque = json!({"filter_chain_match": {"destination_port": OPAQUE}, "filters": opaque_filters(inbound)});
    let mut http = json!({"filters": [http_filter(inbound)]});
    if inbound {
        for chain in [&mut opaque, &mut http] {
            chain["transport_socket"] = typed(
                "envoy.transport_sockets.tls",
                "transport_sockets.tls.v3.DownstreamTlsContext",
                json!({"require_client_certificate": true, "common_tls_context": tls(files, CLIENT)}),
            );
        }
    }
    json!({
        "name": if inbound { "inbound" } else { "outbound" },
        "address": socket(address, port),
        "listener_filters": [typed("envoy.filters.listener.original_dst", "filters.listener.original_dst.v3.OriginalDst", json!({}))],
        "filter_chains": [opaque, http],
    })
}

fn tls(files: &Files, peer: &str) -> Value {
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"filename": files.certificate}, "private_key": {"filename": files.key},
        }],
        "validation_context": {
            "trusted_ca": {"filename": files.authority},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    })
}

/// The connections go where the caller wanted to go; from the client's side they are secured.
fn cluster(secured: Option<&Files>) -> Value {
    let (mark, level, name) = MARK;
    let mut cluster = json!({
        "name": "original",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "upstream_bind_config": {
            "source_address": {"address": "0.0.0.0", "port_value": 0},
            "socket_options": [{"level": level, "name": name, "int_value": mark, "state": "STATE_PREBIND"}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
            },
        },
    });
    if let Some(files) = secured {
        cluster["transport_socket"] = typed(
            "envoy.transport_sockets.tls",
            "transport_sockets.tls.v3.UpstreamTlsContext",
            json!({"common_tls_context": tls(files, SERVER)}),
        );
    }
    cluster
}

fn opaque_filters(inbound: bool) -> Vec<Value> {
    let relay = typed(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": "opaque", "cluster": "original"}),
    );
    if !inbound {
        return vec![relay];
    }
    let rbac = typed(
        "envoy.filters.network.rbac",
        "filters.network.rbac.v3.RBAC",
        json!({"stat_prefix": "opaque", "rules": {"action": "ALLOW", "policies": {
            "clients": {"permissions": [{"destination_port": OPAQUE}], "principals": [caller(CLIENT)]},
            "admins": {"permissions": [{"any": true}], "principals": [caller("spiffe://cluster.local/ns/shop/sa/admin")]},
        }}}),
    );
    let limit = typed(
        "envoy.filters.network.local_ratelimit",
        "filters.network.local_ratelimit.v3.LocalRateLimit",
        json!({"stat_prefix": "opaque", "token_bucket": bucket()}),
    );
    vec![rbac, limit, relay]
}

fn http_filter(inbound: bool) -> Value {
    let router = typed("envoy.filters.http.router", "filters.http.router.v3.Router", json!({}));
    let mut manager = json!({
        "stat_prefix": "http",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "original"}}]},
        ]},
        "http_filters": [router],
    });
    if inbound {
        let rbac = typed(
            "envoy.filters.http.rbac",
            "filters.http.rbac.v3.RBAC",
            json!({"rules": {"action": "ALLOW", "policies": {
                "readers": {
                    "permissions": [{"and_rules": {"rules": [
                        {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
                        {"url_path": {"path": {"prefix": "/items/"}}},
                    ]}}, {"url_path": {"path": {"exact": "/"}}}],
                    "principals": [caller(CLIENT)],
                },
                "admins": {"permissions": [{"any": true}], "principals": [caller("spiffe://cluster.local/ns/shop/sa/admin")]},
            }}}),
        );
        let always = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
        let limit = typed(
            "envoy.filters.http.local_ratelimit",
            "filters.http.local_ratelimit.v3.LocalRateLimit",
            json!({"stat_prefix": "http", "token_bucket": bucket(), "filter_enabled": always, "filter_enforced": always}),
        );
        manager["http_filters"] = json!([rbac, limit, router]);
        manager["forward_client_cert_details"] = json!("SANITIZE_SET");
        manager["set_current_client_cert_details"] = json!({"uri": true});
    }
    typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        manager,
    )
}

fn caller(identity: &str) -> Value {
    json!({"authenticated": {"principal_name": {"exact": identity}}})
}

/// Never empty.
fn bucket() -> Value {
    json!({"max_tokens": 100_000_000, "tokens_per_fill": 100_000_000, "fill_interval": "1s"})
}
