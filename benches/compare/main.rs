//! Compares the hub with other servers and with the floor in one run.
//!
//! The benchmark starts and stops all servers itself, on free loopback ports. Servers that are not installed are
//! skipped.

mod baseline;
mod broadcast;
mod clients;
mod http_connection;
mod hub_only;
mod measurements;
mod message;
mod peers;
mod plot;
mod process;
mod scaling;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use hdrhistogram::Histogram;
use tokio::task::LocalSet;

use measurements::{Cost, Scenario, Size, memory};
use message::Template;
use peers::Peer;
use process::Cores;
use table::{Summary, machine, markdown, today};

/// Compares the hub and other servers with a bare epoll writer, the floor.
#[derive(Parser)]
#[command(name = "compare", bin_name = "cargo bench --bench compare --")]
struct Options {
    /// Servers to measure [default: all]. The floor is always measured
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Peer>,
    /// Rounds of the CPU measurement
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Sockets that receive each update
    #[arg(long, default_value_t = 1000)]
    sockets: usize,
    /// Updates per round
    #[arg(long, default_value_t = 100)]
    updates: usize,
    /// Sockets without traffic in the memory measurement
    #[arg(long, default_value_t = 9000)]
    idle: usize,
    /// Updates per second in the latency measurement, each to ten sockets
    #[arg(long, default_value_t = 400)]
    rate: u32,
    /// Measurements to run [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Measure only how the cost of an update grows, and write charts to this directory
    #[arg(long)]
    curves: Option<PathBuf>,
    /// Core of the server
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core of the load generator
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Flag that cargo passes to benchmarks
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// CPU time per delivery
    Cpu,
    /// Memory of idle sockets
    Memory,
    /// Latency at a fixed rate
    Latency,
    /// Measurements of the hub only: reconnect storm, webhooks, status requests
    HubOnly,
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// Returns the requested servers that are installed, and prints how to install the others.
    fn peers(&self) -> Vec<Peer> {
        let is_requested =
            |peer: &Peer| *peer == Peer::Floor || self.only.is_empty() || self.only.contains(peer);
        let is_installed = |peer: &Peer| match peer.missing() {
            None => true,
            Some(command) => {
                eprintln!("skipping {}; install it with: {command}", peer.name());
                false
            }
        };
        Peer::ALL
            .into_iter()
            .filter(is_requested)
            .filter(is_installed)
            .collect()
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, argument, address] = &arguments[..] {
        let address: Option<SocketAddr> = address.parse().ok();
        match (argument.as_str(), address) {
            (peers::FLOOR, Some(address)) => return baseline::serve(address),
            (peers::BROADCAST, Some(address)) => return broadcast::serve(address),
            _ => {}
        }
    }
    let options = Options::parse();
    if !options.bench {
        println!("run this benchmark with `cargo bench`");
        return Ok(());
    }
    ensure!(
        std::thread::available_parallelism()?.get() >= 2,
        "two cores are required, one for the server and one for the load generator"
    );
    for program in ["taskset", "setpriv", "kill"] {
        ensure!(
            process::is_installed(program),
            "missing: {program} (apt-get install util-linux procps)"
        );
    }
    process::pin(options.client_core)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, run(&options))
}

async fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(directory) = &options.curves {
        return scaling::draw(options.server_core, directory).await;
    }
    let peers = options.peers();
    let mut results: Vec<PeerResults> = peers.iter().map(|peer| PeerResults::new(*peer)).collect();
    let start = Instant::now();
    if options.has(Part::Cpu) {
        for round in 0..options.rounds {
            for nth in 0..results.len() {
                // Every round starts with a different server.
                let result = &mut results[(nth + round) % peers.len()];
                let measured = cpu(options, result).await;
                result.record(measured);
            }
        }
    }
    for result in &mut results {
        if options.has(Part::Memory) && result.peer != Peer::Floor {
            let per_socket = idle(options, result.peer).await;
            result.memory = result.record(per_socket);
        }
        if options.has(Part::Latency) {
            let latencies = latency(options, result.peer).await;
            result.latency = result.record(latencies);
        }
    }
    println!("\n{}", heading(options)?);
    if [Part::Cpu, Part::Memory, Part::Latency]
        .into_iter()
        .any(|part| options.has(part))
    {
        println!("{}", comparison(&results));
    }
    if options.has(Part::HubOnly) && peers.contains(&Peer::Hub) {
        hub_only::measure(options.server_core).await?;
    }
    eprintln!("took {} s", start.elapsed().as_secs());
    let failed = results.iter().filter(|result| result.has_failed).count();
    ensure!(failed == 0, "{failed} servers failed");
    Ok(())
}

/// Results of one server.
struct PeerResults {
    peer: Peer,
    sequential: Vec<Cost>,
    concurrent: Vec<Cost>,
    unread: Vec<Option<Cost>>,
    memory: Option<f64>,
    latency: Option<Histogram<u64>>,
    has_failed: bool,
}

impl PeerResults {
    fn new(peer: Peer) -> Self {
        Self {
            peer,
            sequential: Vec::new(),
            concurrent: Vec::new(),
            unread: Vec::new(),
            memory: None,
            latency: None,
            has_failed: false,
        }
    }

    /// Prints an error and marks the server as failed. The benchmark continues with the others.
    fn record<T>(&mut self, measured: anyhow::Result<T>) -> Option<T> {
        let measured = measured.inspect_err(|error| {
            eprintln!("{}: {error:#}", self.peer.name());
            self.has_failed = true;
        });
        measured.ok()
    }
}

/// Creates a temporary directory on the disk of the build, because stores must write to a real disk.
fn temp_dir() -> anyhow::Result<tempfile::TempDir> {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).context("cannot create a temporary directory")
}

async fn cpu(options: &Options, result: &mut PeerResults) -> anyhow::Result<()> {
    let size = Size {
        sockets: options.sockets,
        channels: 1,
        bytes: 0,
    };
    let dir = temp_dir()?;
    let cores = Cores::One(options.server_core);
    let mut scenario = Scenario::open(result.peer, cores, dir.path(), size).await?;
    let sequential = scenario.sequential(options.updates).await?;
    let concurrent = scenario.concurrent(options.updates * 2).await?;
    drop(scenario);
    let half = Size {
        sockets: options.sockets / 2,
        ..size
    };
    let dir = temp_dir()?;
    let mut scenario = Scenario::open(result.peer, cores, dir.path(), half).await?;
    let unread = scenario.unread(options.updates * 10).await?;
    eprintln!(
        "{:28} sequential {:6.0} ns, {:7.0}/s; concurrent {:6.0} ns, {:7.0}/s; unread {:6.0} ns",
        result.peer.name(),
        sequential.cpu_nanos,
        sequential.deliveries_per_second,
        concurrent.cpu_nanos,
        concurrent.deliveries_per_second,
        unread.map_or(f64::NAN, |cost| cost.cpu_nanos)
    );
    result.sequential.push(sequential);
    result.concurrent.push(concurrent);
    result.unread.push(unread);
    Ok(())
}

async fn idle(options: &Options, peer: Peer) -> anyhow::Result<f64> {
    let dir = temp_dir()?;
    let size = Size {
        sockets: options.idle,
        channels: 100,
        bytes: 0,
    };
    let per_socket = memory(peer, Cores::One(options.server_core), dir.path(), size).await?;
    eprintln!("{:28} {per_socket:.0} bytes per idle socket", peer.name());
    Ok(per_socket)
}

async fn latency(options: &Options, peer: Peer) -> anyhow::Result<Histogram<u64>> {
    let dir = temp_dir()?;
    let size = Size {
        sockets: 1000,
        channels: 100,
        bytes: 0,
    };
    let cores = Cores::One(options.server_core);
    let mut scenario = Scenario::open(peer, cores, dir.path(), size).await?;
    scenario
        .at_rate(options.rate, Duration::from_secs(1))
        .await?;
    let latencies = scenario
        .at_rate(options.rate, Duration::from_secs(5))
        .await?;
    eprintln!(
        "{:28} p50 {} µs, p99 {} µs",
        peer.name(),
        latencies.value_at_quantile(0.5),
        latencies.value_at_quantile(0.99)
    );
    Ok(latencies)
}

fn heading(options: &Options) -> anyhow::Result<String> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let command = format!("cargo bench --bench compare -- {}", arguments.join(" "));
    Ok(format!(
        "{}, {}; `{}`. {} rounds; {} sockets, one channel, messages of {} bytes; one core each for the server and the load generator.\n",
        today(),
        machine(),
        command.trim_end_matches([' ', '-']),
        options.rounds,
        options.sockets,
        Template::new(0)?.length()
    ))
}

fn comparison(results: &[PeerResults]) -> String {
    let floor = &results[0];
    let floor_unread: Vec<Cost> = floor.unread.iter().copied().flatten().collect();
    let ratio = |costs: &[Cost], floor: &[Cost]| {
        if costs.len() != floor.len() {
            return "incomplete".to_owned();
        }
        let costs = costs.iter().zip(floor);
        let ratios = costs.map(|(cost, floor)| cost.cpu_nanos / floor.cpu_nanos);
        or_dash(Summary::of(ratios.collect()).map(Summary::ratio))
    };
    let median = |costs: &[Cost]| {
        let micros = Summary::of(costs.iter().map(|cost| cost.cpu_nanos / 1000.0).collect());
        or_dash(micros.map(|micros| format!("{:.2} µs", micros.median)))
    };
    let row = |result: &PeerResults| {
        let unread: Option<Vec<Cost>> = result.unread.iter().copied().collect();
        let memory = result
            .memory
            .map(|bytes| format!("{:.1} KB", bytes / 1000.0));
        let latency = |quantile: f64| {
            let latencies = result.latency.as_ref();
            or_dash(latencies.map(|latencies| millis(latencies.value_at_quantile(quantile))))
        };
        vec![
            result.peer.name().to_owned(),
            median(&result.sequential),
            ratio(&result.sequential, &floor.sequential),
            ratio(&result.concurrent, &floor.concurrent),
            unread.map_or_else(
                || "not all sockets received the last update".to_owned(),
                |unread| ratio(&unread, &floor_unread),
            ),
            or_dash(memory),
            latency(0.5),
            latency(0.99),
            latency(0.999),
        ]
    };
    let head = [
        "Server",
        "CPU per delivery",
        "Relative to the floor",
        "Concurrent updates",
        "Paused readers",
        "Idle socket",
        "p50",
        "p99",
        "p99.9",
    ];
    let rows: Vec<Vec<String>> = results.iter().map(row).collect();
    markdown(&head, &rows)
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1000.0)
}
