//! Forgetting what has been kept long enough, and finishing what dead nodes left.
//!
//! Invariant: a job goes together with its key and its task, and one sweep is a bounded piece of
//! work. Whatever a sweep misses, Redis forgets by itself a day later.

use std::time::Duration;

use fred::interfaces::{HashesInterface, KeysInterface, SortedSetsInterface};

use super::RedisStore;
use super::connection::to_store_error;
use super::keys::Partition;
use super::keys::task_name;
use super::queues::until;
use super::scripts::DELETE_JOB;
use super::unique_keys::UniqueKey;
use crate::job::JobId;
use crate::store::{BUFFERED_UPDATE_TTL, Error};
use crate::time::Time;

/// The most jobs, tasks and accounts that are looked at in one partition.
const SWEEP_BATCH: i64 = 250;

/// The least difference between two moments.
const ONE_MILLISECOND: Duration = Duration::from_millis(1);

impl RedisStore {
    pub(super) async fn sweep_once(&self, now: Time) -> Result<usize, Error> {
        let mut count = 0;
        for part in self.link.keys.partitions() {
            self.recover_outbox(part).await?;
            for id in self
                .expired(part.expiry_queue(), now - ONE_MILLISECOND)
                .await?
            {
                count += self.delete_job(part, &id, now).await?;
            }
            let before = now - BUFFERED_UPDATE_TTL;
            for task in self
                .expired(part.buffered_tasks(), before - ONE_MILLISECOND)
                .await?
            {
                count += self.delete_buffered_before(&task, Some(before)).await?;
            }
            for account in self.expired(part.accounts(), now).await? {
                let client = self.link.client();
                let deleted: Result<usize, _> = client.del(part.account(&account)).await;
                let struck: Result<usize, _> = client.zrem(part.accounts(), account).await;
                deleted.map_err(|error| to_store_error(&error))?;
                count += struck.map_err(|error| to_store_error(&error))?;
            }
        }
        Ok(count)
    }

    /// What is in a list up to a moment, earliest first.
    async fn expired(&self, key: String, last: Time) -> Result<Vec<String>, Error> {
        let client = self.link.client();
        let over = client
            .zrangebyscore(key, "-inf", until(last), false, Some((0, SWEEP_BATCH)))
            .await;
        over.map_err(|error| to_store_error(&error))
    }

    async fn delete_job(&self, part: Partition<'_>, id: &str, now: Time) -> Result<usize, Error> {
        let fields = vec!["owner", "provider", "task", "key"];
        let known: Result<Vec<Option<String>>, _> =
            self.link.client().hmget(part.job(id), fields).await;
        let known = known.map_err(|error| to_store_error(&error))?;
        let field = |at: usize| known.get(at).cloned().flatten().unwrap_or_default();
        let (owner, provider) = (field(0), field(1));
        let keys = vec![
            part.job(id),
            part.poll_queue(),
            part.submit(&provider),
            part.expiry_queue(),
            part.jobs(None),
            part.active_jobs(None),
        ];
        let args = vec![id.into(), now.millis().into()];
        let forgotten: usize = self.link.run_script(&DELETE_JOB, keys, args).await?;
        let task = task_name(&provider, &field(2));
        let names = [
            (field(2), UniqueKey::task(&task)),
            (field(3), UniqueKey::key(&field(3))),
        ];
        if let Ok(job) = JobId::parse(id) {
            for (_, name) in names.into_iter().filter(|(text, _)| !text.is_empty()) {
                self.release_key(Some(name), &job).await;
            }
        }
        let lists = self.link.keys.partition_for(&owner);
        for list in [lists.jobs(Some(&owner)), lists.active_jobs(Some(&owner))] {
            let struck: Result<(), _> = self.link.client().zrem(list, id).await;
            struck.map_err(|error| to_store_error(&error))?;
        }
        self.release_slot_by_id(&provider, id).await?;
        Ok(forgotten)
    }
}
