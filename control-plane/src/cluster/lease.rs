//! Which replica leads: the one that holds the Lease `weft-control-plane`. Only the leader writes what one alone may
//! write, such as the status of policies.
//!
//! The numbers and rules are those of Kubernetes' own components. A holder renews every two seconds and stops leading when
//! it could not for ten, by its own monotonic clock; another takes over when it has seen no change for fifteen, by its
//! own. So two never lead at once, however wrong their clocks are, and an API server that is away for long only means that
//! nobody leads. Who writes is settled by the API server: each write names the version that was read.
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Cluster;

/// Name of the Lease, in the control plane's namespace.
pub const LEASE: &str = "weft-control-plane";
/// Others take over when they have seen no renewal for so long.
const DURATION: Duration = Duration::from_secs(15);
/// The holder stops leading when it could not renew for so long.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts; up to a fifth more, so that replicas do not ask in step.
const RETRY: Duration = Duration::from_secs(2);
/// An attempt that takes longer is given up.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long giving the lease back may hold up stopping.
const RELEASE: Duration = Duration::from_secs(2);
/// What a Lease may say of its own duration and be believed.
const BELIEVED: std::ops::RangeInclusive<i32> = 1..=60;

/// Takes part in the election until `stop`; `leader` says whether this replica leads.
pub async fn run(cluster: Cluster, leader: watch::Sender<bool>, stop: CancellationToken) {
    let mut candidate = Candidate {
        leases: Api::namespaced(cluster.client.clone(), &cluster.namespace),
        cluster,
        observed: None,
        failing: false,
    };
    // While this replica leads: until when it may without another renewal.
    let mut until: Option<Instant> = None;
    loop {
        let asked = Instant::now();
        let give_up = until.map_or(asked + ATTEMPT, |until| until.min(asked + ATTEMPT));
        let attempt = tokio::time::timeout_at(give_up, candidate.attempt());
        let Some(attempt) = stop.run_until_cancelled(attempt).await else { break };
        match attempt {
            Ok(Ok(Some(true))) => until = Some(asked + RENEW_DEADLINE),
            Ok(Ok(Some(false))) => until = None,
            Ok(Ok(None)) => {}
            Ok(Err(fault)) => candidate.failed(&fault.to_string()),
            Err(_) => candidate.failed("the API server does not answer"),
        }
        let next = Instant::now() + RETRY.mul_f64(rand::rng().random_range(1.0..1.2));
        if let Some(end) = until
            && end <= next
        {
            if stop.run_until_cancelled(tokio::time::sleep_until(end)).await.is_none() {
                break;
            }
            until = None;
        }
        say(&leader, until.is_some(), &candidate.cluster.pod);
        if stop.run_until_cancelled(tokio::time::sleep_until(next)).await.is_none() {
            break;
        }
    }
    // Before it is given back: what this replica does as the leader ends first.
    say(&leader, false, &candidate.cluster.pod);
    if until.is_some() {
        let _ = tokio::time::timeout(RELEASE, candidate.release()).await;
    }
}

fn say(leader: &watch::Sender<bool>, leads: bool, pod: &str) {
    let changed = leader.send_if_modified(|known| std::mem::replace(known, leads) != leads);
    match (changed, leads) {
        (true, true) => tracing::info!(pod, "this replica leads: it writes the status of policies"),
        (true, false) => tracing::info!(pod, "this replica leads no longer"),
        (false, _) => {}
    }
}

struct Candidate {
    cluster: Cluster,
    leases: Api<Lease>,
    observed: Option<Observed>,
    failing: bool,
}

impl Candidate {
    /// Takes or renews the lease if that is this replica's to do. True: it holds the lease now. `None`: somebody wrote at
    /// the same time, so the next attempt will tell.
    async fn attempt(&mut self) -> Result<Option<bool>, kube::Error> {
        let found = self.leases.get_opt(LEASE).await?;
        self.failing = false;
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let (step, observed) = decide(&self.cluster.pod, spec.as_ref(), self.observed.take(), Instant::now());
        self.observed = observed;
        if step == Step::Wait {
            return Ok(Some(false));
        }
        let wanted = claim(&self.cluster.pod, spec.unwrap_or_default(), Timestamp::now());
        let written = match found {
            Some(found) => {
                // With its resourceVersion: if anybody wrote in between, this is refused.
                let lease = Lease { metadata: found.metadata, spec: Some(wanted) };
                self.leases.replace(LEASE, &PostParams::default(), &lease).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(LEASE.to_owned()),
                    owner_references: self.cluster.owner.clone().map(|owner| vec![owner]),
                    ..Default::default()
                };
                self.leases.create(&PostParams::default(), &Lease { metadata, spec: Some(wanted) }).await
            }
        };
        match written {
            Ok(_) => Ok(Some(true)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Gives the lease back, so that another replica need not wait.
    async fn release(&self) -> Result<(), kube::Error> {
        let Some(lease) = self.leases.get_opt(LEASE).await? else { return Ok(()) };
        let spec = lease.spec.unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.cluster.pod) {
            return Ok(());
        }
        let spec = LeaseSpec { holder_identity: Some(String::new()), lease_duration_seconds: Some(1), ..spec };
        let lease = Lease { metadata: lease.metadata, spec: Some(spec) };
        self.leases.replace(LEASE, &PostParams::default(), &lease).await.map(drop)
    }

    /// Logs the first failure of a row.
    fn failed(&mut self, fault: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                fault,
                "cannot read or write the Lease {LEASE}; until that is mended no replica may lead, and the status of \
                 policies is not written"
            );
        }
    }
}

/// What a lease said, and since when by our own clock.
#[derive(Clone, Debug, PartialEq)]
struct Observed {
    spec: LeaseSpec,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Write our name, or a new time beside it.
    Claim,
    /// It is another's.
    Wait,
}

/// What `me` is to do about the lease as it is `found` now. Times in it are another's clock and are not looked at.
fn decide(me: &str, found: Option<&LeaseSpec>, observed: Option<Observed>, now: Instant) -> (Step, Option<Observed>) {
    let Some(spec) = found else { return (Step::Claim, None) };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder.is_empty() || holder == me {
        return (Step::Claim, None);
    }
    let observed = observed
        .filter(|observed| observed.spec == *spec)
        .unwrap_or_else(|| Observed { spec: spec.clone(), since: now });
    let said = spec.lease_duration_seconds.filter(|seconds| BELIEVED.contains(seconds));
    let duration = said.map_or(DURATION, |seconds| Duration::from_secs(seconds.unsigned_abs().into()));
    let step = if now.duration_since(observed.since) >= duration { Step::Claim } else { Step::Wait };
    (step, Some(observed))
}

/// The lease with `me` as its holder.
fn claim(me: &str, before: LeaseSpec, now: Timestamp) -> LeaseSpec {
    let held = before.holder_identity.as_deref() == Some(me);
    let transitions = before.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: before.acquire_time.filter(|_| held).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if held { transitions } else { transitions.saturating_add(1) }),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use kube::client::Body;

    use super::*;

    fn spec(holder: &str, renewed: i64, seconds: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).expect("valid"))),
            lease_duration_seconds: Some(seconds),
            ..Default::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_it_is_ours_to_take() {
        let start = Instant::now();
        let seen = |spec: LeaseSpec, ago: u64| (spec, ago);
        let other = || spec("other", 1_000, 15);
        for (case, found, observed, expected) in [
            ("there is none", None, None, Step::Claim),
            ("it is ours", Some(spec("me", 1_000, 15)), None, Step::Claim),
            ("it was given back", Some(spec("", 1_000, 1)), None, Step::Claim),
            ("nobody ever held it", Some(LeaseSpec::default()), None, Step::Claim),
            ("another's, seen for the first time", Some(other()), None, Step::Wait),
            ("another's, seen just now", Some(other()), Some(seen(other(), 14)), Step::Wait),
            ("another's, unchanged for as long as it lasts", Some(other()), Some(seen(other(), 15)), Step::Claim),
            ("another's, renewed since", Some(spec("other", 1_002, 15)), Some(seen(other(), 15)), Step::Wait),
            ("a third one's since", Some(spec("third", 1_000, 15)), Some(seen(other(), 15)), Step::Wait),
            ("its clock is years behind", Some(spec("other", 0, 15)), Some(seen(other(), 99)), Step::Wait),
            ("its clock is years ahead", Some(spec("other", 9_000_000_000, 15)), None, Step::Wait),
            (
                "ahead, but not renewed",
                Some(spec("x", 9_000_000_000, 15)),
                Some(seen(spec("x", 9_000_000_000, 15), 15)),
                Step::Claim,
            ),
            ("it lasts shorter", Some(spec("x", 1, 5)), Some(seen(spec("x", 1, 5), 5)), Step::Claim),
            (
                "it says that it lasts for ever",
                Some(spec("x", 1, i32::MAX)),
                Some(seen(spec("x", 1, i32::MAX), 15)),
                Step::Claim,
            ),
            (
                "it says that it lasts less than nothing",
                Some(spec("x", 1, -1)),
                Some(seen(spec("x", 1, -1), 14)),
                Step::Wait,
            ),
        ] {
            let observed = observed.map(|(spec, ago)| Observed { spec, since: start + Duration::from_secs(100 - ago) });
            let (step, _) = decide("me", found.as_ref(), observed, start + Duration::from_secs(100));
            assert_eq!(step, expected, "{case}");
        }
    }

    #[test]
    fn a_renewal_keeps_when_it_was_acquired_and_a_takeover_counts() {
        let (then, now) =
            (Timestamp::from_second(1_000).expect("valid"), Timestamp::from_second(2_000).expect("valid"));
        let held =
            LeaseSpec { acquire_time: Some(MicroTime(then)), lease_transitions: Some(4), ..spec("me", 1_000, 15) };
        let renewed = claim("me", held.clone(), now);
        assert_eq!((renewed.acquire_time, renewed.lease_transitions), (Some(MicroTime(then)), Some(4)));
        assert_eq!(renewed.renew_time, Some(MicroTime(now)));
        let taken = claim("other", held, now);
        assert_eq!((taken.acquire_time, taken.lease_transitions), (Some(MicroTime(now)), Some(5)));
        assert_eq!(taken.holder_identity.as_deref(), Some("other"));
    }

    /// An API server that knows one Lease, and can be made to say nothing.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<Mutex<Option<serde_json::Value>>>,
        silent: Arc<AtomicBool>,
    }

    impl Server {
        fn cluster(&self, pod: &str) -> Cluster {
            let server = self.clone();
            let service = tower::service_fn(move |request: http::Request<Body>| server.clone().answer(request));
            Cluster {
                client: kube::Client::new(service, "weft-system"),
                namespace: "weft-system".to_owned(),
                pod: pod.to_owned(),
                service: LEASE.to_owned(),
                owner: None,
            }
        }

        async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Body>, std::io::Error> {
            if self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let writes = request.method() != http::Method::GET;
            let body = request.into_body().collect_bytes().await.map_err(std::io::Error::other)?;
            let mut lease = self.lease.lock().expect("not poisoned");
            let answer = |code: u16, body: &serde_json::Value| {
                let body = Body::from(body.to_string().into_bytes());
                Ok(http::Response::builder().status(code).body(body).expect("a response"))
            };
            if writes {
                let mut sent: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
                let version =
                    |lease: &serde_json::Value| lease["metadata"]["resourceVersion"].as_str().map(str::to_owned);
                if version(&sent) != lease.as_ref().and_then(version) {
                    return answer(
                        409,
                        &serde_json::json!({"kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict", "message": ""}),
                    );
                }
                let next = version(&sent).and_then(|version| version.parse::<u64>().ok()).unwrap_or(0) + 1;
                sent["metadata"]["resourceVersion"] = next.to_string().into();
                *lease = Some(sent);
            }
            match &*lease {
                Some(lease) => answer(200, lease),
                None => answer(
                    404,
                    &serde_json::json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""}),
                ),
            }
        }

        fn holder(&self) -> String {
            let lease = self.lease.lock().expect("not poisoned");
            lease
                .as_ref()
                .map(|lease| lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
                .unwrap_or_default()
        }
    }

    struct Running {
        leads: watch::Receiver<bool>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    fn start(server: &Server, pod: &str) -> Running {
        let (leader, leads) = watch::channel(false);
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(server.cluster(pod), leader, stop.clone()));
        Running { leads, stop, task }
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_two_leads_and_the_other_follows_at_once_when_it_stops() {
        let server = Server::default();
        let mut first = start(&server, "first");
        first.leads.wait_for(|leads| *leads).await.expect("leads");
        let mut second = start(&server, "second");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(*first.leads.borrow() && !*second.leads.borrow());
        first.stop.cancel();
        first.task.await.expect("ended");
        assert!(!*first.leads.borrow());
        assert_eq!(server.holder(), "");
        let before = Instant::now();
        second.leads.wait_for(|leads| *leads).await.expect("leads");
        assert!(before.elapsed() <= RETRY.mul_f64(1.2), "{:?}", before.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_leader_is_followed_when_its_lease_has_run_out() {
        let server = Server::default();
        let mut first = start(&server, "first");
        first.leads.wait_for(|leads| *leads).await.expect("leads");
        let mut second = start(&server, "second");
        tokio::time::sleep(Duration::from_secs(1)).await;
        first.task.abort();
        let before = Instant::now();
        second.leads.wait_for(|leads| *leads).await.expect("leads");
        let waited = before.elapsed();
        assert!(waited >= DURATION - RETRY.mul_f64(1.2) && waited <= DURATION + 2 * RETRY, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_renew_stops_leading_before_anybody_else_may() {
        let server = Server::default();
        let mut first = start(&server, "first");
        first.leads.wait_for(|leads| *leads).await.expect("leads");
        server.silent.store(true, Ordering::SeqCst);
        let before = Instant::now();
        first.leads.wait_for(|leads| !*leads).await.expect("stops leading");
        assert!(before.elapsed() <= RENEW_DEADLINE, "{:?}", before.elapsed());
        server.silent.store(false, Ordering::SeqCst);
        first.leads.wait_for(|leads| *leads).await.expect("leads again when the API server is back");
    }
}
