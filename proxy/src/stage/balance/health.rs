//! What one worker has learnt of an endpoint: how fast it answers, how much is under way, whether it is ejected. Pure: the
//! clock is an argument.
//!
//! The latency estimate is a peak-sensitive moving average: it jumps up to a slow answer at once and decays. An ejected
//! endpoint gets nothing until its time is over, then one request as a probe: its answer ends the ejection, its failure
//! begins a longer one. A new or recovered endpoint gets its share of requests little by little.
use std::cell::Cell;
use std::time::{Duration, Instant};

/// In this time the influence of a latency falls to a third (1/e).
const DECAY: Duration = Duration::from_secs(2);
/// Below this, in seconds, answers are equally fast: what differs is scheduling, and whether a connection was kept. Otherwise
/// one handshake of 5 ms would starve an endpoint whose neighbour opens streams on kept connections in microseconds.
const LEAST_LATENCY: f64 = 1e-3;
/// The first ejection; each that follows is twice as long.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// The longest ejection: an endpoint that came back is used again within it.
const LONGEST_EJECTION: Duration = Duration::from_secs(8);
/// After so long without an ejection the next one is a first one again.
const FORGIVEN: Duration = Duration::from_secs(60);
/// In this time a new or recovered endpoint comes to its full share.
pub(super) const RAMP: Duration = Duration::from_secs(10);
/// The share with which it begins.
const FIRST_SHARE: f64 = 0.1;

/// Why an endpoint was ejected; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No connection to it could be made.
    Unreachable,
    /// It failed several times in a row, or far more often than its siblings.
    Failures,
    /// It answered far more slowly than its siblings, or not at all.
    Slow,
}

impl Reason {
    /// The word used in labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Failures => "failures",
            Self::Slow => "slow",
        }
    }
}

/// Whether an endpoint may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may.
    Open,
    /// Its ejection is over: one request may find out whether it serves again.
    Probe,
    /// It may not.
    Ejected,
}

#[derive(Debug)]
pub(super) struct Health {
    in_flight: Cell<u32>,
    /// Of those, the ones without an answer yet.
    waiting: Cell<u32>,
    /// Since when nothing was answered although somebody waits.
    silent_since: Cell<Instant>,
    /// Seconds; 0: nothing is known.
    estimate: Cell<f64>,
    estimated_at: Cell<Instant>,
    failures: Cell<u32>,
    ejected_until: Cell<Option<Instant>>,
    ejections: Cell<u32>,
    probing: Cell<bool>,
    /// From when on it comes to its share. `None`: it has it.
    ramp_from: Cell<Option<Instant>>,
    recovered_at: Cell<Option<Instant>>,
    pub(super) window: Window,
}

/// What happened since the last review, see [`super::review`].
#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) answers: Cell<u32>,
    pub(super) failures: Cell<u32>,
    pub(super) seconds: Cell<f64>,
}

impl Health {
    /// Of an endpoint that is seen for the first time; `new`: its siblings were there before it.
    pub(super) fn new(now: Instant, new: bool) -> Self {
        Self {
            in_flight: Cell::new(0),
            waiting: Cell::new(0),
            silent_since: Cell::new(now),
            estimate: Cell::new(0.0),
            estimated_at: Cell::new(now),
            failures: Cell::new(0),
            ejected_until: Cell::new(None),
            ejections: Cell::new(0),
            probing: Cell::new(false),
            ramp_from: Cell::new(new.then_some(now)),
            recovered_at: Cell::new(None),
            window: Window::default(),
        }
    }

    /// Failures since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures.get()
    }

    /// The latency that is to be expected, in seconds. `None`: nothing is known.
    pub(super) fn estimate(&self, now: Instant) -> Option<f64> {
        let estimate = self.estimate.get();
        let age = now.saturating_duration_since(self.estimated_at.get());
        (estimate > 0.0).then(|| estimate * decay(age))
    }

    /// What one request more would wait for: the estimate for itself and everything before it.
    pub(super) fn load(&self, now: Instant, unknown: f64) -> f64 {
        self.estimate(now).unwrap_or(unknown) * f64::from(self.in_flight.get() + 1)
    }

    pub(super) fn standing(&self, now: Instant) -> Standing {
        match self.ejected_until.get() {
            None => Standing::Open,
            Some(until) if now >= until && !self.probing.get() => Standing::Probe,
            Some(_) => Standing::Ejected,
        }
    }

    /// The part of its share that it gets now, 0 to 1.
    pub(super) fn share(&self, now: Instant) -> f64 {
        let Some(from) = self.ramp_from.get() else { return 1.0 };
        let age = now.saturating_duration_since(from);
        if age >= RAMP {
            self.ramp_from.set(None);
            return 1.0;
        }
        FIRST_SHARE + (1.0 - FIRST_SHARE) * age.as_secs_f64() / RAMP.as_secs_f64()
    }

    /// A request is on its way. True: as a probe.
    pub(super) fn begin(&self, now: Instant) -> bool {
        self.in_flight.set(self.in_flight.get() + 1);
        if self.waiting.replace(self.waiting.get() + 1) == 0 {
            self.silent_since.set(now);
        }
        let probe = self.standing(now) == Standing::Probe;
        if probe {
            self.probing.set(true);
        }
        probe
    }

    /// The request has its answer, or is known to get none.
    pub(super) fn settled(&self, now: Instant) {
        self.abandoned();
        self.silent_since.set(now);
    }

    /// Nobody waits for its answer any more.
    pub(super) fn abandoned(&self) {
        self.waiting.set(self.waiting.get() - 1);
    }

    /// Nothing of the request is under way any more.
    pub(super) fn end(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// A probe ended without telling anything: another may be made.
    pub(super) fn probe_lost(&self) {
        self.probing.set(false);
    }

    pub(super) fn succeeded(&self, now: Instant, latency: Duration) {
        // What was asked before an ejection tells how it was then.
        if self.recovered_at.get().is_some_and(|at| now.saturating_duration_since(at) < latency) {
            return;
        }
        self.failures.set(0);
        self.observe(now, latency);
        self.window.answers.set(self.window.answers.get() + 1);
        self.window.seconds.set(self.window.seconds.get() + latency.as_secs_f64());
    }

    /// Its probe was answered.
    pub(super) fn recover(&self, now: Instant) {
        self.probing.set(false);
        if self.ejected_until.take().is_some() {
            self.failures.set(0);
            self.recovered_at.set(Some(now));
            self.ramp_from.set(Some(now));
            self.estimate.set(0.0);
            self.window.forget();
        }
    }

    /// Counts a failure; returns how many there were in a row.
    pub(super) fn failed(&self) -> u32 {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        self.window.answers.set(self.window.answers.get() + 1);
        self.window.failures.set(self.window.failures.get() + 1);
        failures
    }

    /// Passes it over from now on, for longer each time.
    pub(super) fn eject(&self, now: Instant) {
        if self.recovered_at.get().is_some_and(|at| now.saturating_duration_since(at) > FORGIVEN) {
            self.ejections.set(0);
        }
        let doubled = FIRST_EJECTION.saturating_mul(1 << self.ejections.get().min(16));
        self.ejections.set(self.ejections.get().saturating_add(1));
        self.probing.set(false);
        self.ejected_until.set(Some(now + doubled.min(LONGEST_EJECTION)));
    }

    /// For how long it has answered nobody although so many wait.
    pub(super) fn silence(&self, now: Instant) -> (u32, Duration) {
        (self.waiting.get(), now.saturating_duration_since(self.silent_since.get()))
    }

    fn observe(&self, now: Instant, latency: Duration) {
        let latency = latency.as_secs_f64().max(LEAST_LATENCY);
        let age = now.saturating_duration_since(self.estimated_at.get());
        let old = self.estimate.get();
        // Up at once, down by and by.
        let weight = decay(age);
        let new = if latency > old * weight || old == 0.0 { latency } else { old * weight + latency * (1.0 - weight) };
        self.estimate.set(new);
        self.estimated_at.set(now);
    }
}

impl Window {
    pub(super) fn forget(&self) {
        self.answers.set(0);
        self.failures.set(0);
        self.seconds.set(0.0);
    }

    /// Mean latency of what succeeded, in seconds; `None`: too little to tell.
    pub(super) fn mean(&self, least: u32) -> Option<f64> {
        let good = self.answers.get() - self.failures.get();
        (good >= least).then(|| self.seconds.get() / f64::from(good))
    }
}

fn decay(age: Duration) -> f64 {
    if age.is_zero() { 1.0 } else { (-age.as_secs_f64() / DECAY.as_secs_f64()).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_estimate_jumps_up_at_once_and_comes_down_by_and_by() {
        let start = Instant::now();
        let health = Health::new(start, false);
        assert_eq!(health.estimate(start), None);
        health.succeeded(start, 10 * MS);
        health.succeeded(start, 200 * MS);
        let estimate = |after: Duration| health.estimate(start + after).expect("known");
        assert!((estimate(Duration::ZERO) - 0.2).abs() < 1e-9);
        assert!((estimate(DECAY) - 0.2 / std::f64::consts::E).abs() < 1e-9, "it decays without traffic");
        health.succeeded(start + DECAY, 10 * MS);
        let now = estimate(DECAY);
        assert!(now > 0.05 && now < 0.1, "one fast answer does not undo a slow one: {now}");
    }

    #[test]
    fn an_answer_to_what_was_asked_before_an_ejection_says_nothing_of_now() {
        let start = Instant::now();
        let health = Health::new(start, false);
        health.eject(start);
        health.recover(start + 2 * FIRST_EJECTION);
        let now = start + 3 * FIRST_EJECTION;
        health.succeeded(now, 2 * FIRST_EJECTION);
        assert_eq!(health.estimate(now), None, "it would be passed over for what is long mended");
        health.succeeded(now, 10 * MS);
        assert!((health.estimate(now).expect("known") - 0.01).abs() < 1e-9);
    }

    #[test]
    fn one_handshake_keeps_streams_away_for_seconds_only_from_an_endpoint_beside_one_with_kept_connections() {
        let start = Instant::now();
        let (new, kept) = (Health::new(start, false), Health::new(start, false));
        new.succeeded(start, 5 * MS);
        for tenth in 0..=50 {
            kept.succeeded(start + tenth * 100 * MS, Duration::from_micros(10));
        }
        assert!(kept.load(start, 0.0) < new.load(start, 0.0));
        let later = start + 50 * 100 * MS;
        assert!(new.load(later, 0.0) < kept.load(later, 0.0), "it is tried again");
    }

    #[test]
    fn load_is_the_estimate_for_all_that_is_under_way_and_one_more() {
        let start = Instant::now();
        let health = Health::new(start, false);
        health.succeeded(start, 10 * MS);
        health.begin(start);
        health.begin(start);
        assert!((health.load(start, 0.0) - 0.03).abs() < 1e-9);
        health.settled(start);
        health.end();
        assert!((health.load(start, 0.0) - 0.02).abs() < 1e-9);
        assert!((Health::new(start, false).load(start, 7.0) - 7.0).abs() < 1e-9, "unknown: as told");
    }

    #[test]
    fn an_ejection_ends_by_one_probe_and_grows_while_probes_fail() {
        let start = Instant::now();
        let health = Health::new(start, false);
        let (mut now, mut lengths) = (start, Vec::new());
        for _ in 0..6 {
            health.eject(now);
            let from = now;
            while health.standing(now) == Standing::Ejected {
                now += 100 * MS;
            }
            lengths.push((now - from).as_millis());
            assert_eq!(health.standing(now), Standing::Probe);
            assert!(health.begin(now), "the first is the probe");
            assert_eq!(health.standing(now), Standing::Ejected, "and nobody else gets through meanwhile");
            assert!(!health.begin(now));
            health.end();
            health.end();
        }
        assert_eq!(lengths, [1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
        health.probe_lost();
        assert_eq!(health.standing(now), Standing::Probe, "a probe that told nothing is made again");
        health.recover(now);
        assert_eq!(health.standing(now), Standing::Open);
        health.eject(now + FORGIVEN * 2);
        assert_eq!(health.standing(now + FORGIVEN * 2 + FIRST_EJECTION), Standing::Probe, "an old sin is forgiven");
    }

    #[test]
    fn a_new_or_recovered_endpoint_comes_to_its_share_little_by_little() {
        let start = Instant::now();
        assert!((Health::new(start, false).share(start) - 1.0).abs() < 1e-9, "one that was there before us has it");
        let health = Health::new(start, true);
        for (after, expected) in [(0, 0.1), (5, 0.55), (10, 1.0), (20, 1.0)] {
            let share = health.share(start + Duration::from_secs(after));
            assert!((share - expected).abs() < 1e-9, "after {after} s: {share}");
        }
        health.eject(start);
        health.recover(start + 30 * 1000 * MS);
        assert!((health.share(start + 30 * 1000 * MS) - 0.1).abs() < 1e-9);
    }

    #[test]
    fn silence_is_counted_from_the_last_answer_or_the_first_who_waits() {
        let start = Instant::now();
        let health = Health::new(start, false);
        let second = |n: u64| start + Duration::from_secs(n);
        health.begin(second(10));
        health.begin(second(11));
        assert_eq!(health.silence(second(13)), (2, Duration::from_secs(3)));
        health.settled(second(13));
        assert_eq!(health.silence(second(14)), (1, Duration::from_secs(1)));
    }
}
