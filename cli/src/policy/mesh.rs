//! A directory of resources as the control plane reads it, and what it would tell the workloads in it.
use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use weft_api::case::Callee;
use weft_api::observation::Destination;
use weft_api::resource::{DefaultPolicy, NamespacedName, Resource, Service, TargetPort, Workload};
use weft_api::workload::{Inbound, Traffic};
use weft_certs::TrustDomain;
use weft_control_plane::compile;
use weft_control_plane::model::{Endpoints, Model};
use weft_control_plane::source::{Event, directory};

/// Name of a workload that stands for those that no document declares; no Workload can have it.
const STAND_IN: &str = "-";

/// Where resources come from, and what holds where they do not say.
#[derive(Args, Clone, Debug)]
pub(super) struct ResourcesArgs {
    /// Directory of YAML, as the control plane reads it, or as `kubectl get -o yaml` writes it.
    #[arg(long, env = "WEFT_RESOURCES", value_name = "DIR")]
    resources: PathBuf,
    /// What holds in namespaces that do not say it: deny, authenticated or allow.
    #[arg(long, env = "WEFT_DEFAULT_POLICY", default_value = "authenticated", value_parser = default_policy)]
    default_policy: DefaultPolicy,
    /// Trust domain of the mesh.
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = "cluster.local", value_parser = trust_domain)]
    trust_domain: TrustDomain,
    /// File with one SPIFFE ID a line that is refused everywhere.
    #[arg(long, env = "WEFT_DENIED_IDENTITIES", value_name = "FILE")]
    denied_identities: Option<PathBuf>,
}

fn default_policy(text: &str) -> Result<DefaultPolicy, String> {
    DefaultPolicy::from_name(text).ok_or_else(|| "write deny, authenticated or allow".to_owned())
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|fault| fault.to_string())
}

/// The resources of a directory.
pub(super) struct Mesh {
    model: Model,
    pub(super) trust_domain: TrustDomain,
}

/// A workload that is called, with all that its sidecar would enforce.
pub(super) struct Target {
    /// What it is called in reports.
    pub(super) name: String,
    pub(super) inbound: Inbound,
    /// The port that is called.
    pub(super) port: u16,
    /// The host that a caller names when it says nothing else.
    pub(super) host: String,
}

impl Mesh {
    /// Reads the directory.
    ///
    /// # Errors
    /// Every fault, each with file, line, field and remedy.
    pub(super) fn read(args: &ResourcesArgs) -> Result<Self, Vec<String>> {
        let batch = directory::read_once(args.resources.clone(), args.denied_identities.clone());
        if !batch.errors.is_empty() {
            let place = args.resources.display();
            return Err(batch.errors.iter().map(|fault| format!("{place}/{fault}")).collect());
        }
        if batch.events.is_empty() {
            let place = args.resources.display();
            return Err(vec![format!(
                "{place}: no .yaml, .yml or .json file with resources; give another --resources"
            )]);
        }
        let mut model = Model::with(args.trust_domain.clone(), args.default_policy, Endpoints::Selectors);
        for event in batch.events {
            model.apply(event);
        }
        Ok(Self { model, trust_domain: args.trust_domain.clone() })
    }

    /// The workloads that a call to `to` may reach: those behind the Service of that name, else the Workload. Where the
    /// documents declare no Workload behind a Service, one stands in that has the labels which the Service selects by.
    ///
    /// # Errors
    /// What to write instead.
    pub(super) fn targets(&self, to: &Callee, port: Option<u16>) -> Result<Vec<Target>, String> {
        match to {
            Callee::Described { namespace, labels, service_account } => {
                let port = port.ok_or("`call.port` is missing. Write the port of the workload.")?;
                let host = "localhost".to_owned();
                Ok(vec![self.stand_in(namespace, labels, service_account, port, host)])
            }
            Callee::Named(name) => match (self.model.service(name), self.model.workload(name)) {
                (Some(service), _) => self.behind(service, port),
                (None, Some(workload)) => Ok(vec![self.workload(workload, port)?]),
                (None, None) => Err(format!(
                    "`call.to` is `{name}`, and there is no such Service or Workload. Declare it in --resources, or write \
                     `to: {{namespace: {}, labels: {{…}}}}`.",
                    name.namespace
                )),
            },
        }
    }

    /// Whether the documents declare anything in `namespace`.
    pub(super) fn speaks_of(&self, namespace: &str) -> bool {
        self.model.namespace(namespace).is_some()
            || self.model.services(namespace).next().is_some()
            || self.model.workloads(namespace).next().is_some()
            || self.model.authorization_policies(namespace).next().is_some()
    }

    /// The workloads to which calls were seen. Services that the documents do not declare lead there all the same: a
    /// directory may hold policies alone.
    pub(super) fn observed(&self, destination: &Destination) -> Target {
        let mut model = self.model.clone();
        for name in &destination.services {
            let name = NamespacedName::new(&*destination.namespace, &**name);
            if model.service(&name).is_none() {
                model.apply(Event::Applied(Resource::Service(Service {
                    name,
                    labels: BTreeMap::new(),
                    annotations: BTreeMap::new(),
                    addresses: Vec::new(),
                    selector: destination.labels.clone(),
                    ports: Vec::new(),
                    traffic: Traffic::DEFAULT,
                    same_zone: false,
                })));
            }
        }
        let Destination { namespace, labels, service_account, .. } = destination;
        Self { model, trust_domain: self.trust_domain.clone() }.stand_in(
            namespace,
            labels,
            service_account,
            0,
            "localhost".to_owned(),
        )
    }

    fn behind(&self, service: &Service, port: Option<u16>) -> Result<Vec<Target>, String> {
        let namespace = &service.name.namespace;
        let selected = self.model.workloads(namespace).filter(|workload| service.selects(namespace, &workload.labels));
        let host = format!("{}.{namespace}.svc", service.name.name);
        let targets: Result<Vec<Target>, String> = selected
            .map(|workload| {
                let port = port_of(service, Some(workload), port)?;
                Ok(Target { host: host.clone(), ..self.target(&self.model, &workload.name, port) })
            })
            .collect();
        let targets = targets?;
        if !targets.is_empty() {
            return Ok(targets);
        }
        if service.selector.is_empty() {
            let name = &service.name;
            return Err(format!("`call.to` is Service `{name}`, which selects nothing. Write a Workload, or labels."));
        }
        let port = port_of(service, None, port)?;
        Ok(vec![self.stand_in(namespace, &service.selector, "default", port, host)])
    }

    fn workload(&self, workload: &Workload, port: Option<u16>) -> Result<Target, String> {
        let port = match (port, workload.ports.as_slice()) {
            (Some(port), _) => port,
            (None, [only]) => only.port,
            (None, _) => {
                return Err(format!("`call.port` is missing. Write the port of Workload `{}`.", workload.name));
            }
        };
        Ok(self.target(&self.model, &workload.name, port))
    }

    fn stand_in(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        service_account: &str,
        port: u16,
        host: String,
    ) -> Target {
        let name = NamespacedName::new(namespace, STAND_IN);
        let mut model = self.model.clone();
        model.apply(Event::Applied(Resource::Workload(Workload {
            name: name.clone(),
            labels: labels.clone(),
            annotations: BTreeMap::new(),
            addresses: Vec::new(),
            service_account: service_account.to_owned(),
            ports: Vec::new(),
            node: None,
            mesh: true,
        })));
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Target { name: format!("{namespace}/{{{}}}", labels.join(",")), host, ..self.target(&model, &name, port) }
    }

    fn target(&self, model: &Model, name: &NamespacedName, port: u16) -> Target {
        let shared = compile::denied(model);
        let inbound = compile::inbound(model, &shared, name).expect("the model was asked for its own workload");
        Target { name: name.to_string(), inbound, port, host: "localhost".to_owned() }
    }
}

/// The workload's port that a call to `service` reaches.
fn port_of(service: &Service, workload: Option<&Workload>, port: Option<u16>) -> Result<u16, String> {
    let number = |target: &TargetPort| match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            workload?.ports.iter().find(|port| port.name.as_ref() == Some(name)).map(|port| port.port)
        }
    };
    let targets: Vec<(u16, Option<u16>)> = service.ports.iter().map(|port| (port.port, number(&port.target))).collect();
    let shown = || {
        let one = |(port, target): &(u16, Option<u16>)| match target {
            Some(target) => format!("{port} leads to {target}"),
            None => format!("{port} leads to a port by name"),
        };
        targets.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    match port {
        Some(port)
            if targets.iter().any(|(own, target)| *own == port && target.is_some_and(|target| target != port))
                && !targets.iter().any(|(_, target)| *target == Some(port)) =>
        {
            let name = &service.name;
            Err(format!(
                "`call.port` is {port}, a port of Service `{name}`. Write the workload's, as policies do: {}.",
                shown()
            ))
        }
        Some(port) => Ok(port),
        None => match targets.as_slice() {
            [(_, Some(target))] => Ok(*target),
            _ => Err(format!(
                "`call.port` is missing. Write the workload's: of Service `{}`, {}.",
                service.name,
                if targets.is_empty() { "which declares none".to_owned() } else { shown() }
            )),
        },
    }
}
