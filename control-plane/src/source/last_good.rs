//! The last good text of each resource file, kept over restarts: a control plane that comes back while a file is broken
//! goes on with what was in force, and neither forgets a policy nor keeps sidecars waiting.
//!
//! What cannot be kept (full disk) is deleted rather than left to grow old: an outdated policy could widen access.
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::durable;

/// Where last good texts are kept.
#[derive(Debug)]
pub struct LastGood {
    directory: PathBuf,
    /// The resources directory: what was kept for another one means nothing here.
    root: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    root: String,
    path: String,
    text: String,
}

impl LastGood {
    /// Keeps the texts of `root` in `directory`, which is made where it is missing.
    pub fn new(directory: PathBuf, root: &Path) -> Self {
        if let Err(fault) = DirBuilder::new().recursive(true).mode(0o700).create(&directory) {
            tracing::error!(directory = %directory.display(), %fault, "cannot keep last good resources over a restart");
        }
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned()).display().to_string();
        Self { directory, root }
    }

    /// Everything that was kept: paths below the root, and texts.
    pub fn load(&self) -> Vec<(PathBuf, String)> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let kept = entries.filter_map(|entry| {
            let content = fs::read(entry.ok()?.path()).ok()?;
            serde_json::from_slice::<Kept>(&content).ok()
        });
        kept.filter(|kept| kept.root == self.root).map(|kept| (PathBuf::from(kept.path), kept.text)).collect()
    }

    /// Keeps `text` for `path`.
    pub fn keep(&self, path: &Path, text: &str) {
        let kept = Kept { root: self.root.clone(), path: path.display().to_string(), text: text.to_owned() };
        let content = serde_json::to_vec(&kept).expect("strings are JSON");
        if let Err(fault) = durable::replace(&self.directory, &file_name(path), &content, 0o600) {
            tracing::error!(directory = %self.directory.display(), file = %path.display(), %fault, "cannot keep a last good resource over a restart");
            self.forget(path);
        }
    }

    /// Keeps nothing for `path`.
    pub fn forget(&self, path: &Path) {
        match fs::remove_file(self.directory.join(file_name(path))) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => {
                tracing::error!(directory = %self.directory.display(), file = %path.display(), %fault, "cannot forget a resource; delete this directory before the next start");
            }
            _ => {}
        }
    }
}

/// Any path becomes a name without slashes.
fn file_name(path: &Path) -> String {
    let hash = digest::digest(&digest::SHA256, path.as_os_str().as_encoded_bytes());
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.json")
}
