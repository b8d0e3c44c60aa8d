//! Checks that the kubelet asks of the sidecar in place of the application: who declares them (the injector) and who
//! performs them (the sidecar) agree on this form.
//!
//! A check is asked for as `GET /probe/<key>` on the sidecar's admin port. What is not declared cannot be asked for.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What stands before a check's key in the path.
pub const PATH_PREFIX: &str = "/probe/";
/// Bytes that all declared checks of a pod may have, written as JSON.
pub const MAX_BYTES: usize = 64 * 1024;

/// The checks of a pod, by key: `<container>/liveness`, `…/readiness`, `…/startup`, or for lifecycle handlers
/// `…/post-start/<secret>` and `…/pre-stop/<secret>`.
pub type Probes = BTreeMap<String, Probe>;

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// What is asked of the application.
    pub action: Action,
    /// Seconds until it counts as failed; none: as long as who asks waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// What is asked of the application, on the pod's own address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Action {
    /// A GET that must be answered by a status from 200 to 399.
    HttpGet(HttpGet),
    /// A connection that must be accepted.
    TcpSocket {
        /// Port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`, which must answer SERVING.
    Grpc {
        /// Port.
        port: u16,
        /// Service asked about; empty: the server as a whole.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        service: String,
    },
}

/// The request of an HTTP check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Whether over TLS; the server's certificate is not judged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// Header fields, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// Reads the checks of a pod.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<Probes, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("{} bytes; at most {MAX_BYTES} can be read", text.len()));
    }
    serde_json::from_str(text).map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_read_as_they_were_written() {
        let text = r#"{"app/liveness":{"action":{"httpGet":{"port":8080,"path":"/live?x=1","tls":true,"headers":[["Host","shop"]]}},"timeoutSeconds":2},"app/readiness":{"action":{"grpc":{"port":9000,"service":"shop.Orders"}}},"db/startup":{"action":{"tcpSocket":{"port":5432}},"timeoutSeconds":1}}"#;
        let probes = parse(text).expect("checks");
        assert_eq!(serde_json::to_string(&probes).expect("written"), text);
        for wrong in ["", "[]", r#"{"a":{"action":{"exec":{}}}}"#, r#"{"a":{"action":{"tcpSocket":{"port":70000}}}}"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse(&" ".repeat(MAX_BYTES + 1)).expect_err("too long").contains("at most"));
    }
}
