//! One file, and the last good content of it.
//!
//! A file is read again only when its stamp (inode, size, times) differs, or was so fresh that a later write could bear the
//! same one. Content that cannot be read or parsed changes nothing but the list of faults. Content that loses something,
//! and a file that vanishes, must look the same at a second look before it counts: editors truncate before they write and
//! delete before they create, and for that moment a policy must not be gone.
use std::fs::{Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;

/// The longest file that is read, in bytes.
pub const LONGEST_FILE: u64 = weft_api::resource::MAX_TEXT_BYTES as u64;
/// How long a loss must last before it counts.
pub const SETTLE: Duration = Duration::from_millis(250);
/// A stamp that was this fresh when it was taken does not prove that the file is unchanged.
const FRESH: Duration = Duration::from_secs(2);

/// A fault in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which line, counted from 1, where known.
    pub line: Option<u64>,
    /// What is wrong, and the remedy.
    pub message: String,
}

/// What a look at a file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing new.
    Unchanged,
    /// Other faults.
    Faulty,
    /// Other content, which is good: its text.
    Good(String),
    /// Maybe something; look again after [`SETTLE`].
    Again,
}

/// One file as it was last read.
#[derive(Debug)]
pub struct WatchedFile<T> {
    good: Option<T>,
    faults: Vec<Fault>,
    unreadable: Option<Fault>,
    stamp: Option<Stamp>,
    hash: Option<Hash>,
    unsettled: Option<(Option<Hash>, SystemTime)>,
}

type Hash = [u8; digest::SHA256_OUTPUT_LEN];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    fresh: bool,
}

impl<T> Default for WatchedFile<T> {
    fn default() -> Self {
        Self { good: None, faults: Vec::new(), unreadable: None, stamp: None, hash: None, unsettled: None }
    }
}

impl<T> WatchedFile<T> {
    /// A file that was last seen with this good content.
    pub fn with(good: T) -> Self {
        Self { good: Some(good), ..Self::default() }
    }

    /// The last content without fault.
    pub fn good(&self) -> Option<&T> {
        self.good.as_ref()
    }

    /// What is wrong with the file now.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.unreadable.iter().chain(&self.faults)
    }

    /// Whether nothing is known of the file but that it is faulty.
    pub fn never_good(&self) -> bool {
        self.good.is_none() && self.faults().next().is_some()
    }

    /// Looks at `path`. `parse` reads its text; `loses` tells whether the second of two contents lacks something of the
    /// first. With `settle` zero every content counts at once.
    pub fn look(
        &mut self,
        path: &Path,
        now: SystemTime,
        settle: Duration,
        parse: impl FnOnce(&str) -> Result<T, Vec<Fault>>,
        loses: impl FnOnce(&T, &T) -> bool,
    ) -> Look {
        let (bytes, stamp) = match read(path, self.stamp, now) {
            Ok(Some(read)) => read,
            Ok(None) => return Look::Unchanged,
            Err(fault) => {
                let fault = Some(Fault { line: None, message: fault });
                self.stamp = None;
                let look = if self.unreadable == fault { Look::Unchanged } else { Look::Faulty };
                self.unreadable = fault;
                return look;
            }
        };
        let readable_again = if self.unreadable.take().is_some() { Look::Faulty } else { Look::Unchanged };
        let hash: Hash = digest::digest(&digest::SHA256, &bytes).as_ref().try_into().expect("SHA-256 has one length");
        if self.hash == Some(hash) {
            self.stamp = Some(stamp);
            self.unsettled = None;
            return readable_again;
        }
        let parsed = match String::from_utf8(bytes) {
            Ok(text) => parse(&text).map(|content| (content, text)),
            Err(fault) => Err(vec![not_utf8(fault.as_bytes(), fault.utf8_error().valid_up_to())]),
        };
        let doubtful = match (&parsed, &self.good) {
            (Ok((new, _)), Some(old)) => loses(old, new),
            (Ok(_), None) => false,
            (Err(_), _) => true,
        };
        if doubtful && !self.settled(Some(hash), now, settle) {
            // Without a stamp the next look reads the file again.
            self.stamp = None;
            return Look::Again;
        }
        self.unsettled = None;
        self.stamp = Some(stamp);
        self.hash = Some(hash);
        match parsed {
            Ok((content, text)) => {
                self.good = Some(content);
                self.faults = Vec::new();
                Look::Good(text)
            }
            Err(faults) => {
                self.faults = faults;
                Look::Faulty
            }
        }
    }

    /// The file is not there. True: it has been gone long enough to be forgotten.
    pub fn vanished(&mut self, now: SystemTime, settle: Duration) -> bool {
        self.stamp = None;
        self.settled(None, now, settle)
    }

    /// Whether the same doubtful content was seen `settle` ago.
    fn settled(&mut self, hash: Option<Hash>, now: SystemTime, settle: Duration) -> bool {
        match self.unsettled {
            // A clock that was set back counts as settled: the content was seen before.
            Some((seen, since)) if seen == hash => now.duration_since(since).map_or(true, |age| age >= settle),
            _ => {
                self.unsettled = Some((hash, now));
                settle.is_zero()
            }
        }
    }
}

/// Reads `path` unless its stamp is still `known`. The error says what to do.
fn read(path: &Path, known: Option<Stamp>, now: SystemTime) -> Result<Option<(Vec<u8>, Stamp)>, String> {
    let remedy = |fault: std::io::Error| match fault.kind() {
        std::io::ErrorKind::PermissionDenied => {
            format!("cannot be read ({fault}); give the control plane's user read permission")
        }
        _ => format!("cannot be read ({fault})"),
    };
    let same = |metadata: &Metadata| known.is_some_and(|known| !known.fresh && known == Stamp::of(metadata, now));
    let metadata = std::fs::metadata(path).map_err(remedy)?;
    if same(&metadata) {
        return Ok(None);
    }
    // Not waiting: opening a pipe that nobody writes to would stop everything.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(remedy)?;
    let metadata = file.metadata().map_err(remedy)?;
    if !metadata.is_file() {
        return Err("is not a regular file; move it away".to_owned());
    }
    let stamp = Stamp::of(&metadata, now);
    let mut bytes = Vec::new();
    file.take(LONGEST_FILE + 1).read_to_end(&mut bytes).map_err(remedy)?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(format!("is longer than {} MiB; divide it into several files", LONGEST_FILE / 1024 / 1024));
    }
    Ok(Some((bytes, stamp)))
}

fn not_utf8(bytes: &[u8], valid: usize) -> Fault {
    let line = bytes[..valid].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
    Fault { line: Some(line), message: "not UTF-8; save the file as UTF-8".to_owned() }
}

impl Stamp {
    fn of(metadata: &Metadata, now: SystemTime) -> Self {
        let modified = metadata.modified().unwrap_or(now);
        let changed = SystemTime::UNIX_EPOCH
            .checked_add(Duration::new(metadata.ctime().try_into().unwrap_or(0), metadata.ctime_nsec() as u32))
            .unwrap_or(now);
        let age = |time: SystemTime| now.duration_since(time).unwrap_or_default();
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            fresh: age(modified) < FRESH || age(changed) < FRESH,
        }
    }
}
