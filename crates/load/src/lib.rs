//! Load generator of progress-hub: `progress-hub load`.
//!
//! A run registers jobs, opens sockets that subscribe to them, sends updates on a fixed schedule and measures the
//! latency of every delivery. It also verifies the deliveries: a version that does not increase, or a socket that
//! does not end with the final version of each of its jobs, fails the run.
//!
//! Modules in reading order:
//! - `arguments`: command-line flags.
//! - `run` executes the phases of a run, `measure` the scheduled updates. `context` is what they share.
//! - `target` is the hub under test, `client` parses its responses. `hub_process`: a hub started for the run.
//! - `schedule`: due times of updates. `updates` sends them.
//! - `socket_pool` holds the sockets, `socket` is one of them, `messages` parses what it receives and
//!   `subscription_state` verifies it.
//! - `stats`: counters and histograms. `process`: CPU time and memory.
//! - `report`: results, shown by `format` with the charts of `chart`. `progress` shows a run in progress.
//!
//! The crate imports nothing of the hub except the webhook signature schemes. It relies on the public protocol only.

mod arguments;
mod chart;
mod client;
mod context;
mod format;
mod hub_process;
mod measure;
mod messages;
mod process;
mod progress;
mod report;
mod run;
mod schedule;
mod socket;
mod socket_pool;
mod stats;
mod subscription_state;
mod target;
mod updates;

use tokio_util::sync::CancellationToken;
use url::Url;

pub use self::arguments::{ArgumentErrors, Arguments, UpdateMethod};
pub use self::context::{Access, OWNER, Tokens};
pub use self::hub_process::Hub;
pub use self::report::Report;

/// Checks the flags and the open-file limit before anything is started.
///
/// # Errors
/// All errors in the flags, or an open-file limit that is too low.
pub fn check(arguments: &Arguments) -> Result<(), ArgumentErrors> {
    arguments.check()?;
    let needed = arguments.open_files();
    process::raise_open_file_limit(needed).map_err(|limit| {
        ArgumentErrors::one(format!(
            "--sockets {}: needs {needed} open files, but the limit is {limit}; raise it with 'ulimit -n'",
            arguments.sockets
        ))
    })
}

/// Runs a load test against the hub at `url`. With its process id `pid`, the report includes CPU time and memory.
///
/// # Errors
/// [`ArgumentErrors`] for invalid flags, and any error that prevents a complete run. Violations that the run finds are
/// part of the [`Report`].
pub async fn run(
    arguments: Arguments,
    url: Url,
    pid: Option<u32>,
    access: Access,
    stop: CancellationToken,
) -> anyhow::Result<Report> {
    tokio::select! {
        result = run::execute(arguments, url, pid, access) => result,
        () = stop.cancelled() => anyhow::bail!("run stopped before completion; no results"),
    }
}
