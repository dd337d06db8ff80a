//! A client that stays connected: begun again when its task has ended, made anew when a server that
//! it is connected to says nothing, or is a primary no more.
//!
//! Invariant: the library comes back by itself from a connection that closes. What it does not come
//! back from is seen to here: an error that ends its task (such as a redirection that it gives up
//! on), a connection that is open and silent, which goes unnoticed as long as it is written to, and
//! one to a server that became a replica while Sentinels still named it, which reads what is old.

use std::time::Duration;

use fred::clients::Client;
use fred::error::ErrorKind;
use fred::interfaces::ClientLike;
use fred::types::config::Options;
use fred::types::{ClusterHash, CustomCommand, Value};
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::endpoint::COMMAND_TIMEOUT;

/// Between two looks at whether all servers answer.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// After which a question without an answer means that nothing else is answered.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// What stands behind a command of one word.
const NO_ARGS: Vec<Value> = Vec::new();

/// Connects a client and keeps it so, until `over`.
pub(super) async fn maintain_connection(client: Client, over: CancellationToken) {
    let mut connection = client.connect();
    let mut look = interval(HEALTH_CHECK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = over.cancelled() => return,
            ended = &mut connection => {
                tracing::warn!(?ended, "the task of a connection has ended; it is begun again");
                // What ended it may still be so: a password that is wrong, say.
                tokio::select! {
                    () = over.cancelled() => return,
                    () = sleep(HEALTH_CHECK_INTERVAL) => connection = client.connect(),
                }
            }
            _ = look.tick() => {
                if client.is_connected() && is_unhealthy(&client).await {
                    tracing::warn!("a server is silent or no primary; the connection is made anew");
                    force_reconnect(&client).await;
                }
            }
        }
    }
}

/// Gives up a client's connections for new ones, to wherever its place is by now.
pub(super) async fn force_reconnect(client: &Client) {
    match timeout(COMMAND_TIMEOUT, client.force_reconnection()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "can't connect anew"),
        Err(_) => tracing::debug!("it takes its time to connect anew"),
    }
}

/// Whether a server that the client is connected to leaves a question unanswered, or is no primary.
async fn is_unhealthy(client: &Client) -> bool {
    let servers = match client.is_clustered() {
        true => client.active_connections().into_iter().map(Some).collect(),
        false => vec![None],
    };
    let answers = servers.into_iter().map(async |cluster_node| {
        let options = Options {
            max_attempts: Some(1),
            timeout: Some(HEALTH_CHECK_TIMEOUT),
            fail_fast: true,
            cluster_node,
            ..Options::default()
        };
        let role = CustomCommand::new_static("ROLE", ClusterHash::Random, false);
        let answer: Result<Vec<Value>, _> =
            client.with_options(&options).custom(role, NO_ARGS).await;
        match answer {
            Ok(role) => role.first().and_then(Value::as_str).as_deref() != Some("master"),
            Err(error) => *error.kind() == ErrorKind::Timeout,
        }
    });
    join_all(answers).await.contains(&true)
}
