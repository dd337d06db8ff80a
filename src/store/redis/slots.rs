//! A provider's places: how many jobs it has, counted for the whole fleet.
//!
//! Invariant: a job is counted before it can be sent. An entry is believed until its moment, and
//! then its job is looked at: so a place that a dead node left behind comes free by itself, and one
//! that is taken is never given away.

use std::time::Duration;

use fred::interfaces::{HashesInterface, SortedSetsInterface};
use fred::types::Value;

use super::RedisStore;
use super::connection::to_store_error;
use super::scripts::{ACQUIRE_SLOTS, INDEX_JOB, REFRESH_SLOT};
use crate::job::Job;
use crate::store::{CLAIM_LEASE, Error};
use crate::time::Time;

/// How long it is believed that a job at its provider is still there.
const SLOT_TTL: Duration = Duration::from_secs(60);

/// How often places are looked through before those who want one wait for the next time.
const MAX_RECLAIM_ROUNDS: usize = 4;

impl RedisStore {
    /// Takes a place for each of these jobs, as far as there are any; says who got one.
    pub(super) async fn acquire_slots(
        &self,
        provider: &str,
        places: usize,
        ids: &[String],
        now: Time,
    ) -> Result<Vec<String>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let key = self.link.keys.partition_for(provider).slots(provider);
        let until = (now + CLAIM_LEASE).millis();
        for _ in 0..MAX_RECLAIM_ROUNDS {
            let mut args: Vec<Value> = vec![
                now.millis().into(),
                until.into(),
                i64::try_from(places).unwrap_or(i64::MAX).into(),
                self.shared_key_ttl().into(),
            ];
            args.extend(ids.iter().map(|id| Value::from(id.as_str())));
            let answer: Vec<String> = self
                .link
                .run_script(&ACQUIRE_SLOTS, vec![key.clone()], args)
                .await?;
            match answer.split_first() {
                Some((word, doubtful)) if word == "look" => {
                    for [id, score] in doubtful.as_chunks::<2>().0 {
                        self.verify_slot(provider, id, score, now).await?;
                    }
                }
                Some((_, given)) => return Ok(given.to_vec()),
                None => break,
            }
        }
        Ok(Vec::new())
    }

    /// Whether a job that is believed no more still takes its place.
    async fn verify_slot(
        &self,
        provider: &str,
        id: &str,
        score: &str,
        now: Time,
    ) -> Result<(), Error> {
        let part = self.link.keys.partition_for(id);
        let client = self.link.client();
        let job: Result<Vec<Option<String>>, _> =
            client.hmget(part.job(id), vec!["place", "submit"]).await;
        let due: Result<Option<f64>, _> = client.zscore(part.submit(provider), id).await;
        let (job, due) = (
            job.map_err(|error| to_store_error(&error))?,
            due.map_err(|error| to_store_error(&error))?,
        );
        let due = due.map(|due| format!("{due:.0}"));
        let until = match job.as_slice() {
            [Some(place), _] if place == "1" => (now + SLOT_TTL).millis().to_string(),
            // Claimed, and not yet sent.
            [_, Some(submit)] => match due {
                Some(due)
                    if due != *submit && due.parse().is_ok_and(|due: i64| due > now.millis()) =>
                {
                    due
                }
                _ => String::new(),
            },
            _ => String::new(),
        };
        self.refresh_slot(provider, id, score, &until).await
    }

    async fn refresh_slot(
        &self,
        provider: &str,
        id: &str,
        was: &str,
        is: &str,
    ) -> Result<(), Error> {
        let key = self.link.keys.partition_for(provider).slots(provider);
        let args = vec![id.into(), was.into(), is.into()];
        let _: i64 = self.link.run_script(&REFRESH_SLOT, vec![key], args).await?;
        Ok(())
    }

    /// Counts a job that comes to be at its provider without having been claimed.
    pub(super) async fn record_slot(&self, job: &Job) -> Result<(), Error> {
        let Some(provider) = &job.provider else {
            return Ok(());
        };
        let key = self.link.keys.partition_for(provider).slots(provider);
        let until = (job.updated_at + SLOT_TTL).millis();
        let args = vec![
            job.id.as_str().into(),
            until.into(),
            self.shared_key_ttl().into(),
        ];
        let _: i64 = self.link.run_script(&INDEX_JOB, vec![key], args).await?;
        Ok(())
    }

    /// Gives back the place of a job that is not at its provider any more.
    pub(super) async fn release_slot(&self, job: &Job) -> Result<(), Error> {
        let Some(provider) = &job.provider else {
            return Ok(());
        };
        self.release_slot_by_id(provider, job.id.as_str()).await
    }

    pub(super) async fn release_slot_by_id(&self, provider: &str, id: &str) -> Result<(), Error> {
        let key = self.link.keys.partition_for(provider).slots(provider);
        let freed: Result<(), _> = self.link.client().zrem(key, id).await;
        freed.map_err(|error| to_store_error(&error))
    }
}
