//! Connection pools, and the execution of scripts on them.
//!
//! Every call ends within the command timeout. A call that fails with [`Error::Unavailable`] may have
//! been executed. Repeating it is safe, because every script compares before it writes.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fred::clients::{Client, WithOptions};
use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::Options;
use fred::types::{ClusterHash, CustomCommand, FromValue, Value};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::endpoint::{Endpoint, Timeouts};
use super::keys::KeyNames;
use super::reconnect::maintain_connection;
use crate::store::Error;

/// Connections in a pool.
const POOL_SIZE: usize = 4;

/// Interval of the checks whether a connection is established.
const CONNECT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Difference between the command timeout and the timeout of `WAIT`, so that its reply is in time.
const WAIT_MARGIN: Duration = Duration::from_millis(100);

/// A Lua script and its SHA-1, by which a server caches it.
pub(super) struct Script {
    source: &'static str,
    sha: LazyLock<String, Box<dyn FnOnce() -> String + Send + Sync>>,
}

impl Script {
    pub(super) fn new(source: &'static str) -> Self {
        Self {
            source,
            sha: LazyLock::new(Box::new(move || fred::util::sha1_hash(source))),
        }
    }
}

/// The two ways to call a script.
#[derive(Clone, Copy)]
enum ScriptCall<'a> {
    Sha(&'a str),
    Source(&'a str),
}

impl ScriptCall<'_> {
    /// Sends the call on a connection, or queues it in a pipeline.
    async fn send<R: FromValue>(
        self,
        client: &impl ClientLike,
        keys: &[String],
        args: &[Value],
    ) -> Result<R, RedisError> {
        let (command, script) = match self {
            Self::Sha(sha) => ("EVALSHA", sha),
            Self::Source(source) => ("EVAL", source),
        };
        let mut words: Vec<Value> = vec![script.into(), keys.len().to_string().into()];
        words.extend(keys.iter().map(|key| Value::from(key.as_str())));
        words.extend_from_slice(args);
        let command = CustomCommand::new_static(command, hash_slot(keys), false);
        client.custom(command, words).await
    }
}

fn hash_slot(keys: &[String]) -> ClusterHash {
    ClusterHash::Custom(fred::util::redis_keyslot(keys[0].as_bytes()))
}

/// Returns whether the server does not know the script yet.
fn is_noscript(error: &RedisError) -> bool {
    error.details().starts_with("NOSCRIPT")
}

/// Connections that are used in turn.
struct Pool {
    clients: Vec<Client>,
    next: AtomicUsize,
    options: Options,
}

impl Pool {
    fn open(endpoint: &Endpoint, shutdown: &CancellationToken) -> Result<Self, Error> {
        let timeouts = endpoint.timeouts;
        let open = |_| {
            let client = endpoint.client()?;
            tokio::spawn(maintain_connection(
                client.clone(),
                timeouts,
                shutdown.clone(),
            ));
            Ok(client)
        };
        Ok(Self {
            clients: (0..POOL_SIZE).map(open).collect::<Result<_, Error>>()?,
            next: AtomicUsize::new(0),
            options: Options {
                max_attempts: Some(1),
                timeout: Some(timeouts.command),
                fail_fast: true,
                ..Options::default()
            },
        })
    }

    fn is_connected(&self) -> bool {
        self.clients.iter().any(Client::is_connected)
    }

    /// Returns the next connection that is up. After an outage, connections recover one by one.
    fn client(&self) -> WithOptions<Client> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        let mut in_turn = self.clients[next..].iter().chain(&self.clients[..next]);
        let connected = in_turn.find(|client| client.is_connected());
        connected
            .unwrap_or(&self.clients[next])
            .with_options(&self.options)
    }
}

/// The connections for commands.
pub(super) struct Connections {
    pub(super) keys: KeyNames,
    pub(super) timeouts: Timeouts,
    /// Cancelled when the connections close.
    pub(super) shutdown: CancellationToken,
    pool: Pool,
    /// Connections for writes that wait for replicas. `WAIT` blocks its connection.
    replicated_pool: Option<Pool>,
    /// Number of replicas that must acknowledge a write.
    required_replicas: usize,
    publish_command: &'static str,
    in_flight: TaskTracker,
}

impl Connections {
    /// Starts to connect. Must be called within a runtime.
    pub(super) fn open(
        endpoint: &Endpoint,
        keys: KeyNames,
        required_replicas: usize,
    ) -> Result<Self, Error> {
        let shutdown = CancellationToken::new();
        let replicated_pool = (required_replicas > 0).then(|| Pool::open(endpoint, &shutdown));
        Ok(Self {
            keys,
            timeouts: endpoint.timeouts,
            pool: Pool::open(endpoint, &shutdown)?,
            replicated_pool: replicated_pool.transpose()?,
            required_replicas,
            publish_command: if endpoint.is_clustered() {
                "SPUBLISH"
            } else {
                "PUBLISH"
            },
            in_flight: TaskTracker::new(),
            shutdown,
        })
    }

    /// Returns whether replicas must acknowledge a write.
    pub(super) fn requires_replicas(&self) -> bool {
        self.replicated_pool.is_some()
    }

    /// Returns the command that publishes a message: `PUBLISH`, or `SPUBLISH` in a cluster.
    pub(super) fn publish_command(&self) -> &'static str {
        self.publish_command
    }

    /// Starts an operation. [`Connections::drain`] waits until the token is dropped.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the store is closed.
    pub(super) fn begin_operation(&self) -> Result<TaskTrackerToken, Error> {
        if self.in_flight.is_closed() {
            return Err(Error::Unavailable("store is closed".to_owned()));
        }
        Ok(self.in_flight.token())
    }

    /// Rejects new operations and waits for those in progress.
    pub(super) async fn drain(&self) {
        self.in_flight.close();
        self.in_flight.wait().await;
    }

    pub(super) async fn close(&self) {
        self.shutdown.cancel();
        let replicated = self.replicated_pool.iter().flat_map(|pool| &pool.clients);
        for client in self.pool.clients.iter().chain(replicated) {
            if let Err(error) = client.quit().await {
                tracing::debug!(%error, "redis connection already closed");
            }
        }
    }

    /// Returns whether commands can be sent.
    pub(super) fn is_connected(&self) -> bool {
        self.pool.is_connected() && self.replicated_pool.as_ref().is_none_or(Pool::is_connected)
    }

    /// Waits until commands can be sent.
    pub(super) async fn wait_until_connected(&self) {
        // The library's notification may be missed if it is sent while one starts to wait for it.
        while !self.is_connected() {
            sleep(CONNECT_POLL_INTERVAL).await;
        }
    }

    /// Returns a connection for a single command.
    pub(super) fn client(&self) -> WithOptions<Client> {
        self.pool.client()
    }

    /// Runs a script on the server that holds its first key.
    pub(super) async fn run_script<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        let client = self.client();
        let cached = ScriptCall::Sha(&script.sha);
        match cached.send(&client, &keys, &args).await {
            Err(error) if is_noscript(&error) => {
                let uncached = ScriptCall::Source(script.source);
                Ok(uncached.send(&client, &keys, &args).await?)
            }
            reply => Ok(reply?),
        }
    }

    /// Runs a script and waits until the required number of replicas have acknowledged its writes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if too few replicas acknowledge in time.
    pub(super) async fn run_script_replicated<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        let Some(pool) = &self.replicated_pool else {
            return self.run_script(script, keys, args).await;
        };
        let client = pool.client();
        let cached = ScriptCall::Sha(&script.sha);
        let replies = self.run_script_and_wait(&client, cached, &keys, &args);
        let [reply, acknowledged] = match replies.await? {
            [Err(error), _] if is_noscript(&error) => {
                let uncached = ScriptCall::Source(script.source);
                self.run_script_and_wait(&client, uncached, &keys, &args)
                    .await?
            }
            replies => replies,
        };
        let reply = reply?.convert()?;
        let acknowledged: usize = acknowledged?.convert()?;
        if acknowledged < self.required_replicas {
            return Err(Error::Unavailable(format!(
                "acknowledged by {acknowledged} of {} required replicas",
                self.required_replicas
            )));
        }
        Ok(reply)
    }

    /// Sends a script and `WAIT` on the same connection, because `WAIT` covers the writes of its own
    /// connection only.
    async fn run_script_and_wait(
        &self,
        client: &WithOptions<Client>,
        script: ScriptCall<'_>,
        keys: &[String],
        args: &[Value],
    ) -> Result<[Result<Value, RedisError>; 2], Error> {
        let wait = CustomCommand::new_static("WAIT", hash_slot(keys), false);
        let wait_timeout = self.timeouts.command.saturating_sub(WAIT_MARGIN);
        let wait_args = vec![
            self.required_replicas.to_string(),
            wait_timeout.as_millis().to_string(),
        ];
        let pipeline = client.pipeline().with_options(client.options());
        let () = script.send(&pipeline, keys, args).await?;
        let () = pipeline.custom(wait, wait_args).await?;
        let replies: Vec<Result<Value, RedisError>> = pipeline.try_all().await;
        let incomplete = |_| Error::Unavailable("incomplete reply from redis".to_owned());
        replies.try_into().map_err(incomplete)
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
