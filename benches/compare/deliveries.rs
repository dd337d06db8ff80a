//! Deliveries to many sockets: CPU time, memory and latency of each server.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use hdrhistogram::Histogram;

use crate::measurements::{Cost, Scenario, Size, memory};
use crate::message::Template;
use crate::peers::Peer;
use crate::table::{Summary, machine, markdown, millis, or_dash, today};
use crate::{Common, command_line, hub_only, scaling, temp_dir};

/// Rounds of the CPU measurement.
const ROUNDS: usize = 5;

/// Options of the measurements of deliveries.
#[derive(clap::Args)]
#[group(skip)]
pub struct Options {
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
    /// Measure only how the cost of an update scales, and write charts to this directory
    #[arg(long)]
    curves: Option<PathBuf>,
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
}

/// Runs the measurements and prints their tables.
pub async fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    if let Some(directory) = &options.curves {
        return scaling::draw(common.server_core, directory).await;
    }
    let peers = Peer::choose(Peer::OF_DELIVERIES, &common.only);
    let mut results: Vec<PeerResults> = peers.iter().map(|peer| PeerResults::new(*peer)).collect();
    let start = Instant::now();
    if options.has(Part::Cpu) {
        for round in 0..common.rounds.unwrap_or(ROUNDS) {
            for nth in 0..results.len() {
                // Every round starts with a different server.
                let result = &mut results[(nth + round) % peers.len()];
                let measured = cpu(options, common, result).await;
                result.record(measured);
            }
        }
    }
    for result in &mut results {
        if options.has(Part::Memory) && result.peer != Peer::Floor {
            let per_socket = idle(options, common, result.peer).await;
            result.memory = result.record(per_socket);
        }
        if options.has(Part::Latency) {
            let latencies = latency(options, common, result.peer).await;
            result.latency = result.record(latencies);
        }
    }
    println!("\n{}", heading(options, common)?);
    if [Part::Cpu, Part::Memory, Part::Latency]
        .into_iter()
        .any(|part| options.has(part))
    {
        println!("{}", comparison(&results));
    }
    if options.has(Part::HubOnly) && peers.contains(&Peer::Hub) {
        hub_only::measure(common.server_core).await?;
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

async fn cpu(options: &Options, common: &Common, result: &mut PeerResults) -> anyhow::Result<()> {
    let size = Size {
        sockets: options.sockets,
        channels: 1,
        bytes: 0,
    };
    let dir = temp_dir()?;
    let cores = common.server_cores();
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

async fn idle(options: &Options, common: &Common, peer: Peer) -> anyhow::Result<f64> {
    let dir = temp_dir()?;
    let size = Size {
        sockets: options.idle,
        channels: 100,
        bytes: 0,
    };
    let per_socket = memory(peer, common.server_cores(), dir.path(), size).await?;
    eprintln!("{:28} {per_socket:.0} bytes per idle socket", peer.name());
    Ok(per_socket)
}

async fn latency(options: &Options, common: &Common, peer: Peer) -> anyhow::Result<Histogram<u64>> {
    let dir = temp_dir()?;
    let size = Size {
        sockets: 1000,
        channels: 100,
        bytes: 0,
    };
    let cores = common.server_cores();
    let mut scenario = Scenario::open(peer, cores, dir.path(), size).await?;
    scenario
        .latencies_at_rate(options.rate, Duration::from_secs(1))
        .await?;
    let latencies = scenario
        .latencies_at_rate(options.rate, Duration::from_secs(5))
        .await?;
    eprintln!(
        "{:28} p50 {} µs, p99 {} µs",
        peer.name(),
        latencies.value_at_quantile(0.5),
        latencies.value_at_quantile(0.99)
    );
    Ok(latencies)
}

fn heading(options: &Options, common: &Common) -> anyhow::Result<String> {
    Ok(format!(
        "{}, {}; `{}`. {} rounds; {} sockets, one channel, messages of {} bytes; one core each for the server and the load generator.\n",
        today(),
        machine(),
        command_line(),
        common.rounds.unwrap_or(ROUNDS),
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
