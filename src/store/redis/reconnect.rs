//! Supervision of a client's connection.
//!
//! The client library reconnects when a connection closes. This module handles what the library does
//! not: an error that ends the client's task, a connection that is open but silent, and a connection
//! to a server that was demoted to a replica and would serve stale reads.

use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::Options;
use fred::types::{ClusterHash, ConnectHandle, CustomCommand, Value};
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::endpoint::{Timeouts, fail_fast};

const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Connects a client and keeps it connected until `shutdown` is cancelled.
pub(super) async fn maintain_connection(
    client: Client,
    timeouts: Timeouts,
    shutdown: CancellationToken,
) {
    let mut connection = client.connect();
    let mut health_check = interval(HEALTH_CHECK_INTERVAL);
    health_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            error = connection_end(&mut connection) => {
                tracing::warn!(error, "redis connection task ended; restarting");
                // The cause may persist, such as a wrong password.
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = sleep(HEALTH_CHECK_INTERVAL) => connection = client.connect(),
                }
            }
            _ = health_check.tick() => {
                if client.is_connected() && is_unhealthy(&client, timeouts.health_check).await {
                    tracing::warn!("redis server unresponsive or not a primary; reconnecting");
                    force_reconnect(&client, timeouts.command).await;
                }
            }
        }
    }
}

/// Waits until the task of a connection ends, and returns the cause.
pub(super) async fn connection_end(connection: &mut ConnectHandle) -> String {
    match connection.await {
        Ok(Ok(())) => "connection closed".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Replaces a client's connections. The servers are looked up again.
pub(super) async fn force_reconnect(client: &Client, limit: Duration) {
    match timeout(limit, client.force_reconnection()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "redis reconnect failed"),
        Err(_) => tracing::debug!("redis reconnect timed out"),
    }
}

/// Returns whether a connected server does not answer in time or is not a primary.
async fn is_unhealthy(client: &Client, limit: Duration) -> bool {
    let servers = if client.is_clustered() {
        client.active_connections().into_iter().map(Some).collect()
    } else {
        vec![None]
    };
    let checks = servers.into_iter().map(async |cluster_node| {
        let options = Options {
            cluster_node,
            ..fail_fast(limit)
        };
        let role = CustomCommand::new_static("ROLE", ClusterHash::Random, false);
        let reply: Result<Vec<Value>, RedisError> = client
            .with_options(&options)
            .custom(role, Vec::<Value>::new())
            .await;
        match reply {
            Ok(role) => role.first().and_then(Value::as_str).as_deref() != Some("master"),
            Err(error) => *error.kind() == ErrorKind::Timeout,
        }
    });
    join_all(checks).await.contains(&true)
}
