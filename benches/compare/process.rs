//! Server processes: started on one core, with CPU time and memory from the kernel.
//!
//! Invariant: values cover the whole process tree, and no process outlives the run.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Maximum time for a server to listen.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Time after which a server that does not exit is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Cores that a server runs on.
#[derive(Clone, Copy, Debug)]
pub enum Cores {
    One(usize),
    All,
}

/// A running server. Dropping it stops the process tree.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with its output in the file `log`. The kernel stops it if this process exits.
    pub fn start(command: &[&str], cores: Cores, dir: &Path, log: &str) -> anyhow::Result<Self> {
        let log = dir.join(log);
        let out = File::create(&log)?;
        let mut start = Command::new("setpriv");
        start.args(["--pdeathsig", "TERM"]);
        if let Cores::One(core) = cores {
            start.args(["taskset", "-c", &core.to_string()]);
        }
        let child = start
            .args(command)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command[0]))?;
        Ok(Self { child, log })
    }

    /// Waits until the server accepts connections.
    pub fn wait_until_listening(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("exited with {status}:\n{}", self.log_excerpt());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("not listening on {address}:\n{}", self.log_excerpt());
    }

    fn log_excerpt(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Returns the CPU time of all threads since their start, as the scheduler counts it.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut nanos = 0u64;
        for process in process_tree(self.child.id())? {
            // The process may have exited in the meantime.
            let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
                continue;
            };
            for thread in threads {
                let count = fs::read_to_string(thread?.path().join("schedstat"));
                let on_cpu = count.ok().and_then(|text| {
                    let first = text.split_whitespace().next()?;
                    first.parse::<u64>().ok()
                });
                nanos += on_cpu.unwrap_or(0);
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Returns the proportional set size in bytes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let mut kib = 0;
        for process in process_tree(self.child.id())? {
            let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
            let share = text.ok().and_then(|text| {
                let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
                line.trim().trim_end_matches(" kB").parse::<u64>().ok()
            });
            kib += share.unwrap_or(0);
        }
        Ok(kib * 1024)
    }

    fn signal(&self, name: &str) {
        let group = format!("-{}", self.child.id());
        let sent = Command::new("kill").args([name, "--", &group]).output();
        if let Err(error) = sent {
            eprintln!("cannot signal process group {group}: {error}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal("-TERM");
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        self.signal("-KILL");
        if let Err(error) = self.child.wait() {
            eprintln!("a server did not exit: {error}");
        }
    }
}

/// Returns a process and all its descendants.
fn process_tree(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let mut stat = String::new();
        let read = File::open(format!("/proc/{process}/stat"))
            .and_then(|mut file| file.read_to_string(&mut stat));
        if read.is_err() {
            continue;
        }
        // The state and the parent follow the process name, which may contain any character.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let parent = rest.split_whitespace().nth(1);
        parents.push((process, parent.and_then(|parent| parent.parse().ok())));
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = Some(found[at]);
        found.extend(
            parents
                .iter()
                .filter(|(_, candidate)| *candidate == parent)
                .map(|(process, _)| process),
        );
        at += 1;
    }
    Ok(found)
}

/// Returns a loopback address with a free port.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Returns whether a program is on the path.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Pins this process to one core.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let pinned = Command::new("taskset")
        .args(["-a", "-c", "-p", &core.to_string()])
        .arg(std::process::id().to_string())
        .output()
        .context("cannot run taskset (package util-linux)")?;
    if !pinned.status.success() {
        bail!(
            "taskset: {}",
            String::from_utf8_lossy(&pinned.stderr).trim()
        );
    }
    Ok(())
}
