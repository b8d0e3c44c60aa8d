//! `weft policy suggest`: the least that policies must allow so that the calls that were seen pass.
//!
//! What was refused is never suggested, and neither is a caller without identity unless that is asked for. The same calls
//! give the same text.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use weft_api::observation::{CallList, CallRecord};
use weft_certs::SpiffeId;

use super::calls::{self, SourceArgs, is_outside};
use crate::kubernetes::output::printable;
use crate::kubernetes::print;

/// Items of one list of a policy.
const LONGEST_LIST: usize = 1_000;
/// Labels that name a workload, the one to select by first.
const NAME_LABELS: [&str; 4] = ["app.kubernetes.io/name", "app", "k8s-app", "name"];

/// Arguments of `weft policy suggest`.
#[derive(Args)]
pub(crate) struct SuggestArgs {
    #[command(flatten)]
    calls: SourceArgs,
    /// Allow callers without a mesh identity what they called, too.
    #[arg(long)]
    include_outside: bool,
}

/// Asks, and prints policies.
pub(crate) fn main(args: &SuggestArgs) -> anyhow::Result<ExitCode> {
    let list = args.calls.read()?;
    let policies = policies(&list, args.include_outside);
    print(&text(&list, &policies, args.include_outside))?;
    if policies.is_empty() {
        eprintln!("No calls that passed were seen in the last {} h: there is nothing to suggest.", list.hours);
    }
    Ok(ExitCode::SUCCESS)
}

/// What a policy is for: a Service, or workloads by their labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    namespace: String,
    target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Service(String),
    Labels(BTreeMap<String, String>),
    /// Nothing tells these workloads apart from the others of their namespace.
    Account(String),
}

/// Who may call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum From {
    Account(String),
    Identity(String),
    Outside,
}

/// What may be called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct To {
    port: u16,
    /// None: a byte stream.
    methods: BTreeSet<String>,
    /// None: any.
    paths: Vec<String>,
}

/// Methods by port and path.
type Operations = BTreeMap<(u16, Option<String>), BTreeSet<String>>;

/// A policy in the making.
#[derive(Debug, Default)]
struct Policy {
    /// Callers that may do the same, with the number of their calls.
    rules: BTreeMap<Vec<To>, (BTreeSet<From>, u64)>,
    calls: u64,
    /// What is not allowed here, in words.
    notes: Vec<String>,
}

fn policies(list: &CallList, include_outside: bool) -> BTreeMap<Subject, Policy> {
    let mut by_subject: BTreeMap<Subject, Vec<&CallRecord>> = BTreeMap::new();
    for row in &list.calls {
        by_subject.entry(subject(row)).or_default().push(row);
    }
    let made = by_subject.into_iter().map(|(subject, rows)| {
        let policy = policy(&subject.namespace, &rows, include_outside);
        (subject, policy)
    });
    made.filter(|(_, policy)| policy.calls > 0 || !policy.notes.is_empty()).collect()
}

fn subject(row: &CallRecord) -> Subject {
    let destination = &row.destination;
    let named = NAME_LABELS.iter().find_map(|label| destination.labels.get_key_value(*label));
    let target = match (destination.services.first(), named) {
        (Some(service), _) => Target::Service(service.clone()),
        (None, Some((label, value))) => Target::Labels(BTreeMap::from([(label.clone(), value.clone())])),
        (None, None) if !destination.labels.is_empty() => Target::Labels(destination.labels.clone()),
        (None, None) => Target::Account(destination.service_account.clone()),
    };
    Subject { namespace: destination.namespace.clone(), target }
}

fn policy(namespace: &str, rows: &[&CallRecord], include_outside: bool) -> Policy {
    let mut policy = Policy::default();
    let mut callers: BTreeMap<From, (Operations, u64)> = BTreeMap::new();
    for row in rows {
        let call = format!("{} × {} by {}", row.count, calls::what(row), calls::source(row));
        if !row.call.decision.passed() {
            policy.notes.push(format!("refused, not allowed here: {call}, by {}", calls::decider(row)));
            continue;
        }
        if is_outside(row) && !include_outside {
            policy.notes.push(format!("without identity, not allowed here (--include-outside): {call}"));
            continue;
        }
        if row.call.path.as_deref() == Some("*") {
            policy.notes.push(format!("no policy can name this path alone, not allowed here: {call}"));
            continue;
        }
        let (operations, count) = callers.entry(from(row, namespace)).or_default();
        let methods = operations.entry((row.call.port, row.call.path.clone())).or_default();
        methods.extend(row.call.method.clone());
        *count = count.saturating_add(row.count);
        policy.calls = policy.calls.saturating_add(row.count);
    }
    for (from, (operations, count)) in callers {
        let (callers, calls) = policy.rules.entry(to(operations)).or_default();
        callers.insert(from);
        *calls = calls.saturating_add(count);
    }
    policy
}

fn from(row: &CallRecord, namespace: &str) -> From {
    if is_outside(row) {
        return From::Outside;
    }
    let id = SpiffeId::parse(&row.call.source).ok();
    match id.as_ref().and_then(SpiffeId::service_account) {
        Some((own, account)) if own == namespace => From::Account(account.to_owned()),
        Some((other, account)) => From::Account(format!("{other}/{account}")),
        None => From::Identity(row.call.source.clone()),
    }
}

/// Operations with the same port and methods become one with several paths.
fn to(operations: Operations) -> Vec<To> {
    let mut paths: BTreeMap<(u16, BTreeSet<String>), BTreeSet<Option<String>>> = BTreeMap::new();
    for ((port, path), methods) in operations {
        paths.entry((port, methods)).or_default().insert(path);
    }
    let mut all = Vec::new();
    for ((port, methods), paths) in paths {
        if paths.contains(&None) {
            all.push(To { port, methods, paths: Vec::new() });
            continue;
        }
        let paths: Vec<String> = paths.into_iter().flatten().collect();
        all.extend(paths.chunks(LONGEST_LIST).map(|paths| To {
            port,
            methods: methods.clone(),
            paths: paths.to_vec(),
        }));
    }
    all
}

fn text(list: &CallList, policies: &BTreeMap<Subject, Policy>, include_outside: bool) -> String {
    let mut text = format!("# Suggested by `weft policy suggest` from the calls of the last {} h.\n", list.hours);
    text.push_str("# What was refused is not allowed here");
    text.push_str(if include_outside { ".\n" } else { ", and neither are callers without identity.\n" });
    for (subject, policy) in policies {
        text.push_str("---\n");
        for note in &policy.notes {
            let _ = writeln!(text, "# {}", printable(note));
        }
        if policy.calls > 0 {
            document(&mut text, subject, policy);
        }
    }
    text
}

fn document(text: &mut String, Subject { namespace, target }: &Subject, policy: &Policy) {
    let (name, target) = match target {
        Target::Service(name) => (name.clone(), format!("  targetRefs: [{{kind: Service, name: {name}}}]\n")),
        Target::Labels(labels) => {
            let name = NAME_LABELS.iter().find_map(|label| labels.get(*label)).or(labels.values().next());
            let name = name.map(String::as_str).unwrap_or_default();
            (label_name(name), format!("  selector: {{matchLabels: {}}}\n", json!(labels)))
        }
        Target::Account(account) => (account.clone(), String::new()),
    };
    let _ = write!(
        text,
        "# {} calls\napiVersion: policy.weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}-callers, namespace: {namespace}}}\nspec:\n{target}  action: Allow\n  rules:\n",
        policy.calls
    );
    let mut rules: Vec<_> = policy.rules.iter().collect();
    rules.sort_by(|(to, (from, _)), (other, (others, _))| (from, to).cmp(&(others, other)));
    for (to, (callers, calls)) in rules {
        let _ = writeln!(text, "  # {calls} calls");
        let mut item = "-";
        for from in from_items(callers) {
            if item == "-" {
                text.push_str("  - from:\n");
                item = " ";
            }
            let _ = writeln!(text, "    - {from}");
        }
        let _ = writeln!(text, "  {item} to:");
        for To { port, methods, paths } in to {
            let _ = write!(text, "    - {{ports: [{port}]");
            if !methods.is_empty() {
                let _ = write!(text, ", methods: {}", json!(methods));
            }
            if !paths.is_empty() {
                let _ = write!(text, ", paths: {}", json!(paths));
            }
            text.push('}');
            if !methods.is_empty() && paths.is_empty() {
                text.push_str(" # more paths than are kept apart");
            }
            text.push('\n');
        }
    }
}

/// Items of `from`. Nobody without identity can be named but by address, and addresses are not kept: any.
fn from_items(callers: &BTreeSet<From>) -> Vec<String> {
    let accounts: Vec<&String> =
        callers.iter().filter_map(|from| if let From::Account(name) = from { Some(name) } else { None }).collect();
    let identities: Vec<&String> =
        callers.iter().filter_map(|from| if let From::Identity(id) = from { Some(id) } else { None }).collect();
    let mut items: Vec<String> =
        accounts.chunks(LONGEST_LIST).map(|names| format!("{{serviceAccounts: {}}}", json!(names))).collect();
    items.extend(identities.chunks(LONGEST_LIST).map(|ids| format!("{{identities: {}}}", json!(ids))));
    if callers.contains(&From::Outside) {
        items.push(
            "{ipBlocks: [\"0.0.0.0/0\", \"::/0\"]} # any caller without identity; name their addresses".to_owned(),
        );
    }
    items
}

/// A label's value as a name.
fn label_name(value: &str) -> String {
    let name: String =
        value.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = name.trim_matches('-').to_owned();
    if name.is_empty() { "workload".to_owned() } else { name }
}
