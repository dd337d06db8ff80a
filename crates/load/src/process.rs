//! CPU time and memory of a process, and the open-file limit.
//!
//! Source: proc_pid_stat(5). On systems without `/proc`, there are no values.

use std::fs;
use std::time::{Duration, Instant};

/// Resource usage of a process up to one point in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub at: Instant,
    /// CPU time in user and kernel mode since the process started.
    pub cpu: Duration,
    /// Resident memory.
    pub memory_bytes: u64,
}

impl Usage {
    /// Returns the usage of a process, or `None` if it cannot be read.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (ticks, pages) = parse_stat(&stat)?;
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            at: Instant::now(),
            cpu: Duration::from_secs_f64(ticks as f64 / ticks_per_second),
            memory_bytes: pages * rustix::param::page_size() as u64,
        })
    }

    /// Returns the CPU time since `earlier`, and its share of the elapsed time. One core is 1.0.
    pub fn since(&self, earlier: &Self) -> (Duration, f64) {
        let cpu = self.cpu.saturating_sub(earlier.cpu);
        let elapsed = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        (cpu, cpu.as_secs_f64() / elapsed.max(1e-9))
    }
}

/// Returns the CPU ticks in user and kernel mode and the resident pages: fields 14, 15 and 24. Fields are counted
/// from the end of the process name, which may contain spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)? + field(15)?, field(24)?))
}

/// Raises the open-file limit of this process and its children to the hard limit.
///
/// # Errors
/// Returns the limit if it is lower than `needed`.
pub(super) fn raise_open_file_limit(needed: u64) -> Result<(), u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If this fails, the current limit may still be sufficient.
    let _ = setrlimit(Resource::Nofile, limit);
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if needed <= limit { Ok(()) } else { Err(limit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_with_special_process_name_is_parsed() {
        let stat =
            "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 8 0 1000 5000000 1234 0";
        assert_eq!(parse_stat(stat), Some((300, 1234)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn usage_of_missing_process_is_none() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.memory_bytes > 100_000);
        assert!(Usage::of(u32::MAX).is_none());
    }
}
