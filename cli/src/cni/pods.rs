//! Which pods of this node are meshed: followed by a watch, asked for where the watch does not know.
//!
//! An answer of the watch needs no API server at that moment. A pod is told from a later one of the same name by its UID.
//! Of each pod only the answer is kept.
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};

use super::answer::{judge, uids};
use super::ready::Readiness;
use super::stuck::{has_controller, is_held_up};
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
    /// UIDs of pods that this agent had redirected.
    redirected: Mutex<HashSet<String>>,
    cri_o: AtomicBool,
    readiness: Readiness,
    delete_stuck: bool,
}

impl Pods {
    pub(super) fn new(client: Client, readiness: Readiness, delete_stuck: bool) -> Self {
        let (known, redirected, cri_o) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Self { client, known, redirected, cri_o, readiness, delete_stuck }
    }

    /// What is to be done with the pod that `question` names.
    pub(super) async fn answer(&self, question: &Question) -> Answer {
        let answer = self.look_up(question).await;
        if let (Answer::Redirect(_), Some(uid)) = (&answer, &question.uid) {
            locked(&self.redirected).insert(uid.clone());
        }
        answer
    }

    async fn look_up(&self, question: &Question) -> Answer {
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
                    if let Event::InitApply(pod) | Event::Apply(pod) = &event
                        && is_held_up(pod)
                    {
                        self.release(pod).await;
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

    /// Deletes a pod whose network was made without the plugin, so that it is made anew. One that this agent had
    /// redirected is held up by something else, which another one would meet too.
    async fn release(&self, pod: &Pod) {
        let (namespace, name) = key(pod);
        if uids(pod).iter().any(|uid| locked(&self.redirected).contains(uid)) {
            tracing::warn!(namespace, name, "its redirect rules were written, but weft-validate fails: see its log");
            return;
        }
        if !(self.delete_stuck && has_controller(pod)) {
            tracing::warn!(namespace, name, "it started before the plugin was there and cannot go on: delete the pod");
            return;
        }
        if !self.readiness.is_installed() {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let this_one = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
        let deletion = DeleteParams { preconditions: Some(this_one), ..DeleteParams::default() };
        match timeout(REQUEST, api.delete(&name, &deletion)).await {
            Ok(Ok(_)) => tracing::info!(namespace, name, "deleted: it started before the plugin was there"),
            Ok(Err(fault)) => {
                tracing::warn!(namespace, name, why = said(&fault), "it started before the plugin was there, but stays")
            }
            Err(_) => tracing::warn!(namespace, name, "it started before the plugin was there, but stays: no answer"),
        }
    }

    fn apply(&self, event: Event<Pod>, listed: &mut HashMap<Key, Known>) {
        let mut known = locked(&self.known);
        let entry = |pod: &Pod| {
            if runs_on_cri_o(pod) {
                self.cri_o.store(true, Ordering::Relaxed);
            }
            (key(pod), Known { uids: uids(pod), answer: judge(pod) })
        };
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => listed.extend([entry(&pod)]),
            Event::InitDone => {
                let before = std::mem::replace(&mut *known, std::mem::take(listed));
                let there: HashSet<&String> = known.values().flat_map(|known| &known.uids).collect();
                let gone = before.values().flat_map(|known| &known.uids).filter(|uid| !there.contains(uid));
                let mut redirected = locked(&self.redirected);
                for uid in gone {
                    redirected.remove(uid);
                }
            }
            Event::Apply(pod) => known.extend([entry(&pod)]),
            Event::Delete(pod) => {
                if let Some(gone) = known.remove(&key(&pod)) {
                    locked(&self.redirected).retain(|uid| !gone.uids.contains(uid));
                }
            }
        }
    }

    fn known(&self, question: &Question) -> Option<Answer> {
        // Without UID it may be one of the same name that is gone.
        question.uid.as_ref()?;
        let known = locked(&self.known);
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

/// Locks what no panic can leave half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
