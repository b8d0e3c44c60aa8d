//! Settings of the agent, from flags and `WEFT_*` variables; every fault is reported at once.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use weft_proxy::config::SettingsError;

use super::host::Host;
use super::{PLUGIN, conflist, protocol};

/// Paths of Unix sockets have room for so many bytes (`sun_path`).
const SOCKET_PATH_BYTES: usize = 107;

/// Flags of `weft cni-agent`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AgentArgs {
    /// Name of this node.
    #[arg(long, env = "WEFT_NODE_NAME", required_unless_present = "remove")]
    pub(super) node_name: Option<String>,
    /// Namespace that the agent runs in. Its pods are never redirected.
    #[arg(long, env = "WEFT_NAMESPACE", required_unless_present = "remove")]
    pub(super) namespace: Option<String>,
    /// DaemonSet that the agent belongs to. If that is gone when the agent is stopped, so is the plugin.
    #[arg(long, env = "WEFT_CNI_DAEMON_SET", default_value = "weft-cni")]
    pub(super) daemon_set: String,
    /// Namespaces whose pods are never redirected, and start whatever state the agent is in.
    #[arg(long, env = "WEFT_CNI_EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = "kube-system")]
    pub(super) exclude_namespaces: Vec<String>,
    /// Folder in which the container runtime looks for plugins.
    #[arg(long, env = "WEFT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub(super) bin_dir: PathBuf,
    /// Folder in which the container runtime looks for network configurations.
    #[arg(long, env = "WEFT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub(super) conf_dir: PathBuf,
    /// File in that folder to add the plugin to [default: the first, which is the one that runtimes use].
    #[arg(long, env = "WEFT_CNI_CONF_NAME")]
    pub(super) conf_name: Option<String>,
    /// Unix socket that the plugin asks, at the same path on the node.
    #[arg(long, env = "WEFT_CNI_SOCKET", default_value = protocol::SOCKET)]
    pub(super) socket: PathBuf,
    /// Delete a pod that started before the plugin was there and is held up since, if something makes it anew. Without
    /// this such a pod waits until somebody deletes it.
    #[arg(long, env = "WEFT_CNI_DELETE_STUCK_PODS")]
    pub(super) delete_stuck_pods: bool,
    /// Address of /ready and /live.
    #[arg(long, env = "WEFT_CNI_LISTEN", default_value = "127.0.0.1:4292")]
    pub(super) listen: SocketAddr,
    /// Level of the agent's log, such as `info` or `weft=debug`.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub(super) log: String,
    /// Take the plugin from this node and exit, whatever became of the DaemonSet.
    #[arg(long)]
    pub(super) remove: bool,
}

/// Settings, resolved and valid.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) node_name: String,
    pub(super) namespace: String,
    pub(super) daemon_set: String,
    pub(super) socket: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) delete_stuck_pods: bool,
    pub(super) host: Host,
}

impl Settings {
    pub(super) fn resolve(args: &AgentArgs) -> Result<Self, SettingsError> {
        let mut faults = Vec::new();
        let node_name = args.node_name.clone().unwrap_or_default();
        let namespace = args.namespace.clone().unwrap_or_default();
        for (flag, value) in
            [("--node-name", &node_name), ("--namespace", &namespace), ("--daemon-set", &args.daemon_set)]
        {
            if !args.remove && !is_name(value) {
                faults.push(format!("{flag}: `{value}` is not the name of an object of Kubernetes"));
            }
        }
        let mut excluded: Vec<&str> = args.exclude_namespaces.iter().map(|name| name.trim()).collect();
        excluded.retain(|name| !name.is_empty());
        faults.extend(excluded.iter().filter(|name| !is_name(name)).map(|name| {
            format!("--exclude-namespaces: `{name}` is not a namespace; write for example kube-system,monitoring")
        }));
        if !excluded.contains(&namespace.as_str()) {
            excluded.push(&namespace);
        }
        for (flag, folder) in [("--bin-dir", &args.bin_dir), ("--conf-dir", &args.conf_dir)] {
            if !folder.is_dir() {
                faults.push(format!("{flag}: there is no folder {}; mount the node's", folder.display()));
            }
        }
        if let Some(name) = &args.conf_name
            && (Path::new(name).file_name().is_none_or(|file| file != name.as_str())
                || !(conflist::is_list(name) || conflist::is_single(name)))
        {
            faults.push(format!(
                "--conf-name: `{name}` is not the name of a network configuration; write for example 10-calico.conflist"
            ));
        }
        let socket = args.socket.as_os_str();
        if !args.socket.is_absolute() || socket.len() > SOCKET_PATH_BYTES || socket.to_str().is_none() {
            faults.push(format!(
                "--socket: {} is not an absolute path of at most {SOCKET_PATH_BYTES} bytes",
                args.socket.display()
            ));
        } else if !args.remove && !args.socket.parent().is_some_and(Path::is_dir) {
            faults.push(format!("--socket: the folder of {} is not there; mount the node's", args.socket.display()));
        }
        if !faults.is_empty() {
            return Err(SettingsError(faults));
        }
        let entry = json!({"type": PLUGIN, "socket": args.socket, "excludeNamespaces": excluded});
        Ok(Self {
            node_name,
            namespace,
            daemon_set: args.daemon_set.clone(),
            socket: args.socket.clone(),
            listen: args.listen,
            delete_stuck_pods: args.delete_stuck_pods,
            host: Host {
                bin_dir: args.bin_dir.clone(),
                conf_dir: args.conf_dir.clone(),
                conf_name: args.conf_name.clone(),
                entry: entry.to_string(),
                executable: PathBuf::from("/proc/self/exe"),
            },
        })
    }
}

/// A DNS subdomain, RFC 1123, as names of objects are.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = label.as_bytes();
        bytes.first().is_some_and(|byte| plain(*byte))
            && bytes.last().is_some_and(|byte| plain(*byte))
            && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}
