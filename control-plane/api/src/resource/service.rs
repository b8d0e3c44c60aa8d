//! Core `Service`. Real manifests carry many fields; those that the mesh needs are read, the rest is left alone.
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::error::quoted;
use super::metadata::{Scope, annotation};
use super::node::{At, Fields};
use super::protocol::{self, PORT_PROTOCOLS_ANNOTATION};
use super::{Metadata, NamespacedName, ResourceError};
use crate::workload::{ProtocolHint, Traffic};

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: NamespacedName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its own addresses; none if it is headless or has none yet.
    pub addresses: Vec<IpAddr>,
    /// Labels of the workloads of its namespace that stand behind it. Empty: none do.
    pub selector: BTreeMap<String, String>,
    /// Its TCP ports; others are not the mesh's concern and are left out.
    pub ports: Vec<ServicePort>,
    /// How calls to it are carried.
    pub traffic: Traffic,
    /// Whether `trafficDistribution` asks for endpoints of the caller's zone.
    pub same_zone: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; may be left out where there is only one.
    pub name: Option<String>,
    /// The port that callers use.
    pub port: u16,
    /// The workloads' port.
    pub target: TargetPort,
    /// What it speaks.
    pub protocol: ProtocolHint,
}

/// Which port of a workload serves a Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This one.
    Number(u16),
    /// The one with this name in the workload.
    Name(String),
}

impl Service {
    /// Whether a workload of `namespace` with `labels` stands behind this Service.
    pub fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.name.namespace == namespace
            && !self.selector.is_empty()
            && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    pub(crate) fn parse(document: &Fields<'_>) -> Result<Self, ResourceError> {
        let metadata = Metadata::parse(document, Scope::Core)?;
        let annotated = annotation(document, PORT_PROTOCOLS_ANNOTATION)
            .map(|at| protocol::annotation(&at))
            .transpose()?
            .unwrap_or_default();
        let spec_at = document.require("spec", "Write `spec: {selector: …, ports: …}`.")?;
        let spec = spec_at.open()?;
        let selector = spec.get_non_null("selector").map(|at| at.text_map()).transpose()?.unwrap_or_default();
        let mut ports = Vec::new();
        for at in spec.get_non_null("ports").map(|at| at.open_items()).transpose()?.unwrap_or_default() {
            let Some(port) = port(&at, &annotated)? else { continue };
            if ports.iter().any(|other: &ServicePort| other.port == port.port) {
                return Err(at.error(format_args!("repeats the TCP port {}", port.port), "List each port once."));
            }
            ports.push(port);
        }
        Ok(Self {
            name: metadata.name,
            labels: metadata.labels,
            annotations: metadata.annotations,
            addresses: addresses(&spec)?,
            selector,
            ports,
            traffic: super::traffic::annotations(document)?,
            same_zone: same_zone(&spec)?,
        })
    }
}

/// Values that this version does not know ask for nothing: Kubernetes may have new ones.
fn same_zone(spec: &Fields<'_>) -> Result<bool, ResourceError> {
    let asked = spec.get_non_null("trafficDistribution").map(|at| at.text()).transpose()?;
    Ok(matches!(asked, Some("PreferClose" | "PreferSameZone")))
}

fn addresses(spec: &Fields<'_>) -> Result<Vec<IpAddr>, ResourceError> {
    let mut places = Vec::from_iter(spec.get_non_null("clusterIP"));
    if let Some(at) = spec.get_non_null("clusterIPs") {
        places.extend(at.open_items()?);
    }
    let mut addresses = Vec::new();
    for at in places {
        let text = at.text()?;
        if text.is_empty() || text == "None" {
            continue;
        }
        let address = text.parse().ok().filter(|address: &IpAddr| !address.is_unspecified() && !address.is_multicast());
        let address = address.ok_or_else(|| {
            at.error(format_args!("is {}, which is not an address", quoted(text)), "Write an IP address, or `None`.")
        })?;
        let address = address.to_canonical();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn port(at: &At<'_>, annotated: &BTreeMap<u16, ProtocolHint>) -> Result<Option<ServicePort>, ResourceError> {
    let fields = at.open()?;
    if let Some(transport) = fields.get_non_null("protocol")
        && transport.text()? != "TCP"
    {
        return Ok(None);
    }
    let text = |key| fields.get_non_null(key).map(|at: At<'_>| at.text()).transpose();
    let name = text("name")?.filter(|name| !name.is_empty());
    let number = fields.require("port", "Write the port that callers use.")?.port()?;
    let target = match fields.get_non_null("targetPort") {
        None => TargetPort::Number(number),
        Some(at) if at.is_text() => {
            let text = at.text()?;
            match text.parse::<u16>() {
                Ok(port) if port > 0 => TargetPort::Number(port),
                _ => TargetPort::Name(super::name::label(&at)?.to_owned()),
            }
        }
        Some(at) => TargetPort::Number(at.port()?),
    };
    let protocol = match annotated.get(&number) {
        Some(hint) => *hint,
        None => protocol::declared(text("appProtocol")?, name),
    };
    Ok(Some(ServicePort { name: name.map(str::to_owned), port: number, target, protocol }))
}
