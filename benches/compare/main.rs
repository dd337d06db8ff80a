//! Compares the hub with other servers and with a baseline, the floor, in one run.
//!
//! The benchmark starts and stops all servers itself, on free loopback ports. Servers that are not installed are
//! skipped.

mod baseline;
mod broadcast;
mod clients;
mod deliveries;
mod http_connection;
mod hub_only;
mod measurements;
mod message;
mod mixed;
mod peers;
mod plot;
mod process;
mod scaling;
mod stack;
mod table;
mod updates;
mod with_sqlite;

use anyhow::{Context, ensure};
use clap::Parser;
use tokio::task::LocalSet;

use peers::Peer;
use process::Cores;

/// Compares the hub and other servers with a bare epoll writer, the floor.
#[derive(Parser)]
#[group(skip)]
#[command(name = "compare", bin_name = "cargo bench --bench compare --")]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    deliveries: deliveries::Options,
    #[command(flatten)]
    common: Common,
}

/// Measurement to run. Without a command, the benchmark measures deliveries to many sockets.
#[derive(clap::Subcommand)]
enum Command {
    /// Measures the cost of an update to one of many jobs with one socket each
    Updates(updates::Options),
    /// Measures how updates to many jobs are delayed by a job with many sockets
    Mixed(mixed::Options),
}

/// Options of all measurements.
#[derive(clap::Args)]
struct Common {
    /// Servers to measure [default: all]. The floor is always measured
    #[arg(long, value_enum, value_delimiter = ',', global = true)]
    only: Vec<Peer>,
    /// Rounds of the CPU measurement [default: 5, or 3 with a command]
    #[arg(long, global = true)]
    rounds: Option<usize>,
    /// Core of the server
    #[arg(long, default_value_t = 0, global = true)]
    server_core: usize,
    /// Core of the load generator
    #[arg(long, default_value_t = 1, global = true)]
    client_core: usize,
    /// Flag that cargo passes to benchmarks
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

impl Common {
    fn server_cores(&self) -> Cores {
        Cores::One(self.server_core)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(served) = peers::serve(&arguments) {
        return served;
    }
    let options = Options::parse();
    if !options.common.bench {
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
    if !matches!(options.command, Some(Command::Mixed(_))) {
        process::pin(options.common.client_core)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        match &options.command {
            None => deliveries::run(&options.deliveries, &options.common).await,
            Some(Command::Updates(updates)) => updates::run(updates, &options.common).await,
            Some(Command::Mixed(mixed)) => mixed::run(mixed, &options.common).await,
        }
    })
}

/// Creates a temporary directory on the disk of the build, because stores must write to a real disk.
fn temp_dir() -> anyhow::Result<tempfile::TempDir> {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).context("cannot create a temporary directory")
}

/// Returns the command line of this run.
fn command_line() -> String {
    let arguments = std::env::args().skip(1);
    let arguments: Vec<String> = arguments.filter(|argument| argument != "--bench").collect();
    let command = format!("cargo bench --bench compare -- {}", arguments.join(" "));
    command.trim_end_matches([' ', '-']).to_owned()
}
