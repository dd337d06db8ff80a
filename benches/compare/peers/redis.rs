//! Redis for the servers that need it. It stores nothing on disk and is measured with the server.

use super::StartContext;
use crate::process::{Process, free_address, is_installed};

pub(super) fn missing() -> Option<String> {
    (!is_installed("redis-server")).then(|| "apt-get install redis-server".to_owned())
}

/// Starts Redis and returns its process and port.
pub(super) fn start(context: &StartContext<'_>) -> anyhow::Result<(Process, u16)> {
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
    let mut redis = Process::start(&command, context.cores, context.dir, "redis")?;
    redis.wait_until_listening(address)?;
    Ok((redis, address.port()))
}
