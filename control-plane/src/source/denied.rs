//! The list of denied identities: a file with one SPIFFE ID a line, `#` begins a comment.
//!
//! A list that vanished or became unreadable stays in force: nobody is let in again by an accident.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use weft_certs::SpiffeId;

use super::file::{Fault, Look, WatchedFile};
use super::{ConfigError, Event};

/// The file of denied identities.
#[derive(Debug)]
pub struct DeniedFile {
    path: PathBuf,
    file: WatchedFile<BTreeSet<SpiffeId>>,
}

impl DeniedFile {
    /// The list at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: WatchedFile::default() }
    }

    /// Looks at the file: what changed, and whether to look again soon.
    pub fn look(&mut self, now: SystemTime, settle: Duration) -> (Option<Event>, bool) {
        let before = self.file.good().cloned();
        let look = self.file.look(&self.path, now, settle, parse, |old, new| !old.is_subset(new));
        let now = self.file.good();
        let event = now.filter(|now| Some(*now) != before.as_ref()).cloned().map(Event::DeniedIdentities);
        (event, look == Look::Again)
    }

    /// Whether the list was never read without fault.
    pub fn never_good(&self) -> bool {
        self.file.never_good()
    }

    /// What is wrong with it now.
    pub fn errors(&self) -> impl Iterator<Item = ConfigError> {
        self.file.faults().map(|fault| ConfigError {
            file: self.path.display().to_string(),
            line: fault.line,
            message: fault.message.clone(),
        })
    }
}

/// The directory to watch for changes of `path`.
pub fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn parse(text: &str) -> Result<BTreeSet<SpiffeId>, Vec<Fault>> {
    let (mut ids, mut faults) = (BTreeSet::new(), Vec::new());
    for (line, text) in (1..).zip(text.lines()) {
        let entry = text.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        match SpiffeId::parse(entry) {
            Ok(id) => drop(ids.insert(id)),
            Err(fault) => faults.push(Fault {
                line: Some(line),
                message: format!("'{entry}': {fault}; write for example spiffe://cluster.local/ns/shop/sa/orders"),
            }),
        }
    }
    if faults.is_empty() { Ok(ids) } else { Err(faults) }
}
