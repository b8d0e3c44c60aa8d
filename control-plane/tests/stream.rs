//! What a sidecar is told, when, and what it never sees.
mod common;

use common::{LONG, Mesh, Sidecar, allow, workload};
use tonic::Code;
use weft_api::resource::NamespacedName;
use weft_api::wire::SidecarMessage;
use weft_api::workload::WorkloadConfig;

fn name(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

fn endpoints(config: &WorkloadConfig, service: &str) -> usize {
    config.services[&name(service)].ports.iter().map(|port| port.endpoints.len()).sum()
}

fn policies(config: &WorkloadConfig) -> Vec<String> {
    config.inbound.policy.policies().iter().map(|policy| policy.name().name.clone()).collect()
}

async fn orders_and_users() -> Mesh {
    Mesh::start(&[("orders.yaml", &workload("orders", "10.0.0.1")), ("users.yaml", &workload("users", "10.0.0.2"))])
        .await
}

async fn connect(mesh: &Mesh, account: &str) -> (Sidecar, WorkloadConfig) {
    let mut sidecar = mesh.sidecar(&mesh.svid("shop", account).await, account).await.expect("a stream");
    let config = sidecar.next().await.expect("a first update");
    (sidecar, config)
}

#[tokio::test]
async fn the_first_update_is_whole() {
    let mesh = orders_and_users().await;
    let mut sidecar = mesh.sidecar(&mesh.svid("shop", "orders").await, "orders").await.expect("a stream");
    let update = sidecar.receive().await.expect("an update");
    assert!(update.full);
    assert_eq!(weft_api::wire::bundle(&update).expect("valid"), Some(mesh.bundle()));
    let config = sidecar.config.expect("applied");
    assert_eq!(config.inbound.services, [name("orders")]);
    assert_eq!(config.meshed_workloads.len(), 2);
    assert_eq!(endpoints(&config, "users"), 1);
}

#[tokio::test]
async fn nobody_hears_of_another_workload() {
    let mesh = orders_and_users().await;
    let svid = mesh.svid("shop", "orders").await;
    for (workload, expected) in
        [("users", Code::PermissionDenied), ("nobody", Code::NotFound), ("../users", Code::InvalidArgument)]
    {
        let refused = match mesh.sidecar(&svid, workload).await {
            Err(status) => status,
            Ok(mut sidecar) => sidecar.updates.message().await.expect_err("refused"),
        };
        assert_eq!(refused.code(), expected, "{workload}: {refused:?}");
    }
    let other_namespace = mesh.svid("attic", "orders").await;
    let refused = mesh.sidecar(&other_namespace, "orders").await.err().expect("refused");
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
}

#[tokio::test]
async fn without_a_certificate_there_is_no_stream() {
    use weft_api::wire::proto::discovery_client::DiscoveryClient;
    let mesh = orders_and_users().await;
    let (_say, said) = tokio::sync::mpsc::channel(1);
    let mut client = DiscoveryClient::new(mesh.channel(None).await);
    let refused = client.stream(tokio_stream::wrappers::ReceiverStream::new(said)).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_edited_file_reaches_the_stream_as_a_difference() {
    let mesh = orders_and_users().await;
    let (mut sidecar, config) = connect(&mesh, "orders").await;
    assert_eq!(policies(&config), [""; 0]);
    mesh.write("policy.yaml", &allow("callers", "orders", "users"));
    let update = sidecar.receive().await.expect("an update");
    assert!(!update.full && update.services.is_empty() && update.meshed_workloads.is_none(), "{update:?}");
    assert_eq!(policies(&sidecar.config.expect("applied")), ["callers"]);
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_reported_until_it_is_mended() {
    let mesh = orders_and_users().await;
    mesh.write("policy.yaml", &allow("callers", "orders", "users"));
    let (mut sidecar, config) = connect(&mesh, "orders").await;
    if policies(&config).is_empty() {
        sidecar.until(|config| policies(config) == ["callers"]).await;
    }

    mesh.write("policy.yaml", &allow("callers", "orders", "users").replace("action: Allow", "actoin: Allow"));
    let errors = mesh.until("/config/errors", |body| body.contains("actoin")).await;
    assert!(errors.contains("policy.yaml") && errors.contains("\"line\":"), "{errors}");
    let (_, metrics) = mesh.get("/metrics").await;
    assert!(metrics.contains("weft_config_errors 1"), "{metrics}");
    // A change of another file comes through, and brings no change of the policy.
    mesh.write("more.yaml", &workload("more", "10.0.0.3"));
    let config = sidecar.until(|config| config.services.contains_key(&name("more"))).await;
    assert_eq!(policies(&config), ["callers"]);

    mesh.write("policy.yaml", &allow("better", "orders", "users"));
    sidecar.until(|config| policies(config) == ["better"]).await;
    mesh.until("/config/errors", |body| body == "[]").await;
}

#[tokio::test]
async fn after_a_start_with_a_broken_file_nothing_is_told_until_it_is_mended() {
    let mesh =
        Mesh::start(&[("orders.yaml", &workload("orders", "10.0.0.1")), ("policy.yaml", "kind: AuthorizationPolicy")])
            .await;
    let svid = mesh.svid("shop", "orders").await;
    let refused = mesh.sidecar(&svid, "orders").await.err().expect("refused");
    assert_eq!(refused.code(), Code::Unavailable);
    let reason = mesh.until("/ready", |body| body.contains("policy.yaml")).await;
    assert!(reason.starts_with("not ready"), "{reason}");

    mesh.write("policy.yaml", &allow("callers", "orders", "users"));
    mesh.until("/ready", |body| body == "ready\n").await;
    let (_, config) = connect(&mesh, "orders").await;
    assert_eq!(policies(&config), ["callers"]);
}

#[tokio::test]
async fn a_file_that_is_broken_over_a_restart_keeps_its_last_good_content() {
    let mut mesh = orders_and_users().await;
    mesh.write("policy.yaml", &allow("callers", "orders", "users"));
    mesh.write("gone.yaml", &allow("gone", "orders", "users"));
    let (mut sidecar, _) = connect(&mesh, "orders").await;
    sidecar.until(|config| policies(config) == ["callers", "gone"]).await;
    mesh.stop().await;
    mesh.write("policy.yaml", "kind: AuthorizationPolicy");
    std::fs::remove_file(mesh.resource("gone.yaml")).expect("removed");
    mesh.start_again().await;
    let (mut sidecar, config) = connect(&mesh, "orders").await;
    assert_eq!(policies(&config), ["callers"], "and what was deleted meanwhile is gone");
    let (_, errors) = mesh.get("/config/errors").await;
    assert!(errors.contains("policy.yaml"), "{errors}");
    mesh.write("policy.yaml", &allow("better", "orders", "users"));
    sidecar.until(|config| policies(config) == ["better"]).await;
}

#[tokio::test]
async fn a_draining_workload_is_left_out_until_it_is_back() {
    let mesh = orders_and_users().await;
    let (mut orders, config) = connect(&mesh, "orders").await;
    assert_eq!(endpoints(&config, "users"), 1);
    let (mut users, _) = connect(&mesh, "users").await;
    users.say(&SidecarMessage::Draining).await;
    let config = orders.until(|config| endpoints(config, "users") == 0).await;
    assert_eq!(config.meshed_workloads.len(), 2, "by its address it is still reached by mTLS only");
    drop(users);
    let (_users, _) = connect(&mesh, "users").await;
    orders.until(|config| endpoints(config, "users") == 1).await;
}

#[tokio::test]
async fn a_lost_stream_withdraws_nobody() {
    let mesh = orders_and_users().await;
    let (mut orders, _) = connect(&mesh, "orders").await;
    let (users, _) = connect(&mesh, "users").await;
    drop(users);
    mesh.until("/workloads", |body| body.contains("\"disconnected_for\":0") || body.contains("\"disconnected_for\":1"))
        .await;
    mesh.write("more.yaml", &workload("more", "10.0.0.3"));
    let config = orders.until(|config| config.services.contains_key(&name("more"))).await;
    assert_eq!(endpoints(&config, "users"), 1);
}

#[tokio::test]
async fn a_reader_that_is_slow_gets_the_latest_and_holds_up_nobody() {
    let mesh = orders_and_users().await;
    let (mut slow, _) = connect(&mesh, "orders").await;
    let (mut quick, _) = connect(&mesh, "users").await;
    for n in 0..20 {
        let service = format!("s{n}");
        mesh.write(&format!("{service}.yaml"), &workload(&service, &format!("10.0.1.{n}")));
        quick.until(|config| config.services.contains_key(&name(&service))).await;
    }
    let mut updates = 0;
    while !slow.config.as_ref().expect("applied").services.contains_key(&name("s19")) {
        slow.next().await.expect("an update");
        updates += 1;
    }
    assert_eq!(slow.config, {
        let mut same = quick.config.clone().expect("applied");
        same.inbound = slow.config.as_ref().expect("applied").inbound.clone();
        Some(same)
    });
    assert!(updates <= 20, "{updates}");
}

#[tokio::test]
async fn versions_go_up_over_a_restart() {
    let mut mesh = orders_and_users().await;
    let (sidecar, _) = connect(&mesh, "orders").await;
    let before = sidecar.version;
    drop(sidecar);
    mesh.restart().await;
    let (sidecar, _) = connect(&mesh, "orders").await;
    assert!(sidecar.version > before, "{} after {before}", sidecar.version);
}

#[tokio::test]
async fn the_status_shows_what_a_sidecar_confirmed_and_refused() {
    let mesh = orders_and_users().await;
    let (mut sidecar, _) = connect(&mesh, "orders").await;
    let confirmed = format!("\"confirmed\":{}", sidecar.version);
    let body = mesh.until("/workloads", |body| body.contains(&confirmed)).await;
    let rows: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&rows[0]["name"], &rows[0]["connected"]), (&"shop/orders".into(), &true.into()), "{body}");
    assert_eq!((&rows[1]["name"], &rows[1]["connected"]), (&"shop/users".into(), &false.into()), "{body}");

    mesh.write("policy.yaml", &allow("callers", "orders", "users"));
    let update = sidecar.receive().await.expect("an update");
    sidecar.say(&SidecarMessage::Ack { version: update.version, error: Some("no such field".to_owned()) }).await;
    mesh.until("/workloads", |body| body.contains("no such field") && body.contains(&confirmed)).await;
}

#[tokio::test]
async fn a_storm_of_acknowledgements_ends_that_stream_only() {
    let mesh = orders_and_users().await;
    let (mut storm, _) = connect(&mesh, "orders").await;
    let (mut calm, _) = connect(&mesh, "users").await;
    let ack = SidecarMessage::Ack { version: storm.version, error: None };
    let ack = weft_api::wire::encode_sidecar_message(&ack);
    while storm.say.send(ack.clone()).await.is_ok() {}
    let ended = tokio::time::timeout(LONG, storm.updates.message()).await.expect("in time").expect_err("ended");
    assert_eq!(ended.code(), Code::InvalidArgument, "{ended:?}");
    mesh.write("more.yaml", &workload("more", "10.0.0.3"));
    calm.until(|config| config.services.contains_key(&name("more"))).await;
}

#[tokio::test]
async fn a_stream_ends_when_its_workload_is_gone_or_another_account_has_it() {
    let mesh = orders_and_users().await;
    for (account, change, expected) in [
        ("users", None, Code::NotFound),
        (
            "orders",
            Some(workload("orders", "10.0.0.1").replace("serviceAccount: orders", "serviceAccount: other")),
            Code::PermissionDenied,
        ),
    ] {
        let (mut sidecar, _) = connect(&mesh, account).await;
        match change {
            Some(text) => mesh.write(&format!("{account}.yaml"), &text),
            None => std::fs::remove_file(mesh.resource(&format!("{account}.yaml"))).expect("removed"),
        }
        let ended = loop {
            match sidecar.next().await {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert_eq!(ended.code(), expected, "{account}: {ended:?}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_it_was_opened_with() {
    let second = std::time::Duration::from_secs(1);
    let mesh = Mesh::start_with(&[("orders.yaml", &workload("orders", "10.0.0.1"))], |settings| {
        (settings.certificate_lifetime, settings.shortest_lifetime) = (3 * second, second);
    })
    .await;
    let (mut sidecar, _) = connect(&mesh, "orders").await;
    let ended = sidecar.next().await.expect_err("ended");
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    connect(&mesh, "orders").await;
}

#[tokio::test]
async fn a_denied_identity_loses_its_stream_and_everybody_hears_of_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let denied = directory.path().join("denied.txt");
    std::fs::write(&denied, "").expect("written");
    let files = [("orders.yaml", &*workload("orders", "10.0.0.1")), ("users.yaml", &*workload("users", "10.0.0.2"))];
    let mesh = Mesh::start_with(&files, |settings| settings.denied_identities = Some(denied.clone())).await;
    let (mut orders, _) = connect(&mesh, "orders").await;
    let (mut users, _) = connect(&mesh, "users").await;
    let id = "spiffe://cluster.local/ns/shop/sa/orders";
    std::fs::write(&denied, id).expect("written");
    assert_eq!(orders.next().await.expect_err("ended").code(), Code::PermissionDenied);
    let config = users.next().await.expect("an update");
    assert_eq!(config.denied_identities.iter().map(ToString::to_string).collect::<Vec<_>>(), [id]);
    // A list that vanishes lets nobody in again.
    std::fs::remove_file(&denied).expect("removed");
    mesh.until("/config/errors", |body| body.contains("denied.txt")).await;
    let refused = mesh
        .sign(None, Some(&mesh.token("shop", "orders")), weft_certs::PrivateKey::generate().certificate_request())
        .await;
    assert_eq!(refused.expect_err("denied").code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_policy_that_applies_to_nothing_is_shown() {
    let mesh = orders_and_users().await;
    mesh.write("policy.yaml", &allow("misspelt", "ordesr", "users"));
    mesh.until("/config/idle-policies", |body| body == "[\"AuthorizationPolicy shop/misspelt\"]").await;
    mesh.write("policy.yaml", &allow("misspelt", "orders", "users"));
    mesh.until("/config/idle-policies", |body| body == "[]").await;
}

#[tokio::test]
async fn a_stopping_control_plane_says_so() {
    let mut mesh = orders_and_users().await;
    let (mut sidecar, _) = connect(&mesh, "orders").await;
    mesh.stop().await;
    let ended = sidecar.next().await.expect_err("ended");
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
}

#[tokio::test]
async fn only_loopback_names_see_the_mesh() {
    let mesh = orders_and_users().await;
    for (path, host, expected) in [
        ("/workloads", "127.0.0.1", 200),
        ("/workloads", "evil.test", 403),
        ("/config/errors", "evil.test", 403),
        ("/live", "evil.test", 200),
        ("/metrics/../workloads", "127.0.0.1", 404),
        ("//workloads", "127.0.0.1", 404),
        ("/shutdown", "127.0.0.1", 404),
    ] {
        assert_eq!(common::get(mesh.admin, path, host).await.0, expected, "{path} as {host}");
    }
}
