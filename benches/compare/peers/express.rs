//! Express with ws and Redis: what many would write first.
//!
//! Invariant: one node process and one Redis, both counted; updates go through Redis, as they must
//! where there is more than one node.

use std::path::Path;

use super::{Ground, Stand, by_path, by_post};
use crate::process::{Process, free_address, is_there};

const HOME: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/express");

pub(super) fn missing() -> Option<String> {
    if !is_there("node") || !is_there("redis-server") {
        return Some("apt-get install nodejs npm redis-server".to_owned());
    }
    let is_installed = Path::new(HOME).join("node_modules/express").is_dir();
    (!is_installed).then(|| "npm ci --prefix benches/compare/express".to_owned())
}

pub(super) fn start(ground: &Ground<'_>) -> anyhow::Result<Stand> {
    let (redis, port) = super::redis::start(ground)?;
    let port = port.to_string();
    let address = free_address()?;
    let program = format!("{HOME}/server.js");
    let command = ["node", &program, &address.port().to_string(), &port];
    let mut node = Process::start(&command, ground.cores, ground.dir, "express")?;
    node.listens(address)?;
    Ok(Stand {
        processes: vec![node, redis],
        door: by_path(address, ground.channels),
        publish_at: address,
        publish: by_post(&ground.template),
    })
}
