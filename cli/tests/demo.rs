//! `weft demo` sees every promise kept, says so, and leaves nothing behind.
#![allow(missing_docs, unreachable_pub)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use weft_loadtests::lab::testing;

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// In the environment of the demo, and so of every process that it starts.
const MARK: &str = "WEFT_DEMO_TEST";
/// The demo's load lasts 15 s; the rest is for a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() {
    testing::main_outside(&[
        ("the_demo_sees_every_promise_kept_and_leaves_nothing_behind", every_promise),
        ("an_interrupt_ends_the_demo_in_order_and_leaves_nothing_behind", interrupted),
        ("a_demo_too_short_to_show_everything_is_refused", too_short),
    ]);
}

/// The demo, with a directory of its own that must stay empty.
struct Demo {
    child: Child,
    mark: String,
    directory: tempfile::TempDir,
    links: BTreeSet<String>,
}

/// How it ended.
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Demo {
    fn start(name: &str, arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mark = format!("{name}-{}", std::process::id());
        let mut command = Command::new(WEFT);
        command.arg("demo").args(arguments).current_dir(directory.path());
        command.env("TMPDIR", directory.path()).env("HOME", directory.path()).env(MARK, &mark);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Self { child, mark, directory, links: links()? })
    }

    /// Waits for the end, calling `told` with each line of standard error.
    fn end(&mut self, mut told: impl FnMut(&Child, &str)) -> Result<Ended> {
        let (out, err) =
            (self.child.stdout.take().context("no stdout")?, self.child.stderr.take().context("no stderr")?);
        let stdout = thread::spawn(move || std::io::read_to_string(out));
        let (sender, lines) = channel();
        thread::spawn(move || BufReader::new(err).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let (deadline, mut stderr) = (Instant::now() + PATIENCE, String::new());
        while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            told(&self.child, &line);
            stderr += &format!("{line}\n");
        }
        if Instant::now() >= deadline {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        ensure!(Instant::now() < deadline, "it did not end within {PATIENCE:?}: {stderr}");
        let stdout = stdout.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        Ok(Ended { status, stdout, stderr })
    }

    /// No process, link, mount or file remains.
    fn left_nothing(&self) -> Result<()> {
        let left = processes_with(&self.mark);
        ensure!(left.is_empty(), "processes remain: {left:?}");
        let more: Vec<String> = links()?.difference(&self.links).cloned().collect();
        ensure!(more.is_empty(), "network links remain: {more:?}");
        ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains("weft-lab"), "a mount remains");
        ensure!(!Path::new("/run/weft-lab").exists(), "/run/weft-lab remains");
        let files: Vec<_> = fs::read_dir(self.directory.path())?.flatten().map(|entry| entry.path()).collect();
        ensure!(files.is_empty(), "files remain: {files:?}");
        Ok(())
    }
}

fn links() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/net/dev")?;
    Ok(table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}

/// Processes whose environment has the mark.
fn processes_with(mark: &str) -> Vec<String> {
    let wanted = format!("{MARK}={mark}");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let marked = processes.filter(|process| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    });
    let command = |process: fs::DirEntry| fs::read(process.path().join("cmdline")).unwrap_or_default();
    marked.map(|process| String::from_utf8_lossy(&command(process)).replace('\0', " ")).collect()
}

fn every_promise() -> Result<()> {
    let mut demo = Demo::start("promises", &["--json", "--duration", "15s"])?;
    let (mut most, mark) = (0, demo.mark.clone());
    let Ended { status, stdout, stderr } = demo.end(|_, _| most = most.max(processes_with(&mark).len()))?;
    let summary: Value = serde_json::from_str(&stdout).with_context(|| format!("no JSON:\n{stdout}\n{stderr}"))?;
    let promises = summary["promises"].as_array().context("no promises")?;
    let unseen: Vec<&Value> = promises.iter().filter(|promise| promise["seen"] != true).collect();
    ensure!(unseen.is_empty(), "not seen: {unseen:#?}\n{stderr}");
    ensure!(promises.len() == 8, "{} promises: {stdout}", promises.len());
    ensure!(promises.iter().all(|promise| !promise["detail"].as_str().unwrap_or_default().is_empty()), "{stdout}");
    ensure!(status.code() == Some(0), "{status}\n{stderr}");
    let requests = &summary["requests"];
    for outcome in ["ok", "denied", "limited", "refused"] {
        ensure!(requests[outcome].as_u64() > Some(0), "no request was {outcome}: {requests}");
    }
    ensure!(requests["failed"] == 0, "{requests}");
    for app in ["orders", "users", "inventory"] {
        let identity = &summary["identities"][app];
        ensure!(*identity == format!("spiffe://cluster.local/ns/shop/sa/{app}"), "{app} is {identity}");
    }
    // The search for what is left would have found what was there.
    ensure!(most >= 10, "at most {most} processes had the mark");
    demo.left_nothing()
}

fn interrupted() -> Result<()> {
    let mut demo = Demo::start("interrupt", &["--json"])?;
    let Ended { status, stdout, stderr } = demo.end(|child, line| {
        if line.contains("load begins") {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT);
        }
    })?;
    ensure!(status.code() == Some(130) && status.signal().is_none(), "{status}\n{stderr}");
    let summary: Value = serde_json::from_str(&stdout).with_context(|| format!("no JSON:\n{stdout}\n{stderr}"))?;
    let promises = summary["promises"].as_array().context("no promises")?;
    ensure!(promises.iter().any(|promise| promise["seen"] == false), "it claims what it cannot have seen: {stdout}");
    demo.left_nothing()
}

fn too_short() -> Result<()> {
    let output = Command::new(WEFT).args(["demo", "--duration", "5s"]).output()?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(text.contains("write 15s or more"), "{text}");
    Ok(())
}
