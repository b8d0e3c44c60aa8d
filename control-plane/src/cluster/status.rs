//! Writes the status of Weft's own objects and of routes to Services, while this replica leads.
//!
//! A round looks at everything at once and writes what differs: at most one round a second, and [`WRITES`] objects a
//! round, so that ten thousand objects are no storm; what somebody changed comes first. Each write holds only for the
//! object, generation and status that were judged: the API server refuses it if any of them is another by now. A status is
//! for people and programs outside; nothing in Weft depends on one, so failing costs nothing but its truth.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_api::resource::GATEWAY_GROUP;
use weft_api::routing::RouteKind;

use self::conditions::{ACCEPTED, Facts, RESOLVED_REFS, conditions};
use self::plan::Change;
use super::Cluster;
use super::events::{Events, Notice, Regarding};
use crate::metrics::{Metrics, StatusResult};
use crate::publish::Publisher;
use crate::publish::programmed::Targets;
use crate::publish::routes::RouteStates;
use crate::replicas::ask::{Replicas, Reports};
use crate::replicas::count::Sidecars;
use crate::source::kubernetes::objects::{Object, Objects};
use crate::source::{Kind, ResourceKey};

pub mod conditions;
mod plan;
mod routes;

/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// How often the other replicas are asked while nothing changes here.
const POLL: Duration = Duration::from_secs(2);
/// Objects that are written in one round, and at one time.
const WRITES: usize = 50;
const AT_ONCE: usize = 8;
/// A write that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// After the API server refused or did not answer.
const REST: Duration = Duration::from_secs(5);
/// A write that was refused as outdated is tried again after so long, though nothing was heard of a change.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// A policy must apply to nothing for so long before an event says so: it may be there before its workloads are.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// Who owns what is written, for the API server.
const FIELD_MANAGER: &str = "weft-control-plane";

/// All that the status is made of.
pub struct Writer {
    /// Where it is written.
    pub cluster: Cluster,
    /// What is published here.
    pub publisher: Arc<Publisher>,
    /// Weft's own objects.
    pub objects: Objects,
    /// How the sidecars of all replicas fare.
    pub replicas: Replicas,
    /// Where operators are told.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
}

/// Writes while `leader` says so, until `stop`.
pub async fn run(writer: Writer, mut leader: watch::Receiver<bool>, stop: CancellationToken) {
    loop {
        match stop.run_until_cancelled(leader.wait_for(|leads| *leads)).await {
            None | Some(Err(_)) => return,
            Some(Ok(_)) => {}
        }
        writer.metrics.leader.set(1);
        let mut lost = leader.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            _ = lost.wait_for(|leads| !*leads) => {}
            () = writer.lead() => {}
        }
        writer.metrics.leader.set(0);
    }
}

/// Revisions of all that a round looks at: objects, what is published, and what the replicas say.
type Revisions = (u64, u64, (Vec<u64>, Vec<String>));

/// What is remembered from round to round.
#[derive(Default)]
struct Memory {
    looked_at: Option<Revisions>,
    /// What differs and is not due yet: since when.
    waiting: BTreeMap<ResourceKey, (Change, Instant)>,
    /// What the API server knew to be another by then: as it was judged, and when. It is judged again when the watch brings
    /// the other.
    refused: BTreeMap<ResourceKey, (Object, Instant)>,
    /// Policies whose references lead nowhere: since when, and whether an event said so.
    idle: BTreeMap<ResourceKey, (Instant, bool)>,
}

/// A status to write.
struct Write {
    key: ResourceKey,
    judged: Object,
    change: Change,
    status: Value,
    /// The condition that says that it is not accepted.
    refused: Option<Condition>,
}

/// What a status is to say.
struct Wanted {
    /// How it differs from what it says; `None`: it says that already.
    change: Option<Change>,
    status: Value,
    /// The condition that says that it is not accepted.
    refused: Option<Condition>,
    /// The condition that says that something that it refers to is missing.
    lost: Option<Condition>,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Nothing is left to write.
    Done,
    /// More is to be written than one round may.
    More,
    /// The API server could not be written to.
    Failed,
}

impl Writer {
    async fn lead(&self) {
        let mut memory = Memory::default();
        let (mut objects, mut activity) = (self.objects.changes(), self.publisher.activity());
        loop {
            tokio::time::sleep(DEBOUNCE).await;
            objects.mark_unchanged();
            activity.mark_unchanged();
            match self.round(&mut memory).await {
                Round::More => continue,
                Round::Failed => tokio::time::sleep(REST).await,
                Round::Done => {}
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                Ok(()) = objects.changed() => {}
                Ok(()) = activity.changed() => {}
            }
        }
    }

    async fn round(&self, memory: &mut Memory) -> Round {
        let reports = self.replicas.reports().await;
        let now = (*self.objects.changes().borrow(), *self.publisher.activity().borrow(), reports.revisions());
        let pending = !memory.waiting.is_empty() || memory.idle.values().any(|(_, said)| !said);
        if memory.looked_at.as_ref() == Some(&now) && !pending {
            return Round::Done;
        }
        let (Some(targets), Some(routes)) = (self.publisher.targets(), self.publisher.routes()) else {
            return Round::Done;
        };
        let mut due = self.judge(&targets, &routes, &reports, memory);
        memory.looked_at = Some(now);
        due.sort_by(|a, b| a.change.cmp(&b.change).then_with(|| b.judged.generation.cmp(&a.judged.generation)));
        let more = due.len() > WRITES;
        due.truncate(WRITES);
        let written = |write: Write| async move {
            let result = self.write(&write).await;
            (write, result)
        };
        let results: Vec<(Write, Result<StatusResult, String>)> =
            futures_util::stream::iter(due).map(written).buffer_unordered(AT_ONCE).collect().await;
        for (write, _) in results.iter().filter(|(_, result)| *result == Ok(StatusResult::conflict)) {
            memory.refused.insert(write.key.clone(), (write.judged.clone(), Instant::now()));
        }
        if let Some(fault) = results.iter().find_map(|(_, result)| result.as_ref().err()) {
            tracing::warn!(fault, "cannot write the status of a resource; trying again in {REST:?}");
            return Round::Failed;
        }
        if more { Round::More } else { Round::Done }
    }

    /// What every status is to say, and which are to be written now.
    fn judge(&self, targets: &Targets, routes: &RouteStates, reports: &Reports, memory: &mut Memory) -> Vec<Write> {
        let sidecars = Sidecars::new(targets, &reports.reports);
        // In whole seconds, as the API has times.
        let (now, clock) = (Instant::now(), Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
        memory.refused.retain(|_, (_, at)| now.duration_since(*at) < REFUSED_FOR);
        let (mut due, mut waiting, mut idle) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (key, object) in self.objects.snapshot() {
            let wanted = match key.kind {
                Kind::HttpRoute | Kind::GrpcRoute => of_route(&key, &object, routes, clock),
                _ => of_own_kind(&key, &object, targets, &sidecars, &reports.silent, clock),
            };
            let Some(Wanted { change, status, refused, lost }) = wanted else { continue };
            if let Some(lost) = lost {
                let (since, said) = memory.idle.get(&key).copied().unwrap_or((now, false));
                let due = now.duration_since(since) >= IDLE_FOR;
                if due && !said {
                    self.events.tell(notice(&key, &object, &lost));
                }
                idle.insert(key.clone(), (since, said || due));
            }
            if memory.refused.get(&key).is_some_and(|(judged, _)| *judged == object) {
                continue;
            }
            let Some(change) = change else { continue };
            let known = memory.waiting.get(&key).filter(|(known, _)| *known == change);
            let since = known.map_or(now, |(_, since)| *since);
            waiting.insert(key.clone(), (change, since));
            if change.is_due(now.duration_since(since)) {
                due.push(Write { key, judged: object, change, status, refused });
            }
        }
        (memory.waiting, memory.idle) = (waiting, idle);
        for (workload, why) in sidecars.refusals() {
            self.events.tell(Notice::update_refused(workload, why));
        }
        due
    }

    async fn write(&self, write: &Write) -> Result<StatusResult, String> {
        let Write { key, judged, status, refused, .. } = write;
        let sent = tokio::time::timeout(PATIENCE, self.patch(key, judged, status)).await;
        let result = match sent {
            Ok(Ok(())) => Ok(StatusResult::written),
            Ok(Err(kube::Error::Api(refused))) if refused.code == 404 => Ok(StatusResult::gone),
            // The API server answers 422 where a test of the patch does not hold.
            Ok(Err(kube::Error::Api(refused))) if matches!(refused.code, 409 | 422) => {
                tracing::debug!(resource = %key, fault = refused.message, "the status is judged again");
                Ok(StatusResult::conflict)
            }
            Ok(Err(fault)) => Err(format!("{key}: {fault}")),
            Err(_) => Err(format!("{key}: no answer")),
        };
        self.metrics.status_written(result.clone().unwrap_or(StatusResult::error));
        if result == Ok(StatusResult::written) {
            if let Some(refused) = refused {
                self.events.tell(notice(key, judged, refused));
            }
            self.objects.written(key, judged, status.clone());
        }
        result
    }

    /// Writes `status` if the object is the one that was judged, with the generation and the status that were judged.
    async fn patch(&self, key: &ResourceKey, judged: &Object, status: &Value) -> Result<(), kube::Error> {
        let mut patch = vec![
            json!({"op": "test", "path": "/metadata/uid", "value": judged.uid}),
            json!({"op": "test", "path": "/metadata/generation", "value": judged.generation}),
        ];
        if !judged.status.is_null() {
            patch.push(json!({"op": "test", "path": "/status", "value": judged.status}));
        }
        patch.push(json!({"op": "add", "path": "/status", "value": status}));
        let patch = serde_json::from_value(Value::Array(patch)).map_err(kube::Error::SerdeError)?;
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.cluster.client.clone(), &key.name.namespace, &resource(key.kind));
        api.patch_status(&key.name.name, &parameters, &Patch::Json::<()>(patch)).await.map(drop)
    }
}

/// What the status of one of Weft's own objects is to say. `None`: not known yet.
fn of_own_kind(
    key: &ResourceKey,
    object: &Object,
    targets: &Targets,
    sidecars: &Sidecars<'_>,
    silent: &[String],
    now: Timestamp,
) -> Option<Wanted> {
    let target = targets.policies.get(key);
    // The object is known before what it says is published: until then nothing is known of this generation.
    if object.error.is_none() && object.content != target.map(|target| target.fingerprint) {
        return None;
    }
    let programmed = match key.kind {
        Kind::Workload => sidecars.of_workload(&key.name),
        _ => sidecars.of_policy(key),
    };
    let facts = Facts { target, programmed, silent };
    let before = plan::ours(&object.status);
    let wanted = conditions(key, object, &before, &facts, now);
    Some(Wanted {
        change: plan::change(&object.status, &before, &wanted, object.generation),
        status: plan::with(&object.status, &wanted, object.generation),
        refused: unmet(&wanted, ACCEPTED),
        lost: unmet(&wanted, RESOLVED_REFS),
    })
}

/// What the status of a route is to say. `None`: not known yet.
fn of_route(key: &ResourceKey, object: &Object, states: &RouteStates, now: Timestamp) -> Option<Wanted> {
    let kind = if key.kind == Kind::HttpRoute { RouteKind::Http } else { RouteKind::Grpc };
    let state = states.get(&(key.name.clone(), kind));
    // As above.
    if object.error.is_none() && object.route.as_ref() != state.map(|state| &state.route) {
        return None;
    }
    let before = routes::ours(&object.status);
    let wanted = routes::wanted(object, state, &before, now);
    let conditions: Vec<Condition> = wanted.iter().flat_map(|parent| parent.conditions.clone()).collect();
    Some(Wanted {
        change: routes::change(&before, &wanted),
        status: routes::with(&object.status, &wanted),
        refused: unmet(&conditions, ACCEPTED),
        lost: unmet(&conditions, RESOLVED_REFS),
    })
}

fn unmet(conditions: &[Condition], type_: &str) -> Option<Condition> {
    conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "False").cloned()
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = match kind {
        Kind::HttpRoute | Kind::GrpcRoute => (GATEWAY_GROUP, "v1"),
        _ => ("policy.weft.dev", "v1alpha1"),
    };
    let lower = kind.as_str().to_lowercase();
    let plural = match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{lower}s"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.as_str()), &plural)
}

/// What an operator is told of a condition that is not met.
fn notice(key: &ResourceKey, object: &Object, condition: &Condition) -> Notice {
    Notice {
        regarding: Regarding::Resource {
            api_version: resource(key.kind).api_version,
            kind: key.kind.as_str().to_owned(),
            name: key.name.clone(),
            uid: object.uid.clone(),
        },
        warning: true,
        reason: condition.reason.clone(),
        action: "Judge",
        note: condition.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_reached_by_its_plural() {
        for (kind, expected) in [
            (Kind::AuthorizationPolicy, "authorizationpolicies"),
            (Kind::RateLimitPolicy, "ratelimitpolicies"),
            (Kind::Workload, "workloads"),
            (Kind::HttpRoute, "httproutes"),
            (Kind::GrpcRoute, "grpcroutes"),
        ] {
            assert_eq!(resource(kind).plural, expected);
        }
    }
}
