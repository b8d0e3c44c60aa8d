//! `Workload`: a process that takes part in the mesh without being a pod.
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::error::quoted;
use super::metadata::Scope;
use super::name::{MAX_LABEL_BYTES, MAX_SUBDOMAIN_BYTES};
use super::node::{At, Fields, PORTS, Shape};
use super::schema::Schema;
use super::{Metadata, NamespacedName, ResourceError, name, protocol};
use crate::wire::MAX_ADDRESSES;
use crate::workload::ProtocolHint;

const SPEC: Shape = Shape { known: &["addresses", "serviceAccount", "ports", "mesh"], later: &[] };
const PORT: Shape = Shape { known: &["name", "port", "appProtocol"], later: &[] };
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_MESH: bool = true;
/// Bytes of the longest address: IPv6 that ends as IPv4.
const MAX_ADDRESS_BYTES: usize = 45;

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name.
    pub name: NamespacedName,
    /// Its labels, by which Services and policies select it.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Where it is reached: one address or more.
    pub addresses: Vec<IpAddr>,
    /// Its service account, in its namespace (`default` if none is written). Gives its identity.
    pub service_account: String,
    /// Its ports, as far as they are declared.
    pub ports: Vec<WorkloadPort>,
    /// The node that it runs on, where there are nodes.
    pub node: Option<String>,
    /// Whether a sidecar stands before it (the default), so that it is reached by mTLS or not at all.
    pub mesh: bool,
}

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Its name, to which a Service's `targetPort` may refer.
    pub name: Option<String>,
    /// Its number.
    pub port: u16,
    /// What it speaks.
    pub protocol: ProtocolHint,
}

impl WorkloadPort {
    /// The port `number` as its `name` declares it.
    pub fn declared(name: Option<&str>, number: u16) -> Self {
        Self { name: name.map(str::to_owned), port: number, protocol: protocol::declared(None, name) }
    }
}

impl Workload {
    pub(crate) fn parse(document: &Fields<'_>) -> Result<Self, ResourceError> {
        let metadata = Metadata::parse(document, Scope::Own)?;
        let spec = document.require("spec", "Write `spec: {addresses: […]}`.")?.closed(&SPEC)?;
        let mut addresses = Vec::new();
        let listed = spec.require("addresses", "List the workload's IP addresses.")?;
        let items = listed.items()?;
        if items.len() > MAX_ADDRESSES {
            let remedy = format!("Write at most {MAX_ADDRESSES}; one workload is one process.");
            return Err(listed.error(format_args!("has {} items", items.len()), remedy));
        }
        for at in items {
            let address = address(&at)?;
            if addresses.contains(&address) {
                return Err(at.error(format_args!("repeats {address}"), "List each address once."));
            }
            addresses.push(address);
        }
        let service_account = match spec.get("serviceAccount") {
            Some(at) => name::subdomain(&at)?,
            None => DEFAULT_SERVICE_ACCOUNT,
        };
        let mut ports: Vec<WorkloadPort> = Vec::new();
        for at in spec.get("ports").map(|at| at.items()).transpose()?.unwrap_or_default() {
            let port = port(&at)?;
            if ports.iter().any(|other| other.port == port.port || (port.name.is_some() && other.name == port.name)) {
                return Err(at.error("repeats the number or name of another port", "List each port once."));
            }
            ports.push(port);
        }
        Ok(Self {
            name: metadata.name,
            labels: metadata.labels,
            annotations: metadata.annotations,
            addresses,
            service_account: service_account.to_owned(),
            ports,
            node: None,
            mesh: spec.get("mesh").map(|at| at.boolean()).transpose()?.unwrap_or(DEFAULT_MESH),
        })
    }
}

fn address(at: &At<'_>) -> Result<IpAddr, ResourceError> {
    let text = at.text()?;
    let address: IpAddr = text.parse().map_err(|_| {
        at.error(
            format_args!("is {}, which is not an IP address", quoted(text)),
            "Write an address such as `10.1.2.3` or `fd00::3`, without port or prefix length.",
        )
    })?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(
            at.error(format_args!("is {address}, where no workload can be"), "Write the workload's own address.")
        );
    }
    Ok(address.to_canonical())
}

fn port(at: &At<'_>) -> Result<WorkloadPort, ResourceError> {
    let fields = at.closed(&PORT)?;
    let port_name = fields.get("name").map(|at| name::label(&at)).transpose()?;
    let app_protocol = fields.get("appProtocol").map(|at| at.text()).transpose()?;
    Ok(WorkloadPort {
        name: port_name.map(str::to_owned),
        port: fields.require("port", "Write the port's number.")?.port()?,
        protocol: protocol::declared(app_protocol, port_name),
    })
}

impl Workload {
    /// The schema of the spec.
    pub(crate) fn schema() -> Schema {
        let address = Schema::text("An IPv4 or IPv6 address.", 1..=MAX_ADDRESS_BYTES);
        let port = Schema::object(
            "A port.",
            &PORT,
            &["port"],
            [
                ("name", Schema::text("Name that a Service's `targetPort` may use.", 1..=MAX_LABEL_BYTES)),
                ("port", Schema::integer("Number of the port.", PORTS)),
                (
                    "appProtocol",
                    Schema::any_text(
                        "What the port speaks, such as `http`, `grpc` or `tcp`. Left out: what its name says.",
                    ),
                ),
            ],
        );
        let ports = "Ports, each once. Ports that are not declared are reached all the same.";
        Schema::object(
            "A process that takes part in the mesh without being a pod.",
            &SPEC,
            &["addresses"],
            [
                ("addresses", Schema::list("IP addresses of the workload, each once.", 1, address).at_most(MAX_ADDRESSES).distinct()),
                (
                    "serviceAccount",
                    Schema::text(
                        "Service account of the workload's namespace. Both together give its identity.",
                        1..=MAX_SUBDOMAIN_BYTES,
                    )
                    .default(DEFAULT_SERVICE_ACCOUNT),
                ),
                ("ports", Schema::list(ports, 1, port).keyed_by("port")),
                (
                    "mesh",
                    Schema::boolean(
                        "Whether a sidecar stands before it. `true`: it is reached by mTLS or not at all. `false`: it is \
                         reached in the clear.",
                    )
                    .default(DEFAULT_MESH),
                ),
            ],
        )
    }
}
