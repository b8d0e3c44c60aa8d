//! The injector's settings: one YAML file (on a cluster the ConfigMap `weft-injector`), every fault reported at once.
use serde::{Deserialize, Serialize};
use weft_api::duration;
use weft_api::ports::PortRanges;
use weft_certs::TrustDomain;

use super::quantity;
use super::settings::{check_access_log, check_log, read_subnets};

/// How a pod's connections come to its sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Redirect {
    /// An init container with NET_ADMIN writes the rules.
    #[default]
    Init,
    /// The CNI plugin of the node wrote them; an init container without rights proves it.
    Cni,
}

/// Amounts for one container; an empty text is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResourceList {
    /// Processors, such as `10m`.
    pub cpu: String,
    /// Memory, such as `24Mi`.
    pub memory: String,
}

/// What a sidecar is given, and may take at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Set aside on the node. Default 20m and 32Mi.
    pub requests: ResourceList,
    /// Never exceeded. Default 256Mi of memory; no limit of processors, which would make requests wait.
    pub limits: ResourceList,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            requests: ResourceList { cpu: "20m".to_owned(), memory: "32Mi".to_owned() },
            limits: ResourceList { cpu: String::new(), memory: "256Mi".to_owned() },
        }
    }
}

/// What every injected pod gets, unless annotations say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InjectorConfig {
    /// Image of the sidecar. Default `weft-proxy:<version>`.
    pub image: String,
    /// `IfNotPresent` (the default), `Always` or `Never`.
    pub image_pull_policy: String,
    /// Trust domain of the mesh. Default `cluster.local`.
    pub trust_domain: String,
    /// Where sidecars reach the control plane, `host:port`. Default `weft-control-plane.weft-system.svc:4280`.
    pub control_plane: String,
    /// How connections come to the sidecar. Default `init`.
    pub redirect: Redirect,
    /// Whether the sidecar is an init container that keeps running (Kubernetes 1.29 and later). Default true. If not, it
    /// is one of the containers: a Job does not end by itself then, and init containers have no mesh.
    pub native_sidecar: bool,
    /// What a sidecar is given.
    pub resources: Resources,
    /// Level of the sidecar's own log. Default `info`.
    pub log: String,
    /// `off`, `errors` (the default) or `all`.
    pub access_log: String,
    /// OTLP over gRPC for traces, such as `http://collector.observability:4317`. Default: no traces.
    pub otlp_endpoint: Option<String>,
    /// Share of traces that are sampled when the caller did not decide. Default 0.01.
    pub trace_ratio: f64,
    /// How long a stopping sidecar waits for open connections, at most as long as its pod has. Default `30s`.
    pub drain_timeout: String,
    /// How long a container that says nothing about it serves on after its pod was told to end, so that no caller meets one
    /// that is gone: a `preStop` sleep, which Kubernetes knows from 1.30 on. Whole seconds; default `0s`, none.
    pub termination_delay: String,
    /// Threads of the sidecar's data path. Default: the processors it may use, at most 2.
    pub workers: Option<u32>,
    /// Ports of pods that are reached without the sidecar where neither pod nor namespace says. Default none.
    pub skip_inbound_ports: String,
    /// Ports elsewhere that applications reach without the sidecar. Default none.
    pub skip_outbound_ports: String,
    /// Addresses that applications reach without the sidecar. Default none.
    pub skip_subnets: String,
    /// Ports of pods that carry byte streams and are not looked into. Default none.
    pub opaque_ports: String,
    /// Whether pods that say nothing about scraping get `prometheus.io/` annotations for the sidecar. Default true.
    pub scrape_annotations: bool,
}

impl Default for InjectorConfig {
    fn default() -> Self {
        Self {
            image: concat!("weft-proxy:", env!("CARGO_PKG_VERSION")).to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            control_plane: "weft-control-plane.weft-system.svc:4280".to_owned(),
            redirect: Redirect::Init,
            native_sidecar: true,
            resources: Resources::default(),
            log: "info".to_owned(),
            access_log: "errors".to_owned(),
            otlp_endpoint: None,
            trace_ratio: 0.01,
            drain_timeout: "30s".to_owned(),
            termination_delay: "0s".to_owned(),
            workers: None,
            skip_inbound_ports: String::new(),
            skip_outbound_ports: String::new(),
            skip_subnets: String::new(),
            opaque_ports: String::new(),
            scrape_annotations: true,
        }
    }
}

/// Every fault of the injector's settings, one a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the injector's settings cannot be used:\n  - {}", .0.join("\n  - "))]
pub struct ConfigError(pub Vec<String>);

impl InjectorConfig {
    /// Reads a YAML text. Fields that are left out have their defaults; unknown ones are refused.
    ///
    /// # Errors
    /// All faults together, each with what to write instead.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let config: Self = serde_saphyr::from_str(text).map_err(|fault| ConfigError(vec![fault.to_string()]))?;
        config.check()?;
        Ok(config)
    }

    /// `terminationDelay` in seconds.
    pub(super) fn termination_delay_seconds(&self) -> Result<u64, String> {
        let delay = duration::parse(&self.termination_delay)?;
        let whole = delay.subsec_nanos() == 0 && delay.as_secs() <= 3600;
        if whole {
            Ok(delay.as_secs())
        } else {
            Err(format!("'{}' is not whole seconds up to 1h; write for example 3s", self.termination_delay))
        }
    }

    /// Refuses what would make pods that cannot start.
    ///
    /// # Errors
    /// All faults together, each with what to write instead.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        let mut check = |field: &str, result: Result<(), String>| {
            if let Err(fault) = result {
                faults.push(format!("{field}: {fault}"));
            }
        };
        let fault = |good: bool, text: String| if good { Ok(()) } else { Err(text) };
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        check(
            "image",
            fault(plain(&self.image), format!("'{}' is no image; write for example weft-proxy:1.0", self.image)),
        );
        let policies = ["Always", "IfNotPresent", "Never"];
        let policy = policies.contains(&self.image_pull_policy.as_str());
        check(
            "imagePullPolicy",
            fault(policy, format!("'{}'; write IfNotPresent, Always or Never", self.image_pull_policy)),
        );
        check("trustDomain", TrustDomain::parse(&self.trust_domain).map(drop).map_err(|fault| fault.to_string()));
        let (host, port) = self.control_plane.rsplit_once(':').unwrap_or_default();
        let reachable = plain(host) && port.parse::<u16>().is_ok_and(|port| port > 0);
        check(
            "controlPlane",
            fault(
                reachable,
                format!(
                    "'{}' is not host:port; write for example weft-control-plane.weft-system.svc:4280",
                    self.control_plane
                ),
            ),
        );
        for (field, list) in [("requests", &self.resources.requests), ("limits", &self.resources.limits)] {
            let read = |text: &str, read: fn(&str) -> Result<f64, String>| {
                if text.is_empty() { Ok(()) } else { read(text).map(drop).map_err(|fault| format!("'{text}' {fault}")) }
            };
            check(&format!("resources.{field}.cpu"), read(&list.cpu, quantity::cpu));
            check(&format!("resources.{field}.memory"), read(&list.memory, quantity::memory));
        }
        check("log", check_log(&self.log));
        check("accessLog", check_access_log(&self.access_log));
        if let Some(endpoint) = &self.otlp_endpoint {
            let good = endpoint.strip_prefix("http://").is_some_and(plain);
            check("otlpEndpoint", fault(good, format!("'{endpoint}'; write for example http://collector:4317")));
        }
        check(
            "traceRatio",
            fault((0.0..=1.0).contains(&self.trace_ratio), format!("{} is not between 0 and 1", self.trace_ratio)),
        );
        check("drainTimeout", duration::parse(&self.drain_timeout).map(drop));
        check("terminationDelay", self.termination_delay_seconds().map(drop));
        if let Some(workers) = self.workers {
            check("workers", fault((1..=256).contains(&workers), format!("{workers} is not between 1 and 256")));
        }
        check("skipInboundPorts", self.skip_inbound_ports.parse::<PortRanges>().map(drop));
        check("skipOutboundPorts", self.skip_outbound_ports.parse::<PortRanges>().map(drop));
        check("opaquePorts", self.opaque_ports.parse::<PortRanges>().map(drop));
        check("skipSubnets", read_subnets(&self.skip_subnets).map(drop));
        if faults.is_empty() { Ok(()) } else { Err(ConfigError(faults)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        for text in ["", "# nothing\n", "{}", "image: weft-proxy:2\nresources: {limits: {cpu: \"1\"}}\n"] {
            let config = InjectorConfig::from_yaml(text).expect(text);
            assert_eq!(config.control_plane, "weft-control-plane.weft-system.svc:4280");
            assert_eq!(config.resources.requests.memory, "32Mi");
        }
        let whole = serde_saphyr::to_string(&InjectorConfig::default()).expect("written");
        assert_eq!(InjectorConfig::from_yaml(&whole), Ok(InjectorConfig::default()), "{whole}");
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let text = "
imagePullPolicy: Sometimes
trustDomain: Not Valid
controlPlane: nowhere
resources: {limits: {memory: 128m}}
accessLog: some
traceRatio: 2
drainTimeout: 30
terminationDelay: 1500ms
workers: 0
skipInboundPorts: 80-20
";
        let fault = InjectorConfig::from_yaml(text).expect_err("ten faults").to_string();
        for field in [
            "imagePullPolicy",
            "trustDomain",
            "controlPlane",
            "resources.limits.memory",
            "accessLog",
            "traceRatio",
            "drainTimeout",
            "terminationDelay",
            "workers",
            "skipInboundPorts",
        ] {
            assert!(fault.contains(field), "{field} is missing in: {fault}");
        }
        let unknown = InjectorConfig::from_yaml("imagePullSecret: x").expect_err("unknown").to_string();
        assert!(unknown.contains("imagePullSecret"), "{unknown}");
    }
}
