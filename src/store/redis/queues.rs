//! Work queues: sorted sets of jobs by the time they are due.
//!
//! The scripts that change a job set its due times. A claim moves the due time forward in one step, so
//! that one of several nodes gets the job, and the job is due again if that node crashes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::interfaces::SortedSetsInterface;
use fred::types::Value;
use fred::types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind};
use futures_util::future::try_join_all;

use super::RedisStore;
use super::jobs::millis;
use super::keys::Partition;
use super::scripts::{CLAIM_POLLS, CLAIM_SUBMISSIONS, DUE_SUBMISSIONS, SCHEDULE_POLL, Script};
use crate::job::{Job, JobId};
use crate::store::codec::{decode_job, skip_corrupt};
use crate::store::turns::MAX_DUE_JOBS;
use crate::store::{CLAIM_LEASE, Error, Queue, WorkQueues};
use crate::time::Time;

#[async_trait]
impl WorkQueues for RedisStore {
    async fn claim(
        &self,
        queue: Queue<'_>,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Job>>, Error> {
        let _operation = self.connections.begin_operation()?;
        let ids = match queue {
            Queue::Poll => {
                let due = self.due_jobs(queue, scores_up_to(now), limit).await?;
                due.into_iter().map(|(id, _)| id).take(limit).collect()
            }
            Queue::Submit {
                provider,
                max_concurrent,
            } => {
                let due = self.due_submissions(provider, now).await?;
                let ids = self.turns.order(provider, due, limit);
                self.acquire_slots(provider, max_concurrent, &ids, now)
                    .await?
            }
        };
        let groups = self.connections.keys.group(ids.iter().map(String::as_str));
        let claims = groups.into_iter().map(|(number, ids)| {
            let partition = self.connections.keys.partition(number);
            self.claim_in(partition, queue, now, ids)
        });
        let mut claimed = try_join_all(claims).await?.concat();
        // Restore the order across partitions.
        claimed.sort_by_key(|job| ids.iter().position(|id| id == job.id.as_str()));
        if let Queue::Submit { provider, .. } = queue {
            for job in &claimed {
                self.turns.record(provider, &job.owner);
            }
            let is_claimed = |id: &str| claimed.iter().any(|job| job.id.as_str() == id);
            for id in ids.iter().filter(|id| !is_claimed(id)) {
                self.release_slot(Some(provider), id).await?;
            }
        }
        Ok(claimed)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "scores are whole milliseconds below 2^53"
    )]
    async fn next_due(&self, queue: Queue<'_>) -> Result<Option<Time>, Error> {
        let _operation = self.connections.begin_operation()?;
        let due = self.due_jobs(queue, ZRange::from("+inf"), 1).await?;
        let next = due.first();
        Ok(next.map(|(_, due_at)| Time::from_millis(*due_at as i64)))
    }

    async fn schedule_poll(&self, id: &JobId, at: Time, cool_down: Duration) -> Result<(), Error> {
        let _operation = self.connections.begin_operation()?;
        let partition = self.partition_for(id.as_str());
        let keys = vec![partition.job(id), partition.poll_queue()];
        let args = vec![
            id.as_str().into(),
            at.millis().into(),
            millis(cool_down).into(),
            self.shared_key_ttl().into(),
        ];
        self.connections.run(&SCHEDULE_POLL, keys, args).await
    }
}

impl RedisStore {
    /// Claims jobs of one partition. A corrupt job is claimed but not returned, so that it does not
    /// block the queue.
    async fn claim_in(
        &self,
        partition: Partition<'_>,
        queue: Queue<'_>,
        now: Time,
        ids: Vec<&str>,
    ) -> Result<Vec<Arc<Job>>, Error> {
        let mut keys = vec![queue_key(partition, queue)];
        let mut args: Vec<Value> = vec![now.millis().into()];
        let script: &Script = match queue {
            Queue::Poll => &CLAIM_POLLS,
            Queue::Submit { .. } => {
                args.push((now + CLAIM_LEASE).millis().into());
                &CLAIM_SUBMISSIONS
            }
        };
        for id in ids {
            keys.push(partition.job(id));
            args.push(id.into());
        }
        let claimed: Vec<String> = self.connections.run(script, keys, args).await?;
        let jobs = claimed.as_chunks::<2>().0.iter();
        jobs.filter_map(|[document, internal]| {
            skip_corrupt(decode_job(document, internal), "claimed job").transpose()
        })
        .collect()
    }

    /// Returns the jobs of a provider that are due for submission, each with its owner, earliest
    /// first.
    async fn due_submissions(
        &self,
        provider: &str,
        now: Time,
    ) -> Result<Vec<(String, String)>, Error> {
        let reads = self.connections.keys.partitions().map(|partition| {
            let keys = vec![partition.submit_queue(provider)];
            let limit = i64::try_from(MAX_DUE_JOBS).unwrap_or(i64::MAX);
            let args = vec![now.millis().into(), limit.into(), partition.job("").into()];
            self.connections
                .run::<Vec<String>>(&DUE_SUBMISSIONS, keys, args)
        });
        let due = try_join_all(reads).await?.concat();
        let mut due: Vec<&[String; 3]> = due.as_chunks::<3>().0.iter().collect();
        due.sort_by_cached_key(|[id, due_at, _]| (due_at.parse::<i64>().unwrap_or(0), id.clone()));
        let due = due.into_iter().take(MAX_DUE_JOBS);
        Ok(due
            .map(|[id, _, owner]| (id.clone(), owner.clone()))
            .collect())
    }

    /// Returns jobs and their due times up to `last`, earliest first, at most `limit` of each
    /// partition.
    async fn due_jobs(
        &self,
        queue: Queue<'_>,
        last: ZRange,
        limit: usize,
    ) -> Result<Vec<(String, f64)>, Error> {
        let limit = Some((0, i64::try_from(limit).unwrap_or(i64::MAX)));
        let reads = self.connections.keys.partitions().map(|partition| {
            let (key, last) = (queue_key(partition, queue), last.clone());
            async move {
                let client = self.connections.client();
                let due: Vec<(String, f64)> =
                    client.zrangebyscore(key, "-inf", last, true, limit).await?;
                Ok::<_, Error>(due)
            }
        });
        let mut due = try_join_all(reads).await?.concat();
        due.sort_by(|(a_id, a), (b_id, b)| a.total_cmp(b).then_with(|| a_id.cmp(b_id)));
        Ok(due)
    }
}

/// Returns the end of a range of scores, inclusive.
#[expect(clippy::cast_precision_loss, reason = "milliseconds are below 2^53")]
pub(super) fn scores_up_to(time: Time) -> ZRange {
    ZRange {
        kind: ZRangeKind::Inclusive,
        range: ZRangeBound::Score(time.millis() as f64),
    }
}

fn queue_key(partition: Partition<'_>, queue: Queue<'_>) -> String {
    match queue {
        Queue::Poll => partition.poll_queue(),
        Queue::Submit { provider, .. } => partition.submit_queue(provider),
    }
}
