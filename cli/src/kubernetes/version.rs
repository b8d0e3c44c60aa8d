//! `weft version`: of this program, and of what runs in the cluster.
use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde::Serialize;

use super::client::{ClusterArgs, list};
use super::control_plane;
use super::names::VERSION;
use super::objects::PodFacts;
use super::output::{Format, counted, machine, print, printable};

/// Arguments of `weft version`.
#[derive(Args)]
pub(crate) struct VersionArgs {
    /// Only this program's version; no cluster is asked.
    #[arg(long)]
    client: bool,
    /// Form of the answer, instead of text.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The answer.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
}

/// How many of each version run.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Server {
    control_plane: BTreeMap<String, usize>,
    sidecars: BTreeMap<String, usize>,
}

/// Asks and prints. Exit code 1: the cluster did not answer.
pub(crate) fn main(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        let server = if args.client { Ok(None) } else { ask(args).await.map(Some) };
        let (server, fault) = match server {
            Ok(server) => (server, None),
            Err(fault) => (None, Some(fault)),
        };
        let versions = Versions { client: VERSION, server };
        print(&match args.output {
            Some(format) => machine(&versions, format)?,
            None => text(&versions),
        })?;
        match fault {
            None => Ok(ExitCode::SUCCESS),
            Some(fault) => Err(fault),
        }
    })
}

async fn ask(args: &VersionArgs) -> anyhow::Result<Server> {
    let cluster = args.cluster.connect().await?;
    let pods = cluster.api::<Pod>(None);
    let (replicas, pods) = tokio::join!(control_plane::replicas(&cluster), list(&pods, ListParams::default()));
    let replicas = replicas.map_err(|fault| cluster.failed(fault))?;
    let pods: Vec<PodFacts> = pods.map_err(|fault| cluster.failed(fault))?.iter().map(PodFacts::of).collect();
    let sidecars = pods.iter().filter(|pod| pod.alive).filter_map(|pod| Some(pod.sidecar.as_ref()?.version.clone()));
    Ok(Server {
        control_plane: count(replicas.iter().map(|replica| replica.version.clone())),
        sidecars: count(sidecars),
    })
}

fn count(versions: impl Iterator<Item = Option<String>>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for version in versions {
        *counts.entry(version.unwrap_or_else(|| "unknown".to_owned())).or_default() += 1;
    }
    counts
}

fn text(versions: &Versions) -> String {
    let mut text = format!("client:        {}\n", versions.client);
    if let Some(server) = &versions.server {
        let list = |counts: &BTreeMap<String, usize>, what: &str| {
            let all: Vec<String> = counts
                .iter()
                .map(|(version, number)| format!("{} ({})", printable(version), counted(*number, what)))
                .collect();
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        };
        text.push_str(&format!("control plane: {}\n", list(&server.control_plane, "replica")));
        text.push_str(&format!("sidecars:      {}\n", list(&server.sidecars, "pod")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_shown_with_how_many_run_it() {
        let some = |version: &str| Some(version.to_owned());
        let server = Server {
            control_plane: count([some("0.2.0"), some("0.2.0")].into_iter()),
            sidecars: count([some("0.1.0"), None].into_iter()),
        };
        assert_eq!(
            text(&Versions { client: "0.2.0", server: Some(server) }),
            "client:        0.2.0\ncontrol plane: 0.2.0 (2 replicas)\nsidecars:      0.1.0 (1 pod), unknown (1 pod)\n"
        );
        assert_eq!(
            text(&Versions { client: "0.2.0", server: Some(Server::default()) }),
            "client:        0.2.0\ncontrol plane: none\nsidecars:      none\n"
        );
    }
}
