//! The routes of the Gateway API and the grants for them, by what they are attached and by where they lead.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_api::resource::{NamespacedName, ReferenceGrant, Route};
use weft_api::routing::RouteKind;

use super::in_namespace;

/// What a route is called.
pub type RouteKey = (NamespacedName, RouteKind);

/// All routes.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    all: BTreeMap<RouteKey, Arc<Route>>,
    /// By the Service that they are attached to.
    attached: BTreeSet<(NamespacedName, RouteKey)>,
    /// Those that are attached to a Service of another namespace, by their own.
    consumers: BTreeSet<(String, NamespacedName, RouteKey)>,
    /// How often the routes of the second namespace name a backend in the first, which is another.
    references: BTreeMap<(String, String), usize>,
    grants: BTreeMap<NamespacedName, ReferenceGrant>,
}

impl Routes {
    /// How many routes and grants there are.
    pub fn len(&self) -> usize {
        self.all.len() + self.grants.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every route, by name.
    pub fn all(&self) -> impl Iterator<Item = (&RouteKey, &Arc<Route>)> {
        self.all.iter()
    }

    /// The route of that name.
    pub fn get(&self, key: &RouteKey) -> Option<&Arc<Route>> {
        self.all.get(key)
    }

    /// The routes of the Service's own namespace that are attached to it: they hold for every caller.
    pub fn producers<'a>(&'a self, service: &'a NamespacedName) -> impl Iterator<Item = &'a Arc<Route>> {
        self.attached_to(service, &service.namespace)
    }

    /// The routes of `namespace` that are attached to `service`, which is in another: they hold for callers there.
    pub fn attached_to<'a>(
        &'a self,
        service: &'a NamespacedName,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Route>> {
        let first = (service.clone(), (NamespacedName::new(namespace, ""), RouteKind::Http));
        let these = self.attached.range(first..);
        let these = these.take_while(move |(parent, (name, _))| parent == service && name.namespace == namespace);
        these.filter_map(|(_, key)| self.all.get(key))
    }

    /// The namespaces that have routes to Services of others.
    pub fn consumer_namespaces(&self) -> BTreeSet<&str> {
        self.consumers.iter().map(|(namespace, ..)| namespace.as_str()).collect()
    }

    /// The Services of other namespaces that routes of `namespace` are attached to.
    pub fn consumed(&self, namespace: &str) -> BTreeSet<&NamespacedName> {
        let none = NamespacedName::new("", "");
        let these = self.consumers.range((namespace.to_owned(), none.clone(), (none, RouteKind::Http))..);
        these.take_while(|(consumer, ..)| consumer == namespace).map(|(_, service, _)| service).collect()
    }

    /// Whether a grant lets routes of `kind` in `namespace` name `service`.
    pub fn are_granted(&self, kind: RouteKind, namespace: &str, service: &NamespacedName) -> bool {
        in_namespace(&self.grants, &service.namespace).any(|grant| grant.permits(kind.as_str(), namespace, service))
    }

    /// The other namespaces whose routes name a backend in `namespace`.
    pub(super) fn referrers<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a str> {
        let these = self.references.range((namespace.to_owned(), String::new())..);
        these.take_while(move |((to, _), _)| to == namespace).map(|((_, by), _)| by.as_str())
    }

    pub(super) fn put(&mut self, route: Route) {
        let key = (route.name.clone(), route.kind);
        self.remove(&key);
        for service in parents(&route) {
            if service.namespace != route.name.namespace {
                self.consumers.insert((route.name.namespace.clone(), service.clone(), key.clone()));
            }
            self.attached.insert((service, key.clone()));
        }
        for reference in references(&route) {
            *self.references.entry(reference).or_default() += 1;
        }
        self.all.insert(key, Arc::new(route));
    }

    pub(super) fn remove(&mut self, key: &RouteKey) {
        let Some(route) = self.all.remove(key) else { return };
        for service in parents(&route) {
            self.consumers.remove(&(route.name.namespace.clone(), service.clone(), key.clone()));
            self.attached.remove(&(service, key.clone()));
        }
        for reference in references(&route) {
            match self.references.get_mut(&reference) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.references.remove(&reference)),
            }
        }
    }

    pub(super) fn put_grant(&mut self, grant: ReferenceGrant) {
        self.grants.insert(grant.name.clone(), grant);
    }

    pub(super) fn remove_grant(&mut self, name: &NamespacedName) {
        self.grants.remove(name);
    }
}

/// The Services that `route` is attached to, should they exist.
fn parents(route: &Route) -> impl Iterator<Item = NamespacedName> {
    route.parents.iter().filter_map(|parent| parent.service(&route.name.namespace))
}

/// Namespaces of its backends, each with its own, where they differ.
fn references(route: &Route) -> impl Iterator<Item = (String, String)> {
    let home = &route.name.namespace;
    let others = route.backends().map(|backend| &backend.service.namespace).filter(move |to| *to != home);
    others.map(move |to| (to.clone(), home.clone()))
}
