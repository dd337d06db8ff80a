//! Express with ws and Redis, a typical first implementation.
//!
//! One Node process and one Redis, both measured. Updates are published through Redis, as several nodes would require.

use std::path::Path;

use super::{RunningServer, StartContext, by_path, by_post};
use crate::process::{Process, free_address, is_installed};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/express");

pub(super) fn missing() -> Option<String> {
    if !is_installed("node") || !is_installed("redis-server") {
        return Some("apt-get install nodejs npm redis-server".to_owned());
    }
    let is_installed = Path::new(DIRECTORY).join("node_modules/express").is_dir();
    (!is_installed).then(|| "npm ci --prefix benches/compare/express".to_owned())
}

pub(super) fn start(context: &StartContext<'_>) -> anyhow::Result<RunningServer> {
    let (redis, port) = super::redis::start(context)?;
    let port = port.to_string();
    let address = free_address()?;
    let program = format!("{DIRECTORY}/server.js");
    let command = ["node", &program, &address.port().to_string(), &port];
    let mut node = Process::start(&command, context.cores, context.dir, "express")?;
    node.wait_until_listening(address)?;
    Ok(RunningServer {
        processes: vec![node, redis],
        endpoint: by_path(address, context.channels),
        publish_address: address,
        publish: by_post(&context.template),
    })
}
