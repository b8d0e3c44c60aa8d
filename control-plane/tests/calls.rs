//! The calls that sidecars judged: heard on their streams, asked from all replicas together, shown on loopback.
mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{Mesh, Sidecar, workload};
use tokio::sync::watch;
use tonic::Code;
use weft_api::observation::{CallList, Decided, Observations, ObservedCall};
use weft_api::wire::proto::CallsRequest;
use weft_api::wire::proto::replicas_client::ReplicasClient;
use weft_api::wire::{SidecarMessage, observed_parts};
use weft_certs::{Svid, TrustDomain};
use weft_control_plane::audit::Audit;
use weft_control_plane::ca::own;
use weft_control_plane::ca::store::Store;
use weft_control_plane::config::control_plane_id;
use weft_control_plane::metrics::Metrics;
use weft_control_plane::model::Model;
use weft_control_plane::publish::Publisher;
use weft_control_plane::replicas::ask::{Replica, Replicas};

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

fn call(path: &str) -> ObservedCall {
    ObservedCall {
        source: ORDERS.into(),
        port: 8080,
        protocol: "http1".into(),
        method: Some("GET".into()),
        path: Some(path.into()),
        decision: Decided::Unlisted,
        policy: "default".into(),
        rule: None,
    }
}

async fn tell(sidecar: &mut Sidecar, calls: Vec<(ObservedCall, u64)>) {
    for part in observed_parts(Observations { calls, folded: 3 }) {
        sidecar.say(&SidecarMessage::Observed(part)).await;
    }
}

async fn users() -> (Mesh, Sidecar) {
    let mesh = Mesh::start(&[("users.yaml", &workload("users", "10.0.0.1"))]).await;
    let mut sidecar = mesh.sidecar(&mesh.svid("shop", "users").await, "users").await.expect("a stream");
    sidecar.next().await.expect("an update");
    (mesh, sidecar)
}

fn list(text: &str) -> CallList {
    serde_json::from_str(text).unwrap_or_else(|fault| panic!("{fault}: {text}"))
}

#[tokio::test]
async fn what_a_sidecar_judged_is_shown_under_the_workload_that_its_certificate_stands_for() {
    let (mesh, mut sidecar) = users().await;
    tell(&mut sidecar, vec![(call("/users/{id}"), 2), (call("/health"), 1)]).await;
    tell(&mut sidecar, vec![(call("/users/{id}"), 5)]).await;
    let text = mesh.until("/api/v1/calls", |text| text.contains("\"count\":7") && text.contains("\"folded\":6")).await;
    let shown = list(&text);
    assert_eq!(shown.calls.iter().map(|row| row.count).collect::<Vec<_>>(), [1, 7]);
    let row = &shown.calls[1];
    assert_eq!((row.destination.namespace.as_str(), row.destination.service_account.as_str()), ("shop", "users"));
    assert_eq!((row.destination.services.as_slice(), row.workload.as_str()), (&["users".to_owned()][..], "users"));
    assert_eq!(row.call, call("/users/{id}"));
    for (query, status, rows) in [
        ("?namespace=shop", 200, Some(2)),
        ("?namespace=attic", 200, Some(0)),
        ("?hours=1", 200, Some(2)),
        ("?hours=0", 400, None),
        ("?hours=25", 400, None),
        ("?hours=soon", 400, None),
    ] {
        let (answered, text) = mesh.get(&format!("/api/v1/calls{query}")).await;
        assert_eq!(answered, status, "{query}: {text}");
        assert_eq!((status == 200).then(|| list(&text).calls.len()), rows, "{query}");
    }
}

#[tokio::test]
async fn only_a_caller_on_loopback_is_shown_the_calls() {
    let (mesh, _sidecar) = users().await;
    let (status, _) = common::get(mesh.admin, "/api/v1/calls", "evil.test").await;
    assert_eq!(status, 403, "a page of a foreign host");
}

fn own_svid(mesh: &Mesh) -> Svid {
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let store = Store::open_or_create(&mesh.state()).expect("opened");
    let authority = store.self_signed_authority(&domain, SystemTime::now()).expect("an authority");
    own::issue(&authority, &control_plane_id(&domain), Duration::from_secs(600), SystemTime::now()).expect("issued")
}

#[tokio::test]
async fn replicas_are_asked_together_and_only_a_replica_is_answered() {
    let (mesh, mut sidecar) = users().await;
    tell(&mut sidecar, vec![(call("/users/{id}"), 2)]).await;
    mesh.until("/api/v1/calls", |text| text.contains("\"count\":2")).await;
    let metrics = Metrics::default();
    let model = Model::new(TrustDomain::parse("cluster.local").expect("valid"));
    let publisher = Publisher::new(model, Arc::new(Audit::unwritten(metrics.clone())), metrics, SystemTime::now());
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
    let others = vec![
        Replica { name: "mesh".to_owned(), address: mesh.address },
        Replica { name: "gone".to_owned(), address: gone },
    ];
    let replicas = Replicas::new(Arc::new(publisher), watch::channel(others).1, watch::channel(own_svid(&mesh)).1);
    let all = replicas.calls(24).await;
    assert_eq!((all.calls.len(), all.calls[0].count, all.folded), (1, 2, 3));
    assert_eq!(all.silent, ["gone"], "what is missing is said");

    let sidecar = mesh.svid("shop", "users").await;
    for (case, svid) in [("nobody", None), ("a sidecar", Some(&sidecar))] {
        let refused = ReplicasClient::new(mesh.channel(svid).await).calls(CallsRequest { hours: 1 }).await;
        assert_eq!(refused.map(drop).map_err(|status| status.code()), Err(Code::PermissionDenied), "{case}");
    }
}
