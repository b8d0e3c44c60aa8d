//! Each query of the dashboard and each rule finds what it asks for, in a Prometheus that scrapes a mesh in use.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::mesh::eventually;

use crate::dashboard::{Dashboard, substituted};
use crate::lab::Lab;
use crate::prometheus::{PATIENCE, Prometheus};
use crate::promql::selectors;
use crate::rules;

/// What a control plane shows on Kubernetes only, so that a lab has none of it.
const ON_KUBERNETES: &[&str] = &[
    "weft_admission_reviews_total",
    "weft_leader",
    "weft_status_writes_total",
    "weft_webhook_certificate_expiry_timestamp_seconds",
];

/// The alerts whose condition the lab brings about, with their labels, in order; all others are silent.
const EXPECTED_ALERTS: &[&str] = &[
    "WeftHighErrorRate destination=dead destination_namespace=shop",
    "WeftHighErrorRate destination=server destination_namespace=shop",
    "WeftHighLatency destination=server destination_namespace=shop",
    "WeftIdlePolicies",
    "WeftMostRequestsFail destination=dead destination_namespace=shop",
    "WeftRefusalsSpike namespace=shop policy=default",
    "WeftRefusalsSpike namespace=shop policy=shop/readers",
    "WeftRequestsWithoutMtls destination=server destination_namespace=shop source=unknown",
    "WeftSidecarBypassTried namespace=shop pod=server-1 reason=not_redirected",
];

/// The `scrape_configs` for a lab.
type ScrapeConfigs = fn(&Lab) -> Result<String>;

/// The ways in which Prometheus finds its targets; all three see the same mesh.
const SCRAPES: &[(&str, ScrapeConfigs)] =
    &[("operator", by_operator), ("container", by_container), ("annotation", by_annotation)];

pub fn every_query_finds_data() -> Result<()> {
    let lab = Lab::start("golden")?;
    let started: Result<Vec<_>> = SCRAPES
        .iter()
        .map(|(name, config)| Prometheus::start(&lab.mesh, name, &config(&lab)?, &rules::file()))
        .collect();
    for ((name, _), prometheus) in SCRAPES.iter().zip(started?) {
        check(&lab, &prometheus).with_context(|| format!("scraped by {name}"))?;
    }
    Ok(())
}

/// Misspelt, these would be absent as well.
pub fn those_of_kubernetes_are_registered() -> Result<()> {
    let metrics = weft_control_plane::metrics::Metrics::default();
    let mut registry = metrics.registry();
    let without = weft_control_plane::metrics::encode(&registry);
    metrics.register_for_cluster(&mut registry);
    let with = weft_control_plane::metrics::encode(&registry);
    for metric in ON_KUBERNETES {
        let line = format!("# TYPE {} ", metric.trim_end_matches("_total"));
        ensure!(with.contains(&line) && !without.contains(&line), "{metric}: {with}");
    }
    Ok(())
}

fn check(lab: &Lab, prometheus: &Prometheus) -> Result<()> {
    eventually("it scrapes each sidecar and the control plane once", PATIENCE, || {
        let targets = prometheus.targets()?;
        Ok(targets.len() == lab.meshed.len() + 1 && targets.iter().all(|target| target["health"] == "up"))
    })
    .with_context(|| format!("{:#?}", prometheus.targets()))?;
    let mut wanted = rule_wants()?;
    wanted.extend(dashboard_wants(prometheus)?);
    ensure!(wanted.len() > 250, "{} queries", wanted.len());
    let deadline = Instant::now() + PATIENCE;
    let mut faults = faults_of(prometheus, &wanted)?;
    while !faults.is_empty() && Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(500));
        faults = faults_of(prometheus, &wanted)?;
    }
    ensure!(faults.is_empty(), "{} of {} queries:\n{}", faults.len(), wanted.len(), faults.join("\n"));
    misspelt_ones_are_found(prometheus, &wanted)?;
    alerts_are_as_expected(prometheus)
}

/// An expression that must find something.
#[derive(Clone)]
struct Want {
    of: String,
    expression: String,
}

/// Every query with every choice of its variables; and every selector in it, because an `or` may hide that one of its
/// sides finds nothing.
fn dashboard_wants(prometheus: &Prometheus) -> Result<Vec<Want>> {
    let dashboard = Dashboard::read()?;
    let mut wants = Vec::new();
    for direction in dashboard.choices("direction")? {
        for choose_all in [true, false] {
            let mut chosen = BTreeMap::from([("direction".to_owned(), direction.clone())]);
            for variable in dashboard.variables()? {
                let selector = substituted(&variable.selector, &chosen)?;
                let found = await_values(prometheus, &variable.label, &selector)?;
                // As Grafana joins the choices of a regular expression.
                let some = format!("({})", found.into_iter().collect::<Vec<_>>().join("|"));
                chosen.insert(variable.name, if choose_all { variable.all } else { some });
            }
            for query in dashboard.queries()? {
                let expression = substituted(&query.expression, &chosen)?;
                wants.extend(with_selectors(&format!("{} {chosen:?}", query.of), &expression));
            }
        }
    }
    Ok(wants)
}

fn await_values(prometheus: &Prometheus, label: &str, selector: &str) -> Result<BTreeSet<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut values = prometheus.label_values(label, Some(selector))?;
        // Grafana offers no empty choice.
        values.remove("");
        if !values.is_empty() {
            return Ok(values);
        }
        ensure!(Instant::now() < deadline, "a variable without choices: {label} of {selector}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// Recordings find data. Alerts hopefully do not: what they ask for must be there, and [`alerts_are_as_expected`].
fn rule_wants() -> Result<Vec<Want>> {
    let rules = rules::read()?;
    let wants = rules.iter().flat_map(|rule| {
        let of = format!("{}{}", rule.alert, rule.record);
        let mut wants = with_selectors(&of, &rule.expr);
        wants[0].expression = rule.record.clone();
        wants.split_off(usize::from(rule.record.is_empty()))
    });
    Ok(wants.collect())
}

fn with_selectors(of: &str, expression: &str) -> Vec<Want> {
    let want = |expression: String| Want { of: of.to_owned(), expression };
    let selectors = selectors(expression).into_iter().map(want);
    std::iter::once(want(expression.to_owned())).chain(selectors).collect()
}

/// Those that find nothing, or only what is no number, or what is [`ON_KUBERNETES`].
fn faults_of(prometheus: &Prometheus, wanted: &[Want]) -> Result<Vec<String>> {
    let mut known = BTreeMap::new();
    let mut faults = Vec::new();
    for Want { of, expression } in wanted {
        if !known.contains_key(expression) {
            known.insert(expression, prometheus.query(expression).map_err(|fault| format!("{fault:#}")));
        }
        let absent = ON_KUBERNETES.iter().find(|metric| expression.contains(**metric));
        match (&known[expression], absent) {
            (Err(fault), _) => faults.push(format!("{of}: {fault}: {expression}")),
            (Ok(found), None) if !found.iter().any(|(_, value)| value.is_finite()) => {
                faults.push(format!("{of} finds nothing: {expression}"));
            }
            (Ok(found), Some(metric)) if !found.is_empty() => {
                faults.push(format!("{metric} is there: take it off the list"));
            }
            _ => {}
        }
    }
    Ok(faults)
}

/// A check that cannot fail would prove nothing: with a letter missing from a metric, a label or a value, each query
/// that has it is reported.
fn misspelt_ones_are_found(prometheus: &Prometheus, wanted: &[Want]) -> Result<()> {
    let spellings = [
        ("weft_requests_total", "weft_request_total"),
        ("weft_control_plane_connected", "weft_controlplane_connected"),
        ("destination_namespace=~", "destination_namespaces=~"),
        ("decision=\"deny\"", "decision=\"denied\""),
        ("process_cpu_seconds_total", "process_cpu_second_total"),
    ];
    for (right, wrong) in spellings {
        let with = wanted.iter().filter(|want| want.expression.contains(right));
        let misspelt: Vec<Want> =
            with.map(|want| Want { expression: want.expression.replace(right, wrong), ..want.clone() }).collect();
        // A matcher of everything matches a label that is not there, too.
        let misspelt: Vec<Want> = misspelt.into_iter().filter(|want| !want.expression.contains("=~\".*\"")).collect();
        ensure!(!misspelt.is_empty(), "nobody asks for {right}");
        let of: BTreeSet<&str> = misspelt.iter().map(|want| want.of.as_str()).collect();
        let faults = faults_of(prometheus, &misspelt)?;
        let unseen: Vec<_> = of.iter().filter(|of| !faults.iter().any(|fault| fault.starts_with(**of))).collect();
        ensure!(unseen.is_empty(), "{wrong} goes unnoticed in {unseen:?}");
    }
    Ok(())
}

/// All rules were evaluated, and the alerts that are pending or firing are those that the lab brings about.
fn alerts_are_as_expected(prometheus: &Prometheus) -> Result<()> {
    let loaded = prometheus.rules()?;
    ensure!(loaded.len() == rules::read()?.len(), "{} rules", loaded.len());
    for rule in &loaded {
        ensure!(rule["health"] == "ok", "{}: {}", rule["name"], rule["lastError"]);
    }
    let mut active = BTreeSet::new();
    let wait = eventually("the alerts are those of the lab", PATIENCE, || {
        active = prometheus.rules()?.iter().flat_map(active_alerts).collect();
        // A machine with other work makes everything slow.
        active.retain(|alert: &String| {
            !alert.starts_with("WeftHighLatency") || EXPECTED_ALERTS.contains(&alert.as_str())
        });
        Ok(active.iter().map(String::as_str).eq(EXPECTED_ALERTS.iter().copied()))
    });
    wait.with_context(|| format!("pending or firing are: {active:#?}"))
}

/// Name and labels of a rule's alerts that are pending or firing.
fn active_alerts(rule: &Value) -> Vec<String> {
    let alert = |alert: &Value| {
        let labels = alert["labels"].as_object().into_iter().flatten();
        let labels = labels.filter(|(label, _)| !["alertname", "severity"].contains(&label.as_str()));
        let labels: Vec<String> =
            labels.map(|(label, value)| format!("{label}={}", value.as_str().unwrap_or("?"))).collect();
        format!("{} {}", rule["name"].as_str().unwrap_or("?"), labels.join(" ")).trim_end().to_owned()
    };
    rule["alerts"].as_array().into_iter().flatten().map(alert).collect()
}

/// With the labels that PodMonitor and ServiceMonitor give.
fn by_operator(lab: &Lab) -> Result<String> {
    let mut jobs = Vec::new();
    let target = |address: String, labels: Value| json!({"targets": [address], "labels": labels});
    let sidecars = lab.meshed.iter().map(|pod| {
        let labels = json!({
            "namespace": pod.spec.namespace, "pod": pod.spec.name, "container": "weft-proxy", "endpoint": "weft-admin",
            "job": "weft-system/weft-sidecars",
        });
        target(pod.pod.address(4291).to_string(), labels)
    });
    jobs.push(json!({"job_name": "podMonitor/sidecars", "static_configs": sidecars.collect::<Vec<_>>()}));
    let labels = json!({
        "namespace": "weft-system", "pod": "control-plane", "container": "weft", "endpoint": "admin",
        "service": "weft-control-plane", "job": "weft-control-plane",
    });
    let control_plane = target(lab.mesh.control_plane_pod().address(4291).to_string(), labels);
    jobs.push(json!({"job_name": "serviceMonitor/control-plane", "static_configs": [control_plane]}));
    Ok(format!("scrape_configs: {}\n", Value::Array(jobs)))
}

fn by_container(lab: &Lab) -> Result<String> {
    discovered(lab, "scrape.yaml")
}

fn by_annotation(lab: &Lab) -> Result<String> {
    discovered(lab, "annotations.yaml")
}

/// The chart's example, with what Kubernetes would discover read from a file instead.
fn discovered(lab: &Lab, example: &str) -> Result<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft/files/prometheus");
    let text = std::fs::read_to_string(folder.join(example))?;
    let file = lab.mesh.lab.directory().join("discovered.json");
    std::fs::write(&file, serde_json::to_vec(&targets_of_kubernetes(lab))?)?;
    let (wanted, instead) =
        ("kubernetes_sd_configs: [{role: pod}]", format!("file_sd_configs: [{{files: [{}]}}]", file.display()));
    ensure!(text.contains(wanted), "{example} does not ask Kubernetes");
    Ok(text.replace(wanted, &instead))
}

/// One target for each port of each container, init containers among them, as Prometheus documents the role `pod`.
fn targets_of_kubernetes(lab: &Lab) -> Value {
    let mut targets = Vec::new();
    let mut add = |namespace: &str, name: &str, ip: String, container: &str, port: u16, more: Value| {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        let mut labels = json!({
            "__meta_kubernetes_namespace": namespace, "__meta_kubernetes_pod_name": name,
            "__meta_kubernetes_pod_ip": ip, "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_container_name": container,
            "__meta_kubernetes_pod_container_port_number": port.to_string(),
            "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
            "__meta_kubernetes_pod_annotation_prometheus_io_port": "4291",
            "__meta_kubernetes_pod_annotation_prometheus_io_path": "/metrics",
        });
        for (label, value) in more.as_object().into_iter().flatten() {
            labels[label] = value.clone();
        }
        targets.push(json!({"targets": [format!("{host}:{port}")], "labels": labels}));
    };
    for pod in &lab.meshed {
        let ip = pod.pod.address(0).ip().to_string();
        let (namespace, name) = (&pod.spec.namespace, &pod.spec.name);
        add(namespace, name, ip.clone(), "application", 8080, json!({}));
        for port in [4240, 4243, 4291] {
            let init = json!({"__meta_kubernetes_pod_container_init": "true"});
            add(namespace, name, ip.clone(), "weft-proxy", port, init);
        }
    }
    let ip = lab.mesh.control_plane_pod().address(0).ip().to_string();
    for port in [4280, 4443, 4291] {
        let component = json!({"__meta_kubernetes_pod_label_weft_dev_component": "control-plane"});
        add("weft-system", "control-plane", ip.clone(), "weft", port, component);
    }
    Value::Array(targets)
}
