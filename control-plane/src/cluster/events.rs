//! Kubernetes Events: what an operator should see beside the object that it concerns (`kubectl describe`, `kubectl get
//! events`).
//!
//! Telling never waits and never fails: what is too much is dropped, what was said lately is not said again (see
//! [`limit`]). Events are for people; nothing in Weft depends on one.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_api::resource::NamespacedName;
use weft_certs::{CertificateAuthority, SpiffeId};

use self::limit::Limit;
use super::Cluster;

mod limit;

/// Events that wait to be written; more are dropped.
const WAITING: usize = 256;
/// What a note may be long (the API's limit is 1 kB).
const LONGEST_NOTE: usize = 1000;
/// What the name of an event takes of the object's (the API's limit is 253, a few characters follow).
const LONGEST_PREFIX: usize = 200;
/// A write that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who reports, as Events have it.
const CONTROLLER: &str = "weft.dev/control-plane";
/// Before this time is left to the signing certificate, an event says so each day.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the signing certificate is looked at.
const EXPIRY_CHECK: Duration = Duration::from_secs(3600);

/// Something that an operator should see.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    /// What it is about.
    pub regarding: Regarding,
    /// Whether something is wrong.
    pub warning: bool,
    /// One word in CamelCase, such as `Invalid`.
    pub reason: String,
    /// What was being done, one word in CamelCase.
    pub action: &'static str,
    /// What is wrong, and what to do.
    pub note: String,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// An object whose status is Weft's.
    Resource {
        /// Its `apiVersion`.
        api_version: String,
        /// Its kind.
        kind: String,
        /// Its name.
        name: NamespacedName,
        /// Its uid.
        uid: String,
    },
    /// A pod. Its uid is looked up where it is not known; if there is no such pod, nothing is written.
    Pod {
        /// Its name.
        name: NamespacedName,
        /// Its uid, where it is known.
        uid: Option<String>,
    },
    /// A service account.
    ServiceAccount(NamespacedName),
    /// This replica of the control plane.
    ControlPlane,
}

impl Notice {
    /// A caller that proved to be `id` got no certificate. `pod`: its pod and the pod's uid, where the proof named them.
    pub fn certificate_refused(id: &SpiffeId, pod: Option<(NamespacedName, String)>, why: &str) -> Option<Self> {
        let (namespace, account) = id.service_account()?;
        let regarding = match pod {
            Some((name, uid)) => Regarding::Pod { name, uid: Some(uid) },
            None => Regarding::ServiceAccount(NamespacedName::new(namespace, account)),
        };
        Some(Self {
            regarding,
            warning: true,
            reason: "CertificateRefused".to_owned(),
            action: "IssueCertificate",
            note: format!("no certificate for {id}: {why}"),
        })
    }

    /// The sidecar of the pod called `name` could not use what it was told.
    pub(super) fn update_refused(name: &NamespacedName, why: &str) -> Self {
        Self {
            regarding: Regarding::Pod { name: name.clone(), uid: None },
            warning: true,
            reason: "UpdateRefused".to_owned(),
            action: "Configure",
            note: format!("the sidecar keeps its last configuration, for it cannot use the new one: {why}"),
        }
    }
}

/// Where notices go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(Option<mpsc::Sender<Notice>>);

/// The other end of [`Events`].
pub struct Notices(mpsc::Receiver<Notice>);

impl Events {
    /// For [`run`].
    pub fn channel() -> (Self, Notices) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(Some(sender)), Notices(receiver))
    }

    /// Where there is no cluster: says nothing.
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// Says it, unless too much is being said.
    pub fn tell(&self, notice: Notice) {
        if let Some(sender) = &self.0
            && sender.try_send(notice).is_err()
        {
            tracing::debug!("an event is dropped: too many wait to be written");
        }
    }
}

/// Writes what is told until `stop`.
pub async fn run(cluster: Cluster, mut notices: Notices, stop: CancellationToken) {
    let (mut limit, mut failing) = (Limit::new(Instant::now()), false);
    while let Some(Some(notice)) = stop.run_until_cancelled(notices.0.recv()).await {
        if !limit.admits(&notice, Instant::now()) {
            continue;
        }
        let written = tokio::time::timeout(PATIENCE, write(&cluster, &notice));
        let fault = match stop.run_until_cancelled(written).await {
            None => return,
            Some(Ok(Ok(()))) => None,
            Some(Ok(Err(fault))) => Some(fault.to_string()),
            Some(Err(_)) => Some("no answer".to_owned()),
        };
        let failed = fault.is_some();
        // The first of a row.
        if let Some(fault) = fault.filter(|_| !failing) {
            tracing::warn!(fault, reason = notice.reason, note = notice.note, "cannot write an Event");
        }
        failing = failed;
    }
}

async fn write(cluster: &Cluster, notice: &Notice) -> Result<(), kube::Error> {
    let Some(regarding) = reference(cluster, &notice.regarding).await? else { return Ok(()) };
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let event = event(cluster, notice, regarding, Timestamp::now());
    Api::<Event>::namespaced(cluster.client.clone(), &namespace).create(&PostParams::default(), &event).await.map(drop)
}

fn event(cluster: &Cluster, notice: &Notice, regarding: ObjectReference, now: Timestamp) -> Event {
    let name = regarding.name.as_deref().unwrap_or("weft");
    let note = &notice.note[..notice.note.floor_char_boundary(LONGEST_NOTE)];
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", &name[..name.floor_char_boundary(LONGEST_PREFIX)])),
            namespace: regarding.namespace.clone(),
            ..Default::default()
        },
        action: Some(notice.action.to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(note.to_owned()),
        reason: Some(notice.reason.clone()),
        regarding: Some(regarding),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(cluster.pod.clone()),
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        ..Default::default()
    }
}

/// What the event is about, as the API names it. `None`: it is gone.
async fn reference(cluster: &Cluster, regarding: &Regarding) -> Result<Option<ObjectReference>, kube::Error> {
    let of = |api_version: &str, kind: &str, name: &NamespacedName, uid: Option<String>| ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(name.namespace.clone()),
        name: Some(name.name.clone()),
        uid,
        ..Default::default()
    };
    let own = NamespacedName::new(&*cluster.namespace, &*cluster.pod);
    let pod = async |name: &NamespacedName| {
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &name.namespace);
        let found = pods.get_metadata_opt(&name.name).await?;
        Ok(found.map(|pod| of("v1", "Pod", name, pod.metadata.uid)))
    };
    match regarding {
        Regarding::Resource { api_version, kind, name, uid } => {
            Ok(Some(of(api_version, kind, name, Some(uid.clone()))))
        }
        Regarding::Pod { name, uid: Some(uid) } => Ok(Some(of("v1", "Pod", name, Some(uid.clone())))),
        Regarding::Pod { name, uid: None } => pod(name).await,
        Regarding::ServiceAccount(name) => Ok(Some(of("v1", "ServiceAccount", name, None))),
        Regarding::ControlPlane => pod(&own).await,
    }
}

/// While this replica leads, says each day that the signing certificate is about to expire.
pub async fn watch_authority(
    events: Events,
    mut authority: watch::Receiver<Arc<CertificateAuthority>>,
    leader: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    loop {
        let expires = authority.borrow_and_update().not_after();
        let notice = expiry(expires, SystemTime::now());
        if let Some(notice) = notice.filter(|_| *leader.borrow()) {
            events.tell(notice);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EXPIRY_CHECK) => {}
            changed = authority.changed() => if changed.is_err() { return },
        }
    }
}

fn expiry(expires: SystemTime, now: SystemTime) -> Option<Notice> {
    let left = expires.duration_since(now).unwrap_or_default();
    if left >= EXPIRY_WARNING {
        return None;
    }
    let note = match left.as_secs() / 86_400 {
        _ if left.is_zero() => "the signing certificate has expired: no certificate is issued; renew it".to_owned(),
        0 => "the signing certificate expires within a day; after that no certificate is issued: renew it".to_owned(),
        days => {
            format!("the signing certificate expires in {days} days; after that no certificate is issued: renew it")
        }
    };
    Some(Notice {
        regarding: Regarding::ControlPlane,
        warning: true,
        reason: "SigningCertificateExpires".to_owned(),
        action: "IssueCertificate",
        note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiring_signing_certificate_is_said_in_time() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let days = |days: u64| Duration::from_secs(days * 86_400);
        for (expires, expected) in [
            (now + days(3650), None),
            (now + days(30), None),
            (now + days(29), Some("expires in 29 days")),
            (now + days(1), Some("expires in 1 days")),
            (now + Duration::from_secs(60), Some("within a day")),
            (now - days(1), Some("has expired")),
        ] {
            let note = expiry(expires, now).map(|notice| notice.note);
            assert!(
                note.as_ref()
                    .map(|note| expected.is_some_and(|part| note.contains(part)))
                    .unwrap_or(expected.is_none()),
                "{note:?}, where {expected:?} was expected"
            );
        }
    }

    #[test]
    fn a_refused_certificate_is_shown_at_the_pod_or_at_its_account() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/orders").expect("valid");
        let account = NamespacedName::new("shop", "orders");
        let notice = Notice::certificate_refused(&id, None, "the identity is denied").expect("an account");
        assert_eq!(notice.regarding, Regarding::ServiceAccount(account));
        let pod = NamespacedName::new("shop", "orders-1");
        let notice = Notice::certificate_refused(&id, Some((pod.clone(), "u".to_owned())), "x").expect("an account");
        assert_eq!(notice.regarding, Regarding::Pod { name: pod, uid: Some("u".to_owned()) });
        let other = SpiffeId::parse("spiffe://cluster.local/host/a").expect("valid");
        assert_eq!(Notice::certificate_refused(&other, None, "x"), None);
    }
}
