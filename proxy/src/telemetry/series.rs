//! Which series exist, and the budget that bounds them.
//!
//! A label set gets cells of its own while the budget lasts; after that it shares those of its family's `other`, so sums
//! stay exact whatever the mesh looks like. A label set that nothing was counted under for a while is forgotten, so that
//! names which left the mesh do not use the budget up for ever. The lock here is taken when a worker meets a label set
//! for the first time and when metrics are read, never for an event.
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cells::{Cells, REQUEST_DURATION};
use super::event::{Direction, Ends, Party, TrafficEvent, Verdict};

/// Longest label value, in bytes: the longest name that Kubernetes allows.
const LABEL_VALUE_MAX: usize = 253;

/// The word that folded series carry.
pub(super) const OTHER: &str = "other";

/// A label set together with the family it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Series {
    /// `weft_requests_total`.
    Requests { ends: Labels, status: Status, grpc_status: Option<u16> },
    /// `weft_request_duration_seconds`.
    Duration(Labels),
    /// `weft_tcp_*`: slots opened, closed, sent, received.
    Tcp(Labels),
    /// `weft_authorization_decisions_total`.
    Authorization { verdict: Verdict, policy: Arc<str> },
    /// `weft_rate_limit_decisions_total`.
    RateLimit { limited: bool, policy: Arc<str>, limit: Arc<str> },
    /// `weft_connections_refused_total`.
    Refused { direction: Direction, reason: Arc<str> },
    /// `weft_retries_total`, `weft_requests_shed_total`, `weft_endpoint_ejections_total`.
    Traffic { event: TrafficEvent, destination: Party },
}

/// Ends as label values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Labels {
    Of(Ends),
    /// Folded: only the direction is left.
    Other(Direction),
}

/// The `status` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Status {
    /// No response was sent.
    None,
    /// As sent.
    Code(u16),
    /// Folded, or not a status that HTTP knows: the first digit, shown as `2xx`.
    Class(u16),
}

impl Status {
    pub(super) fn of(status: u16) -> Self {
        match status {
            100..=599 => Self::Code(status),
            // RFC 9110, section 15: not a status; clients treat it as a server's error.
            600.. => Self::Class(5),
            _ => Self::None,
        }
    }
}

/// Slots of [`Series::Tcp`].
pub(super) mod tcp {
    pub(crate) const OPENED: usize = 0;
    pub(crate) const CLOSED: usize = 1;
    pub(crate) const SENT: usize = 2;
    pub(crate) const RECEIVED: usize = 3;
}

impl Series {
    /// Slots of its row of cells.
    pub(super) fn slots(&self) -> usize {
        match self {
            Self::Duration(_) => REQUEST_DURATION.slots(),
            Self::Tcp(_) => 4,
            _ => 1,
        }
    }

    /// Sample lines it adds to the exposition, which is what the budget counts.
    fn lines(&self) -> usize {
        match self {
            Self::Duration(_) => REQUEST_DURATION.lines(),
            Self::Tcp(_) => 4,
            _ => 1,
        }
    }

    /// The series that takes its place when the budget is spent.
    fn folded(&self) -> Self {
        match self {
            Self::Requests { ends, status, .. } => Self::Requests {
                ends: ends.folded(),
                status: match status {
                    Status::Code(code) => Status::Class(code / 100),
                    other => *other,
                },
                grpc_status: None,
            },
            Self::Duration(ends) => Self::Duration(ends.folded()),
            Self::Tcp(ends) => Self::Tcp(ends.folded()),
            Self::Authorization { verdict, .. } => Self::Authorization { verdict: *verdict, policy: OTHER.into() },
            Self::RateLimit { limited, .. } => {
                Self::RateLimit { limited: *limited, policy: OTHER.into(), limit: OTHER.into() }
            }
            Self::Refused { direction, .. } => Self::Refused { direction: *direction, reason: OTHER.into() },
            Self::Traffic { event, .. } => Self::Traffic { event: *event, destination: Party::new(OTHER, OTHER) },
        }
    }

    /// Cuts label values to a bounded length.
    fn bounded(self) -> Self {
        match self {
            Self::Requests { ends, status, grpc_status } => {
                Self::Requests { ends: ends.bounded(), status, grpc_status }
            }
            Self::Duration(ends) => Self::Duration(ends.bounded()),
            Self::Tcp(ends) => Self::Tcp(ends.bounded()),
            Self::Authorization { verdict, policy } => Self::Authorization { verdict, policy: bounded(policy) },
            Self::RateLimit { limited, policy, limit } => {
                Self::RateLimit { limited, policy: bounded(policy), limit: bounded(limit) }
            }
            Self::Traffic { event, destination } => {
                let destination = Party { name: bounded(destination.name), namespace: bounded(destination.namespace) };
                Self::Traffic { event, destination }
            }
            refused @ Self::Refused { .. } => refused,
        }
    }
}

impl Labels {
    fn folded(&self) -> Self {
        match self {
            Self::Of(ends) => Self::Other(ends.direction),
            Self::Other(direction) => Self::Other(*direction),
        }
    }

    fn bounded(self) -> Self {
        match self {
            Self::Of(mut ends) => {
                for party in [&mut ends.source, &mut ends.destination] {
                    party.name = bounded(party.name.clone());
                    party.namespace = bounded(party.namespace.clone());
                }
                Self::Of(ends)
            }
            other => other,
        }
    }
}

fn bounded(value: Arc<str>) -> Arc<str> {
    if value.len() <= LABEL_VALUE_MAX { value } else { value[..value.floor_char_boundary(LABEL_VALUE_MAX)].into() }
}

/// Sample lines of the `other` series, set aside so that folding itself cannot break the budget: requests by direction
/// and status class (none, 1 to 5), durations, byte streams, the decisions, and what is done about destinations in trouble.
pub(super) const FOLD_LINES: usize = 2 * 6 + 2 * REQUEST_DURATION.lines() + 2 * 4 + 2 + 2 + 2 + 8;

/// A series without a new count for so long is forgotten, once no worker and no open connection holds its cells.
const IDLE: Duration = Duration::from_secs(300);

/// All series of a sidecar, with the cells of each worker.
#[derive(Debug)]
pub(super) struct SeriesTable {
    budget: usize,
    folded: AtomicU64,
    epoch: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    lines: usize,
    rows: HashMap<Series, Row>,
}

#[derive(Debug)]
struct Row {
    cells: Vec<(u32, Arc<Cells>)>,
    /// The sums when they were last found changed, and when that was.
    seen: Vec<u64>,
    changed: Instant,
    /// Workers were asked to let go of it.
    released: bool,
}

impl Row {
    fn sums(&self, series: &Series) -> Vec<u64> {
        let mut sums = vec![0; series.slots()];
        self.cells.iter().for_each(|(_, cells)| cells.add_to(&mut sums));
        sums
    }
}

impl SeriesTable {
    /// A table for at most `budget` sample lines beside those of the `other` series.
    pub(super) fn new(budget: usize) -> Self {
        Self { budget, folded: AtomicU64::new(0), epoch: AtomicU64::new(0), inner: Mutex::default() }
    }

    /// The cells of `worker` for `series`, or for its `other` when the budget is spent.
    pub(super) fn cells(&self, worker: u32, series: Series) -> Arc<Cells> {
        let mut series = series.bounded();
        let mut inner = self.lock();
        if !inner.rows.contains_key(&series) {
            let lines = series.lines();
            if inner.lines + lines <= self.budget {
                inner.lines += lines;
            } else {
                self.folded.fetch_add(1, Ordering::Relaxed);
                series = series.folded();
            }
        }
        let slots = series.slots();
        let new = || Row { cells: Vec::new(), seen: vec![0; slots], changed: Instant::now(), released: false };
        let row = inner.rows.entry(series).or_insert_with(new);
        if let Some((_, cells)) = row.cells.iter().find(|(owner, _)| *owner == worker) {
            return cells.clone();
        }
        let cells = Arc::new(Cells::new(slots));
        row.cells.push((worker, cells.clone()));
        cells
    }

    /// How often a label set was folded: once for each worker that meets it.
    pub(super) fn folded(&self) -> u64 {
        self.folded.load(Ordering::Relaxed)
    }

    /// Changes when workers shall let go of all cells that they keep and ask for them anew.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Forgets what is idle. In two steps, so that no count is lost: first the workers are asked to let go of their
    /// cells, and a row goes only when the table alone still holds it. `other` series stay.
    pub(super) fn sweep(&self, now: Instant) {
        let mut inner = self.lock();
        let Inner { lines, rows } = &mut *inner;
        let mut ask = false;
        rows.retain(|series, row| {
            let sums = row.sums(series);
            if sums != row.seen {
                (row.seen, row.changed, row.released) = (sums, now, false);
            }
            if now.saturating_duration_since(row.changed) < IDLE || *series == series.folded() {
                return true;
            }
            if row.cells.iter().all(|(_, cells)| Arc::strong_count(cells) == 1) {
                *lines -= series.lines();
                // What was folded while the budget was spent may have a series of its own now.
                ask |= self.folded() > 0;
                return false;
            }
            ask |= !std::mem::replace(&mut row.released, true);
            true
        });
        if ask {
            self.epoch.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every series with the sums of all workers, in order.
    pub(super) fn read(&self) -> BTreeMap<Series, Vec<u64>> {
        self.lock().rows.iter().map(|(series, row)| (series.clone(), row.sums(series))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
