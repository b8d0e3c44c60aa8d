//! `weft policy explain`: why a running sidecar decides as it does, in its own words.
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use weft_api::verdict::Verdict;

use super::ask;
use crate::kubernetes::client::ClusterArgs;
use crate::kubernetes::output::{Format, machine, printable};
use crate::kubernetes::{self, print};

/// Arguments of `weft policy explain`.
#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// The workload that is called: `pod/NAME`, `deploy/NAME`, `statefulset/NAME`, `daemonset/NAME`.
    #[arg(value_name = "TARGET", required_unless_present = "admin", conflicts_with = "admin")]
    target: Option<String>,
    /// Admin address of a sidecar on this host, such as 127.0.0.1:4291, instead of a pod's.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Namespace, instead of the context's.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Who calls: a service account (`shop/orders`), a SPIFFE ID, an address, or `outside`.
    #[arg(long, required_unless_present = "last")]
    from: Option<String>,
    /// Port of the workload; may be left out where it declares one alone.
    #[arg(long)]
    port: Option<u16>,
    /// Method of a request; with none of these it is a byte stream.
    #[arg(long)]
    method: Option<String>,
    /// Path of a request, as it is sent.
    #[arg(long)]
    path: Option<String>,
    /// Host of a request, instead of the Service's name.
    #[arg(long)]
    host: Option<String>,
    /// Header field of a request; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// Claim of its verified token; may be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<String>,
    /// Instead of a call: the last N calls that were refused or limited.
    #[arg(long, value_name = "N", conflicts_with_all = ["from", "port", "method", "path", "host", "headers", "claims"])]
    last: Option<usize>,
    /// Form of the answer, instead of text.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The answer of `/explain`.
#[derive(Debug, Deserialize, Serialize)]
struct Explanation {
    #[serde(flatten)]
    verdict: Verdict,
    workload: String,
    from: String,
    port: u16,
    default_policy: String,
    #[serde(default)]
    rate_limits: Vec<String>,
}

/// An entry of `/refusals`.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Refusal {
    time_ms: u64,
    from: String,
    address: String,
    port: u16,
    protocol: String,
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    status: u16,
    reason: String,
    policy: Option<String>,
    limit: Option<String>,
    because: String,
}

/// Asks and prints.
pub(crate) fn main(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    kubernetes::block_on(async {
        match args.last {
            Some(last) => refusals(args, last).await,
            None => call(args).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn call(args: &ExplainArgs) -> anyhow::Result<()> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let port = args.port.map(|port| port.to_string());
    let given =
        [("from", &args.from), ("port", &port), ("method", &args.method), ("path", &args.path), ("host", &args.host)];
    pairs.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
    for (kind, list) in [("header", &args.headers), ("claim", &args.claims)] {
        for pair in list {
            let Some((name, value)) = pair.split_once('=') else { bail!("--{kind} {pair}: write NAME=VALUE") };
            pairs.push((format!("{kind}.{name}"), value.to_owned()));
        }
    }
    let answer =
        ask(args, &[format!("/explain?{}", ask::query(&pairs))]).await?.remove(0).map_err(anyhow::Error::msg)?;
    let explanation: Explanation = read(&answer)?;
    if let Some(format) = args.output {
        return print(&machine(&explanation, format)?);
    }
    let what = match (&args.method, &args.path) {
        (None, None) if args.host.is_none() && args.headers.is_empty() && args.claims.is_empty() => "bytes".to_owned(),
        (method, path) => {
            format!("{} {}", method.as_deref().unwrap_or("GET"), path.as_deref().unwrap_or("/"))
        }
    };
    let Explanation { verdict, workload, from, port, .. } = &explanation;
    let mut text = format!("{} by {} to {}:{port}\n", printable(&what), printable(from), printable(workload));
    let _ = writeln!(text, "{}\n", printable(&verdict.because));
    text.push_str(&trace(&explanation));
    print(&text)
}

/// Each policy with its verdict, then the default, in the order in which they are asked.
fn trace(explanation: &Explanation) -> String {
    let mut text = String::new();
    for policy in &explanation.verdict.trace {
        let mode = match policy.mode.as_str() {
            "" | "Enforce" => String::new(),
            mode => format!(", {mode}"),
        };
        let asked = match (policy.asked, mode.is_empty()) {
            (true, _) => "",
            (false, true) => " (not asked any more)",
            (false, false) => " (refuses nothing)",
        };
        let _ = writeln!(text, "{} ({}{mode}){asked}", printable(&policy.policy), policy.action);
        for line in policy.lines() {
            let _ = writeln!(text, "    {}", printable(&line));
        }
    }
    let _ = writeln!(text, "default: {}", printable(&explanation.default_policy));
    if explanation.verdict.allowed() && !explanation.rate_limits.is_empty() {
        let _ = writeln!(text, "then counted by: {}", printable(&explanation.rate_limits.join(", ")));
    }
    text
}

async fn refusals(args: &ExplainArgs, last: usize) -> anyhow::Result<()> {
    let answer = ask(args, &[format!("/refusals?last={last}")]).await?.remove(0).map_err(anyhow::Error::msg)?;
    let refusals: Vec<Refusal> = read(&answer)?;
    if let Some(format) = args.output {
        return print(&machine(&refusals, format)?);
    }
    if refusals.is_empty() {
        eprintln!("Nothing was refused or limited since the sidecar began.");
        return Ok(());
    }
    let by_policy: Vec<&Refusal> = refusals.iter().filter(|refusal| refusal.reason == "denied").collect();
    let asked: Vec<String> = by_policy.iter().map(|refusal| asked_again(refusal)).collect();
    let mut answers = ask(args, &asked).await?.into_iter();
    let mut text = String::new();
    for refusal in &refusals {
        let again = if refusal.reason == "denied" { answers.next() } else { None };
        text.push_str(&shown(refusal, again.and_then(Result::ok).and_then(|answer| read(&answer).ok())));
    }
    print(&text)
}

/// The question what would be decided now. Headers and tokens are not kept, so it is asked without.
fn asked_again(refusal: &Refusal) -> String {
    let mut pairs = vec![("from".to_owned(), refusal.from.clone()), ("port".to_owned(), refusal.port.to_string())];
    let parts = [("method", &refusal.method), ("path", &refusal.path), ("host", &refusal.host)];
    pairs.extend(parts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
    format!("/explain?{}", ask::query(&pairs))
}

fn shown(refusal: &Refusal, now: Option<Explanation>) -> String {
    let what = match (&refusal.method, &refusal.path) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        _ => "bytes".to_owned(),
    };
    let status = if refusal.status == 0 { "reset".to_owned() } else { refusal.status.to_string() };
    let (time, from) = (clock(refusal.time_ms), printable(&refusal.from));
    let mut text = format!("{time}  {status}  {} by {from} to :{}\n", printable(&what), refusal.port);
    let _ = writeln!(text, "    {}", printable(&refusal.because));
    let Some(now) = now else { return text };
    for policy in now.verdict.trace.iter().filter(|policy| policy.asked) {
        for line in policy.lines() {
            let _ = writeln!(text, "    {} ({}) {}", printable(&policy.policy), policy.action, printable(&line));
        }
    }
    let _ = match now.verdict.allowed() {
        true => writeln!(text, "    now: allowed by {}", printable(&now.verdict.decider())),
        false => writeln!(text, "    now: refused still (asked again without headers and token)"),
    };
    text
}

/// Time of the day in UTC.
fn clock(millis: u64) -> String {
    let seconds = millis / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// The sidecar's answers.
async fn ask(args: &ExplainArgs, paths: &[String]) -> anyhow::Result<Vec<Result<String, String>>> {
    let Some(address) = &args.admin else {
        let target = args.target.as_deref().unwrap_or_default();
        return kubernetes::ask::sidecar(&args.cluster, args.namespace.as_deref(), target, paths).await;
    };
    let mut answers = Vec::new();
    for path in paths {
        answers.push(ask::get(address, path).await.map_err(|fault| format!("{fault:#}")));
    }
    Ok(answers)
}

fn read<T: serde::de::DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    serde_json::from_str(answer).context("the sidecar's answer is not what this version expects; compare versions")
}
