//! Settings of the control plane, from flags and `WEFT_*` variables; every fault is reported at once.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use weft_api::duration;
use weft_api::resource::{DefaultPolicy, is_dns_subdomain};
use weft_certs::{SpiffeId, TrustDomain};

/// Where the control plane keeps its keys unless told otherwise.
const DEFAULT_STATE: &str = "/var/lib/weft";
/// Certificate lifetimes that a mesh may run with.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(5 * 60)..=Duration::from_secs(24 * 3600);
/// What `--allow-short-lifetimes` lowers the bound to.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(2);
/// Join tokens live at most this long: they can be used many times until then.
const LONGEST_TOKEN: Duration = Duration::from_secs(365 * 24 * 3600);

/// Flags of `weft-control-plane` and `weft control-plane`, raw. [`Settings::resolve`] gives them their meaning.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Directory of YAML files with the mesh's resources, watched for changes.
    #[arg(long, env = "WEFT_RESOURCES")]
    pub resources: Option<PathBuf>,
    /// Take the mesh's resources from the API of Kubernetes, instead of --resources. The API server is found as kubectl
    /// finds it, or from within a pod.
    #[arg(long, env = "WEFT_KUBERNETES")]
    pub kubernetes: bool,
    /// On Kubernetes: the settings that only matter there.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Trust domain of the mesh.
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Directory of the keys, the trust bundle and the audit log; made with mode 0700 where it is missing.
    #[arg(long, env = "WEFT_STATE", default_value = DEFAULT_STATE)]
    pub state: PathBuf,
    /// Address of the gRPC services that sidecars call.
    #[arg(long, env = "WEFT_LISTEN", default_value = "0.0.0.0:4280")]
    pub listen: String,
    /// Address of /metrics, /ready, /live and, to callers on loopback, /workloads, /config/errors, /config/idle-policies, /api/v1/calls.
    #[arg(long, env = "WEFT_ADMIN_LISTEN", default_value = "127.0.0.1:4291")]
    pub admin_listen: String,
    /// Lifetime of issued certificates, and the longest that a sidecar may ask for: 5m to 24h.
    #[arg(long, env = "WEFT_CERTIFICATE_LIFETIME", default_value = "1h")]
    pub certificate_lifetime: String,
    /// Accept certificate lifetimes from 2s. For demonstrations and tests only: sidecars then depend on the control plane
    /// from one moment to the next, and clocks must agree to the second.
    #[arg(long, env = "WEFT_ALLOW_SHORT_LIFETIMES")]
    pub allow_short_lifetimes: bool,
    /// PEM file of a signing certificate given by you (with its intermediates), in place of the self-signed root.
    #[arg(long, env = "WEFT_ISSUER_CERT")]
    pub issuer_cert: Option<PathBuf>,
    /// PEM file with the private key (PKCS#8) of --issuer-cert, readable by its owner only.
    #[arg(long, env = "WEFT_ISSUER_KEY")]
    pub issuer_key: Option<PathBuf>,
    /// PEM file with the roots that --issuer-cert chains to.
    #[arg(long, env = "WEFT_ISSUER_ROOTS")]
    pub issuer_roots: Option<PathBuf>,
    /// File with SPIFFE IDs, one a line, that are refused everywhere at once; watched for changes.
    #[arg(long, env = "WEFT_DENIED_IDENTITIES")]
    pub denied_identities: Option<PathBuf>,
    /// Form of the log [default: text on a terminal, else json].
    #[arg(long, env = "WEFT_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Level of the log, such as `info` or `weft_control_plane=debug`.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log: String,
    /// What happens to calls that no policy speaks of in namespaces that do not say it: deny, authenticated or allow.
    #[arg(long, env = "WEFT_DEFAULT_POLICY", default_value = "authenticated")]
    pub default_policy: String,
}

/// Flags that only matter on Kubernetes, raw.
#[derive(clap::Args, Clone, Debug)]
pub struct ClusterArgs {
    /// On Kubernetes: namespace of the control plane.
    #[arg(long, env = "WEFT_NAMESPACE", default_value = "weft-system")]
    pub namespace: String,
    /// On Kubernetes: name of this replica's pod, by which replicas agree on a leader.
    #[arg(long, env = "WEFT_POD_NAME")]
    pub pod_name: Option<String>,
    /// On Kubernetes: name of the control plane's Service.
    #[arg(long, env = "WEFT_SERVICE", default_value = "weft-control-plane")]
    pub service: String,
    /// On Kubernetes: name of the ClusterRole that owns what is made at run time, so that uninstalling takes it away
    /// [default: what is made stays].
    #[arg(long, env = "WEFT_OWNER")]
    pub owner: Option<String>,
    /// On Kubernetes: Secret in its own namespace with the signing certificate (tls.crt, tls.key, ca.crt, as cert-manager
    /// writes it), in place of the self-signed root.
    #[arg(long, env = "WEFT_ISSUER_SECRET")]
    pub issuer_secret: Option<String>,
    /// On Kubernetes: address of the webhooks that the API server calls.
    #[arg(long, env = "WEFT_WEBHOOK_LISTEN", default_value = "0.0.0.0:4443")]
    pub webhook_listen: String,
    /// On Kubernetes: PEM file of the roots that the webhooks' callers must have a certificate of; for API servers that are
    /// told to present one [default: callers need none].
    #[arg(long, env = "WEFT_WEBHOOK_CLIENT_CA")]
    pub webhook_client_ca: Option<PathBuf>,
    /// On Kubernetes: YAML file with what the injector puts into pods, watched for changes [default: its defaults].
    #[arg(long, env = "WEFT_INJECTOR_CONFIG")]
    pub injector_config: Option<PathBuf>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags of `weft token create`, raw.
#[derive(clap::Args, Clone, Debug)]
pub struct TokenCreateArgs {
    /// Namespace of the workload that will use the token.
    #[arg(long)]
    pub namespace: String,
    /// Service account that the token proves.
    #[arg(long)]
    pub service_account: String,
    /// How long the token can be used, as often as wanted, by whoever holds it: 1m to 365d.
    #[arg(long, default_value = "24h")]
    pub ttl: String,
    /// State directory of the control plane.
    #[arg(long, env = "WEFT_STATE", default_value = DEFAULT_STATE)]
    pub state: PathBuf,
}

/// Settings, resolved and valid.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the resources come from.
    pub source: SourceSettings,
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// What happens to calls that no policy speaks of, in namespaces that do not say it.
    pub default_policy: DefaultPolicy,
    /// Directory of keys, trust bundle and audit log.
    pub state: PathBuf,
    /// Address of the gRPC services.
    pub listen: SocketAddr,
    /// Address of the admin endpoints.
    pub admin_listen: SocketAddr,
    /// Lifetime of issued certificates, and the longest that a sidecar may ask for.
    pub certificate_lifetime: Duration,
    /// The shortest lifetime that a sidecar may ask for.
    pub shortest_lifetime: Duration,
    /// A signing certificate given by the operator.
    pub issuer: Option<IssuerFiles>,
    /// File of denied identities.
    pub denied_identities: Option<PathBuf>,
}

/// Where the mesh's resources come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSettings {
    /// A directory of YAML.
    Directory(PathBuf),
    /// The API of Kubernetes.
    Kubernetes(ClusterSettings),
}

/// What a control plane on Kubernetes knows of its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Its namespace.
    pub namespace: String,
    /// Name of this replica's pod.
    pub pod: String,
    /// Name of its Service.
    pub service: String,
    /// The ClusterRole that owns what is made at run time.
    pub owner: Option<String>,
    /// Secret with a signing certificate given by the operator.
    pub issuer_secret: Option<String>,
    /// Address of the webhooks.
    pub webhook_listen: SocketAddr,
    /// File of the roots of the webhooks' callers.
    pub webhook_client_ca: Option<PathBuf>,
    /// The injector's settings.
    pub injector_config: Option<PathBuf>,
}

/// Where a signing certificate that the operator gave is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerFiles {
    /// PEM: signer first, then its intermediates.
    pub certificates: PathBuf,
    /// PEM: PKCS#8.
    pub key: PathBuf,
    /// PEM: the roots; none: the last of `certificates`.
    pub roots: Option<PathBuf>,
}

/// Every fault of the settings, one a line.
#[derive(Debug, thiserror::Error)]
#[error("the settings cannot be used:\n  - {}", .0.join("\n  - "))]
pub struct SettingsError(pub Vec<String>);

impl Settings {
    /// Gives the flags their meaning. Reads no file.
    ///
    /// # Errors
    /// All faults together, each with what to write instead.
    pub fn resolve(args: &Args) -> Result<Self, SettingsError> {
        let mut faults = Vec::new();
        let trust_domain = keep(TrustDomain::parse(&args.trust_domain), "--trust-domain", &mut faults);
        let listen = keep(parse_address(&args.listen, "0.0.0.0:4280"), "--listen", &mut faults);
        let admin_listen = keep(parse_address(&args.admin_listen, "127.0.0.1:4291"), "--admin-listen", &mut faults);
        let shortest_lifetime = if args.allow_short_lifetimes { SHORTEST_LIFETIME } else { *LIFETIMES.start() };
        let lifetime =
            keep(parse_lifetime(&args.certificate_lifetime, shortest_lifetime), "--certificate-lifetime", &mut faults);
        let issuer = keep(issuer_files(args), "--issuer-cert", &mut faults);
        let default_policy = DefaultPolicy::from_name(&args.default_policy);
        let default_policy = default_policy
            .ok_or_else(|| format!("'{}' is none; write deny, authenticated or allow", args.default_policy));
        let default_policy = keep(default_policy, "--default-policy", &mut faults);
        let source = source(args, &mut faults);
        if listen.is_some() && listen == admin_listen && listen.is_some_and(|address| address.port() != 0) {
            faults.push("--listen and --admin-listen: the same address; give them different ports".to_owned());
        }
        match (trust_domain, listen, admin_listen, lifetime, issuer, default_policy, source) {
            (
                Some(trust_domain),
                Some(listen),
                Some(admin_listen),
                Some(certificate_lifetime),
                Some(issuer),
                Some(default_policy),
                Some(source),
            ) if faults.is_empty() => Ok(Self {
                source,
                trust_domain,
                default_policy,
                state: args.state.clone(),
                listen,
                admin_listen,
                certificate_lifetime,
                shortest_lifetime,
                issuer,
                denied_identities: args.denied_identities.clone(),
            }),
            _ => Err(SettingsError(faults)),
        }
    }
}

impl TokenCreateArgs {
    /// The token's lifetime.
    ///
    /// # Errors
    /// What to write instead.
    pub fn ttl(&self) -> Result<Duration, SettingsError> {
        let ttl = duration::parse(&self.ttl).map_err(|fault| SettingsError(vec![format!("--ttl: {fault}")]))?;
        if ttl < Duration::from_secs(60) || ttl > LONGEST_TOKEN {
            return Err(SettingsError(vec![format!(
                "--ttl: {} is not between 1m and 365d; write for example 24h",
                self.ttl
            )]));
        }
        Ok(ttl)
    }
}

/// Who the control plane is: `spiffe://<trust domain>/ns/weft-system/sa/weft-control-plane`.
pub fn control_plane_id(trust_domain: &TrustDomain) -> SpiffeId {
    SpiffeId::for_service_account(trust_domain, "weft-system", "weft-control-plane")
        .expect("a fixed name is valid in every trust domain")
}

fn keep<T, E: std::fmt::Display>(result: Result<T, E>, flag: &str, faults: &mut Vec<String>) -> Option<T> {
    result.map_err(|fault| faults.push(format!("{flag}: {fault}"))).ok()
}

fn parse_address(text: &str, example: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("'{text}' is not an IP address with a port; write for example {example}"))
}

fn parse_lifetime(text: &str, shortest: Duration) -> Result<Duration, String> {
    let lifetime = duration::parse(text)?;
    if lifetime > *LIFETIMES.end() {
        return Err(format!("{text} is longer than 24h; revocation rests on short lifetimes, write for example 1h"));
    }
    if lifetime < shortest {
        return Err(if shortest < *LIFETIMES.start() {
            format!("{text} is shorter than {}s; write for example 10s", shortest.as_secs())
        } else {
            format!("{text} is shorter than 5m; write for example 1h (--allow-short-lifetimes is for demonstrations)")
        });
    }
    Ok(lifetime)
}

fn source(args: &Args, faults: &mut Vec<String>) -> Option<SourceSettings> {
    match (&args.resources, args.kubernetes) {
        (Some(directory), false) => Some(SourceSettings::Directory(directory.clone())),
        (None, true) => cluster(args, faults).map(SourceSettings::Kubernetes),
        (Some(_), true) => {
            faults.push("--resources: given with --kubernetes; give one of the two".to_owned());
            None
        }
        (None, false) => {
            faults.push("--resources: missing; give a directory of YAML files, or --kubernetes".to_owned());
            None
        }
    }
}

fn cluster(args: &Args, faults: &mut Vec<String>) -> Option<ClusterSettings> {
    let flags = &args.cluster;
    let mut name = |flag: &str, name: &str| {
        if !is_dns_subdomain(name) {
            faults.push(format!("{flag}: '{name}' is no name of Kubernetes; write for example weft-control-plane"));
        }
        name.to_owned()
    };
    let named = ClusterSettings {
        namespace: name("--namespace", &flags.namespace),
        // Outside of a pod there is one replica.
        pod: name("--pod-name", flags.pod_name.as_deref().unwrap_or("weft-control-plane")),
        service: name("--service", &flags.service),
        owner: flags.owner.as_deref().map(|owner| name("--owner", owner)),
        issuer_secret: flags.issuer_secret.as_deref().map(|secret| name("--issuer-secret", secret)),
        webhook_listen: SocketAddr::from(([0, 0, 0, 0], 0)),
        webhook_client_ca: flags.webhook_client_ca.clone(),
        injector_config: flags.injector_config.clone(),
    };
    if args.issuer_cert.is_some() {
        faults.push("--issuer-cert: given with --kubernetes; give --issuer-secret".to_owned());
    }
    let webhook_listen = parse_address(&flags.webhook_listen, "0.0.0.0:4443");
    let webhook_listen = keep(webhook_listen, "--webhook-listen", faults)?;
    Some(ClusterSettings { webhook_listen, ..named })
}

fn issuer_files(args: &Args) -> Result<Option<IssuerFiles>, String> {
    match (&args.issuer_cert, &args.issuer_key, &args.issuer_roots) {
        (Some(certificates), Some(key), roots) => {
            Ok(Some(IssuerFiles { certificates: certificates.clone(), key: key.clone(), roots: roots.clone() }))
        }
        (None, None, None) => Ok(None),
        (Some(_), None, _) => {
            Err("given without --issuer-key; give both, or neither for a self-signed root".to_owned())
        }
        (None, Some(_), _) => Err("missing, though --issuer-key is given; give both or neither".to_owned()),
        (None, None, Some(_)) => {
            Err("missing, though --issuer-roots is given; give --issuer-key too, or none".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn resolve(flags: &[&str]) -> Result<Settings, SettingsError> {
        let line = Line::parse_from(["weft-control-plane", "--resources", "/etc/weft"].iter().chain(flags));
        Settings::resolve(&line.args)
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let fault = resolve(&[
            "--trust-domain=Not Valid",
            "--listen=nowhere",
            "--certificate-lifetime=10s",
            "--issuer-cert=/tmp/ca.crt",
        ])
        .expect_err("four faults")
        .to_string();
        for flag in ["--trust-domain", "--listen", "--certificate-lifetime", "--issuer-cert"] {
            assert!(fault.contains(flag), "{flag} is missing in: {fault}");
        }
    }

    #[test]
    fn a_lifetime_is_between_five_minutes_and_a_day() {
        for (lifetime, flags, accepted) in [
            ("1h", &[][..], true),
            ("5m", &[], true),
            ("24h", &[], true),
            ("299s", &[], false),
            ("25h", &[], false),
            ("-1h", &[], false),
            ("1", &[], false),
            ("99999999999999999999h", &[], false),
            ("10s", &["--allow-short-lifetimes"], true),
            ("1s", &["--allow-short-lifetimes"], false),
            ("25h", &["--allow-short-lifetimes"], false),
        ] {
            let lifetime = format!("--certificate-lifetime={lifetime}");
            let flags: Vec<&str> = flags.iter().copied().chain([lifetime.as_str()]).collect();
            assert_eq!(resolve(&flags).is_ok(), accepted, "{flags:?}");
        }
    }
}
