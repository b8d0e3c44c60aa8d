//! Pods in, meshed pods out: `injector/in/<case>.yaml` (namespace, settings, pod) and `injector/out/<case>.yaml`.
//!
//! With `UPDATE_GOLDEN=1` the outputs are written anew; read the difference before you commit it.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
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

fn enabled() -> NamespaceMeta {
    let inject = ("weft.dev/inject".to_owned(), "enabled".to_owned());
    NamespaceMeta { name: "shop".to_owned(), annotations: [inject].into(), ..NamespaceMeta::default() }
}

fn pod() -> Value {
    json!({"metadata": {"name": "orders"}, "spec": {"containers": [{"name": "orders", "image": "orders:1"}]}})
}

/// The pod in an enabled namespace with the default settings.
fn outcome(pod: &Value) -> Outcome {
    inject_with(pod, &enabled(), &InjectorConfig::default(), &mut || "secret".to_owned())
}

fn annotated(key: &str, value: &str) -> Value {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({ key: value });
    pod
}

#[test]
fn what_cannot_be_done_is_refused_with_what_to_write() {
    let every_other = (1..=600).map(|port| (port * 2).to_string()).collect::<Vec<_>>().join(",");
    for (key, value, hint) in [
        ("weft.dev/inject", "enable", "write `enabled`"),
        ("weft.dev/inject", "Enabled", "write `enabled`"),
        ("weft.dev/inject", "no", "write `disabled`"),
        ("weft.dev/inject", "", "write `enabled` or `disabled`"),
        ("weft.dev/skip-inbound-port", "22", "write weft.dev/skip-inbound-ports"),
        ("weft.dev/unheard-of", "x", "not known"),
        ("weft.dev/skip-inbound-ports", "-1", "22 or 8000-8010"),
        ("weft.dev/skip-inbound-ports", "70000", "1 to 65535"),
        ("weft.dev/skip-outbound-ports", "abc", "22 or 8000-8010"),
        ("weft.dev/skip-outbound-ports", "80-20", "write 20-80"),
        ("weft.dev/skip-outbound-ports", every_other.as_str(), "at most 256"),
        ("weft.dev/opaque-ports", "mysql", "22 or 8000-8010"),
        ("weft.dev/skip-subnets", "10.0.0.0/33", "10.0.0.0/8"),
        ("weft.dev/proxy-cpu-request", "ten", "10m"),
        ("weft.dev/proxy-memory-limit", "64m", "64Mi"),
        ("weft.dev/proxy-memory-limit", "64MB", "64Mi"),
        ("weft.dev/log-level", "inof", "write `info`"),
        ("weft.dev/access-log", "error", "write `errors`"),
    ] {
        match outcome(&annotated(key, value)) {
            Outcome::Refused(fault) => assert!(fault.contains(hint) && fault.len() < 400, "{key}: {fault}"),
            other => panic!("{key} {value}: {other:?}"),
        }
    }
}

#[test]
fn a_pod_that_would_pass_by_its_sidecar_or_take_its_place_is_refused() {
    for (path, value, hint) in [
        ("/spec/securityContext", json!({"runAsUser": 2102}), "another runAsUser"),
        ("/spec/containers/0/securityContext", json!({"runAsUser": 2102.0}), "another runAsUser"),
        (
            "/spec/initContainers",
            json!([{"name": "a", "securityContext": {"runAsUser": 2102}}]),
            "`a` in spec.initContainers",
        ),
        ("/spec/containers/0/ports", json!([{"containerPort": 4243}]), "4243, which is the sidecar's"),
        ("/spec/containers/0/name", json!("weft-proxy"), "Weft did not write it"),
        ("/spec/initContainers", json!([{"name": "weft-init"}]), "Weft did not write it"),
        ("/spec/initContainers", json!([{"name": "weft-validate"}]), "Weft did not write it"),
        ("/spec/volumes", json!([{"name": "weft-token", "emptyDir": {}}]), "Weft did not write it"),
        ("/spec/containers/0/name", json!(7), "list of objects with a name"),
        ("/spec/containers", json!([]), "no spec.containers"),
        ("/spec/volumes", json!("none"), "list of objects with a name"),
        ("/metadata/annotations", json!({"a": 1}), "quotation marks"),
        (
            "/spec/containers/0/livenessProbe",
            json!({"httpGet": {"path": "/probe/orders/liveness", "port": 4291}}),
            "write the check as it is without Weft",
        ),
        (
            "/spec/containers/0/livenessProbe",
            json!({"httpGet": {"path": "/".repeat(70_000), "port": 80}}),
            "shorten their paths",
        ),
    ] {
        let mut pod = pod();
        let (parent, key) = path.rsplit_once('/').expect("a path");
        pod.pointer_mut(parent).expect("it is there")[key] = value;
        match outcome(&pod) {
            Outcome::Refused(fault) => assert!(fault.contains(hint), "{path}: {fault}"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

/// Any of these is a sidecar that the application could control.
#[test]
fn an_injected_pod_that_was_tampered_with_is_refused() {
    let Outcome::Injected(good) = outcome(&pod()) else { panic!("injected") };
    for (path, value) in [
        ("/spec/initContainers/1/securityContext/runAsUser", json!(1000)),
        ("/spec/initContainers/1/command", json!(["/bin/sh"])),
        ("/spec/initContainers/0/command", json!(["/weft-proxy", "init", "--cleanup"])),
        ("/spec/initContainers/0/name", json!("renamed")),
        ("/spec/initContainers/1/name", json!("renamed")),
        ("/spec/containers/0/name", json!("weft-proxy")),
        ("/spec/volumes/0/name", json!("renamed")),
    ] {
        let mut pod = good.clone();
        *pod.pointer_mut(path).expect("it is there") = value;
        assert!(matches!(outcome(&pod), Outcome::Refused(_)), "{path}: {:?}", outcome(&pod));
    }
}

#[test]
fn what_other_webhooks_add_later_is_taken_over() {
    let mut original = pod();
    original["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 80}});
    let Outcome::Injected(mut pod) = outcome(&original) else { panic!("injected") };
    // As the API server's own plugins and other injectors do.
    let spec = pod["spec"].as_object_mut().expect("an object");
    let containers = spec["containers"].as_array_mut().expect("a list");
    containers.insert(0, json!({"name": "agent", "readinessProbe": {"httpGet": {"path": "/", "port": 81}}}));
    let init = spec["initContainers"].as_array_mut().expect("a list");
    init.insert(0, json!({"name": "agent-init"}));
    init[2]["volumeMounts"].as_array_mut().expect("a list").push(json!({"name": "api", "mountPath": "/api"}));
    init[2]["resources"]["limits"]["cpu"] = json!("2");

    let Outcome::Injected(pod) = outcome(&pod) else { panic!("completed") };
    assert_eq!(outcome(&pod), Outcome::Unchanged(Unchanged::AlreadyInjected));
    let init = pod["spec"]["initContainers"].as_array().expect("a list");
    let names: Vec<&str> = init.iter().map(|container| container["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["weft-init", "weft-proxy", "agent-init"]);
    assert_eq!(init[1]["resources"]["limits"]["cpu"], "2", "what others added stays");
    let env = init[1]["env"].as_array().expect("a list");
    let probes: Vec<_> = env.iter().filter(|variable| variable["name"] == "WEFT_PROBES").collect();
    let [probes] = probes[..] else { panic!("one variable: {probes:?}") };
    let probes = weft_api::probe::parse(probes["value"].as_str().expect("a text")).expect("probes");
    assert_eq!(probes.keys().collect::<Vec<_>>(), ["agent/readiness", "orders/liveness"]);
}

#[test]
fn a_default_gives_way_to_what_an_annotation_asks_for() {
    for (key, value, requests, limits) in [
        ("weft.dev/proxy-memory-request", "1Gi", "1Gi", "1Gi"),
        ("weft.dev/proxy-memory-limit", "20Mi", "20Mi", "20Mi"),
        ("weft.dev/proxy-memory-limit", "1Gi", "32Mi", "1Gi"),
    ] {
        let Outcome::Injected(pod) = outcome(&annotated(key, value)) else { panic!("injected") };
        let resources = &pod["spec"]["initContainers"][1]["resources"];
        assert_eq!(
            (&resources["requests"]["memory"], &resources["limits"]["memory"]),
            (&json!(requests), &json!(limits))
        );
    }
    let mut pod = annotated("weft.dev/proxy-cpu-request", "2");
    pod["metadata"]["annotations"]["weft.dev/proxy-cpu-limit"] = json!("1");
    assert!(matches!(outcome(&pod), Outcome::Refused(fault) if fault.contains("higher limit")));
}

#[test]
fn a_namespace_that_cannot_be_read_refuses_its_pods_but_those_that_opted_out() {
    let mut namespace = enabled();
    namespace.annotations.insert("weft.dev/inject".to_owned(), "true".to_owned());
    let inject = |pod: &Value| inject_with(pod, &namespace, &InjectorConfig::default(), &mut String::new);
    assert!(matches!(inject(&pod()), Outcome::Refused(_)));
    assert_eq!(inject(&annotated("weft.dev/inject", "disabled")), Outcome::Unchanged(Unchanged::NotAsked));
    let mut both = annotated("weft.dev/inject", "disabled");
    both["metadata"]["labels"] = json!({"weft.dev/inject": "enabled"});
    assert!(matches!(outcome(&both), Outcome::Refused(fault) if fault.contains("different things")));
}

/// Pods that may be anything, but are often nearly right.
fn anything() -> impl Strategy<Value = Value> {
    let words = prop_oneof![
        Just("weft.dev/inject"),
        Just("weft.dev/injected"),
        Just("weft.dev/skip-inbound-ports"),
        Just("enabled"),
        Just("22"),
        Just("metadata"),
        Just("annotations"),
        Just("labels"),
        Just("spec"),
        Just("containers"),
        Just("initContainers"),
        Just("volumes"),
        Just("name"),
        Just("weft-proxy"),
        Just("weft-init"),
        Just("env"),
        Just("WEFT_PROBES"),
        Just("value"),
        Just("command"),
        Just("securityContext"),
        Just("runAsUser"),
        Just("livenessProbe"),
        Just("lifecycle"),
        Just("preStop"),
        Just("httpGet"),
        Just("port"),
        Just("path"),
        Just("/probe/a/liveness"),
        Just("ports"),
        Just("containerPort"),
        Just("a"),
    ]
    .prop_map(str::to_owned);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![Just(80), Just(2102), Just(4291)].prop_map(Value::from),
        words.clone().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(words.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A container with checks of any kind.
fn container() -> impl Strategy<Value = Value> {
    let port = prop_oneof![(1..65_536i64).prop_map(Value::from), Just(json!("web")), Just(json!("8080")), anything()];
    let check = (port, ".{0,12}", anything()).prop_flat_map(|(port, path, other)| {
        prop_oneof![
            Just(json!({"httpGet": {"port": port, "path": path}})),
            Just(json!({"tcpSocket": {"port": port}})),
            Just(json!({"grpc": {"port": port, "service": path}})),
            Just(json!({"httpGet": {"port": port, "path": path, "httpHeaders": [{"name": "a", "value": path}]}})),
            Just(json!({"httpGet": other})),
            Just(other),
        ]
    });
    let field = prop_oneof![Just("livenessProbe"), Just("readinessProbe"), Just("postStart"), Just("preStop")];
    ("[a-z]{1,3}", prop::collection::btree_map(field, check, 0..4)).prop_map(|(name, checks)| {
        let mut container = json!({"name": name, "ports": [{"name": "web", "containerPort": 80}]});
        for (field, check) in checks {
            match field {
                "postStart" | "preStop" => container["lifecycle"][field] = check,
                _ => container[field] = check,
            }
        }
        container
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_comes_in_panics(pod in anything(), metadata in anything(), spec in anything()) {
        for pod in [pod.clone(), json!({"metadata": metadata, "spec": pod}), json!({"spec": spec, "metadata": pod})] {
            outcome(&pod);
        }
    }

    #[test]
    fn injecting_twice_is_injecting_once(
        containers in prop::collection::vec(container(), 1..4),
        init_containers in prop::collection::vec(container(), 0..3),
        native in any::<bool>(),
        other in anything(),
    ) {
        let pod = json!({"metadata": {}, "spec": {"containers": containers, "initContainers": init_containers, "x": other}});
        let config = InjectorConfig { native_sidecar: native, ..InjectorConfig::default() };
        let mut secrets = 0;
        let mut secret = || { secrets += 1; secrets.to_string() };
        match inject_with(&pod, &enabled(), &config, &mut secret) {
            Outcome::Injected(once) => prop_assert_eq!(
                inject_with(&once, &enabled(), &config, &mut secret),
                Outcome::Unchanged(Unchanged::AlreadyInjected)
            ),
            other => prop_assert!(matches!(other, Outcome::Refused(_)), "{:?}", other),
        }
    }
}
