//! The node's folders: the plugin's file and our entry in the network configuration in force. Blocking.
//!
//! Every file appears whole and with its mode, by renaming; a file that another CNI changed in the same moment is not
//! overwritten but looked at anew. Taking out leaves what was there before.
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::PLUGIN;
use super::conflist::{self, SAVED, Unusable};

/// Ending of files that are being written; no runtime reads it.
const UNFINISHED: &str = ".weft-tmp";

/// How often a file that changes under our hands is looked at anew before the next round does.
const ATTEMPTS: usize = 5;

/// The node's folders, as this process sees them.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) bin_dir: PathBuf,
    pub(super) conf_dir: PathBuf,
    /// The file to insert into; otherwise the one in force.
    pub(super) conf_name: Option<String>,
    /// Our entry, JSON.
    pub(super) entry: String,
    /// The file that is the plugin.
    pub(super) executable: PathBuf,
}

/// What cannot be done on the node and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    #[error("{0}: {1}")]
    File(PathBuf, #[source] io::Error),
    #[error("there is no network configuration in {0} yet: the cluster's own CNI has not written it")]
    NothingThere(PathBuf),
    #[error("the plugin cannot be chained in {0}: {1}")]
    Unchainable(PathBuf, Unusable),
    #[error("{0} changes again and again; it is looked at anew soon")]
    Restless(PathBuf),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HostError + '_ {
    move |fault| HostError::File(path.to_owned(), fault)
}

/// What identifies a state of a file without reading it.
type Stamp = (u64, u64, i64, i64);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

/// A plugin's file that was compared byte for byte.
#[derive(Debug, Default)]
pub(super) struct Compared(Option<Stamp>);

impl Host {
    /// Puts the plugin in its place, unless the same is there already; says whether it did.
    pub(super) fn install_plugin(&self, compared: &mut Compared) -> Result<bool, HostError> {
        let target = self.bin_dir.join(PLUGIN);
        let seen = fs::metadata(&target).ok();
        if seen.as_ref().is_some_and(|seen| compared.0 == Some(stamp(seen))) {
            return Ok(false);
        }
        let executable = |metadata: &Metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 == 0o111;
        let same =
            seen.as_ref().is_some_and(executable) && same_content(&self.executable, &target).map_err(at(&target))?;
        if !same {
            let mut source = File::open(&self.executable).map_err(at(&self.executable))?;
            replace(&target, 0o755, |file| io::copy(&mut source, file).map(drop)).map_err(at(&target))?;
        }
        compared.0 = fs::metadata(&target).ok().as_ref().map(stamp);
        Ok(!same)
    }

    /// Makes our entry the last of the configuration in force. Returns the file's name, and whether it was changed.
    pub(super) fn insert(&self) -> Result<(String, bool), HostError> {
        for _ in 0..ATTEMPTS {
            if let Some(done) = self.try_insert()? {
                return Ok(done);
            }
        }
        Err(HostError::Restless(self.conf_dir.clone()))
    }

    /// None if a file changed under our hands.
    fn try_insert(&self) -> Result<Option<(String, bool)>, HostError> {
        for name in self.names()? {
            let path = self.conf_dir.join(&name);
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(fault) if fault.kind() == io::ErrorKind::InvalidData => continue,
                Err(fault) => return Err(HostError::File(path, fault)),
            };
            let inserted = if conflist::is_list(&name) {
                conflist::insert(&text, &self.entry)
            } else {
                conflist::convert(&text, &self.entry).map(Some)
            };
            return match inserted {
                Ok(None) => Ok(Some((name, false))),
                Ok(Some(changed)) if conflist::is_list(&name) => {
                    Ok(rewrite(&path, &text, &changed).map_err(at(&path))?.then_some((name, true)))
                }
                Ok(Some(list)) => self.supersede(&name, &text, &list),
                Err(Unusable::Broken(why)) => {
                    tracing::warn!(file = %path.display(), %why, "not a network configuration; passed over");
                    continue;
                }
                Err(why) => Err(HostError::Unchainable(path, why)),
            };
        }
        Err(HostError::NothingThere(self.conf_dir.clone()))
    }

    /// The list takes the place of the configuration of one plugin that it was made of. A valid one is in force at any
    /// moment: until the old one goes it comes first, then the list does.
    fn supersede(&self, name: &str, text: &str, list: &str) -> Result<Option<(String, bool)>, HostError> {
        let (path, list_name) = (self.conf_dir.join(name), conflist::list_name(name));
        let mode = fs::metadata(&path).map_err(at(&path))?.mode();
        let (list_path, saved) = (self.conf_dir.join(&list_name), self.conf_dir.join(format!("{name}{SAVED}")));
        let theirs = |there: String| !saved.exists() && there != list;
        if fs::read_to_string(&list_path).is_ok_and(theirs) {
            let why =
                format!("{list_name} is there too, and {name} comes before it; remove the one that is not wanted");
            return Err(HostError::Unchainable(path, Unusable::Unchainable(why)));
        }
        replace(&list_path, mode, |file| file.write_all(list.as_bytes())).map_err(at(&list_path))?;
        if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            return Ok(None);
        }
        fs::rename(&path, saved).map_err(at(&path))?;
        Ok(Some((list_name, true)))
    }

    /// Takes our entry out of every configuration and puts back what a list was made of. Goes on after a failure; returns
    /// what was changed and what failed.
    pub(super) fn take_out(&self) -> (Vec<PathBuf>, Vec<HostError>) {
        let (mut changed, mut failed) = (Vec::new(), Vec::new());
        let mut note = |path: &Path, outcome: io::Result<bool>| match outcome {
            Ok(true) => changed.push(path.to_owned()),
            Ok(false) => {}
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
            Err(fault) => failed.push(HostError::File(path.to_owned(), fault)),
        };
        match self.all_names() {
            Ok(names) => {
                let saved = names.iter().filter_map(|name| Some((name, name.strip_suffix(SAVED)?)));
                for (name, original) in saved {
                    note(&self.conf_dir.join(original), self.put_back(name, original));
                }
                for name in names.iter().filter(|name| conflist::is_list(name)) {
                    let path = self.conf_dir.join(name);
                    note(&path, take_out(&path));
                }
                for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
                    let path = self.conf_dir.join(name);
                    note(&path, fs::remove_file(&path).map(|()| true));
                }
            }
            Err(fault) => note(&self.conf_dir, Err(fault)),
        }
        (changed, failed)
    }

    /// Removes the plugin's file. Only after [`Host::take_out`]: a configuration that names a plugin which is not there
    /// starts no pod at all.
    pub(super) fn remove_plugin(&self) -> Result<(), HostError> {
        let plugin = self.bin_dir.join(PLUGIN);
        match fs::remove_file(&plugin) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(HostError::File(plugin, fault)),
            _ => Ok(()),
        }
    }

    /// Puts a saved configuration of one plugin back in the place of the list that was made of it.
    fn put_back(&self, saved: &str, original: &str) -> io::Result<bool> {
        let (saved, path) = (self.conf_dir.join(saved), self.conf_dir.join(original));
        let list = self.conf_dir.join(conflist::list_name(original));
        let ours = fs::read_to_string(&list).is_ok_and(|text| matches!(conflist::remove(&text), Ok(Some(_))));
        // If it is there again, its owner wrote a new one since.
        if path.exists() {
            fs::remove_file(saved)?;
        } else {
            fs::rename(saved, path)?;
        }
        if ours {
            fs::remove_file(list)?;
        }
        Ok(true)
    }

    /// The configurations to look at, first the one that comes first.
    fn names(&self) -> Result<Vec<String>, HostError> {
        if let Some(name) = &self.conf_name {
            let list = conflist::list_name(name);
            let there = if self.conf_dir.join(name).exists() { name.clone() } else { list };
            return Ok(vec![there].into_iter().filter(|name| self.conf_dir.join(name).exists()).collect());
        }
        let names = self.all_names().map_err(at(&self.conf_dir))?;
        let ordered = conflist::configurations(names.iter().map(String::as_str));
        Ok(ordered.into_iter().map(str::to_owned).collect())
    }

    fn all_names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.conf_dir)?.filter_map(Result::ok);
        let files = entries.filter(|entry| !entry.path().is_dir());
        Ok(files.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

fn take_out(path: &Path) -> io::Result<bool> {
    for _ in 0..ATTEMPTS {
        let text = fs::read_to_string(path)?;
        let Ok(Some(without)) = conflist::remove(&text) else { return Ok(false) };
        if rewrite(path, &text, &without)? {
            return Ok(true);
        }
    }
    Err(io::Error::other("it changes again and again"))
}

/// Replaces `old` by `new` with the same mode and owner's rights; false if it is not `old` any more.
fn rewrite(path: &Path, old: &str, new: &str) -> io::Result<bool> {
    // A link stays a link.
    let path = fs::canonicalize(path)?;
    let mode = fs::metadata(&path)?.mode();
    let unfinished = write_beside(&path, mode, |file| file.write_all(new.as_bytes()))?;
    if fs::read_to_string(&path).ok().as_deref() != Some(old) {
        fs::remove_file(unfinished)?;
        return Ok(false);
    }
    fs::rename(unfinished, path)?;
    Ok(true)
}

fn replace(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let unfinished = write_beside(path, mode, fill)?;
    fs::rename(unfinished, path)
}

/// A whole file beside `path`, on disk. In the same folder also because containerd takes no notice of a file that comes
/// from another one.
fn write_beside(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = path.with_file_name(format!(".{name}{UNFINISHED}"));
    let written = File::create(&unfinished).and_then(|mut file| {
        fill(&mut file)?;
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(unfinished),
        Err(fault) => {
            let _ = fs::remove_file(&unfinished);
            Err(fault)
        }
    }
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut here, mut there) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let len = one.read(&mut here)?;
        if len == 0 {
            return Ok(true);
        }
        match other.read_exact(&mut there[..len]) {
            Ok(()) if here[..len] == there[..len] => {}
            Ok(()) => return Ok(false),
            Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(fault) => return Err(fault),
        }
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
