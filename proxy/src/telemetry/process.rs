//! What `/proc` says of this process, under the names that Prometheus client libraries have agreed on.
use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// One reading.
#[derive(Debug)]
pub(super) struct ProcessSample {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
    pub(super) start_seconds: f64,
    pub(super) threads: u64,
}

impl ProcessSample {
    /// Reads `/proc/self`; `None` where there is none.
    pub(super) fn take() -> Option<Self> {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|ticks| *ticks > 0)? as f64;
        let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok().flatten()?).ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok()?;
        // Field numbers of proc(5) less three: the command's name, which may hold blanks, ends at the last parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            threads: field(20)?,
            start_seconds: boot + field(22)? as f64 / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
            max_fds: nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok()?.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_itself() {
        let sample = ProcessSample::take().expect("Linux has /proc");
        assert!(sample.resident_bytes > 100_000 && sample.virtual_bytes >= sample.resident_bytes);
        assert!(sample.open_fds >= 1 && sample.max_fds >= sample.open_fds);
        assert!(sample.threads >= 1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!(sample.start_seconds > 1e9 && sample.start_seconds < now + 2.0, "{}", sample.start_seconds);
    }
}
