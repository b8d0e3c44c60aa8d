//! `weft policy calls`: the calls that the mesh's sidecars judged; and how the other commands come by them.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use weft_api::observation::{CallList, CallRecord, OUTSIDE};
use weft_certs::SpiffeId;

use super::ask;
use crate::kubernetes::client::ClusterArgs;
use crate::kubernetes::output::{Column, ListFormat, Table, machine, span};
use crate::kubernetes::{self, print};

/// Where calls come from.
#[derive(Args, Clone, Debug)]
pub(super) struct SourceArgs {
    /// File that `weft policy calls -o json` wrote, instead of asking a control plane.
    #[arg(long, value_name = "FILE", conflicts_with = "control_plane")]
    calls: Option<PathBuf>,
    /// Admin address of a control plane on this host, such as 127.0.0.1:4291, instead of the cluster's.
    #[arg(long, value_name = "ADDRESS")]
    control_plane: Option<String>,
    /// How far back, in hours; a control plane keeps 24.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=24))]
    hours: u32,
    /// Calls to this namespace alone.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl SourceArgs {
    /// The calls.
    pub(super) fn read(&self) -> anyhow::Result<CallList> {
        let path = format!("/api/v1/calls?hours={}", self.hours);
        let (place, text) = match (&self.calls, &self.control_plane) {
            (Some(file), _) => {
                let place = file.display().to_string();
                let text = std::fs::read_to_string(file).with_context(|| place.clone())?;
                (place, text)
            }
            (None, Some(address)) => (address.clone(), kubernetes::block_on(ask::get(address, &path))?),
            (None, None) => {
                let answer = kubernetes::block_on(kubernetes::ask::control_plane(&self.cluster, &path))?;
                ("the control plane".to_owned(), answer)
            }
        };
        let mut list: CallList = serde_json::from_str(&text)
            .with_context(|| format!("{place}: not what `weft policy calls -o json` writes"))?;
        if let Some(namespace) = &self.namespace {
            list.calls.retain(|row| row.destination.namespace == *namespace);
        }
        for replica in &list.silent {
            eprintln!("weft: replica {replica} did not answer: what its sidecars saw is missing");
        }
        if list.folded > 0 {
            eprintln!("weft: {} calls are missing: there were more kinds than are kept apart", list.folded);
        }
        Ok(list.merged())
    }
}

/// Arguments of `weft policy calls`.
#[derive(Args)]
pub(crate) struct CallsArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Form of the answer, instead of a table; JSON can be given to `--calls` later.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<ListFormat>,
}

/// Asks and prints.
pub(crate) fn main(args: &CallsArgs) -> anyhow::Result<ExitCode> {
    let list = args.source.read()?;
    match args.output.and_then(ListFormat::machine) {
        Some(format) => print(&machine(&list, format)?)?,
        None if list.calls.is_empty() => eprintln!("No calls were seen in the last {} h.", list.hours),
        None => print(&table(&list).render(args.output.is_some()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(list: &CallList) -> Table {
    let mut columns = ["SOURCE", "DESTINATION", "CALL", "CALLS", "DECISION", "BY"].map(Column::Always).to_vec();
    columns.extend(["LAST SEEN", "WORKLOAD", "PROTOCOL"].map(Column::Wide));
    let mut table = Table::new(columns);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    for row in &list.calls {
        table.row(vec![
            source(row),
            destination(row),
            what(row),
            row.count.to_string(),
            row.call.decision.as_str().to_owned(),
            decider(row),
            format!("{} ago", span(now.saturating_sub(row.last_seen))),
            row.workload.clone(),
            row.call.protocol.clone(),
        ]);
    }
    table
}

/// `shop/orders`, an identity of another form, or `outside`.
pub(super) fn source(row: &CallRecord) -> String {
    let id = SpiffeId::parse(&row.call.source).ok();
    let account = id.as_ref().and_then(SpiffeId::service_account);
    account.map_or_else(|| row.call.source.clone(), |(namespace, name)| format!("{namespace}/{name}"))
}

/// `shop/inventory:8080`: the Service where there is one.
pub(super) fn destination(row: &CallRecord) -> String {
    let name = row.destination.services.first().unwrap_or(&row.workload);
    format!("{}/{name}:{}", row.destination.namespace, row.call.port)
}

/// `GET /stock/{id}`, or what is spoken.
pub(super) fn what(row: &CallRecord) -> String {
    match (&row.call.method, &row.call.path) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        (Some(method), None) => format!("{method} (many paths)"),
        (None, _) => row.call.protocol.clone(),
    }
}

/// `shop/readers rule 0`, `default`.
pub(super) fn decider(row: &CallRecord) -> String {
    match row.call.rule {
        Some(rule) => format!("{} rule {rule}", row.call.policy),
        None => row.call.policy.clone(),
    }
}

/// Whether the caller had no mesh identity.
pub(super) fn is_outside(row: &CallRecord) -> bool {
    row.call.source == OUTSIDE
}
