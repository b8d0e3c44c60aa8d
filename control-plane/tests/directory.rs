//! The directory source against real files.
mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use common::{LONG, allow, workload};
use tempfile::TempDir;
use weft_control_plane::source::directory::DirectorySource;
use weft_control_plane::source::{Batch, Event, ResourceKey};

/// A source on a directory of its own, and what it said so far.
struct Watched {
    directory: TempDir,
    source: DirectorySource,
    keys: Vec<String>,
    latest: Batch,
}

impl Watched {
    async fn start(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            write(&directory.path().join("resources").join(name), text);
        }
        fs::create_dir_all(directory.path().join("resources")).expect("made");
        let source = DirectorySource::start(directory.path().join("resources"), None, None).expect("started");
        let mut watched = Self { directory, source, keys: Vec::new(), latest: Batch::default() };
        watched.next().await;
        watched
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("resources").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.path(name), text);
    }

    async fn next(&mut self) -> &Batch {
        let batch =
            tokio::time::timeout(LONG, self.source.next()).await.expect("a batch in time").expect("the reader lives");
        for event in &batch.events {
            match event {
                Event::Applied(resource) => {
                    let key = ResourceKey::of(resource).expect("of the mesh").to_string();
                    if !self.keys.contains(&key) {
                        self.keys.push(key);
                    }
                }
                Event::Removed(key) => self.keys.retain(|known| *known != key.to_string()),
                _ => {}
            }
        }
        self.keys.sort();
        self.latest = batch;
        &self.latest
    }

    /// Batches until exactly these resources are in force, and a fault that contains `error` (or none) is reported.
    async fn until(&mut self, keys: &[&str], error: Option<&str>) {
        while !self.is(keys, error) {
            self.next().await;
        }
    }

    fn is(&self, keys: &[&str], error: Option<&str>) -> bool {
        let errors: Vec<String> = self.latest.errors.iter().map(ToString::to_string).collect();
        self.keys == keys
            && match error {
                Some(text) => errors.len() == 1 && errors[0].contains(text),
                None => errors.is_empty(),
            }
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    fs::write(path, text).expect("written");
}

fn policy(name: &str) -> String {
    allow(name, "web", "orders")
}

#[tokio::test]
async fn what_is_there_at_the_start_comes_in_one_batch() {
    let watched = Watched::start(&[
        ("a.yaml", &format!("{}---{}", workload("web", "10.0.0.1"), policy("one"))),
        ("below/b.yml", &policy("two")),
        ("c.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#),
        (".hidden.yaml", "broken: ["),
        (".git/x.yaml", "broken: ["),
        ("a.yaml~", "broken: ["),
        (".a.yaml.swp", "broken: ["),
        ("README.md", "broken: ["),
    ])
    .await;
    assert_eq!(
        watched.keys,
        [
            "AuthorizationPolicy shop/one",
            "AuthorizationPolicy shop/two",
            "Namespace shop",
            "Service shop/web",
            "Workload shop/web"
        ]
    );
    assert!(watched.latest.complete && watched.latest.errors.is_empty(), "{:?}", watched.latest.errors);
}

#[tokio::test]
async fn an_empty_directory_is_complete() {
    let watched = Watched::start(&[]).await;
    assert!(watched.latest.complete && watched.latest.events.is_empty());
}

#[tokio::test]
async fn files_come_change_and_go() {
    let mut watched = Watched::start(&[]).await;
    watched.write("a.yaml", &policy("one"));
    watched.until(&["AuthorizationPolicy shop/one"], None).await;
    watched.write("a.yaml", &format!("{}---{}", policy("one"), policy("two")));
    watched.until(&["AuthorizationPolicy shop/one", "AuthorizationPolicy shop/two"], None).await;
    watched.write("a.yaml", &policy("two"));
    watched.until(&["AuthorizationPolicy shop/two"], None).await;
    fs::remove_file(watched.path("a.yaml")).expect("removed");
    watched.until(&[], None).await;
}

#[tokio::test]
async fn a_file_that_breaks_keeps_its_last_good_content_whatever_way_it_breaks() {
    let good = policy("one");
    for (case, broken) in [
        ("no YAML", b"a: [".to_vec()),
        ("an unknown field", good.replace("action:", "acton:").into_bytes()),
        ("one good document of two", format!("{}---\nkind: Nonsense", policy("two")).into_bytes()),
        ("emptied", Vec::new()),
        ("not UTF-8", vec![b'a', 0xff, 0xfe]),
        ("2 MiB", vec![b'#'; 2 << 20]),
    ] {
        let mut watched = Watched::start(&[("a.yaml", &good), ("b.yaml", &policy("other"))]).await;
        let both = ["AuthorizationPolicy shop/one", "AuthorizationPolicy shop/other"];
        fs::write(watched.path("a.yaml"), broken).expect("written");
        watched.until(&both, Some("a.yaml")).await;
        assert!(watched.latest.complete && watched.latest.events.is_empty(), "{case}: {:?}", watched.latest.events);
        fs::remove_file(watched.path("b.yaml")).expect("removed");
        watched.until(&["AuthorizationPolicy shop/one"], Some("a.yaml")).await;
        watched.write("a.yaml", &policy("mended"));
        watched.until(&["AuthorizationPolicy shop/mended"], None).await;
    }
}

#[tokio::test]
async fn a_fault_names_its_line_and_a_remedy() {
    let text = format!("{}---{}", policy("one"), policy("two").replace("action: Allow", "action: Alow"));
    let line = text.lines().position(|line| line.contains("Alow")).expect("there") as u64 + 1;
    let watched = Watched::start(&[("below/a.yaml", &text)]).await;
    let [error] = &watched.latest.errors[..] else { panic!("{:?}", watched.latest.errors) };
    assert_eq!((error.file.as_str(), error.line), ("below/a.yaml", Some(line)), "{error}");
    assert!(error.message.contains("Allow"), "{error}");
    assert!(!watched.latest.complete, "a policy is unknown");
}

#[tokio::test]
async fn the_same_resource_twice_is_a_fault_and_the_first_file_wins() {
    let mut watched = Watched::start(&[("b.yaml", &policy("one"))]).await;
    watched.write("a.yaml", &policy("one").replace("[orders]", "[users]"));
    watched.until(&["AuthorizationPolicy shop/one"], Some("b.yaml")).await;
    assert!(format!("{:?}", watched.latest.events).contains("users"), "{:?}", watched.latest.events);
    fs::remove_file(watched.path("a.yaml")).expect("removed");
    watched.until(&["AuthorizationPolicy shop/one"], None).await;
    assert!(format!("{:?}", watched.latest.events).contains("orders"), "{:?}", watched.latest.events);
}

#[tokio::test]
async fn a_file_that_is_renamed_over_is_read() {
    let mut watched = Watched::start(&[("a.yaml", &policy("one"))]).await;
    watched.write(".a.yaml.tmp", &policy("two"));
    fs::rename(watched.path(".a.yaml.tmp"), watched.path("a.yaml")).expect("renamed");
    watched.until(&["AuthorizationPolicy shop/two"], None).await;
}

#[tokio::test]
async fn a_volume_of_kubernetes_is_swapped_as_a_whole() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory.path().join("resources");
    write(&root.join("..2026_01/a.yaml"), &policy("one"));
    symlink("..2026_01", root.join("..data")).expect("linked");
    symlink("..data/a.yaml", root.join("a.yaml")).expect("linked");
    let source = DirectorySource::start(root.clone(), None, None).expect("started");
    let mut watched = Watched { directory, source, keys: Vec::new(), latest: Batch::default() };
    watched.until(&["AuthorizationPolicy shop/one"], None).await;

    write(&root.join("..2026_02/a.yaml"), &policy("two"));
    symlink("..2026_02", root.join("..data_tmp")).expect("linked");
    fs::rename(root.join("..data_tmp"), root.join("..data")).expect("renamed");
    fs::remove_dir_all(root.join("..2026_01")).expect("removed");
    watched.until(&["AuthorizationPolicy shop/two"], None).await;
}

#[tokio::test]
async fn a_directory_that_vanishes_changes_nothing_and_is_followed_when_it_is_back() {
    let mut watched = Watched::start(&[("a.yaml", &policy("one"))]).await;
    let (root, away) = (watched.path(""), watched.directory.path().join("away"));
    fs::rename(&root, &away).expect("renamed");
    watched.until(&["AuthorizationPolicy shop/one"], Some("cannot be listed")).await;
    write(&away.join("b.yaml"), &policy("two"));
    fs::rename(&away, &root).expect("renamed");
    watched.until(&["AuthorizationPolicy shop/one", "AuthorizationPolicy shop/two"], None).await;
    watched.write("c.yaml", &policy("three"));
    watched
        .until(
            &["AuthorizationPolicy shop/one", "AuthorizationPolicy shop/three", "AuthorizationPolicy shop/two"],
            None,
        )
        .await;
}

#[tokio::test]
async fn a_file_without_permission_keeps_its_last_good_content() {
    if nix::unistd::geteuid().is_root() {
        return; // Root reads everything.
    }
    let mut watched = Watched::start(&[("a.yaml", &policy("one"))]).await;
    fs::set_permissions(watched.path("a.yaml"), fs::Permissions::from_mode(0o000)).expect("changed");
    watched.until(&["AuthorizationPolicy shop/one"], Some("read permission")).await;
    fs::set_permissions(watched.path("a.yaml"), fs::Permissions::from_mode(0o644)).expect("changed");
    watched.until(&["AuthorizationPolicy shop/one"], None).await;
}

#[tokio::test]
async fn a_pipe_a_dead_link_and_a_link_to_itself_stop_nothing() {
    let mut watched = Watched::start(&[("a.yaml", &policy("one"))]).await;
    nix::unistd::mkfifo(&watched.path("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    watched.until(&["AuthorizationPolicy shop/one"], Some("pipe.yaml")).await;
    fs::remove_file(watched.path("pipe.yaml")).expect("removed");
    symlink("nowhere", watched.path("dead.yaml")).expect("linked");
    watched.until(&["AuthorizationPolicy shop/one"], Some("dead.yaml")).await;
    fs::remove_file(watched.path("dead.yaml")).expect("removed");
    symlink(".", watched.path("loop")).expect("linked");
    watched.write("b.yaml", &policy("two"));
    watched.until(&["AuthorizationPolicy shop/one", "AuthorizationPolicy shop/two"], None).await;
}

#[tokio::test]
async fn an_editor_that_truncates_or_deletes_before_it_writes_never_drops_a_policy() {
    let mut watched = Watched::start(&[("a.yaml", &policy("one"))]).await;
    for round in 0..10 {
        if round % 2 == 0 {
            fs::remove_file(watched.path("a.yaml")).expect("removed");
        } else {
            watched.write("a.yaml", "");
        }
        watched.write("a.yaml", &format!("# {round}\n{}", policy("one")));
        watched.write(&format!("mark-{round}.yaml"), &policy(&format!("mark-{round}")));
        while !watched.keys.contains(&format!("AuthorizationPolicy shop/mark-{round}")) {
            watched.next().await;
            assert!(watched.keys.contains(&"AuthorizationPolicy shop/one".to_owned()), "round {round}");
        }
    }
}
