//! Server processes: starts them on one core or on all, and reads their CPU time, context switches and memory.
//!
//! Invariant: values cover the whole process tree, and no process outlives the run.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Add;
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

/// Resource usage of a server since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all threads, from `/proc/<pid>/task/*/schedstat`.
    pub cpu: Duration,
    /// Voluntary and involuntary context switches of all threads.
    pub context_switches: u64,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            context_switches: self.context_switches + other.context_switches,
        }
    }
}

impl Usage {
    /// Returns the usage since an earlier reading.
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            context_switches: self
                .context_switches
                .saturating_sub(before.context_switches),
        }
    }
}

/// A running server. Dropping it stops the process tree.
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Last known usage of each thread, including threads that have exited.
    threads: RefCell<HashMap<PathBuf, Usage>>,
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
            // A backtrace would displace the error in the log excerpt.
            .env("RUST_BACKTRACE", "0")
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command[0]))?;
        Ok(Self {
            child,
            log,
            threads: RefCell::default(),
        })
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

    /// Returns the usage of all threads.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut known = self.threads.borrow_mut();
        for process in self.ids()? {
            // The process may have exited in the meantime.
            let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
                continue;
            };
            for thread in threads {
                let thread = thread?.path();
                if let Some(usage) = thread_usage(&thread) {
                    known.insert(thread, usage);
                }
            }
        }
        Ok(known.values().copied().fold(Usage::default(), Usage::add))
    }

    /// Returns the ids of the process and its descendants.
    pub fn ids(&self) -> io::Result<Vec<u32>> {
        process_tree(self.child.id())
    }

    /// Returns the proportional set size in bytes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let mut kib = 0;
        for process in self.ids()? {
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

/// Returns the usage of a thread from its directory in `/proc`, or `None` if it has exited.
fn thread_usage(thread: &Path) -> Option<Usage> {
    let schedstat = fs::read_to_string(thread.join("schedstat")).ok()?;
    let nanos = schedstat.split_whitespace().next()?.parse().ok()?;
    let status = fs::read_to_string(thread.join("status")).ok()?;
    let switches = status
        .lines()
        .filter_map(|line| line.split_once("ctxt_switches:"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok());
    Some(Usage {
        cpu: Duration::from_nanos(nanos),
        context_switches: switches.sum(),
    })
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
