//! A real Prometheus in a pod of the lab, and its HTTP API.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_loadtests::lab::{Pod, PodSpec, Process, Program};
use weft_loadtests::mesh::{Mesh, eventually, find_program};

pub const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 9090;

/// Where Debian, and who builds it, put the server.
pub fn server() -> Option<PathBuf> {
    find_program(&["/usr/bin/prometheus", "/usr/local/bin/prometheus"])
}

/// Where Debian, and who builds it, put the tool.
pub fn promtool() -> Option<PathBuf> {
    find_program(&["/usr/bin/promtool", "/usr/local/bin/promtool"])
}

/// A server that scrapes and evaluates every second.
pub struct Prometheus {
    pod: Pod,
    process: Process,
}

impl Prometheus {
    /// Starts it with the `scrape_configs` of a Prometheus configuration, and waits until it answers.
    pub fn start(mesh: &Mesh, name: &str, scrape_configs: &str, rules: &Path) -> Result<Self> {
        let pod = mesh.lab.pod(PodSpec::new(name))?;
        let file = pod.directory().join("prometheus.yaml");
        let global = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}";
        std::fs::write(&file, format!("{global}\nrule_files: [{}]\n{scrape_configs}", rules.display()))?;
        let program = Program::new(server().context("it was there a moment ago")?)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", pod.directory().join("data").display()))
            .args([format!("--web.listen-address=0.0.0.0:{PORT}"), "--log.level=warn".to_owned()]);
        let process = pod.spawn(program)?;
        let prometheus = Self { pod, process };
        eventually("Prometheus is ready", PATIENCE, || {
            ensure!(prometheus.process.try_wait().is_none(), "it ended: {}", prometheus.process.stderr());
            Ok(prometheus.get("/-/ready").is_ok_and(|(status, _)| status == 200))
        })?;
        Ok(prometheus)
    }

    /// The samples of an instant query: labels and value.
    pub fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>> {
        let data = self.api(&format!("/api/v1/query?query={}", encoded(expression)))?;
        let result = data["result"].as_array().with_context(|| format!("no vector: {data}"))?;
        let sample = |one: &Value| {
            let value = one["value"][1].as_str().and_then(|value| value.parse().ok());
            Ok((one["metric"].clone(), value.with_context(|| format!("no sample: {one}"))?))
        };
        result.iter().map(sample).collect()
    }

    /// The values that a label has in the series of a selector.
    pub fn label_values(&self, label: &str, selector: Option<&str>) -> Result<BTreeSet<String>> {
        let matching = selector.map_or_else(String::new, |selector| format!("?match[]={}", encoded(selector)));
        let data = self.api(&format!("/api/v1/label/{label}/values{matching}"))?;
        Ok(serde_json::from_value(data)?)
    }

    /// Every rule that it has loaded.
    pub fn rules(&self) -> Result<Vec<Value>> {
        let data = self.api("/api/v1/rules")?;
        let groups = data["groups"].as_array().context("no groups")?;
        Ok(groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect())
    }

    /// Every target that it scrapes.
    pub fn targets(&self) -> Result<Vec<Value>> {
        let data = self.api("/api/v1/targets?state=active")?;
        Ok(data["activeTargets"].as_array().context("no targets")?.clone())
    }

    fn api(&self, path: &str) -> Result<Value> {
        let (status, body) = self.get(path)?;
        let mut answer: Value = serde_json::from_str(&body).with_context(|| format!("{status}, no JSON: {body}"))?;
        ensure!(status == 200 && answer["status"] == "success", "{status} {}", answer["error"]);
        Ok(answer["data"].take())
    }

    /// By HTTP/1.0: no chunks.
    fn get(&self, path: &str) -> Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
        let text = self.pod.run(move || async move {
            let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], PORT))).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        })??;
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
    }
}

/// As a value in a query (RFC 3986 section 2.1).
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
