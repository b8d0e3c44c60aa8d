//! A pod that has its sidecar already: from a template that `weft inject` made, or because other webhooks changed the pod
//! after it was injected and the API server asks again.
//!
//! What is there stays (its version, its resources), and is only completed: checks that came later are handed over, and
//! the sidecar stands first again. What bears our names without being ours is refused.
use serde_json::Value;

use super::containers::{self, BINARY, BUNDLE_VOLUME, INIT, PROBES_VARIABLE, PROXY, TOKEN_VOLUME, VALIDATE, is_ours};
use super::pod::{self, CONTAINERS, INIT_CONTAINERS, Pod, VOLUMES};
use super::settings::Settings;
use super::{INJECTED_ANNOTATION, PROXY_UID, probes};

/// Whether anything in the pod bears one of our names.
pub(super) fn has_ours(pod: &Pod) -> bool {
    let ours = |volume: &Value| [TOKEN_VOLUME, BUNDLE_VOLUME].contains(&pod::name(volume));
    pod.all_containers().any(|(_, container)| is_ours(container)) || pod.items(VOLUMES).iter().any(ours)
}

/// The same for a pod whose shape is not known.
pub(super) fn names_ours(pod: &Value) -> bool {
    let list = |path: &str| pod.pointer(path).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    list("/spec/initContainers").iter().chain(list("/spec/containers")).any(is_ours)
}

pub(super) fn complete(pod: &mut Pod, settings: &Settings, secret: &mut dyn FnMut() -> String) -> Result<(), String> {
    refuse_impostors(pod)?;
    let proxy = pod.all_containers().map(|(_, container)| container).find(|container| pod::name(container) == PROXY);
    let known = containers::declared_probes(proxy.expect("there is one, else it was refused"))
        .map_err(|fault| format!("{PROBES_VARIABLE} of container {PROXY} is not what Weft wrote: {fault}"))?;
    let probes = probes::rewrite(pod, &known, &settings.skip_inbound_ports, secret)?;
    if probes != known {
        let variable = containers::probes_variable(&probes)?;
        for list in [INIT_CONTAINERS, CONTAINERS] {
            for container in pod.items_mut_if_any(list).filter(|container| pod::name(container) == PROXY) {
                set_probes(container, variable.clone());
            }
        }
    }
    let native = pod.items(INIT_CONTAINERS).iter().any(|container| pod::name(container) == PROXY);
    if native {
        // A stable sort: ours keep their order, and so do the others.
        pod.items_mut(INIT_CONTAINERS).sort_by_key(|container| !is_ours(container));
    } else {
        pod.items_mut(INIT_CONTAINERS).sort_by_key(is_ours);
        pod.items_mut(CONTAINERS).sort_by_key(|container| !is_ours(container));
    }
    Ok(())
}

fn set_probes(proxy: &mut Value, variable: Option<Value>) {
    let Some(env) = proxy.get_mut("env").and_then(Value::as_array_mut) else { return };
    env.retain(|variable| pod::name(variable) != PROBES_VARIABLE);
    env.extend(variable);
}

/// A sidecar that is not ours would leave the application outside the mesh while it seems to be within.
fn refuse_impostors(pod: &Pod) -> Result<(), String> {
    let fault =
        |what: &str| Err(format!("{what}, but Weft did not write it; take it out or rename it, and Weft adds its own"));
    let find = |names: &[&str]| -> Vec<&Value> {
        let containers = pod.all_containers().map(|(_, container)| container);
        containers.filter(|container| names.contains(&pod::name(container))).collect()
    };
    let redirects = find(&[INIT, VALIDATE]);
    let proxies = find(&[PROXY]);
    if pod.annotation(INJECTED_ANNOTATION).is_none() {
        if let Some(container) = proxies.iter().chain(&redirects).next() {
            return fault(&format!("there is a container `{}`", pod::name(container)));
        }
        return fault(&format!("there is a volume `{TOKEN_VOLUME}` or `{BUNDLE_VOLUME}`"));
    }
    let command = |container: &Value| container.get("command").and_then(Value::as_array).cloned().unwrap_or_default();
    match proxies[..] {
        [proxy] if pod::runs_as(proxy, PROXY_UID) && command(proxy) == [BINARY] => {}
        [_] => return fault(&format!("there is a container `{PROXY}` that is no sidecar")),
        _ => return fault(&format!("there are {} containers `{PROXY}`", proxies.len())),
    }
    match redirects[..] {
        [redirect] if pod::name(redirect) == INIT && command(redirect) == [BINARY, "init"] => {}
        [redirect] if pod::name(redirect) == VALIDATE && command(redirect) == [BINARY, "validate"] => {}
        _ => return fault(&format!("there is a container `{PROXY}` without one `{INIT}` or `{VALIDATE}`")),
    }
    for volume in [TOKEN_VOLUME, BUNDLE_VOLUME] {
        if pod.items(VOLUMES).iter().filter(|item| pod::name(item) == volume).count() != 1 {
            return fault(&format!("there is a container `{PROXY}` without its volume `{volume}`"));
        }
    }
    Ok(())
}
