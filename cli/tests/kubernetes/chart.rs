//! The chart `weft` on an API server: what it lets in while nobody injects, and what an upgrade leaves alone. Run where Helm
//! is.
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::kubernetes::ApiServerOptions;
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Cluster, eventually};

pub const TESTS: &[Test] = &[
    ("helm_upgrade_keeps_what_the_control_plane_wrote", helm_upgrade_keeps_what_the_control_plane_wrote),
    ("no_pod_that_asks_for_a_sidecar_starts_without_one", no_pod_that_asks_for_a_sidecar_starts_without_one),
    ("the_mesh_holds_up_neither_itself_nor_the_cluster", the_mesh_holds_up_neither_itself_nor_the_cluster),
];

pub const RELEASE: &[&str] = &["weft", "-n", "weft-system"];

/// As `.ci/charts` installs it, else from PATH or Go's folder; or why there is none.
pub fn helm() -> Result<PathBuf, String> {
    let home = |folder: &str| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(folder));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home(".cache"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = cache.into_iter().map(|cache| cache.join("weft-ci/bin")).collect();
    places.extend(std::env::split_paths(&path));
    places.extend(home("go/bin"));
    let mut all = places.into_iter().map(|folder| folder.join("helm"));
    all.find(|helm| helm.is_file()).ok_or_else(|| "no helm in PATH".to_owned())
}

/// A cluster with controllers, and Helm for it.
pub struct Charted(pub Cluster);

impl Charted {
    pub fn start() -> Result<Self> {
        Cluster::bare(ApiServerOptions { controllers: true }).map(Self)
    }

    fn installed() -> Result<Self> {
        let cluster = Self::start()?;
        // Webhooks are not reached here, and calls of them should not be waited for.
        cluster.helm(
            &[&["install"], RELEASE, &["--create-namespace", "../charts/weft", "--set=webhooks.timeoutSeconds=1"]]
                .concat(),
        )?;
        Ok(cluster)
    }

    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = Command::new(helm().map_err(anyhow::Error::msg)?);
        helm.current_dir(env!("CARGO_MANIFEST_DIR")).env("KUBECONFIG", self.0.api.kubeconfig());
        helm.env("HELM_CACHE_HOME", self.0.directory.path()).env("HELM_CONFIG_HOME", self.0.directory.path());
        let output = helm.args(arguments).stdin(Stdio::null()).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "helm {}: {err}{out}", arguments.join(" "));
        Ok(out.into_owned())
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.0.api.kubectl(arguments)
    }

    /// Makes a pod; what the API server says when it refuses.
    fn pod(&self, namespace: &str, metadata: Value, spec: Value) -> Result<Result<(), String>> {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "pod-"},
            "spec": {"containers": [{"name": "app", "image": "app:test"}]}});
        for (part, more) in [("metadata", metadata), ("spec", spec)] {
            for (key, value) in more.as_object().context("an object")? {
                pod[part][key] = value.clone();
            }
        }
        let made = self.0.api.with_input(&["create", "-n", namespace, "-f", "-"], &pod.to_string());
        Ok(made.map(drop).map_err(|error| error.to_string()))
    }

    pub fn namespace(&self, name: &str, annotations: Value, labels: Value) -> Result<()> {
        let metadata = json!({"name": name, "annotations": annotations, "labels": labels});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        self.0.api.apply(&namespace.to_string())?;
        let account = || Ok(self.kubectl(&["get", "serviceaccount", "default", "-n", name]).ok());
        eventually("the namespace has its service account", account).map(drop)
    }
}

fn helm_upgrade_keeps_what_the_control_plane_wrote() -> Result<()> {
    let cluster = Charted::installed()?;
    let bundle = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "Q0E="}]).to_string();
    let configurations =
        ["mutatingwebhookconfiguration/weft-injector", "validatingwebhookconfiguration/weft-admission"];
    // The API server refuses roots that are none at calls only.
    for configuration in configurations {
        cluster.kubectl(&["patch", configuration, "--type=json", "-p", &bundle])?;
    }
    let upgrade = ["../charts/weft", "--set=webhooks.timeoutSeconds=7", "--set=controlPlane.replicas=3"];
    cluster.helm(&[&["upgrade"], RELEASE, &upgrade].concat())?;
    for configuration in configurations {
        let fields = "jsonpath={.webhooks[0].timeoutSeconds} {.webhooks[0].clientConfig.caBundle}";
        let found = cluster.kubectl(&["get", configuration, "-o", fields])?;
        ensure!(found == "7 Q0E=", "{configuration}: {found}");
    }
    cluster.helm(&[&["rollback"], RELEASE, &["1"]].concat()).map(drop)
}

fn no_pod_that_asks_for_a_sidecar_starts_without_one() -> Result<()> {
    let cluster = Charted::installed()?;
    let (says, none) = (|word: &str| json!({"weft.dev/inject": word}), json!({}));
    cluster.namespace("plain", none.clone(), none.clone())?;
    cluster.namespace("annotated", says("enabled"), none.clone())?;
    cluster.namespace("misspelt", says("enable"), none.clone())?;
    cluster.namespace("labelled", none.clone(), says("enabled"))?;
    cluster.namespace("closed", none.clone(), says("disabled"))?;
    // A policy is in force a moment after it was made.
    eventually("the policy is in force", || {
        Ok(cluster.pod("annotated", json!({}), json!({}))?.is_err().then_some(()))
    })?;
    let silent = Some("the injector did not answer");
    let sidecar = json!([{"name": "weft-proxy", "image": "weft-proxy:test", "restartPolicy": "Always"}]);
    for (namespace, metadata, spec, refusal) in [
        ("plain", none.clone(), none.clone(), None),
        ("plain", json!({"annotations": says("enabled")}), none.clone(), silent),
        ("plain", json!({"labels": says("enabled")}), none.clone(), silent),
        ("annotated", none.clone(), none.clone(), silent),
        ("misspelt", none.clone(), none.clone(), silent),
        ("annotated", json!({"labels": {"weft.dev/component": "control-plane"}}), none.clone(), silent),
        ("annotated", json!({"annotations": says("disabled")}), none.clone(), None),
        ("annotated", json!({"labels": says("disabled")}), none.clone(), None),
        ("annotated", none.clone(), json!({"initContainers": sidecar}), None),
        ("annotated", none.clone(), json!({"hostNetwork": true}), None),
        ("annotated", none.clone(), json!({"os": {"name": "windows"}}), None),
        ("labelled", none.clone(), none.clone(), Some("failed calling webhook \"labelled.injector.weft.dev\"")),
        ("closed", none.clone(), none.clone(), None),
        ("closed", json!({"annotations": says("enabled")}), none.clone(), Some("its namespace is labelled")),
    ] {
        let made = cluster.pod(namespace, metadata.clone(), spec.clone())?;
        let good = match refusal {
            None => made.is_ok(),
            Some(words) => made.as_ref().is_err_and(|said| said.contains(words)),
        };
        ensure!(good, "a pod with {metadata} {spec} in {namespace}: {made:?}");
    }
    Ok(())
}

fn the_mesh_holds_up_neither_itself_nor_the_cluster() -> Result<()> {
    let cluster = Charted::installed()?;
    for namespace in ["weft-system", "kube-system"] {
        for verb in ["annotate", "label"] {
            cluster.kubectl(&[verb, "namespace", namespace, "weft.dev/inject=enabled"])?;
        }
    }
    eventually("pods that ask are refused", || {
        Ok(cluster.pod("weft-system", json!({}), json!({}))?.is_err().then_some(()))
    })?;
    let made = cluster.pod("kube-system", json!({}), json!({}))?;
    ensure!(made.is_ok(), "{made:?}");
    let pods = |phase: &str| {
        let selected = ["-l", "weft.dev/component=control-plane", "-o", "name", "--field-selector", phase];
        let found = cluster.kubectl(&[&["get", "pods", "-n", "weft-system"][..], &selected[..]].concat())?;
        anyhow::Ok(found.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let before =
        eventually("the first replicas", || Ok(Some(pods("status.phase=Pending")?).filter(|all| all.len() == 2)))?;
    cluster.kubectl(&[
        "delete",
        "pods",
        "-n",
        "weft-system",
        "-l",
        "weft.dev/component=control-plane",
        "--wait=false",
    ])?;
    eventually("replicas in their place", || {
        let now = pods("status.phase=Pending")?;
        Ok((now.len() == 2 && now.iter().all(|pod| !before.contains(pod))).then_some(()))
    })
}
