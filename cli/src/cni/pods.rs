//! Which pods of this node are meshed: followed by a watch, asked for where the watch does not know.
//!
//! An answer of the watch needs no API server at that moment. A pod is told from a later one of the same name by its UID.
//! Of each pod only the answer is kept.
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};

use super::answer::{judge, uids};
use super::ready::Readiness;
use super::wire::{Answer, Question};

/// How long one request to the API server may take.
const REQUEST: Duration = Duration::from_secs(5);
/// How long a pod that is not found is looked for: the kubelet may know a static pod before the API server does.
const LOOKING: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);

type Key = (String, String);

#[derive(Clone, Debug)]
struct Known {
    uids: Vec<String>,
    answer: Answer,
}

/// The pods of this node.
pub(super) struct Pods {
    client: Client,
    known: Mutex<HashMap<Key, Known>>,
    cri_o: AtomicBool,
    readiness: Readiness,
}

impl Pods {
    pub(super) fn new(client: Client, readiness: Readiness) -> Self {
        Self { client, known: Mutex::default(), cri_o: AtomicBool::new(false), readiness }
    }

    /// What is to be done with the pod that `question` names.
    pub(super) async fn answer(&self, question: &Question) -> Answer {
        if let Some(known) = self.known(question) {
            return known;
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &question.namespace);
        let until = Instant::now() + LOOKING;
        loop {
            match timeout(REQUEST, api.get_opt(&question.name)).await {
                Ok(Ok(found)) => {
                    self.readiness.api(Ok(()));
                    if let Some(pod) = found.filter(|pod| is_meant(&uids(pod), question)) {
                        return judge(&pod);
                    }
                }
                Ok(Err(fault)) => return self.unreachable(&said(&fault)),
                Err(_) => return self.unreachable("no answer within 5 s"),
            }
            if Instant::now() >= until {
                let uid = question.uid.as_deref().map(|uid| format!(" with UID {uid}")).unwrap_or_default();
                let reason = format!("the API server has no pod {}/{}{uid}", question.namespace, question.name);
                return Answer::Unknown { reason };
            }
            sleep(PAUSE).await;
        }
    }

    /// Follows the pods of `node`; never ends.
    pub(super) async fn follow(&self, node: &str) {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let events = watcher(Api::<Pod>::all(self.client.clone()), config).default_backoff();
        pin_mut!(events);
        let mut listed = HashMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // The first one comes before anything was asked.
                    if !matches!(event, Event::Init) {
                        self.readiness.api(Ok(()));
                    }
                    self.apply(event, &mut listed);
                }
                Err(fault) => {
                    let why = match &fault {
                        watcher::Error::InitialListFailed(fault) | watcher::Error::WatchStartFailed(fault) => {
                            said(fault)
                        }
                        fault => fault.to_string(),
                    };
                    tracing::warn!(why, "the pods of this node cannot be watched; trying again");
                    self.readiness.api(Err(format!("the pods of this node cannot be watched: {why}")));
                }
            }
        }
    }

    /// Whether this node's container runtime is CRI-O. It ends a pod with the configuration that it was started with.
    pub(super) fn are_on_cri_o(&self) -> bool {
        self.cri_o.load(Ordering::Relaxed)
    }

    fn apply(&self, event: Event<Pod>, listed: &mut HashMap<Key, Known>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |pod: &Pod| {
            if runs_on_cri_o(pod) {
                self.cri_o.store(true, Ordering::Relaxed);
            }
            (key(pod), Known { uids: uids(pod), answer: judge(pod) })
        };
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => listed.extend([entry(&pod)]),
            Event::InitDone => *known = std::mem::take(listed),
            Event::Apply(pod) => known.extend([entry(&pod)]),
            Event::Delete(pod) => drop(known.remove(&key(&pod))),
        }
    }

    fn known(&self, question: &Question) -> Option<Answer> {
        // Without UID it may be one of the same name that is gone.
        question.uid.as_ref()?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&(question.namespace.clone(), question.name.clone()))?;
        is_meant(&found.uids, question).then(|| found.answer.clone())
    }

    fn unreachable(&self, why: &str) -> Answer {
        let reason = format!("the API server cannot be asked for the pod: {why}");
        self.readiness.api(Err(reason.clone()));
        Answer::Unknown { reason }
    }
}

/// What the API server said, or why it said nothing, in one line.
pub(super) fn said(fault: &kube::Error) -> String {
    match fault {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        fault => fault.to_string(),
    }
}

fn key(pod: &Pod) -> Key {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

fn runs_on_cri_o(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut ids = statuses.filter_map(|status| status.container_id.as_deref());
    ids.any(|id| id.starts_with("cri-o://"))
}

fn is_meant(uids: &[String], question: &Question) -> bool {
    question.uid.as_ref().is_none_or(|uid| uids.contains(uid))
}
