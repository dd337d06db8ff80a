//! Recent versions of unfinished jobs, kept in memory so that a commit needs no read before it.
//!
//! A version in memory may no longer be the stored one. It is used only as the basis of a commit, which
//! requires its revision. If another revision is stored, the commit fails and returns the stored
//! version, which replaces the one in memory. Correctness therefore does not depend on whether
//! messages of other nodes arrive, jobs are deleted, or a failover loses writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::job::{Job, JobId};
use crate::store::codec::EncodedJob;
use crate::store::job_cache::{CachedJob, JobCache};
use crate::store::{RecentJob, Revision, Schedule};

/// Maximum number of jobs in memory. The least recently used ones are dropped.
const MAX_JOBS: usize = 50_000;

/// Maximum total size of the jobs in memory, in bytes of JSON.
const MAX_BYTES: usize = 64 << 20;

/// A bounded cache of the versions that this node knows to have been stored.
pub(super) struct RecentJobs {
    /// Upper half of every revision that this node assigns. It is random, so that two nodes do not
    /// assign the same revision.
    node: u64,
    /// Number of revisions that this node has assigned.
    sent: AtomicU64,
    jobs: Mutex<JobCache<Entry>>,
}

#[derive(Default)]
struct Entry {
    /// The newest version that this node knows to have been stored.
    stored: Option<Known>,
    /// The version that this node sent last, until the outcome is known.
    sent: Option<Known>,
}

struct Known {
    recent: RecentJob,
    /// The schedule that was stored with the version, if this node has stored it.
    schedule: Option<Schedule>,
    bytes: usize,
}

impl CachedJob for Entry {
    fn bytes(&self) -> usize {
        let known = self.stored.iter().chain(&self.sent);
        known.map(|known| known.bytes).sum()
    }

    fn job(&self) -> Option<&Job> {
        self.stored.as_ref().map(|known| &*known.recent.job)
    }
}

impl Default for RecentJobs {
    fn default() -> Self {
        Self::new(MAX_JOBS, MAX_BYTES)
    }
}

impl RecentJobs {
    fn new(max_jobs: usize, max_bytes: usize) -> Self {
        Self {
            node: rand::random(),
            sent: AtomicU64::new(0),
            jobs: Mutex::new(JobCache::bounded(max_jobs, max_bytes)),
        }
    }

    /// Returns the newest version that this node knows to have been stored.
    pub(super) fn get(&self, id: &JobId) -> Option<RecentJob> {
        let mut jobs = self.jobs();
        let stored = jobs.get(id)?.stored.as_ref()?;
        Some(stored.recent.clone())
    }

    /// Returns the job that a provider task belonged to when this node last knew. The job may have been
    /// deleted since then.
    pub(super) fn find_task(&self, provider: &str, task_id: &str) -> Option<JobId> {
        self.jobs().find_task(provider, task_id)
    }

    /// Returns the version with this revision and its schedule, if this node has stored it.
    pub(super) fn stored_by_this_node(
        &self,
        id: &JobId,
        revision: Revision,
    ) -> Option<(Arc<Job>, Schedule)> {
        let jobs = self.jobs();
        let known = jobs.peek(id.as_str())?.stored.as_ref()?;
        let job = (known.recent.revision == revision).then(|| Arc::clone(&known.recent.job));
        job.zip(known.schedule)
    }

    /// Assigns a revision to a write, before the write is sent.
    ///
    /// The pub/sub message about the write may arrive before the reply, so the job is kept for
    /// [`RecentJobs::sent_by_this_node`].
    pub(super) fn begin(&self, job: &Arc<Job>, encoded: &EncodedJob) -> Revision {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let revision = Revision(u128::from(self.node) << 64 | u128::from(number));
        if !job.is_final() {
            let sent = Known {
                recent: RecentJob {
                    job: Arc::clone(job),
                    revision,
                },
                schedule: Some(encoded.schedule),
                bytes: encoded.size(),
            };
            change(&mut self.jobs(), &job.id, |entry| entry.sent = Some(sent));
        }
        revision
    }

    /// Records that a write is stored.
    pub(super) fn confirm(&self, job: &Job, revision: Revision) {
        let mut jobs = self.jobs();
        if job.is_final() {
            jobs.remove(&job.id);
            return;
        }
        change(&mut jobs, &job.id, |entry| {
            let is_same = |sent: &mut Known| sent.recent.revision == revision;
            if let Some(sent) = entry.sent.take_if(is_same) {
                entry.stored = Some(sent);
            }
        });
    }

    /// Replaces the version in memory after a commit returned a conflict.
    ///
    /// `tried` is the revision that the commit required, if any. `current` is the stored version
    /// with its size in bytes. After a failover, it may be older than the version in memory.
    pub(super) fn correct(
        &self,
        id: &JobId,
        tried: Option<Revision>,
        current: Option<(RecentJob, usize)>,
    ) {
        let current = current.map(|(recent, bytes)| Known {
            recent,
            schedule: None,
            bytes,
        });
        change(&mut self.jobs(), id, |entry| {
            let is_wrong = match (&entry.stored, tried) {
                (None, _) => true,
                (Some(known), Some(tried)) => known.recent.revision == tried,
                (Some(known), None) => current
                    .as_ref()
                    .is_none_or(|it| it.recent.job.version > known.recent.job.version),
            };
            if is_wrong {
                entry.stored = current.filter(|it| !it.recent.job.is_final());
            }
        });
    }

    /// Forgets a job that does not exist.
    pub(super) fn forget(&self, id: &JobId) {
        self.jobs().remove(id);
    }

    /// Returns the job that this node sent as this revision, if it is still in memory.
    pub(super) fn sent_by_this_node(&self, id: &str, revision: Revision) -> Option<Arc<Job>> {
        if !self.is_own(revision) {
            return None;
        }
        let jobs = self.jobs();
        let entry = jobs.peek(id)?;
        let known = entry.stored.iter().chain(&entry.sent);
        let mut sent = known.filter(|known| known.recent.revision == revision);
        sent.next().map(|known| Arc::clone(&known.recent.job))
    }

    /// Drops the version in memory if another node has published a write of the same or a later
    /// version.
    pub(super) fn observe(&self, job: &Job, revision: Revision) {
        if self.is_own(revision) {
            return;
        }
        change(&mut self.jobs(), &job.id, |entry| {
            entry.stored.take_if(|known| {
                known.recent.job.version <= job.version && known.recent.revision != revision
            });
        });
    }

    fn is_own(&self, revision: Revision) -> bool {
        revision.0 >> 64 == u128::from(self.node)
    }

    fn jobs(&self) -> MutexGuard<'_, JobCache<Entry>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes the entry of a job. An empty entry is not kept.
fn change(jobs: &mut JobCache<Entry>, id: &JobId, change: impl FnOnce(&mut Entry)) {
    let mut entry = jobs.remove(id).unwrap_or_default();
    change(&mut entry);
    if entry.stored.is_some() || entry.sent.is_some() {
        jobs.insert(id.clone(), entry);
    }
}

#[cfg(test)]
mod tests;
