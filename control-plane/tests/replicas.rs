//! What the replicas of a control plane tell each other, and whom they tell nothing.
mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{Mesh, Sidecar, allow, workload};
use tokio::sync::watch;
use tonic::Code;
use weft_api::report::{PolicyName, Report, SidecarReport};
use weft_api::resource::NamespacedName;
use weft_api::wire::proto::ReportRequest;
use weft_api::wire::proto::replicas_client::ReplicasClient;
use weft_api::wire::{self, SidecarMessage};
use weft_certs::{PrivateKey, Svid, TrustDomain};
use weft_control_plane::audit::Audit;
use weft_control_plane::ca::own;
use weft_control_plane::ca::store::Store;
use weft_control_plane::config::control_plane_id;
use weft_control_plane::metrics::Metrics;
use weft_control_plane::model::Model;
use weft_control_plane::publish::Publisher;
use weft_control_plane::replicas::ask::{Replica, Replicas};

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").expect("valid")
}

fn name(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

/// What a control plane has that shares the mesh's authority.
fn own_svid(mesh: &Mesh) -> Svid {
    let store = Store::open_or_create(&mesh.state()).expect("opened");
    let authority = store.self_signed_authority(&domain(), SystemTime::now()).expect("an authority");
    own::issue(&authority, &control_plane_id(&domain()), Duration::from_secs(600), SystemTime::now()).expect("issued")
}

/// Another replica, which has no sidecar itself and knows of `mesh`.
fn replica_beside(mesh: &Mesh) -> Replicas {
    replica_that_knows(mesh, vec![Replica { name: "mesh".to_owned(), address: mesh.address }])
}

fn replica_that_knows(mesh: &Mesh, known: Vec<Replica>) -> Replicas {
    let metrics = Metrics::default();
    let audit = Arc::new(Audit::unwritten(metrics.clone()));
    let publisher = Publisher::new(Model::new(domain()), audit, metrics, SystemTime::now());
    // Receivers go on with the last value when their senders are gone.
    let (others, svid) = (watch::channel(known).1, watch::channel(own_svid(mesh)).1);
    Replicas::new(Arc::new(publisher), others, svid)
}

/// Asks until what `mesh` says of orders' sidecar is as it should be.
async fn until(replicas: &Replicas, fits: impl Fn(&SidecarReport) -> bool) -> Arc<Report> {
    let asking = async {
        loop {
            let reports = replicas.reports().await;
            assert_eq!(reports.silent, [""; 0]);
            if reports.reports[1].sidecars.get(&name("orders")).is_some_and(&fits) {
                return Arc::clone(&reports.reports[1]);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(common::LONG, asking).await.expect("orders' sidecar never was as expected")
}

async fn orders() -> (Mesh, Sidecar) {
    let mesh = Mesh::start(&[
        ("orders.yaml", &workload("orders", "10.0.0.1")),
        ("policy.yaml", &allow("callers", "orders", "users")),
    ])
    .await;
    let sidecar = mesh.sidecar(&mesh.svid("shop", "orders").await, "orders").await.expect("a stream");
    (mesh, sidecar)
}

#[tokio::test]
async fn a_replica_learns_what_the_sidecars_of_another_run() {
    let (mesh, mut sidecar) = orders().await;
    let replicas = replica_beside(&mesh);
    // It listens, and has not said that it applied anything.
    sidecar.receive().await.expect("an update");
    let report = until(&replicas, |row| row.connected).await;
    assert!(!report.sidecars[&name("orders")].current);
    sidecar.say(&SidecarMessage::Ack { version: sidecar.version, error: None }).await;
    let report = until(&replicas, |row| row.current).await;
    let policy = PolicyName { kind: "AuthorizationPolicy".to_owned(), name: name("callers") };
    let fingerprint = report.policies[&policy];

    // Nothing happened: the very report of before counts.
    let again = replicas.reports().await;
    assert!(Arc::ptr_eq(&again.reports[1], &report));

    mesh.write("policy.yaml", &allow("callers", "orders", "nobody"));
    sidecar.receive().await.expect("an update");
    let report = until(&replicas, |row| !row.current).await;
    assert_ne!(report.policies[&policy], fingerprint, "other content, other fingerprint");
    sidecar.say(&SidecarMessage::Ack { version: sidecar.version, error: Some("no".to_owned()) }).await;
    let report = until(&replicas, |row| row.error.is_some()).await;
    assert!(!report.sidecars[&name("orders")].current, "what was refused does not run");

    mesh.write("policy.yaml", &allow("callers", "orders", "users"));
    sidecar.next().await.expect("an update");
    let report = until(&replicas, |row| row.current).await;
    assert_eq!(report.policies[&policy], fingerprint, "the same content, the same fingerprint");
    drop(sidecar);
    until(&replicas, |row| !row.connected && row.disconnected_since.is_some()).await;
}

#[tokio::test]
async fn a_restarted_sidecar_does_not_run_what_its_predecessor_confirmed() {
    let (mesh, mut first) = orders().await;
    let replicas = replica_beside(&mesh);
    first.next().await.expect("an update");
    until(&replicas, |row| row.current).await;
    let mut second = mesh.sidecar(&mesh.svid("shop", "orders").await, "orders").await.expect("a stream");
    second.receive().await.expect("an update");
    until(&replicas, |row| row.connected && !row.current).await;
    second.say(&SidecarMessage::Ack { version: second.version, error: None }).await;
    until(&replicas, |row| row.current).await;
}

#[tokio::test]
async fn only_the_control_plane_s_own_identity_is_answered() {
    let (mesh, _sidecar) = orders().await;
    let sidecar = mesh.svid("shop", "orders").await;
    let own = own_svid(&mesh);
    for (case, svid, expected) in [
        ("nobody", None, Err(Code::PermissionDenied)),
        ("a sidecar", Some(&sidecar), Err(Code::PermissionDenied)),
        ("a replica", Some(&own), Ok(())),
    ] {
        let mut client = ReplicasClient::new(mesh.channel(svid).await);
        let answer = client.report(ReportRequest { revision: 0 }).await;
        assert_eq!(answer.map(drop).map_err(|status| status.code()), expected, "{case}");
    }
    // And no certificate makes a sidecar into a replica.
    let key = PrivateKey::generate();
    let refused = mesh.sign(Some(&own), None, key.certificate_request()).await;
    assert_eq!(refused.map(drop).map_err(|status| status.code()), Err(Code::Unauthenticated));
}

#[tokio::test]
async fn a_replica_that_does_not_answer_is_named_and_costs_two_seconds_at_most() {
    let (mesh, _sidecar) = orders().await;
    // One that is gone, and one that accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
    let at = |name: &str, address| Replica { name: name.to_owned(), address };
    let known =
        vec![at("gone", gone), at("mesh", mesh.address), at("silent", silent.local_addr().expect("an address"))];
    let replicas = replica_that_knows(&mesh, known);
    let reports = tokio::time::timeout(common::LONG, replicas.reports()).await.expect("an answer in time");
    assert_eq!(reports.silent, ["gone", "silent"]);
    assert_eq!(reports.reports.len(), 2, "its own, and that of the one that answers");
}

#[tokio::test]
async fn a_report_can_be_read_by_whoever_speaks_the_wire() {
    let (mesh, mut sidecar) = orders().await;
    sidecar.next().await.expect("an update");
    let mut client = ReplicasClient::new(mesh.channel(Some(&own_svid(&mesh))).await);
    let mut parts = client.report(ReportRequest { revision: 0 }).await.expect("a report").into_inner();
    let mut report = Report::default();
    while let Some(part) = parts.message().await.expect("a part") {
        assert_eq!(wire::decode_report_part(&mut report, part), Ok(true));
    }
    assert!(report.revision > 0 && report.sidecars.contains_key(&name("orders")));
}
