//! System calls of a server, counted by `perf`.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;

/// Time that `perf` needs to attach to the processes.
const START_DELAY: Duration = Duration::from_millis(300);

/// Counts the system calls of running processes, including threads and processes that they start later.
pub struct Counter {
    perf: Child,
    output: NamedTempFile,
}

impl Counter {
    /// Starts counting. Returns `None` if `perf` is not installed or lacks the permission to count.
    pub async fn start(processes: &[u32]) -> Option<Self> {
        let processes: Vec<String> = processes.iter().map(u32::to_string).collect();
        let output = NamedTempFile::new().ok()?;
        let mut perf = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p"])
            .arg(processes.join(","))
            .arg("-o")
            .arg(output.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        tokio::time::sleep(START_DELAY).await;
        let is_running = matches!(perf.try_wait(), Ok(None));
        is_running.then_some(Self { perf, output })
    }

    /// Stops counting and returns the number of system calls.
    pub fn finish(mut self) -> Option<u64> {
        let id = self.perf.id().to_string();
        Command::new("kill").args(["-INT", &id]).output().ok()?;
        self.perf.wait().ok()?;
        let text = std::fs::read_to_string(self.output.path()).ok()?;
        let line = text.lines().find(|line| line.contains("sys_enter"))?;
        line.split(',').next()?.parse().ok()
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // Fails if `perf` has already exited.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}
