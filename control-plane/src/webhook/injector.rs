//! The sidecar injector: a pod in, the meshed pod out.
//!
//! Pure: it reads no clock, no file and no API, so that the webhook and `weft inject` do the same. A pod that cannot be
//! meshed as its author asked is refused with what to write instead; a pod that must not be meshed keeps its shape and
//! says why in `weft.dev/inject-skipped`. Nothing is half done: what is injected is captured whole, and an application
//! that could pass by its sidecar (as the sidecar's own user) is refused.
//!
//! Read in this order: [`inject`] here, `decide` (whether at all), `settings` (what the annotations ask for), `probes`
//! (the kubelet's checks, handed to the sidecar), `containers` (what is added), `present` (a pod that has it already).
//! The pod is left in force as written: effective settings stand in its annotations, where the control plane and the CNI
//! plugin read them.
mod config;
mod containers;
mod decide;
mod pod;
mod present;
mod probes;
mod quantity;
mod settings;
mod words;

use std::collections::BTreeMap;

use serde_json::Value;

pub use config::{ConfigError, InjectorConfig, Redirect, ResourceList, Resources};
use decide::Decision;
pub use decide::{INJECT_ANNOTATION, SkipReason};
use pod::{CONTAINERS, INIT_CONTAINERS, Pod};
use settings::Settings;

/// Says on an injected pod which version of Weft did it.
pub const INJECTED_ANNOTATION: &str = "weft.dev/injected";
/// Says on a pod why it was left alone, though it or its namespace asked for a sidecar.
pub const SKIPPED_ANNOTATION: &str = "weft.dev/inject-skipped";
/// The sidecar's user, which no application may run as: its connections are not captured.
pub const PROXY_UID: u32 = 2102;
/// The sidecar's own ports: outbound, inbound, admin.
const PROXY_PORTS: [u16; 3] = [4240, 4243, ADMIN_PORT];
const ADMIN_PORT: u16 = 4291;

/// What of a namespace concerns its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceMeta {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations: defaults for the namespace's pods.
    pub annotations: BTreeMap<String, String>,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The pod as it shall be.
    Injected(Value),
    /// The pod is right as it is.
    Unchanged(Unchanged),
    /// The pod stays outside the mesh although it or its namespace asked, or it opted out of an enabled namespace.
    Skipped {
        /// Why.
        reason: SkipReason,
        /// The pod, which says so in [`SKIPPED_ANNOTATION`] and is the same otherwise.
        pod: Value,
    },
    /// The pod must not be created: what is wrong, and what to write instead.
    Refused(String),
}

/// Why a pod needs no change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unchanged {
    /// Neither it nor its namespace asks for a sidecar.
    NotAsked,
    /// It has its sidecar.
    AlreadyInjected,
}

impl std::fmt::Display for Unchanged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotAsked => "neither the pod nor its namespace says weft.dev/inject: enabled",
            Self::AlreadyInjected => "it has its sidecar already",
        })
    }
}

/// What becomes of `pod`, about to be created in `namespace`. Doing it again to the result changes nothing.
///
/// Draws a random secret where the pod has an HTTP lifecycle handler (see [`inject_with`]), and is pure otherwise.
pub fn inject(pod: &Value, namespace: &NamespaceMeta, config: &InjectorConfig) -> Outcome {
    inject_with(pod, namespace, config, &mut || format!("{:032x}", rand::random::<u128>()))
}

/// As [`inject`]; `secret` gives a word that nobody outside the pod can guess, for each HTTP lifecycle handler. Without
/// one, whoever reaches the sidecar's admin port could have the application's `preStop` called.
pub fn inject_with(
    pod: &Value,
    namespace: &NamespaceMeta,
    config: &InjectorConfig,
    secret: &mut dyn FnMut() -> String,
) -> Outcome {
    match decide::decide(pod, namespace) {
        Err(fault) => Outcome::Refused(fault),
        Ok(Decision::NotAsked) => Outcome::Unchanged(Unchanged::NotAsked),
        Ok(Decision::Skip(reason)) => Outcome::Skipped { reason, pod: decide::recorded(pod, reason) },
        Ok(Decision::Inject) => asked(pod, namespace, config, secret).unwrap_or_else(Outcome::Refused),
    }
}

fn asked(
    original: &Value,
    namespace: &NamespaceMeta,
    config: &InjectorConfig,
    secret: &mut dyn FnMut() -> String,
) -> Result<Outcome, String> {
    let mut pod = Pod::open(original)?;
    refuse_what_would_bypass(&pod)?;
    let settings = Settings::read(&pod, namespace, config)?;
    if present::has_ours(&pod) {
        present::complete(&mut pod, &settings, secret)?;
        pod.remove_annotation(SKIPPED_ANNOTATION);
        let pod = pod.close();
        let same = pod == *original;
        return Ok(if same { Outcome::Unchanged(Unchanged::AlreadyInjected) } else { Outcome::Injected(pod) });
    }
    let checks = probes::rewrite(&mut pod, &BTreeMap::new(), &settings.skip_inbound_ports, secret)?;
    let proxy = containers::proxy(config, &settings, &checks, pod.grace_seconds())?;
    pod.delay_termination(config.termination_delay_seconds()?);
    let redirect = containers::redirect(config, &settings);
    let init_containers = pod.items_mut(INIT_CONTAINERS);
    if config.native_sidecar {
        init_containers.splice(0..0, [redirect, proxy]);
    } else {
        // Until a plain sidecar runs nothing carries connections: the redirect must come after all that needs some.
        init_containers.push(redirect);
        let application = pod.first_container_name();
        pod.items_mut(CONTAINERS).insert(0, proxy);
        pod.annotate_if_missing("kubectl.kubernetes.io/default-container", &application);
    }
    pod.items_mut(pod::VOLUMES).extend(containers::volumes());
    settings.write(&mut pod);
    if config.scrape_annotations && !pod.has_annotation_below("prometheus.io/") {
        pod.annotate("prometheus.io/scrape", "true");
        pod.annotate("prometheus.io/port", &ADMIN_PORT.to_string());
        pod.annotate("prometheus.io/path", "/metrics");
    }
    pod.remove_annotation(SKIPPED_ANNOTATION);
    pod.annotate(INJECTED_ANNOTATION, env!("CARGO_PKG_VERSION"));
    Ok(Outcome::Injected(pod.close()))
}

/// The redirect exempts the sidecar's user, and the sidecar needs its ports.
fn refuse_what_would_bypass(pod: &Pod) -> Result<(), String> {
    let remedy =
        format!("user {PROXY_UID} is the sidecar's, and its connections are not captured: write another runAsUser");
    if pod::runs_as(pod.spec(), PROXY_UID) {
        return Err(format!("spec.securityContext.runAsUser is {PROXY_UID}; {remedy}"));
    }
    for (list, container) in pod.all_containers().filter(|(_, container)| !containers::is_ours(container)) {
        let name = pod::name(container);
        if pod::runs_as(container, PROXY_UID) {
            return Err(format!("container `{name}` in spec.{list} has runAsUser {PROXY_UID}; {remedy}"));
        }
        if let Some(port) = pod::declared_ports(container).find(|port| PROXY_PORTS.contains(port)) {
            return Err(format!(
                "container `{name}` declares containerPort {port}, which is the sidecar's; \
                 let the application listen on a port other than 4240, 4243 and 4291"
            ));
        }
    }
    Ok(())
}

/// The JSON patch (RFC 6902) that turns `before` into `after`.
pub fn patch(before: &Value, after: &Value) -> json_patch::Patch {
    json_patch::diff(before, after)
}
