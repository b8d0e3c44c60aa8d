//! What the sidecars tell about themselves while the demo runs: metrics and log lines, read as an operator would.
//!
//! [`Board`] is what the view shows; the observer's thread writes it. It reads only: no check rests on the view.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_loadtests::load::Report;
use weft_loadtests::mesh::{MeshPod, sum_of};

use super::summary::Observation;

/// How often sidecars are asked.
const INTERVAL: Duration = Duration::from_millis(500);
/// Rates and latencies are those of about the last five seconds.
const READINGS: usize = 10;
const DECISIONS: usize = 8;

/// What one sidecar's metrics said at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// When.
    pub(crate) at: Instant,
    /// Requests that came in: all, refused by policy or limit, and failed.
    pub(crate) requests: [f64; 3],
    /// Upper bounds in seconds and how many requests took no longer.
    pub(crate) durations: Vec<(f64, f64)>,
    /// When the certificate expires, in seconds since 1970.
    pub(crate) expiry: f64,
    /// Certificates received so far.
    pub(crate) renewals: f64,
    /// Whether the control plane's stream stands.
    pub(crate) connected: bool,
    /// Processor seconds used.
    pub(crate) cpu: f64,
    /// Resident bytes.
    pub(crate) memory: f64,
}

impl Reading {
    /// Asks the sidecar of `pod`.
    pub(crate) fn take(pod: &MeshPod) -> anyhow::Result<Self> {
        Ok(Self::of(&pod.metrics()?))
    }

    fn of(text: &str) -> Self {
        let inbound = "direction=\"inbound\"";
        let with = |status: &str| sum_of(text, "weft_requests_total", &[inbound, &format!("status=\"{status}\"")]);
        let failed = ["none", "500", "502", "503", "504"].iter().map(|status| with(status)).sum();
        Self {
            at: Instant::now(),
            requests: [sum_of(text, "weft_requests_total", &[inbound]), with("403") + with("429"), failed],
            durations: buckets(text, "weft_request_duration_seconds_bucket", inbound),
            expiry: sum_of(text, "weft_certificate_expiry_timestamp_seconds", &[]),
            renewals: sum_of(text, "weft_certificate_renewals_total", &["result=\"success\""]),
            connected: sum_of(text, "weft_control_plane_connected", &[]) > 0.0,
            cpu: sum_of(text, "process_cpu_seconds_total", &[]),
            memory: sum_of(text, "process_resident_memory_bytes", &[]),
        }
    }
}

/// Sums of a histogram's buckets over all series with `label`, by upper bound.
fn buckets(text: &str, metric: &str, label: &str) -> Vec<(f64, f64)> {
    let mut sums: Vec<(f64, f64)> = Vec::new();
    for line in text.lines().filter(|line| line.starts_with(metric) && line.contains(label)) {
        let bound = line.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
        let bound = bound.and_then(|bound| bound.parse::<f64>().ok());
        let value = line.rsplit_once("} ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
        if let (Some(bound), Some(value)) = (bound, value) {
            match sums.iter_mut().find(|(other, _)| *other == bound) {
                Some((_, sum)) => *sum += value,
                None => sums.push((bound, value)),
            }
        }
    }
    sums.sort_by(|one, other| one.0.total_cmp(&other.0));
    sums
}

/// Golden signals of a service over the last seconds, summed over its sidecars.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Signals {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Of these, refused by policy or limit.
    pub(crate) refused: f64,
    /// Of these, failed.
    pub(crate) failed: f64,
    /// Milliseconds that half of the requests did not exceed (a bucket's upper bound).
    pub(crate) p50_ms: f64,
    /// Milliseconds that 99 of 100 did not exceed.
    pub(crate) p99_ms: f64,
    /// Share of one processor that the sidecars used.
    pub(crate) cpu: f64,
    /// Resident bytes of the sidecars.
    pub(crate) memory: f64,
}

/// What happened between the first and the last reading of each sidecar.
pub(crate) fn signals(sidecars: &[&VecDeque<Reading>]) -> Signals {
    let mut signals = Signals::default();
    let mut durations: Vec<(f64, f64)> = Vec::new();
    for readings in sidecars {
        let (Some(first), Some(last)) = (readings.front(), readings.back()) else { continue };
        signals.memory += last.memory;
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        if seconds <= 0.0 {
            continue;
        }
        let rate = |index: usize| (last.requests[index] - first.requests[index]) / seconds;
        signals.rate += rate(0);
        signals.refused += rate(1);
        signals.failed += rate(2);
        signals.cpu += (last.cpu - first.cpu) / seconds;
        for (bound, count) in &last.durations {
            let before = first.durations.iter().find(|(other, _)| other == bound).map_or(0.0, |(_, count)| *count);
            match durations.iter_mut().find(|(other, _)| other == bound) {
                Some((_, sum)) => *sum += count - before,
                None => durations.push((*bound, count - before)),
            }
        }
    }
    signals.p50_ms = quantile(&durations, 0.5) * 1e3;
    signals.p99_ms = quantile(&durations, 0.99) * 1e3;
    signals
}

fn quantile(buckets: &[(f64, f64)], share: f64) -> f64 {
    let total = buckets.last().map_or(0.0, |(_, count)| *count);
    let reached = |(_, count): &&(f64, f64)| total > 0.0 && *count >= total * share;
    buckets.iter().find(reached).map_or(0.0, |(bound, _)| *bound)
}

/// A refusal, in words; equal ones are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Of the latest, `HH:MM:SS`.
    pub(crate) time: String,
    /// Where, what, who and why.
    pub(crate) text: String,
    /// How many there were.
    pub(crate) count: u64,
}

/// A sidecar on the board.
#[derive(Debug)]
pub(crate) struct Sidecar {
    /// The pod.
    pub(crate) pod: String,
    /// Its service.
    pub(crate) service: String,
    /// Oldest first.
    pub(crate) readings: VecDeque<Reading>,
    /// Log lines that were looked at.
    lines: usize,
}

/// All that the view shows.
#[derive(Debug)]
pub(crate) struct Board {
    /// When the load began.
    pub(crate) started: Instant,
    /// What is being shown.
    pub(crate) phase: String,
    /// One a meshed pod.
    pub(crate) sidecars: Vec<Sidecar>,
    /// The latest refusals, newest last.
    pub(crate) decisions: VecDeque<Decision>,
    /// Promises that were decided.
    pub(crate) promises: Vec<Observation>,
    /// The load so far.
    pub(crate) load: Report,
}

/// A board that threads share.
pub(crate) type SharedBoard = Arc<Mutex<Board>>;

/// The board, whatever became of the thread that had it before.
pub(crate) fn lock(board: &SharedBoard) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// An empty one.
    pub(crate) fn shared() -> SharedBoard {
        Arc::new(Mutex::new(Self {
            started: Instant::now(),
            phase: "starting".to_owned(),
            sidecars: Vec::new(),
            decisions: VecDeque::new(),
            promises: Vec::new(),
            load: Report::default(),
        }))
    }
}

impl Board {
    /// Adds a refusal to those of its kind, as the newest.
    fn decide(&mut self, mut decision: Decision) {
        if let Some(index) = self.decisions.iter().position(|other| other.text == decision.text) {
            decision.count += self.decisions.remove(index).map_or(0, |other| other.count);
        }
        self.decisions.push_back(decision);
        if self.decisions.len() > DECISIONS {
            self.decisions.pop_front();
        }
    }
}

/// The thread that fills the board; ends when dropped.
#[derive(Debug)]
pub(crate) struct Observer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Watches `pods`, all of which have a sidecar.
    pub(crate) fn start(pods: Vec<Arc<MeshPod>>, board: &SharedBoard) -> Self {
        let sidecar = |pod: &Arc<MeshPod>| Sidecar {
            pod: pod.spec.name.clone(),
            service: pod.spec.app.clone(),
            readings: VecDeque::new(),
            lines: 0,
        };
        lock(board).sidecars = pods.iter().map(sidecar).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, board) = (Arc::clone(&stop), Arc::clone(board));
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::SeqCst) {
                for (index, pod) in pods.iter().enumerate() {
                    look(pod, index, &board);
                }
                std::thread::sleep(INTERVAL);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look(pod: &MeshPod, index: usize, board: &SharedBoard) {
    let reading = Reading::take(pod).ok();
    let log = pod.sidecar().map(|sidecar| sidecar.stdout()).unwrap_or_default();
    let mut board = lock(board);
    let Some(sidecar) = board.sidecars.get_mut(index) else { return };
    if let Some(reading) = reading {
        sidecar.readings.push_back(reading);
        while sidecar.readings.len() > READINGS {
            sidecar.readings.pop_front();
        }
    }
    let lines = log.lines().skip(sidecar.lines);
    let fresh: Vec<Decision> = lines.filter_map(|line| decision(&pod.spec.name, line)).collect();
    sidecar.lines = log.lines().count();
    fresh.into_iter().for_each(|decision| board.decide(decision));
}

/// A refusal in an access log line, in words.
fn decision(pod: &str, line: &str) -> Option<Decision> {
    let line: Value = serde_json::from_str(line).ok()?;
    let text = |field: &str| line[field].as_str().unwrap_or_default();
    if text("kind") != "access" || !matches!(text("outcome"), "denied" | "limited" | "refused") {
        return None;
    }
    let time = text("time").get(11..19).unwrap_or_default();
    let caller = match (line["peer"].as_str(), line["peer_address"].as_str()) {
        (Some(identity), _) => identity.rsplit('/').next().unwrap_or(identity).to_owned(),
        (None, Some(address)) => address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned(),
        (None, None) => "somebody".to_owned(),
    };
    let why = [text("policy"), text("limit"), text("reason"), text("detail")];
    let why: Vec<&str> = why.into_iter().filter(|part| !part.is_empty()).collect();
    let said = [text("outcome"), &caller, text("method"), text("path")];
    let said: Vec<&str> = said.into_iter().filter(|part| !part.is_empty()).collect();
    let text = format!("{pod}: {} ({})", said.join(" "), why.join(", "));
    Some(Decision { time: time.to_owned(), text, count: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
weft_requests_total{direction=\"inbound\",source=\"orders\",tls=\"true\",status=\"200\"} 90
weft_requests_total{direction=\"inbound\",source=\"users\",tls=\"true\",status=\"429\"} 7
weft_requests_total{direction=\"outbound\",source=\"users\",tls=\"true\",status=\"503\"} 5
weft_request_duration_seconds_bucket{direction=\"inbound\",source=\"orders\",le=\"0.001\"} 50
weft_request_duration_seconds_bucket{direction=\"inbound\",source=\"orders\",le=\"0.01\"} 90
weft_request_duration_seconds_bucket{direction=\"inbound\",source=\"orders\",le=\"+Inf\"} 90
weft_certificate_renewals_total{result=\"success\"} 3
weft_certificate_renewals_total{result=\"failure\"} 1
weft_control_plane_connected 1
";

    #[test]
    fn golden_signals_are_those_of_the_time_between_two_readings() {
        let last = Reading::of(METRICS);
        assert_eq!((last.requests, last.renewals, last.connected), ([97.0, 7.0, 0.0], 3.0, true));
        let mut first = Reading::of("");
        first.at = last.at.checked_sub(Duration::from_secs(1)).expect("the machine has been up for a second");
        let signals = signals(&[&VecDeque::from([first, last])]);
        assert_eq!((signals.rate, signals.refused, signals.failed), (97.0, 7.0, 0.0));
        assert_eq!((signals.p50_ms, signals.p99_ms), (1.0, 10.0));
    }

    #[test]
    fn only_refusals_are_decisions() {
        let line = r#"{"time":"2026-11-22T03:04:05.678Z","kind":"access","outcome":"denied","peer":"spiffe://cluster.local/ns/shop/sa/orders","method":"DELETE","path":"/stock/1","policy":"shop/nobody","reason":"rule 1"}"#;
        let denied = decision("inventory-1", line).expect("it is a refusal");
        assert_eq!(denied.time, "03:04:05");
        assert_eq!(denied.text, "inventory-1: denied orders DELETE /stock/1 (shop/nobody, rule 1)");
        let board = Board::shared();
        [&denied, &denied].into_iter().for_each(|denied| lock(&board).decide(denied.clone()));
        assert_eq!(lock(&board).decisions, [Decision { count: 2, ..denied }]);
        assert_eq!(decision("inventory-1", &line.replace("denied", "forwarded")), None);
        assert_eq!(decision("inventory-1", "no JSON"), None);
    }
}
