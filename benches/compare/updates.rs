//! Updates to many jobs with one socket each: the cost and the latency of an update on each server.
//!
//! This is the typical load of the hub: many jobs that change, with one viewer each. Updates go to the jobs in turn.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::measurements::{Load, Scenario, Size, UpdateCost};
use crate::message::Template;
use crate::peers::Peer;
use crate::table::{Summary, machine, markdown, or_dash, today};
use crate::{Common, command_line, temp_dir};

/// Rounds of the measurement.
const ROUNDS: usize = 3;

/// Options of the measurement.
#[derive(clap::Args)]
#[group(skip)]
pub struct Options {
    /// Numbers of jobs. Each number is measured separately
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10_000])]
    jobs: Vec<usize>,
    /// How updates are sent [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    loads: Vec<LoadName>,
    /// Updates per second under the calm load
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds of each measurement. The warm-up and the count of system calls take the same time in total
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Measure one round of half a second with the first number of jobs, to check that every server works
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LoadName {
    /// A fixed rate that leaves the server idle most of the time
    Calm,
    /// 32 connections that send as fast as the server responds
    Full,
}

/// Results of one server. Failed rounds are `None`.
struct PeerResults {
    peer: Peer,
    /// Costs by round, and in each round by load.
    rounds: Vec<Option<Vec<UpdateCost>>>,
}

/// Runs the measurement and prints a table for each number of jobs and each load.
pub async fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let start = Instant::now();
    let (rounds, jobs, duration) = if options.quick {
        (1, &options.jobs[..1], Duration::from_millis(500))
    } else {
        let rounds = common.rounds.unwrap_or(ROUNDS);
        (rounds, &*options.jobs, Duration::from_secs(options.seconds))
    };
    let all = [
        (LoadName::Calm, Load::Rate(options.rate)),
        (LoadName::Full, Load::Full),
    ];
    let loads: Vec<(LoadName, Load)> = all
        .into_iter()
        .filter(|(name, _)| options.loads.is_empty() || options.loads.contains(name))
        .collect();
    let peers = Peer::choose(Peer::OF_UPDATES, &common.only);
    println!(
        "{}, {}; `{}`. {rounds} rounds of {} s; messages of {} bytes; one core each for the server and the load generator.\n",
        today(),
        machine(),
        command_line(),
        duration.as_secs_f64(),
        Template::new(0)?.length()
    );
    let mut failures = 0;
    for &jobs in jobs {
        let mut results: Vec<PeerResults> =
            peers.iter().map(|peer| PeerResults::new(*peer)).collect();
        for round in 0..rounds {
            for nth in 0..results.len() {
                // Every round starts with a different server.
                let result = &mut results[(nth + round) % peers.len()];
                let measured = measure(result.peer, jobs, &loads, duration, common).await;
                let measured = measured.inspect_err(|error| {
                    eprintln!("{}: {error:#}", result.peer.name());
                    failures += 1;
                });
                result.rounds.push(measured.ok());
            }
        }
        for (at, (_, load)) in loads.iter().enumerate() {
            println!("{jobs} jobs with one socket each, {}:\n", describe(*load));
            println!("{}", comparison(&results, at));
        }
    }
    eprintln!("took {} s", start.elapsed().as_secs());
    ensure!(failures == 0, "{failures} measurements failed");
    Ok(())
}

impl PeerResults {
    fn new(peer: Peer) -> Self {
        Self {
            peer,
            rounds: Vec::new(),
        }
    }
}

async fn measure(
    peer: Peer,
    jobs: usize,
    loads: &[(LoadName, Load)],
    duration: Duration,
    common: &Common,
) -> anyhow::Result<Vec<UpdateCost>> {
    let dir = temp_dir()?;
    let size = Size {
        sockets: jobs,
        channels: jobs,
        bytes: 0,
    };
    let mut scenario = Scenario::open(peer, common.server_cores(), dir.path(), size).await?;
    let mut costs = Vec::new();
    for (name, load) in loads {
        let cost = scenario.update_cost(*load, duration).await?;
        eprintln!(
            "{:44} {jobs} jobs, {name:?}: {:6.1} µs, {:6.0}/s, p50 {} µs, p99 {} µs",
            peer.name(),
            cost.cpu_micros,
            cost.updates_per_second,
            cost.latencies.value_at_quantile(0.5),
            cost.latencies.value_at_quantile(0.99),
        );
        costs.push(cost);
    }
    Ok(costs)
}

fn describe(load: Load) -> String {
    match load {
        Load::Rate(rate) | Load::CoarseRate(rate) => format!("{rate} updates per second"),
        Load::Full => "full load".to_owned(),
    }
}

/// A column of the table.
struct Column {
    head: &'static str,
    value: fn(&UpdateCost) -> Option<f64>,
    format: fn(f64) -> String,
}

#[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
const COLUMNS: [Column; 8] = [
    Column {
        head: "CPU per update",
        value: |cost| Some(cost.cpu_micros),
        format: |micros| format!("{micros:.1} µs"),
    },
    Column {
        head: "p50",
        value: |cost| Some(cost.latencies.value_at_quantile(0.5) as f64),
        format: millis,
    },
    Column {
        head: "p99",
        value: |cost| Some(cost.latencies.value_at_quantile(0.99) as f64),
        format: millis,
    },
    Column {
        head: "p99.9",
        value: |cost| Some(cost.latencies.value_at_quantile(0.999) as f64),
        format: millis,
    },
    Column {
        head: "System calls",
        value: |cost| cost.system_calls,
        format: |calls| format!("{calls:.1}"),
    },
    Column {
        head: "Context switches",
        value: |cost| Some(cost.context_switches),
        format: |switches| format!("{switches:.2}"),
    },
    Column {
        head: "Memory",
        value: |cost| Some(cost.memory as f64),
        format: |bytes| format!("{:.0} MB", bytes / 1e6),
    },
    Column {
        head: "Updates per second",
        value: |cost| Some(cost.updates_per_second),
        format: |rate| format!("{rate:.0}"),
    },
];

fn millis(micros: f64) -> String {
    format!("{:.2} ms", micros / 1000.0)
}

/// Returns the table of one load. Each cell contains the median of the rounds, and the ratio to the floor in the same
/// round.
fn comparison(results: &[PeerResults], load: usize) -> String {
    let Some(floor) = results.first() else {
        return String::new();
    };
    let cell = |result: &PeerResults, column: &Column| {
        let value = |round: &Option<Vec<UpdateCost>>| (column.value)(&round.as_ref()?[load]);
        let values: Vec<f64> = result.rounds.iter().filter_map(value).collect();
        let rounds = result.rounds.iter().zip(&floor.rounds);
        let ratios = rounds.filter_map(|(round, floor)| Some(value(round)? / value(floor)?));
        let (Some(value), Some(ratio)) = (Summary::of(values), Summary::of(ratios.collect()))
        else {
            return or_dash(None);
        };
        format!("{}, {}", (column.format)(value.median), ratio.ratio())
    };
    let row = |result: &PeerResults| {
        let delivered = result
            .rounds
            .iter()
            .flatten()
            .map(|costs| costs[load].delivered);
        let delivered = Summary::of(delivered.collect());
        let mut row = vec![result.peer.name().to_owned()];
        row.extend(COLUMNS.iter().map(|column| cell(result, column)));
        row.push(or_dash(
            delivered.map(|share| format!("{:.1}%", share.min * 100.0)),
        ));
        row
    };
    let mut head = vec!["Server"];
    head.extend(COLUMNS.iter().map(|column| column.head));
    head.push("Delivered");
    let rows: Vec<Vec<String>> = results.iter().map(row).collect();
    markdown(&head, &rows)
}
