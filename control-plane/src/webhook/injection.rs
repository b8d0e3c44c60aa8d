//! Answers /inject: looks up the pod's namespace and the injector's settings, and turns what the injector says into an
//! answer. The settings are a file that is read again when it changes; a broken one changes nothing.
//!
//! Nothing is written anywhere, so a dry run is answered as the real thing.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::injector::{self, InjectorConfig, NamespaceMeta, Outcome, SkipReason};
use super::review::{Answer, Operation, Review};
use super::server::Inject;

/// How often the file is read: it is small, and a ConfigMap's volume is changed by links that notices may miss.
const INTERVAL: Duration = Duration::from_secs(2);
/// More than any file of settings has.
const MAX_BYTES: u64 = 1 << 20;

/// Looks up a namespace; `None`: there is none of that name. It must know of an annotation that was made a moment ago, or
/// pods would start without their sidecar: a question to the API server, not a cache.
pub type Namespaces = Arc<dyn Fn(String) -> BoxFuture<'static, Result<Option<NamespaceMeta>, String>> + Send + Sync>;

/// What decides on pods, by the settings that `config` has at each moment.
pub fn decide(config: watch::Receiver<Arc<InjectorConfig>>, namespaces: Namespaces) -> Inject {
    Arc::new(move |review| {
        let (config, namespaces) = (Arc::clone(&config.borrow()), Arc::clone(&namespaces));
        Box::pin(async move { answer(&review, &config, &namespaces).await })
    })
}

async fn answer(review: &Review, config: &InjectorConfig, namespaces: &Namespaces) -> Result<Answer, String> {
    if review.operation != Operation::Create || !review.sub_resource.is_empty() {
        return Ok(Answer::allow());
    }
    let Some(namespace) = namespaces(review.namespace.clone()).await? else {
        // The API server is about to find out too.
        return Ok(Answer::allow());
    };
    let (pod, name) = (&review.object, format!("{}/{}", review.namespace, review.object_name()));
    Ok(match injector::inject(pod, &namespace, config) {
        Outcome::Unchanged(_) => Answer::allow(),
        Outcome::Injected(injected) => {
            tracing::info!(pod = name, "injected the sidecar");
            changed(review, &injected, Vec::new())
        }
        Outcome::Skipped { reason, pod } => {
            tracing::info!(pod = name, %reason, "left a pod outside the mesh");
            let warnings = match reason {
                SkipReason::OptedOut | SkipReason::WeftItself => Vec::new(),
                reason => vec![format!("this pod stays outside the mesh: {reason}")],
            };
            changed(review, &pod, warnings)
        }
        Outcome::Refused(message) => {
            tracing::info!(pod = name, user = review.user, message, "refused a pod");
            Answer::Refuse { message }
        }
    })
}

/// The answer that makes the review's pod into `after`.
fn changed(review: &Review, after: &serde_json::Value, warnings: Vec<String>) -> Answer {
    let patch = injector::patch(&review.object, after);
    if patch.0.is_empty() {
        return Answer::Allow { warnings };
    }
    let patch = serde_json::to_value(patch).expect("a patch is JSON");
    Answer::Patch { patch, warnings }
}

/// Reads the injector's settings.
///
/// # Errors
/// The file and what is wrong with it.
pub fn read_config(path: &Path) -> Result<InjectorConfig, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    read.map_err(|fault| format!("{}: {fault}; give another --injector-config", path.display()))?;
    InjectorConfig::from_yaml(&text).map_err(|fault| format!("{}: {fault}", path.display()))
}

/// Keeps `config` at what the file at `path` holds, until `stop`.
pub async fn follow_config(path: PathBuf, config: watch::Sender<Arc<InjectorConfig>>, stop: CancellationToken) {
    let mut reported = None;
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let path = path.clone();
        match tokio::task::spawn_blocking(move || read_config(&path)).await {
            Ok(Ok(read)) => {
                if reported.take().is_some() {
                    tracing::info!("the injector's settings are usable again");
                }
                config.send_if_modified(|current| {
                    let differs = **current != read;
                    if differs {
                        tracing::info!("the injector's settings have changed; pods that are created get the new ones");
                        *current = Arc::new(read);
                    }
                    differs
                });
            }
            Ok(Err(fault)) => {
                if reported.as_ref() != Some(&fault) {
                    tracing::error!("{fault}; pods still get what was last read without fault");
                    reported = Some(fault);
                }
            }
            Err(fault) => tracing::error!(%fault, "cannot read the injector's settings"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base64::Engine as _;
    use serde_json::{Value, json};

    use super::*;

    fn review(operation: &str, pod: Value) -> Review {
        let old = if operation == "UPDATE" { pod.clone() } else { Value::Null };
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": operation,
            "namespace": "shop", "object": pod, "oldObject": old, "dryRun": true,
        }});
        Review::parse(body.to_string().as_bytes()).expect("whole")
    }

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "orders-"}});
        pod["spec"] = spec;
        pod["spec"]["containers"] = json!([{"name": "app", "image": "app:1"}]);
        pod
    }

    /// Namespace `shop` says `inject`.
    fn namespaces(inject: &'static str) -> Namespaces {
        Arc::new(move |name| {
            Box::pin(async move {
                let annotations = BTreeMap::from([("weft.dev/inject".to_owned(), inject.to_owned())]);
                match inject {
                    "absent" => Ok(None),
                    "away" => Err("the API server is away".to_owned()),
                    _ => Ok(Some(NamespaceMeta { name, annotations, ..NamespaceMeta::default() })),
                }
            })
        })
    }

    #[tokio::test]
    async fn a_pod_is_judged_by_the_namespace_of_the_request() {
        let rows = [
            ("enabled", "CREATE", json!({}), "patched"),
            ("enabled", "UPDATE", json!({}), "allowed"),
            ("disabled", "CREATE", json!({}), "allowed"),
            ("absent", "CREATE", json!({}), "allowed"),
            ("away", "CREATE", json!({}), "the API server is away"),
            ("enabled", "CREATE", json!({"hostNetwork": true}), "patched, warned"),
            ("enabled", "CREATE", json!({"securityContext": {"runAsUser": 2102}}), "refused"),
            ("yes", "CREATE", json!({}), "refused"),
        ];
        let (_config, config) = watch::channel(Arc::new(InjectorConfig::default()));
        for (inject, operation, spec, expected) in rows {
            let decide = decide(config.clone(), namespaces(inject));
            let decided = match decide(review(operation, pod(spec.clone()))).await {
                Ok(Answer::Allow { warnings }) if warnings.is_empty() => "allowed".to_owned(),
                Ok(Answer::Patch { warnings, .. }) if warnings.is_empty() => "patched".to_owned(),
                Ok(Answer::Patch { .. }) => "patched, warned".to_owned(),
                Ok(Answer::Refuse { .. }) => "refused".to_owned(),
                Ok(other) => format!("{other:?}"),
                Err(fault) => fault,
            };
            assert_eq!(decided, expected, "{inject} {operation} {spec}");
        }
    }

    #[tokio::test]
    async fn the_patch_makes_a_pod_that_needs_no_other() {
        let (_config, config) = watch::channel(Arc::new(InjectorConfig::default()));
        let decide = decide(config, namespaces("enabled"));
        let mut pod = pod(json!({}));
        let answer = decide(review("CREATE", pod.clone())).await.expect("decided").to_json("u-1");
        let patch = answer["response"]["patch"].as_str().expect("a patch");
        let patch = base64::prelude::BASE64_STANDARD.decode(patch).expect("base64");
        let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a JSON patch");
        json_patch::patch(&mut pod, &patch).expect("it fits the pod");
        assert!(pod["spec"]["initContainers"].to_string().contains("weft-proxy"), "{pod}");
        assert_eq!(decide(review("CREATE", pod)).await, Ok(Answer::allow()), "a second call changes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn settings_that_are_swapped_by_a_link_are_followed_and_broken_ones_are_not() {
        // As the kubelet does it: the file is a link through `..data`, which is replaced.
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let swap = |name: &str, text: &str| {
            std::fs::create_dir(at(name)).expect("made");
            std::fs::write(at(name).join("config.yaml"), text).expect("written");
            std::os::unix::fs::symlink(name, at("..data.new")).expect("linked");
            std::fs::rename(at("..data.new"), at("..data")).expect("swapped");
        };
        swap("1", "image: weft-proxy:1");
        std::os::unix::fs::symlink("..data/config.yaml", at("config.yaml")).expect("linked");
        let path = at("config.yaml");
        let (sender, mut config) = watch::channel(Arc::new(read_config(&path).expect("read")));
        assert_eq!(config.borrow().image, "weft-proxy:1");
        let stop = CancellationToken::new();
        tokio::spawn(follow_config(path.clone(), sender, stop.clone()));
        for (name, broken) in [("2", "imagee: x"), ("3", "image: ["), ("4", "image: ''")] {
            swap(name, broken);
            assert!(tokio::time::timeout(10 * INTERVAL, config.changed()).await.is_err(), "{broken}");
            assert_eq!(config.borrow().image, "weft-proxy:1", "{broken}");
        }
        swap("5", "image: weft-proxy:2");
        tokio::time::timeout(10 * INTERVAL, config.changed()).await.expect("in time").expect("it follows");
        assert_eq!(config.borrow().image, "weft-proxy:2");
        std::fs::remove_file(&path).expect("removed");
        assert!(read_config(&path).is_err_and(|fault| fault.contains("--injector-config")));
        stop.cancel();
    }
}
