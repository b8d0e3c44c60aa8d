//! The kinds of the Gateway API, which a cluster may have or not, and may get or lose while we run.
//!
//! The API server is asked which of them it serves, first of all and then from time to time; what it serves is watched. Nobody
//! waits for a kind that is not served, and sidecars are told nothing before it is known whether it is.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use weft_api::resource::GATEWAY_GROUP;

use super::{Kind, Told, Watch, config, object, told, with_causes};

/// How often it is looked for what is missing.
const SEARCH_EVERY: Duration = Duration::from_secs(3);
/// How often it is looked whether all is still there.
const CHECK_EVERY: Duration = Duration::from_secs(15);
/// What waits to be taken.
const WAITING: usize = 64;

/// The kinds, each with its plural and the versions that are read, the best first. An `HTTPRoute` that is not served as `v1`
/// is of a release before 1.0.
const SERVED: &[(Kind, &str, &[&str])] = &[
    (Kind::HttpRoute, "httproutes", &["v1"]),
    (Kind::GrpcRoute, "grpcroutes", &["v1"]),
    (Kind::ReferenceGrant, "referencegrants", &["v1", "v1beta1"]),
];

/// What the watches of all kinds that are served say.
pub(super) fn watch(client: &Client) -> Watch {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(follow(client.clone(), sender));
    ReceiverStream::new(receiver).boxed()
}

async fn follow(client: Client, sender: mpsc::Sender<Told>) {
    let mut watches: BTreeMap<Kind, (&'static str, JoinHandle<()>)> = BTreeMap::new();
    let mut known = None;
    loop {
        let pause = match served(&client).await {
            Ok(served) => {
                let gone: Vec<Kind> =
                    watches.keys().filter(|kind| !is_watched(&watches, &served, **kind)).copied().collect();
                for kind in gone {
                    if let Some((_, watch)) = watches.remove(&kind) {
                        watch.abort();
                        // Nothing of it may be told after it is said to be gone.
                        let _ = watch.await;
                    }
                }
                let kinds: BTreeSet<Kind> = served.keys().copied().collect();
                if known.as_ref() != Some(&kinds) {
                    if sender.send(Told::Served(kinds.clone())).await.is_err() {
                        return;
                    }
                    known = Some(kinds);
                }
                for (kind, version) in &served {
                    if !watches.contains_key(kind) {
                        let watch = tokio::spawn(pass_on(of(&client, *kind, version), sender.clone()));
                        watches.insert(*kind, (version, watch));
                    }
                }
                if served.len() == SERVED.len() { CHECK_EVERY } else { SEARCH_EVERY }
            }
            Err(fault) => {
                if sender.send(Told::Failed(Kind::HttpRoute, with_causes(&fault))).await.is_err() {
                    return;
                }
                SEARCH_EVERY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = sender.closed() => break,
        }
    }
    watches.into_values().for_each(|(_, watch)| watch.abort());
}

fn is_watched(
    watches: &BTreeMap<Kind, (&'static str, JoinHandle<()>)>,
    served: &BTreeMap<Kind, &'static str>,
    kind: Kind,
) -> bool {
    watches.get(&kind).is_some_and(|(version, watch)| served.get(&kind) == Some(version) && !watch.is_finished())
}

/// Which kinds the API server has, each in the best version. It is asked for its groups first: to ask for what it lacks
/// would leave a warning in the log each time, for as long as a cluster has no Gateway API.
async fn served(client: &Client) -> Result<BTreeMap<Kind, &'static str>, kube::Error> {
    let groups = client.list_api_groups().await?.groups;
    let group = groups.into_iter().find(|group| group.name == GATEWAY_GROUP);
    let versions = group.map(|group| group.versions).unwrap_or_default();
    let mut served = BTreeMap::new();
    for version in ["v1", "v1beta1"] {
        if !versions.iter().any(|there| there.version == version) {
            continue;
        }
        let resources = match client.list_api_group_resources(&format!("{GATEWAY_GROUP}/{version}")).await {
            Ok(list) => list.resources,
            // Gone since.
            Err(kube::Error::Api(refused)) if refused.code == 404 => continue,
            Err(fault) => return Err(fault),
        };
        for (kind, plural, versions) in SERVED {
            if versions.contains(&version) && resources.iter().any(|resource| resource.name == *plural) {
                served.entry(*kind).or_insert(version);
            }
        }
    }
    Ok(served)
}

fn of(client: &Client, kind: Kind, version: &str) -> Watch {
    let plural = SERVED.iter().find(|(other, ..)| *other == kind).map_or("", |(_, plural, _)| plural);
    let gvk = GroupVersionKind::gvk(GATEWAY_GROUP, version, kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let events = watcher(objects, config()).default_backoff();
    match kind {
        Kind::HttpRoute => told(events, kind, |object| object::route(Kind::HttpRoute, object)),
        Kind::GrpcRoute => told(events, kind, |object| object::route(Kind::GrpcRoute, object)),
        _ => told(events, kind, object::reference_grant),
    }
}

async fn pass_on(mut watch: Watch, sender: mpsc::Sender<Told>) {
    while let Some(told) = watch.next().await {
        if sender.send(told).await.is_err() {
            return;
        }
    }
}
