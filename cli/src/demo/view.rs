//! What people see while the demo runs: a live view on a terminal, else one plain line an event.
//!
//! Promises: standard output has the JSON alone when that was asked for; the terminal is as before when the demo has
//! ended, also after an interrupt or a panic.
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::observe::{Board, Decision, SharedBoard, Signals, lock, signals};
use super::resources::IDENTITY_PREFIX;
use super::summary::{Observation, mark};

const REDRAW: Duration = Duration::from_secs(1);
/// Alternate screen on and cursor off (xterm control sequences, DECSET 1049 and DECTCEM).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Whether the live view is on the screen.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Gives the terminal back. Harmless when it was not taken.
pub(crate) fn restore_terminal() {
    if SHOWN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
    }
}

/// Where events go.
#[derive(Debug)]
pub(crate) struct View {
    board: SharedBoard,
    json: bool,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl View {
    /// Shows `board`, for a load of `duration`.
    pub(crate) fn start(board: &SharedBoard, json: bool, duration: Duration) -> Self {
        let live = (!json && io::stdout().is_terminal()).then(|| Live::start(Arc::clone(board), duration));
        Self { board: Arc::clone(board), json, live }
    }

    /// Tells what is being done now.
    pub(crate) fn phase(&self, text: impl Into<String>) {
        let text = text.into();
        self.line(&text);
        lock(&self.board).phase = text;
    }

    /// Tells what became of a promise.
    pub(crate) fn promise(&self, promise: &Observation) {
        self.line(&format!("  {} {}: {}", mark(promise.seen), promise.name, promise.detail));
        lock(&self.board).promises.push(promise.clone());
    }

    fn line(&self, text: &str) {
        if self.live.is_some() {
            return;
        }
        let at = lock(&self.board).started.elapsed().as_secs_f64();
        let text = format!("[{at:5.1} s] {text}\n");
        // A reader that has gone is no reason to stop.
        let _ = match self.json {
            true => io::stderr().write_all(text.as_bytes()),
            false => io::stdout().write_all(text.as_bytes()),
        };
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            live.stop.store(true, Ordering::SeqCst);
            live.thread.thread().unpark();
            let _ = live.thread.join();
        }
        restore_terminal();
    }
}

impl Live {
    fn start(board: SharedBoard, duration: Duration) -> Self {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore_terminal();
            before(panic);
        }));
        SHOWN.store(true, Ordering::SeqCst);
        print(ENTER);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::SeqCst) {
                let text = screen(&lock(&board), duration);
                if SHOWN.load(Ordering::SeqCst) {
                    // Each line ends with "erase to the end of line", the last with "erase below": no flicker.
                    print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\r\n")));
                }
                std::thread::park_timeout(REDRAW);
            }
        });
        Self { stop, thread }
    }
}

fn print(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The whole screen, at most 120 columns.
fn screen(board: &Board, duration: Duration) -> String {
    let mut text = String::new();
    let (elapsed, load) = (board.started.elapsed().as_secs_f64(), &board.load);
    let _ = writeln!(text, "weft demo   {elapsed:.0} s of {:.0} s   {}\n", duration.as_secs_f64(), board.phase);
    let _ = writeln!(
        text,
        "{:<14}{:>9}{:>12}{:>11}{:>9}{:>9}{:>8}{:>12}",
        "service", "req/s", "refused/s", "failed/s", "p50 ms", "p99 ms", "cpu %", "memory MiB"
    );
    for service in ["orders", "users", "inventory"] {
        let of = board.sidecars.iter().filter(|sidecar| sidecar.service == service);
        let readings: Vec<&VecDeque<_>> = of.map(|sidecar| &sidecar.readings).collect();
        let mut row = signals(&readings);
        if service == "orders" {
            // Its callers are in its own pod, where the mesh has no part in.
            let quantile = |share| load.latency.quantile(share).as_secs_f64() * 1e3;
            let failed = load.answered() - load.status(200) + load.failed();
            let seconds = load.elapsed.as_secs_f64().max(1.0);
            row = Signals {
                rate: load.rate(),
                failed: failed as f64 / seconds,
                p50_ms: quantile(0.5),
                p99_ms: quantile(0.99),
                ..row
            };
        }
        let name = if readings.len() > 1 { format!("{service} ({})", readings.len()) } else { service.to_owned() };
        let Signals { rate, refused, failed, p50_ms, p99_ms, cpu, memory } = row;
        let _ = writeln!(
            text,
            "{name:<14}{rate:>9.1}{refused:>12.1}{failed:>11.1}{p50_ms:>9.1}{p99_ms:>9.1}{:>8.1}{:>12.1}",
            cpu * 100.0,
            memory / 1_048_576.0
        );
    }
    let _ =
        writeln!(text, "\n{:<14}{:<48}{:>12}{:>9}  control plane", "certificate", "identity", "expires in", "renewed");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    for sidecar in &board.sidecars {
        let Some(reading) = sidecar.readings.back() else { continue };
        let identity = format!("{IDENTITY_PREFIX}{}", sidecar.service);
        let connected = if reading.connected { "connected" } else { "away" };
        let (left, renewed) = (reading.expiry - now, (reading.renewals - 1.0).max(0.0));
        let _ = writeln!(text, "{:<14}{identity:<48}{left:>10.0} s{renewed:>9.0}  {connected}", sidecar.pod);
    }
    text.push_str("\nlast decisions\n");
    for decision in &board.decisions {
        let Decision { time, text: what, count } = decision;
        let _ = writeln!(text, "  {}", cut(&format!("{time} {count:>4} × {what}")));
    }
    text.push_str("\npromises\n");
    for promise in &board.promises {
        let _ = writeln!(text, "  {} {}", mark(promise.seen), cut(promise.name));
    }
    text
}

/// One line of the screen, without what could steer the terminal.
fn cut(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(118).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_shows_every_service_and_nothing_that_steers_the_terminal() {
        let board = Board::shared();
        let text = "denied \x1b[2J /path".to_owned();
        lock(&board).decisions.push_back(Decision { time: String::new(), text, count: 3 });
        let text = screen(&lock(&board), Duration::from_secs(20));
        for wanted in ["orders", "users", "inventory", "denied [2J /path"] {
            assert!(text.contains(wanted), "no {wanted} in {text}");
        }
        assert!(!text.contains('\x1b'));
    }
}
