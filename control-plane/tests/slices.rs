//! Who is called behind a Service on Kubernetes, where anybody who may write EndpointSlices says so: whoever is known to
//! have an address decides how it is called. In whatever order it becomes known, and also across namespaces.
use std::net::IpAddr;

use weft_api::policy::AppliedPolicy;
use weft_api::resource::{
    EndpointSlice, NamespacedName, Resource, SliceEndpoint, SlicePort, Workload, WorkloadPort, parse_documents,
};
use weft_api::wire;
use weft_api::workload::ProtocolHint;
use weft_certs::TrustDomain;
use weft_control_plane::compile::{self, Shared};
use weft_control_plane::model::{Endpoints, Model};
use weft_control_plane::source::{Event, Kind, ResourceKey};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
";

fn resource(text: &str) -> Resource {
    parse_documents(text).pop().expect("one").expect("valid")
}

/// A pod as the mesh knows it; its service account has its name.
fn pod(namespace: &str, name: &str, address: Option<&str>, mesh: bool) -> Workload {
    let text = format!(
        "{{apiVersion: policy.weft.dev/v1alpha1, kind: Workload, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{addresses: [{}], serviceAccount: {name}, mesh: {mesh}}}}}",
        address.unwrap_or("192.0.2.1")
    );
    let Resource::Workload(mut workload) = resource(&text) else { panic!("a Workload") };
    if address.is_none() {
        workload.addresses.clear();
    }
    workload
}

fn applied(workload: Workload) -> Event {
    Event::Applied(Resource::Workload(workload))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn slice(name: &str, pod: Option<&str>, at: &str) -> Event {
    Event::EndpointSlice(EndpointSlice {
        name: NamespacedName::new("shop", name),
        service: NamespacedName::new("shop", "web"),
        ports: vec![SlicePort { name: "http".into(), port: 8080 }],
        endpoints: vec![SliceEndpoint {
            address: address(at),
            pod: pod.map(str::to_owned),
            ready: true,
            serving: true,
            zones: Vec::new(),
        }],
    })
}

/// A mesh that is compiled after each change, for the namespaces that changed alone.
struct Mesh {
    model: Model,
    shared: Shared,
}

impl Mesh {
    fn new() -> Self {
        let domain = TrustDomain::parse("cluster.local").expect("valid");
        let mut mesh =
            Self { model: Model::with(domain, Default::default(), Endpoints::Slices), shared: Shared::default() };
        mesh.take(applied(pod("ops", "observer", Some("10.9.9.9"), true)));
        mesh.take(Event::Applied(resource(SERVICE)));
        mesh
    }

    fn take(&mut self, event: Event) {
        self.model.apply(event);
        self.compile();
    }

    fn compile(&mut self) {
        let changed = self.model.take_changed();
        self.shared = compile::shared(&self.model, &self.shared, &changed);
    }

    /// Who is called for the Service, as `pod@address: account`, or `clear` instead of the account.
    fn called(&self) -> Vec<String> {
        let observer = NamespacedName::new("ops", "observer");
        let config = compile::workload(&self.model, &self.shared, &observer).expect("it is there");
        let service = &config.services[&NamespacedName::new("shop", "web")];
        let endpoints = service.ports.iter().flat_map(|port| &port.endpoints);
        let named = |identity: &weft_certs::SpiffeId| {
            let (namespace, account) = identity.service_account().expect("of an account");
            format!("{namespace}/{account}")
        };
        let shown = endpoints.map(|endpoint| {
            let account = endpoint.identity.as_ref().map_or_else(|| "clear".to_owned(), named);
            format!("{}@{}: {account}", endpoint.workload, endpoint.address)
        });
        shown.collect()
    }
}

#[test]
fn whoever_has_an_address_decides_how_it_is_called() {
    let plain = || applied(pod("shop", "plain", Some("10.1.0.1"), false));
    let meshed = || applied(pod("shop", "meshed", Some("10.1.0.2"), true));
    let starting = || applied(pod("shop", "starting", None, true));
    let victim = || applied(pod("bank", "victim", Some("10.1.0.3"), true));
    let table: Vec<(&str, Vec<Event>, &[&str])> = vec![
        (
            "a pod outside the mesh",
            vec![plain(), slice("s", Some("plain"), "10.1.0.1")],
            &["plain@10.1.0.1:8080: clear"],
        ),
        (
            "a pod of the mesh",
            vec![meshed(), slice("s", Some("meshed"), "10.1.0.2")],
            &["meshed@10.1.0.2:8080: shop/meshed"],
        ),
        (
            "a pod of the mesh whose address is not known yet",
            vec![starting(), slice("s", Some("starting"), "10.1.0.4")],
            &["starting@10.1.0.4:8080: shop/starting"],
        ),
        ("a pod that is not known", vec![slice("s", Some("nobody"), "10.1.0.4")], &[]),
        (
            "an address outside the cluster",
            vec![slice("s", None, "203.0.113.7")],
            &["203.0.113.7@203.0.113.7:8080: clear"],
        ),
        (
            "no pod, and the address of one of the mesh",
            vec![victim(), slice("s", None, "10.1.0.3")],
            &["victim@10.1.0.3:8080: bank/victim"],
        ),
        (
            "a pod outside the mesh, and the address of one of the mesh",
            vec![plain(), victim(), slice("s", Some("plain"), "10.1.0.3")],
            &["victim@10.1.0.3:8080: bank/victim"],
        ),
        (
            "a pod of the mesh, and the address of another of the mesh",
            vec![meshed(), victim(), slice("s", Some("meshed"), "10.1.0.3")],
            &["victim@10.1.0.3:8080: bank/victim"],
        ),
        (
            "a pod that claims to be outside the mesh at the address of one of the mesh",
            vec![applied(pod("shop", "liar", Some("10.1.0.3"), false)), victim(), slice("s", Some("liar"), "10.1.0.3")],
            &["victim@10.1.0.3:8080: bank/victim"],
        ),
        (
            "two pods of the mesh at one address: the one that its slice names",
            vec![victim(), applied(pod("shop", "twin", Some("10.1.0.3"), true)), slice("s", Some("twin"), "10.1.0.3")],
            &["twin@10.1.0.3:8080: shop/twin"],
        ),
        (
            "one address in two slices",
            vec![plain(), victim(), slice("s", Some("plain"), "10.1.0.3"), slice("t", None, "10.1.0.3")],
            &["victim@10.1.0.3:8080: bank/victim"],
        ),
    ];
    for (case, events, expected) in table {
        for turn in 0..events.len() {
            let mut order = events.clone();
            order.rotate_left(turn);
            for order in [order.clone(), order.into_iter().rev().collect()] {
                let mut mesh = Mesh::new();
                order.into_iter().for_each(|event| mesh.take(event));
                assert_eq!(mesh.called(), expected, "{case}");
            }
        }
    }
}

#[test]
fn a_slice_is_judged_anew_when_its_address_changes_hands_in_another_namespace() {
    let mut mesh = Mesh::new();
    mesh.take(slice("s", None, "10.1.0.3"));
    mesh.take(slice("s", None, "10.1.0.3"));
    assert_eq!(mesh.called(), ["10.1.0.3@10.1.0.3:8080: clear"]);
    mesh.take(applied(pod("bank", "first", Some("10.1.0.3"), true)));
    assert_eq!(mesh.called(), ["first@10.1.0.3:8080: bank/first"]);
    mesh.take(applied(pod("bank", "first", Some("10.1.0.4"), true)));
    mesh.take(applied(pod("bank", "second", Some("10.1.0.3"), true)));
    assert_eq!(mesh.called(), ["second@10.1.0.3:8080: bank/second"]);

    let second = NamespacedName::new("bank", "second");
    mesh.model.withdraw(&second);
    mesh.compile();
    assert!(mesh.called().is_empty(), "nobody is sent to it: {:?}", mesh.called());
    assert!(mesh.model.restore(&second));
    mesh.compile();
    assert_eq!(mesh.called(), ["second@10.1.0.3:8080: bank/second"]);

    mesh.take(Event::Removed(ResourceKey { kind: Kind::Workload, name: second }));
    assert_eq!(mesh.called(), ["10.1.0.3@10.1.0.3:8080: clear"]);
    let key = ResourceKey { kind: Kind::EndpointSlice, name: NamespacedName::new("shop", "s") };
    mesh.take(Event::Removed(key));
    mesh.take(applied(pod("bank", "third", Some("10.1.0.3"), true)));
    assert_eq!(mesh.called(), Vec::<String>::new());
}

/// A pod that declares each of its ports to be opaque, as an annotation of a pod can.
fn with_ports(mut workload: Workload, ports: u16) -> Workload {
    workload.ports =
        (1..=ports).map(|port| WorkloadPort { protocol: ProtocolHint::Opaque, ..declared(port) }).collect();
    workload
}

fn declared(port: u16) -> WorkloadPort {
    WorkloadPort::declared(None, port)
}

/// All sidecars are told of all Services and all of the mesh: what one of them would refuse, all would.
#[test]
fn nothing_that_one_namespace_writes_is_more_than_sidecars_take() {
    let mut mesh = Mesh::new();
    let ports: Vec<String> = (1..=1_500).map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
    mesh.take(Event::Applied(resource(&SERVICE.replace("{name: http, port: 80}", &ports.join(", ")))));
    for number in 0..30_u8 {
        let endpoint = |last: u16| SliceEndpoint {
            address: IpAddr::from([10, number, last.to_be_bytes()[0], last.to_be_bytes()[1]]),
            pod: None,
            ready: true,
            serving: true,
            zones: Vec::new(),
        };
        mesh.take(Event::EndpointSlice(EndpointSlice {
            name: NamespacedName::new("shop", format!("s{number}")),
            service: NamespacedName::new("shop", "web"),
            ports: ["p1", "p2"].map(|name| SlicePort { name: name.into(), port: 8080 }).to_vec(),
            endpoints: (1..=1_000).map(endpoint).collect(),
        }));
    }
    mesh.take(applied(with_ports(pod("shop", "meshed", Some("10.1.0.2"), true), 3_000)));
    let mut many = pod("shop", "many", None, true);
    many.addresses = (1..=200).map(|last| IpAddr::from([10, 2, 0, last])).collect();
    mesh.take(applied(many));
    for number in 0..1_100 {
        let policy = format!(
            "{{apiVersion: policy.weft.dev/v1alpha1, kind: AuthorizationPolicy, \
             metadata: {{name: p{number}, namespace: shop}}, spec: {{action: Allow, rules: [{{}}]}}}}"
        );
        mesh.model.apply(Event::Applied(resource(&policy)));
    }
    mesh.compile();
    let told = |namespace: &str, name: &str| {
        let name = NamespacedName::new(namespace, name);
        let config = compile::workload(&mesh.model, &mesh.shared, &name).expect("it is there");
        let update = wire::diff(None, &config, 1);
        wire::apply(None, &update).unwrap_or_else(|fault| panic!("{name}: {fault}"))
    };
    let config = told("ops", "observer");
    let web = &config.services[&NamespacedName::new("shop", "web")];
    assert_eq!((web.ports.len(), web.ports[0].endpoints.len()), (1_000, 20));
    assert_eq!(config.meshed_workloads.len(), 3);
    // None of the policies could be left out: it might be the one that refuses.
    let meshed = told("shop", "meshed");
    assert!(matches!(meshed.inbound.policy.policies(), [AppliedPolicy::Unreadable { .. }]));
}
