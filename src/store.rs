//! Persistent job storage. A change is durable before it is published.
//!
//! The interface is split by concern: [`JobStore`], [`WorkQueues`], [`ChangeSource`],
//! [`BudgetStore`], [`Outbox`] and [`SharedState`]. An engine implements all of them and [`Store`].
//! One contract test suite, `tests/it/store.rs`, runs against every engine.

mod budgets;
mod changes;
mod codec;
mod job_cache;
mod jobs;
mod outbox;
mod queues;
pub mod redis;
pub mod sqlite;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use self::budgets::{BudgetEntry, BudgetStore};
pub use self::changes::{
    ChangeListener, ChangeSource, EventHandler, StoreEvent, SubscriptionFilter,
};
pub use self::jobs::{
    BUFFERED_UPDATE_TTL, BufferOutcome, CommitJob, CommitOutcome, CreateJob, CreateOutcome,
    IdempotencyKey, JobStore, ListQuery, MAX_BUFFERED_BYTES, MAX_BUFFERED_TASKS,
    MAX_BUFFERED_UPDATES, RecentJob, Revision,
};
pub use self::outbox::{
    DeliveryCursor, DeliveryQuery, DeliveryStateFilter, Outbox, StoredDestination,
    WAITING_RETENTION,
};
pub use self::queues::{CLAIM_LEASE, Queue, Schedule, WorkQueues};
use crate::config::StoreConfig;
use crate::time::Time;

/// A storage engine with everything the hub needs.
///
/// Components take the narrowest trait that serves them. An `Arc<dyn Store>` coerces to each of
/// the supertraits.
#[async_trait]
pub trait Store: JobStore + WorkQueues + ChangeSource + BudgetStore + Outbox + SharedState {
    /// Returns the engine's name for health reports: `sqlite` or `redis`.
    fn name(&self) -> &'static str;

    /// Checks that the engine can serve requests, and that a shared engine accepts writes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it can't.
    async fn ping(&self) -> Result<(), Error>;

    /// Waits until the engine is connected, or until it counts as unavailable. An engine without a
    /// connection returns at once.
    async fn wait_until_connected(&self) {}

    /// Deletes expired data and returns the number of deleted items.
    ///
    /// Expired are jobs past their [`Retention`] with their idempotency keys, tasks and ended
    /// deliveries, waiting deliveries past [`WAITING_RETENTION`], buffered updates older than
    /// [`BUFFERED_UPDATE_TTL`], and budget windows past their end. One call deletes a bounded number
    /// of items. Call it until it returns zero.
    async fn sweep(&self, now: Time) -> Result<usize, Error>;

    /// Closes the store after the operations in progress have finished.
    ///
    /// Later operations fail with [`Error::Unavailable`]. Further calls have no effect.
    async fn close(&self);
}

/// Small named values that all nodes share, such as circuit breaker snapshots.
///
/// The default implementation is for single-node engines. It stores and returns nothing.
#[async_trait]
pub trait SharedState: Send + Sync + 'static {
    /// Stores `value` under `name`, replaces the previous value, and publishes
    /// [`StoreEvent::SharedStateChanged`] to every node.
    async fn put_shared_state(&self, _name: &str, _value: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Returns all stored values with their names, in no particular order.
    async fn shared_states(&self) -> Result<Vec<(String, String)>, Error> {
        Ok(Vec::new())
    }
}

/// How long jobs are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Retention of a finished job, counted from its end.
    pub terminal: Duration,
    /// Retention of an unfinished job, counted from its last update.
    pub active: Duration,
}

/// The reason why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The engine is unreachable, its disk failed, or the store is closed. A write that fails with
    /// this error may have been applied.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// Too many operations are waiting, or concurrent operations conflict. The caller may retry.
    #[error("store overloaded")]
    Overloaded,
    /// A stored value can't be decoded. Retrying does not help.
    #[error("corrupt data in store: {0}")]
    Corrupt(String),
}

/// Checks that a URL selects an engine: an embedded SQLite database in one file, for a single node,
/// or a Redis server or cluster that any number of nodes share.
///
/// # Errors
/// A description of what is wrong with the URL. It contains no credentials.
pub fn check_url(url: &str) -> Result<(), String> {
    if url.starts_with("sqlite:") {
        Ok(())
    } else {
        redis::check(url)
    }
}

/// Opens the engine that `config.url` selects.
///
/// Returns before a Redis connection is established. The connection is retried in the background,
/// and operations fail with [`Error::Unavailable`] until it succeeds.
///
/// # Errors
/// [`Error::Unavailable`] if the URL is invalid or the database can't be opened, and
/// [`Error::Corrupt`] if a file is not a database of this program.
pub fn open(
    config: &StoreConfig,
    retention: Retention,
    listener: ChangeListener,
) -> Result<Arc<dyn Store>, Error> {
    if config.url.starts_with("sqlite:") {
        let store = sqlite::SqliteStore::open(&config.url, retention, listener.on_event)?;
        return Ok(Arc::new(store));
    }
    let timeouts = redis::Timeouts::default();
    let store = redis::RedisStore::open(config, retention, listener, timeouts)?;
    Ok(Arc::new(store))
}
