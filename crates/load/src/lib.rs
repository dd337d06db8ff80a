//! `progress-hub load`: drives a hub, measures it, and checks what it measures.
//!
//! It is a program of its own beside the house, and a client like any other: what it knows of a hub is
//! the protocol. Many sockets watch jobs; updates of these jobs are sent by a schedule; and a socket
//! that is shown a version twice, an older one after a newer, or in the end not the last, fails the
//! run.
//!
//! In reading order: `arguments` is what can be asked for; `run` goes through it; `schedule` says when
//! an update is due, `updates` and `signing` what it is, `caller` how it is sent; `fleet` holds the
//! sockets, `socket` is one, on its `wire`, with its `memory`, of what it has `heard`; `tally` counts,
//! `process` reads what the hub costs; `report` is what comes out, seen by `view`, `table` and `page`.
//!
//! Invariant: it imports nothing of the hub's, so that the two agree only where both follow the protocol.

mod arguments;
mod chart;
mod html_report;
mod client;
mod http_pool;
mod hub_process;
mod jobs;
mod measure;
mod messages;
mod process;
mod progress;
mod report;
mod run;
mod schedule;
mod signing;
mod socket;
mod socket_pool;
mod stats;
mod subscription_state;
mod target;
mod text_report;
mod updates;
mod wire;

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use self::arguments::{ArgumentErrors, Arguments, UpdateMethod};
pub use self::html_report::PageError;
pub use self::client::RequestError;
pub use self::hub_process::{Hub, NoHub};
pub use self::report::Report;
pub use self::updates::OWNER;

use self::run::Run;
use self::target::Target;

/// What a run may do at its hub.
pub struct Access {
    /// Tokens for it.
    pub tokens: Tokens,
    /// What signs its webhooks.
    pub webhook_secret: Option<SecretString>,
}

/// Tokens, or one to mint them with.
pub enum Tokens {
    /// Made by whoever has the hub's secret.
    Minted {
        /// `sub` is [`OWNER`], with `jobs:read`.
        reader: SecretString,
        /// With `jobs:publish`.
        worker: SecretString,
    },
    /// Of scope `admin`: the hub mints the others.
    Admin(SecretString),
}

/// Why a run came to no figures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for can't be.
    #[error("{0}")]
    Mistakes(#[from] ArgumentErrors),
    /// Nothing to tell the cost of.
    #[error("--pid {0}: there is no such process here to read the cost of")]
    NoProcess(u32),
    /// A token can't be sent.
    #[error("the token {0}")]
    Token(&'static str),
    /// The hub did not do what a run needs.
    #[error("{0}: {1}")]
    Unanswered(&'static str, #[source] RequestError),
    /// The system's word.
    #[error("{0}")]
    System(#[from] std::io::Error),
    /// Somebody stopped it.
    #[error("stopped before its end, so there are no figures")]
    Stopped,
}

/// Checks what can be checked before anything is started.
///
/// # Errors
/// [`Mistakes`] in the arguments, and too few open files.
pub fn check(arguments: &Arguments) -> Result<(), ArgumentErrors> {
    arguments.check()?;
    let needed = arguments.files();
    process::open_files(needed).map_err(|allowed| {
        ArgumentErrors::one(format!(
            "--sockets {}: {needed} open files are needed and this process may have {allowed}; \
             'ulimit -n' raises it",
            arguments.sockets
        ))
    })
}

/// Drives the hub at `url`, whose process is `pid` where that is known.
///
/// # Errors
/// [`Error`]; what the run finds wrong is in the [`Report`].
pub async fn run(
    arguments: Arguments,
    url: Url,
    pid: Option<u32>,
    access: Access,
    stop: CancellationToken,
) -> Result<Report, Error> {
    let is_own = arguments.url.is_none();
    let target = Target::find(url, arguments.sources(), arguments.allow_remote)?;
    let going = async {
        let run = Run::new(arguments, target, access, pid, is_own).await?;
        run.execute().await
    };
    tokio::select! {
        ended = going => ended,
        () = stop.cancelled() => Err(Error::Stopped),
    }
}
