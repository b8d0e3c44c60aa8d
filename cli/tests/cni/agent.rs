//! The agent on a node: what it installs, keeps, answers and takes away.
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::lab::testing::Test;
use weft_loadtests::lab::{Lab, PodSpec, Process, Program, Signal, Task};
use weft_loadtests::mesh::{eventually, get};

use crate::api::{Cluster, pod};
use crate::call::{Call, PREVIOUS};

pub const TESTS: &[Test] = &[
    ("an_agent_installs_the_plugin_and_is_ready_then", installs),
    ("what_another_cni_changes_is_chained_anew", keeps),
    ("a_restart_of_the_agent_leaves_the_plugin_and_no_pod_starts_meanwhile", restart),
    ("an_agent_whose_daemon_set_is_gone_leaves_nothing_behind", uninstall),
    ("an_agent_that_may_not_ask_any_more_leaves_nothing_behind", uninstall_without_rights),
    ("remove_takes_the_plugin_off_a_node_without_any_cluster", remove),
    ("pods_that_were_seen_are_known_while_the_api_server_is_away", api_away),
    ("a_pod_that_the_watch_has_not_seen_is_asked_for", asked_for),
    ("a_pod_that_came_before_the_plugin_is_deleted_once_where_that_is_wanted", stuck),
    ("all_faults_of_the_settings_are_told_together", faults),
];

const PATIENCE: Duration = Duration::from_secs(20);
const LIST: &str =
    "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"plugins\":[{\"type\":\"bridge\"},{\"type\":\"portmap\"}]}\n";

/// A node with its own CNI, an API server, and an agent that runs.
pub struct Node {
    pub lab: Lab,
    pub cluster: Cluster,
    pub folder: PathBuf,
    kubeconfig: PathBuf,
    agent: Option<Process>,
    /// Of the agents that were stopped.
    log: String,
    _api: Task<()>,
}

impl Node {
    /// With `cluster`, and an agent that is ready.
    pub fn start(name: &str, cluster: Cluster) -> Result<Self> {
        Self::start_with(name, cluster, &[])
    }

    fn start_with(name: &str, cluster: Cluster, flags: &[&str]) -> Result<Self> {
        let mut node = Self::without_agent(name, cluster)?;
        node.start_agent(flags)?;
        Ok(node)
    }

    fn without_agent(name: &str, cluster: Cluster) -> Result<Self> {
        let lab = Lab::new(name)?;
        let folder = lab.directory().join("node");
        for part in ["bin", "net.d", "run"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("net.d/10-n.conflist"), LIST)?;
        let (api, kubeconfig) = cluster.serve(lab.switch(), &folder)?;
        Ok(Self { lab, cluster, folder, kubeconfig, agent: None, log: String::new(), _api: api })
    }

    fn program(&self) -> Program {
        let folder = |name: &str| self.folder.join(name).display().to_string();
        Program::new(crate::WEFT)
            .arg("cni-agent")
            .args(["--bin-dir".to_owned(), folder("bin"), "--conf-dir".to_owned(), folder("net.d")])
            .args(["--socket".to_owned(), folder("run/cni.sock")])
    }

    fn start_agent(&mut self, flags: &[&str]) -> Result<()> {
        let agent = self.program().args(["--node-name", "node-1", "--namespace", "weft-system"]).args(flags);
        let process = self.lab.switch().spawn(agent.env("KUBECONFIG", &self.kubeconfig))?;
        self.agent = Some(process);
        self.wait_until_ready()
    }

    fn ready(&self) -> Result<(u16, String)> {
        get(self.lab.switch(), SocketAddr::from(([127, 0, 0, 1], 4292)), "/ready")
    }

    fn wait_until_ready(&self) -> Result<()> {
        eventually("the agent is ready", PATIENCE, || Ok(self.ready().is_ok_and(|(status, _)| status == 200)))
            .with_context(|| self.agent.as_ref().map(|agent| agent.stdout() + &agent.stderr()).unwrap_or_default())
    }

    /// Until the agent has heard of the pod, which is not meshed, it asks.
    fn wait_until_heard_of(&self, name: &str) -> Result<()> {
        eventually("the agent has heard of the pod", PATIENCE, || {
            let before = self.cluster.gets();
            self.call("ADD", name, node_itself()).run()?.succeeded(PREVIOUS)?;
            Ok(self.cluster.gets() == before)
        })
    }

    /// Stops the agent as a kubelet does.
    fn stop_agent(&mut self) -> Result<()> {
        let agent = self.agent.take().context("it runs")?;
        agent.signal(Signal::SIGTERM);
        let status = agent.wait(PATIENCE)?;
        self.log += &(agent.stdout() + &agent.stderr());
        ensure!(status.success(), "{status}: {}", self.log);
        Ok(())
    }

    pub fn call(&self, command: &str, name: &str, netns: &Path) -> Call {
        Call::new(command, ("shop", name), netns, &self.folder.join("run/cni.sock"))
            .program(self.folder.join("bin/weft-cni"))
    }

    fn conf(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.folder.join("net.d").join(name)).with_context(|| name.to_owned())
    }

    fn files(&self, folder: &str) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.folder.join(folder))?.map(|entry| Ok(entry?.file_name().into_string()));
        let mut names: Vec<String> = entries.collect::<std::io::Result<Result<_, _>>>()?.ok().context("UTF-8")?;
        names.sort();
        Ok(names)
    }

    fn nothing_is_left(&self) -> Result<()> {
        ensure!(self.conf("10-n.conflist")? == LIST, "{}\n{}", self.conf("10-n.conflist")?, self.log);
        ensure!(self.files("net.d")? == ["10-n.conflist"], "{:?}", self.files("net.d")?);
        ensure!(self.files("bin")?.is_empty() && self.files("run")?.is_empty());
        Ok(())
    }
}

/// Init containers of a pod that the CNI plugin redirects.
pub fn meshed() -> Value {
    json!([{"name": "weft-validate"}, {"name": "weft-proxy", "restartPolicy": "Always"}])
}

fn node_itself() -> &'static Path {
    Path::new("/proc/self/ns/net")
}

fn installs() -> Result<()> {
    let node = Node::start("installs", Cluster::new())?;
    let list: Value = serde_json::from_str(&node.conf("10-n.conflist")?)?;
    let types: Vec<_> = list["plugins"].as_array().context("a list")?.iter().map(|plugin| &plugin["type"]).collect();
    ensure!(types == ["bridge", "portmap", "weft-cni"], "{list}");
    let entry = &list["plugins"][2];
    ensure!(entry["excludeNamespaces"] == json!(["kube-system", "weft-system"]), "{entry}");
    ensure!(entry["socket"] == json!(node.folder.join("run/cni.sock")), "{entry}");
    ensure!(
        fs::read(node.folder.join("bin/weft-cni"))? == fs::read(crate::WEFT)?,
        "the plugin is the agent's own file"
    );
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(node.folder.join("run/cni.sock"))?);
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    ensure!(node.files("run")? == ["cni.sock"], "{:?}", node.files("run")?);
    Ok(())
}

fn keeps() -> Result<()> {
    let node = Node::start("keeps", Cluster::new())?;
    let conf = node.folder.join("net.d");
    let chained = |name: &'static str| {
        let node = &node;
        move || Ok(node.conf(name).is_ok_and(|text| text.contains("weft-cni")))
    };
    fs::write(conf.join("10-n.conflist"), LIST)?;
    eventually("the rewritten file is chained", PATIENCE, chained("10-n.conflist"))?;
    fs::write(conf.join("05-first.conf"), "{\"cniVersion\":\"0.3.1\",\"name\":\"f\",\"type\":\"ptp\"}")?;
    eventually("the file that comes first is chained", PATIENCE, chained("05-first.conflist"))?;
    fs::remove_file(conf.join("05-first.conflist"))?;
    fs::write(conf.join("10-n.conflist"), LIST)?;
    eventually("the one that is first again is chained", PATIENCE, chained("10-n.conflist"))?;
    fs::remove_file(node.folder.join("bin/weft-cni"))?;
    let back = || Ok(node.folder.join("bin/weft-cni").exists());
    eventually("the plugin's file is back", PATIENCE, back)?;
    fs::write(conf.join("10-n.conflist"), "")?;
    let not_ready = || Ok(node.ready().is_ok_and(|(status, why)| status == 503 && why.contains("has not written it")));
    eventually("without a configuration it is not ready", PATIENCE, not_ready)
}

fn restart() -> Result<()> {
    let cluster = Cluster::new();
    cluster.add("plain", json!({}), json!([]), false);
    let mut node = Node::start("restart", cluster)?;
    node.call("ADD", "plain", node_itself()).run()?.succeeded(PREVIOUS)?;
    node.stop_agent()?;
    ensure!(node.conf("10-n.conflist")?.contains("weft-cni") && node.files("bin")? == ["weft-cni"]);
    node.call("ADD", "plain", node_itself()).run()?.failed(11, "not ready")?;
    node.call("DEL", "plain", node_itself()).run()?.succeeded("")?;
    node.start_agent(&[])?;
    node.call("ADD", "plain", node_itself()).run()?.succeeded(PREVIOUS)
}

fn uninstall() -> Result<()> {
    let mut node = Node::start("uninstall", Cluster::new())?;
    node.cluster.delete_daemon_set();
    node.stop_agent()?;
    node.nothing_is_left()
}

fn uninstall_without_rights() -> Result<()> {
    for code in [401, 403] {
        let mut node = Node::start("rights", Cluster::new())?;
        node.cluster.refuse(code);
        node.stop_agent()?;
        node.nothing_is_left()?;
    }
    Ok(())
}

fn remove() -> Result<()> {
    let mut node = Node::start("remove", Cluster::new())?;
    node.stop_agent()?;
    let process = node.lab.switch().spawn(node.program().arg("--remove"))?;
    ensure!(process.wait(PATIENCE)?.success(), "{}{}", process.stdout(), process.stderr());
    node.nothing_is_left()
}

fn api_away() -> Result<()> {
    let cluster = Cluster::new();
    cluster.add("seen", json!({}), json!([]), false);
    let node = Node::start("away", cluster)?;
    node.cluster.add("told", json!({}), json!([]), true);
    node.cluster.add("late", json!({}), json!([]), false);
    node.wait_until_heard_of("told")?;
    node.cluster.refuse(500);
    for name in ["seen", "told"] {
        node.call("ADD", name, node_itself()).run()?.succeeded(PREVIOUS)?;
    }
    node.call("ADD", "late", node_itself()).run()?.failed(11, "the API server cannot be asked")?;
    ensure!(node.ready()?.0 == 503, "{:?}", node.ready()?);
    node.cluster.refuse(0);
    node.call("ADD", "late", node_itself()).run()?.succeeded(PREVIOUS)?;
    node.wait_until_ready()
}

fn asked_for() -> Result<()> {
    let node = Node::start("asked", Cluster::new())?;
    node.cluster.add("late", json!({}), json!([]), false);
    node.call("ADD", "late", node_itself()).run()?.succeeded(PREVIOUS)?;
    ensure!(node.cluster.gets() == 1);
    node.call("ADD", "never", node_itself()).run()?.failed(11, "no pod shop/never with UID never-uid")?;
    // Of the same name, but another one: this one may be gone already.
    let other = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=late;K8S_POD_UID=other";
    node.call("ADD", "late", node_itself()).set("CNI_ARGS", other).run()?.failed(11, "with UID other")
}

/// A pod whose check has failed.
fn held_up(name: &str, owned: bool) -> Value {
    let mut pod = pod(name, json!({}), meshed());
    if owned {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true});
        pod["metadata"]["ownerReferences"] = json!([owner]);
    }
    let failed = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
    pod["status"] = json!({"initContainerStatuses": [{
        "name": "weft-validate", "ready": false, "restartCount": 1, "image": "i", "imageID": "i", "lastState": failed,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }]});
    pod
}

fn stuck() -> Result<()> {
    let node = Node::start_with("stuck", Cluster::new(), &["--delete-stuck-pods"])?;
    // This one was redirected: what holds it up would hold up the next one too.
    node.cluster.put(held_up("redirected", true), false);
    let pod = node.lab.pod(PodSpec::new("redirected"))?;
    let (_pause, netns) = crate::capture::netns(&pod)?;
    node.call("ADD", "redirected", &netns).run()?.succeeded(PREVIOUS)?;
    for (name, owned) in [("redirected", true), ("bare", false), ("early", true)] {
        node.cluster.put(held_up(name, owned), true);
    }
    eventually("the pod that came too early is deleted", PATIENCE, || Ok(!node.cluster.deleted().is_empty()))?;
    ensure!(node.cluster.deleted() == ["early"], "{:?}", node.cluster.deleted());

    // Unless it is asked to, it deletes nothing; the last event of several has been seen when its pod is known.
    let node = Node::start("kept", Cluster::new())?;
    node.cluster.put(held_up("early", true), true);
    node.cluster.add("last", json!({}), json!([]), true);
    node.wait_until_heard_of("last")?;
    ensure!(node.cluster.deleted().is_empty(), "{:?}", node.cluster.deleted());
    Ok(())
}

fn faults() -> Result<()> {
    let lab = Lab::new("faults")?;
    let flags = [
        "--node-name",
        "",
        "--namespace",
        "weft_system",
        "--exclude-namespaces",
        "kube-system,A",
        "--bin-dir",
        "/nowhere/bin",
        "--conf-dir",
        "/nowhere/net.d",
        "--conf-name",
        "../x.conf",
        "--socket",
        "cni.sock",
    ];
    let process = lab.switch().spawn(Program::new(crate::WEFT).arg("cni-agent").args(flags))?;
    ensure!(!process.wait(PATIENCE)?.success());
    for flag in
        ["--node-name", "--namespace", "--exclude-namespaces", "--bin-dir", "--conf-dir", "--conf-name", "--socket"]
    {
        ensure!(process.stderr().contains(&format!("- {flag}: ")), "{flag}: {}", process.stderr());
    }
    Ok(())
}
