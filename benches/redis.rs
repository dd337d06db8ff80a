//! The cost of the Redis store: update rate, latency to a socket of another node, and many subscribed
//! channels.
//!
//! Each part starts a Redis of its own. Figures that depend on the machine come with a baseline from the
//! same run, so compare the ratios.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench without its environment has nothing to measure"
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

/// Measures the Redis store on a redis-server that it starts on a free port of loopback
#[derive(Parser)]
struct Arguments {
    /// Parts to run [default: all]
    parts: Vec<Part>,
    /// Duration of each rate measurement, in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Number of updates in the latency measurement
    #[arg(long, default_value_t = 3000)]
    rounds: usize,
    /// Number of subscribed jobs
    #[arg(long, default_value_t = 100_000)]
    channels: usize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Updates per second, by number of callers and by persistence of Redis
    Commits,
    /// Updates per second while other nodes are subscribed
    SubscribedNodes,
    /// Latency from a commit on one node to a socket of another
    Latency,
    /// Memory and recovery of one node with many subscribed jobs
    Channels,
}

/// Prints a table in Markdown.
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
    let version = text
        .split_whitespace()
        .find(|field| field.starts_with("v="));
    version.unwrap_or("v=?").trim_start_matches("v=").to_owned()
}

fn main() {
    let arguments = Arguments::parse();
    let is_selected = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let span = Duration::from_secs(arguments.seconds.max(1));
    let options: Vec<String> = std::env::args()
        .skip(1)
        .filter(|option| option != "--bench")
        .collect();
    let command = ["cargo bench --bench redis --"].into_iter();
    let command: Vec<&str> = command.chain(options.iter().map(String::as_str)).collect();
    println!("{}; {}; Redis {}", Time::now(), machine(), redis_version());
    println!("`{}`\n", command.join(" ").trim_end_matches(" --"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        if is_selected(Part::Commits) {
            commits::measure(span).await;
        }
        if is_selected(Part::SubscribedNodes) {
            subscribed_nodes::measure(span).await;
        }
        if is_selected(Part::Latency) {
            latency::measure(arguments.rounds.max(100)).await;
        }
        if is_selected(Part::Channels) {
            channels::measure(arguments.channels.max(1), span).await;
        }
    });
}
