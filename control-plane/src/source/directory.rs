//! A directory of YAML and JSON files as the source of resources.
//!
//! Every `.yaml`, `.yml` and `.json` file counts, also in folders below; hidden files and folders, and what editors leave
//! behind, do not. A file that cannot be read or parsed keeps its last good content; a file that was deleted takes its
//! resources with it. Where two files declare the same resource, the first in path order wins and the other is a fault.
//! Nothing here blocks the runtime: reading happens on a thread of its own.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use weft_api::resource::{Resource, ResourceError, parse_documents};

use super::denied;
use super::file::{Fault, Look, SETTLE, WatchedFile};
use super::last_good::LastGood;
use super::watch::{Wake, Watch};
use super::{Batch, ConfigError, Event, ResourceKey};

/// How often the directory is read without any notice of a change.
const POLL: Duration = Duration::from_secs(3);
/// Folders below the directory are followed this deep.
const DEEPEST: usize = 8;
/// More files than this are a mistake.
const MOST_FILES: usize = 10_000;

/// A running reader. Dropping it stops the thread.
pub struct DirectorySource {
    batches: mpsc::Receiver<Batch>,
    stop: Arc<AtomicBool>,
    wake: Wake,
}

impl DirectorySource {
    /// Starts to read `resources`, and the list of denied identities where one is given. Good texts are kept in `last_good`
    /// over restarts. The first batch comes at once.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(resources: PathBuf, denied: Option<PathBuf>, last_good: Option<PathBuf>) -> io::Result<Self> {
        let (sender, batches) = mpsc::channel(16);
        let stop = Arc::new(AtomicBool::new(false));
        let beside = denied.as_deref().map(denied::directory_of);
        let watched: Vec<(&Path, bool)> =
            std::iter::once((resources.as_path(), true)).chain(beside.as_deref().map(|path| (path, false))).collect();
        let (watch, wake) = Watch::new(&watched);
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new().name("weft-resources".to_owned()).spawn(move || {
            let reader = Reader::new(resources, denied, last_good);
            read_until_stopped(reader, watch, &sender, &stopped);
        })?;
        Ok(Self { batches, stop, wake })
    }

    /// The next batch; `None` only if the reader's thread died.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }
}

impl Drop for DirectorySource {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
    }
}

/// What a directory says now, whole and read once; nothing of it is followed or kept. `denied` is the list of denied
/// identities.
pub fn read_once(resources: PathBuf, denied: Option<PathBuf>) -> Batch {
    let (batch, _) = Reader::new(resources, denied, None).read(SystemTime::now(), Duration::ZERO);
    batch.unwrap_or_default()
}

fn read_until_stopped(mut reader: Reader, mut watch: Watch, sender: &mpsc::Sender<Batch>, stop: &AtomicBool) {
    let mut settle = Duration::ZERO;
    loop {
        let (batch, again) = reader.read(SystemTime::now(), settle);
        if let Some(batch) = batch
            && sender.blocking_send(batch).is_err()
        {
            return;
        }
        settle = SETTLE;
        watch.wait(if again { SETTLE } else { POLL });
        if stop.load(Ordering::Acquire) {
            return;
        }
    }
}

/// The directory as it was last read.
#[derive(Debug)]
struct Reader {
    root: PathBuf,
    files: BTreeMap<PathBuf, WatchedFile<Vec<Resource>>>,
    last_good: Option<LastGood>,
    denied: Option<denied::DeniedFile>,
    in_force: BTreeMap<ResourceKey, Resource>,
    reported: Vec<ConfigError>,
    started: bool,
    complete: bool,
}

impl Reader {
    fn new(root: PathBuf, denied: Option<PathBuf>, last_good: Option<PathBuf>) -> Self {
        let last_good = last_good.map(|directory| LastGood::new(directory, &root));
        let kept = last_good.iter().flat_map(LastGood::load);
        let files = kept.filter_map(|(path, text)| Some((path, WatchedFile::with(parse(&text).ok()?)))).collect();
        Self {
            root,
            files,
            last_good,
            denied: denied.map(denied::DeniedFile::new),
            in_force: BTreeMap::new(),
            reported: Vec::new(),
            started: false,
            complete: false,
        }
    }

    /// Reads what changed. `None`: nothing did. True: look again soon.
    fn read(&mut self, now: SystemTime, settle: Duration) -> (Option<Batch>, bool) {
        let listing = Listing::of(&self.root);
        let mut again = false;
        for path in &listing.files {
            let file = self.files.entry(path.clone()).or_default();
            match file.look(&self.root.join(path), now, settle, parse, |old, new| loses(old, new)) {
                Look::Good(text) => self.last_good.iter().for_each(|kept| kept.keep(path, &text)),
                Look::Again => again = true,
                Look::Unchanged | Look::Faulty => {}
            }
        }
        self.files.retain(|path, file| {
            if listing.files.binary_search(path).is_ok() || listing.hides(path) {
                return true;
            }
            let gone = file.vanished(now, settle);
            if gone {
                self.last_good.iter().for_each(|kept| kept.forget(path));
            }
            again |= !gone;
            !gone
        });
        let mut events = Vec::new();
        if let Some(denied) = &mut self.denied {
            let (event, denied_again) = denied.look(now, settle);
            events.extend(event);
            again |= denied_again;
        }

        let (winners, mut errors) = self.merge();
        errors.extend(listing.faults.iter().map(|(path, fault)| config_error(path, fault)));
        errors.extend(self.denied.iter().flat_map(denied::DeniedFile::errors));
        errors.sort();
        events.extend(difference(&self.in_force, &winners));
        self.in_force = winners;

        let unknown = self.files.values().any(WatchedFile::never_good)
            || self.denied.as_ref().is_some_and(denied::DeniedFile::never_good)
            || !listing.faults.is_empty();
        let complete = self.complete || !unknown;
        let news = !self.started || !events.is_empty() || errors != self.reported || complete != self.complete;
        self.report(&errors);
        if !self.started && self.files.is_empty() && listing.faults.is_empty() {
            tracing::warn!(directory = %self.root.display(), "no .yaml, .yml or .json file here: the mesh is empty");
        }
        (self.started, self.complete) = (true, complete);
        (news.then(|| Batch { events, errors, complete }), again)
    }

    /// The resources in force, and all faults of the files.
    fn merge(&self) -> (BTreeMap<ResourceKey, Resource>, Vec<ConfigError>) {
        let mut winners: BTreeMap<ResourceKey, (&Path, &Resource)> = BTreeMap::new();
        let mut errors = Vec::new();
        for (path, file) in &self.files {
            errors.extend(file.faults().map(|fault| config_error(path, fault)));
            for resource in file.good().into_iter().flatten() {
                let Some(key) = ResourceKey::of(resource) else { continue };
                match winners.get(&key) {
                    None => drop(winners.insert(key, (path, resource))),
                    Some((first, _)) => errors.push(ConfigError {
                        file: path.display().to_string(),
                        line: None,
                        message: format!(
                            "{key} is declared in {} too, which is in force; remove one of them",
                            first.display()
                        ),
                    }),
                }
            }
        }
        (winners.into_iter().map(|(key, (_, resource))| (key, resource.clone())).collect(), errors)
    }

    /// Logs each fault once when it comes and once when it goes.
    fn report(&mut self, errors: &[ConfigError]) {
        for error in errors.iter().filter(|error| !self.reported.contains(error)) {
            let (file, line, message) = (&error.file, error.line, &error.message);
            tracing::error!(file, line, "resources: {message}; what was last read without fault stays in force");
        }
        for error in self.reported.iter().filter(|error| !errors.contains(error)) {
            tracing::info!(file = error.file, "resources: mended: {}", error.message);
        }
        self.reported = errors.to_vec();
    }
}

/// Which files there are.
#[derive(Debug, Default)]
struct Listing {
    /// Sorted paths below the root.
    files: Vec<PathBuf>,
    /// Directories that could not be listed.
    faults: Vec<(PathBuf, Fault)>,
}

impl Listing {
    fn of(root: &Path) -> Self {
        let mut listing = Self::default();
        listing.add(root, Path::new(""), 0);
        listing.files.sort();
        listing
    }

    /// Whether `path` may still be there, in a directory that could not be listed.
    fn hides(&self, path: &Path) -> bool {
        self.faults.iter().any(|(directory, _)| path.starts_with(directory))
    }

    fn add(&mut self, root: &Path, below: &Path, depth: usize) {
        let entries = match fs::read_dir(root.join(below)).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(fault) => {
                return self
                    .fault(below, format!("this directory cannot be listed ({fault}); mend its path or permissions"));
            }
        };
        for entry in entries {
            let path = below.join(entry.file_name());
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if is_left_behind(name) {
                continue;
            }
            // Not followed for folders: a link to a folder above would never end.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if depth == DEEPEST {
                    self.fault(&path, format!("more than {DEEPEST} folders deep; move it up"));
                } else {
                    self.add(root, &path, depth + 1);
                }
            } else if has_format(name) {
                if self.files.len() == MOST_FILES {
                    return self.fault(below, format!("more than {MOST_FILES} files; gather them in fewer"));
                }
                self.files.push(path);
            }
        }
    }

    fn fault(&mut self, path: &Path, message: String) {
        self.faults.push((path.to_owned(), Fault { line: None, message }));
    }
}

/// Hidden files (`..data` of Kubernetes among them), and what editors and copying programs write beside the real file.
fn is_left_behind(name: &str) -> bool {
    name.starts_with(['.', '#', '~']) || name.ends_with('~')
}

fn has_format(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|ending| name.len() > ending.len() && name.ends_with(ending))
}

fn config_error(path: &Path, fault: &Fault) -> ConfigError {
    let file = if path.as_os_str().is_empty() { ".".to_owned() } else { path.display().to_string() };
    ConfigError { file, line: fault.line, message: fault.message.clone() }
}

/// The resources of a text. With a fault in one document the whole text counts as faulty: what it means together is
/// unknown, and its last good content stays in force.
fn parse(text: &str) -> Result<Vec<Resource>, Vec<Fault>> {
    let (mut resources, mut faults) = (Vec::new(), Vec::new());
    for parsed in parse_documents(text) {
        match parsed {
            Ok(Resource::Skipped(skipped)) => tracing::debug!("resources: {skipped}"),
            Ok(resource) => resources.push(resource),
            Err(error) => {
                let line = u64::try_from(error.line).ok().filter(|line| *line > 0);
                // The line has a field of its own.
                let message = ResourceError { line: 0, ..error }.to_string();
                faults.push(Fault { line, message });
            }
        }
    }
    if faults.is_empty() { Ok(resources) } else { Err(faults) }
}

/// Whether `new` lacks a resource of `old`.
fn loses(old: &[Resource], new: &[Resource]) -> bool {
    let new: BTreeSet<ResourceKey> = new.iter().filter_map(ResourceKey::of).collect();
    old.iter().filter_map(ResourceKey::of).any(|key| !new.contains(&key))
}

fn difference(old: &BTreeMap<ResourceKey, Resource>, new: &BTreeMap<ResourceKey, Resource>) -> Vec<Event> {
    let removed = old.keys().filter(|key| !new.contains_key(key)).map(|key| Event::Removed(key.clone()));
    let applied = new.iter().filter(|(key, resource)| old.get(key) != Some(resource));
    removed.chain(applied.map(|(_, resource)| Event::Applied(resource.clone()))).collect()
}
