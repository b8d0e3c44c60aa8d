//! What came of a load.

use super::client::Answer;
use super::histogram::Histogram;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Different error texts that are kept; more are counted as `other`.
const ERROR_KINDS: usize = 32;

/// Counts and latencies of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Answers by HTTP status.
    pub by_status: BTreeMap<u16, u64>,
    /// Requests without a complete answer, by the error's text.
    pub errors: BTreeMap<String, u64>,
    /// Bytes of answers' bodies.
    pub bytes: u64,
    /// Time to the end of the answer's body; failed requests do not count.
    pub latency: Histogram,
    /// Time from the start to when the load was told to stop.
    pub elapsed: Duration,
}

impl Report {
    /// Requests with an answer, whatever its status.
    pub fn answered(&self) -> u64 {
        self.by_status.values().sum()
    }

    /// Answers with this status.
    pub fn status(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or(0)
    }

    /// Requests without a complete answer.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Adds another report: sums of all but the elapsed time, of which the longer counts.
    pub fn merge(&mut self, other: &Self) {
        for (status, count) in &other.by_status {
            *self.by_status.entry(*status).or_default() += count;
        }
        for (error, count) in &other.errors {
            *self.error(error) += count;
        }
        self.bytes += other.bytes;
        self.latency.merge(&other.latency);
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    fn error(&mut self, text: &str) -> &mut u64 {
        let known = self.errors.contains_key(text) || self.errors.len() < ERROR_KINDS;
        self.errors.entry(if known { text } else { "other" }.to_owned()).or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |q| self.latency.quantile(q).as_secs_f64() * 1000.0;
        write!(f, "{} answers in {:.1} s ({:.0}/s)", self.answered(), self.elapsed.as_secs_f64(), self.rate())?;
        for (status, count) in &self.by_status {
            write!(f, ", {count} × {status}")?;
        }
        write!(f, "; latency p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms", ms(0.5), ms(0.99), ms(0.999))?;
        for (error, count) in &self.errors {
            write!(f, "; {count} × {error}")?;
        }
        Ok(())
    }
}

/// One worker's part of the report.
#[derive(Debug, Default)]
pub(super) struct Cell(Mutex<Report>);

impl Cell {
    pub(super) fn record(&self, answer: Result<Answer, String>, latency: Duration) {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(answer) => {
                *report.by_status.entry(answer.status.as_u16()).or_default() += 1;
                report.bytes += answer.bytes;
                report.latency.record(latency);
            }
            Err(error) => *report.error(&error) += 1,
        }
    }

    pub(super) fn add_to(&self, report: &mut Report) {
        report.merge(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
