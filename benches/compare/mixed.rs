//! A mixed load: one watched job with many sockets, and many other jobs with one socket each. Shows whether updates
//! of the other jobs are delayed by the fan-out of the watched job.

mod watchers;

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::clients::Endpoint;
use crate::measurements::{Load, Outcome, Scenario, Size, start};
use crate::peers::Peer;
use crate::process::Cores;
use crate::table::{Summary, machine, markdown, or_dash, today};
use crate::{Common, command_line, temp_dir};
use watchers::Watchers;

/// Rounds of the measurement.
const ROUNDS: usize = 3;

/// Options of the measurement.
#[derive(clap::Args)]
#[group(skip)]
pub struct Options {
    /// Sockets of the watched job
    #[arg(long, default_value_t = 10_000)]
    watchers: usize,
    /// Updates per second of the watched job
    #[arg(long, default_value_t = 20)]
    watched_rate: u32,
    /// Number of other jobs, with one socket each
    #[arg(long, default_value_t = 1000)]
    jobs: usize,
    /// Updates per second of the other jobs, in total
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds of each round, after a warm-up of half that time
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Measure one round of one second, to check that every server works
    #[arg(long)]
    quick: bool,
}

/// Results of one round.
struct Round {
    others: Outcome,
    /// Share of the updates of the watched job that its sockets received, from 0 to 1.
    delivered: f64,
}

/// Runs the measurement and prints a table.
pub async fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (rounds, seconds) = if options.quick {
        (1, 1)
    } else {
        (common.rounds.unwrap_or(ROUNDS), options.seconds)
    };
    let peers = Peer::choose(Peer::OF_MIXED_LOAD, &common.only);
    let mut results: Vec<(Peer, Vec<Round>)> =
        peers.iter().map(|peer| (*peer, Vec::new())).collect();
    let mut failures = 0;
    for round in 0..rounds {
        for nth in 0..results.len() {
            // Every round starts with a different server.
            let (peer, done) = &mut results[(nth + round) % peers.len()];
            match measure(options, *peer, Duration::from_secs(seconds)).await {
                Ok(round) => done.push(round),
                Err(error) => {
                    eprintln!("{}: {error:#}", peer.name());
                    failures += 1;
                }
            }
        }
    }
    println!(
        "{}, {}; `{}`. {rounds} rounds of {seconds} s; one job with {} sockets is updated {} times per second, {} jobs with one socket each {} times per second; the server shares all cores with the load generator.\n",
        today(),
        machine(),
        command_line(),
        options.watchers,
        options.watched_rate,
        options.jobs,
        options.rate,
    );
    println!("{}", table(&results));
    eprintln!("took {} s", begin.elapsed().as_secs());
    ensure!(failures == 0, "{failures} measurements failed");
    Ok(())
}

async fn measure(options: &Options, peer: Peer, duration: Duration) -> anyhow::Result<Round> {
    let dir = temp_dir()?;
    let size = |sockets, channels| Size {
        sockets,
        channels,
        bytes: 0,
    };
    let all = size(options.watchers + options.jobs, options.jobs + 1);
    let server = Rc::new(start(peer, Cores::All, dir.path(), all).await?);
    let endpoint = Endpoint {
        subscriptions: server.endpoint.subscriptions[..1].to_vec(),
        ..server.endpoint.clone()
    };
    let mut watchers = Watchers::open(endpoint, options.watchers).await?;
    let mut watched = Scenario::on_channels(Rc::clone(&server), 0, size(0, 1)).await?;
    let others = Scenario::on_channels(Rc::clone(&server), 1, size(options.jobs, options.jobs));
    let mut others = others.await?;
    let mut run = async |duration| {
        tokio::try_join!(
            watched.run(Load::CoarseRate(options.watched_rate), duration),
            others.run(Load::CoarseRate(options.rate), duration),
        )
    };
    run(duration / 2).await?;
    let (_, outcome) = run(duration).await?;
    let updates = watched.last_number() + 1;
    watchers.expect(updates).await?;
    watched.post().await?;
    let received = watchers.finish().await?;
    eprintln!(
        "{:44} others p50 {} µs, p99 {} µs",
        peer.name(),
        outcome.latencies.value_at_quantile(0.5),
        outcome.latencies.value_at_quantile(0.99),
    );
    #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
    let delivered = received as f64 / (updates * options.watchers as u64) as f64;
    Ok(Round {
        others: outcome,
        delivered,
    })
}

fn table(results: &[(Peer, Vec<Round>)]) -> String {
    let row = |(peer, rounds): &(Peer, Vec<Round>)| {
        let cell = |format: fn(f64) -> String, value: &dyn Fn(&Round) -> f64| {
            let values = Summary::of(rounds.iter().map(value).collect());
            or_dash(values.map(|values| {
                let [median, min, max] = [values.median, values.min, values.max].map(format);
                format!("{median} ({min}–{max})")
            }))
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
        let millis = |outcome: &Outcome, quantile| {
            outcome.latencies.value_at_quantile(quantile) as f64 / 1000.0
        };
        let two_digits = |value: f64| format!("{value:.2}");
        vec![
            peer.name().to_owned(),
            cell(two_digits, &|round| millis(&round.others, 0.5)),
            cell(two_digits, &|round| millis(&round.others, 0.99)),
            cell(two_digits, &|round| millis(&round.others, 0.999)),
            cell(|percent| format!("{percent:.0}%"), &|round| {
                round.delivered * 100.0
            }),
            cell(two_digits, &|round| {
                round.others.usage.cpu.as_secs_f64() / round.others.elapsed.as_secs_f64()
            }),
        ]
    };
    let head = [
        "Server",
        "p50, ms",
        "p99, ms",
        "p99.9, ms",
        "Delivered to the watchers",
        "Cores used",
    ];
    let rows: Vec<Vec<String>> = results.iter().map(row).collect();
    markdown(&head, &rows)
}
