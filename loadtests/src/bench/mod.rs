//! Weft beside its peers: the same work through two sidecars of each, in one run on one machine.
//!
//! Two pods of the lab, a client's and a server's. Between them: nothing, a plain relay, Weft (redirect, mTLS,
//! authorization, rate limit, metrics, a real control plane), Envoy and HAProxy set up to do the same. Client and server
//! are the same for all and light. What is measured is the CPU time of the two sidecars for each request, besides latency
//! and memory.
//!
//! Figures of shared machines swing twofold within seconds. So peers take turns within a round, CPU time is weighed with
//! that of a fixed piece of work done beside each measurement, and what is reported is the median over the rounds of the
//! ratio to Envoy in the same round.
//!
//! The load is bounded: by [`Options::window`] in time, and in count by what each row says.

mod cpu;
mod peer;
pub mod relay;
mod results;
pub mod row;
mod server;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use peer::{PeerKind, Programs};
pub use results::Results;

use cpu::Calibration;
use peer::{HTTP1, HTTP2, OPAQUE, Pair};
use results::{Figure, Figures};
use row::{Row, Work};
use work::Meter;

/// How the benchmark runs.
#[derive(Debug)]
pub struct Options {
    /// How often everything is measured.
    pub rounds: u32,
    /// How long each measurement lasts.
    pub window: Duration,
    /// What is measured.
    pub rows: Vec<&'static Row>,
    /// Who is measured.
    pub peers: Vec<PeerKind>,
    /// Their programs.
    pub programs: Programs,
    /// Further arguments of Weft's sidecars.
    pub proxy_arguments: Vec<String>,
}

/// Finds the peers' programs. Must be called before the lab is entered.
///
/// # Errors
/// Weft cannot be built.
pub fn find_programs(
    peers: &[PeerKind],
    weft: Option<std::path::PathBuf>,
    envoy: Option<std::path::PathBuf>,
) -> Result<Programs> {
    peer::find_programs(peers, weft, envoy)
}

/// Before counting begins: connections are made, caches and pools filled.
const WARM_UP: Duration = Duration::from_millis(500);
/// After the start, before the memory of an idle sidecar is read.
const SETTLE: Duration = Duration::from_secs(3);
/// How long idle connections may take to be made.
const OPENING: Duration = Duration::from_secs(30);

/// Measures everything.
///
/// # Errors
/// A peer cannot be started, or does not do the work.
pub fn run(options: &Options) -> Result<Results> {
    let peers: Vec<PeerKind> =
        options.peers.iter().copied().filter(|peer| is_there(*peer, &options.programs)).collect();
    let start = |peer: PeerKind| {
        Pair::start(peer, &options.programs, &options.proxy_arguments).with_context(|| format!("start {}", peer.name()))
    };
    let mut pairs: BTreeMap<PeerKind, Pair> = BTreeMap::new();
    let mut results = Results::new(&options.rows, &peers, options.window);
    for round in 1..=options.rounds {
        for row in &options.rows {
            for peer in &peers {
                eprint!("round {round} of {}: {} through {}: ", options.rounds, row.name, peer.name());
                let measured = if row.work.needs_fresh_pair() {
                    start(*peer).and_then(|pair| memory(row.work, &pair))
                } else {
                    if !pairs.contains_key(peer) {
                        pairs.insert(*peer, start(*peer)?);
                    }
                    speed(row.work, &pairs[peer], options.window)
                };
                let figures = measured.with_context(|| format!("{} through {}", row.name, peer.name()))?;
                eprintln!("{figures}");
                results.add(row, *peer, figures);
            }
        }
    }
    Ok(results)
}

fn is_there(peer: PeerKind, programs: &Programs) -> bool {
    match peer {
        PeerKind::Direct | PeerKind::Relay => true,
        PeerKind::Weft => programs.weft.is_some(),
        PeerKind::Envoy => programs.envoy.is_some(),
        PeerKind::Haproxy => programs.haproxy.is_some(),
    }
}

/// Keeps the first row's load up through the first peer for the window, and says which processes carry it.
///
/// # Errors
/// As [`run`].
pub fn hold(options: &Options) -> Result<()> {
    let (row, peer) = (options.rows.first().context("no row")?, options.peers.first().context("no peer")?);
    let pair = Pair::start(*peer, &options.programs, &options.proxy_arguments)?;
    for sidecar in &pair.sidecars {
        println!("{sidecar}, on the host one of: pgrep -x {}", peer.name());
    }
    println!("{}", speed(row.work, &pair, options.window)?);
    Ok(())
}

fn port_of(work: Work) -> u16 {
    match work {
        Work::Http2 { .. } => HTTP2,
        Work::TcpNew { .. } | Work::TcpBulk => OPAQUE,
        _ => HTTP1,
    }
}

/// Does the work for `window`, after a warm-up.
fn speed(work: Work, pair: &Pair, window: Duration) -> Result<Figures> {
    let meter = Meter::new(work.most());
    let address = pair.address(port_of(work));
    let client = {
        let meter = Arc::clone(&meter);
        pair.client.start(move || work::run(work, address, meter))?
    };
    std::thread::sleep(WARM_UP);
    let (done, failed, cpu) = (meter.done(), meter.failed(), pair.cpu_time());
    drop(meter.take_latency());
    let (began, calibration) = (Instant::now(), Calibration::start());
    while began.elapsed() < window && !meter.is_over() {
        std::thread::sleep(Duration::from_millis(10).min(window.saturating_sub(began.elapsed())));
    }
    let (done, failed) = (meter.done() - done, meter.failed() - failed);
    let (seconds, latency) = (began.elapsed().as_secs_f64(), meter.take_latency());
    let cpu = cpu.zip(pair.cpu_time()).map(|(before, after)| (after - before).as_secs_f64());
    let piece = calibration.finish().context("the kernel does not tell the CPU time of threads")?.as_secs_f64();
    meter.stop();
    client.join_timeout(Duration::from_secs(12))?;
    pair.check()?;
    let fault = meter.fault().unwrap_or_else(|| "nothing was done".to_owned());
    // A connection that falls idle may be closed under a request now and then; more than that is another work.
    ensure!(done > 0 && failed * 1000 <= done, "{failed} exchanges failed beside {done}: {fault}");
    let mut figures = Figures::default();
    figures.set(Figure::Calibration, piece * 1e6);
    let units = if work == Work::TcpBulk { done as f64 / f64::from(1 << 30) } else { done as f64 };
    if let Some(cpu) = cpu {
        figures.set(Figure::RawCpu, cpu * 1e6 / units);
        figures.set(Figure::Cpu, cpu / piece / units);
    }
    match work {
        Work::TcpBulk => figures.set(Figure::MibPerSecond, units * 1024.0 / seconds),
        _ => {
            figures.set(Figure::PerSecond, units / seconds);
            figures.set(Figure::P50, latency.quantile(0.5).as_secs_f64() * 1000.0);
            figures.set(Figure::P99, latency.quantile(0.99).as_secs_f64() * 1000.0);
        }
    }
    Ok(figures)
}

/// Reads the memory of sidecars that have done nothing before, or nothing but to take connections.
fn memory(work: Work, pair: &Pair) -> Result<Figures> {
    std::thread::sleep(SETTLE);
    let mut figures = Figures::default();
    let Some(before) = pair.resident_memory() else { return Ok(figures) };
    let Work::IdleConnections { connections } = work else {
        figures.set(Figure::ResidentMib, before as f64 / f64::from(1 << 20) / pair.sidecars.len() as f64);
        return Ok(figures);
    };
    let meter = Meter::new(u64::MAX);
    let address = pair.address(port_of(work));
    let client = {
        let meter = Arc::clone(&meter);
        pair.client.start(move || work::run(work, address, meter))?
    };
    let deadline = Instant::now() + OPENING;
    while meter.done() + meter.failed() < connections as u64 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(SETTLE);
    let after = pair.resident_memory();
    let (done, fault) = (meter.done(), meter.fault());
    meter.stop();
    client.join_timeout(Duration::from_secs(12))?;
    pair.check()?;
    ensure!(done == connections as u64, "{done} connections of {connections}: {}", fault.unwrap_or_default());
    let grown = after.context("the sidecars run")?.saturating_sub(before);
    figures.set(Figure::KibEach, grown as f64 / 1024.0 / done as f64);
    Ok(figures)
}
