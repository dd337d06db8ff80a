//! Lists of jobs, newest first.
//!
//! Invariant: a list holds every job it should, and maybe some it should not any more; each job is
//! looked at before it is shown.

use std::sync::Arc;

use fred::interfaces::SortedSetsInterface;
use futures_util::future::try_join_all;

use super::RedisStore;
use super::connection::to_store_error;
use super::scripts::INDEX_JOB;
use crate::job::{Job, JobId};
use crate::store::{Error, ListQuery};

/// Jobs that are looked at in one go.
const LIST_BATCH: usize = 128;

/// Which jobs a pass through a list shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ListScope {
    Unfinished,
    Finished,
    All,
}

impl RedisStore {
    /// Enters a job that is about to be created into its owner's lists.
    pub(super) async fn index_job(&self, job: &Job) -> Result<(), Error> {
        let part = self.link.keys.partition_for(&job.owner);
        let mut lists = vec![part.jobs(Some(&job.owner))];
        if !job.is_final() {
            lists.push(part.active_jobs(Some(&job.owner)));
        }
        let args = vec![
            job.id.as_str().into(),
            0.into(),
            self.shared_key_ttl().into(),
        ];
        let _: i64 = self
            .link
            .run_script_replicated(&INDEX_JOB, lists, args)
            .await?;
        Ok(())
    }

    /// Takes an ended job from among its owner's unfinished ones.
    pub(super) async fn remove_from_active_index(&self, job: &Job) -> Result<(), Error> {
        if !job.is_final() {
            return Ok(());
        }
        let key = self
            .link
            .keys
            .partition_for(&job.owner)
            .active_jobs(Some(&job.owner));
        let closed: Result<(), _> = self.link.client().zrem(key, job.id.as_str()).await;
        closed.map_err(|error| to_store_error(&error))
    }

    pub(super) async fn list_jobs(&self, listing: &ListQuery) -> Result<Vec<Arc<Job>>, Error> {
        let passes: &[ListScope] = match listing.status {
            Some(status) if status.is_final() => &[ListScope::Finished],
            Some(_) => &[ListScope::Unfinished],
            None if listing.active_first => &[ListScope::Unfinished, ListScope::Finished],
            None => &[ListScope::All],
        };
        let mut jobs = Vec::new();
        for pass in passes {
            self.scan(listing, *pass, &mut jobs).await?;
        }
        Ok(jobs)
    }

    async fn scan(
        &self,
        listing: &ListQuery,
        pass: ListScope,
        jobs: &mut Vec<Arc<Job>>,
    ) -> Result<(), Error> {
        let mut before = listing.before.clone();
        while jobs.len() < listing.limit {
            let ids = self
                .ids(listing.owner.as_deref(), pass, before.as_ref())
                .await?;
            let Some(last) = ids.last() else { break };
            before = Some(last.clone());
            let mut read = self.read_many(&ids).await?;
            read.sort_unstable_by(|a, b| b.id.cmp(&a.id));
            read.retain(|job| {
                listing.status.is_none_or(|status| job.status == status)
                    && match pass {
                        ListScope::Unfinished => !job.is_final(),
                        ListScope::Finished => job.is_final(),
                        ListScope::All => true,
                    }
            });
            let room = listing.limit - jobs.len();
            jobs.extend(read.into_iter().take(room));
        }
        Ok(())
    }

    /// The next ids of a list, newest first: an owner's is in one place, everybody's in all.
    async fn ids(
        &self,
        owner: Option<&str>,
        pass: ListScope,
        before: Option<&JobId>,
    ) -> Result<Vec<JobId>, Error> {
        let parts: Vec<_> = match owner {
            Some(owner) => vec![self.link.keys.partition_for(owner)],
            None => self.link.keys.partitions().collect(),
        };
        let below = before.map_or("+".to_owned(), |id| format!("({id}"));
        let most = i64::try_from(LIST_BATCH).unwrap_or(i64::MAX);
        let reads = parts.into_iter().map(|part| {
            let key = match pass {
                ListScope::Unfinished => part.active_jobs(owner),
                ListScope::Finished | ListScope::All => part.jobs(owner),
            };
            let below = below.clone();
            async move {
                let client = self.link.client();
                let ids: Result<Vec<String>, _> = client
                    .zrevrangebylex(key, below, "-", Some((0, most)))
                    .await;
                ids.map_err(|error| to_store_error(&error))
            }
        });
        let mut ids = try_join_all(reads).await?.concat();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.truncate(LIST_BATCH);
        Ok(ids.iter().filter_map(|id| JobId::parse(id).ok()).collect())
    }
}
