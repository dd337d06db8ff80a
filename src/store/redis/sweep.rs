//! Deletion of expired data, and completion of what crashed nodes left unfinished.
//!
//! One sweep processes a bounded number of items. Redis itself expires what no sweep deletes, a day
//! later.

use std::time::Duration;

use fred::interfaces::{HashesInterface, KeysInterface, SortedSetsInterface};

use super::RedisStore;
use super::jobs::millis;
use super::keys::Partition;
use super::queues::scores_up_to;
use super::scripts::DELETE_JOB;
use super::unique_keys::UniqueKey;
use crate::store::{BUFFERED_UPDATE_TTL, Error};
use crate::time::Time;

/// Maximum number of jobs, of waiting deliveries to a destination, of tasks and of budget windows per
/// partition and sweep.
const SWEEP_BATCH: i64 = 250;

/// The resolution of scores. Subtracted to exclude the end of a range.
const ONE_MILLISECOND: Duration = Duration::from_millis(1);

impl RedisStore {
    pub(super) async fn sweep_partition(
        &self,
        partition: Partition<'_>,
        now: Time,
    ) -> Result<usize, Error> {
        let mut count = 0;
        self.recover_outbox(partition).await?;
        self.refresh_ttls(partition).await?;
        loop {
            let expired = partition.expiry_queue();
            let expired = self.expired(expired, now - ONE_MILLISECOND).await?;
            for id in &expired {
                count += self.delete_job(partition, id, now).await?;
            }
            // A batch may contain only updated jobs, which are kept. Expired jobs may follow them.
            if count > 0 || expired.is_empty() {
                break;
            }
        }
        count += self.delete_expired_deliveries(partition, now).await?;
        let before = now - BUFFERED_UPDATE_TTL;
        for task in self
            .expired(partition.buffered_tasks(), before - ONE_MILLISECOND)
            .await?
        {
            count += self.delete_buffered_before(&task, Some(before)).await?;
        }
        let client = self.connections.client();
        for window in self.expired(partition.budget_windows(), now).await? {
            let () = client.del(partition.budget_window(&window)).await?;
            let deleted: usize = client.zrem(partition.budget_windows(), window).await?;
            count += deleted;
        }
        Ok(count)
    }

    /// Extends the TTL of queues and indexes. Updates of a job do not extend it, but the entries of
    /// the job must not expire before the job.
    async fn refresh_ttls(&self, partition: Partition<'_>) -> Result<(), Error> {
        let client = self.connections.client();
        let of_jobs = [
            partition.poll_queue(),
            partition.expiry_queue(),
            partition.all_jobs(),
            partition.all_active_jobs(),
        ];
        let of_outbox = [
            partition.waiting_deliveries(),
            partition.delivered_deliveries(),
            partition.failed_deliveries(),
            partition.delivery_destinations(),
            partition.destination_states(),
        ];
        let of_jobs = of_jobs.map(|key| (key, self.shared_key_lifetime()));
        let of_outbox = of_outbox.map(|key| (key, self.outbox_lifetime()));
        for (key, lifetime) in of_jobs.into_iter().chain(of_outbox) {
            let ttl = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
            let () = client.pexpire(key, ttl, None).await?;
        }
        Ok(())
    }

    /// Returns the members of a sorted set with scores up to `last`, lowest first.
    pub(super) async fn expired(&self, key: String, last: Time) -> Result<Vec<String>, Error> {
        let (last, limit) = (scores_up_to(last), Some((0, SWEEP_BATCH)));
        let client = self.connections.client();
        Ok(client
            .zrangebyscore(key, "-inf", last, false, limit)
            .await?)
    }

    /// Deletes a job and everything that refers to it.
    async fn delete_job(
        &self,
        partition: Partition<'_>,
        id: &str,
        now: Time,
    ) -> Result<usize, Error> {
        let client = self.connections.client();
        let names = vec!["owner", "provider", "task", "idempotency"];
        let fields: Vec<Option<String>> = client.hmget(partition.job(id), names).await?;
        let field = |index: usize| fields.get(index).cloned().flatten().unwrap_or_default();
        let (owner, provider, task, idempotency) = (field(0), field(1), field(2), field(3));

        let keys = vec![
            partition.job(id),
            partition.poll_queue(),
            partition.submit_queue(&provider),
            partition.expiry_queue(),
            partition.all_jobs(),
            partition.all_active_jobs(),
            partition.deliveries(id),
            partition.waiting_deliveries(),
            partition.delivered_deliveries(),
            partition.failed_deliveries(),
            partition.owner_deliveries(&owner),
        ];
        let args = vec![
            id.into(),
            now.millis().into(),
            millis(self.retention.active).into(),
        ];
        let deleted: usize = self.connections.run(&DELETE_JOB, keys, args).await?;
        if deleted == 0 {
            return Ok(0);
        }
        if !task.is_empty() {
            self.release_key(&UniqueKey::task(&provider, &task), id)
                .await;
        }
        if !idempotency.is_empty() {
            self.release_key(&UniqueKey::Idempotency(idempotency), id)
                .await;
        }
        let owned = self.partition_for(&owner);
        for index in [owned.owner_jobs(&owner), owned.owner_active_jobs(&owner)] {
            let () = client.zrem(index, id).await?;
        }
        self.release_slot(Some(&provider), id).await?;
        Ok(deleted)
    }
}
