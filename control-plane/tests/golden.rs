//! YAML in, what each workload is told out: `golden/<case>/{in/*.yaml, out/<namespace>.<workload>.json}`.
//!
//! With `UPDATE_GOLDEN=1` the outputs are written anew; read the difference before you commit it.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft_api::policy::AppliedPolicy;
use weft_api::resource::{NamespacedName, parse_documents};
use weft_api::workload::{ProtocolHint, WorkloadConfig};
use weft_certs::TrustDomain;
use weft_control_plane::compile::{self, Shared};
use weft_control_plane::model::Model;
use weft_control_plane::source::Event;

fn cases() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    sorted(&golden)
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|fault| panic!("{}: {fault}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn events(case: &Path) -> Vec<Event> {
    let texts = sorted(&case.join("in")).into_iter().map(|path| fs::read_to_string(path).expect("readable"));
    let resources: Vec<_> = texts.flat_map(|text| parse_documents(&text)).collect();
    resources.into_iter().map(|resource| Event::Applied(resource.expect("valid"))).collect()
}

fn compiled(events: impl IntoIterator<Item = Event>) -> BTreeMap<NamespacedName, WorkloadConfig> {
    let mut model = Model::new(TrustDomain::parse("cluster.local").expect("valid"));
    events.into_iter().for_each(|event| model.apply(event));
    let changed = model.take_changed();
    let shared = compile::shared(&model, &Shared::default(), &changed);
    let names: Vec<NamespacedName> = model.workload_names().cloned().collect();
    names
        .into_iter()
        .map(|name| (name.clone(), compile::workload(&model, &shared, &name).expect("it is there")))
        .collect()
}

#[test]
fn each_workload_is_told_what_the_golden_file_says() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for case in cases() {
        let mut expected: BTreeSet<PathBuf> =
            if update { BTreeSet::new() } else { sorted(&case.join("out")).into_iter().collect() };
        for (name, config) in compiled(events(&case)) {
            let path = case.join("out").join(format!("{}.{}.json", name.namespace, name.name));
            let text = format!("{:#}\n", show(&config));
            if update {
                fs::create_dir_all(case.join("out")).expect("made");
                fs::write(&path, text).expect("written");
            } else {
                assert!(expected.remove(&path), "{} is missing; run with UPDATE_GOLDEN=1", path.display());
                assert_eq!(text, fs::read_to_string(&path).expect("readable"), "{}", path.display());
            }
        }
        assert_eq!(expected, BTreeSet::new(), "{}: outputs of no workload", case.display());
    }
}

#[test]
fn the_order_of_events_changes_nothing() {
    for case in cases() {
        let forward = events(&case);
        let mut backward = forward.clone();
        backward.reverse();
        let mut half = forward.clone();
        half.rotate_left(forward.len() / 2);
        let expected = compiled(forward);
        assert_eq!(compiled(backward), expected, "{}", case.display());
        assert_eq!(compiled(half), expected, "{}", case.display());
    }
}

#[test]
fn compiling_a_change_alone_gives_what_compiling_all_gives() {
    for case in cases() {
        let all = events(&case);
        let mut model = Model::new(TrustDomain::parse("cluster.local").expect("valid"));
        let mut shared = Shared::default();
        for event in all.clone() {
            model.apply(event);
            let changed = model.take_changed();
            shared = compile::shared(&model, &shared, &changed);
        }
        for (name, config) in compiled(all) {
            assert_eq!(compile::workload(&model, &shared, &name), Some(config), "{}: {name}", case.display());
        }
    }
}

#[test]
fn taking_one_thing_away_gives_what_compiling_the_rest_gives() {
    for case in cases() {
        let all = events(&case);
        for (place, event) in all.iter().enumerate() {
            let mut model = Model::new(TrustDomain::parse("cluster.local").expect("valid"));
            all.iter().cloned().for_each(|event| model.apply(event));
            let changed = model.take_changed();
            let shared = compile::shared(&model, &Shared::default(), &changed);
            let key = event.key().expect("events of files name a resource");
            model.apply(Event::Removed(key.clone()));
            let changed = model.take_changed();
            let shared = compile::shared(&model, &shared, &changed);
            let rest = all.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, event)| event.clone());
            for (name, config) in compiled(rest) {
                let told = compile::workload(&model, &shared, &name);
                assert_eq!(told, Some(config), "{}: {name} without {key}", case.display());
            }
        }
    }
}

fn show(config: &WorkloadConfig) -> Value {
    let names = |names: &[NamespacedName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let inbound = &config.inbound;
    let policy = |policy: &AppliedPolicy| match policy {
        AppliedPolicy::Readable(policy) => json!({"name": policy.name.to_string(), "spec": policy.spec_json()}),
        AppliedPolicy::Unreadable { name, why } => json!({"name": name.to_string(), "unreadable": why}),
    };
    let limits = inbound.rate_limits.iter().map(|limit| {
        json!({
            "policy": limit.policy.to_string(), "name": limit.name, "requests": limit.requests,
            "window": format!("{:?}", limit.window), "burst": limit.burst, "per": format!("{:?}", limit.per),
        })
    });
    let services = config.services.values().map(|service| {
        let ports: BTreeMap<String, Value> = service
            .ports
            .iter()
            .map(|port| {
                let endpoints: Vec<Value> = port
                    .endpoints
                    .iter()
                    .map(|endpoint| {
                        json!({
                            "address": endpoint.address.to_string(), "workload": endpoint.workload,
                            "identity": endpoint.identity.as_ref().map(ToString::to_string),
                        })
                    })
                    .collect();
                (format!("{} {:?}", port.port, port.protocol), endpoints.into())
            })
            .collect();
        let mut shown = json!({"addresses": service.addresses, "ports": ports});
        for port in service.ports.iter().filter(|port| !port.routes.is_empty()) {
            shown["routes"][port.port.to_string()] = port.routes.iter().map(|route| json!(**route)).collect();
        }
        (service.name.to_string(), shown)
    });
    let meshed = config.meshed_workloads.values().map(|workload| {
        json!({
            "name": workload.name.to_string(), "addresses": workload.addresses,
            "identity": workload.identity.to_string(), "ports": ports(&workload.ports),
        })
    });
    json!({
        "inbound": {
            "workload": format!("{}/{}", inbound.namespace, inbound.workload),
            "serviceAccount": inbound.service_account,
            "services": names(&inbound.services),
            "default": inbound.policy.default_policy().as_str(),
            "policies": inbound.policy.policies().iter().map(policy).collect::<Vec<_>>(),
            "rateLimits": limits.collect::<Vec<_>>(),
            "ports": ports(&inbound.ports),
        },
        "services": services.collect::<BTreeMap<_, _>>(),
        "meshedWorkloads": meshed.collect::<Vec<_>>(),
        "deniedIdentities": config.denied_identities.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn ports(ports: &BTreeMap<u16, ProtocolHint>) -> BTreeMap<String, String> {
    ports.iter().map(|(port, hint)| (port.to_string(), format!("{hint:?}"))).collect()
}
