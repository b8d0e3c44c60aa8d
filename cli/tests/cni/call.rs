//! A call of the plugin, as a container runtime makes it.
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// What the plugins before this one found, spelled so that reading and writing it again would show.
pub const PREVIOUS: &str =
    r#"{ "interfaces":[{"name":"eth0"}], "cniVersion":"1.0.0", "ips":[{"address":"10.0.0.9/24"}], "x": 1.50 }"#;

#[derive(Clone, Debug)]
pub struct Call {
    program: PathBuf,
    environment: Vec<(String, String)>,
    pub input: String,
}

/// What the plugin answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub success: bool,
    pub output: String,
}

impl Call {
    /// `command` for pod `name` of `namespace`, in `netns`, with the agent at `socket`.
    pub fn new(command: &str, pod: (&str, &str), netns: &Path, socket: &Path) -> Self {
        let settings = json!({
            "cniVersion": "1.0.0", "name": "k8s", "type": "weft-cni", "socket": socket,
            "excludeNamespaces": ["kube-system", "weft-system"],
        });
        let settings = settings.to_string();
        let input = format!("{},\"prevResult\":{PREVIOUS}}}", &settings[..settings.len() - 1]);
        let (namespace, name) = pod;
        let arguments =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={name}-uid");
        let environment = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", "c0ffee".to_owned()),
            ("CNI_NETNS", netns.display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("CNI_ARGS", arguments),
        ];
        Self {
            program: crate::WEFT.into(),
            environment: environment.map(|(name, value)| (name.to_owned(), value)).into(),
            input,
        }
    }

    /// The plugin's file that an agent installed.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }

    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(there, _)| there != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn unset(mut self, name: &str) -> Self {
        self.environment.retain(|(there, _)| there != name);
        self
    }

    pub fn input(mut self, input: &str) -> Self {
        input.clone_into(&mut self.input);
        self
    }

    pub fn run(&self) -> Result<Answer> {
        let mut child = Command::new(&self.program)
            .arg0("/opt/cni/bin/weft-cni")
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        // It may answer without having read all of it.
        let _ = child.stdin.take().context("it is piped")?.write_all(self.input.as_bytes());
        let output = child.wait_with_output()?;
        Ok(Answer { success: output.status.success(), output: String::from_utf8(output.stdout)? })
    }
}

impl Answer {
    /// It succeeded and printed `output`.
    pub fn succeeded(&self, output: &str) -> Result<()> {
        ensure!(self.success && self.output.trim_end() == output, "{self:?}");
        Ok(())
    }

    /// It failed with `code` and a message that contains `hint`.
    pub fn failed(&self, code: u64, hint: &str) -> Result<()> {
        let error: Value = serde_json::from_str(&self.output).with_context(|| format!("{self:?}"))?;
        let message = error["msg"].as_str().context("no msg")?;
        ensure!(
            !self.success && error["code"] == code && message.contains(hint),
            "{self:?}, expected {code} and {hint}"
        );
        ensure!(error["cniVersion"].is_string(), "{self:?}");
        Ok(())
    }
}
