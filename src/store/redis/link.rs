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
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::config::Options;
use fred::types::{ClusterHash, CustomCommand, FromValue, Value};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::keeping::keep;
use super::keys::Keys;
use super::place::{PATIENCE, Place};
use crate::store::Error;

/// Connections that commands share: enough that one that waits for replicas leaves others free.
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
}

/// The connections for commands.
pub(super) struct Link {
    pub(super) keys: Keys,
    clients: Vec<Client>,
    next: AtomicUsize,
    /// How many replicas must have a change before it counts.
    replicas: usize,
    publish: &'static str,
    working: TaskTracker,
    /// Ends all that belongs to it.
    pub(super) over: CancellationToken,
}

impl Link {
    /// Begins to connect; must be called within a runtime.
    pub(super) fn open(place: &Place, keys: Keys, replicas: usize) -> Result<Self, Error> {
        let over = CancellationToken::new();
        let make = || {
            let client = place.client().map_err(|error| away(&error))?;
            tokio::spawn(keep(client.clone(), over.clone()));
            Ok(client)
        };
        Ok(Self {
            keys,
            clients: (0..CONNECTIONS)
                .map(|_| make())
                .collect::<Result<_, Error>>()?,
            next: AtomicUsize::new(0),
            replicas,
            publish: if place.is_clustered() {
                "SPUBLISH"
            } else {
                "PUBLISH"
            },
            working: TaskTracker::new(),
            over,
        })
    }

    /// The command that scripts tell of changes by.
    pub(super) fn publish(&self) -> &'static str {
        self.publish
    }

    /// Leave to do one thing, which a close then waits for.
    pub(super) fn enter(&self) -> Result<TaskTrackerToken, Error> {
        if self.working.is_closed() {
            return Err(Error::Away("it is closed".to_owned()));
        }
        Ok(self.working.token())
    }

    /// Lets nobody in any more, and waits for those who are.
    pub(super) async fn drain(&self) {
        self.working.close();
        self.working.wait().await;
    }

    /// Ends the connections.
    pub(super) async fn close(&self) {
        self.over.cancel();
        for client in &self.clients {
            if let Err(error) = client.quit().await {
                tracing::debug!(%error, "a connection was gone already");
            }
        }
    }

    /// A connection for a command or several in a row: the next one that is there. After a loss each
    /// comes back in its own time, and the first is enough to go on with.
    pub(super) fn client(&self) -> WithOptions<Client> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        let mut in_turn = self.clients[next..].iter().chain(&self.clients[..next]);
        let there = in_turn.find(|client| client.is_connected());
        there.unwrap_or(&self.clients[next]).with_options(&Options {
            max_attempts: Some(1),
            timeout: Some(PATIENCE),
            fail_fast: true,
            ..Options::default()
        })
    }

    /// Runs a script; its first key says where.
    pub(super) async fn run<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        run(&self.client(), script, keys, args).await
    }

    /// Runs a script, and waits until as many replicas as are asked for have what it wrote.
    pub(super) async fn run_durably<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        let client = self.client();
        let slot = fred::util::redis_keyslot(keys[0].as_bytes());
        let answer = run(&client, script, keys, args).await?;
        if self.replicas > 0 {
            let wait = CustomCommand::new_static("WAIT", ClusterHash::Custom(slot), false);
            let patience = PATIENCE
                .saturating_sub(Duration::from_millis(100))
                .as_millis();
            let args = [self.replicas.to_string(), patience.to_string()];
            let there: usize = client
                .custom(wait, args.to_vec())
                .await
                .map_err(|error| away(&error))?;
            if there < self.replicas {
                return Err(Error::Away(format!(
                    "{there} of {} replicas have it",
                    self.replicas
                )));
            }
        }
        Ok(answer)
    }
}

async fn run<R: FromValue>(
    client: &WithOptions<Client>,
    script: &Script,
    keys: Vec<String>,
    args: Vec<Value>,
) -> Result<R, Error> {
    let known = client
        .evalsha(script.hash.as_str(), keys.clone(), args.clone())
        .await;
    let answer = match known {
        Err(error) if error.details().starts_with("NOSCRIPT") => {
            client.eval(script.text, keys, args).await
        }
        answer => answer,
    };
    answer.map_err(|error| away(&error))
}

/// What the client library complains of, as the store's callers know it.
pub(super) fn away(error: &RedisError) -> Error {
    if *error.kind() == ErrorKind::Backpressure {
        return Error::Busy;
    }
    Error::Away(error.to_string())
}
