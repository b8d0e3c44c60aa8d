//! From one object of the API to what the mesh needs of it. Pure.
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};
use weft_api::resource::{
    DEFAULT_POLICY_ANNOTATION, DefaultPolicy, GATEWAY_GROUP, NamespacedName, Resource, ResourceError, Route, Workload,
    parse_documents,
};
use weft_api::wire::MAX_PORTS;

use super::objects::Object;
use crate::source::{Event, Kind, ResourceKey, ZONE_LABEL, fingerprint};

/// What the mesh needs of an object.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing can be wrong with it.
    Known(Event),
    /// A pod that runs, or will.
    Pod(Workload),
    /// A Service or a ReferenceGrant: a fault is named.
    Core(ResourceKey, Result<Resource, String>),
    /// In force as far as it can be; the fault is named.
    Flawed(ResourceKey, Event, String),
    /// One with a status that is Weft's: of its own kinds, or a route.
    Own(ResourceKey, Object, Option<Resource>),
}

impl Seen {
    /// What it is; a pod counts as [`Kind::Pod`] here.
    pub(super) fn key(&self) -> ResourceKey {
        match self {
            Self::Known(event) => event.key().expect("events of one object name it"),
            Self::Pod(workload) => ResourceKey { kind: Kind::Pod, name: workload.name.clone() },
            Self::Core(key, _) | Self::Flawed(key, ..) | Self::Own(key, ..) => key.clone(),
        }
    }
}

/// Namespace (empty without one) and name.
pub(super) fn name(metadata: &ObjectMeta) -> Option<NamespacedName> {
    Some(NamespacedName::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref()?))
}

/// A Namespace. One whose default policy cannot be read has `deny`.
pub(super) fn namespace(namespace: &PartialObjectMeta<Namespace>) -> Option<Seen> {
    let metadata = &namespace.metadata;
    let key = ResourceKey { kind: Kind::Namespace, name: name(metadata)? };
    let document = |annotations: Value| {
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": key.name.name, "labels": metadata.labels, "annotations": annotations},
        })
    };
    let ours = |(key, value): (&String, &String)| {
        key.starts_with("weft.dev/").then(|| (key.clone(), Value::String(value.clone())))
    };
    let ours: serde_json::Map<_, _> = metadata.annotations.iter().flatten().filter_map(ours).collect();
    Some(match read(&document(Value::Object(ours))) {
        Ok(resource) => Seen::Core(key, Ok(resource)),
        Err(fault) => {
            let deny = json!({DEFAULT_POLICY_ANNOTATION: DefaultPolicy::Deny.as_str()});
            match read(&document(deny)) {
                Ok(deny) => {
                    let fault = format!("{fault} Until then the default policy here is `deny`.");
                    Seen::Flawed(key, Event::Applied(deny), fault)
                }
                Err(fault) => Seen::Core(key, Err(fault)),
            }
        }
    })
}

/// A node: its zone.
pub(super) fn node(node: &PartialObjectMeta<Node>) -> Option<Seen> {
    let name = node.metadata.name.clone()?;
    let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL)).cloned();
    Some(Seen::Known(Event::Node { name, zone: zone.filter(|zone| !zone.is_empty()) }))
}

/// A Service.
pub(super) fn service(service: &Service) -> Option<Seen> {
    let key = ResourceKey { kind: Kind::Service, name: name(&service.metadata)? };
    let mut document = serde_json::to_value(service).ok()?;
    // They can be large, and mean nothing here.
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("ownerReferences");
    }
    Some(match read(&document) {
        Ok(Resource::Service(service)) if service.ports.len() > MAX_PORTS => {
            let fault = format!(
                "has {} TCP ports, of which sidecars are told the first {MAX_PORTS}; calls to the others are refused. \
                 Make two Services of it.",
                service.ports.len()
            );
            Seen::Flawed(key, Event::Applied(Resource::Service(service)), fault)
        }
        resource => Seen::Core(key, resource),
    })
}

/// One of Weft's own kinds.
pub(super) fn own(kind: Kind, object: &DynamicObject) -> Option<Seen> {
    let metadata = &object.metadata;
    let key = ResourceKey { kind, name: name(metadata)? };
    let mut document = json!({
        "apiVersion": weft_api::resource::API_VERSION, "kind": kind.as_str(),
        "metadata": {"name": key.name.name, "namespace": key.name.namespace, "labels": metadata.labels.clone().unwrap_or_default()},
    });
    let fields = object.data.as_object().into_iter().flatten().filter(|(field, _)| *field != "status");
    for (field, value) in fields {
        document[field] = value.clone();
    }
    let resource = read(&document);
    let known = Object {
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        error: resource.as_ref().err().cloned(),
        content: resource.as_ref().ok().and_then(fingerprint),
        status: object.data.get("status").cloned().unwrap_or_default(),
        route: None,
    };
    Some(Seen::Own(key, known, resource.ok()))
}

/// A route of the Gateway API. Of one that cannot be understood the parents are still read: its status is theirs.
pub(super) fn route(kind: Kind, object: &DynamicObject) -> Option<Seen> {
    let metadata = &object.metadata;
    let key = ResourceKey { kind, name: name(metadata)? };
    let spec = object.data.get("spec").cloned().unwrap_or_default();
    let created = metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second().try_into().unwrap_or(0));
    let read = |spec: &Value| match read(&gateway_document(&key, spec)) {
        Ok(Resource::Route(route)) => Ok(Route { created, ..route }),
        Ok(_) => Err("this is not a route".to_owned()),
        Err(fault) => Err(fault),
    };
    let route = read(&spec);
    let parents = || read(&json!({"parentRefs": spec.get("parentRefs").cloned().unwrap_or_default()})).ok();
    let known = Object {
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        error: route.as_ref().err().cloned(),
        content: None,
        status: object.data.get("status").cloned().unwrap_or_default(),
        route: route.as_ref().ok().cloned().or_else(parents).map(Arc::new),
    };
    Some(Seen::Own(key, known, route.ok().map(Resource::Route)))
}

/// A ReferenceGrant.
pub(super) fn reference_grant(object: &DynamicObject) -> Option<Seen> {
    let key = ResourceKey { kind: Kind::ReferenceGrant, name: name(&object.metadata)? };
    let grant = read(&gateway_document(&key, &object.data.get("spec").cloned().unwrap_or_default()));
    Some(Seen::Core(key, grant))
}

fn gateway_document(key: &ResourceKey, spec: &Value) -> Value {
    json!({
        "apiVersion": format!("{GATEWAY_GROUP}/v1"), "kind": key.kind.as_str(),
        "metadata": {"name": key.name.name, "namespace": key.name.namespace}, "spec": spec,
    })
}

/// Reads a document by the rules that files are read by.
fn read(document: &Value) -> Result<Resource, String> {
    let mut read = parse_documents(&document.to_string());
    match (read.pop(), read.is_empty()) {
        // The line is that of a text that nobody wrote.
        (Some(read), true) => {
            read.map_err(|fault| ResourceError { line: 0, kind: None, name: None, ..fault }.to_string())
        }
        _ => Err("this is not one resource".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> Seen {
        let object = json!({
            "apiVersion": "policy.weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop", "uid": "u", "generation": 3, "managedFields": []},
            "spec": spec, "status": {"conditions": []},
        });
        own(Kind::AuthorizationPolicy, &serde_json::from_value(object).expect("an object")).expect("named")
    }

    #[test]
    fn weft_s_own_objects_are_read_as_files_are_and_keep_their_generation() {
        let Seen::Own(key, object, resource) = policy(json!({"action": "Allow"})) else { panic!("one of ours") };
        assert_eq!((key.to_string().as_str(), object.generation), ("AuthorizationPolicy shop/p", 3));
        assert!(object.error.is_none() && resource.is_some());
        assert_eq!(object.status, json!({"conditions": []}));
        let Seen::Own(_, object, resource) = policy(json!({"action": "Allow", "rulez": []})) else { panic!("ours") };
        assert!(resource.is_none());
        let error = object.error.expect("refused");
        assert!(error.contains("`rulez` in `spec` is not a field. Write `rules`."), "{error}");
    }

    #[test]
    fn a_route_that_cannot_be_understood_still_names_its_parents() {
        let seen = |spec: Value| {
            let object = json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {
                    "name": "r", "namespace": "shop", "uid": "u", "generation": 2,
                    "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"not a": "label!"},
                },
                "spec": spec, "status": {"parents": []},
            });
            match route(Kind::HttpRoute, &serde_json::from_value(object).expect("an object")) {
                Some(Seen::Own(_, object, resource)) => (object, resource),
                other => panic!("{other:?}"),
            }
        };
        let parents = json!([{"group": "", "kind": "Service", "name": "stock"}]);
        let (object, resource) = seen(json!({"parentRefs": parents}));
        let Some(Resource::Route(read)) = resource else { panic!("good") };
        assert_eq!((read.created, object.error, object.route.as_deref()), (1_767_225_600, None, Some(&read)));
        let (object, resource) = seen(
            json!({"parentRefs": parents, "rules": [{"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}]}),
        );
        assert!(resource.is_none() && object.error.is_some_and(|error| error.contains("RE2")));
        assert_eq!(object.route.expect("its parents").parents, read.parents);
        let (object, _) = seen(json!({"parentRefs": 7}));
        assert!(object.route.is_none() && object.error.is_some());
    }

    #[test]
    fn a_default_policy_that_cannot_be_read_is_deny() {
        for (annotation, expected, fault) in [
            ("allow", DefaultPolicy::Allow, None),
            ("denied", DefaultPolicy::Deny, Some("or `allow`. Until then the default policy here is `deny`.")),
            ("", DefaultPolicy::Deny, Some("is no default policy")),
        ] {
            let object = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": "shop", "annotations": {DEFAULT_POLICY_ANNOTATION: annotation, "other": "x"}},
            });
            let seen = namespace(&serde_json::from_value(object).expect("an object"));
            let (read, named) = match seen {
                Some(Seen::Core(_, Ok(Resource::Namespace(read)))) => (read, None),
                Some(Seen::Flawed(_, Event::Applied(Resource::Namespace(read)), fault)) => (read, Some(fault)),
                other => panic!("{other:?}"),
            };
            assert_eq!(read.default_policy, Some(expected), "{annotation}");
            assert_eq!(named.is_some(), fault.is_some(), "{named:?}");
            assert!(fault.is_none_or(|fault| named.is_some_and(|named| named.contains(fault))), "{annotation}");
        }
    }
}
