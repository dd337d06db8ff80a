//! The shared engine: jobs in Redis, for any number of nodes.
//!
//! Invariant: no job lives in a node. A job's hash is the truth, and one script compares its version,
//! stores the next document, sets when it is due and tells of it; so what a node was told, whoever
//! reads finds, and a node that dies between two steps leaves nothing but names, sums and places that
//! are looked through before they count.
//!
//! Needs Redis 7. Everything a node hears is a hint that there is a newer version: what it may have
//! missed, it reads.

mod budgets;
mod commit;
mod connection;
mod create;
mod endpoint;
mod jobs;
mod keys;
mod list;
mod pubsub;
mod queues;
mod reconnect;
mod scripts;
mod slots;
mod sweep;
mod unique_keys;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::interfaces::{ClientLike, HashesInterface};
use futures_util::future::try_join_all;

use self::connection::{Connections, to_store_error};
use self::endpoint::Endpoint;
use self::keys::{Keys, task_name};
use self::pubsub::Subscriber;
use self::scripts::PUT_SHARED_STATE;
use super::{
    BufferOutcome, ChangeListener, CommitJob, CommitOutcome, CreateJob, CreateOutcome, Error,
    ListQuery, Queue, Retention, Store, Topic,
};
use crate::config::StoreConfig;
use crate::job::{Job, JobId, Update};
use crate::time::Time;

/// Whether a URL names a Redis.
///
/// # Errors
/// What is wrong with it, quoting nothing of it.
pub fn check(url: &str) -> Result<(), String> {
    Endpoint::parse(url).map(drop)
}

/// Jobs in a Redis: one server, one behind Sentinels, or a cluster.
pub struct RedisStore {
    link: Arc<Connections>,
    hearing: Subscriber,
    retention: Retention,
}

impl RedisStore {
    /// Begins to connect. Must be called within a runtime, which its tasks run on.
    ///
    /// # Errors
    /// [`Error::Away`] where the URL names no Redis, or there is no runtime.
    pub fn open(
        config: &StoreConfig,
        retention: Retention,
        node: ChangeListener,
    ) -> Result<Self, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::Unavailable(
                "it needs a runtime to connect".to_owned(),
            ));
        }
        let place = Endpoint::parse(&config.url).map_err(Error::Unavailable)?;
        let keys = Keys::new(&config.prefix, place.is_clustered());
        let link = Arc::new(Connections::open(&place, keys, config.replicas)?);
        let hearing = Subscriber::open(&place, &link, node)?;
        Ok(Self {
            link,
            hearing,
            retention,
        })
    }
}

#[async_trait]
impl Store for RedisStore {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn create(&self, create: CreateJob) -> Result<CreateOutcome, Error> {
        let _working = self.link.begin_operation()?;
        self.create_job(create).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error> {
        let _working = self.link.begin_operation()?;
        self.read(id).await
    }

    async fn get_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error> {
        let _working = self.link.begin_operation()?;
        self.read_many(ids).await
    }

    async fn list(&self, listing: ListQuery) -> Result<Vec<Arc<Job>>, Error> {
        let _working = self.link.begin_operation()?;
        self.list_jobs(&listing).await
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<(), Error> {
        let _working = self.link.begin_operation()?;
        self.hearing.listen(topics.to_vec()).await
    }

    fn is_lossy(&self) -> bool {
        true
    }

    async fn find_task(&self, provider: &str, task_id: &str) -> Result<Option<JobId>, Error> {
        let _working = self.link.begin_operation()?;
        self.find_task_job(&task_name(provider, task_id)).await
    }

    async fn commit(&self, commit: CommitJob) -> Result<CommitOutcome, Error> {
        let _working = self.link.begin_operation()?;
        self.commit_job(&commit).await
    }

    async fn ensure_durable(&self, job: &Job) -> Result<CommitOutcome, Error> {
        let _working = self.link.begin_operation()?;
        self.ensure_replicated(job).await
    }

    async fn schedule_poll(&self, id: &JobId, at: Time, cool_down: Duration) -> Result<(), Error> {
        let _working = self.link.begin_operation()?;
        self.schedule_poll(id, at, cool_down).await
    }

    async fn balances(&self, accounts: &[String], now: Time) -> Result<Vec<i64>, Error> {
        let _working = self.link.begin_operation()?;
        try_join_all(accounts.iter().map(|account| self.balance_of(account, now))).await
    }

    async fn claim(
        &self,
        queue: Queue<'_>,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Job>>, Error> {
        let _working = self.link.begin_operation()?;
        self.claim_due(queue, now, limit).await
    }

    async fn next_due(&self, queue: Queue<'_>) -> Result<Option<Time>, Error> {
        let _working = self.link.begin_operation()?;
        self.next_due_at(queue).await
    }

    async fn buffer_update(
        &self,
        provider: &str,
        task_id: &str,
        news: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error> {
        let _working = self.link.begin_operation()?;
        self.buffer_update(&task_name(provider, task_id), news, now)
            .await
    }

    async fn buffered_updates(&self, provider: &str, task_id: &str) -> Result<Vec<Update>, Error> {
        let _working = self.link.begin_operation()?;
        self.buffered_updates(&task_name(provider, task_id)).await
    }

    async fn sweep(&self, now: Time) -> Result<usize, Error> {
        let _working = self.link.begin_operation()?;
        self.sweep_once(now).await
    }

    async fn put_shared_state(&self, name: &str, text: &str) -> Result<(), Error> {
        let _working = self.link.begin_operation()?;
        let part = self.link.keys.partition(0);
        let keys = vec![part.shared_state(), part.shared_state_channel()];
        let args = vec![
            self.link.publish().into(),
            name.into(),
            text.into(),
            self.shared_key_ttl().into(),
        ];
        self.link.run_script(&PUT_SHARED_STATE, keys, args).await
    }

    async fn shared_states(&self) -> Result<Vec<(String, String)>, Error> {
        let _working = self.link.begin_operation()?;
        let memory = self.link.keys.partition(0).shared_state();
        let all: Result<HashMap<String, String>, _> = self.link.client().hgetall(memory).await;
        Ok(all
            .map_err(|error| to_store_error(&error))?
            .into_iter()
            .collect())
    }

    /// Asks Redis, and whether changes are heard.
    async fn ping(&self) -> Result<(), Error> {
        let _working = self.link.begin_operation()?;
        let answered: Result<(), _> = self.link.client().ping(None).await;
        answered.map_err(|error| to_store_error(&error))?;
        match self.hearing.is_healthy() {
            true => Ok(()),
            false => Err(Error::Unavailable("nothing is heard of changes".to_owned())),
        }
    }

    async fn close(&self) {
        self.link.drain().await;
        self.link.close().await;
    }
}
