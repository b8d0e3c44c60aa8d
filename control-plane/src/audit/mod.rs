//! The audit log: who got which certificate, who was refused, what was changed. One JSON object a line, each with the hash
//! of the line before it, so that a missing or altered line is found by [`verify`].
//!
//! `hash` is SHA-256 over the line without it; `previous` is the `hash` of the line before. What the chain cannot show by
//! itself is that its end was cut off, or that all of it was written anew: compare the last hash with one that you noted
//! elsewhere (each start logs it). Nothing secret is ever written: no token, no key, no request.
//!
//! A log that cannot be written (full disk) stops nothing; it is reported and counted, and whole lines stay whole.
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::metrics::Metrics;

mod chain;

pub use chain::{AuditError, Link, verify};
use chain::{aside, end_of, first, hash_of, last_of, parse, unusable};

/// Name of the log in the state directory.
pub const FILE: &str = "audit.jsonl";
/// At this size the log is put aside as `audit.jsonl.1` (the older ones moving up) and a new file goes on with the chain.
const ROTATE_AT: u64 = 32 * 1024 * 1024;
/// So many files are kept beside the present one.
const KEPT: u32 = 8;
/// Refusals that are written in a second; anybody can cause them, and must not fill the disk by it.
const REFUSALS_A_SECOND: u32 = 20;
/// How long another control plane may take to let go of the log.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that is written down.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Entry<'a> {
    /// A control plane started.
    Started {
        /// Its trust domain.
        trust_domain: &'a str,
    },
    /// A certificate was issued.
    CertificateIssued {
        /// Whose name it bears.
        id: &'a str,
        /// What proved that name.
        proof: &'a str,
        /// From where it was asked for.
        remote: &'a str,
        /// When it expires.
        expires: &'a str,
        /// SHA-256 of the leaf's DER.
        sha256: &'a str,
    },
    /// A certificate was not issued.
    CertificateRefused {
        /// Who asked, where that was proven.
        id: Option<&'a str>,
        /// From where.
        remote: &'a str,
        /// Why not.
        reason: &'a str,
    },
    /// A sidecar did not get the configuration that it asked for.
    StreamRefused {
        /// Who asked.
        id: &'a str,
        /// For which workload of its namespace.
        workload: &'a str,
        /// From where.
        remote: &'a str,
        /// Why not.
        reason: &'a str,
    },
    /// A resource is new or different.
    ResourceApplied {
        /// Its kind and name.
        resource: &'a str,
    },
    /// A resource is gone.
    ResourceRemoved {
        /// Its kind and name.
        resource: &'a str,
    },
    /// The list of denied identities is another.
    IdentitiesDenied {
        /// All of it.
        ids: &'a [String],
    },
}

impl Entry<'_> {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::CertificateRefused { .. } | Self::StreamRefused { .. })
    }
}

/// The open log. Only one process has it open.
#[derive(Debug)]
pub struct Audit {
    /// `None`: there is no file that could be written.
    state: Option<Mutex<State>>,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    file: File,
    length: u64,
    last: Link,
    refusals: u32,
    unwritten: u64,
    since: Instant,
}

impl Audit {
    /// Opens the log in `directory`, or begins it, and goes on after its last line. What a crash left of a line is cut off.
    ///
    /// # Errors
    /// It cannot be read or written, another process has it open, or its last line is no line of such a log.
    pub fn open(directory: &Path, metrics: Metrics) -> Result<Self, AuditError> {
        let path = directory.join(FILE);
        let io = |source| AuditError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(io)?;
        lock(&file, &path)?;
        let (length, last) = end_of(&mut file).map_err(io)?;
        let last = match last {
            Some(line) => parse(&line).map_err(|fault| unusable(&path, &fault))?.1,
            // Right after the log was put aside.
            None => last_of(&aside(&path, 1))?.unwrap_or_else(first),
        };
        if file.metadata().map_err(io)?.len() > length {
            tracing::warn!(path = %path.display(), "cut off what a crash left of the last line of the audit log");
            file.set_len(length).map_err(io)?;
        }
        tracing::info!(path = %path.display(), lines = last.number, hash = last.hash, "audit log");
        let state = State { path, file, length, last, refusals: 0, unwritten: 0, since: Instant::now() };
        Ok(Self { state: Some(Mutex::new(state)), metrics })
    }

    /// A log that is only counted, where none can be written.
    pub fn unwritten(metrics: Metrics) -> Self {
        Self { state: None, metrics }
    }

    /// Writes `entry` down. False: there are too many refusals in this second, so it was only counted; it should not fill
    /// other logs either.
    pub fn record(&self, entry: &Entry<'_>) -> bool {
        let Some(state) = &self.state else {
            self.metrics.audit_failures.inc();
            return true;
        };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if entry.is_refusal() && !state.admits_refusal() {
            return false;
        }
        if let Err(fault) = state.append(entry, SystemTime::now()) {
            self.metrics.audit_failures.inc();
            tracing::error!(path = %state.path.display(), %fault, "cannot write the audit log");
        }
        true
    }
}

impl State {
    fn admits_refusal(&mut self) -> bool {
        if self.since.elapsed() >= Duration::from_secs(1) {
            (self.since, self.refusals) = (Instant::now(), 0);
        }
        self.refusals += 1;
        let admitted = self.refusals <= REFUSALS_A_SECOND;
        self.unwritten += u64::from(!admitted);
        admitted
    }

    fn append(&mut self, entry: &Entry<'_>, now: SystemTime) -> io::Result<()> {
        if self.length >= ROTATE_AT {
            self.rotate()?;
        }
        let (line, link) = self.line(entry, now);
        if let Err(fault) = self.file.write_all(line.as_bytes()) {
            // Half a line would make the next one unreadable.
            self.file.set_len(self.length)?;
            return Err(fault);
        }
        self.length += line.len() as u64;
        self.last = link;
        self.unwritten = 0;
        Ok(())
    }

    fn line(&self, entry: &Entry<'_>, now: SystemTime) -> (String, Link) {
        let Ok(Value::Object(fields)) = serde_json::to_value(entry) else { unreachable!("an entry is an object") };
        let number = self.last.number + 1;
        let mut line = Map::new();
        line.insert("number".to_owned(), number.into());
        line.insert("time".to_owned(), timestamp(now).into());
        line.extend(fields.into_iter().map(|(key, value)| (key, shortened(value))));
        if self.unwritten > 0 {
            line.insert("refusals_not_written".to_owned(), self.unwritten.into());
        }
        line.insert("previous".to_owned(), self.last.hash.clone().into());
        let hash = hash_of(&line);
        line.insert("hash".to_owned(), hash.clone().into());
        (format!("{}\n", Value::Object(line)), Link { number, hash })
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            match std::fs::rename(aside(&self.path, number), aside(&self.path, number + 1)) {
                Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
                _ => {}
            }
        }
        std::fs::rename(&self.path, aside(&self.path, 1))?;
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&self.path)?;
        file.lock()?;
        (self.file, self.length) = (file, 0);
        Ok(())
    }
}

fn lock(file: &File, path: &Path) -> Result<(), AuditError> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(TryLockError::WouldBlock) => return Err(AuditError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(AuditError::Io { path: path.to_owned(), source }),
        }
    }
}

/// What callers wrote is cut to a length that cannot make a line too long.
fn shortened(value: Value) -> Value {
    match value {
        Value::String(text) if text.len() > 1024 => text[..text.floor_char_boundary(1024)].into(),
        Value::Array(values) if values.len() > 8 => {
            let more = format!("and {} more", values.len() - 8);
            values.into_iter().take(8).map(shortened).chain([more.into()]).collect()
        }
        other => other,
    }
}

/// RFC 3339 in UTC, with seconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, names: &[&str]) {
        let audit = Audit::open(directory, Metrics::default()).expect("opened");
        for name in names {
            audit.record(&Entry::ResourceApplied { resource: name });
        }
    }

    fn text(directory: &Path) -> String {
        std::fs::read_to_string(directory.join(FILE)).expect("readable")
    }

    #[test]
    fn the_chain_goes_on_over_restarts() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), &["a", "b"]);
        write(directory.path(), &["c"]);
        let (from, last) = verify(directory.path()).expect("whole");
        assert_eq!((from, last.number), (1, 3));
        assert!(text(directory.path()).lines().last().expect("three lines").contains(&last.hash));
    }

    #[test]
    fn a_missing_altered_or_moved_line_is_found() {
        type Change = fn(&mut Vec<String>);
        let changes: [(&str, Change); 6] = [
            ("altered", |lines| lines[1] = lines[1].replace("\"b\"", "\"x\"")),
            ("missing", |lines| drop(lines.remove(1))),
            ("the first missing", |lines| drop(lines.remove(0))),
            ("moved", |lines| lines.swap(1, 2)),
            ("twice", |lines| lines.insert(1, lines[1].clone())),
            ("no JSON", |lines| lines[1] = "x".to_owned()),
        ];
        for (case, change) in changes {
            let directory = tempfile::tempdir().expect("a directory");
            write(directory.path(), &["a", "b", "c", "d"]);
            verify(directory.path()).expect("whole");
            let mut lines: Vec<String> = text(directory.path()).lines().map(str::to_owned).collect();
            change(&mut lines);
            std::fs::write(directory.path().join(FILE), lines.join("\n") + "\n").expect("written");
            let found = verify(directory.path());
            // That the oldest lines are gone is what rotation does too: it shows in the number of the first.
            let found = if case == "the first missing" {
                found.map(|(from, _)| assert_eq!(from, 2)).is_ok()
            } else {
                found.is_err()
            };
            assert!(found, "{case}");
        }
    }

    #[test]
    fn half_a_line_of_a_crash_is_cut_off() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), &["a", "b"]);
        let whole = text(directory.path());
        std::fs::write(directory.path().join(FILE), format!("{whole}{{\"number\":3,\"ti")).expect("written");
        write(directory.path(), &["c"]);
        assert_eq!(verify(directory.path()).expect("whole").1.number, 3);
    }

    #[test]
    fn a_log_that_was_put_aside_is_gone_on_with() {
        let directory = tempfile::tempdir().expect("a directory");
        let audit = Audit::open(directory.path(), Metrics::default()).expect("opened");
        audit.record(&Entry::ResourceApplied { resource: "a" });
        audit.state.as_ref().expect("open").lock().expect("not poisoned").rotate().expect("put aside");
        drop(audit);
        write(directory.path(), &["b"]);
        assert_eq!(text(directory.path()).lines().count(), 1);
        let (from, last) = verify(directory.path()).expect("whole");
        assert_eq!((from, last.number), (1, 2));
    }

    #[test]
    fn a_flood_of_refusals_does_not_fill_the_disk_and_is_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let audit = Audit::open(directory.path(), Metrics::default()).expect("opened");
        for _ in 0..5_000 {
            audit.record(&Entry::CertificateRefused { id: None, remote: "10.0.0.1:1", reason: "no token" });
        }
        audit.record(&Entry::ResourceApplied { resource: "a" });
        let text = text(directory.path());
        assert!(text.lines().count() < 2_500, "{}", text.lines().count());
        assert!(text.lines().last().expect("a line").contains("refusals_not_written"));
        verify(directory.path()).expect("whole");
    }

    #[test]
    fn a_second_control_plane_is_told_of_the_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let _first = Audit::open(directory.path(), Metrics::default()).expect("opened");
        let second = OpenOptions::new().append(true).open(directory.path().join(FILE)).expect("opened");
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
    }
}
