//! The servers of the benchmark itself: the floor and the actix-ws broadcast.
//!
//! They run in a process of their own, from the same executable as the load generator.

use super::{RunningServer, StartContext, by_path, by_post};
use crate::process::{Process, free_address};

/// Argument that starts the floor.
pub const FLOOR: &str = "serve-floor";

/// Argument that starts the actix-ws broadcast.
pub const BROADCAST: &str = "serve-actix-ws";

pub(super) fn start(context: &StartContext<'_>, argument: &str) -> anyhow::Result<RunningServer> {
    let address = free_address()?;
    let program = std::env::current_exe()?;
    let command = [&*program.to_string_lossy(), argument, &address.to_string()];
    let mut process = Process::start(&command, context.cores, context.dir, argument)?;
    process.wait_until_listening(address)?;
    Ok(RunningServer {
        processes: vec![process],
        endpoint: by_path(address, context.channels),
        publish_address: address,
        publish: by_post(&context.template),
    })
}
