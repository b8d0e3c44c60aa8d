//! Each promise, observed by real calls and by what the sidecars themselves tell of them.
//!
//! A check returns what it saw. Whatever it did not see is an error that says why, with the log lines of those who
//! could know; no check may assume anything.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use serde_json::Value;
use weft_loadtests::lab::{Frames, Signal};
use weft_loadtests::load::{Plan, Report};
use weft_loadtests::mesh::{MeshPod, sum_of};

use super::Interrupt;
use super::apps::{INVENTORY, ORDERS, PORT};
use super::observe::Reading;
use super::resources::{DELETE_POLICY, IDENTITY_PREFIX, LIMIT_POLICY, report_readers};
use super::shop::{CERTIFICATE_LIFETIME, Load, Shop, failures};

/// How long something may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// The sidecar's port for what enters the pod.
const INBOUND_PORT: u16 = 4243;
/// How long the control plane is away. Certificates are renewed with at least a third of their life left, that is 4 s.
const OUTAGE: Duration = Duration::from_secs(3);
/// What every certificate shall have left when the control plane goes: the outage, and time to be served after it.
const ENOUGH_LIFE: f64 = 6.5;
/// The stranger's pod has no sidecar, so its marker must be on the wire: it proves that the capture sees.
const SEEN_MARKER: &str = "the-stranger-speaks-in-the-clear";

/// Polls until `condition` gives something.
fn wait_for<T>(
    interrupt: &Interrupt,
    patience: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = condition()? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        interrupt.sleep(Duration::from_millis(50))?;
    }
}

/// The identities of both ends, as the callee's sidecar tells its application.
fn ends<'a>(answer: &'a Value, whose: &str) -> Result<(&'a str, &'a str)> {
    let proof = answer["caller"].as_str().with_context(|| format!("{whose} was told no caller: {answer}"))?;
    let field = |name: &str| proof.split(';').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    field("URI").zip(field("By")).with_context(|| format!("{whose} was told `{proof}`, without URI and By"))
}

/// An order reaches users and inventory by mutual TLS, as orders.
pub(crate) fn mutual_tls(shop: &Shop, marker: &str, identities: &mut BTreeMap<String, String>) -> Result<String> {
    let orders = shop.pod("orders");
    let path = format!("/orders/{marker}");
    let answer = shop.ask(&orders.pod, Method::GET, &format!("127.0.0.1:{PORT}"), &path)?;
    let answer = answer.map_err(anyhow::Error::msg)?;
    ensure!(answer.status == 200, "an order got {} {}\n{}", answer.status, answer.body, shop.logs(&["orders"]));
    let order: Value = serde_json::from_str(&answer.body)?;
    for (part, callee) in [("user", "users"), ("stock", "inventory")] {
        let (caller, own) = ends(&order[part], callee)?;
        ensure!(caller == format!("{IDENTITY_PREFIX}orders"), "{callee} was called by {caller}");
        ensure!(own == format!("{IDENTITY_PREFIX}{callee}"), "orders called {own} instead of {callee}");
        identities.insert("orders".to_owned(), caller.to_owned());
        identities.insert(callee.to_owned(), own.to_owned());
    }
    let mut secured = 0.0;
    for (pod, direction, other) in [("orders", "outbound", None), ("users", "inbound", Some("source=\"orders\""))] {
        let metrics = shop.pod(pod).metrics()?;
        let labels: Vec<String> =
            [Some(format!("direction=\"{direction}\"")), other.map(str::to_owned)].into_iter().flatten().collect();
        let count = |tls: &str| {
            let labels = labels.iter().map(String::as_str).chain([tls]).collect::<Vec<_>>();
            sum_of(&metrics, "weft_requests_total", &labels)
        };
        let (with, without) = (count("tls=\"true\""), count("tls=\"false\""));
        ensure!(with > 0.0, "the sidecar of {pod} counts no {direction} request with mutual TLS");
        ensure!(without == 0.0, "the sidecar of {pod} counts {without} {direction} requests without mutual TLS");
        secured += with;
    }
    Ok(format!(
        "users and inventory were called by {IDENTITY_PREFIX}orders; {secured:.0} requests counted with TLS, 0 without"
    ))
}

/// The marker of all orders was not seen on the wire, where the stranger's was.
pub(crate) fn no_plaintext(shop: &Shop, frames: &Frames, marker: &str) -> Result<String> {
    let orders = &shop.pod("orders").pod;
    let between = |other: &MeshPod| {
        let pairs = orders.addresses().iter().flat_map(|one| other.pod.addresses().iter().map(move |two| (*one, *two)));
        pairs.map(|(one, two)| frames.between(one, two).len()).sum::<usize>()
    };
    let (users, inventory) = (between(shop.pod("users")), shop.inventory().map(between).sum::<usize>());
    ensure!(users > 0 && inventory > 0, "captured {users} frames between orders and users, {inventory} to inventory");
    ensure!(frames.contains(SEEN_MARKER), "the capture did not even see the stranger's plaintext");
    for secret in [marker, "x-forwarded-client-cert", "HTTP/1.1 200"] {
        ensure!(!frames.contains(secret), "`{secret}` crossed the wire in the clear");
    }
    Ok(format!(
        "the marker that every order carries is in none of {users} frames to users and {inventory} to inventory"
    ))
}

/// Neither the application's port nor the sidecar's serves who has no identity.
pub(crate) fn stranger(shop: &Shop, interrupt: &Interrupt) -> Result<String> {
    let inventory = shop.pod("inventory-1");
    let port = |port: u16| inventory.pod.address(port).to_string();
    let stranger = &shop.stranger.pod;
    let application = match shop.ask(stranger, Method::GET, &port(PORT), &format!("/stock/{SEEN_MARKER}"))? {
        Ok(answer) if answer.status == 403 => format!("403 ({})", answer.body.trim()),
        Ok(answer) => bail!("the stranger got {} {} from inventory", answer.status, answer.body.trim()),
        Err(fault) if fault.contains("no answer within") => {
            bail!("the stranger was not refused but left waiting: {fault}")
        }
        Err(fault) => format!("a refusal ({fault})"),
    };
    let sidecar = match shop.ask(stranger, Method::GET, &port(INBOUND_PORT), "/stock/1")? {
        Ok(answer) => bail!("the sidecar's own port answered the stranger: {} {}", answer.status, answer.body.trim()),
        Err(fault) if fault.contains("no answer within") => bail!("the sidecar's own port left the stranger waiting"),
        Err(fault) => fault,
    };
    // The sidecar's account of it: one line for each of the two.
    let addresses: Vec<String> = stranger.addresses().iter().map(ToString::to_string).collect();
    let told = wait_for(interrupt, PATIENCE, || {
        let log = inventory.sidecar()?.stdout();
        let about = |outcome: &str| {
            let line =
                |line: &str| line.contains(outcome) && addresses.iter().any(|address| line.contains(address.as_str()));
            log.lines().any(line)
        };
        Ok((about("\"denied\"") && about("\"refused\"")).then_some(()))
    })?;
    told.with_context(|| format!("the sidecar did not log both refusals\n{}", shop.logs(&["inventory-1"])))?;
    Ok(format!("inventory's port: {application}; its sidecar's port: {sidecar}; both are in the sidecar's log"))
}

/// A DELETE by orders is refused by the policy that forbids it.
pub(crate) fn forbidden(shop: &Shop) -> Result<String> {
    let denials = || -> Result<f64> {
        let policy = format!("policy=\"shop/{DELETE_POLICY}\"");
        let count = |pod: &MeshPod| pod.metric("weft_authorization_decisions_total", &["decision=\"deny\"", &policy]);
        shop.inventory().map(count).sum()
    };
    let before = denials()?;
    let answer =
        shop.ask(&shop.pod("orders").pod, Method::DELETE, INVENTORY, "/stock/1")?.map_err(anyhow::Error::msg)?;
    ensure!(answer.status == 403, "DELETE /stock/1 got {} {}", answer.status, answer.body.trim());
    ensure!(answer.body.contains(DELETE_POLICY), "the 403 does not name the policy: {}", answer.body.trim());
    let after = denials()?;
    ensure!(
        after > before,
        "the metrics do not count the refusal under {DELETE_POLICY}: {before} before, {after} after"
    );
    Ok(format!("DELETE /stock/1 by orders got 403: {}", answer.body.trim()))
}

/// Users calls orders more often than it may; inventory, which has a budget of its own, and the load go on.
pub(crate) fn burst(shop: &Shop, load: &Load, interrupt: &Interrupt) -> Result<String> {
    let before = load.so_far();
    let url: http::Uri = format!("http://{ORDERS}/health").parse()?;
    let report = shop.pod("users").pod.run(move || async move {
        let load = Plan::get(url).connections(4).start()?;
        let deadline = Instant::now() + PATIENCE;
        while load.report().status(429) < 20 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(load.stop().await)
    })??;
    let other = shop.ask(&shop.pod("inventory-1").pod, Method::GET, ORDERS, "/health")?;
    shop.count(|requests| {
        report.by_status.iter().for_each(|(status, count)| requests.add(*status, *count));
        requests.failed += report.failed();
    });
    let [ok, limited] = [200, 429].map(|status| report.status(status));
    ensure!(limited > 0, "no call of the burst was limited: {report}");
    ensure!(
        ok > 0 && ok + limited == report.answered() && report.failed() == 0,
        "the burst met other faults: {report}\n{}",
        shop.logs(&["users", "orders"])
    );
    let policy = format!("policy=\"shop/{LIMIT_POLICY}\"");
    let counted = shop.pod("orders").metric("weft_rate_limit_decisions_total", &["decision=\"limit\"", &policy])?;
    ensure!(counted >= limited as f64, "{limited} calls were limited, the metrics count {counted}");
    let other = other.map_err(|fault| anyhow::anyhow!("meanwhile a call by inventory failed: {fault}"))?;
    ensure!(other.status == 200, "meanwhile a call by inventory got {} {}", other.status, other.body.trim());
    unharmed(shop, load, &before, interrupt)?;
    Ok(format!(
        "{limited} of {} calls by users got 429 from {LIMIT_POLICY}; a call by inventory got 200, and no order failed",
        report.answered()
    ))
}

/// The load made progress since `before`, without a failure.
fn unharmed(shop: &Shop, load: &Load, before: &Report, interrupt: &Interrupt) -> Result<u64> {
    let progress = wait_for(interrupt, PATIENCE, || {
        let more = load.so_far().status(200).saturating_sub(before.status(200));
        Ok((more > 0).then_some(more))
    })?;
    let now = load.so_far();
    let failed = failures(&now) - failures(before);
    ensure!(
        failed == 0,
        "{failed} orders failed meanwhile\n{}",
        shop.logs(&["orders", "users", "inventory-1", "inventory-2"])
    );
    progress.with_context(|| format!("no order succeeded meanwhile\n{}", shop.logs(&["orders"])))
}

/// Orders may read reports once the policy says so, and no longer once it says otherwise.
pub(crate) fn policy_edit(shop: &Shop, interrupt: &Interrupt) -> Result<String> {
    let status = || -> Result<u16> {
        let answer = shop.ask(&shop.pod("orders").pod, Method::GET, INVENTORY, "/reports/today")?;
        Ok(answer.map_err(anyhow::Error::msg)?.status)
    };
    let first = status()?;
    ensure!(first == 403, "before the edit GET /reports/today got {first}, not 403");
    let mut took = Vec::new();
    for (reader, wanted) in [("orders", 200), ("auditors", 403)] {
        let edited = Instant::now();
        shop.mesh.write("reports.yaml", &report_readers(reader))?;
        // Both replicas must know: they are asked in turn or at random.
        let mut in_a_row = 0;
        let settled = wait_for(interrupt, PATIENCE, || {
            let status = status()?;
            ensure!(matches!(status, 200 | 403), "GET /reports/today got {status}");
            in_a_row = if status == wanted { in_a_row + 1 } else { 0 };
            Ok((in_a_row == 6).then_some(()))
        })?;
        let logs = || shop.control_plane_log() + &shop.logs(&["inventory-1", "inventory-2"]);
        settled.with_context(|| {
            format!("after the edit to `{reader}` there was no {wanted} within {PATIENCE:?}\n{}", logs())
        })?;
        took.push(edited.elapsed().as_millis());
    }
    Ok(format!(
        "GET /reports/today by orders: 403, allowed {} ms after an edit, 403 again {} ms after the next",
        took[0], took[1]
    ))
}

/// The control plane is killed, is away for some seconds, and comes back.
pub(crate) fn control_plane_away(shop: &mut Shop, load: &Load, interrupt: &Interrupt) -> Result<String> {
    let enough = wait_for(interrupt, CERTIFICATE_LIFETIME, || {
        let now = seconds_now();
        let left = readings(shop)?.iter().map(|reading| reading.expiry - now).fold(f64::INFINITY, f64::min);
        Ok((left >= ENOUGH_LIFE).then_some(()))
    })?;
    enough.with_context(|| format!("no moment when all certificates had {ENOUGH_LIFE} s left: renewal is late"))?;
    let before = load.so_far();
    let gone = Instant::now();
    shop.mesh.control_plane().context("there is no control plane")?.signal(Signal::SIGKILL);
    drop(shop.mesh.take_control_plane());
    let noticed = wait_for(interrupt, OUTAGE, || {
        Ok(readings(shop)?.iter().all(|reading| !reading.connected).then(|| gone.elapsed()))
    })?;
    interrupt.sleep(OUTAGE.saturating_sub(gone.elapsed()))?;
    let during = load.so_far().status(200).saturating_sub(before.status(200));
    shop.mesh.start_control_plane().context("the control plane did not start again")?;
    let away = gone.elapsed();
    let back = wait_for(interrupt, PATIENCE, || {
        Ok(readings(shop)?.iter().all(|reading| reading.connected).then(|| gone.elapsed() - away))
    })?;
    noticed.context("not every sidecar noticed that the control plane was away")?;
    ensure!(during > 0, "no order succeeded while the control plane was away\n{}", shop.logs(&["orders"]));
    let logs = || shop.logs(&["orders", "users", "inventory-1", "inventory-2"]);
    let back = back.with_context(|| format!("not every sidecar came back to the control plane\n{}", logs()))?;
    unharmed(shop, load, &before, interrupt)?;
    Ok(format!(
        "{during} orders succeeded and none failed in {:.1} s without a control plane; all sidecars were back {:.1} s after it",
        away.as_secs_f64(),
        back.as_secs_f64()
    ))
}

/// Every sidecar's certificate now, and how many it has had.
pub(crate) fn readings(shop: &Shop) -> Result<Vec<Reading>> {
    let read = |pod: &Arc<MeshPod>| {
        let logs = || format!("the sidecar of {0} does not answer\n{1}", pod.spec.name, shop.logs(&[&pod.spec.name]));
        Reading::take(pod).with_context(logs)
    };
    shop.meshed.iter().map(read).collect()
}

/// How many renewals each sidecar must show in a load of this length: renewal is due after two thirds of the lifetime
/// at the latest, and the outage may hold one up.
pub(crate) fn renewals_due(duration: Duration) -> f64 {
    let longest = CERTIFICATE_LIFETIME.mul_f64(2.0 / 3.0);
    (duration.saturating_sub(OUTAGE).as_secs_f64() / longest.as_secs_f64()).floor().max(1.0)
}

/// Renewals of each sidecar since `before`.
pub(crate) fn renewals_since(shop: &Shop, before: &[Reading]) -> Result<Vec<f64>> {
    Ok(readings(shop)?.iter().zip(before).map(|(now, before)| now.renewals - before.renewals).collect())
}

/// Every sidecar has had new certificates, each of a short life, and no order has failed in all that time.
pub(crate) fn renewal(shop: &Shop, before: &[Reading], due: f64, report: &Report) -> Result<String> {
    let (mut told, now) = (Vec::new(), seconds_now());
    for ((pod, before), after) in shop.meshed.iter().zip(before).zip(readings(shop)?) {
        let (name, renewals, left) = (&pod.spec.name, after.renewals - before.renewals, after.expiry - now);
        ensure!(renewals >= due, "{name} renewed {renewals} times, not {due}\n{}", shop.logs(&[name]));
        ensure!(after.expiry > before.expiry, "{name} still has the certificate of the beginning");
        ensure!(left <= CERTIFICATE_LIFETIME.as_secs_f64() + 1.0, "{name} has a certificate for {left:.0} s");
        told.push(format!("{name} {renewals}"));
    }
    let failed = failures(report);
    let pods = ["orders", "users", "inventory-1", "inventory-2"];
    ensure!(
        failed == 0,
        "{failed} of {} orders failed: {report}\n{}",
        report.answered() + report.failed(),
        shop.logs(&pods)
    );
    ensure!(report.status(200) > 0, "there was no load");
    let lifetime = CERTIFICATE_LIFETIME.as_secs();
    Ok(format!("certificates of {lifetime} s, renewals: {}; {} orders, 0 failed", told.join(", "), report.status(200)))
}

fn seconds_now() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

/// A word that appears nowhere else.
pub(crate) fn marker() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("marker-{:016x}", RandomState::new().hash_one(0))
}
