//! `weft demo`: a whole mesh on one machine, without root and without installing anything.
//!
//! Pods are network namespaces; the redirect rules, the sidecars, the control plane and the applications are the real
//! ones. What is promised is observed while a load runs (see [`checks`]), and the exit code says whether all of it was
//! seen: 0 yes, 1 no, 2 the demo cannot run here (or was called wrongly), 130 interrupted. Nothing is left behind.
pub(crate) mod apps;
mod checks;
pub(crate) mod client;
mod http;
mod observe;
mod resources;
mod shop;
mod summary;
mod view;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use weft_loadtests::lab;
use weft_loadtests::load::Report;

use observe::{Board, Observer, SharedBoard, lock};
use shop::{Load, Shop, failures};
use summary::{LoadSummary, Promise, Summary};
use view::View;

const SHORTEST: Duration = Duration::from_secs(15);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const UNAVAILABLE: u8 = 2;
/// 128 + SIGINT, as shells count.
const INTERRUPTED: u8 = 130;

/// Flags of `weft demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    /// How long the load runs, from 15s to 24h; it goes on for a little longer where a check needs it.
    #[arg(long, default_value = "20s", value_parser = parse_duration)]
    duration: Duration,
    /// Print a summary as JSON on standard output; progress goes to standard error.
    #[arg(long)]
    json: bool,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = weft_api::duration::parse(text)?;
    if duration < SHORTEST {
        return Err(format!("{text} is too short to show everything; write 15s or more"));
    }
    if duration > LONGEST {
        return Err(format!("{text} is more than a day; write 24h or less"));
    }
    Ok(duration)
}

/// Runs the demo. Must be called while the process has one thread.
pub(crate) fn main(args: &DemoArgs) -> Result<ExitCode> {
    if let Err(unavailable) = lab::enter(lab::Options::default()) {
        eprintln!("weft demo: {unavailable}");
        return Ok(ExitCode::from(UNAVAILABLE));
    }
    let interrupt = Interrupt::listen()?;
    let board = Board::shared();
    let view = View::start(&board, args.json, args.duration);
    let mut summary = Summary::new();
    let outcome = run(args, &interrupt, &board, &view, &mut summary);
    drop(view);
    if let Err(error) = &outcome {
        summary.cut_short(error);
    }
    let text = if args.json { serde_json::to_string_pretty(&summary)? } else { summary.to_text() };
    // A reader that has gone is no reason to fail: the exit code says it all.
    let _ = writeln!(std::io::stdout(), "{text}");
    match outcome {
        _ if interrupt.is_set() => {
            eprintln!("weft demo: interrupted");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(error) => eprintln!("weft demo: {error:#}"),
        Ok(()) => {}
    }
    Ok(if summary.complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(args: &DemoArgs, interrupt: &Interrupt, board: &SharedBoard, view: &View, summary: &mut Summary) -> Result<()> {
    view.phase("starting a control plane and the pods orders, users, inventory-1, inventory-2 and stranger");
    let mut shop = Shop::open().context("the mesh did not start")?;
    let observer = Observer::start(shop.meshed.clone(), board);
    let before = checks::readings(&shop)?;
    view.phase("load begins: orders calls users and inventory");
    let started = Instant::now();
    lock(board).started = started;
    let marker = checks::marker();
    let load = Load::start(&shop, board, &marker)?;
    let script = Script { args, interrupt, view, started, marker };
    let played = script.play(&mut shop, &load, &before, summary);
    let report = load.stop()?;
    drop(observer);
    account(&shop, &report, summary);
    played?;
    let due = checks::renewals_due(args.duration);
    view.promise(summary.record(Promise::Renewal, checks::renewal(&shop, &before, due, &report)));
    view.phase("ending all that was started");
    Ok(())
}

/// Everything between the load's beginning and its end.
struct Script<'a> {
    args: &'a DemoArgs,
    interrupt: &'a Interrupt,
    view: &'a View,
    started: Instant,
    /// What must not be seen on the wire.
    marker: String,
}

impl Script<'_> {
    /// Errors are interrupts only; what a check did not see is in the summary.
    fn play(&self, shop: &mut Shop, load: &Load, before: &[observe::Reading], summary: &mut Summary) -> Result<()> {
        let interrupt = self.interrupt;
        self.at(0.05, "a capture of the wire begins; an order is looked into, and a stranger calls inventory")?;
        let capture = shop.mesh.lab.capture()?;
        let mut identities = std::mem::take(&mut summary.identities);
        self.tell(summary, Promise::MutualTls, checks::mutual_tls(shop, &self.marker, &mut identities))?;
        summary.identities = identities;
        self.tell(summary, Promise::Stranger, checks::stranger(shop, interrupt))?;
        self.at(0.15, "orders tries to delete stock, which no policy allows")?;
        self.tell(summary, Promise::Forbidden, checks::forbidden(shop))?;
        let frames = capture.stop()?;
        self.tell(summary, Promise::NoPlaintext, checks::no_plaintext(shop, &frames, &self.marker))?;
        drop(frames);
        self.at(0.2, "users calls orders far more often than it may")?;
        self.tell(summary, Promise::Burst, checks::burst(shop, load, interrupt))?;
        self.at(0.3, "the policy of inventory's reports is edited, and edited back")?;
        self.tell(summary, Promise::PolicyEdit, checks::policy_edit(shop, interrupt))?;
        self.at(
            0.4,
            "the control plane is killed once every certificate has some life left, and is away for some seconds",
        )?;
        self.tell(summary, Promise::ControlPlaneAway, checks::control_plane_away(shop, load, interrupt))?;
        self.at(0.7, "all is well again; the load goes on and certificates are renewed")?;
        interrupt.sleep(self.args.duration.saturating_sub(self.started.elapsed()))?;
        let due = checks::renewals_due(self.args.duration);
        let deadline = Instant::now() + shop::CERTIFICATE_LIFETIME;
        // A sidecar that does not answer is the check's to report.
        while let Ok(renewals) = checks::renewals_since(shop, before)
            && renewals.iter().any(|renewals| *renewals < due)
            && Instant::now() < deadline
        {
            interrupt.sleep(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// Waits for this share of the duration (or not, if it has passed), then begins something.
    fn at(&self, share: f64, what: &str) -> Result<()> {
        self.interrupt.sleep(self.args.duration.mul_f64(share).saturating_sub(self.started.elapsed()))?;
        self.view.phase(what);
        Ok(())
    }

    fn tell(&self, summary: &mut Summary, promise: Promise, outcome: Result<String>) -> Result<()> {
        // What an interrupt cut short was not looked at.
        self.interrupt.check()?;
        self.view.promise(summary.record(promise, outcome));
        Ok(())
    }
}

fn account(shop: &Shop, report: &Report, summary: &mut Summary) {
    summary.requests = shop.requests();
    summary.requests.ok += report.status(200);
    // Whatever else became of an order is a failure of the load.
    summary.requests.failed += failures(report);
    let others = report.by_status.iter().filter(|(status, _)| **status != 200);
    summary.failures = others.map(|(status, count)| (format!("an order got status {status}"), *count)).collect();
    summary.failures.extend(report.errors.iter().map(|(error, count)| (format!("an order failed: {error}"), *count)));
    summary.failures.extend(shop.order_faults());
    let milliseconds = |share| report.latency.quantile(share).as_secs_f64() * 1e3;
    summary.seconds = report.elapsed.as_secs_f64();
    summary.load = LoadSummary {
        ok: report.status(200),
        failed: failures(report),
        per_second: report.rate(),
        p50_ms: milliseconds(0.5),
        p99_ms: milliseconds(0.99),
    };
}

/// SIGINT, SIGTERM or SIGHUP: the first ends the demo in order, the second at once.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn listen() -> Result<Self> {
        let set = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&set);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let mut signals =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        drop(guard);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                let mut first = None;
                loop {
                    tokio::select! {
                        _ = signals.0.recv() => {}
                        _ = signals.1.recv() => {}
                        _ = signals.2.recv() => {}
                    }
                    told.store(true, Ordering::SeqCst);
                    // One interrupt may come several times: to the group, and passed on by each process of the lab.
                    if first.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(500) {
                        view::restore_terminal();
                        // The lab goes with this process.
                        std::process::exit(i32::from(INTERRUPTED));
                    }
                }
            });
        })?;
        Ok(Self(set))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error once the demo was interrupted.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_set() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Sleeps, unless interrupted.
    pub(crate) fn sleep(&self, duration: Duration) -> Result<()> {
        let until = Instant::now() + duration;
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}
