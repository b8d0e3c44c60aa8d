//! Redirect rules without `NET_ADMIN` in the pod: a chained CNI plugin, and the agent that installs it and answers it.
//!
//! ```text
//! container runtime ── ADD ──► weft-cni ── who is this pod? ──► weft cni-agent ──► API server
//!                              (plugin)  ◄── redirect, or not ── (DaemonSet, each node)
//!                                 └─ enters the pod's network namespace and writes the rules of `weft-proxy init`
//! ```
//! Promises: while the agent does not answer, no pod that may be meshed starts on the node, so none starts in the clear;
//! pods of excluded namespaces always start. What the plugin is chained to is never changed: results of the plugins
//! before it pass unaltered, and of their configuration no byte but the list of plugins is touched.
//!
//! [`plugin`] and [`protocol`] are the plugin, [`wire`] is what it and the agent say to each other, the rest is the agent:
//! [`agent`] puts it together, [`answer`] and [`stuck`] judge a pod, [`conflist`] edits configurations; these are pure.
mod agent;
mod answer;
mod conflist;
mod host;
mod keep;
mod netns;
mod own;
mod plugin;
mod pods;
mod protocol;
mod ready;
mod serve;
mod settings;
mod stuck;
mod wire;

use std::process::ExitCode;

pub(crate) use settings::AgentArgs;

/// Name of the plugin: of its file, and its `type` in a network configuration.
const PLUGIN: &str = "weft-cni";

/// Whether this process was started as the CNI plugin: by the name of its file.
pub(crate) fn is_plugin() -> bool {
    let name = std::env::args_os().next();
    name.is_some_and(|name| std::path::Path::new(&name).file_name().is_some_and(|name| name == PLUGIN))
}

/// Does what the container runtime asks the plugin for.
pub(crate) fn plugin() -> ExitCode {
    plugin::main()
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// The settings cannot be used, or the node's folders, the socket or the API cannot be.
pub(crate) fn agent(args: AgentArgs) -> anyhow::Result<()> {
    agent::main(args)
}
