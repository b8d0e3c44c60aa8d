//! Programs in pods: start, watch their output, signal, measure, end.
//!
//! Promises: a [`Process`] that is dropped while it runs is killed with its process group and reaped; a pid is never
//! signalled after it was reaped. The standard input of every program is empty.

use super::namespace::{Namespace, lock};
use super::pid1::proc_is_ours;
use super::{Error, Program, Result, Signal};
use nix::sys::signal::{kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, SysconfVar, sysconf};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fmt, fs, thread};

/// The most output that is kept, in bytes; beyond it the oldest lines go.
const KEPT_OUTPUT: usize = 16 << 20;

/// A program that was started in a pod. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    name: String,
    pid: Pid,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    status: Option<ExitStatus>,
    lines: VecDeque<Line>,
    /// Bytes in `lines`.
    kept: usize,
    /// Lines that were dropped from the front.
    dropped: usize,
    open_pipes: usize,
}

#[derive(Debug)]
struct Line {
    from: Pipe,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pipe {
    Out,
    Err,
}

/// Starts `program` in `namespace`.
pub(crate) fn spawn(namespace: &Namespace, program: &Program, temporary: &Path) -> Result<Process> {
    let name = program.to_string();
    let command = program.command(temporary);
    let mut command = command.map_err(|error| Error::new(format!("prepare {name}"), error))?;
    let mut child = namespace.call(&format!("run {name}"), move || command.spawn())?;
    let pid = Pid::from_raw(child.id() as i32);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let state = State { open_pipes: usize::from(out.is_some()) + usize::from(err.is_some()), ..State::default() };
    let shared = Arc::new(Shared { name, pid, state: Mutex::new(state), changed: Condvar::new() });
    if let Some(out) = out {
        let shared = shared.clone();
        thread::spawn(move || shared.read(Pipe::Out, out));
    }
    if let Some(err) = err {
        let shared = shared.clone();
        thread::spawn(move || shared.read(Pipe::Err, err));
    }
    let waiting = shared.clone();
    thread::spawn(move || waiting.reap(child));
    Ok(Process { shared })
}

impl Process {
    /// The process id inside the lab.
    pub fn id(&self) -> u32 {
        self.shared.pid.as_raw() as u32
    }

    /// Waits until a line of captured output, from the beginning on, satisfies `wanted`, and returns it.
    ///
    /// # Errors
    /// After `timeout`, or when the program ended without such a line; the message shows the last lines.
    pub fn wait_for_line(&self, wanted: impl Fn(&str) -> bool, timeout: Duration) -> Result<String> {
        let mut next = 0;
        let mut found = None;
        let done = self.shared.wait_until(timeout, |state| {
            let fresh = state.lines.iter().skip(next.max(state.dropped) - state.dropped);
            found = fresh.map(|line| &line.text).find(|text| wanted(text)).cloned();
            next = state.dropped + state.lines.len();
            found.is_some() || (state.status.is_some() && state.open_pipes == 0)
        });
        found.ok_or_else(|| {
            let why = if done { "it ended without the line" } else { "the line did not come in time" };
            let text = format!("{why}; its last output:\n{}", self.shared.tail());
            Error::new(
                format!("wait for a line of {}", self.shared.name),
                io::Error::new(io::ErrorKind::TimedOut, text),
            )
        })
    }

    /// What was captured of standard output.
    pub fn stdout(&self) -> String {
        self.shared.text(|line| line.from == Pipe::Out)
    }

    /// What was captured of standard error.
    pub fn stderr(&self) -> String {
        self.shared.text(|line| line.from == Pipe::Err)
    }

    /// The number of captured lines that satisfy `wanted`.
    pub fn count_lines(&self, wanted: impl Fn(&str) -> bool) -> usize {
        lock(&self.shared.state).lines.iter().filter(|line| wanted(&line.text)).count()
    }

    /// Sends a signal to the process; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let state = lock(&self.shared.state);
        if state.status.is_none() {
            let _ = kill(self.shared.pid, signal);
        }
    }

    /// The exit status, if it has ended.
    pub fn try_wait(&self) -> Option<ExitStatus> {
        lock(&self.shared.state).status
    }

    /// Waits for the end, and for the end of captured output.
    ///
    /// # Errors
    /// After `timeout`; the message shows the last lines of output.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        self.shared.wait_until(timeout, |state| state.status.is_some());
        // Something that it left running may hold the pipes open.
        self.shared.wait_until(Duration::from_secs(1), |state| state.status.is_none() || state.open_pipes == 0);
        self.try_wait().ok_or_else(|| {
            let text = format!("it is still running; its last output:\n{}", self.shared.tail());
            Error::new(format!("wait for {}", self.shared.name), io::Error::new(io::ErrorKind::TimedOut, text))
        })
    }

    /// User and system CPU time since the start, in steps of 10 ms. `None` when it has ended, or `/proc` cannot be
    /// read here.
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = self.shared.proc_file("stat")?;
        // Field 2 is the name in parentheses, which may contain anything (proc_pid_stat(5)).
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
        Some(Duration::from_micros(ticks * 1_000_000 / per_second))
    }

    /// Resident memory in bytes. `None` when it has ended, or `/proc` cannot be read here.
    pub fn resident_memory(&self) -> Option<u64> {
        let status = self.shared.proc_file("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.shared.kill();
    }
}

impl Shared {
    /// Kills the process group and waits until the process is reaped.
    pub(crate) fn kill(&self) {
        let state = lock(&self.state);
        if state.status.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
        drop(state);
        self.wait_until(Duration::from_secs(10), |state| state.status.is_some());
    }

    /// Waits for the end without reaping, then reaps under the lock: whoever holds it and sees no status knows that
    /// the pid is still this process.
    fn reap(&self, mut child: Child) {
        while waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
        let mut state = lock(&self.state);
        state.status = child.wait().ok();
        self.changed.notify_all();
    }

    fn read(&self, from: Pipe, pipe: impl Read) {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        // A line without end is cut into pieces of 64 KiB.
        while let Ok(1..) = (&mut pipe).take(64 << 10).read_until(b'\n', &mut bytes) {
            let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            bytes.clear();
            let mut state = lock(&self.state);
            state.kept += text.len() + 1;
            state.lines.push_back(Line { from, text });
            while state.kept > KEPT_OUTPUT
                && let Some(line) = state.lines.pop_front()
            {
                state.kept -= line.text.len() + 1;
                state.dropped += 1;
            }
            self.changed.notify_all();
        }
        lock(&self.state).open_pipes -= 1;
        self.changed.notify_all();
    }

    /// Waits until `done`, at most `timeout`; says whether it is.
    fn wait_until(&self, timeout: Duration, mut done: impl FnMut(&State) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.state);
        loop {
            if done(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    fn text(&self, wanted: impl Fn(&Line) -> bool) -> String {
        let state = lock(&self.state);
        state.lines.iter().filter(|line| wanted(line)).flat_map(|line| [line.text.as_str(), "\n"]).collect()
    }

    fn tail(&self) -> String {
        let state = lock(&self.state);
        let skip = state.lines.len().saturating_sub(20);
        state.lines.iter().skip(skip).flat_map(|line| ["  ", line.text.as_str(), "\n"]).collect()
    }

    fn proc_file(&self, file: &str) -> Option<String> {
        let state = lock(&self.state);
        let readable = state.status.is_none() && proc_is_ours();
        readable.then(|| fs::read_to_string(format!("/proc/{}/{file}", self.pid)).ok()).flatten()
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.shared.name, self.shared.pid)
    }
}
