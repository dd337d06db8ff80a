//! Connection pools, and the execution of scripts on them.
//!
//! Every call ends within the command timeout. A call that fails with [`Error::Unavailable`] may have
//! been executed. Repeating it is safe, because every script compares before it writes.

use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, Pool, WithOptions};
use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::config::Options;
use fred::types::{ClusterHash, CustomCommand, Expiration, FromValue, Value};
use futures_util::future::try_join_all;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::endpoint::{Endpoint, Timeouts, fail_fast};
use super::keys::KeyNames;
use super::reconnect::maintain_connection;
use super::scripts::Script;
use crate::store::Error;

/// Connections in a pool.
const POOL_SIZE: usize = 4;

/// Interval between checks for an established connection.
const CONNECT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Difference between the command timeout and the timeout of `WAIT`, so that its reply is in time.
const WAIT_MARGIN: Duration = Duration::from_millis(100);

/// Minimum time between two write checks.
const WRITE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Size of the value of a write check, in bytes. A server near its memory limit may accept a
/// smaller value but reject a job.
const WRITE_CHECK_BYTES: usize = 16 << 10;

/// Time until the key of a write check expires.
const WRITE_CHECK_TTL_MILLISECONDS: i64 = 60_000;

/// The connections for commands.
pub(super) struct Connections {
    pub(super) keys: KeyNames,
    pub(super) timeouts: Timeouts,
    /// Cancelled when the connections close.
    pub(super) shutdown: CancellationToken,
    /// Options of every command: its timeout, and a single attempt.
    options: Options,
    pool: Pool,
    /// Connections for writes that wait for replicas. `WAIT` blocks its connection.
    replicated_pool: Option<Pool>,
    /// Number of replicas that must acknowledge a write.
    pub(super) required_replicas: usize,
    /// The command that publishes a message: `PUBLISH`, or `SPUBLISH` in a cluster.
    pub(super) publish_command: &'static str,
    in_flight: TaskTracker,
    last_write_check: Mutex<Option<(Instant, Result<(), Error>)>>,
}

impl Connections {
    /// Starts to connect. Must be called within a runtime.
    pub(super) fn open(
        endpoint: &Endpoint,
        keys: KeyNames,
        required_replicas: usize,
    ) -> Result<Self, Error> {
        let shutdown = CancellationToken::new();
        let open_pool = || {
            let pool = endpoint.pool(POOL_SIZE)?;
            for client in pool.clients() {
                let (client, timeouts) = (client.clone(), endpoint.timeouts);
                tokio::spawn(maintain_connection(client, timeouts, shutdown.clone()));
            }
            Ok::<_, Error>(pool)
        };
        let replicated_pool = (required_replicas > 0).then(open_pool).transpose()?;
        Ok(Self {
            keys,
            timeouts: endpoint.timeouts,
            options: fail_fast(endpoint.timeouts.command),
            pool: open_pool()?,
            replicated_pool,
            required_replicas,
            publish_command: if endpoint.is_clustered() {
                "SPUBLISH"
            } else {
                "PUBLISH"
            },
            in_flight: TaskTracker::new(),
            last_write_check: Mutex::default(),
            shutdown,
        })
    }

    /// Starts an operation. [`Connections::close`] waits until the token is dropped.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the store is closed.
    pub(super) fn begin_operation(&self) -> Result<TaskTrackerToken, Error> {
        if self.in_flight.is_closed() {
            return Err(Error::Unavailable("store is closed".to_owned()));
        }
        Ok(self.in_flight.token())
    }

    /// Rejects new operations, waits for those in progress, and closes the connections.
    pub(super) async fn close(&self) {
        self.in_flight.close();
        self.in_flight.wait().await;
        self.shutdown.cancel();
        let replicated = self.replicated_pool.iter().flat_map(Pool::clients);
        for client in self.pool.clients().iter().chain(replicated) {
            if let Err(error) = client.quit().await {
                tracing::debug!(%error, "redis connection already closed");
            }
        }
    }

    /// Returns whether commands can be sent.
    pub(super) fn is_connected(&self) -> bool {
        let is_connected = |pool: &Pool| pool.clients().iter().any(Client::is_connected);
        is_connected(&self.pool) && self.replicated_pool.as_ref().is_none_or(is_connected)
    }

    /// Waits until commands can be sent.
    pub(super) async fn wait_until_connected(&self) {
        // A notification of the library can be missed if it is sent just before the wait begins.
        while !self.is_connected() {
            sleep(CONNECT_POLL_INTERVAL).await;
        }
    }

    /// Returns a connection for a single command. After an outage, connections recover one by one.
    pub(super) fn client(&self) -> WithOptions<Client> {
        self.pool.next_connected().with_options(&self.options)
    }

    /// Checks that every partition accepts writes of the size of a job. A replica, and a server at its
    /// memory limit, reject writes but respond to reads and `PING`.
    ///
    /// Callers share the result of a check for [`WRITE_CHECK_INTERVAL`]. This limits the number of
    /// writes that clients without a token can cause through health checks.
    pub(super) async fn check_writes(&self) -> Result<(), Error> {
        let mut last = self.last_write_check.lock().await;
        if let Some((checked_at, result)) = &*last
            && checked_at.elapsed() < WRITE_CHECK_INTERVAL
        {
            return result.clone();
        }
        let result = self.write_to_all_partitions().await;
        *last = Some((Instant::now(), result.clone()));
        result
    }

    async fn write_to_all_partitions(&self) -> Result<(), Error> {
        let expiry = Some(Expiration::PX(WRITE_CHECK_TTL_MILLISECONDS));
        let value = Bytes::from_static(&[0; WRITE_CHECK_BYTES]);
        let writes = self.keys.partitions().map(async |partition| {
            let key = partition.write_check();
            self.client()
                .set::<(), _, _>(key, value.clone(), expiry.clone(), None, false)
                .await
        });
        try_join_all(writes).await?;
        Ok(())
    }

    /// Runs a script on the server that holds its first key.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the script is replicated and too few replicas acknowledge in time.
    pub(super) async fn run<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        let slot = ClusterHash::Custom(fred::util::redis_keyslot(keys[0].as_bytes()));
        let mut words: Vec<Value> = vec![script.sha.as_str().into(), keys.len().to_string().into()];
        words.extend(keys.into_iter().map(Value::from));
        words.extend(args);
        let evalsha = CustomCommand::new_static("EVALSHA", slot.clone(), false);
        let reply = match self
            .send(evalsha, words.clone(), script.is_replicated)
            .await
        {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                words[0] = script.source.into();
                let eval = CustomCommand::new_static("EVAL", slot, false);
                self.send(eval, words, script.is_replicated).await
            }
            reply => reply,
        };
        Ok(reply?.convert()?)
    }

    /// Sends a command, followed by `WAIT` if its writes must be replicated. `WAIT` covers the writes
    /// of its own connection only.
    async fn send(
        &self,
        command: CustomCommand,
        words: Vec<Value>,
        is_replicated: bool,
    ) -> Result<Value, RedisError> {
        let Some(pool) = self.replicated_pool.as_ref().filter(|_| is_replicated) else {
            return self.client().custom(command, words).await;
        };
        let wait = CustomCommand::new_static("WAIT", command.cluster_hash.clone(), false);
        let wait_timeout = self.timeouts.command.saturating_sub(WAIT_MARGIN);
        let wait_args = vec![
            self.required_replicas.to_string(),
            wait_timeout.as_millis().to_string(),
        ];
        let client = pool.next_connected().with_options(&self.options);
        let pipeline = client.pipeline().with_options(&self.options);
        let () = pipeline.custom(command, words).await?;
        let () = pipeline.custom(wait, wait_args).await?;
        let mut replies = pipeline.try_all::<Value>().await.into_iter();
        let incomplete = || {
            Err(RedisError::new(
                ErrorKind::Protocol,
                "incomplete reply from redis",
            ))
        };
        let reply = replies.next().unwrap_or_else(incomplete)?;
        let acknowledged: usize = replies.next().unwrap_or_else(incomplete)?.convert()?;
        if acknowledged < self.required_replicas {
            let required = self.required_replicas;
            let shortage =
                format!("acknowledged by {acknowledged} of {required} required replicas");
            return Err(RedisError::new(ErrorKind::Unknown, shortage));
        }
        Ok(reply)
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        if *error.kind() == ErrorKind::Backpressure {
            return Self::Overloaded;
        }
        Self::Unavailable(error.details().trim_end_matches('.').to_owned())
    }
}
