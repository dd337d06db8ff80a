//! What a process costs, by the kernel's own accounting.
//!
//! Invariant: where there is no `/proc`, nothing is told rather than something guessed.

use std::fs;
use std::time::{Duration, Instant};

/// A process on this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process(u32);

/// What it has cost so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub at: Instant,
    /// Time on a processor, its own and the kernel's on its behalf.
    pub cpu: Duration,
    /// Bytes that are resident now.
    pub memory: u64,
}

impl Process {
    /// `None` where it can't be read.
    pub fn of(pid: u32) -> Option<Self> {
        let process = Self(pid);
        process.cost().map(|_| process)
    }

    pub fn own() -> Self {
        Self(std::process::id())
    }

    pub fn id(self) -> u32 {
        self.0
    }

    pub fn cost(self) -> Option<Cost> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        let (ticks, pages) = read(&stat)?;
        let second = rustix::param::clock_ticks_per_second();
        Some(Cost {
            at: Instant::now(),
            cpu: Duration::from_secs_f64(ticks as f64 / second as f64),
            memory: pages * rustix::param::page_size() as u64,
        })
    }
}

impl Cost {
    /// Processor time since then, and its share of the time that passed.
    pub fn since(&self, earlier: &Self) -> (Duration, f64) {
        let cpu = self.cpu.saturating_sub(earlier.cpu);
        let passed = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        (cpu, cpu.as_secs_f64() / passed.max(1e-9))
    }
}

/// Ticks in user and kernel mode, and resident pages: fields 14, 15 and 24 of proc_pid_stat(5), counted
/// from behind the name, which may hold anything.
fn read(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)? + field(15)?, field(24)?))
}

/// Lets this process, and what it starts, have as many open files as it may.
///
/// # Errors
/// When those are fewer than `needed`: how many there are.
pub(super) fn open_files(needed: u64) -> Result<(), u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < most) {
        limit.current = limit.maximum;
        // Where it may not, what it has must do.
        let _ = setrlimit(Resource::Nofile, limit);
    }
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if needed <= allowed {
        Ok(())
    } else {
        Err(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_with_special_process_name_is_parsed() {
        let stat =
            "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 8 0 1000 5000000 1234 0";
        assert_eq!(read(stat), Some((300, 1234)));
        assert_eq!(read("7 (a) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn cost_of_missing_process_is_none() {
        let cost = Process::own().cost().unwrap();
        assert!(cost.memory > 100_000);
        assert!(Process::of(u32::MAX).is_none());
    }
}
