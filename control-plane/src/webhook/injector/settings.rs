//! What the annotations of a pod ask for; where it says nothing those of its namespace, then the injector's settings.
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use weft_api::ports::PortRanges;

use super::config::{InjectorConfig, ResourceList};
use super::decide::INJECT_ANNOTATION;
use super::pod::Pod;
use super::words::{nearest, one_of, quoted};
use super::{INJECTED_ANNOTATION, NamespaceMeta, SKIPPED_ANNOTATION, quantity};

const SKIP_INBOUND_PORTS: &str = "weft.dev/skip-inbound-ports";
const SKIP_OUTBOUND_PORTS: &str = "weft.dev/skip-outbound-ports";
const SKIP_SUBNETS: &str = "weft.dev/skip-subnets";
const OPAQUE_PORTS: &str = "weft.dev/opaque-ports";
const CPU_REQUEST: &str = "weft.dev/proxy-cpu-request";
const CPU_LIMIT: &str = "weft.dev/proxy-cpu-limit";
const MEMORY_REQUEST: &str = "weft.dev/proxy-memory-request";
const MEMORY_LIMIT: &str = "weft.dev/proxy-memory-limit";
const LOG_LEVEL: &str = "weft.dev/log-level";
const ACCESS_LOG: &str = "weft.dev/access-log";

/// All annotations of Weft's that a pod can have.
const KNOWN: [&str; 13] = [
    INJECT_ANNOTATION,
    INJECTED_ANNOTATION,
    SKIPPED_ANNOTATION,
    SKIP_INBOUND_PORTS,
    SKIP_OUTBOUND_PORTS,
    SKIP_SUBNETS,
    OPAQUE_PORTS,
    CPU_REQUEST,
    CPU_LIMIT,
    MEMORY_REQUEST,
    MEMORY_LIMIT,
    LOG_LEVEL,
    ACCESS_LOG,
];
const PREFIX: &str = "weft.dev/";
/// Subnets that the redirect rules carry.
const MAX_SUBNETS: usize = 256;
/// Bytes that a list of subnets may have before it is read.
const MAX_SUBNETS_BYTES: usize = 64 * 1024;
const LOG_LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
const ACCESS_LOGS: [&str; 3] = ["off", "errors", "all"];

/// What is in force for one pod.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) skip_inbound_ports: PortRanges,
    pub(super) skip_outbound_ports: PortRanges,
    pub(super) skip_subnets: Vec<IpNet>,
    opaque_ports: PortRanges,
    pub(super) log: String,
    pub(super) access_log: String,
    /// `resources` of the containers that are added.
    pub(super) resources: Value,
}

/// Annotations of pod and namespace.
struct Annotations<'a> {
    pod: &'a Pod,
    namespace: &'a NamespaceMeta,
}

/// The value of an annotation, and where it stands.
struct Said<'a> {
    text: &'a str,
    place: String,
}

impl<'a> Annotations<'a> {
    fn get(&self, key: &str) -> Option<Said<'a>> {
        if let Some(text) = self.pod.annotation(key) {
            return Some(Said { text, place: format!("annotation {key}") });
        }
        let text = self.namespace.annotations.get(key)?;
        Some(Said { text, place: format!("annotation {key} of namespace {}", quoted(&self.namespace.name)) })
    }

    /// What `key` says, read by `read`; `None` where nobody says anything.
    fn read<T>(&self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
        let said = self.get(key);
        said.map(|said| read(said.text.trim()).map_err(|fault| format!("{} {fault}", said.place))).transpose()
    }

    fn ports(&self, key: &str, otherwise: &str) -> Result<PortRanges, String> {
        let said = self.read(key, str::parse)?;
        said.map_or_else(|| otherwise.parse().map_err(|fault| format!("the injector's default for {key} {fault}")), Ok)
    }
}

impl Settings {
    pub(super) fn read(pod: &Pod, namespace: &NamespaceMeta, config: &InjectorConfig) -> Result<Self, String> {
        let unknown = |key: &&str| key.starts_with(PREFIX) && !KNOWN.contains(key);
        if let Some(key) = pod.annotation_keys().find(unknown) {
            let remedy = nearest(key, &KNOWN).map_or_else(
                || "the annotations are listed in the manual of the control plane".to_owned(),
                |right| format!("write {right}"),
            );
            return Err(format!("annotation {} is not known to Weft; {remedy}", quoted(key)));
        }
        let annotations = Annotations { pod, namespace };
        let checked = |key: &str, check: fn(&str) -> Result<(), String>, otherwise: &str| {
            let said = annotations.read(key, |text| check(text).map(|()| text.to_owned()))?;
            Ok::<_, String>(said.unwrap_or_else(|| otherwise.to_owned()))
        };
        let subnets = annotations.read(SKIP_SUBNETS, read_subnets)?;
        Ok(Self {
            skip_inbound_ports: annotations.ports(SKIP_INBOUND_PORTS, &config.skip_inbound_ports)?,
            skip_outbound_ports: annotations.ports(SKIP_OUTBOUND_PORTS, &config.skip_outbound_ports)?,
            skip_subnets: subnets.map_or_else(|| read_subnets(&config.skip_subnets), Ok)?,
            opaque_ports: annotations.ports(OPAQUE_PORTS, &config.opaque_ports)?,
            log: checked(LOG_LEVEL, check_log, &config.log)?,
            access_log: checked(ACCESS_LOG, check_access_log, &config.access_log)?,
            resources: resources(&annotations, config)?,
        })
    }

    /// Writes what is in force on the pod, in one form: there the control plane and the CNI plugin read it.
    pub(super) fn write(&self, pod: &mut Pod) {
        for (key, value) in [
            (SKIP_INBOUND_PORTS, self.skip_inbound_ports.to_string()),
            (SKIP_OUTBOUND_PORTS, self.skip_outbound_ports.to_string()),
            (SKIP_SUBNETS, shown(&self.skip_subnets)),
            (OPAQUE_PORTS, self.opaque_ports.to_string()),
        ] {
            if !value.is_empty() || pod.annotation(key).is_some() {
                pod.annotate(key, &value);
            }
        }
    }
}

/// `10.0.0.0/8,fd00::/8`.
pub(super) fn shown(subnets: &[IpNet]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Reads prefixes and addresses; those that touch become one.
pub(super) fn read_subnets(text: &str) -> Result<Vec<IpNet>, String> {
    if text.len() > MAX_SUBNETS_BYTES {
        return Err(format!("has {} bytes; write wider subnets", text.len()));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let subnet = |entry: &str| {
        let entry = entry.trim();
        let single = || entry.parse::<std::net::IpAddr>().ok().map(IpNet::from);
        let subnet = entry.parse::<IpNet>().ok().or_else(single);
        subnet
            .map(|subnet| subnet.trunc())
            .ok_or_else(|| format!("has {}, which is no subnet; write for example 10.0.0.0/8,fd00::/8", quoted(entry)))
    };
    let subnets = text.split(',').map(subnet).collect::<Result<Vec<_>, _>>()?;
    let subnets = IpNet::aggregate(&subnets);
    if subnets.len() > MAX_SUBNETS {
        return Err(format!("comes to {} separate subnets; write at most {MAX_SUBNETS}, by wider ones", subnets.len()));
    }
    Ok(subnets)
}

/// A level, or levels by module as `info,weft_proxy=debug`.
pub(super) fn check_log(text: &str) -> Result<(), String> {
    let level = |word: &str| LOG_LEVELS.contains(&word.to_ascii_lowercase().as_str());
    let module = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b));
    let directive = |text: &str| match text.split_once('=') {
        Some((name, word)) => module(name) && level(word),
        None => level(text),
    };
    if text.len() <= 1024 && text.split(',').all(directive) {
        return Ok(());
    }
    let remedy = nearest(text, &LOG_LEVELS).map_or_else(|| one_of(&LOG_LEVELS), |right| format!("`{right}`"));
    Err(format!("is {}, which is no level; write {remedy}", quoted(text)))
}

pub(super) fn check_access_log(text: &str) -> Result<(), String> {
    if ACCESS_LOGS.contains(&text) {
        return Ok(());
    }
    let remedy = nearest(text, &ACCESS_LOGS).map_or_else(|| one_of(&ACCESS_LOGS), |right| format!("`{right}`"));
    Err(format!("is {}; write {remedy}", quoted(text)))
}

/// `requests` and `limits`. A default gives way to what an annotation says; two annotations must agree.
fn resources(annotations: &Annotations<'_>, config: &InjectorConfig) -> Result<Value, String> {
    let mut requests = ResourceList::default();
    let mut limits = ResourceList::default();
    type Read = fn(&str) -> Result<f64, String>;
    let defaults = &config.resources;
    for (request_key, limit_key, read, defaults, places) in [
        (
            CPU_REQUEST,
            CPU_LIMIT,
            quantity::cpu as Read,
            (&defaults.requests.cpu, &defaults.limits.cpu),
            (&mut requests.cpu, &mut limits.cpu),
        ),
        (
            MEMORY_REQUEST,
            MEMORY_LIMIT,
            quantity::memory,
            (&defaults.requests.memory, &defaults.limits.memory),
            (&mut requests.memory, &mut limits.memory),
        ),
    ] {
        let said = |key: &str| {
            annotations.read(key, |text| {
                let amount = read(text).map_err(|fault| format!("is {}, which {fault}", quoted(text)))?;
                Ok((text.to_owned(), amount))
            })
        };
        let default = |text: &str| read(text).ok().map(|amount| (text.to_owned(), amount));
        let (said_request, said_limit) = (said(request_key)?, said(limit_key)?);
        let (request, limit) = match (said_request, said_limit) {
            (Some(request), Some(limit)) if request.1 > limit.1 => {
                return Err(format!(
                    "annotation {request_key} asks for {}, more than the {} of {limit_key}; write a higher limit",
                    request.0, limit.0
                ));
            }
            (Some(request), None) => {
                let limit = default(defaults.1).map(|limit| if limit.1 < request.1 { request.clone() } else { limit });
                (Some(request), limit)
            }
            (None, Some(limit)) => {
                let request =
                    default(defaults.0).map(|request| if request.1 > limit.1 { limit.clone() } else { request });
                (request, Some(limit))
            }
            (None, None) => (default(defaults.0), default(defaults.1)),
            said => said,
        };
        *places.0 = request.map(|(text, _)| text).unwrap_or_default();
        *places.1 = limit.map(|(text, _)| text).unwrap_or_default();
    }
    let written = |list: &ResourceList| {
        let amounts = [("cpu", &list.cpu), ("memory", &list.memory)];
        let amounts = amounts.into_iter().filter(|(_, amount)| !amount.is_empty());
        amounts.map(|(what, amount)| (what.to_owned(), json!(amount))).collect::<Map<_, _>>()
    };
    let lists = [("requests", written(&requests)), ("limits", written(&limits))];
    Ok(lists
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(key, list)| (key.to_owned(), Value::Object(list)))
        .collect())
}
