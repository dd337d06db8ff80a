//! Load generator of progress-hub: `progress-hub load`.
//!
//! A run registers jobs, opens sockets that subscribe to them, sends updates on a fixed schedule and measures the
//! latency of every delivery. It also verifies the deliveries: a version that does not increase, or a socket that
//! does not end with the final version of each of its jobs, fails the run.
//!
//! Modules in reading order:
//! - `arguments`: command-line flags.
//! - `run` executes the phases of a run, `measure` the scheduled updates. `context` holds their shared state.
//! - `target`: the hub under test. `hub_process`: a hub started for the run.
//! - `schedule`: due times of updates. `updates` sends them.
//! - `socket_pool` holds the sockets, `socket` is one of them, `messages` parses what it receives and
//!   `subscription_state` verifies it.
//! - `stats`: counters and histograms. `process`: CPU time and memory.
//! - `report`: results, shown by `format` with the charts of `chart`. `progress` shows a run in progress.
//!
//! The crate imports nothing of the hub except the webhook signature schemes. It relies on the public protocol only.

mod arguments;
mod chart;
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

pub use self::arguments::{ArgumentErrors, Arguments, UpdateMethod};
pub use self::context::{Access, OWNER, READER_SCOPE, Tokens};
pub use self::hub_process::Hub;
pub use self::report::Report;
pub use self::run::run;
