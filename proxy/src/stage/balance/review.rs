//! Compares the endpoints of one destination with each other, now and then: who fails far more often, answers far more
//! slowly or not at all while the others do, is ejected. Pure: the clock is an argument.
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Target;
use super::destination::{Destination, Ejection, may_eject};
use super::health::{Reason, Standing};

/// How often endpoints are compared.
const INTERVAL: Duration = Duration::from_secs(1);
/// Answers from which a mean is made; with fewer, the endpoint is looked at the next time.
const ENOUGH: u32 = 5;
/// Slow: so many times slower than the median of the others,
const TIMES_SLOWER: f64 = 5.0;
/// and by at least so much, in seconds.
const SLOWER_BY: f64 = 0.1;
/// Silent: so many wait,
const MANY_WAIT: u32 = 3;
/// and nobody was answered for so long, while others answer in a fraction of it.
const SILENT: Duration = Duration::from_secs(3);

impl Destination {
    /// Ejects at most one endpoint that stands out against its siblings. Costs nothing but once a second.
    pub(super) fn review(&self, now: Instant) -> Option<Ejection> {
        if now.saturating_duration_since(self.reviewed.get()) < INTERVAL {
            return None;
        }
        self.reviewed.set(now);
        let members = self.members.borrow();
        if members.len() < 2 || self.traffic.get().eject_after == 0 {
            return None;
        }
        let outlier = outlier(&members, now);
        let seen = members.iter().filter(|member| member.health.window.answers.get() >= ENOUGH);
        seen.for_each(|member| member.health.window.forget());
        let (target, reason) = outlier.filter(|_| may_eject(&members, now))?;
        target.eject(now);
        Some(Ejection { endpoint: target.endpoint.address, reason })
    }
}

fn outlier(members: &[Rc<Target>], now: Instant) -> Option<(&Rc<Target>, Reason)> {
    let open = || members.iter().filter(|member| member.health.standing(now) == Standing::Open);
    for member in open() {
        let others = || open().filter(|other| !Rc::ptr_eq(other, member));
        let window = &member.health.window;
        if window.answers.get() >= 2 * ENOUGH && window.failures.get() * 2 >= window.answers.get() {
            let fails = |other: &&Rc<Target>| {
                let window = &other.health.window;
                window.answers.get() >= ENOUGH && window.failures.get() * 10 < window.answers.get()
            };
            if others().any(|other| fails(&other)) {
                return Some((member, Reason::Failures));
            }
        }
        let (waiting, silence) = member.health.silence(now);
        let mean = match window.mean(ENOUGH) {
            _ if waiting >= MANY_WAIT && silence >= SILENT => silence.as_secs_f64(),
            Some(mean) => mean,
            None => continue,
        };
        let mut means: Vec<f64> = others().filter_map(|other| other.health.window.mean(ENOUGH)).collect();
        means.sort_by(f64::total_cmp);
        let Some(median) = means.get(means.len() / 2) else { continue };
        if mean > median * TIMES_SLOWER && mean > median + SLOWER_BY {
            return Some((member, Reason::Slow));
        }
    }
    None
}
