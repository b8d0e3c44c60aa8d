//! The calls that were judged, by kind: who, to which port, with what method and path template, and what was decided.
//!
//! A worker counts in rows of its own: a look-up without a copy, then a plain addition. The kinds are bounded; what is beyond
//! is counted without its path, then only as a number. A kind without a new call for a while is forgotten. The lock is taken
//! when a worker meets a kind for the first time, and when what is new is told to the control plane.
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weft_api::observation::{Decided, MAX_TEMPLATE_BYTES, OUTSIDE, Observations, ObservedCall, segments, template};

use super::cells::Cells;
use super::event::Protocol;

/// Kinds of calls that are kept apart.
const MOST: usize = 1_000;
/// Of them with a path; the others are left for callers, ports and methods.
const WITH_PATH: usize = 800;
/// Of them of one caller, so that nobody who makes up paths leaves none for others.
const WITH_PATH_OF_ONE: usize = 200;
/// Kinds of one caller, with a path or without: methods can be made up too.
const OF_ONE: usize = 300;
/// A kind without a new call for so long is forgotten, once no worker holds its row.
const IDLE: Duration = Duration::from_secs(300);

/// A call that was judged.
#[derive(Clone, Copy, Debug)]
pub struct JudgedCall<'a> {
    /// SPIFFE ID of the caller; `None`: it has none.
    pub source: Option<&'a str>,
    /// Port of the workload.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Method and path in normal form, of a request.
    pub request: Option<(&'a str, &'a str)>,
    /// What was decided.
    pub decision: Decided,
    /// The policy that decided, as in the metric.
    pub policy: &'a str,
    /// Its rule that matched.
    pub rule: Option<u32>,
}

/// A kind of calls, with the count of one worker.
#[derive(Debug)]
struct Row {
    call: ObservedCall,
    protocol: Protocol,
    count: Cells,
}

/// A row by what kind of calls it counts.
#[derive(Clone, Debug)]
struct Kind(Arc<Row>);

impl Row {
    fn new(judged: &JudgedCall<'_>, path: Option<String>) -> Self {
        let call = ObservedCall {
            source: judged.source.unwrap_or(OUTSIDE).to_owned(),
            port: judged.port,
            protocol: judged.protocol.as_str().to_owned(),
            method: judged.request.map(|(method, _)| method.to_owned()),
            path,
            decision: judged.decision,
            policy: judged.policy.to_owned(),
            rule: judged.rule,
        };
        Self { call, protocol: judged.protocol, count: Cells::new(1) }
    }
}

/// What a look-up compares, of a row and of a call alike.
struct Key<'a> {
    judged: JudgedCall<'a>,
    /// Whether the path counts.
    with_path: bool,
}

impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let ObservedCall { source, port, method, path, decision, policy, rule, .. } = &self.0.call;
        (source.as_str(), *port, self.0.protocol, method.as_deref(), *decision, policy.as_str(), *rule).hash(state);
        // A template is the template of itself.
        path.iter().flat_map(|path| path.split('/')).for_each(|segment| segment.hash(state));
    }
}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let JudgedCall { source, port, protocol, request, decision, policy, rule } = self.judged;
        let method = request.map(|(method, _)| method);
        (source.unwrap_or(OUTSIDE), port, protocol, method, decision, policy, rule).hash(state);
        self.path().into_iter().flat_map(segments).for_each(|segment| segment.hash(state));
    }
}

impl Key<'_> {
    fn path(&self) -> Option<&str> {
        self.judged.request.map(|(_, path)| path).filter(|_| self.with_path)
    }
}

impl hashbrown::Equivalent<Kind> for Key<'_> {
    fn equivalent(&self, kind: &Kind) -> bool {
        let (judged, call) = (&self.judged, &kind.0.call);
        judged.source.unwrap_or(OUTSIDE) == call.source
            && judged.port == call.port
            && judged.protocol == kind.0.protocol
            && judged.request.map(|(method, _)| method) == call.method.as_deref()
            && judged.decision == call.decision
            && judged.rule == call.rule
            && judged.policy == call.policy
            && match (self.path(), &call.path) {
                (Some(path), Some(template)) => segments(path).eq(template.split('/')),
                (None, None) => true,
                _ => false,
            }
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.0.call == other.0.call
    }
}

impl Eq for Kind {}

/// The rows of one worker.
#[derive(Debug, Default)]
pub(super) struct WorkerCalls {
    /// Of [`Calls`], when the rows below were last let go.
    epoch: Cell<u64>,
    rows: RefCell<hashbrown::HashSet<Kind>>,
    /// Callers with as many paths as are kept of one.
    full: RefCell<HashSet<String>>,
}

impl WorkerCalls {
    pub(super) fn count(&self, all: &Calls, judged: JudgedCall<'_>) {
        let epoch = all.epoch.load(Ordering::Relaxed);
        if self.epoch.replace(epoch) != epoch {
            self.rows.borrow_mut().clear();
            self.full.borrow_mut().clear();
        }
        let mut rows = self.rows.borrow_mut();
        if let Some(kind) = rows.get(&Key { judged, with_path: true }) {
            return kind.0.count.add(0, 1);
        }
        let mut full = self.full.borrow_mut();
        let source = judged.source.unwrap_or(OUTSIDE);
        // No template is four times as long as its path.
        let is_long = |(_, path): (&str, &str)| path.len() > MAX_TEMPLATE_BYTES / 4 && template(path).is_none();
        let too_long = judged.request.is_some_and(is_long);
        if (too_long || full.contains(source))
            && let Some(kind) = rows.get(&Key { judged, with_path: false })
        {
            return kind.0.count.add(0, 1);
        }
        let Some(row) = all.register(&judged) else {
            all.folded.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if judged.request.is_some() && row.call.path.is_none() && !too_long {
            full.insert(source.to_owned());
        }
        row.count.add(0, 1);
        rows.insert(Kind(row));
    }
}

/// All kinds of calls of a sidecar.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Changes when workers shall let go of their rows and ask for them anew.
    epoch: AtomicU64,
    /// Calls beyond the kinds that are kept apart.
    folded: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kinds: HashMap<ObservedCall, Counted>,
    with_path: usize,
    of_source: HashMap<String, Held>,
    told_folded: u64,
}

/// How many kinds a caller has.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    kinds: usize,
    with_path: usize,
}

#[derive(Debug)]
struct Counted {
    rows: Vec<Arc<Row>>,
    told: u64,
    /// When it was told of last.
    changed: Instant,
    /// Workers were asked to let go of it.
    released: bool,
}

impl Calls {
    /// A row for a worker. `None`: there are as many kinds as there may be.
    fn register(&self, judged: &JudgedCall<'_>) -> Option<Arc<Row>> {
        let mut inner = self.lock();
        let mut row = Row::new(judged, judged.request.and_then(|(_, path)| template(path)));
        if row.call.path.is_some() && !inner.kinds.contains_key(&row.call) && !inner.has_room_for_path(&row.call.source)
        {
            row.call.path = None;
        }
        if !inner.kinds.contains_key(&row.call) {
            if inner.kinds.len() >= MOST || inner.held(&row.call.source).kinds >= OF_ONE {
                return None;
            }
            let with_path = usize::from(row.call.path.is_some());
            inner.with_path += with_path;
            let held = inner.of_source.entry(row.call.source.clone()).or_default();
            held.kinds += 1;
            held.with_path += with_path;
        }
        let row = Arc::new(row);
        let new = || Counted { rows: Vec::new(), told: 0, changed: Instant::now(), released: false };
        inner.kinds.entry(row.call.clone()).or_insert_with(new).rows.push(Arc::clone(&row));
        Some(row)
    }

    /// What is new since this was asked last. Forgets what is idle.
    pub(super) fn take(&self, now: Instant) -> Observations {
        let mut inner = self.lock();
        let Inner { kinds, with_path, of_source, told_folded } = &mut *inner;
        let folded = self.folded.load(Ordering::Relaxed);
        let mut new = Observations { calls: Vec::new(), folded: folded - std::mem::replace(told_folded, folded) };
        let mut ask = false;
        kinds.retain(|call, counted| {
            let sum = counted.rows.iter().map(|row| row.count.get(0)).sum::<u64>();
            let count = sum - std::mem::replace(&mut counted.told, sum);
            if count > 0 {
                new.calls.push((call.clone(), count));
                (counted.changed, counted.released) = (now, false);
            }
            if now.saturating_duration_since(counted.changed) < IDLE {
                return true;
            }
            if counted.rows.iter().any(|row| Arc::strong_count(row) > 1) {
                ask |= !std::mem::replace(&mut counted.released, true);
                return true;
            }
            let had_path = usize::from(call.path.is_some());
            *with_path -= had_path;
            if let Some(held) = of_source.get_mut(&call.source) {
                held.kinds -= 1;
                held.with_path -= had_path;
                if held.kinds == 0 {
                    of_source.remove(&call.source);
                }
            }
            // What was counted without its path may have a kind of its own now.
            ask = true;
            false
        });
        if ask {
            self.epoch.fetch_add(1, Ordering::Relaxed);
        }
        new.calls.sort();
        new
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn has_room_for_path(&self, source: &str) -> bool {
        self.with_path < WITH_PATH && self.kinds.len() < MOST && self.held(source).with_path < WITH_PATH_OF_ONE
    }

    fn held(&self, source: &str) -> Held {
        self.of_source.get(source).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

    fn get<'a>(path: &'a str) -> JudgedCall<'a> {
        JudgedCall {
            source: Some(ORDERS),
            port: 8080,
            protocol: Protocol::Http1,
            request: Some(("GET", path)),
            decision: Decided::Allowed,
            policy: "shop/readers",
            rule: Some(0),
        }
    }

    /// Paths and counts of what is new.
    fn told(all: &Calls, now: Instant) -> Vec<(String, u64)> {
        let path = |call: ObservedCall| call.path.unwrap_or_else(|| "-".to_owned());
        all.take(now).calls.into_iter().map(|(call, count)| (path(call), count)).collect()
    }

    #[test]
    fn calls_are_counted_by_template_over_all_workers_and_told_once() {
        let (all, workers, now) = (Calls::default(), [(); 2].map(|()| WorkerCalls::default()), Instant::now());
        for path in ["/stock/1", "/stock/2", "/stock/list"] {
            workers.iter().for_each(|worker| worker.count(&all, get(path)));
        }
        assert_eq!(told(&all, now), [("/stock/list".to_owned(), 2), ("/stock/{id}".to_owned(), 4)]);
        assert_eq!(told(&all, now), [], "what was told is not told again");
        workers[1].count(&all, get("/stock/3"));
        assert_eq!(told(&all, now), [("/stock/{id}".to_owned(), 1)]);
    }

    #[test]
    fn whatever_differs_is_a_kind_of_its_own() {
        let (all, worker) = (Calls::default(), WorkerCalls::default());
        let base = get("/a");
        for judged in [
            base,
            JudgedCall { source: None, ..base },
            JudgedCall { port: 81, ..base },
            JudgedCall { protocol: Protocol::Http2, ..base },
            JudgedCall { request: Some(("POST", "/a")), ..base },
            JudgedCall { request: None, ..base },
            JudgedCall { decision: Decided::Refused, ..base },
            JudgedCall { policy: "default", ..base },
            JudgedCall { rule: None, ..base },
        ] {
            worker.count(&all, judged);
            worker.count(&all, judged);
        }
        let calls = all.take(Instant::now()).calls;
        assert_eq!(calls.len(), 9);
        assert!(calls.iter().all(|(_, count)| *count == 2), "{calls:?}");
    }

    #[test]
    fn who_makes_up_paths_leaves_room_for_others_and_every_call_is_counted() {
        let (all, worker) = (Calls::default(), WorkerCalls::default());
        let paths: Vec<String> = (0..2_000).map(|index| format!("/p{index}x")).collect();
        for path in &paths {
            worker.count(&all, get(path));
        }
        worker.count(&all, JudgedCall { source: None, ..get("/mine") });
        let calls = all.take(Instant::now());
        assert_eq!(calls.calls.len(), WITH_PATH_OF_ONE + 2);
        assert!(calls.calls.iter().any(|(call, _)| call.path.as_deref() == Some("/mine")), "others keep their paths");
        assert_eq!(calls.calls.iter().map(|(_, count)| count).sum::<u64>(), 2_001);
        let methods: Vec<String> = (0..2_000).map(|index| format!("M{index}")).collect();
        for method in &methods {
            worker.count(&all, JudgedCall { request: Some((method, "/p")), ..get("/p") });
        }
        let calls = all.take(Instant::now());
        assert_eq!(calls.calls.iter().map(|(_, count)| count).sum::<u64>() + calls.folded, 2_000);
        assert_eq!(all.lock().kinds.len(), OF_ONE + 1, "made-up methods take no more than one caller's part");
        for index in 0..2_000 {
            let source = format!("spiffe://cluster.local/ns/shop/sa/s{index}");
            worker.count(&all, JudgedCall { source: Some(&source), ..get("/p") });
        }
        let calls = all.take(Instant::now());
        assert_eq!(calls.calls.iter().map(|(_, count)| count).sum::<u64>() + calls.folded, 2_000);
        assert_eq!(all.lock().kinds.len(), MOST);
    }

    #[test]
    fn what_is_idle_is_forgotten_and_counts_again_from_nothing_lost() {
        let (all, worker, now) = (Calls::default(), WorkerCalls::default(), Instant::now());
        worker.count(&all, get("/a"));
        all.take(now);
        // Asked to let go; it has not heard of it yet, and counts once more.
        all.take(now + IDLE);
        worker.rows.borrow().iter().for_each(|kind| kind.0.count.add(0, 1));
        assert_eq!(told(&all, now), [("/a".to_owned(), 1)]);
        all.take(now + IDLE);
        worker.count(&all, get("/b"));
        assert_eq!(told(&all, now + IDLE), [("/b".to_owned(), 1)]);
        assert_eq!(all.lock().kinds.len(), 1, "what nobody called for long is forgotten");
        worker.count(&all, get("/a"));
        assert_eq!(told(&all, now + IDLE), [("/a".to_owned(), 1)]);
    }
}
