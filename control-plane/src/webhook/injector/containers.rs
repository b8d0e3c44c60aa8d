//! What is added to a pod. Every container satisfies Pod Security `restricted`, but `weft-init`, which needs NET_ADMIN.
use serde_json::{Value, json};
use weft_api::duration;
use weft_api::probe::{MAX_BYTES, Probes};

use super::config::{InjectorConfig, Redirect};
use super::settings::{Settings, shown};
use super::{ADMIN_PORT, PROXY_UID, pod};

pub(super) const PROXY: &str = "weft-proxy";
pub(super) const INIT: &str = "weft-init";
pub(super) const VALIDATE: &str = "weft-validate";
pub(super) const TOKEN_VOLUME: &str = "weft-token";
pub(super) const BUNDLE_VOLUME: &str = "weft-trust-bundle";
pub(super) const BINARY: &str = "/weft-proxy";
pub(super) const PROBES_VARIABLE: &str = "WEFT_PROBES";

/// Any user but the sidecar's: the proof must be captured.
const VALIDATE_UID: u32 = 2103;
const TOKEN_PATH: &str = "/var/run/weft/token";
const BUNDLE_PATH: &str = "/var/run/weft/trust-bundle";
/// Seconds that a sidecar may take until it serves, before it is started anew. The control plane may be away for long.
const START_SECONDS: u32 = 3600;

/// Whether a container bears one of our names.
pub(super) fn is_ours(container: &Value) -> bool {
    [PROXY, INIT, VALIDATE].contains(&pod::name(container))
}

/// The init container that writes the redirect rules, or proves that they are there.
pub(super) fn redirect(config: &InjectorConfig, settings: &Settings) -> Value {
    let (name, command, security) = match config.redirect {
        Redirect::Init => {
            let security = json!({
                "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "runAsUser": 0,
                "seccompProfile": {"type": "RuntimeDefault"},
            });
            (INIT, "init", security)
        }
        Redirect::Cni => (VALIDATE, "validate", restricted(VALIDATE_UID)),
    };
    let mut container = json!({
        "name": name,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "command": [BINARY, command],
        "resources": settings.resources,
        "securityContext": security,
    });
    // With a CNI plugin these tell what it was asked to leave alone: the proof uses something else.
    let env = skips(settings);
    if !env.is_empty() {
        container["env"] = env.into();
    }
    container
}

fn skips(settings: &Settings) -> Vec<Value> {
    let lists = [
        ("WEFT_SKIP_INBOUND_PORTS", settings.skip_inbound_ports.to_string()),
        ("WEFT_SKIP_OUTBOUND_PORTS", settings.skip_outbound_ports.to_string()),
        ("WEFT_SKIP_SUBNETS", shown(&settings.skip_subnets)),
    ];
    lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| variable(name, &list)).collect()
}

/// The sidecar.
pub(super) fn proxy(
    config: &InjectorConfig,
    settings: &Settings,
    probes: &Probes,
    grace_seconds: u64,
) -> Result<Value, String> {
    let drain = duration::parse(&config.drain_timeout).map_or(grace_seconds, |drain| drain.as_secs());
    let mut env = vec![
        json!({"name": "WEFT_WORKLOAD", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}),
        variable("WEFT_CONTROL_PLANE", &config.control_plane),
        variable("WEFT_TRUST_DOMAIN", &config.trust_domain),
        variable("WEFT_TRUST_BUNDLE", &format!("{BUNDLE_PATH}/trust-bundle.pem")),
        variable("WEFT_TOKEN_FILE", &format!("{TOKEN_PATH}/token")),
        variable("WEFT_DRAIN_TIMEOUT", &format!("{}s", drain.min(grace_seconds))),
        variable("WEFT_LOG", &settings.log),
        variable("WEFT_ACCESS_LOG", &settings.access_log),
    ];
    if config.native_sidecar {
        // Kubernetes ends a native sidecar after the application: nobody is left to be served.
        env.push(variable("WEFT_LAME_DUCK", "0s"));
    }
    if let Some(endpoint) = &config.otlp_endpoint {
        env.push(variable("WEFT_OTLP_ENDPOINT", endpoint));
        env.push(variable("WEFT_TRACE_RATIO", &config.trace_ratio.to_string()));
    }
    if let Some(workers) = config.workers {
        env.push(variable("WEFT_WORKERS", &workers.to_string()));
    }
    env.extend(probes_variable(probes)?);
    let check = |path: &str| json!({"path": path, "port": ADMIN_PORT});
    let mut container = json!({
        "name": PROXY,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "command": [BINARY],
        "env": env,
        "ports": [{"name": "weft-admin", "containerPort": ADMIN_PORT, "protocol": "TCP"}],
        // The application starts once this has succeeded.
        "startupProbe": {"httpGet": check("/ready"), "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": START_SECONDS},
        "readinessProbe": {"httpGet": check("/ready"), "periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 2},
        // Long: a sidecar that is short of processor time is not helped by a restart.
        "livenessProbe": {"httpGet": check("/live"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "resources": settings.resources,
        "securityContext": restricted(PROXY_UID),
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_PATH, "readOnly": true},
            {"name": BUNDLE_VOLUME, "mountPath": BUNDLE_PATH, "readOnly": true},
        ],
    });
    if config.native_sidecar {
        container["restartPolicy"] = json!("Always");
    }
    Ok(container)
}

/// What Pod Security `restricted` demands.
fn restricted(uid: u32) -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": uid,
        "runAsNonRoot": true,
        "runAsUser": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Without a mode or a group of their own the files are readable by every user of the containers that mount them: the
/// kubelet narrows a token's mode only where all containers of a pod run as one user, which they never do here.
pub(super) fn volumes() -> [Value; 2] {
    [
        json!({
            "name": TOKEN_VOLUME,
            "projected": {"sources": [
                {"serviceAccountToken": {"audience": "weft", "expirationSeconds": 3600, "path": "token"}},
            ]},
        }),
        // Not optional: a pod waits until its namespace has the bundle.
        json!({
            "name": BUNDLE_VOLUME,
            "configMap": {"name": BUNDLE_VOLUME, "items": [{"key": "trust-bundle.pem", "path": "trust-bundle.pem"}]},
        }),
    ]
}

fn variable(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// The checks as a variable; none where there are none.
pub(super) fn probes_variable(probes: &Probes) -> Result<Option<Value>, String> {
    if probes.is_empty() {
        return Ok(None);
    }
    // Kubernetes expands `$(NAME)` in values and reads `$$` as a dollar sign.
    let text = serde_json::to_string(probes).map_err(|fault| fault.to_string())?.replace('$', "$$");
    if text.len() > MAX_BYTES {
        return Err(format!(
            "the probes come to {} bytes, more than the {MAX_BYTES} that the sidecar can be given; shorten their paths and headers",
            text.len()
        ));
    }
    Ok(Some(variable(PROBES_VARIABLE, &text)))
}

/// The checks that a sidecar's container declares.
pub(super) fn declared_probes(proxy: &Value) -> Result<Probes, String> {
    let env = proxy.get("env").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let Some(text) = env.iter().find(|variable| pod::name(variable) == PROBES_VARIABLE) else {
        return Ok(Probes::new());
    };
    let text = text.get("value").and_then(Value::as_str).unwrap_or_default().replace("$$", "$");
    weft_api::probe::parse(&text)
}
