//! The servers of the benchmark itself: the floors and the actix-ws broadcast.
//!
//! They run in a process of their own, from the same executable as the load generator.

use std::net::SocketAddr;
use std::path::Path;

use super::{RunningServer, StartContext, by_path, by_post};
use crate::process::{Process, free_address};
use crate::{baseline, broadcast};

/// A server of the benchmark. Its argument is the first of the command that starts it. The address and the directory
/// for its files follow.
#[derive(Clone, Copy)]
pub struct OwnServer {
    argument: &'static str,
    serve: fn(SocketAddr, &Path) -> anyhow::Result<()>,
}

/// Bare epoll writer.
pub(super) const FLOOR: OwnServer = OwnServer {
    argument: "serve-floor",
    serve: |address, _| baseline::serve(address, None),
};

/// Bare epoll writer with a log.
pub(super) const DURABLE_FLOOR: OwnServer = OwnServer {
    argument: "serve-durable-floor",
    serve: |address, dir| baseline::serve(address, Some(&dir.join("log"))),
};

/// Broadcast with actix-ws.
pub(super) const BROADCAST: OwnServer = OwnServer {
    argument: "serve-actix-ws",
    serve: |address, _| broadcast::serve(address),
};

const SERVERS: [OwnServer; 3] = [FLOOR, DURABLE_FLOOR, BROADCAST];

/// Serves if the arguments of this process are those of a server, or returns `None`.
pub fn serve(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let [_, argument, address, dir] = arguments else {
        return None;
    };
    let server = SERVERS.iter().find(|server| server.argument == argument)?;
    let address = address.parse().ok()?;
    Some((server.serve)(address, Path::new(dir)))
}

pub(super) fn start(
    context: &StartContext<'_>,
    server: OwnServer,
) -> anyhow::Result<RunningServer> {
    let address = free_address()?;
    let program = std::env::current_exe()?;
    let command = [
        &*program.to_string_lossy(),
        server.argument,
        &address.to_string(),
        &context.dir.to_string_lossy(),
    ];
    let mut process = Process::start(&command, context.cores, context.dir, server.argument)?;
    process.wait_until_listening(address)?;
    Ok(RunningServer {
        processes: vec![process],
        endpoint: by_path(address, context.channels),
        publish_address: address,
        publish: by_post(&context.template),
    })
}
