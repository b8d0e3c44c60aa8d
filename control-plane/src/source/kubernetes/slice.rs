//! EndpointSlices: which addresses serve a Service now. Pure.
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1;
use weft_api::resource::{EndpointSlice, NamespacedName, SliceEndpoint, SlicePort};

use super::object::Seen;
use crate::source::{Event, Kind, ResourceKey};

/// Label that names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A slice, and what in it was passed over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    slice: EndpointSlice,
    flaw: Option<String>,
}

impl Read {
    pub(super) fn seen(self) -> Seen {
        let key = ResourceKey { kind: Kind::EndpointSlice, name: self.slice.name.clone() };
        let event = Event::EndpointSlice(self.slice);
        match self.flaw {
            Some(flaw) => Seen::Flawed(key, event, flaw),
            None => Seen::Known(event),
        }
    }
}

/// What is known of `slice`; `None` if it belongs to no Service or its addresses are names.
pub(super) fn endpoint_slice(slice: &v1::EndpointSlice) -> Option<Read> {
    let namespace = slice.metadata.namespace.as_deref()?;
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        return None;
    }
    let mut endpoints = Vec::new();
    let mut flaw = None;
    for written in slice.endpoints.iter().flatten() {
        match endpoint(written) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(fault) => flaw = flaw.or(Some(fault)),
        }
    }
    let ports = slice.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let slice = EndpointSlice {
        name: NamespacedName::new(namespace, slice.metadata.name.as_deref()?),
        service: NamespacedName::new(namespace, service),
        ports: ports
            .filter_map(|port| {
                let number = u16::try_from(port.port?).ok().filter(|number| *number > 0)?;
                Some(SlicePort { name: port.name.clone().unwrap_or_default(), port: number })
            })
            .collect(),
        endpoints,
    };
    Some(Read { slice, flaw })
}

fn endpoint(endpoint: &v1::Endpoint) -> Result<SliceEndpoint, String> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    // All addresses of one endpoint are the same place; consumers use the first (discovery.k8s.io/v1, Endpoint.addresses).
    let written = endpoint.addresses.first().map(String::as_str).unwrap_or_default();
    let of_one_host = |address: &IpAddr| !address.is_unspecified() && !address.is_multicast();
    let address = written.parse::<IpAddr>().ok().map(|address| address.to_canonical()).filter(of_one_host);
    let address = address.ok_or_else(|| {
        format!(
            "the endpoint `{}` is not the address of one host, and is left out. Write a pod's address.",
            written.escape_debug()
        )
    })?;
    Ok(SliceEndpoint {
        address,
        pod: pod.and_then(|target| target.name.clone()),
        // Unknown counts as ready, and as serving what ready says.
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.or(conditions.ready).unwrap_or(true),
        zones: endpoint
            .hints
            .iter()
            .flat_map(|hints| hints.for_zones.iter().flatten())
            .map(|zone| zone.name.clone())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_slice_says_who_is_ready_and_whose_address_it_is() {
        let slice = json!({
            "metadata": {"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "all"}],
            "endpoints": [
                {"addresses": ["10.1.0.5"], "targetRef": {"kind": "Pod", "name": "web-1"},
                 "hints": {"forZones": [{"name": "a"}, {"name": "b"}]}},
                {"addresses": ["10.1.0.6"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["not-an-address"]},
                {"addresses": ["239.1.2.3"]},
            ],
        });
        let slice = serde_json::from_value(slice).expect("a slice");
        let Read { slice: found, flaw } = endpoint_slice(&slice).expect("of a Service");
        assert!(flaw.is_some_and(|flaw| flaw.contains("`not-an-address` is not the address of one host")));
        assert_eq!(found.service.to_string(), "shop/web");
        assert_eq!(found.ports, [SlicePort { name: "http".into(), port: 8080 }]);
        let seen: Vec<_> = found.endpoints.iter().map(|e| (e.pod.as_deref(), e.ready, e.serving)).collect();
        assert_eq!(seen, [(Some("web-1"), true, true), (None, false, true)]);
        assert_eq!(
            (found.endpoints[0].zones.as_slice(), found.endpoints[1].zones.len()),
            (&["a", "b"].map(str::to_owned)[..], 0)
        );
    }

    #[test]
    fn a_slice_of_names_or_of_no_service_is_passed_over() {
        for (labels, kind) in [(json!({}), "IPv4"), (json!({"kubernetes.io/service-name": "web"}), "FQDN")] {
            let slice = json!({
                "metadata": {"name": "x", "namespace": "shop", "labels": labels}, "addressType": kind, "endpoints": [],
            });
            assert_eq!(endpoint_slice(&serde_json::from_value(slice).expect("a slice")), None);
        }
    }
}
