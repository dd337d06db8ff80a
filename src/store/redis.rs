//! The shared engine: jobs in Redis, for any number of nodes. Requires Redis 7.
//!
//! The hash of a job is authoritative. A node also keeps recent versions in memory, but uses them
//! only as the basis of commits. A commit is one script: it compares the version, stores the next
//! document, schedules the job and publishes the change. It stores nothing if the hash contains
//! another version. A node that crashes between two steps leaves only references, budget charges
//! and slots behind, which are verified before they are used.
//!
//! Pub/sub may lose messages. A message is therefore only a hint that a newer version exists, and a
//! node reads what it may have missed.

mod budgets;
mod commit;
mod connection;
mod create;
mod endpoint;
mod jobs;
mod keys;
mod list;
mod outbox;
mod pubsub;
mod queues;
mod recent;
mod reconnect;
mod scripts;
mod slots;
mod sweep;
mod unique_keys;
mod update_buffer;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use fred::interfaces::HashesInterface;

use self::connection::Connections;
use self::endpoint::Endpoint;
pub use self::endpoint::Timeouts;
use self::keys::{KeyNames, Partition};
use self::pubsub::Subscriber;
use self::recent::RecentJobs;
use self::scripts::PUT_SHARED_STATE;
use super::turns::Turns;
use super::{ChangeListener, ChangeSource, Error, Retention, SharedState, Store};
use crate::config::StoreConfig;
use crate::job::Topic;
use crate::time::Time;

/// Checks that a URL is a valid Redis URL.
///
/// # Errors
/// A description of what is wrong with the URL. It contains no part of the URL.
pub fn check(url: &str) -> Result<(), String> {
    Endpoint::parse(url, Timeouts::default()).map(drop)
}

/// A store in a single Redis server, a primary behind Sentinels, or a cluster.
pub struct RedisStore {
    connections: Arc<Connections>,
    subscriber: Subscriber,
    retention: Retention,
    turns: Turns,
    recent: Arc<RecentJobs>,
}

impl RedisStore {
    /// Opens a store.
    ///
    /// The connection is established in the background. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the URL is invalid or there is no runtime.
    pub fn open(
        config: &StoreConfig,
        retention: Retention,
        listener: ChangeListener,
        timeouts: Timeouts,
    ) -> Result<Self, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::Unavailable("no Tokio runtime".to_owned()));
        }
        let mut endpoint = Endpoint::parse(&config.url, timeouts).map_err(Error::Unavailable)?;
        if let Some(password) = &config.password {
            endpoint.set_password(password);
        }
        let keys = KeyNames::new(&config.prefix, endpoint.is_clustered());
        let connections = Arc::new(Connections::open(&endpoint, keys, config.replicas)?);
        let recent = Arc::new(RecentJobs::default());
        let subscriber = Subscriber::open(&endpoint, &connections, &recent, listener)?;
        Ok(Self {
            connections,
            subscriber,
            retention,
            turns: Turns::default(),
            recent,
        })
    }

    fn partition_for(&self, name: &str) -> Partition<'_> {
        self.connections.keys.partition_for(name)
    }
}

#[async_trait]
impl Store for RedisStore {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn ping(&self) -> Result<(), Error> {
        let _operation = self.connections.begin_operation()?;
        self.connections.check_writes().await?;
        self.subscriber.check_health()
    }

    async fn wait_until_connected(&self) {
        let connected = async {
            self.connections.wait_until_connected().await;
            self.subscriber.wait_until_healthy().await;
        };
        let limit = self.connections.timeouts.probe;
        if tokio::time::timeout(limit, connected).await.is_err() {
            tracing::warn!("redis not connected yet; retrying in the background");
        }
    }

    async fn sweep(&self, now: Time) -> Result<usize, Error> {
        let _operation = self.connections.begin_operation()?;
        let mut count = 0;
        for partition in self.connections.keys.partitions() {
            count += self.sweep_partition(partition, now).await?;
        }
        Ok(count)
    }

    async fn close(&self) {
        self.connections.close().await;
    }
}

#[async_trait]
impl ChangeSource for RedisStore {
    async fn subscribe(&self, topics: &[Topic]) -> Result<(), Error> {
        let _operation = self.connections.begin_operation()?;
        self.subscriber.subscribe(topics.to_vec()).await
    }

    fn release(&self, topics: Vec<Topic>) {
        self.subscriber.release(topics);
    }

    fn channels(&self) -> Option<usize> {
        Some(self.subscriber.channels())
    }

    fn is_lossy(&self) -> bool {
        true
    }
}

#[async_trait]
impl SharedState for RedisStore {
    async fn put_shared_state(&self, name: &str, value: &str) -> Result<(), Error> {
        let _operation = self.connections.begin_operation()?;
        let partition = self.connections.keys.partition(0);
        let keys = vec![partition.shared_state(), partition.shared_state_channel()];
        let args = vec![
            self.connections.publish_command.into(),
            name.into(),
            value.into(),
            self.shared_key_ttl().into(),
        ];
        self.connections.run(&PUT_SHARED_STATE, keys, args).await
    }

    async fn shared_states(&self) -> Result<Vec<(String, String)>, Error> {
        let _operation = self.connections.begin_operation()?;
        let key = self.connections.keys.partition(0).shared_state();
        let values: HashMap<String, String> = self.connections.client().hgetall(key).await?;
        Ok(values.into_iter().collect())
    }
}
