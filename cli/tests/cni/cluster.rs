//! The agent against a real API server, with the rights that its README lists and no other.
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_loadtests::kubernetes::{ApiServer, ApiServerOptions, assets};
use weft_loadtests::lab::testing::Test;
use weft_loadtests::lab::{Lab, PodSpec};
use weft_loadtests::mesh::eventually;
use weft_proxy::redirect;

use crate::call::{Call, PREVIOUS};
use crate::capture::netns;

const TEST: Test = ("an_agent_needs_the_documented_rights_only_and_leaves_nothing_after_an_uninstallation", rights);

/// The test, or its name with the reason if there is no API server to be had.
pub fn tests() -> (Vec<Test>, Vec<String>) {
    match assets() {
        Ok(_) => (vec![TEST], vec![]),
        Err(reason) => (vec![], vec![format!("{} (skipped: {reason})", TEST.0)]),
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
const LIST: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[{\"type\":\"bridge\"}]}\n";

const OBJECTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: weft-cni, namespace: weft-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: weft-cni}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch, delete]}
- {apiGroups: [""], resources: [namespaces], resourceNames: [weft-system], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: weft-cni}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weft-cni}
subjects: [{kind: ServiceAccount, name: weft-cni, namespace: weft-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: weft-cni, namespace: weft-system}
rules:
- {apiGroups: [apps], resources: [daemonsets], resourceNames: [weft-cni], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: weft-cni, namespace: weft-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: weft-cni}
subjects: [{kind: ServiceAccount, name: weft-cni, namespace: weft-system}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: weft-cni, namespace: weft-system}
spec:
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: agent, image: weft}]}}
"#;

/// An agent that runs beside the API server.
struct Agent {
    process: Child,
    folder: PathBuf,
    ready: SocketAddr,
}

impl Agent {
    fn start(lab: &Lab, kubeconfig: &Path) -> Result<Self> {
        let folder = lab.directory().join("node");
        for part in ["bin", "net.d", "run"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("net.d/10-n.conflist"), LIST)?;
        let ready = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let process = Command::new(crate::WEFT)
            .args(["cni-agent", "--node-name", "node-1", "--namespace", "weft-system", "--delete-stuck-pods"])
            .args(["--listen", &ready.to_string()])
            .arg("--bin-dir")
            .arg(folder.join("bin"))
            .arg("--conf-dir")
            .arg(folder.join("net.d"))
            .arg("--socket")
            .arg(folder.join("run/cni.sock"))
            .env("KUBECONFIG", kubeconfig)
            .stdout(Stdio::null())
            .spawn()?;
        let agent = Self { process, folder, ready };
        eventually("the agent is ready", PATIENCE, || Ok(agent.is_ready().unwrap_or(false)))?;
        Ok(agent)
    }

    fn is_ready(&self) -> Result<bool> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(self.ready)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    }

    fn terminate(mut self) -> Result<PathBuf> {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.process.id())?);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "{status}");
        Ok(self.folder.clone())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The administrator's kubeconfig with the service account's token instead.
fn kubeconfig(api: &ApiServer, folder: &Path) -> Result<PathBuf> {
    let token = api.kubectl(&["create", "token", "weft-cni", "-n", "weft-system"])?;
    let text = fs::read_to_string(api.kubeconfig())?;
    let admin = text.split("token: \"").nth(1).and_then(|rest| rest.split('"').next()).context("a token")?;
    let path = folder.join("kubeconfig");
    fs::write(&path, text.replace(admin, token.trim()))?;
    Ok(path)
}

fn add_pod(api: &ApiServer, name: &str, init_containers: &str) -> Result<String> {
    api.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop}}, spec: {{nodeName: node-1, \
         containers: [{{name: app, image: app}}], initContainers: [{init_containers}]}}}}"
    ))?;
    api.kubectl(&["get", "pod", name, "-n", "shop", "-o", "jsonpath={.metadata.uid}"])
}

fn rights() -> Result<()> {
    let api = ApiServer::start(ApiServerOptions::default())?;
    api.kubectl(&["create", "namespace", "weft-system"])?;
    api.apply(OBJECTS)?;
    let lab = Lab::new("cluster")?;
    let agent = Agent::start(&lab, &kubeconfig(&api, lab.directory())?)?;
    let validate = "{name: weft-validate, image: weft}, {name: weft-proxy, image: weft, restartPolicy: Always}";
    for (name, containers, redirected) in [("orders-1", validate, true), ("plain", "", false)] {
        let uid = add_pod(&api, name, containers)?;
        let pod = lab.pod(PodSpec::new(name))?;
        let (_pause, netns) = netns(&pod)?;
        let add = Call::new("ADD", ("shop", name), &netns, &agent.folder.join("run/cni.sock"));
        let arguments = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID={uid}");
        let add = add.program(agent.folder.join("bin/weft-cni")).set("CNI_ARGS", &arguments);
        add.run()?.succeeded(PREVIOUS)?;
        ensure!(pod.run(|| async { redirect::installed() })?? == redirected, "{name}");
    }
    let uid = add_pod(&api, "early", validate)?;
    held_up_is_deleted(&api, &uid)?;
    // What an uninstallation does, in its order; the pods of the DaemonSet are told to end some time after.
    for object in ["daemonset", "rolebinding", "role", "serviceaccount"] {
        api.kubectl(&["delete", object, "weft-cni", "-n", "weft-system"])?;
    }
    api.kubectl(&["delete", "clusterrolebinding,clusterrole", "weft-cni"])?;
    let folder = agent.terminate()?;
    ensure!(fs::read_to_string(folder.join("net.d/10-n.conflist"))? == LIST);
    for part in ["bin", "run"] {
        ensure!(fs::read_dir(folder.join(part))?.next().is_none(), "{part} is empty");
    }
    Ok(())
}

/// The pod of a controller, as a kubelet reports it when the check has failed.
fn held_up_is_deleted(api: &ApiServer, uid: &str) -> Result<()> {
    let owner = "{\"metadata\": {\"ownerReferences\": [{\"apiVersion\": \"apps/v1\", \"kind\": \"ReplicaSet\", \
                 \"name\": \"r\", \"uid\": \"r\", \"controller\": true}]}}";
    api.kubectl(&["patch", "pod", "early", "-n", "shop", "--type=merge", "-p", owner])?;
    let status = "{\"status\": {\"initContainerStatuses\": [{\"name\": \"weft-validate\", \"ready\": false, \
                  \"restartCount\": 1, \"image\": \"weft\", \"imageID\": \"weft\", \
                  \"state\": {\"waiting\": {\"reason\": \"CrashLoopBackOff\"}}, \
                  \"lastState\": {\"terminated\": {\"exitCode\": 1}}}]}}";
    api.kubectl(&["patch", "pod", "early", "-n", "shop", "--subresource=status", "--type=merge", "-p", status])?;
    // Nobody runs it, so it stays until its time to end is over.
    let going = [
        "get",
        "pod",
        "early",
        "-n",
        "shop",
        "--ignore-not-found",
        "-o",
        "jsonpath={.metadata.uid} {.metadata.deletionTimestamp}",
    ];
    eventually("the pod that came before the plugin is deleted", PATIENCE, || {
        let seen = api.kubectl(&going)?;
        Ok(!seen.starts_with(uid) || !seen.trim_end().ends_with(uid))
    })
}
