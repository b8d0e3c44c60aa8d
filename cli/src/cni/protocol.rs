//! The CNI specification's side of the plugin, versions 0.3.0 to 1.1.0: what a container runtime hands in, and the form
//! of what it gets back. No I/O.
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::wire::Question;

/// Versions of the specification in which this plugin is the same.
pub(super) const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Where the agent listens unless the configuration says otherwise.
pub(super) const SOCKET: &str = "/run/weft/cni.sock";

/// Codes of errors: below 100 the specification's, from 100 this plugin's own.
pub(super) mod code {
    pub(in crate::cni) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(in crate::cni) const INVALID_ENVIRONMENT: u32 = 4;
    pub(in crate::cni) const IO: u32 = 5;
    pub(in crate::cni) const UNREADABLE: u32 = 6;
    pub(in crate::cni) const INVALID_CONFIGURATION: u32 = 7;
    pub(in crate::cni) const TRY_AGAIN: u32 = 11;
    /// What the pod asks for cannot be done.
    pub(in crate::cni) const INVALID_POD: u32 = 100;
    /// The redirect rules could not be written, or are not there.
    pub(in crate::cni) const REDIRECT: u32 = 101;
}

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
}

/// A failure as the runtime is told it; the kubelet shows `msg` in the pod's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u32,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The error object.
    pub(super) fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code, "msg": self.message})
    }
}

/// The plugin's own entry of the network configuration, with what the runtime adds to it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Configuration {
    #[serde(default)]
    pub(super) cni_version: String,
    #[serde(default = "default_socket")]
    pub(super) socket: String,
    #[serde(default)]
    pub(super) exclude_namespaces: Vec<String>,
    /// Passed on as it is.
    #[serde(default)]
    pub(super) prev_result: Option<Box<RawValue>>,
}

fn default_socket() -> String {
    SOCKET.to_owned()
}

impl Configuration {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let configuration: Self = serde_json::from_str(text).map_err(|fault| {
            Failure::new(code::UNREADABLE, format!("the network configuration cannot be read: {fault}"))
        })?;
        let version = configuration.cni_version.as_str();
        if !VERSIONS.contains(&version) {
            return Err(Failure::new(
                code::INCOMPATIBLE_VERSION,
                format!("weft-cni does not know cniVersion \"{version}\"; write one of {}", VERSIONS.join(", ")),
            ));
        }
        Ok(configuration)
    }
}

/// What `CNI_COMMAND` says.
pub(super) fn command(value: Option<&str>) -> Result<Command, Failure> {
    Ok(match value {
        Some("ADD") => Command::Add,
        Some("CHECK") => Command::Check,
        Some("DEL") => Command::Del,
        Some("GC") => Command::Gc,
        Some("STATUS") => Command::Status,
        Some("VERSION") => Command::Version,
        Some(other) => {
            return Err(Failure::new(
                code::INVALID_ENVIRONMENT,
                format!("CNI_COMMAND is \"{other}\"; ADD, CHECK, DEL, GC, STATUS and VERSION are known"),
            ));
        }
        None => {
            return Err(Failure::new(
                code::INVALID_ENVIRONMENT,
                "CNI_COMMAND is not set: weft-cni is a CNI plugin, which a container runtime calls",
            ));
        }
    })
}

/// Which pod `CNI_ARGS` names; none if the container is not a pod of Kubernetes.
pub(super) fn pod(arguments: &str) -> Result<Option<Question>, Failure> {
    let value = |key: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value.to_owned()).next()
    };
    match (value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Ok(Some(Question { namespace, name, uid: value("K8S_POD_UID") })),
        (None, None) => Ok(None),
        _ => Err(Failure::new(
            code::INVALID_ENVIRONMENT,
            "CNI_ARGS names a pod by half: both K8S_POD_NAMESPACE and K8S_POD_NAME are needed",
        )),
    }
}

/// The answer to VERSION, for the version that was asked with.
pub(super) fn version_report(input: &str) -> Value {
    let asked = serde_json::from_str::<Value>(input).ok();
    let asked = asked.as_ref().and_then(|input| input["cniVersion"].as_str()).unwrap_or("1.1.0");
    json!({"cniVersion": asked, "supportedVersions": VERSIONS})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cni_args_name_the_pod_or_none() {
        let pod_of = |namespace: &str, name: &str, uid: Option<&str>| {
            Ok(Some(Question { namespace: namespace.into(), name: name.into(), uid: uid.map(Into::into) }))
        };
        for (arguments, expected) in [
            ("", Ok(None)),
            ("IgnoreUnknown=1", Ok(None)),
            (
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=orders-1;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u",
                pod_of("shop", "orders-1", Some("u")),
            ),
            ("K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;K8S_POD_UID=", pod_of("b", "a", None)),
            ("K8S_POD_NAME=a", Err(code::INVALID_ENVIRONMENT)),
            ("K8S_POD_NAME=a;K8S_POD_NAMESPACE=", Err(code::INVALID_ENVIRONMENT)),
        ] {
            assert_eq!(pod(arguments).map_err(|failure| failure.code), expected, "{arguments}");
        }
    }

    #[test]
    fn a_configuration_of_an_unknown_version_is_refused_with_those_that_are_known() {
        for version in VERSIONS {
            let text = format!("{{\"cniVersion\":\"{version}\",\"name\":\"n\",\"type\":\"weft-cni\",\"new\":1}}");
            let configuration = Configuration::parse(&text).expect("known");
            assert_eq!(configuration.socket, SOCKET);
        }
        for (text, expected) in [
            ("{\"cniVersion\":\"0.2.0\"}", code::INCOMPATIBLE_VERSION),
            ("{\"cniVersion\":\"2.0.0\"}", code::INCOMPATIBLE_VERSION),
            ("{}", code::INCOMPATIBLE_VERSION),
            ("", code::UNREADABLE),
            ("7", code::UNREADABLE),
            ("{\"cniVersion\":\"1.0.0\",\"socket\":7}", code::UNREADABLE),
        ] {
            let failure = Configuration::parse(text).expect_err(text);
            assert_eq!(failure.code, expected, "{text}: {}", failure.message);
        }
    }
}
