//! `weft get edges`: who calls whom, as the sidecars have counted it.
//!
//! Both sides of a call count it; it is shown once, as the calling side saw it: under the name that it called, with what
//! never arrived, and as long as it took. Callers whose sidecars were not asked (they have none, or are elsewhere) are
//! shown as the called side saw them. Both sides name a caller alike, by its service account, so the two never overlap.
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde::Serialize;
use weft_api::duration;

use super::histogram::Histogram;
use super::metrics::samples;
use super::{Fault, ListArgs, place, say};
use crate::kubernetes::client::{Cluster, list};
use crate::kubernetes::forward::{self, AT_ONCE};
use crate::kubernetes::objects::PodFacts;
use crate::kubernetes::output::{Column, Table};

/// Arguments of `weft get edges`.
#[derive(Args)]
pub(super) struct EdgeArgs {
    /// Count for this long, instead of since the sidecars began.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    over: Option<Duration>,
    /// Only sidecars of pods with these labels, such as `app=orders`.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// One end of an edge: `namespace` and name. Outside the mesh the namespace is empty.
type End = (String, String);

/// Who calls whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    source: End,
    destination: End,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    requests: f64,
    refused: f64,
    failed: f64,
    connections: f64,
    mtls: f64,
    plain: f64,
    durations: Histogram,
    protocols: BTreeSet<String>,
}

/// What one sidecar has counted: calls that came to it, and calls that it made.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counted {
    inbound: BTreeMap<Key, Counts>,
    outbound: BTreeMap<Key, Counts>,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edge {
    source_namespace: String,
    source: String,
    destination_namespace: String,
    destination: String,
    protocols: BTreeSet<String>,
    /// HTTP requests.
    requests: f64,
    /// Of these, the share that did not fail, 0 to 1.
    success_rate: Option<f64>,
    /// Of these, answered by 403 or 429, or by gRPC's codes for the same.
    refused: f64,
    /// Of these, answered by 5xx, by gRPC's codes for a fault of the server, or not at all.
    failed: f64,
    /// Byte streams.
    connections: f64,
    /// Requests and byte streams a second. `None`: counted since the sidecars began.
    per_second: Option<f64>,
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
    mtls: Mtls,
    /// Which side has counted.
    seen_by: &'static str,
}

/// Whether mTLS protected the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mtls {
    Yes,
    No,
    Partly,
}

/// The answer.
#[derive(Serialize)]
struct List {
    items: Vec<Edge>,
    faults: Vec<Fault>,
}

pub(super) async fn run(args: &EdgeArgs) -> anyhow::Result<ExitCode> {
    let cluster = args.list.cluster.connect().await?;
    let scope = args.list.scope(&cluster);
    let params = match &args.selector {
        Some(selector) => ListParams::default().labels(selector),
        None => ListParams::default(),
    };
    let pods = list(&cluster.api::<Pod>(scope.as_deref()), params).await.map_err(|fault| cluster.failed(fault))?;
    let pods: Vec<PodFacts> = pods.iter().map(PodFacts::of).filter(|pod| pod.alive && pod.sidecar.is_some()).collect();
    let (mut counted, mut faults) = ask(&cluster, &pods).await;
    if let Some(over) = args.over {
        tokio::time::sleep(over).await;
        let (now, more) = ask(&cluster, &pods).await;
        counted = now.iter().map(|(pod, now)| (pod.clone(), since(now, counted.get(pod)))).collect();
        faults.extend(more);
        faults.dedup_by(|one, other| one.of == other.of);
    }
    let all = List { items: edges(counted.values(), args.over), faults };
    say(&all.faults);
    let nothing = format!("No calls seen by sidecars in {}.", place(scope.as_deref()));
    args.list.show(&all, &table(&all.items), &nothing)?;
    Ok(if all.items.is_empty() && !all.faults.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Every sidecar's counts, and those who did not answer.
async fn ask(cluster: &Cluster, pods: &[PodFacts]) -> (BTreeMap<String, Counted>, Vec<Fault>) {
    let answers = stream::iter(pods)
        .map(|pod| async move { (pod.key(), forward::get(cluster, &pod.namespace, &pod.name, "/metrics").await) });
    let answers: Vec<_> = answers.buffered(AT_ONCE).collect().await;
    let (mut counted, mut faults) = (BTreeMap::new(), Vec::new());
    for (pod, answer) in answers {
        match answer {
            Ok(text) => drop(counted.insert(pod, read(&text))),
            Err(fault) => faults.push(Fault { of: format!("pod/{pod}"), fault }),
        }
    }
    (counted, faults)
}

/// What a sidecar's `/metrics` says of its calls.
fn read(text: &str) -> Counted {
    let mut counted = Counted::default();
    for sample in samples(text) {
        let sides = match sample.label("direction") {
            "inbound" => &mut counted.inbound,
            "outbound" => &mut counted.outbound,
            _ => continue,
        };
        let end = |namespace, name| (sample.label(namespace).to_owned(), sample.label(name).to_owned());
        let key =
            Key { source: end("source_namespace", "source"), destination: end("destination_namespace", "destination") };
        let counts = match sample.name.as_str() {
            "weft_requests_total" | "weft_request_duration_seconds_bucket" | "weft_tcp_connections_total" => {
                sides.entry(key).or_default()
            }
            _ => continue,
        };
        match sample.name.as_str() {
            "weft_request_duration_seconds_bucket" => counts.durations.add(sample.label("le"), sample.value),
            "weft_requests_total" => {
                counts.requests += sample.value;
                match verdict(sample.label("status"), sample.label("grpc_status")) {
                    Verdict::Refused => counts.refused += sample.value,
                    Verdict::Failed => counts.failed += sample.value,
                    Verdict::Answered => {}
                }
            }
            _ => counts.connections += sample.value,
        }
        if sample.name != "weft_request_duration_seconds_bucket" {
            *(if sample.label("tls") == "true" { &mut counts.mtls } else { &mut counts.plain }) += sample.value;
            counts.protocols.insert(sample.label("protocol").to_owned());
        }
    }
    counted
}

/// How a request ended.
enum Verdict {
    Answered,
    Refused,
    Failed,
}

fn verdict(status: &str, grpc_status: &str) -> Verdict {
    match (status, grpc_status) {
        ("403" | "429", _) | (_, "7" | "8") => Verdict::Refused,
        // Unknown, deadline exceeded, internal, unavailable, data loss.
        ("none", _) | (_, "2" | "4" | "13" | "14" | "15") => Verdict::Failed,
        (status, _) if status.starts_with('5') => Verdict::Failed,
        _ => Verdict::Answered,
    }
}

/// What was counted between two readings of one sidecar. One that began anew in between counts from its beginning.
fn since(now: &Counted, earlier: Option<&Counted>) -> Counted {
    let side = |now: &BTreeMap<Key, Counts>, earlier: Option<&BTreeMap<Key, Counts>>| {
        now.iter()
            .map(|(key, now)| match earlier.and_then(|earlier| earlier.get(key)) {
                Some(before) if before.requests <= now.requests && before.connections <= now.connections => {
                    let counts = Counts {
                        requests: now.requests - before.requests,
                        refused: now.refused - before.refused,
                        failed: now.failed - before.failed,
                        connections: now.connections - before.connections,
                        mtls: now.mtls - before.mtls,
                        plain: now.plain - before.plain,
                        durations: now.durations.since(&before.durations),
                        protocols: now.protocols.clone(),
                    };
                    (key.clone(), counts)
                }
                _ => (key.clone(), now.clone()),
            })
            .filter(|(_, counts)| counts.requests + counts.connections > 0.0)
            .collect()
    };
    Counted {
        inbound: side(&now.inbound, earlier.map(|earlier| &earlier.inbound)),
        outbound: side(&now.outbound, earlier.map(|earlier| &earlier.outbound)),
    }
}

/// Each edge once, summed over the sidecars of both ends.
fn edges<'a>(counted: impl Iterator<Item = &'a Counted>, over: Option<Duration>) -> Vec<Edge> {
    let (mut inbound, mut outbound) = (BTreeMap::<Key, Counts>::new(), BTreeMap::<Key, Counts>::new());
    for sidecar in counted {
        for (sum, counts) in [(&mut inbound, &sidecar.inbound), (&mut outbound, &sidecar.outbound)] {
            for (key, counts) in counts {
                sum.entry(key.clone()).or_default().add(counts);
            }
        }
    }
    let callers: BTreeSet<End> = outbound.keys().map(|key| key.source.clone()).collect();
    inbound.retain(|key, _| key.source == folded() || !callers.contains(&key.source));
    let rows = |side: BTreeMap<Key, Counts>, seen_by| {
        side.into_iter().map(move |(key, counts)| edge(key, counts, over, seen_by))
    };
    let mut edges: Vec<Edge> = rows(inbound, "destination").chain(rows(outbound, "source")).collect();
    edges.retain(|edge| edge.requests + edge.connections > 0.0);
    let key = |edge: &Edge| {
        let source = (edge.source_namespace.clone(), edge.source.clone());
        (source, edge.destination_namespace.clone(), edge.destination.clone())
    };
    edges.sort_by_key(key);
    edges
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.refused += other.refused;
        self.failed += other.failed;
        self.connections += other.connections;
        self.mtls += other.mtls;
        self.plain += other.plain;
        self.durations.merge(&other.durations);
        self.protocols.extend(other.protocols.iter().cloned());
    }
}

/// Where a sidecar sums what exceeds its number of series: it can be anybody.
fn folded() -> End {
    ("other".to_owned(), "other".to_owned())
}

fn edge(key: Key, counts: Counts, over: Option<Duration>, seen_by: &'static str) -> Edge {
    Edge {
        source_namespace: key.source.0,
        source: key.source.1,
        destination_namespace: key.destination.0,
        destination: key.destination.1,
        requests: counts.requests,
        success_rate: (counts.requests > 0.0).then(|| 1.0 - counts.failed / counts.requests),
        refused: counts.refused,
        failed: counts.failed,
        connections: counts.connections,
        per_second: over.map(|over| (counts.requests + counts.connections) / over.as_secs_f64().max(0.001)),
        p50_seconds: counts.durations.quantile(0.5),
        p99_seconds: counts.durations.quantile(0.99),
        mtls: match (counts.mtls > 0.0, counts.plain > 0.0) {
            (true, false) => Mtls::Yes,
            (true, true) => Mtls::Partly,
            (false, _) => Mtls::No,
        },
        protocols: counts.protocols,
        seen_by,
    }
}

fn table(edges: &[Edge]) -> Table {
    use Column::{Always, Wide};
    let mut table = Table::new(vec![
        Always("SOURCE"),
        Always("DESTINATION"),
        Always("REQUESTS"),
        Always("SUCCESS"),
        Always("REFUSED"),
        Always("STREAMS"),
        Always("RATE"),
        Always("P50"),
        Always("P99"),
        Always("MTLS"),
        Wide("PROTOCOLS"),
        Wide("FAILED"),
        Wide("SEEN BY"),
    ]);
    let end = |namespace: &str, name: &str| {
        if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
    };
    let latency = |seconds: Option<f64>| match seconds.map(|seconds| seconds * 1e3) {
        None => String::new(),
        Some(millis) if millis < 10.0 => format!("{millis:.1}ms"),
        Some(millis) => format!("{millis:.0}ms"),
    };
    for edge in edges {
        let mtls = match edge.mtls {
            Mtls::Yes => "yes",
            Mtls::No => "no",
            Mtls::Partly => "partly",
        };
        table.row(vec![
            end(&edge.source_namespace, &edge.source),
            end(&edge.destination_namespace, &edge.destination),
            format!("{:.0}", edge.requests),
            edge.success_rate.map(|rate| format!("{:.2}%", (rate * 1e4).floor() / 1e2)).unwrap_or_default(),
            format!("{:.0}", edge.refused),
            format!("{:.0}", edge.connections),
            edge.per_second.map(|rate| format!("{rate:.1}/s")).unwrap_or_default(),
            latency(edge.p50_seconds),
            latency(edge.p99_seconds),
            mtls.to_owned(),
            edge.protocols.iter().cloned().collect::<Vec<_>>().join(","),
            format!("{:.0}", edge.failed),
            edge.seen_by.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
#[path = "edges_tests.rs"]
mod tests;
