//! A Redis for the servers that share one.
//!
//! Invariant: it keeps nothing on disk, and is counted with whoever uses it.

use super::Ground;
use crate::process::{Process, free_address, is_there};

pub(super) fn missing() -> Option<String> {
    (!is_there("redis-server")).then(|| "apt-get install redis-server".to_owned())
}

/// Starts one; says its port, too.
pub(super) fn start(ground: &Ground<'_>) -> anyhow::Result<(Process, u16)> {
    let address = free_address()?;
    let port = address.port().to_string();
    let command = [
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        &port,
        "--save",
        "",
        "--appendonly",
        "no",
    ];
    let mut redis = Process::start(&command, ground.cores, ground.dir, "redis")?;
    redis.listens(address)?;
    Ok((redis, address.port()))
}
