//! The hub beside its peers and beside the floor, in one run.
//!
//! Invariant: one command starts, measures and stops everything, on loopback and on ports of its own;
//! what can't be started is left out with the words that install it.

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

use measurements::{Pace, Scene, Size, memory};
use message::Template;
use peers::Peer;
use process::Cores;
use table::{Spread, machine, markdown, today};

/// Measures the hub and its peers against a bare epoll writer.
#[derive(Parser)]
#[command(name = "compare", bin_name = "cargo bench --bench compare --")]
struct Order {
    /// Only these; the floor always is.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Peer>,
    /// How often each is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Sockets that hear each update.
    #[arg(long, default_value_t = 1000)]
    sockets: usize,
    /// Updates of a round.
    #[arg(long, default_value_t = 100)]
    updates: usize,
    /// Sockets that hear nothing, while memory is measured.
    #[arg(long, default_value_t = 9000)]
    idle: usize,
    /// Updates a second while latency is measured, each to ten sockets.
    #[arg(long, default_value_t = 400)]
    rate: u32,
    /// The part to run; all, unless said.
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Instead of all this, draws what an update costs as work grows, into this folder.
    #[arg(long)]
    curves: Option<PathBuf>,
    /// The server's core.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The generator's core.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// What cargo says to a bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// CPU time of deliveries, one by one and all at once.
    Cpu,
    /// Memory of idle sockets.
    Memory,
    /// Latency at a fixed rate.
    Latency,
    /// What the hub alone is held to: a storm, webhooks, look-ups.
    Promises,
}

impl Order {
    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// Who is there, and what to do about who is not.
    fn peers(&self) -> Vec<Peer> {
        let wanted =
            |peer: &Peer| *peer == Peer::Floor || self.only.is_empty() || self.only.contains(peer);
        let is_there = |peer: &Peer| match peer.missing() {
            None => true,
            Some(how) => {
                eprintln!("without {}: {how}", peer.name());
                false
            }
        };
        Peer::ALL
            .into_iter()
            .filter(wanted)
            .filter(is_there)
            .collect()
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, address] = &arguments[..] {
        let address: Option<SocketAddr> = address.parse().ok();
        match (word.as_str(), address) {
            (peers::FLOOR, Some(address)) => return baseline::serve(address),
            (peers::BROADCAST, Some(address)) => return broadcast::serve(address),
            _ => {}
        }
    }
    let order = Order::parse();
    if !order.bench {
        println!("it measures under `cargo bench` only");
        return Ok(());
    }
    ensure!(
        std::thread::available_parallelism()?.get() >= 2,
        "the server and the generator need a core each"
    );
    for program in ["taskset", "setpriv", "kill"] {
        ensure!(
            process::is_there(program),
            "missing: {program} (apt-get install util-linux procps)"
        );
    }
    process::pin(order.client_core)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, run(&order))
}

async fn run(order: &Order) -> anyhow::Result<()> {
    if let Some(folder) = &order.curves {
        return scaling::draw(order.server_core, folder).await;
    }
    let peers = order.peers();
    let mut results: Vec<Outcome> = peers.iter().map(|peer| Outcome::of(*peer)).collect();
    let begun = Instant::now();
    if order.has(Part::Cpu) {
        for round in 0..order.rounds {
            for turn in 0..results.len() {
                // Each round begins with another, so that none always follows the same.
                let result = &mut results[(turn + round) % peers.len()];
                let measured = cpu(order, result).await;
                result.note(measured);
            }
        }
    }
    for result in &mut results {
        if order.has(Part::Memory) && result.peer != Peer::Floor {
            let each = idle(order, result.peer).await;
            result.memory = result.note(each);
        }
        if order.has(Part::Latency) {
            let latencies = latency(order, result.peer).await;
            result.latency = result.note(latencies);
        }
    }
    println!("\n{}", heading(order)?);
    if [Part::Cpu, Part::Memory, Part::Latency]
        .into_iter()
        .any(|part| order.has(part))
    {
        println!("{}", comparison(&results));
    }
    if order.has(Part::Promises) && peers.contains(&Peer::Hub) {
        hub_only::measure(order.server_core).await?;
    }
    eprintln!("took {} s", begun.elapsed().as_secs());
    let failed = results.iter().filter(|result| result.has_failed).count();
    ensure!(failed == 0, "{failed} servers were not measured whole");
    Ok(())
}

/// What came of one server.
struct Outcome {
    peer: Peer,
    single: Vec<Pace>,
    burst: Vec<Pace>,
    unread: Vec<Option<Pace>>,
    memory: Option<f64>,
    latency: Option<Histogram<u64>>,
    has_failed: bool,
}

impl Outcome {
    fn of(peer: Peer) -> Self {
        Self {
            peer,
            single: Vec::new(),
            burst: Vec::new(),
            unread: Vec::new(),
            memory: None,
            latency: None,
            has_failed: false,
        }
    }

    /// Says what went wrong, and goes on: the others are measured all the same.
    fn note<T>(&mut self, measured: anyhow::Result<T>) -> Option<T> {
        let measured = measured.inspect_err(|error| {
            eprintln!("{}: {error:#}", self.peer.name());
            self.has_failed = true;
        });
        measured.ok()
    }
}

/// A place to write, gone afterwards; where a store is as durable as the build's own disk makes it.
fn place() -> anyhow::Result<tempfile::TempDir> {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).context("no place to write")
}

async fn cpu(order: &Order, result: &mut Outcome) -> anyhow::Result<()> {
    let size = Size {
        sockets: order.sockets,
        channels: 1,
        bytes: 0,
    };
    let dir = place()?;
    let cores = Cores::One(order.server_core);
    let mut scene = Scene::open(result.peer, cores, dir.path(), size).await?;
    let single = scene.one_by_one(order.updates).await?;
    let burst = scene.all_at_once(order.updates * 2).await?;
    drop(scene);
    let few = Size {
        sockets: order.sockets / 2,
        ..size
    };
    let dir = place()?;
    let mut scene = Scene::open(result.peer, cores, dir.path(), few).await?;
    let unread = scene.unread(order.updates * 10).await?;
    eprintln!(
        "{:28} one by one {:6.0} ns, {:7.0}/s; at once {:6.0} ns, {:7.0}/s; unread {:6.0} ns",
        result.peer.name(),
        single.cpu,
        single.rate,
        burst.cpu,
        burst.rate,
        unread.map_or(f64::NAN, |pace| pace.cpu)
    );
    result.single.push(single);
    result.burst.push(burst);
    result.unread.push(unread);
    Ok(())
}

async fn idle(order: &Order, peer: Peer) -> anyhow::Result<f64> {
    let dir = place()?;
    let size = Size {
        sockets: order.idle,
        channels: 100,
        bytes: 0,
    };
    let each = memory(peer, Cores::One(order.server_core), dir.path(), size).await?;
    eprintln!("{:28} {each:.0} bytes for an idle socket", peer.name());
    Ok(each)
}

async fn latency(order: &Order, peer: Peer) -> anyhow::Result<Histogram<u64>> {
    let dir = place()?;
    let size = Size {
        sockets: 1000,
        channels: 100,
        bytes: 0,
    };
    let cores = Cores::One(order.server_core);
    let mut scene = Scene::open(peer, cores, dir.path(), size).await?;
    scene.at_a_rate(order.rate, Duration::from_secs(1)).await?;
    let latencies = scene.at_a_rate(order.rate, Duration::from_secs(5)).await?;
    eprintln!(
        "{:28} p50 {} µs, p99 {} µs",
        peer.name(),
        latencies.value_at_quantile(0.5),
        latencies.value_at_quantile(0.99)
    );
    Ok(latencies)
}

fn heading(order: &Order) -> anyhow::Result<String> {
    let said: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let command = format!("cargo bench --bench compare -- {}", said.join(" "));
    Ok(format!(
        "{}, {}; `{}`. {} rounds; {} sockets, one channel, messages of {} bytes; server and generator on a core each.\n",
        today(),
        machine(),
        command.trim_end_matches([' ', '-']),
        order.rounds,
        order.sockets,
        Template::new(0)?.length()
    ))
}

fn comparison(results: &[Outcome]) -> String {
    let floor = &results[0];
    let floors: Vec<Pace> = floor.unread.iter().copied().flatten().collect();
    let ratio = |ours: &[Pace], floors: &[Pace]| {
        if ours.len() != floors.len() {
            return "not measured whole".to_owned();
        }
        let ratios = ours
            .iter()
            .zip(floors)
            .map(|(ours, floor)| ours.cpu / floor.cpu);
        Spread::of(ratios.collect()).map_or_else(|| "–".to_owned(), Spread::ratio)
    };
    let cost = |paces: &[Pace]| {
        let micros = Spread::of(paces.iter().map(|pace| pace.cpu / 1000.0).collect());
        micros.map_or_else(
            || "–".to_owned(),
            |spread| format!("{:.2} µs", spread.median),
        )
    };
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|result| {
            let memory = result
                .memory
                .map(|bytes| format!("{:.1} KB", bytes / 1000.0));
            let late = |quantile: f64| {
                let histogram = result.latency.as_ref();
                histogram.map_or_else(
                    || "–".to_owned(),
                    |latencies| millis(latencies.value_at_quantile(quantile)),
                )
            };
            vec![
                result.peer.name().to_owned(),
                cost(&result.single),
                ratio(&result.single, &floor.single),
                ratio(&result.burst, &floor.burst),
                match result.unread.iter().copied().collect::<Option<Vec<_>>>() {
                    Some(paces) => ratio(&paces, &floors),
                    None => "not all came to the last update".to_owned(),
                },
                memory.unwrap_or_else(|| "–".to_owned()),
                late(0.5),
                late(0.99),
                late(0.999),
            ]
        })
        .collect();
    let head = [
        "server",
        "CPU per delivery",
        "to the floor",
        "updates at once",
        "nobody reads",
        "idle socket",
        "p50",
        "p99",
        "p99.9",
    ];
    markdown(&head, &rows)
}

#[expect(clippy::cast_precision_loss, reason = "nowhere near 2⁵³")]
fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1000.0)
}
