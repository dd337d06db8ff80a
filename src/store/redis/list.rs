//! Lists of jobs, newest first.
//!
//! An index contains every job that it should, and may contain others. Each job is checked when it is
//! listed.

use std::sync::Arc;

use fred::interfaces::SortedSetsInterface;
use futures_util::future::try_join_all;

use super::RedisStore;
use super::scripts::INDEX_JOB;
use crate::job::{Job, JobId};
use crate::store::codec::ListGroup;
use crate::store::{Error, ListQuery};

/// Jobs that are read at once.
const LIST_BATCH: usize = 128;

impl ListGroup {
    fn contains(self, job: &Job) -> bool {
        match self {
            Self::Active => !job.is_final(),
            Self::Finished => job.is_final(),
            Self::All => true,
        }
    }
}

impl RedisStore {
    /// Adds a job that is about to be created to the indexes of its owner.
    pub(super) async fn index_job(&self, job: &Job) -> Result<(), Error> {
        let partition = self.partition_for(&job.owner);
        let mut indexes = vec![partition.owner_jobs(&job.owner)];
        if !job.is_final() {
            indexes.push(partition.owner_active_jobs(&job.owner));
        }
        // With equal scores, the order is that of the ids, which sort by time of creation.
        let args = vec![
            job.id.as_str().into(),
            0.into(),
            self.shared_key_ttl().into(),
        ];
        self.connections.run(&INDEX_JOB, indexes, args).await
    }

    /// Removes a finished job from the active jobs of its owner.
    pub(super) async fn remove_from_active_index(&self, job: &Job) -> Result<(), Error> {
        if !job.is_final() {
            return Ok(());
        }
        let partition = self.partition_for(&job.owner);
        let index = partition.owner_active_jobs(&job.owner);
        let client = self.connections.client();
        Ok(client.zrem(index, job.id.as_str()).await?)
    }

    pub(super) async fn list_jobs(&self, query: &ListQuery) -> Result<Vec<Arc<Job>>, Error> {
        let mut jobs = Vec::new();
        for group in query.groups() {
            self.scan(query, *group, &mut jobs).await?;
        }
        Ok(jobs)
    }

    async fn scan(
        &self,
        query: &ListQuery,
        group: ListGroup,
        jobs: &mut Vec<Arc<Job>>,
    ) -> Result<(), Error> {
        let mut cursor = query.before.clone();
        while jobs.len() < query.limit {
            let ids = self
                .indexed_ids(query.owner.as_deref(), group, cursor.as_ref())
                .await?;
            let Some(last) = ids.last() else { break };
            cursor = Some(last.clone());
            let mut batch = self.read_many(&ids).await?;
            batch.sort_unstable_by(|a, b| b.id.cmp(&a.id));
            batch.retain(|job| {
                group.contains(job) && query.status.is_none_or(|status| job.status == status)
            });
            batch.truncate(query.limit - jobs.len());
            jobs.append(&mut batch);
        }
        Ok(())
    }

    /// Returns the next ids of an index, newest first. The index of an owner is in one partition.
    async fn indexed_ids(
        &self,
        owner: Option<&str>,
        group: ListGroup,
        cursor: Option<&JobId>,
    ) -> Result<Vec<JobId>, Error> {
        let keys = &self.connections.keys;
        let partitions: Vec<_> = match owner {
            Some(owner) => vec![keys.partition_for(owner)],
            None => keys.partitions().collect(),
        };
        let start = cursor.map_or("+".to_owned(), |id| format!("({id}"));
        let limit = Some((0, i64::try_from(LIST_BATCH).unwrap_or(i64::MAX)));
        let reads = partitions.into_iter().map(async |partition| {
            let index = match (owner, group) {
                (Some(owner), ListGroup::Active) => partition.owner_active_jobs(owner),
                (Some(owner), _) => partition.owner_jobs(owner),
                (None, ListGroup::Active) => partition.all_active_jobs(),
                (None, _) => partition.all_jobs(),
            };
            let client = self.connections.client();
            let ids: Vec<String> = client
                .zrevrangebylex(index, start.as_str(), "-", limit)
                .await?;
            Ok::<_, Error>(ids)
        });
        let mut ids = try_join_all(reads).await?.concat();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.truncate(LIST_BATCH);
        Ok(ids.iter().filter_map(|id| JobId::parse(id).ok()).collect())
    }
}
