//! Servers as processes: started on one core, counted by the kernel, and surely stopped.
//!
//! Invariant: a server's figures are those of its whole process tree, and none of it outlives the run.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

/// How long a server may take to end before it is killed.
const STOP: Duration = Duration::from_secs(5);

/// On which cores a server runs.
#[derive(Clone, Copy, Debug)]
pub enum Cores {
    /// On this one.
    One(usize),
    /// On whichever.
    All,
}

/// A running server, ended with this value.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command, its output in `log`. It ends when the run does, however that ends.
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
            .with_context(|| format!("can't start {}", command[0]))?;
        Ok(Self { child, log })
    }

    /// Waits until somebody listens there.
    pub fn listens(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let until = Instant::now() + START;
        while Instant::now() < until {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}:\n{}", self.last_words());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("nobody listens on {address}:\n{}", self.last_words());
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// CPU time of all its threads so far, by the scheduler's own count.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut nanos = 0u64;
        for process in tree(self.child.id())? {
            // Whoever ended while being looked at has no more to add.
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

    /// Memory in bytes: what is its own, and its share of what it shares.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let mut kib = 0;
        for process in tree(self.child.id())? {
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
            eprintln!("can't end {group}: {error}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal("-TERM");
        let until = Instant::now() + STOP;
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        self.signal("-KILL");
        if let Err(error) = self.child.wait() {
            eprintln!("a server did not end: {error}");
        }
    }
}

/// A process and all that it started.
fn tree(root: u32) -> io::Result<Vec<u32>> {
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
        // After the name, which may contain anything: the state, then the parent.
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
                .filter(|(_, its)| *its == parent)
                .map(|(process, _)| process),
        );
        at += 1;
    }
    Ok(found)
}

/// A loopback address that is free now.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Whether there is such a program.
pub fn is_there(program: &str) -> bool {
    let places = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&places).any(|place| place.join(program).is_file())
}

/// Keeps this process on one core.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let pinned = Command::new("taskset")
        .args(["-a", "-c", "-p", &core.to_string()])
        .arg(std::process::id().to_string())
        .output()
        .context("can't run taskset (package util-linux)")?;
    if !pinned.status.success() {
        bail!(
            "taskset: {}",
            String::from_utf8_lossy(&pinned.stderr).trim()
        );
    }
    Ok(())
}
