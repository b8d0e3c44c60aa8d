//! The node's folders, as files that other CNIs write come and go.
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
    fs::set_permissions(node.host.conf_dir.join("10-flannel.conf"), Permissions::from_mode(0o640)).expect("changed");
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
    assert_eq!(fs::read_dir(node.folder.path().join("bin")).expect("readable").count(), 0, "nothing is left behind");
}
