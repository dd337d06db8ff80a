//! Load generator of progress-hub: `progress-hub load`.
//!
//! A run registers jobs, opens sockets that subscribe to them, sends updates on a fixed schedule and measures the
//! latency of every delivery. It also verifies the deliveries: a version that does not increase, or a socket that
//! does not end with the final version of each of its jobs, fails the run.
//!
//! Modules in reading order:
//! - `arguments`: command-line flags. `access` and `error`: tokens and errors.
//! - `run` executes the phases of a run, `measure` the scheduled updates.
//! - `schedule`: due times of updates. `updates` sends them with `client` to the `target`.
//! - `socket_pool` holds the sockets, `socket` is one of them, `messages` parses what it receives and
//!   `subscription_state` verifies it.
//! - `stats`: counters and histograms. `process`: CPU time and memory. `hub_process`: a hub started for the run.
//! - `report`: results, printed by `text_report` and `html_report`; `progress` shows a run in progress.
//!
//! The crate imports nothing of the hub except the webhook signature schemes. It relies on the public protocol only.

mod access;
mod arguments;
mod client;
mod error;
mod html_report;
mod hub_process;
mod jobs;
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
mod text_report;
mod updates;

use tokio_util::sync::CancellationToken;
use url::Url;

pub use self::access::{Access, OWNER, READER_SCOPE, Tokens};
pub use self::arguments::{ArgumentErrors, Arguments, UpdateMethod};
pub use self::error::{Error, RequestError};
pub use self::html_report::HtmlError;
pub use self::hub_process::{Hub, StartError};
pub use self::report::Report;

use self::run::Run;
use self::target::Target;

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
/// Any [`Error`] that prevents a complete run. Violations that the run finds are part of the [`Report`].
pub async fn run(
    arguments: Arguments,
    url: Url,
    pid: Option<u32>,
    access: Access,
    stop: CancellationToken,
) -> Result<Report, Error> {
    let target = Target::resolve(url, arguments.sources(), arguments.allow_remote)?;
    let run = async {
        let run = Run::new(arguments, target, access, pid).await?;
        run.execute().await
    };
    tokio::select! {
        result = run => result,
        () = stop.cancelled() => Err(Error::Stopped),
    }
}
