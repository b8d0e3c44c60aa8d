//! Settings of the sidecar, from flags and `WEFT_*` variables; every fault is reported at once.
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use weft_api::probe::{self, Probes};
use weft_certs::{SpiffeId, TrustBundle, TrustDomain};

use crate::telemetry::AccessLogMode;

/// Flags of `weft-proxy` and `weft proxy`, raw.
#[derive(Args, Clone, Debug)]
pub struct ProxyArgs {
    /// Name of the Workload this sidecar stands beside.
    #[arg(long, env = "WEFT_WORKLOAD")]
    pub workload: String,
    /// Trust domain of the mesh.
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Control plane, `host:port`.
    #[arg(long, env = "WEFT_CONTROL_PLANE")]
    pub control_plane: String,
    /// PEM file with the roots that verify the control plane; waited for at the start, read again when they do not.
    #[arg(long, env = "WEFT_TRUST_BUNDLE")]
    pub trust_bundle: PathBuf,
    /// File with the token that proves this workload's identity; read again at each use.
    #[arg(long, env = "WEFT_TOKEN_FILE")]
    pub token_file: PathBuf,
    /// Identity of the control plane [default: spiffe://<trust-domain>/ns/weft-system/sa/weft-control-plane].
    #[arg(long, env = "WEFT_CONTROL_PLANE_ID")]
    pub control_plane_id: Option<String>,
    /// Port on loopback that takes the application's outgoing connections.
    #[arg(long, env = "WEFT_OUTBOUND_PORT", default_value_t = 4240)]
    pub outbound_port: u16,
    /// Port that takes the connections that enter the pod.
    #[arg(long, env = "WEFT_INBOUND_PORT", default_value_t = 4243)]
    pub inbound_port: u16,
    /// Port of /metrics, /ready, /live; on loopback also /config.
    #[arg(long, env = "WEFT_ADMIN_PORT", default_value_t = 4291)]
    pub admin_port: u16,
    /// Socket mark of the proxy's own connections, where it cannot have a user of its own. Must equal the mark given to
    /// `init`.
    #[arg(long, env = "WEFT_PROXY_MARK", value_parser = parse_mark)]
    pub proxy_mark: Option<u32>,
    /// Threads of the data path [default: the number of processors, at most 2].
    #[arg(long, env = "WEFT_WORKERS")]
    pub workers: Option<usize>,
    /// Wanted lifetime of certificates, such as `1h` [default: the control plane's].
    #[arg(long, env = "WEFT_CERTIFICATE_LIFETIME", value_parser = weft_api::duration::parse)]
    pub certificate_lifetime: Option<Duration>,
    /// How long a stopping sidecar serves on while it asks callers to leave; `0s` where the application has ended before.
    #[arg(long, env = "WEFT_LAME_DUCK", default_value = "2s", value_parser = weft_api::duration::parse)]
    pub lame_duck: Duration,
    /// How long a stopping sidecar waits for open connections.
    #[arg(long, env = "WEFT_DRAIN_TIMEOUT", default_value = "30s", value_parser = weft_api::duration::parse)]
    pub drain_timeout: Duration,
    /// How long an HTTP request's body may not come, or an answer not be taken, before its caller is given up; `0s`: for
    /// ever.
    #[arg(long, env = "WEFT_STALL_TIMEOUT", default_value = "60s", value_parser = weft_api::duration::parse)]
    pub stall_timeout: Duration,
    /// Connections that are served at a time, of each direction; one more is refused [default: 10,000, less where a
    /// quarter of the open files allowed is less].
    #[arg(long, env = "WEFT_MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,
    /// Checks of the application that the kubelet asks of the sidecar, as JSON; written by the injector.
    #[arg(long, env = "WEFT_PROBES", default_value = "", hide_default_value = true)]
    pub probes: String,
    /// OTLP/gRPC endpoint for traces, such as `http://collector:4317` [default: no traces].
    #[arg(long, env = "WEFT_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Share of traces that are sampled when the caller did not decide, 0 to 1.
    #[arg(long, env = "WEFT_TRACE_RATIO", default_value_t = 0.01)]
    pub trace_ratio: f64,
    /// Which requests get a line in the access log.
    #[arg(long, env = "WEFT_ACCESS_LOG", value_enum, default_value_t = AccessLogMode::Errors)]
    pub access_log: AccessLogMode,
    /// Level of the sidecar's own log, such as `info` or `weft_proxy=debug`.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log: String,
}

/// Settings, resolved and valid.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Raw flags that need no further meaning.
    pub args: ProxyArgs,
    /// Trust domain.
    pub trust_domain: TrustDomain,
    /// Who the control plane must prove to be.
    pub control_plane_id: SpiffeId,
    /// Checks of the application that the kubelet asks of us.
    pub probes: Probes,
    /// Threads of the data path.
    pub workers: usize,
}

/// Every fault of the settings, one a line.
#[derive(Debug, thiserror::Error)]
#[error("the settings cannot be used:\n  - {}", .0.join("\n  - "))]
pub struct SettingsError(pub Vec<String>);

impl Settings {
    /// Gives the flags their meaning; looks at the trust bundle's file if there is one.
    pub fn resolve(args: ProxyArgs) -> Result<Self, SettingsError> {
        let mut faults = Vec::new();
        let trust_domain =
            TrustDomain::parse(&args.trust_domain).map_err(|e| faults.push(format!("--trust-domain: {e}"))).ok();
        let control_plane_id = trust_domain.as_ref().and_then(|domain| {
            match &args.control_plane_id {
                Some(id) => SpiffeId::parse(id),
                None => SpiffeId::for_service_account(domain, "weft-system", "weft-control-plane"),
            }
            .map_err(|e| faults.push(format!("--control-plane-id: {e}")))
            .ok()
        });
        // A volume's file may be late and is waited for; one that is there must be usable.
        let bundle = match (std::fs::read_to_string(&args.trust_bundle), &trust_domain) {
            (Err(fault), _) if fault.kind() == std::io::ErrorKind::NotFound => Ok(()),
            (Err(fault), _) => Err(fault.to_string()),
            (Ok(pem), Some(domain)) => {
                TrustBundle::from_pem(domain.clone(), &pem).map(drop).map_err(|fault| fault.to_string())
            }
            (Ok(_), None) => Ok(()),
        };
        if let Err(fault) = bundle {
            faults.push(format!("--trust-bundle: {}: {fault}", args.trust_bundle.display()));
        }
        if !args
            .control_plane
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            faults.push(format!(
                "--control-plane: '{}' is not host:port; write for example 10.0.0.5:4280",
                args.control_plane
            ));
        }
        if args.workload.is_empty() {
            faults.push("--workload: empty; give the name of this sidecar's Workload".to_owned());
        }
        if !(0.0..=1.0).contains(&args.trace_ratio) {
            faults.push(format!("--trace-ratio: {} is not between 0 and 1", args.trace_ratio));
        }
        let ports = [args.outbound_port, args.inbound_port, args.admin_port];
        if ports.contains(&0) || ports[0] == ports[1] || ports[1] == ports[2] || ports[0] == ports[2] {
            faults.push(
                "--outbound-port, --inbound-port and --admin-port must be three different ports above 0".to_owned(),
            );
        }
        let probes = match args.probes.as_str() {
            "" => Probes::new(),
            text => probe::parse(text).unwrap_or_else(|fault| {
                faults.push(format!("--probes: {fault}; leave it to the injector"));
                Probes::new()
            }),
        };
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = args.workers.unwrap_or(processors.min(2));
        if workers == 0 || workers > 256 {
            faults.push(format!("--workers: {workers} is not between 1 and 256"));
        }
        if args.max_connections == Some(0) {
            faults.push("--max-connections: 0 would refuse everything; leave it out for the default".to_owned());
        }
        match (trust_domain, control_plane_id) {
            (Some(trust_domain), Some(control_plane_id)) if faults.is_empty() => {
                Ok(Self { args, trust_domain, control_plane_id, probes, workers })
            }
            _ => Err(SettingsError(faults)),
        }
    }

    /// How long a caller may stall.
    pub fn stall(&self) -> Option<Duration> {
        Some(self.args.stall_timeout).filter(|stall| !stall.is_zero())
    }

    /// The sidecar's own ports, to which nothing is ever forwarded.
    pub fn own_ports(&self) -> [u16; 3] {
        [self.args.outbound_port, self.args.inbound_port, self.args.admin_port]
    }
}

/// A mark as `0x2102` or in decimal, above 0.
pub fn parse_mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.ok().filter(|mark| *mark > 0).ok_or_else(|| format!("'{text}' is not a mark; write for example 0x2102"))
}
