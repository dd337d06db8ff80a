//! What the shared store costs: updates through Redis, their way to a socket at another node, and
//! many watched channels.
//!
//! Invariant: each Redis is started for its part alone and stopped after it; what depends on the
//! machine stands beside a floor that was measured in the same run, so read the ratios.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench that can't be set up has nothing to measure"
)]

#[path = "redis/channels.rs"]
mod channels;
#[path = "redis/commits.rs"]
mod commits;
#[path = "redis/environment.rs"]
mod environment;
#[path = "redis/latency.rs"]
mod latency;
#[path = "redis/subscribed_nodes.rs"]
mod subscribed_nodes;
#[path = "redis/workload.rs"]
mod workload;

use std::process::Command;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use progress_hub::time::Time;

/// Measures the shared store on a redis-server that it starts on a free port of loopback.
#[derive(Parser)]
struct Arguments {
    /// What to measure; all of it unless told
    parts: Vec<Part>,
    /// How many seconds each rate is measured for
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How many updates are timed on their way to a socket
    #[arg(long, default_value_t = 3000)]
    rounds: usize,
    /// How many jobs are watched at once
    #[arg(long, default_value_t = 100_000)]
    channels: usize,
    /// What cargo tells every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Updates per second, by callers and by what Redis writes to its disk
    Commits,
    /// Updates per second while other nodes listen to each
    Hearing,
    /// From a commit at one node to the frame at a socket of another
    Latency,
    /// Many jobs watched at one node
    Channels,
}

/// A table in Markdown.
fn table(columns: &[&str], rows: &[Vec<String>]) {
    println!("| {} |", columns.join(" | "));
    println!("|{}", "---|".repeat(columns.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
    println!();
}

fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|rest| rest.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let name = model.map_or("unknown processor", |(_, name)| name.trim());
    format!("{cores} cores, {name}")
}

fn redis_version() -> String {
    let output = Command::new("redis-server").arg("--version").output();
    let output = output.expect("redis-server is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().find(|word| word.starts_with("v="));
    version.unwrap_or("v=?").trim_start_matches("v=").to_owned()
}

fn main() {
    let arguments = Arguments::parse();
    let wanted = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let span = Duration::from_secs(arguments.seconds.max(1));
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let command = ["cargo bench --bench redis --"].into_iter();
    let command: Vec<&str> = command.chain(given.iter().map(String::as_str)).collect();
    println!("{}; {}; Redis {}", Time::now(), machine(), redis_version());
    println!("`{}`\n", command.join(" ").trim_end_matches(" --"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        if wanted(Part::Commits) {
            commits::measure(span).await;
        }
        if wanted(Part::Hearing) {
            subscribed_nodes::measure(span).await;
        }
        if wanted(Part::Latency) {
            latency::measure(arguments.rounds.max(100)).await;
        }
        if wanted(Part::Channels) {
            channels::measure(arguments.channels.max(1), span).await;
        }
    });
}
