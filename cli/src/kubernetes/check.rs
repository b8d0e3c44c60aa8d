//! `weft check`: whether a cluster can take Weft (`--pre`), and whether what is installed is well.
//!
//! Every failure has a remedy under it. Facts are fetched first, each group's judgement is a pure function over them; a
//! fact that cannot be had is a warning that says which permission or answer is missing.
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;

use super::client::{Cluster, ClusterArgs, list};
use super::control_plane::{self, Knowledge};
use super::names::NAMESPACE;
use super::objects::{NamespaceFacts, PodFacts};
use super::output::{Format, machine, print};

mod api;
mod certificates;
mod cni;
mod dry_run;
mod finding;
mod injection;
mod install;
mod nodes;
mod other_meshes;
mod permissions;
mod policies;
mod sidecars;
mod versions;
mod webhooks;

use finding::{Group, Report};

/// What was seen, or why it could not be.
type Seen<T> = Result<T, String>;

/// Arguments of `weft check`.
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Check before installing: permissions, versions, nodes, other meshes.
    #[arg(long)]
    pre: bool,
    /// Fail on warnings too.
    #[arg(long)]
    strict: bool,
    /// Show only what is not well.
    #[arg(short, long)]
    quiet: bool,
    /// Form of the answer, instead of text.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Namespace in which the control plane is, or will be, installed.
    #[arg(short, long, default_value = NAMESPACE)]
    namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What several groups look at.
struct Inventory {
    namespaces: Seen<Vec<NamespaceFacts>>,
    pods: Seen<Vec<PodFacts>>,
    cni: Seen<Option<cni::DaemonSetFacts>>,
    nodes: Seen<Vec<nodes::NodeFacts>>,
    /// Seconds since 1970 by the API server's clock, where it told: a certificate does not expire by this machine's.
    now: i64,
}

/// Checks and prints. Exit code 0: well; 1: a failure, or with `--strict` a warning.
pub(crate) fn main(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let report = super::block_on(run(args))?;
    print(&match args.output {
        Some(format) => machine(&report, format)?,
        None => report.render(args.quiet),
    })?;
    Ok(if report.is_well(args.strict) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(args: &CheckArgs) -> anyhow::Result<Report> {
    let cluster = args.cluster.connect().await?;
    let api = api::look(&cluster).await;
    let mut groups = vec![api::judge(&api)];
    if api.version.is_err() {
        return Ok(Report::of(groups));
    }
    let now = unix_now() + api.ahead.unwrap_or_default();
    let inventory = take_inventory(&cluster, now).await;
    if args.pre {
        groups.extend(before(&cluster, &inventory, &args.namespace).await);
    } else {
        groups.extend(Box::pin(after(&cluster, &inventory, &args.namespace)).await);
    }
    Ok(Report::of(groups))
}

async fn before(cluster: &Cluster, inventory: &Inventory, namespace: &str) -> Vec<Group> {
    let (permissions, remains, other_meshes) =
        tokio::join!(permissions::look(cluster, namespace), install::look(cluster), other_meshes::look(cluster));
    vec![
        permissions::judge(&permissions),
        install::judge_before(&remains, namespace),
        nodes::judge(&inventory.nodes, inventory.now),
        other_meshes::judge(&other_meshes, &inventory.namespaces),
        injection::judge_before(&inventory.namespaces, namespace),
    ]
}

async fn after(cluster: &Cluster, inventory: &Inventory, asked: &str) -> Vec<Group> {
    let (install, replicas) = tokio::join!(install::look(cluster), control_plane::replicas(cluster));
    // Wherever it is installed: the flag decides only where nothing is found.
    let namespace = install.namespace().unwrap_or(asked).to_owned();
    let namespace = namespace.as_str();
    if install.is_absent() {
        return vec![install::judge_after(&install, &replicas, namespace, inventory.now)];
    }
    let asked_replicas = replicas.as_deref().unwrap_or_default();
    let (knowledge, webhooks, certificates, bundles, policies, other_meshes) = tokio::join!(
        control_plane::knowledge(cluster, asked_replicas),
        webhooks::look(cluster, namespace, &inventory.namespaces),
        certificates::look(cluster, namespace),
        certificates::look_at_bundles(cluster),
        policies::look(cluster, asked_replicas),
        other_meshes::look(cluster),
    );
    let knowledge: Seen<Knowledge> = match &replicas {
        Ok(replicas) if replicas.is_empty() => Err("there is no control plane to ask".to_owned()),
        Ok(_) => Ok(knowledge),
        Err(fault) => Err(fault.clone()),
    };
    vec![
        install::judge_after(&install, &replicas, namespace, inventory.now),
        versions::judge(&replicas, &inventory.pods),
        webhooks::judge(&webhooks, &certificates),
        certificates::judge(&certificates, &bundles, &inventory.namespaces, &inventory.pods, inventory.now),
        injection::judge_after(&inventory.namespaces, &inventory.pods, &inventory.cni),
        sidecars::judge(&inventory.pods, &knowledge, inventory.now),
        policies::judge(&policies),
        cni::judge(&inventory.cni, &inventory.nodes),
        nodes::judge(&inventory.nodes, inventory.now),
        other_meshes::judge(&other_meshes, &inventory.namespaces),
    ]
}

async fn take_inventory(cluster: &Cluster, now: i64) -> Inventory {
    let (namespaces, pods) = (cluster.global::<Namespace>(), cluster.api::<Pod>(None));
    let (namespaces, pods, cni, nodes) = tokio::join!(
        list(&namespaces, ListParams::default()),
        list(&pods, ListParams::default()),
        cni::look(cluster),
        nodes::look(cluster),
    );
    Inventory {
        namespaces: namespaces.map(|all| all.iter().map(NamespaceFacts::of).collect()),
        pods: pods.map(|all| all.iter().map(PodFacts::of).collect()),
        cni,
        nodes,
        now,
    }
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX))
}
