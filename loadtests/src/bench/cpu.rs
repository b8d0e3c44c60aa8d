//! How fast this machine is just now.
//!
//! Processors of shared machines change their speed within seconds, and nothing says so. A fixed piece of work is done
//! again and again beside each measurement, by a thread of its own, and its CPU time tells the speed.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

/// Hashed in each piece: about a millisecond.
const PIECE: usize = 512 << 10;
/// Between two pieces: the work takes a few percent of one processor.
const PAUSE: Duration = Duration::from_millis(30);

/// Work that runs until [`Calibration::finish`].
pub(crate) struct Calibration {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Option<Duration>>,
}

impl Calibration {
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self { stop, worker: thread::spawn(move || work(&stopped)) }
    }

    /// CPU time that one piece took on average; `None` where the kernel does not tell.
    pub(crate) fn finish(self) -> Option<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().ok().flatten()
    }
}

fn work(stopped: &AtomicBool) -> Option<Duration> {
    let data = vec![7_u8; PIECE];
    // The kernel accounts for a thread when it lets go of a processor.
    thread::sleep(Duration::from_millis(1));
    let (before, mut pieces) = (own_cpu_time()?, 0_u32);
    while pieces == 0 || !stopped.load(Ordering::Relaxed) {
        std::hint::black_box(digest(&SHA256, std::hint::black_box(&data)));
        pieces += 1;
        thread::sleep(PAUSE);
    }
    Some((own_cpu_time()? - before) / pieces)
}

/// Of this thread, in nanoseconds (`Documentation/scheduler/sched-stats.rst`).
fn own_cpu_time() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_work_takes_time() {
        let piece = Calibration::start().finish().expect("Linux tells the CPU time of threads");
        assert!(piece > Duration::ZERO);
    }
}
