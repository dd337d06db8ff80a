//! Servers that are part of the benchmark: the floors, the bare stack and two typical uses of actix-ws.
//!
//! Each server runs in a separate process of the executable that contains the load generator.

use std::net::SocketAddr;
use std::path::Path;

use super::{Publish, RunningServer, StartContext, by_path, by_post};
use crate::http_connection::post;
use crate::process::{Process, free_address};
use crate::stack::{self, Step, token};
use crate::{baseline, broadcast, with_sqlite};

/// A server of the benchmark. The command that starts it is the executable with `argument`, the address and the
/// directory for the files of the server.
#[derive(Clone, Copy)]
pub struct OwnServer {
    argument: &'static str,
    serve: fn(SocketAddr, &Path) -> anyhow::Result<()>,
    takes: Takes,
}

/// Body of the requests that a server accepts.
#[derive(Clone, Copy)]
enum Takes {
    /// The message to deliver.
    Messages,
    /// The report of a worker, with its token.
    Reports,
}

/// Bare epoll writer.
pub(super) const FLOOR: OwnServer = OwnServer {
    argument: "serve-floor",
    serve: |address, _| baseline::serve(address, None),
    takes: Takes::Messages,
};

/// Bare epoll writer with a log.
pub(super) const DURABLE_FLOOR: OwnServer = OwnServer {
    argument: "serve-durable-floor",
    serve: |address, dir| baseline::serve(address, Some(&dir.join("log"))),
    takes: Takes::Messages,
};

/// Broadcast with actix-ws.
pub(super) const BROADCAST: OwnServer = OwnServer {
    argument: "serve-actix-ws",
    serve: |address, _| broadcast::serve(address),
    takes: Takes::Messages,
};

/// actix-ws with SQLite, one transaction per update.
pub(super) const WITH_SQLITE: OwnServer = OwnServer {
    argument: "serve-with-sqlite",
    serve: with_sqlite::serve,
    takes: Takes::Reports,
};

/// Returns the bare stack with the work of `step` and of all earlier steps.
pub(super) const fn stack(step: Step) -> OwnServer {
    match step {
        Step::Plain => OwnServer {
            argument: "serve-stack",
            serve: |address, dir| stack::serve(address, dir, Step::Plain),
            takes: Takes::Messages,
        },
        Step::Json => OwnServer {
            argument: "serve-stack-json",
            serve: |address, dir| stack::serve(address, dir, Step::Json),
            takes: Takes::Reports,
        },
        Step::Token => OwnServer {
            argument: "serve-stack-token",
            serve: |address, dir| stack::serve(address, dir, Step::Token),
            takes: Takes::Reports,
        },
        Step::Versions => OwnServer {
            argument: "serve-stack-versions",
            serve: |address, dir| stack::serve(address, dir, Step::Versions),
            takes: Takes::Reports,
        },
        Step::Indexes => OwnServer {
            argument: "serve-stack-indexes",
            serve: |address, dir| stack::serve(address, dir, Step::Indexes),
            takes: Takes::Reports,
        },
        Step::Feeds => OwnServer {
            argument: "serve-stack-feeds",
            serve: |address, dir| stack::serve(address, dir, Step::Feeds),
            takes: Takes::Reports,
        },
        Step::Metrics => OwnServer {
            argument: "serve-stack-metrics",
            serve: |address, dir| stack::serve(address, dir, Step::Metrics),
            takes: Takes::Reports,
        },
    }
}

const SERVERS: [OwnServer; 11] = [
    FLOOR,
    DURABLE_FLOOR,
    BROADCAST,
    WITH_SQLITE,
    stack(Step::Plain),
    stack(Step::Json),
    stack(Step::Token),
    stack(Step::Versions),
    stack(Step::Indexes),
    stack(Step::Feeds),
    stack(Step::Metrics),
];

/// Runs the server that the arguments of this process select. Returns `None` if they select none.
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
        publish: match server.takes {
            Takes::Messages => by_post(&context.template),
            Takes::Reports => by_report()?,
        },
    })
}

/// Returns a function that creates requests to report an update. The path contains the channel.
fn by_report() -> anyhow::Result<Publish> {
    let token = token::worker()?;
    Ok(Box::new(move |channel, stamp| {
        let headers = [
            ("Authorization", &*token),
            ("Content-Type", "application/json"),
        ];
        let body = format!(r#"{{"status":"running","stage":"{}"}}"#, stamp.text());
        Ok(post(&format!("/publish/{channel}"), &headers, &body))
    }))
}
