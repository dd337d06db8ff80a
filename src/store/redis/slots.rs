//! Concurrency slots: how many jobs a provider has at a time, counted across all nodes.
//!
//! A job is counted before it can be submitted. Each entry is valid until its expiry. After that, the
//! job is checked before the slot is extended or released. A slot that a crashed node leaked is thus
//! reclaimed, and an occupied slot is never assigned again.

use std::time::Duration;

use fred::interfaces::{HashesInterface, SortedSetsInterface};
use fred::types::Value;

use super::RedisStore;
use super::scripts::{ACQUIRE_SLOTS, INDEX_JOB, REFRESH_SLOT};
use crate::job::Job;
use crate::store::{CLAIM_LEASE, Error};
use crate::time::Time;

/// How long an entry of a submitted job is valid without verification.
const SLOT_TTL: Duration = Duration::from_secs(60);

/// Rounds of verification before the jobs wait for the next claim.
const MAX_RECLAIM_ROUNDS: usize = 4;

impl RedisStore {
    fn slots_key(&self, provider: &str) -> String {
        self.partition_for(provider).slots(provider)
    }

    /// Acquires a slot for each job while slots are free. Returns the ids of those that got one.
    pub(super) async fn acquire_slots(
        &self,
        provider: &str,
        max_concurrent: usize,
        ids: &[String],
        now: Time,
    ) -> Result<Vec<String>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        for _ in 0..MAX_RECLAIM_ROUNDS {
            let mut args: Vec<Value> = vec![
                now.millis().into(),
                (now + CLAIM_LEASE).millis().into(),
                i64::try_from(max_concurrent).unwrap_or(i64::MAX).into(),
                self.shared_key_ttl().into(),
            ];
            args.extend(ids.iter().map(|id| Value::from(id.as_str())));
            let keys = vec![self.slots_key(provider)];
            let reply: Vec<String> = self.connections.run(&ACQUIRE_SLOTS, keys, args).await?;
            match reply.split_first() {
                Some((outcome, expired)) if outcome == "verify" => {
                    for [id, score] in expired.as_chunks::<2>().0 {
                        self.verify_slot(provider, id, score, now).await?;
                    }
                }
                Some((_, granted)) => return Ok(granted.to_vec()),
                None => break,
            }
        }
        Ok(Vec::new())
    }

    /// Checks the job of an expired entry, and extends or releases its slot.
    async fn verify_slot(
        &self,
        provider: &str,
        id: &str,
        score: &str,
        now: Time,
    ) -> Result<(), Error> {
        let partition = self.partition_for(id);
        let client = self.connections.client();
        let fields: Vec<Option<String>> = client
            .hmget(partition.job(id), vec!["slot", "submit_at"])
            .await?;
        let due_at: Option<f64> = client.zscore(partition.submit_queue(provider), id).await?;
        let due_at = due_at.map(|due_at| format!("{due_at:.0}"));
        let is_lease = |due_at: &String, submit_at: &String| {
            due_at != submit_at && due_at.parse().is_ok_and(|due: i64| due > now.millis())
        };
        let expires_at = match (fields.as_slice(), due_at) {
            ([Some(slot), _], _) if slot == "1" => (now + SLOT_TTL).millis().to_string(),
            ([_, Some(submit_at)], Some(due_at)) if is_lease(&due_at, submit_at) => due_at,
            _ => String::new(),
        };
        let args = vec![id.into(), score.into(), expires_at.into()];
        let keys = vec![self.slots_key(provider)];
        self.connections.run(&REFRESH_SLOT, keys, args).await
    }

    /// Counts a job that was submitted without a claim.
    pub(super) async fn record_slot(&self, job: &Job) -> Result<(), Error> {
        let Some(provider) = &job.provider else {
            return Ok(());
        };
        let args = vec![
            job.id.as_str().into(),
            (job.updated_at + SLOT_TTL).millis().into(),
            self.shared_key_ttl().into(),
        ];
        let keys = vec![self.slots_key(provider)];
        self.connections.run(&INDEX_JOB, keys, args).await
    }

    /// Releases the slot of a job, if it holds one.
    pub(super) async fn release_slot(&self, provider: Option<&str>, id: &str) -> Result<(), Error> {
        let Some(provider) = provider else {
            return Ok(());
        };
        let key = self.slots_key(provider);
        Ok(self.connections.client().zrem(key, id).await?)
    }
}
