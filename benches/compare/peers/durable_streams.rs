//! Durable Streams: the Rust server, with SSE readers.
//!
//! The server gives the same guarantee as the hub: a message is on disk before the response to its publisher. A stream
//! keeps all messages.

use super::{MAX_CONCURRENT_HANDSHAKES, RunningServer, StartContext};
use crate::clients::{Endpoint, Protocol, Subscription};
use crate::http_connection::{post, request, send_all};
use crate::process::{Process, free_address, is_installed};

const PROGRAM: &str = "durable-streams-server";

/// Concurrent requests that create streams.
const CREATIONS: usize = 32;

const HEADERS: [(&str, &str); 1] = [("Content-Type", "application/json")];

pub(super) fn missing() -> Option<String> {
    (!is_installed(PROGRAM)).then(|| "cargo install durable-streams --version 0.1.5".to_owned())
}

pub(super) async fn start(context: &StartContext<'_>) -> anyhow::Result<RunningServer> {
    let address = free_address()?;
    let data = context.dir.join("streams");
    let command = [
        PROGRAM,
        "--port",
        &address.port().to_string(),
        "--data-dir",
        &data.to_string_lossy(),
    ];
    let mut process = Process::start(&command, context.cores, context.dir, "durable-streams")?;
    process.wait_until_listening(address)?;
    let create = |channel| request("PUT", &path(channel), &HEADERS, "");
    let requests = (0..context.channels).map(create).collect();
    send_all(address, CREATIONS, requests).await?;
    let subscription = |channel| Subscription {
        protocol: Protocol::EventStream,
        path: format!("{}?offset=-1&live=sse", path(channel)),
        headers: String::new(),
        message: None,
    };
    let template = std::rc::Rc::clone(&context.template);
    Ok(RunningServer {
        processes: vec![process],
        endpoint: Endpoint {
            addresses: vec![address],
            subscriptions: (0..context.channels).map(subscription).collect(),
            max_handshakes: MAX_CONCURRENT_HANDSHAKES,
        },
        publish_address: address,
        publish: Box::new(move |channel, stamp| {
            Ok(post(
                &path(channel),
                &HEADERS,
                &template.message(&stamp.text()),
            ))
        }),
    })
}

fn path(channel: usize) -> String {
    format!("/jobs/{channel}")
}
