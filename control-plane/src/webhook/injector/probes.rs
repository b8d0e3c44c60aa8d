//! The kubelet's checks under strict mutual TLS: they go to the sidecar's admin port, and the sidecar asks the application.
//!
//! The kubelet has no identity in the mesh, so what it sends to the application's port would be refused. Each check keeps
//! its pace and thresholds; only whom it asks changes. What does not go to the pod (a `host`), asks no network (`exec`)
//! or goes to a port that passes by the sidecar stays as it is, and so does what the kubelet could not ask either.
use serde_json::{Map, Value, json};
use weft_api::ports::PortRanges;
use weft_api::probe::{Action, HttpGet, PATH_PREFIX, Probe, Probes};
use weft_api::resource::is_dns_label;

use super::ADMIN_PORT;
use super::containers::is_ours;
use super::pod::{self, CONTAINERS, INIT_CONTAINERS, Pod};

const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "liveness"), ("readinessProbe", "readiness"), ("startupProbe", "startup")];
const HANDLERS: [(&str, &str); 2] = [("postStart", "post-start"), ("preStop", "pre-stop")];
/// What a check can ask.
const ACTIONS: [&str; 4] = ["exec", "grpc", "httpGet", "tcpSocket"];
/// Seconds that a check may take where it says nothing (Kubernetes' default).
const DEFAULT_TIMEOUT: u32 = 1;

/// Turns the checks of the application's containers to the sidecar and returns what they were. `known` are those that
/// were turned before.
pub(super) fn rewrite(
    pod: &mut Pod,
    known: &Probes,
    uncaptured: &PortRanges,
    secret: &mut dyn FnMut() -> String,
) -> Result<Probes, String> {
    let mut kept = Probes::new();
    for list in [INIT_CONTAINERS, CONTAINERS] {
        for container in pod.items_mut_if_any(list).filter(|container| !is_ours(container)) {
            let name = pod::name(container).to_owned();
            if !is_dns_label(&name) {
                continue;
            }
            let application = container.clone();
            let mut turn = |check: &mut Map<String, Value>, mut key: String, handler: bool| -> Result<(), String> {
                if let Some(before) = turned_before(check) {
                    let Some(probe) = known.get(&before).cloned() else {
                        return Err(format!(
                            "a check of container `{name}` asks the sidecar for {PATH_PREFIX}{before}, \
                             which the sidecar does not know; write the check as it is without Weft"
                        ));
                    };
                    kept.insert(before, probe);
                } else if let Some(action) = action(check, &application, uncaptured, handler) {
                    if handler {
                        key = format!("{key}/{}", secret());
                    }
                    let said = check.get("timeoutSeconds").and_then(Value::as_u64).and_then(|s| u32::try_from(s).ok());
                    let timeout_seconds = (!handler).then(|| said.filter(|s| *s > 0).unwrap_or(DEFAULT_TIMEOUT));
                    ACTIONS.iter().for_each(|action| drop(check.remove(*action)));
                    let asked = json!({"path": format!("{PATH_PREFIX}{key}"), "port": ADMIN_PORT});
                    check.insert("httpGet".to_owned(), asked);
                    kept.insert(key, Probe { action, timeout_seconds });
                }
                Ok(())
            };
            for (field, kind) in PROBES {
                if let Some(check) = container.get_mut(field).and_then(Value::as_object_mut) {
                    turn(check, format!("{name}/{kind}"), false)?;
                }
            }
            for (field, kind) in HANDLERS {
                let handler = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(field));
                if let Some(check) = handler.and_then(Value::as_object_mut) {
                    turn(check, format!("{name}/{kind}"), true)?;
                }
            }
        }
    }
    Ok(kept)
}

/// The key of a check that asks the sidecar.
fn turned_before(check: &Map<String, Value>) -> Option<String> {
    let get = check.get("httpGet")?;
    let key = get.get("path")?.as_str()?.strip_prefix(PATH_PREFIX)?;
    (get.get("port")?.as_u64() == Some(ADMIN_PORT.into())).then(|| key.to_owned())
}

/// What the check asks of the application, if the sidecar has to ask it.
fn action(check: &Map<String, Value>, container: &Value, uncaptured: &PortRanges, handler: bool) -> Option<Action> {
    let mut asked =
        ACTIONS.iter().filter_map(|action| Some((*action, check.get(*action)?))).filter(|(_, v)| !v.is_null());
    let (kind, details) = asked.next()?;
    let elsewhere = details.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty());
    if asked.next().is_some() || elsewhere {
        return None;
    }
    let port = pod::resolved_port(container, details.get("port")?)?;
    if port == ADMIN_PORT || uncaptured.contains(port) {
        return None;
    }
    match kind {
        "httpGet" => http_get(details, port).map(Action::HttpGet),
        // The kubelet knows no other handlers than HTTP.
        "tcpSocket" if !handler => Some(Action::TcpSocket { port }),
        "grpc" if !handler => {
            let service = details.get("service").and_then(Value::as_str).unwrap_or_default().to_owned();
            Some(Action::Grpc { port, service })
        }
        _ => None,
    }
}

fn http_get(details: &Value, port: u16) -> Option<HttpGet> {
    let tls = match details.get("scheme").and_then(Value::as_str) {
        None | Some("" | "HTTP") => false,
        Some("HTTPS") => true,
        Some(_) => return None,
    };
    let headers = details.get("httpHeaders").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let header = |header: &Value| Some((pod::name(header).to_owned(), header.get("value")?.as_str()?.to_owned()));
    Some(HttpGet {
        port,
        path: request_path(details.get("path").and_then(Value::as_str).unwrap_or_default()),
        tls,
        headers: headers.iter().map(header).collect::<Option<_>>()?,
    })
}

/// The path as the kubelet would send it: from a slash on, without a fragment, nothing but visible ASCII.
fn request_path(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut sent = String::from(if path.starts_with('/') { "" } else { "/" });
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            sent.push(char::from(byte));
        } else {
            sent.push_str(&format!("%{byte:02X}"));
        }
    }
    sent
}
