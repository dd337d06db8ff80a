//! The connections to Redis, and how scripts are run over them.
//!
//! Invariant: a call ends within its time, done or not; where it is not known which, the caller is
//! told [`Error::Away`], and asking again does no harm, because every script compares before it
//! writes.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fred::clients::{Client, WithOptions};
use fred::error::{Error as RedisError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::Options;
use fred::types::{ClusterHash, CustomCommand, FromValue, Value};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::endpoint::{COMMAND_TIMEOUT, Endpoint};
use super::keys::Keys;
use super::reconnect::maintain_connection;
use crate::store::Error;

/// Connections that commands of a kind share.
const CONNECTIONS: usize = 4;

/// A script, and its name among those that a server knows already.
pub(super) struct Script {
    text: &'static str,
    hash: LazyLock<String, Box<dyn FnOnce() -> String + Send + Sync>>,
}

impl Script {
    pub(super) fn new(text: &'static str) -> Self {
        Self {
            text,
            hash: LazyLock::new(Box::new(move || fred::util::sha1_hash(text))),
        }
    }

    fn sha(&self) -> Call<'_> {
        Call::Sha(&self.hash)
    }

    fn source(&self) -> Call<'_> {
        Call::Source(self.text)
    }
}

/// Connections that are dealt out in turn.
struct Pool {
    clients: Vec<Client>,
    next: AtomicUsize,
}

impl Pool {
    fn open(place: &Endpoint, over: &CancellationToken) -> Result<Self, Error> {
        let make = |_| {
            let client = place.client().map_err(|error| to_store_error(&error))?;
            tokio::spawn(maintain_connection(client.clone(), over.clone()));
            Ok(client)
        };
        Ok(Self {
            clients: (0..CONNECTIONS).map(make).collect::<Result<_, Error>>()?,
            next: AtomicUsize::new(0),
        })
    }

    /// The next one that is there: after a loss each comes back in its own time, and the first is
    /// enough to go on with.
    fn client(&self) -> WithOptions<Client> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        let mut in_turn = self.clients[next..].iter().chain(&self.clients[..next]);
        let there = in_turn.find(|client| client.is_connected());
        there.unwrap_or(&self.clients[next]).with_options(&Options {
            max_attempts: Some(1),
            timeout: Some(COMMAND_TIMEOUT),
            fail_fast: true,
            ..Options::default()
        })
    }
}

/// The connections for commands.
pub(super) struct Connections {
    pub(super) keys: Keys,
    pool: Pool,
    /// For writes that wait for replicas, and keep their connection waiting; none where none does.
    replicated_pool: Option<Pool>,
    /// How many replicas must have a change before it counts.
    replicas: usize,
    publish_command: &'static str,
    in_flight: TaskTracker,
    /// Ends all that belongs to it.
    pub(super) shutdown: CancellationToken,
}

impl Connections {
    /// Begins to connect; must be called within a runtime.
    pub(super) fn open(place: &Endpoint, keys: Keys, replicas: usize) -> Result<Self, Error> {
        let over = CancellationToken::new();
        let waiting = (replicas > 0).then(|| Pool::open(place, &over));
        Ok(Self {
            keys,
            pool: Pool::open(place, &over)?,
            replicated_pool: waiting.transpose()?,
            replicas,
            publish_command: if place.is_clustered() {
                "SPUBLISH"
            } else {
                "PUBLISH"
            },
            in_flight: TaskTracker::new(),
            shutdown: over,
        })
    }

    /// Whether a change counts only once replicas have it.
    pub(super) fn requires_replicas(&self) -> bool {
        self.replicated_pool.is_some()
    }

    /// The command that scripts tell of changes by.
    pub(super) fn publish(&self) -> &'static str {
        self.publish_command
    }

    /// Leave to do one thing, which a close then waits for.
    pub(super) fn begin_operation(&self) -> Result<TaskTrackerToken, Error> {
        if self.in_flight.is_closed() {
            return Err(Error::Unavailable("it is closed".to_owned()));
        }
        Ok(self.in_flight.token())
    }

    /// Lets nobody in any more, and waits for those who are.
    pub(super) async fn drain(&self) {
        self.in_flight.close();
        self.in_flight.wait().await;
    }

    /// Ends the connections.
    pub(super) async fn close(&self) {
        self.shutdown.cancel();
        let waiting = self.replicated_pool.iter().flat_map(|pool| &pool.clients);
        for client in self.pool.clients.iter().chain(waiting) {
            if let Err(error) = client.quit().await {
                tracing::debug!(%error, "a connection was gone already");
            }
        }
    }

    /// A connection for a command.
    pub(super) fn client(&self) -> WithOptions<Client> {
        self.pool.client()
    }

    /// Runs a script; its first key says where.
    pub(super) async fn run_script<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        let client = self.client();
        let answer = match call(&client, script.sha(), &keys, &args).await {
            Err(error) if is_noscript(&error) => call(&client, script.source(), &keys, &args).await,
            answer => answer,
        };
        answer.map_err(|error| to_store_error(&error))
    }

    /// Runs a script, and waits until as many replicas as are asked for have what it wrote.
    pub(super) async fn run_script_replicated<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        let Some(waiting) = &self.replicated_pool else {
            return self.run_script(script, keys, args).await;
        };
        let client = waiting.client();
        let known = self.run_script_and_wait(&client, script.sha(), &keys, &args);
        let [answer, there] = match known.await? {
            [Err(error), _] if is_noscript(&error) => {
                let whole = script.source();
                self.run_script_and_wait(&client, whole, &keys, &args)
                    .await?
            }
            answers => answers,
        };
        let answer = answer
            .and_then(Value::convert)
            .map_err(|error| to_store_error(&error))?;
        let there: usize = there
            .and_then(Value::convert)
            .map_err(|error| to_store_error(&error))?;
        match there < self.replicas {
            true => Err(Error::Unavailable(format!(
                "{there} of {} replicas have it",
                self.replicas
            ))),
            false => Ok(answer),
        }
    }

    /// Both go the same way together: on a connection that wrote nothing, there is nothing to wait
    /// for.
    async fn run_script_and_wait(
        &self,
        client: &WithOptions<Client>,
        script: Call<'_>,
        keys: &[String],
        args: &[Value],
    ) -> Result<[Result<Value, RedisError>; 2], Error> {
        let slot = fred::util::redis_keyslot(keys[0].as_bytes());
        let wait = CustomCommand::new_static("WAIT", ClusterHash::Custom(slot), false);
        let patience = COMMAND_TIMEOUT
            .saturating_sub(Duration::from_millis(100))
            .as_millis();
        let both = client.pipeline().with_options(client.options());
        let queued = async {
            let _: () = call(&both, script, keys, args).await?;
            let args = vec![self.replicas.to_string(), patience.to_string()];
            let _: () = both.custom(wait, args).await?;
            Ok(())
        };
        queued
            .await
            .map_err(|error: RedisError| to_store_error(&error))?;
        let answers: Vec<Result<Value, RedisError>> = both.try_all().await;
        let lost = |_| Error::Unavailable("an answer is missing".to_owned());
        answers.try_into().map_err(lost)
    }
}

/// Calls a script on a connection, or in a pipeline, which answers later.
async fn call<R: FromValue>(
    client: &impl ClientLike,
    script: Call<'_>,
    keys: &[String],
    args: &[Value],
) -> Result<R, RedisError> {
    let slot = ClusterHash::Custom(fred::util::redis_keyslot(keys[0].as_bytes()));
    let (command, script) = match script {
        Call::Sha(hash) => ("EVALSHA", hash),
        Call::Source(text) => ("EVAL", text),
    };
    let count = keys.len().to_string();
    let mut words: Vec<Value> = vec![script.into(), count.into()];
    words.extend(keys.iter().map(|key| Value::from(key.as_str())));
    words.extend_from_slice(args);
    let command = CustomCommand::new_static(command, slot, false);
    client.custom(command, words).await
}

/// A script, as it is called.
#[derive(Clone, Copy)]
enum Call<'a> {
    /// By the name that a server has it under.
    Sha(&'a str),
    /// By its text.
    Source(&'a str),
}

/// Whether a server has yet to learn the script.
fn is_noscript(error: &RedisError) -> bool {
    error.details().starts_with("NOSCRIPT")
}

/// What the client library complains of, as the store's callers know it.
pub(super) fn to_store_error(error: &RedisError) -> Error {
    if *error.kind() == ErrorKind::Backpressure {
        return Error::Overloaded;
    }
    Error::Unavailable(error.to_string())
}
