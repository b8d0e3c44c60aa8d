//! What the injector must know of a pod's namespace, asked from the API server for each pod: a cache could lag behind an
//! annotation that was made a moment ago, and the pod would start without its sidecar.
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;

use crate::webhook::injection::Namespaces;
use crate::webhook::injector::NamespaceMeta;

/// API servers wait 10 s for the webhook.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Looks namespaces up with `client`.
pub fn lookup(client: Client) -> Namespaces {
    let namespaces: Api<Namespace> = Api::all(client);
    Arc::new(move |name| {
        let namespaces = namespaces.clone();
        Box::pin(async move {
            let found = tokio::time::timeout(TIMEOUT, namespaces.get_metadata_opt(&name)).await;
            let found = found.map_err(|_| format!("cannot read namespace {name}: no answer within {TIMEOUT:?}"))?;
            let found = found.map_err(|fault| format!("cannot read namespace {name}: {fault}"))?;
            Ok(found.map(|namespace| NamespaceMeta {
                name,
                labels: namespace.metadata.labels.unwrap_or_default(),
                annotations: namespace.metadata.annotations.unwrap_or_default(),
            }))
        })
    })
}
