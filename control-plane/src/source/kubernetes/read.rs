//! Keeps what was listed, and turns what the watches say into batches.
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use weft_api::resource::{NamespacedName, Resource, Workload};

use super::object::Seen;
use super::objects::Objects;
use super::{KINDS, Told};
use crate::source::denied::DeniedFile;
use crate::source::{Batch, ConfigError, Event, Kind, ResourceKey};

/// A list that grew shorter must look the same for so long: editors truncate before they write.
const SETTLE: Duration = Duration::from_millis(250);
pub(crate) const NAME_OF_A_POD: &str =
    "a pod has this name, and is what the mesh knows by it; give this Workload another name";

/// What has been read so far.
pub(super) struct Reader {
    objects: Objects,
    /// All that is there; true: seen since its kind's list began.
    known: BTreeMap<ResourceKey, bool>,
    /// Kinds of the Gateway API that are served; `None`: that is not known yet.
    served: Option<BTreeSet<Kind>>,
    /// Kinds that were listed whole at least once.
    listed: BTreeSet<Kind>,
    /// Changes that no batch told yet; the latest of each resource.
    pending: BTreeMap<ResourceKey, Event>,
    errors: BTreeMap<ResourceKey, String>,
    /// Resources whose last good content is in force.
    good: BTreeSet<ResourceKey>,
    /// Declared Workloads that a pod of the same name hides.
    hidden: BTreeMap<NamespacedName, Workload>,
    denied: Option<DeniedFile>,
    denied_now: Option<Event>,
    told: Option<(bool, BTreeMap<ResourceKey, String>)>,
}

impl Reader {
    pub(super) fn new(objects: Objects, denied: Option<DeniedFile>) -> Self {
        Self {
            denied,
            denied_now: None,
            objects,
            known: BTreeMap::new(),
            served: None,
            listed: BTreeSet::new(),
            pending: BTreeMap::new(),
            errors: BTreeMap::new(),
            good: BTreeSet::new(),
            hidden: BTreeMap::new(),
            told: None,
        }
    }

    pub(super) fn take(&mut self, told: Told) {
        match told {
            Told::ListBegins(kind) => {
                for (_, seen) in self.known.iter_mut().filter(|(key, _)| key.kind == kind) {
                    *seen = false;
                }
            }
            Told::Listed(seen) | Told::Changed(seen) => self.see(seen),
            Told::ListEnds(kind) => {
                let gone = self.known.iter().filter(|(key, seen)| key.kind == kind && !**seen);
                for key in gone.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                    self.forget(&key);
                }
                self.listed.insert(kind);
            }
            Told::Deleted(kind, name) => self.forget(&ResourceKey { kind, name }),
            Told::Served(kinds) => {
                for kind in self.served.take().iter().flatten().filter(|kind| !kinds.contains(kind)) {
                    self.take(Told::ListBegins(*kind));
                    self.take(Told::ListEnds(*kind));
                    self.listed.remove(kind);
                }
                self.served = Some(kinds);
            }
            Told::Failed(..) => {}
        }
    }

    /// Whether all that there is was listed whole at least once.
    fn is_whole(&self) -> bool {
        let Some(served) = &self.served else { return false };
        KINDS.iter().chain(served).all(|kind| self.listed.contains(kind))
    }

    /// What changed since the last batch. `None`: nothing that matters.
    pub(super) fn batch(&mut self) -> Option<Batch> {
        let denied_unknown = self.denied.as_ref().is_some_and(DeniedFile::never_good);
        let complete = self.is_whole() && !denied_unknown;
        let told = (complete, self.errors.clone());
        if self.pending.is_empty() && self.denied_now.is_none() && self.told.as_ref() == Some(&told) {
            return None;
        }
        self.told = Some(told);
        let error = |(key, message): (&ResourceKey, &String)| ConfigError {
            file: key.to_string(),
            line: None,
            message: message.clone(),
        };
        Some(Batch {
            events: std::mem::take(&mut self.pending).into_values().chain(self.denied_now.take()).collect(),
            errors: self.errors.iter().map(error).chain(self.denied.iter().flat_map(DeniedFile::errors)).collect(),
            complete,
        })
    }

    /// Looks at the file of denied identities. True: there may be something to tell.
    pub(super) fn look_at_denied(&mut self, now: SystemTime) -> bool {
        let Some(denied) = &mut self.denied else { return false };
        let before = (denied.never_good(), denied.errors().collect::<Vec<_>>());
        let (event, _) = denied.look(now, SETTLE);
        let told = event.is_some();
        self.denied_now = event.or(self.denied_now.take());
        if (denied.never_good(), denied.errors().collect::<Vec<_>>()) == before {
            return told;
        }
        self.told = None;
        true
    }

    fn see(&mut self, seen: Seen) {
        let key = seen.key();
        self.known.insert(key.clone(), true);
        match seen {
            Seen::Known(event) => {
                self.mend(&key);
                self.pending.insert(key, event);
            }
            Seen::Flawed(_, event, fault) => {
                self.name_fault(&key, fault, "it is in force as far as it can be");
                self.pending.insert(key, event);
            }
            Seen::Pod(workload) => self.see_pod(workload),
            Seen::Core(_, Ok(resource)) => self.see_good(key, resource),
            Seen::Core(_, Err(fault)) => self.see_fault(key, fault),
            Seen::Own(_, object, resource) => {
                let fault = object.error.clone();
                self.objects.put(key.clone(), object);
                match (resource, fault) {
                    (Some(Resource::Workload(workload)), _) => self.see_workload(key, workload),
                    (Some(resource), _) => self.see_good(key, resource),
                    (None, fault) => self.see_fault(key, fault.unwrap_or_default()),
                }
            }
        }
    }

    fn see_good(&mut self, key: ResourceKey, resource: Resource) {
        self.mend(&key);
        self.good.insert(key.clone());
        self.pending.insert(key, Event::Applied(resource));
    }

    fn see_fault(&mut self, key: ResourceKey, fault: String) {
        let good = self.good.contains(&key);
        let then = match (good, key.kind) {
            (true, _) => "what was last read without fault stays in force",
            (false, Kind::AuthorizationPolicy) => "it was never good, so every call in its namespace is refused",
            (false, _) => "it is left out",
        };
        if !good && key.kind == Kind::AuthorizationPolicy {
            self.pending.insert(key.clone(), Event::Unreadable { key: key.clone(), why: fault.clone() });
        }
        self.name_fault(&key, fault, then);
    }

    fn name_fault(&mut self, key: &ResourceKey, fault: String, then: &str) {
        if self.errors.get(key) != Some(&fault) {
            tracing::error!(resource = %key, "{}; {then}", fault.trim_end_matches('.'));
            self.errors.insert(key.clone(), fault);
        }
    }

    fn mend(&mut self, key: &ResourceKey) {
        if self.errors.remove(key).is_some() {
            tracing::info!(resource = %key, "mended");
        }
    }

    /// A pod wins over a declared Workload of its name: it is who the API server says it is.
    fn see_pod(&mut self, workload: Workload) {
        let key = ResourceKey { kind: Kind::Workload, name: workload.name.clone() };
        if self.good.remove(&key) {
            self.objects.set_error(&key, Some(NAME_OF_A_POD));
            self.errors.insert(key.clone(), NAME_OF_A_POD.to_owned());
        }
        self.pending.insert(key, Event::Applied(Resource::Workload(workload)));
    }

    fn see_workload(&mut self, key: ResourceKey, workload: Workload) {
        self.hidden.insert(key.name.clone(), workload.clone());
        if self.known.contains_key(&ResourceKey { kind: Kind::Pod, name: key.name.clone() }) {
            self.objects.set_error(&key, Some(NAME_OF_A_POD));
            self.errors.insert(key, NAME_OF_A_POD.to_owned());
        } else {
            self.objects.set_error(&key, None);
            self.see_good(key, Resource::Workload(workload));
        }
    }

    fn forget(&mut self, key: &ResourceKey) {
        if self.known.remove(key).is_none() {
            return;
        }
        self.good.remove(key);
        self.errors.remove(key);
        let workload = ResourceKey { kind: Kind::Workload, name: key.name.clone() };
        match key.kind {
            Kind::Pod => match self.hidden.get(&key.name).cloned() {
                Some(declared) => self.see_workload(workload, declared),
                None => drop(self.pending.insert(workload.clone(), Event::Removed(workload))),
            },
            Kind::Workload => {
                self.objects.remove(key);
                self.hidden.remove(&key.name);
                if !self.known.contains_key(&ResourceKey { kind: Kind::Pod, name: key.name.clone() }) {
                    self.pending.insert(workload.clone(), Event::Removed(workload));
                }
            }
            _ => {
                self.objects.remove(key);
                self.pending.insert(key.clone(), Event::Removed(key.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_api::resource::parse_documents;

    use super::super::objects::Object;
    use super::*;

    fn reader() -> Reader {
        let mut reader = Reader::new(Objects::default(), None);
        KINDS.iter().for_each(|kind| reader.take(Told::ListEnds(*kind)));
        reader.take(Told::Served(BTreeSet::new()));
        reader
    }

    fn workload(name: &str, address: &str) -> Workload {
        let text = json!({
            "apiVersion": "policy.weft.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"addresses": [address]},
        });
        match parse_documents(&text.to_string()).pop() {
            Some(Ok(Resource::Workload(workload))) => workload,
            other => panic!("{other:?}"),
        }
    }

    fn declared(name: &str, address: &str) -> Seen {
        let workload = workload(name, address);
        let key = ResourceKey { kind: Kind::Workload, name: workload.name.clone() };
        Seen::Own(key, object(None), Some(Resource::Workload(workload)))
    }

    fn object(error: Option<&str>) -> Object {
        Object {
            uid: "u".into(),
            generation: 1,
            error: error.map(str::to_owned),
            content: None,
            route: None,
            status: serde_json::Value::Null,
        }
    }

    fn policy(good: bool) -> Seen {
        let name = NamespacedName::new("shop", "p");
        let text = json!({
            "apiVersion": "policy.weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": {"action": "Deny"},
        });
        let resource = parse_documents(&text.to_string()).pop().expect("one").expect("valid");
        let key = ResourceKey { kind: Kind::AuthorizationPolicy, name };
        Seen::Own(key, object((!good).then_some("broken")), good.then_some(resource))
    }

    #[test]
    fn nothing_is_complete_before_every_kind_was_listed() {
        let mut reader = Reader::new(Objects::default(), None);
        let routes = BTreeSet::from([Kind::HttpRoute]);
        for kind in KINDS.iter().chain(&routes) {
            assert!(!reader.batch().is_some_and(|batch| batch.complete), "before {kind:?}");
            reader.take(Told::ListBegins(*kind));
            reader.take(Told::ListEnds(*kind));
        }
        assert!(!reader.batch().is_some_and(|batch| batch.complete), "before it is known what is served");
        reader.take(Told::Served(routes));
        assert!(reader.batch().expect("news").complete);
        assert!(reader.batch().is_none(), "nothing more to tell");
    }

    #[test]
    fn a_kind_that_is_served_no_more_takes_its_objects_with_it() {
        let grant = |name: &str| {
            let text = json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ReferenceGrant",
                "metadata": {"name": name, "namespace": "shop"}, "spec": {"from": [], "to": []},
            });
            let grant = parse_documents(&text.to_string()).pop().expect("one").expect("valid");
            let key = ResourceKey { kind: Kind::ReferenceGrant, name: NamespacedName::new("shop", name) };
            (key.clone(), Seen::Core(key, Ok(grant)))
        };
        let mut reader = reader();
        assert!(reader.batch().expect("news").complete, "nobody waits for what is not there");
        reader.take(Told::Served(BTreeSet::from([Kind::ReferenceGrant])));
        let (key, seen) = grant("g");
        reader.take(Told::Listed(seen));
        reader.take(Told::ListEnds(Kind::ReferenceGrant));
        assert_eq!(reader.batch().expect("news").events.len(), 1);
        reader.take(Told::Served(BTreeSet::new()));
        let batch = reader.batch().expect("news");
        assert_eq!((batch.events, batch.complete), (vec![Event::Removed(key)], true));
    }

    #[test]
    fn what_a_new_list_lacks_is_removed_at_its_end_and_not_before() {
        let mut reader = reader();
        for name in ["web-1", "web-2"] {
            reader.take(Told::Changed(Seen::Pod(workload(name, "10.0.0.1"))));
        }
        reader.batch();
        reader.take(Told::ListBegins(Kind::Pod));
        reader.take(Told::Listed(Seen::Pod(workload("web-1", "10.0.0.1"))));
        assert_eq!(reader.batch().expect("one again").events.len(), 1);
        reader.take(Told::ListEnds(Kind::Pod));
        let events = reader.batch().expect("one is gone").events;
        let gone = ResourceKey { kind: Kind::Workload, name: NamespacedName::new("shop", "web-2") };
        assert_eq!(events, [Event::Removed(gone)]);
    }

    #[test]
    fn the_latest_of_each_object_is_told_once() {
        let mut reader = reader();
        for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            reader.take(Told::Changed(Seen::Pod(workload("web-1", address))));
        }
        let events = reader.batch().expect("news").events;
        assert_eq!(events, [Event::Applied(Resource::Workload(workload("web-1", "10.0.0.3")))]);
    }

    #[test]
    fn a_policy_that_was_never_good_refuses_and_one_that_was_stays() {
        let mut reader = reader();
        reader.take(Told::Changed(policy(false)));
        let batch = reader.batch().expect("news");
        assert!(matches!(&batch.events[..], [Event::Unreadable { .. }]), "{batch:?}");
        assert_eq!(batch.errors[0].to_string(), "AuthorizationPolicy shop/p: broken");
        reader.take(Told::Changed(policy(true)));
        assert!(reader.batch().is_some_and(|batch| batch.errors.is_empty()), "mended");
        reader.take(Told::Changed(policy(false)));
        let batch = reader.batch().expect("news");
        assert!(batch.events.is_empty() && batch.errors.len() == 1, "the last good content stays: {batch:?}");
    }

    #[test]
    fn a_pod_hides_a_declared_workload_of_its_name_while_it_lives() {
        let (pod, other) = ("10.0.0.1", "10.0.0.2");
        for declared_first in [true, false] {
            let mut reader = reader();
            let (first, second) = match declared_first {
                true => (declared("db", other), Seen::Pod(workload("db", pod))),
                false => (Seen::Pod(workload("db", pod)), declared("db", other)),
            };
            reader.take(Told::Changed(first));
            reader.take(Told::Changed(second));
            let batch = reader.batch().expect("news");
            assert_eq!(batch.events, [Event::Applied(Resource::Workload(workload("db", pod)))]);
            assert!(batch.errors[0].message.contains("a pod has this name"), "{batch:?}");
            reader.take(Told::Deleted(Kind::Pod, NamespacedName::new("shop", "db")));
            let batch = reader.batch().expect("news");
            assert_eq!(batch.events, [Event::Applied(Resource::Workload(workload("db", other)))]);
            assert!(batch.errors.is_empty());
        }
    }
}
