//! `AuthorizationPolicy`: who may call what.
//!
//! The items of a list are alternatives; the fields of one item must all hold; a field that is left out does not matter.
//! An empty list is refused, because it could be read as "nothing" and as "anything".
use http::HeaderName;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::error::quoted;
use super::metadata::Scope;
use super::node::{At, Fields, Shape};
use super::schema::Fault;
use super::{Metadata, NamespacedName, ResourceError, Subject, Target, name};
use crate::policy::path::check_method;
use crate::policy::pattern::{HostPattern, IdentityPattern, PathPattern, PatternError};

mod schema;

const SPEC: Shape =
    Shape { known: &["targetRefs", "selector", "action", "mode", "rules"], later: &["expiresAt", "stagedFor"] };
const RULE: Shape = Shape { known: &["from", "to", "when"], later: &[] };
const CALLER: Shape = Shape {
    known: &["serviceAccounts", "namespaces", "identities", "ipBlocks"],
    later: &["notServiceAccounts", "notNamespaces", "notIdentities", "notIpBlocks"],
};
const OPERATION: Shape = Shape {
    known: &["ports", "methods", "paths", "hosts"],
    later: &["grpc", "notPorts", "notMethods", "notPaths", "notHosts"],
};
const CONDITION: Shape = Shape { known: &["header", "in"], later: &["claim", "contains", "notIn"] };

const ACTIONS: &[(&str, Action)] = &[("Allow", Action::Allow), ("Deny", Action::Deny)];
const DEFAULT_MODE: (&str, Mode) = ("Enforce", Mode::Enforce);
const MODES: &[(&str, Mode)] = &[DEFAULT_MODE, ("Shadow", Mode::Shadow)];
/// Bytes that a header's value may have.
const MAX_HEADER_VALUE_BYTES: usize = 1_024;

const IP_BLOCKS_BESIDE_IDENTITY: Fault = Fault {
    message: "has `ipBlocks`, which match only callers without mesh identity, beside fields that match only those with one",
    remedy: "Write two items of `from`.",
};

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its name.
    pub name: NamespacedName,
    /// What it applies to.
    pub target: Target,
    /// What its rules do.
    pub action: Action,
    /// Whether they do it.
    pub mode: Mode,
    /// Its rules. None: an Allow policy allows nothing, a Deny policy refuses everything it applies to.
    pub rules: Vec<Rule>,
}

/// What the rules of a policy do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Allow what a rule matches; once such a policy applies, what no rule matches is refused.
    Allow,
    /// Refuse what a rule matches, whatever else allows it.
    Deny,
}

/// Whether a policy takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does.
    Enforce,
    /// It only reports what it would do.
    Shadow,
}

/// One rule: matches when `from`, `to` and `when` all do. An empty list matches.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// Who calls: one of these.
    pub from: Vec<Caller>,
    /// What is called: one of these.
    pub to: Vec<Operation>,
    /// What else must hold: all of these.
    pub when: Vec<Condition>,
}

/// Callers: those that every list that is not empty has.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Caller {
    /// Service accounts.
    pub service_accounts: Vec<NamespacedName>,
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// SPIFFE IDs.
    pub identities: Vec<IdentityPattern>,
    /// Addresses of callers that have no mesh identity; no other list stands beside it.
    pub ip_blocks: Vec<IpNet>,
}

/// Operations: those that every list that is not empty has.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Operation {
    /// Ports of the workload.
    pub ports: Vec<u16>,
    /// HTTP methods, upper case.
    pub methods: Vec<String>,
    /// Paths.
    pub paths: Vec<PathPattern>,
    /// Hosts.
    pub hosts: Vec<HostPattern>,
}

/// A header's value is one of `values`, compared byte by byte. Each value of each line counts, split at commas: a Deny
/// rule matches when one of them is listed, an Allow rule when there is one and all are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The header.
    pub header: HeaderName,
    /// The values: visible ASCII, without comma.
    pub values: Vec<String>,
}

impl AuthorizationPolicy {
    /// Whether it applies to `subject`.
    pub fn applies_to(&self, subject: Subject<'_>) -> bool {
        self.target.applies_to(&self.name.namespace, subject)
    }

    pub(crate) fn parse(document: &Fields<'_>) -> Result<Self, ResourceError> {
        let metadata = Metadata::parse(document, Scope::Own)?;
        let spec = document.require("spec", "Write `spec: {action: Allow, rules: […]}`.")?;
        Self::parse_spec(metadata.name, &spec)
    }

    /// Reads the `spec` of the policy `name`.
    pub(crate) fn parse_spec(name: NamespacedName, spec: &At<'_>) -> Result<Self, ResourceError> {
        let fields = spec.closed(&SPEC)?;
        let target = Target::parse(&fields)?;
        let action = fields.require("action", "Write `action: Allow` or `action: Deny`.")?;
        let action = action.one_of(ACTIONS)?;
        let mode = match fields.get("mode") {
            None => DEFAULT_MODE.1,
            Some(at) if at.text()? == "Staged" => {
                return Err(at.error(
                    "is `Staged`, which is not supported by this version",
                    "Write `Shadow`, watch its decisions, then write `Enforce`.",
                ));
            }
            Some(at) => at.one_of(MODES)?,
        };
        let rules = match fields.get("rules") {
            None => Vec::new(),
            Some(at) => at.items_or_none()?.iter().map(|at| rule(at, &name.namespace)).collect::<Result<_, _>>()?,
        };
        Ok(Self { name, target, action, mode, rules })
    }

    /// The `spec` as JSON; reading it gives an equal policy.
    pub fn spec_json(&self) -> Value {
        let mut spec = serde_json::Map::new();
        self.target.write(&mut spec);
        spec.insert("action".into(), format!("{:?}", self.action).into());
        spec.insert("mode".into(), format!("{:?}", self.mode).into());
        spec.insert("rules".into(), self.rules.iter().map(Rule::to_json).collect());
        Value::Object(spec)
    }
}

fn rule(at: &At<'_>, namespace: &str) -> Result<Rule, ResourceError> {
    let fields = at.closed(&RULE)?;
    let list = |key| fields.get(key).map(|at| at.items()).transpose().map(Option::unwrap_or_default);
    Ok(Rule {
        from: list("from")?.iter().map(|at| caller(at, namespace)).collect::<Result<_, _>>()?,
        to: list("to")?.iter().map(operation).collect::<Result<_, _>>()?,
        when: list("when")?.iter().map(condition).collect::<Result<_, _>>()?,
    })
}

/// The items of the list `key`, each read by `read`.
fn each<T>(
    fields: &Fields<'_>,
    key: &str,
    read: impl Fn(&At<'_>) -> Result<T, ResourceError>,
) -> Result<Vec<T>, ResourceError> {
    fields.get(key).map(|at| at.items()).transpose()?.unwrap_or_default().iter().map(read).collect()
}

fn pattern<T>(at: &At<'_>, parse: impl Fn(&str) -> Result<T, PatternError>) -> Result<T, ResourceError> {
    let text = at.text()?;
    parse(text).map_err(|error| at.error(format_args!("is {}, which {}", quoted(text), error.message), error.remedy))
}

fn caller(at: &At<'_>, namespace: &str) -> Result<Caller, ResourceError> {
    let fields = at.closed(&CALLER)?;
    if fields.is_empty() {
        return Err(at.error("names nobody", "Leave `from` out to mean any caller."));
    }
    let caller = Caller {
        service_accounts: each(&fields, "serviceAccounts", |at| name::reference(at, namespace))?,
        namespaces: each(&fields, "namespaces", |at| Ok(name::label(at)?.to_owned()))?,
        identities: each(&fields, "identities", |at| pattern(at, IdentityPattern::parse))?,
        ip_blocks: each(&fields, "ipBlocks", ip_block)?,
    };
    let has_identity =
        !(caller.service_accounts.is_empty() && caller.namespaces.is_empty() && caller.identities.is_empty());
    if has_identity && !caller.ip_blocks.is_empty() {
        return Err(at.fault(&IP_BLOCKS_BESIDE_IDENTITY));
    }
    Ok(caller)
}

fn ip_block(at: &At<'_>) -> Result<IpNet, ResourceError> {
    let text = at.text()?;
    let block: IpNet = match (text.parse(), text.parse::<std::net::IpAddr>()) {
        (Ok(block), _) => block,
        (_, Ok(address)) => IpNet::from(address),
        _ => {
            return Err(at.error(
                format_args!("is {}, which is not an address block", quoted(text)),
                "Write a block such as `10.0.0.0/8` or `fd00::/8`.",
            ));
        }
    };
    if block.trunc() != block {
        return Err(at.error(
            format_args!("is {}, which has bits beyond its prefix", quoted(text)),
            format!("Write `{}` for the block, or `{}` for the one address.", block.trunc(), block.addr()),
        ));
    }
    if let IpNet::V6(v6) = block
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(at.error(format_args!("is {}, an IPv4 address in IPv6", quoted(text)), "Write it as IPv4."));
    }
    Ok(block)
}

fn operation(at: &At<'_>) -> Result<Operation, ResourceError> {
    let fields = at.closed(&OPERATION)?;
    if fields.is_empty() {
        return Err(at.error("names nothing", "Leave `to` out to mean any operation."));
    }
    Ok(Operation {
        ports: each(&fields, "ports", |at| at.port())?,
        methods: each(&fields, "methods", method)?,
        paths: each(&fields, "paths", |at| pattern(at, PathPattern::parse))?,
        hosts: each(&fields, "hosts", |at| pattern(at, HostPattern::parse))?,
    })
}

fn method(at: &At<'_>) -> Result<String, ResourceError> {
    let text = at.text()?;
    if text.contains('*') {
        return Err(at.error(format_args!("is {}", quoted(text)), "Leave `methods` out to mean any method."));
    }
    if check_method(text).is_err() {
        let upper = text.to_ascii_uppercase();
        let remedy = match check_method(&upper) {
            Ok(()) => format!("Write {}.", quoted(&upper)),
            Err(_) => "Write a method such as `GET`.".to_owned(),
        };
        return Err(at.error(format_args!("is {}, which is no method in upper case", quoted(text)), remedy));
    }
    Ok(text.to_owned())
}

fn condition(at: &At<'_>) -> Result<Condition, ResourceError> {
    let fields = at.closed(&CONDITION)?;
    let header_at = fields.require("header", "Write the header's name.")?;
    let text = header_at.text()?;
    let header = HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        header_at
            .error(format_args!("is {}, which is no header name", quoted(text)), "Write a name such as `x-tenant`.")
    })?;
    match header.as_str() {
        "host" => return Err(header_at.error("is `host`", "Write the host under `to: [{hosts: […]}]`.")),
        "x-forwarded-client-cert" => {
            return Err(header_at.error("is what the caller claims to be", "Write who may call under `from`."));
        }
        _ => {}
    }
    let values = fields.require("in", "List the values under `in`.")?;
    let values = values.items()?.iter().map(header_value).collect::<Result<_, _>>()?;
    Ok(Condition { header, values })
}

fn header_value(at: &At<'_>) -> Result<String, ResourceError> {
    let text = at.text()?;
    let allowed = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b',';
    if text.is_empty()
        || text.len() > MAX_HEADER_VALUE_BYTES
        || text.trim_matches(' ') != text
        || !text.bytes().all(allowed)
    {
        return Err(at.error(
            format_args!("is {}, which no single header value can be", quoted(text)),
            format!(
                "Write 1 to {MAX_HEADER_VALUE_BYTES} visible ASCII characters without comma, and list each value by itself."
            ),
        ));
    }
    Ok(text.to_owned())
}

/// Adds the field `key` if the list has something.
fn put<T>(object: &mut serde_json::Map<String, Value>, key: &str, list: &[T], write: impl Fn(&T) -> Value) {
    if !list.is_empty() {
        object.insert(key.to_owned(), list.iter().map(write).collect());
    }
}

impl Rule {
    fn to_json(&self) -> Value {
        let mut rule = serde_json::Map::new();
        put(&mut rule, "from", &self.from, Caller::to_json);
        put(&mut rule, "to", &self.to, Operation::to_json);
        put(&mut rule, "when", &self.when, |when| json!({"header": when.header.as_str(), "in": when.values}));
        Value::Object(rule)
    }
}

impl Caller {
    fn to_json(&self) -> Value {
        let mut caller = serde_json::Map::new();
        put(&mut caller, "serviceAccounts", &self.service_accounts, |name| name.to_string().into());
        put(&mut caller, "namespaces", &self.namespaces, |name| name.as_str().into());
        put(&mut caller, "identities", &self.identities, |id| id.to_string().into());
        put(&mut caller, "ipBlocks", &self.ip_blocks, |block| block.to_string().into());
        Value::Object(caller)
    }
}

impl Operation {
    fn to_json(&self) -> Value {
        let mut operation = serde_json::Map::new();
        put(&mut operation, "ports", &self.ports, |port| (*port).into());
        put(&mut operation, "methods", &self.methods, |method| method.as_str().into());
        put(&mut operation, "paths", &self.paths, |path| path.to_string().into());
        put(&mut operation, "hosts", &self.hosts, |host| host.to_string().into());
        Value::Object(operation)
    }
}
