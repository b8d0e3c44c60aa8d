//! Pods in, meshed pods out: `injector/in/<case>.yaml` (namespace, settings, pod) and `injector/out/<case>.yaml`.
//!
//! With `UPDATE_GOLDEN=1` the outputs are written anew; read the difference before you commit it.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft_control_plane::webhook::injector::{InjectorConfig, NamespaceMeta, Outcome, Unchanged, inject_with, patch};

struct Case {
    name: String,
    namespace: NamespaceMeta,
    config: InjectorConfig,
    pod: Value,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/injector").join(name)
}

fn texts(value: Option<&Value>) -> BTreeMap<String, String> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.map(|(key, value)| (key.clone(), value.as_str().expect("a text").to_owned())).collect()
}

fn cases() -> Vec<Case> {
    let entries = fs::read_dir(folder("in")).expect("the cases");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("readable");
        let case: Value = serde_saphyr::from_str(&text).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
        let config = case.get("config").map_or_else(String::new, Value::to_string);
        Case {
            name: path.file_stem().expect("a name").to_string_lossy().into_owned(),
            namespace: NamespaceMeta {
                name: case["namespace"]["name"].as_str().expect("a name").to_owned(),
                labels: texts(case["namespace"].get("labels")),
                annotations: texts(case["namespace"].get("annotations")),
            },
            config: InjectorConfig::from_yaml(&config).expect("settings"),
            pod: case["pod"].clone(),
        }
    };
    paths.into_iter().map(read).collect()
}

fn injected(case: &Case, pod: &Value) -> Outcome {
    let mut secrets = 0;
    let mut secret = || {
        secrets += 1;
        format!("secret-{secrets}")
    };
    inject_with(pod, &case.namespace, &case.config, &mut secret)
}

/// The outcome as the golden file shows it. What changes with every release is left out.
fn shown(outcome: &Outcome) -> String {
    let (outcome, pod) = match outcome {
        Outcome::Injected(pod) => ("injected".to_owned(), pod.clone()),
        Outcome::Unchanged(why) => (format!("unchanged: {why}"), Value::Null),
        Outcome::Skipped { reason, pod } => (format!("skipped: {reason}"), pod.clone()),
        Outcome::Refused(fault) => (format!("refused: {fault}"), Value::Null),
    };
    let text = serde_saphyr::to_string(&json!({"outcome": outcome, "pod": pod})).expect("YAML");
    text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

#[test]
fn each_pod_becomes_what_the_golden_file_says() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut expected: Vec<PathBuf> = match fs::read_dir(folder("out")) {
        Ok(entries) => entries.map(|entry| entry.expect("an entry").path()).collect(),
        Err(_) => Vec::new(),
    };
    for case in cases() {
        let path = folder("out").join(format!("{}.yaml", case.name));
        let text = shown(&injected(&case, &case.pod));
        if update {
            fs::create_dir_all(folder("out")).expect("made");
            fs::write(&path, &text).expect("written");
        }
        assert_eq!(text, fs::read_to_string(&path).unwrap_or_default(), "{}; see UPDATE_GOLDEN", case.name);
        expected.retain(|known| *known != path);
    }
    assert_eq!(expected, Vec::<PathBuf>::new(), "outputs of no case");
}

#[test]
fn doing_it_again_changes_nothing() {
    for case in cases() {
        match injected(&case, &case.pod) {
            Outcome::Injected(pod) => {
                let again = injected(&case, &pod);
                assert_eq!(again, Outcome::Unchanged(Unchanged::AlreadyInjected), "{}", case.name);
            }
            Outcome::Skipped { reason, pod } => {
                assert_eq!(injected(&case, &pod), Outcome::Skipped { reason, pod }, "{}", case.name);
            }
            Outcome::Unchanged(_) | Outcome::Refused(_) => {}
        }
    }
}

#[test]
fn the_patch_makes_the_pod_that_was_meant() {
    for case in cases() {
        if let Outcome::Injected(after) | Outcome::Skipped { pod: after, .. } = injected(&case, &case.pod) {
            let mut pod = case.pod.clone();
            json_patch::patch(&mut pod, &patch(&case.pod, &after)).expect("it applies");
            assert_eq!(pod, after, "{}", case.name);
        }
    }
}
