//! A large cluster: what it takes to tell its sidecars. Figures are printed; what is asserted is completeness and memory.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, PodSpec, eventually, meshed};

pub const TESTS: &[Test] = &[("a_cluster_of_10000_pods_is_told_whole", a_cluster_of_10000_pods_is_told_whole)];

const SERVICES: usize = 1_000;
const PODS_OF_A_SERVICE: usize = 10;
/// Requests to the API server at a time.
const AT_ONCE: usize = 64;
/// The control plane's; a whole Pod object has some 5 KiB, so that 10,000 kept whole would take 50 MiB alone.
const MOST_MEMORY: u64 = 200 << 20;

fn a_cluster_of_10000_pods_is_told_whole() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.namespace("shop", json!({}))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let since = Instant::now();
    runtime.block_on(fill(&cluster)).context("cannot fill the cluster")?;
    println!("filled with {SERVICES} Services and {} pods in {:.1?}", SERVICES * PODS_OF_A_SERVICE, since.elapsed());

    let since = Instant::now();
    let control_plane = cluster.control_plane("weft-1", &[])?;
    println!("control plane ready after {:.1?}", since.elapsed());
    let first = PodSpec { account: "app-0", ..meshed("app-0-0", "app-0", "10.2.0.0") };
    let since = Instant::now();
    let sidecar = cluster.sidecar(&first, &control_plane)?;
    let told = sidecar.until("the whole cluster", |config| {
        config["configuration"]["services"].as_array().is_some_and(|services| services.len() >= SERVICES)
            && config["configuration"]["meshed_workloads"] == SERVICES * PODS_OF_A_SERVICE
    })?;
    println!("a sidecar started, certified and told of all after {:.1?}", since.elapsed());
    let endpoints = told["configuration"]["services"].as_array().into_iter().flatten();
    let endpoints = endpoints.flat_map(|service| service["ports"][0]["endpoints"].as_array().into_iter().flatten());
    ensure!(endpoints.filter(|one| one["identity"].is_string()).count() == SERVICES * PODS_OF_A_SERVICE);

    let since = Instant::now();
    let late = meshed("late-1", "late", "10.9.0.1");
    cluster.pod(&late)?;
    sidecar.until("one pod more", |config| {
        config["configuration"]["meshed_workloads"] == SERVICES * PODS_OF_A_SERVICE + 1
    })?;
    println!("one pod more was told {:.1?} after its making began", since.elapsed());

    let memory = |what: &str, id: u32| -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() << 10
        };
        println!("{what}: {} MiB resident, at most {} MiB", field("VmRSS:") >> 20, field("VmHWM:") >> 20);
        Ok(field("VmHWM:"))
    };
    let most = memory("control plane", control_plane.process.id())?;
    memory("sidecar", sidecar.process.id())?;
    ensure!(most < MOST_MEMORY, "the control plane took {} MiB", most >> 20);
    eventually("it is still well", || control_plane.workload("shop/app-0-0"))?;
    Ok(())
}

async fn fill(cluster: &Cluster) -> Result<()> {
    let config = Kubeconfig::read_from(cluster.api.kubeconfig())?;
    let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    config.read_timeout = Some(Duration::from_secs(60));
    let client = Client::try_from(config)?;
    let service_of = |index: usize| {
        json!({
            "metadata": {"name": format!("app-{index}")},
            "spec": {
                "clusterIP": format!("10.96.{}.{}", 16 + index / 250, 1 + index % 250),
                "selector": {"app": format!("app-{index}")}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            },
        })
    };
    let account_of = |index: usize| json!({"metadata": {"name": format!("app-{index}")}});
    create::<ServiceAccount>(&client, (0..SERVICES).map(account_of)).await?;
    create::<Service>(&client, (0..SERVICES).map(service_of)).await?;
    create::<EndpointSlice>(&client, (0..SERVICES).map(slice)).await?;
    let pods = Api::<Pod>::namespaced(client.clone(), "shop");
    let all = (0..SERVICES).flat_map(|service| (0..PODS_OF_A_SERVICE).map(move |replica| (service, replica)));
    stream::iter(all)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |(service, replica)| {
            let pods = pods.clone();
            async move {
                let name = format!("app-{service}-{replica}");
                let pod: Pod = serde_json::from_value(pod(service, &name))?;
                pods.create(&PostParams::default(), &pod).await?;
                let address = address(service, replica);
                let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
                pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
                anyhow::Ok(())
            }
        })
        .await
}

async fn create<K>(client: &Client, objects: impl Iterator<Item = Value>) -> Result<()>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + serde::Serialize,
{
    let api = Api::<K>::namespaced(client.clone(), "shop");
    stream::iter(objects)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |object| {
            let api = api.clone();
            async move {
                let object: K = serde_json::from_value(object)?;
                api.create(&PostParams::default(), &object).await?;
                anyhow::Ok(())
            }
        })
        .await
}

fn address(service: usize, replica: usize) -> String {
    format!("10.{}.{}.{replica}", 2 + service / 250, service % 250)
}

fn slice(index: usize) -> Value {
    let endpoint = |replica: usize| {
        let pod = json!({"kind": "Pod", "name": format!("app-{index}-{replica}"), "namespace": "shop"});
        json!({"addresses": [address(index, replica)], "conditions": {"ready": true}, "targetRef": pod})
    };
    json!({
        "metadata": {
            "name": format!("app-{index}-1"), "labels": {"kubernetes.io/service-name": format!("app-{index}")},
        },
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": (0..PODS_OF_A_SERVICE).map(endpoint).collect::<Vec<_>>(),
    })
}

/// As large as pods of real applications are.
fn pod(service: usize, name: &str) -> Value {
    let variables: Vec<Value> = (0..30)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": "a value of a usual length, say 50 bytes"}))
        .collect();
    json!({
        "metadata": {"name": name, "labels": {"app": format!("app-{service}"), "version": "v1"}},
        "spec": {
            "serviceAccountName": format!("app-{service}"),
            "containers": [{
                "name": "app", "image": "registry.example/app:1", "env": variables,
                "ports": [{"name": "http", "containerPort": 8080}],
            }],
            "initContainers": [{"name": "weft-proxy", "image": "weft-proxy:1", "restartPolicy": "Always"}],
        },
    })
}
