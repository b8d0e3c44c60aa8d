//! The mesh's resources from the API of Kubernetes: namespaces, Services, EndpointSlices, pods, service accounts, Weft's own
//! kinds, and those of the Gateway API where the cluster has them.
//!
//! Each object becomes what the mesh needs of it as soon as it arrives, and is dropped: nothing else is held, so memory grows
//! with the mesh and not with what else stands in its manifests. Sidecars are told nothing before every kind was listed
//! whole. After any disconnection each kind is listed again, and what vanished meanwhile is removed then, never before.
//!
//! An object that cannot be understood never stops the others: its last good content stays in force. An
//! AuthorizationPolicy that was never good refuses every call in its namespace, and a Namespace whose default cannot be read
//! has `deny`: what it was meant to restrict is unknown.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use weft_api::resource::NamespacedName;

use super::denied::DeniedFile;
use super::{Batch, Event, Kind};

mod gateway;
mod object;
pub mod objects;
mod pod;
mod read;
mod slice;

use object::Seen;
use objects::Objects;
use read::Reader;

pub(crate) use read::NAME_OF_A_POD;

/// Changes that come together are told together: after this much quiet,
const QUIET: Duration = Duration::from_millis(20);
/// or when the first of them has waited for so long.
const LONGEST_WAIT: Duration = Duration::from_millis(250);
/// Objects that the API server sends at a time when a kind is listed.
const PAGE: u32 = 500;
/// How often the file of denied identities is looked at.
const DENIED_INTERVAL: Duration = Duration::from_secs(1);
/// A cluster that cannot be reached is worth a line at most so often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Kinds that must have been listed before sidecars are told anything, beside those of the Gateway API that are served. Nodes
/// are not among them: who is preferred decides nothing that must be right from the start.
const KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::ServiceAccount,
    Kind::Workload,
    Kind::AuthorizationPolicy,
    Kind::RateLimitPolicy,
];

/// The source.
#[derive(Debug)]
pub struct KubernetesSource {
    batches: mpsc::Receiver<Batch>,
}

impl KubernetesSource {
    /// Watches with `client`; what is known of Weft's own objects is put into `objects`. `denied` is a file with
    /// identities that are refused everywhere.
    pub fn start(client: &Client, objects: Objects, denied: Option<PathBuf>) -> Self {
        let (sender, batches) = mpsc::channel(1);
        tokio::spawn(follow(watches(client), Reader::new(objects, denied.map(DeniedFile::new)), sender));
        Self { batches }
    }

    /// The next changes. `None`: the watches ended, which only a panic can cause.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }
}

/// What one of the watches says.
#[derive(Debug)]
enum Told {
    /// A kind is listed anew from here on.
    ListBegins(Kind),
    /// One object of a list.
    Listed(Seen),
    /// The list is whole: what was not in it is gone.
    ListEnds(Kind),
    /// One object is new or different.
    Changed(Seen),
    /// One object is gone.
    Deleted(Kind, NamespacedName),
    /// Which kinds of the Gateway API there are.
    Served(BTreeSet<Kind>),
    /// A watch failed, and is tried again.
    Failed(Kind, String),
}

type Watch = BoxStream<'static, Told>;

fn watches(client: &Client) -> SelectAll<Watch> {
    let all = [
        metadata_of::<Namespace>(client, Kind::Namespace, object::namespace),
        whole::<Service>(client, Kind::Service, object::service),
        whole::<EndpointSlice>(client, Kind::EndpointSlice, |slice| {
            slice::endpoint_slice(slice).map(slice::Read::seen)
        }),
        whole::<Pod>(client, Kind::Pod, |pod| pod::workload(pod).map(Seen::Pod)),
        metadata_of::<ServiceAccount>(client, Kind::ServiceAccount, |account| {
            object::name(&account.metadata).map(|name| Seen::Known(Event::ServiceAccount(name)))
        }),
        metadata_of::<Node>(client, Kind::Node, object::node),
        own(client, Kind::Workload, "workloads"),
        own(client, Kind::AuthorizationPolicy, "authorizationpolicies"),
        own(client, Kind::RateLimitPolicy, "ratelimitpolicies"),
        gateway::watch(client),
    ];
    all.into_iter().collect()
}

fn config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

fn whole<K>(client: &Client, kind: Kind, see: fn(&K) -> Option<Seen>) -> Watch
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    told(watcher(Api::<K>::all(client.clone()), config()).default_backoff(), kind, see)
}

/// Of kinds of which only names, labels and annotations matter, only those are asked for.
fn metadata_of<K>(client: &Client, kind: Kind, see: fn(&kube::core::PartialObjectMeta<K>) -> Option<Seen>) -> Watch
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let objects: Api<kube::core::PartialObjectMeta<K>> = Api::all(client.clone());
    told(watcher(objects, config()).default_backoff(), kind, see)
}

/// One of Weft's own kinds, as the raw object: its reader is the one that files have.
fn own(client: &Client, kind: Kind, plural: &str) -> Watch {
    let gvk = GroupVersionKind::gvk("policy.weft.dev", "v1alpha1", kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    told(
        watcher(objects, config()).default_backoff(),
        kind,
        match kind {
            Kind::Workload => |object| object::own(Kind::Workload, object),
            Kind::RateLimitPolicy => |object| object::own(Kind::RateLimitPolicy, object),
            _ => |object| object::own(Kind::AuthorizationPolicy, object),
        },
    )
}

fn told<K>(
    events: impl futures_util::Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    kind: Kind,
    see: fn(&K) -> Option<Seen>,
) -> Watch
where
    K: kube::Resource + 'static,
{
    // What is of no use is gone as far as the mesh is concerned, such as a pod that ended.
    let changed = move |object: &K| match see(object) {
        Some(seen) => Some(Told::Changed(seen)),
        None => object::name(object.meta()).map(|name| Told::Deleted(kind, name)),
    };
    let told = move |event: watcher::Result<watcher::Event<K>>| match event {
        Ok(watcher::Event::Init) => Some(Told::ListBegins(kind)),
        Ok(watcher::Event::InitApply(object)) => see(&object).map(Told::Listed),
        Ok(watcher::Event::InitDone) => Some(Told::ListEnds(kind)),
        Ok(watcher::Event::Apply(object)) => changed(&object),
        Ok(watcher::Event::Delete(object)) => object::name(object.meta()).map(|name| Told::Deleted(kind, name)),
        Err(fault) => Some(Told::Failed(kind, with_causes(&fault))),
    };
    events.filter_map(move |event| std::future::ready(told(event))).boxed()
}

/// Gathers what the watches say into batches. While nobody takes them, changes of one object overtake each other.
async fn follow(mut watches: SelectAll<Watch>, mut reader: Reader, sender: mpsc::Sender<Batch>) {
    let mut complaints: BTreeMap<Kind, Instant> = BTreeMap::new();
    let mut first: Option<Instant> = None;
    let mut last = Instant::now();
    let mut look = tokio::time::interval(DENIED_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = first.map(|first| (last + QUIET).min(first + LONGEST_WAIT));
        tokio::select! {
            told = watches.next() => match told {
                Some(Told::Failed(kind, fault)) => complain(kind, &fault, &mut complaints),
                Some(told) => {
                    reader.take(told);
                    last = Instant::now();
                    first = first.or(Some(last));
                }
                None => return,
            },
            permit = sender.reserve(), if due.is_some_and(|due| due <= Instant::now()) => {
                let Ok(permit) = permit else { return };
                first = None;
                if let Some(batch) = reader.batch() {
                    permit.send(batch);
                }
            }
            _ = look.tick() => {
                if reader.look_at_denied(SystemTime::now()) {
                    last = Instant::now();
                    first = first.or(Some(last));
                }
            }
            () = until(due), if due.is_some_and(|due| due > Instant::now()) => {}
            () = sender.closed() => return,
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn complain(kind: Kind, fault: &str, complaints: &mut BTreeMap<Kind, Instant>) {
    let now = Instant::now();
    if complaints.get(&kind).is_none_or(|at| now.duration_since(*at) > COMPLAINT_INTERVAL) {
        complaints.insert(kind, now);
        tracing::warn!(
            kind = kind.as_str(),
            fault,
            "cannot watch; what is known stays in force, and it is tried again"
        );
    }
}

fn with_causes(fault: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(fault), |fault| fault.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
