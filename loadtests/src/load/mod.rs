//! Load on an HTTP server, and what came of it.
//!
//! * **Closed loop** ([`Pace::Closed`]): each connection (each stream, over HTTP/2) sends its next request when it has
//!   the answer to the last. Shows how much a server can do.
//! * **Open loop** ([`Pace::Open`]): requests fall due at a rate, whatever the answers. Latency counts from when a
//!   request was due, so that waiting behind slow answers is part of it (no coordinated omission). Shows what clients
//!   feel.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use weft_loadtests::load::{Pace, Plan};
//! use std::time::Duration;
//!
//! let plan = Plan::get("http://inventory:8080/items".parse()?).pace(Pace::Open { per_second: 500.0 });
//! let load = plan.connections(8).start()?;
//! tokio::time::sleep(Duration::from_secs(10)).await;
//! println!("{}", load.stop().await);
//! # Ok(()) }
//! ```
//!
//! It runs on the tokio runtime that it is started on, and resolves names there: inside [`crate::lab::Pod::run`] it is
//! load from that pod.

mod client;
mod histogram;
mod report;

pub use histogram::Histogram;
pub use report::Report;

use bytes::Bytes;
use client::{Connection, Target};
use http::{HeaderName, HeaderValue, Method, Uri};
use report::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Which HTTP to speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1, with connections that are kept.
    #[default]
    Http1,
    /// HTTP/1.1, with a new connection for each request.
    Http1Close,
    /// HTTP/2 without TLS, with prior knowledge.
    Http2,
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// The next when the last is answered.
    Closed,
    /// At this rate over all connections. With too few connections for the rate requests are sent late, which shows in
    /// the latency.
    Open {
        /// Requests a second; more than 0.
        per_second: f64,
    },
}

/// What load to make.
#[derive(Debug, Clone)]
pub struct Plan {
    target: Target,
    pace: Pace,
    connections: usize,
    streams: usize,
    requests: u64,
}

/// A plan that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The URL is not one of plain HTTP.
    #[error("{0} is not a URL to load: write http://HOST[:PORT]/PATH")]
    Url(Uri),
    /// The rate is not a number above 0.
    #[error("a rate must be above 0 requests a second")]
    Rate,
}

impl Plan {
    /// `GET url`, over one HTTP/1.1 connection, in a closed loop, until stopped; a request without an answer fails
    /// after 10 s.
    pub fn get(url: Uri) -> Self {
        let target = Target {
            url,
            method: Method::GET,
            headers: http::HeaderMap::new(),
            body: Bytes::new(),
            version: Version::Http1,
            timeout: Duration::from_secs(10),
            address: None,
        };
        Self { target, pace: Pace::Closed, connections: 1, streams: 1, requests: u64::MAX }
    }

    /// Sets the method and the body.
    pub fn body(mut self, method: Method, body: impl Into<Bytes>) -> Self {
        self.target.method = method;
        self.target.body = body.into();
        self
    }

    /// Adds a header to every request.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.target.headers.append(name, value);
        self
    }

    /// Sets which HTTP to speak.
    pub fn version(mut self, version: Version) -> Self {
        self.target.version = version;
        self
    }

    /// Sets the pace.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Sets the number of connections; at least 1.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// Sets how many requests an HTTP/2 connection carries at once; at least 1.
    pub fn streams(mut self, streams: usize) -> Self {
        self.streams = streams.max(1);
        self
    }

    /// Sets after how long a request without a complete answer fails.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.target.timeout = timeout;
        self
    }

    /// Connects to this address instead of the URL's host.
    pub fn connect_to(mut self, address: std::net::SocketAddr) -> Self {
        self.target.address = Some(address);
        self
    }

    /// Ends by itself after this many requests.
    pub fn requests(mut self, requests: u64) -> Self {
        self.requests = requests;
        self
    }

    /// Starts the load on the current tokio runtime.
    ///
    /// # Errors
    /// The plan cannot be carried out.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self) -> Result<Load, PlanError> {
        let target = &self.target;
        if target.url.scheme() != Some(&http::uri::Scheme::HTTP) || target.url.host().is_none() {
            return Err(PlanError::Url(target.url.clone()));
        }
        let interval = match self.pace {
            Pace::Closed => None,
            Pace::Open { per_second } => {
                let interval = Duration::try_from_secs_f64(1.0 / per_second).map_err(|_| PlanError::Rate)?;
                (per_second > 0.0).then_some(Some(interval)).ok_or(PlanError::Rate)?
            }
        };
        let (stop, stopped) = watch::channel(());
        let schedule =
            Arc::new(Schedule { start: Instant::now(), interval, next: AtomicU64::new(0), end: self.requests });
        let streams = if target.version == Version::Http2 { self.streams } else { 1 };
        let mut workers = JoinSet::new();
        let mut cells = Vec::new();
        for _ in 0..self.connections {
            let connection = Arc::new(Connection::new(target.clone()));
            for _ in 0..streams {
                let cell = Arc::new(Cell::default());
                cells.push(cell.clone());
                workers.spawn(work(connection.clone(), schedule.clone(), cell, stopped.clone()));
            }
        }
        Ok(Load { workers, cells, started: Instant::now(), stop })
    }

    /// Carries the plan out for `duration`, or until its number of requests is reached.
    ///
    /// # Errors
    /// The plan cannot be carried out.
    pub async fn run(self, duration: Duration) -> Result<Report, PlanError> {
        let mut load = self.start()?;
        let _ = tokio::time::timeout(duration, load.finished()).await;
        Ok(load.stop().await)
    }
}

/// Load that is being made. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    workers: JoinSet<()>,
    cells: Vec<Arc<Cell>>,
    started: Instant,
    /// Dropped to end the workers.
    stop: watch::Sender<()>,
}

impl Load {
    /// What came of it so far.
    pub fn report(&self) -> Report {
        let mut report = Report::default();
        self.cells.iter().for_each(|cell| cell.add_to(&mut report));
        report.elapsed = self.started.elapsed();
        report
    }

    /// Waits until the plan's number of requests is reached.
    pub async fn finished(&mut self) {
        while self.workers.join_next().await.is_some() {}
    }

    /// Sends no more, waits for the answers that are due, and tells what came of it.
    pub async fn stop(self) -> Report {
        let Self { mut workers, cells, started, stop } = self;
        drop(stop);
        let elapsed = started.elapsed();
        while workers.join_next().await.is_some() {}
        let mut report = Report { elapsed, ..Report::default() };
        cells.iter().for_each(|cell| cell.add_to(&mut report));
        report
    }
}

/// Which request is due when; shared by all workers.
#[derive(Debug)]
struct Schedule {
    start: Instant,
    /// `None`: as soon as a worker is free.
    interval: Option<Duration>,
    next: AtomicU64,
    end: u64,
}

impl Schedule {
    /// When the next request is due; `None` when there are no more.
    fn next(&self) -> Option<Instant> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let due = match self.interval {
            None => Instant::now(),
            Some(interval) => self.start + interval.mul_f64(number as f64),
        };
        (number < self.end).then_some(due)
    }
}

async fn work(connection: Arc<Connection>, schedule: Arc<Schedule>, cell: Arc<Cell>, mut stopped: watch::Receiver<()>) {
    while let Some(due) = schedule.next() {
        tokio::select! {
            biased;
            _ = stopped.changed() => return,
            () = tokio::time::sleep_until(due) => {}
        }
        let answer = connection.request().await;
        let failed = answer.is_err();
        cell.record(answer, due.elapsed());
        if failed {
            // A server that is away shall not be hammered.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
