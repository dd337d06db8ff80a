//! The two queues: what is due, and who has claimed it.
//!
//! Invariant: a job's moment in a queue is set by the script that changes the job, and a claim moves
//! it on in one step, so that of many nodes one gets the job, and a claim ends by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fred::interfaces::SortedSetsInterface;
use fred::types::Value;
use fred::types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind};
use futures_util::future::try_join_all;

use super::RedisStore;
use super::connection::{Script, to_store_error};
use super::jobs::{job_from, millis};
use super::keys::Partition;
use super::scripts::{CLAIM_POLLS, CLAIM_SUBMISSIONS, SCHEDULE_POLL};
use crate::job::{Job, JobId};
use crate::store::{CLAIM_LEASE, Error, Queue};
use crate::time::Time;

/// A job in a queue.
struct Due {
    at: f64,
    id: String,
}

impl RedisStore {
    /// An unreadable job is claimed like the others and left out, so that it does not stop its queue.
    pub(super) async fn claim_due(
        &self,
        queue: Queue<'_>,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Job>>, Error> {
        let mut due = self.due_jobs(queue, Some(now), limit).await?;
        due.truncate(limit);
        let mut ids: Vec<String> = due.into_iter().map(|due| due.id).collect();
        if let Queue::Submit {
            provider,
            max_concurrent: places,
        } = queue
        {
            ids = self.acquire_slots(provider, places, &ids, now).await?;
        }
        let mut claims: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for id in &ids {
            claims
                .entry(self.link.keys.partition_for(id).number)
                .or_default()
                .push(id);
        }
        let claims = claims
            .into_iter()
            .map(|(number, ids)| self.claim_in(self.link.keys.partition(number), queue, now, ids));
        let mut claimed = try_join_all(claims).await?.concat();
        // As they were due, across all partitions.
        claimed.sort_by_key(|job| ids.iter().position(|id| id == job.id.as_str()));
        if let Queue::Submit { provider, .. } = queue {
            let missed = ids
                .iter()
                .filter(|id| !claimed.iter().any(|job| job.id.as_str() == **id));
            for id in missed {
                self.release_slot_by_id(provider, id).await?;
            }
        }
        Ok(claimed)
    }

    async fn claim_in(
        &self,
        part: Partition<'_>,
        queue: Queue<'_>,
        now: Time,
        ids: Vec<&str>,
    ) -> Result<Vec<Arc<Job>>, Error> {
        let mut args: Vec<Value> = vec![now.millis().into()];
        let script: &Script = match queue {
            Queue::Poll => &CLAIM_POLLS,
            Queue::Submit { .. } => {
                args.push((now + CLAIM_LEASE).millis().into());
                &CLAIM_SUBMISSIONS
            }
        };
        let mut keys = vec![queue_key(part, queue)];
        for id in ids {
            keys.push(part.job(id));
            args.push(id.into());
        }
        let claimed: Vec<String> = self.link.run_script(script, keys, args).await?;
        let pairs = claimed.as_chunks::<2>().0.iter();
        let readable = |[doc, ticket]: &[String; 2]| {
            let job = job_from(doc, ticket);
            job.inspect_err(|error| tracing::error!(%error, "can't take up a job"))
                .ok()
        };
        Ok(pairs.filter_map(readable).collect())
    }

    /// The jobs of a queue that are due first, those up to `last` only; `limit` of each partition.
    async fn due_jobs(
        &self,
        queue: Queue<'_>,
        last: Option<Time>,
        limit: usize,
    ) -> Result<Vec<Due>, Error> {
        let last = last.map_or_else(|| ZRange::from("+inf"), until);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let reads = self.link.keys.partitions().map(|part| {
            let (key, last) = (queue_key(part, queue), last.clone());
            async move {
                let client = self.link.client();
                let due: Result<Vec<(String, f64)>, _> = client
                    .zrangebyscore(key, "-inf", last, true, Some((0, limit)))
                    .await;
                due.map_err(|error| to_store_error(&error))
            }
        });
        let found = try_join_all(reads).await?;
        let due = found.into_iter().flatten().map(|(id, at)| Due { at, id });
        let mut due: Vec<Due> = due.collect();
        due.sort_by(|a, b| a.at.total_cmp(&b.at).then_with(|| a.id.cmp(&b.id)));
        Ok(due)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole milliseconds, which a score holds exactly"
    )]
    pub(super) async fn next_due_at(&self, queue: Queue<'_>) -> Result<Option<Time>, Error> {
        let due = self.due_jobs(queue, None, 1).await?;
        Ok(due.first().map(|due| Time::from_millis(due.at as i64)))
    }

    pub(super) async fn schedule_poll(
        &self,
        id: &JobId,
        at: Time,
        cool_down: Duration,
    ) -> Result<(), Error> {
        let part = self.link.keys.partition_for(id.as_str());
        let args = vec![
            id.as_str().into(),
            at.millis().into(),
            millis(cool_down).into(),
            self.shared_key_ttl().into(),
        ];
        let _: i64 = self
            .link
            .run_script_replicated(&SCHEDULE_POLL, vec![part.job(id), part.poll_queue()], args)
            .await?;
        Ok(())
    }
}

/// Up to a moment, with it.
#[expect(clippy::cast_precision_loss, reason = "exact for any moment there is")]
pub(super) fn until(at: Time) -> ZRange {
    ZRange {
        kind: ZRangeKind::Inclusive,
        range: ZRangeBound::Score(at.millis() as f64),
    }
}

fn queue_key(part: Partition<'_>, queue: Queue<'_>) -> String {
    match queue {
        Queue::Poll => part.poll_queue(),
        Queue::Submit { provider, .. } => part.submit(provider),
    }
}
