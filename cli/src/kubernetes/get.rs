//! `weft get`: what the mesh is doing, as its own sidecars and control planes tell it.
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::client::{Cluster, ClusterArgs};
use super::output::{ListFormat, Table, machine, print};

mod edges;
mod histogram;
mod in_force;
mod metrics;
pub(super) mod policies;
mod routes;
mod workloads;

/// Arguments of `weft get`.
#[derive(Args)]
pub(crate) struct GetArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Pods and Workloads of the mesh: identity, sidecar, connection, certificate.
    #[command(visible_alias = "workload")]
    Workloads(workloads::WorkloadArgs),
    /// Who calls whom: requests, refusals, latencies, mTLS.
    #[command(visible_alias = "edge")]
    Edges(edges::EdgeArgs),
    /// Policies with their conditions, or those that are in force for a pod.
    #[command(visible_alias = "policy")]
    Policies(policies::PolicyArgs),
    /// Routes of the Gateway API to Services, and how they fare there.
    #[command(visible_alias = "route")]
    Routes(routes::RouteArgs),
}

/// What every list takes.
#[derive(Args, Clone, Debug)]
struct ListArgs {
    /// Namespace, instead of the context's.
    #[arg(short, long)]
    namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Form of the answer, instead of a table.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<ListFormat>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl ListArgs {
    /// The namespace that is looked at; `None`: all.
    fn scope(&self, cluster: &Cluster) -> Option<String> {
        let one = || self.namespace.clone().unwrap_or_else(|| cluster.default_namespace.clone());
        (!self.all_namespaces).then(one)
    }

    /// Prints a list in the form that was asked for. `nothing` is said where the table has no row.
    fn show<T: serde::Serialize>(&self, list: &T, table: &Table, nothing: &str) -> anyhow::Result<()> {
        match self.output.and_then(ListFormat::machine) {
            Some(format) => print(&machine(list, format)?),
            None if table.is_empty() => {
                eprintln!("{nothing}");
                Ok(())
            }
            None => print(&table.render(self.output == Some(ListFormat::Wide))),
        }
    }
}

/// Says on standard error what could not be asked: the answer lacks it, and whoever reads it should know.
fn say(faults: &[Fault]) {
    for fault in faults {
        eprintln!("weft: {}: {}", fault.of, super::output::printable(&fault.fault));
    }
}

/// Somebody who did not answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
struct Fault {
    /// `pod/namespace/name`.
    of: String,
    fault: String,
}

/// In `none in namespace shop` and `none in any namespace`.
fn place(scope: Option<&str>) -> String {
    scope.map_or_else(|| "any namespace".to_owned(), |namespace| format!("namespace {namespace}"))
}

/// Asks and prints.
pub(crate) fn main(args: &GetArgs) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        match &args.what {
            What::Workloads(args) => workloads::run(args).await,
            What::Edges(args) => edges::run(args).await,
            What::Policies(args) => policies::run(args).await,
            What::Routes(args) => routes::run(args).await,
        }
    })
}
