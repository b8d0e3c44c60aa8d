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
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"type":"weft-cni","socket":"/run/weft/cni.sock"}"#;
    const LIST: &str = "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"plugins\":[{\"type\":\"bridge\"}]}\n";
    const SINGLE: &str = "{\"cniVersion\":\"0.3.1\",\"name\":\"n\",\"type\":\"flannel\"}\n";

    struct Node {
        folder: tempfile::TempDir,
        host: Host,
    }

    impl Node {
        fn with(files: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let (bin_dir, conf_dir) = (folder.path().join("bin"), folder.path().join("net.d"));
            fs::create_dir(&bin_dir).and_then(|()| fs::create_dir(&conf_dir)).expect("folders");
            let executable = folder.path().join("weft");
            fs::write(&executable, "one").expect("written");
            let host = Host { bin_dir, conf_dir, conf_name: None, entry: ENTRY.into(), executable };
            let node = Self { folder, host };
            for (name, text) in files {
                node.write(name, text);
            }
            node
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.host.conf_dir.join(name), text).expect("written");
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.host.conf_dir.join(name)).unwrap_or_else(|fault| panic!("{name}: {fault}"))
        }

        /// Names of files and whether each has our entry.
        fn state(&self) -> Vec<(String, bool)> {
            let mut names = self.host.all_names().expect("readable");
            names.sort();
            names.into_iter().map(|name| (name.clone(), self.read(&name).contains(PLUGIN))).collect()
        }
    }

    fn state(expected: &[(&str, bool)]) -> Vec<(String, bool)> {
        expected.iter().map(|(name, ours)| ((*name).to_owned(), *ours)).collect()
    }

    #[test]
    fn the_entry_goes_into_the_configuration_in_force_and_out_of_all() {
        for (files, inserted, after) in [
            (
                vec![("10-a.conflist", LIST), ("20-b.conflist", LIST)],
                "10-a.conflist",
                vec![("10-a.conflist", true), ("20-b.conflist", false)],
            ),
            (
                vec![("10-flannel.conf", SINGLE)],
                "10-flannel.conflist",
                vec![("10-flannel.conf.weft-saved", false), ("10-flannel.conflist", true)],
            ),
            (
                vec![("05-x.json", SINGLE), ("10-a.conflist", LIST)],
                "05-x.conflist",
                vec![("05-x.conflist", true), ("05-x.json.weft-saved", false), ("10-a.conflist", false)],
            ),
            (
                // A file that is being written, or that nobody could read.
                vec![("00-broken.conflist", "{\"name\":"), ("01-empty.conf", ""), ("10-a.conflist", LIST)],
                "10-a.conflist",
                vec![("00-broken.conflist", false), ("01-empty.conf", false), ("10-a.conflist", true)],
            ),
        ] {
            let node = Node::with(&files);
            assert_eq!(node.host.insert().expect("inserted"), (inserted.to_owned(), true));
            assert_eq!(node.state(), state(&after));
            assert_eq!(node.host.insert().expect("there"), (inserted.to_owned(), false), "again changes nothing");
            let (changed, failed) = node.host.take_out();
            assert!(changed.len() == 1 && failed.is_empty(), "{changed:?} {failed:?}");
            for (name, text) in &files {
                assert_eq!(node.read(name), *text, "as before");
            }
            assert_eq!(node.state().len(), files.len(), "{:?}", node.state());
        }
    }

    #[test]
    fn what_another_cni_writes_anew_gets_the_entry_anew() {
        let node = Node::with(&[("10-a.conflist", LIST), ("20-flannel.conf", SINGLE)]);
        node.host.insert().expect("inserted");
        node.write("10-a.conflist", LIST);
        assert_eq!(node.host.insert().expect("inserted"), ("10-a.conflist".to_owned(), true));
        node.write("05-first.conflist", LIST);
        assert_eq!(node.host.insert().expect("inserted"), ("05-first.conflist".to_owned(), true));
        fs::remove_file(node.host.conf_dir.join("05-first.conflist")).expect("removed");
        fs::remove_file(node.host.conf_dir.join("10-a.conflist")).expect("removed");
        assert_eq!(node.host.insert().expect("inserted"), ("20-flannel.conflist".to_owned(), true));
        let other = SINGLE.replace("0.3.1", "0.4.0");
        node.write("20-flannel.conf", &other);
        assert_eq!(node.host.insert().expect("inserted"), ("20-flannel.conflist".to_owned(), true));
        assert!(node.read("20-flannel.conflist").contains("0.4.0"));
        // Its owner is quicker than the next round: nothing of ours stays, and its file does.
        node.write("20-flannel.conf", SINGLE);
        let (_, failed) = node.host.take_out();
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(node.state(), state(&[("20-flannel.conf", false)]));
        assert_eq!(node.read("20-flannel.conf"), SINGLE);
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_link_stays_one() {
        let node = Node::with(&[("target", LIST)]);
        let (target, link) = (node.host.conf_dir.join("target"), node.host.conf_dir.join("10-a.conflist"));
        fs::set_permissions(&target, Permissions::from_mode(0o600)).expect("changed");
        std::os::unix::fs::symlink("target", &link).expect("linked");
        node.host.insert().expect("inserted");
        assert!(node.read("target").contains(PLUGIN));
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::metadata(&target).expect("there").mode() & 0o777, 0o600);

        let node = Node::with(&[("10-flannel.conf", SINGLE)]);
        fs::set_permissions(node.host.conf_dir.join("10-flannel.conf"), Permissions::from_mode(0o640))
            .expect("changed");
        node.host.insert().expect("inserted");
        let list = node.host.conf_dir.join("10-flannel.conflist");
        assert_eq!(fs::metadata(list).expect("there").mode() & 0o777, 0o640);
    }

    #[test]
    fn what_cannot_be_done_says_why_and_changes_nothing() {
        let old = LIST.replace("0.4.0", "0.2.0");
        for (files, hint) in [
            (vec![], "has not written it"),
            (vec![("README", LIST)], "has not written it"),
            (vec![("10-a.conflist", "")], "has not written it"),
            (vec![("10-a.conflist", old.as_str()), ("20-b.conflist", LIST)], "0.3.1"),
            (vec![("10-a.conf", SINGLE), ("10-a.conflist", LIST)], "remove the one that is not wanted"),
        ] {
            let node = Node::with(&files);
            let fault = node.host.insert().expect_err(hint).to_string();
            assert!(fault.contains(hint), "{fault}");
            for (name, text) in &files {
                assert_eq!(node.read(name), *text);
            }
        }
    }

    #[test]
    fn a_named_file_is_the_one() {
        let mut node = Node::with(&[("10-a.conflist", LIST), ("20-b.conf", SINGLE)]);
        node.host.conf_name = Some("20-b.conf".into());
        assert_eq!(node.host.insert().expect("inserted"), ("20-b.conflist".to_owned(), true));
        assert_eq!(node.host.insert().expect("there"), ("20-b.conflist".to_owned(), false));
        assert_eq!(node.read("10-a.conflist"), LIST);
        node.host.conf_name = Some("30-c.conflist".into());
        assert!(matches!(node.host.insert(), Err(HostError::NothingThere(_))));
    }

    #[test]
    fn the_plugins_file_is_written_once_whole_and_executable() {
        let node = Node::with(&[]);
        let (plugin, mut compared) = (node.host.bin_dir.join(PLUGIN), Compared::default());
        let install = |compared: &mut Compared| node.host.install_plugin(compared).expect("installed");
        assert!(install(&mut compared));
        assert_eq!(fs::metadata(&plugin).expect("there").mode() & 0o777, 0o755);
        assert!(!install(&mut compared), "it is there");
        assert!(!install(&mut Compared::default()), "another agent finds it there");
        fs::write(&plugin, "longer").expect("damaged");
        assert!(install(&mut compared));
        assert_eq!(fs::read_to_string(&plugin).expect("readable"), "one");
        fs::set_permissions(&plugin, Permissions::from_mode(0o644)).expect("changed");
        assert!(install(&mut Compared::default()));
        fs::remove_file(&plugin).expect("removed");
        assert!(install(&mut compared));
        node.host.remove_plugin().and_then(|()| node.host.remove_plugin()).expect("removing nothing is no fault");
        assert_eq!(
            fs::read_dir(node.folder.path().join("bin")).expect("readable").count(),
            0,
            "nothing is left behind"
        );
    }
}
