//! Tells API servers which roots the webhooks' certificate chains to: `clientConfig.caBundle` of every webhook in the
//! release's two configurations. Every replica does it; they write the same.
//!
//! Nothing else of the configurations is touched. One that is missing is no fault: the release may do without it.
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::webhook::certificate::Serving;

/// Name of the MutatingWebhookConfiguration.
pub const INJECTOR: &str = "weft-injector";
/// Name of the ValidatingWebhookConfiguration.
pub const ADMISSION: &str = "weft-admission";
/// Between two writes: whoever writes against us shall not make a storm of it.
const PAUSE: Duration = Duration::from_secs(1);
/// After a failed call of the API server.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the configurations at what `certificates` has, until `stop`.
pub async fn run(client: Client, certificates: watch::Receiver<Option<Arc<Serving>>>, stop: CancellationToken) {
    let injector: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let admission: Api<ValidatingWebhookConfiguration> = Api::all(client);
    tokio::join!(
        keep(injector, INJECTOR, certificates.clone(), stop.clone()),
        keep(admission, ADMISSION, certificates, stop),
    );
}

/// A configuration of webhooks, of either kind.
trait Configuration: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// Name of each webhook with its roots.
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks.map(|webhook| (webhook.name.as_str(), webhook.client_config.ca_bundle.as_ref())).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks.map(|webhook| (webhook.name.as_str(), webhook.client_config.ca_bundle.as_ref())).collect()
    }
}

async fn keep<K: Configuration>(
    api: Api<K>,
    name: &'static str,
    mut certificates: watch::Receiver<Option<Arc<Serving>>>,
    stop: CancellationToken,
) {
    let kind = K::kind(&());
    let mut events = std::pin::pin!(watcher::watch_object(api.clone(), name).default_backoff());
    let mut seen: Option<K> = None;
    let mut reported = None;
    let mut report = |fault: Option<String>| {
        if fault != reported {
            if let Some(fault) = &fault {
                tracing::error!("{fault}; trying again");
            }
            reported = fault;
        }
    };
    let mut failed = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(Ok(configuration)) => {
                    if configuration.is_none() {
                        tracing::info!("there is no {kind} {name}, so API servers do not call its webhook");
                    }
                    seen = configuration;
                }
                Some(Err(fault)) => {
                    report(Some(format!("cannot watch {kind} {name}: {fault}")));
                    continue;
                }
                None => return,
            },
            Ok(()) = certificates.changed() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        let Some(roots) = certificates.borrow_and_update().as_ref().map(|serving| serving.bundle.clone()) else {
            continue;
        };
        let Some(patch) = seen.as_ref().and_then(|seen| patch(&seen.webhooks(), &roots)) else {
            report(None);
            failed = false;
            continue;
        };
        match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => {
                tracing::info!("{kind} {name} has the webhooks' present roots");
                report(None);
                failed = false;
                // What was written comes by the watch; until then this would write it again.
                if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                    return;
                }
            }
            Err(fault) => {
                report(Some(format!("cannot write the webhooks' roots into {kind} {name}: {fault}")));
                failed = true;
            }
        }
    }
}

/// What is to be changed so that every webhook has `roots`; webhooks are merged by name.
fn patch(webhooks: &[(&str, Option<&ByteString>)], roots: &str) -> Option<Value> {
    let roots = ByteString(roots.as_bytes().to_vec());
    let others = webhooks.iter().filter(|(_, has)| *has != Some(&roots));
    let changes: Vec<Value> =
        others.map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": roots}})).collect();
    (!changes.is_empty()).then(|| json!({"webhooks": changes}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_webhooks_with_other_roots_are_changed() {
        let (right, wrong) = (ByteString(b"right".to_vec()), ByteString(b"wrong".to_vec()));
        let webhooks = [("a", Some(&right)), ("b", Some(&wrong)), ("c", None)];
        let names = |patch: Value| {
            let changes = patch["webhooks"].as_array().expect("a list").clone();
            changes.iter().map(|change| change["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(patch(&webhooks, "right").map(names), Some(vec!["b".to_owned(), "c".to_owned()]));
        assert_eq!(patch(&webhooks[..1], "right"), None);
        assert_eq!(patch(&[], "right"), None);
        let change = patch(&webhooks[1..2], "right").expect("a change");
        assert_eq!(change["webhooks"][0]["clientConfig"], json!({"caBundle": "cmlnaHQ="}));
    }
}
