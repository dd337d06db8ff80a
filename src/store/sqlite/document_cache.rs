//! The newest versions of unfinished jobs, in memory.
//!
//! Only this process writes the database, so the cache is exact: the writer stores a version here
//! after its transaction is durable, before the caller receives the result. Readers never add
//! entries, so a slow read cannot replace a newer version. A job that is not cached is read from
//! the database.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::command::Change;
use crate::job::{Job, JobId};
use crate::store::Schedule;
use crate::store::job_cache::{CachedJob, JobCache};

/// Maximum number of cached jobs. The least recently used one is evicted.
const MAX_JOBS: usize = 65_536;

/// Maximum total size of the cached jobs, in bytes of their stored JSON.
const MAX_BYTES: usize = 64 << 20;

/// A bounded cache of unfinished jobs.
#[derive(Debug)]
pub(super) struct DocumentCache(Mutex<JobCache<Entry>>);

#[derive(Debug)]
struct Entry {
    job: Arc<Job>,
    schedule: Schedule,
    bytes: usize,
}

impl CachedJob for Entry {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn job(&self) -> Option<&Job> {
        Some(&self.job)
    }
}

impl Default for DocumentCache {
    fn default() -> Self {
        Self::bounded(MAX_JOBS, MAX_BYTES)
    }
}

impl DocumentCache {
    pub(super) fn bounded(max_jobs: usize, max_bytes: usize) -> Self {
        Self(Mutex::new(JobCache::bounded(max_jobs, max_bytes)))
    }

    /// Returns the current version of a job, or `None` if it is not cached.
    pub(super) fn get(&self, id: &JobId) -> Option<Arc<Job>> {
        self.lock().get(id).map(|it| Arc::clone(&it.job))
    }

    /// Returns the schedule that was stored with the current version of a job, or `None` if the job
    /// is not cached.
    pub(super) fn schedule_of(&self, id: &JobId) -> Option<Schedule> {
        self.lock().peek(id.as_str()).map(|it| it.schedule)
    }

    /// Returns the job of a provider task, or `None` if the job is not cached.
    pub(super) fn find_task(&self, provider: &str, task_id: &str) -> Option<JobId> {
        self.lock().find_task(provider, task_id)
    }

    /// Stores a durable version, or removes the job if this version is final.
    pub(super) fn store(&self, change: &Change) {
        let job = change.frame.job();
        let mut jobs = self.lock();
        if job.is_final() {
            jobs.remove(&job.id);
            return;
        }
        let entry = Entry {
            job: Arc::clone(job),
            schedule: change.schedule,
            bytes: change.bytes,
        };
        jobs.insert(job.id.clone(), entry);
    }

    /// Removes all jobs.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, JobCache<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::{NewJob, Status};
    use crate::protocol::Frame;
    use crate::time::Time;

    fn change() -> Change {
        let new = NewJob {
            owner: "ada".into(),
            provider: Some("kling".into()),
            provider_task_id: None,
            model: None,
            metadata: serde_json::Map::new(),
            request: None,
            deadline: Duration::from_secs(60),
        };
        Change {
            frame: Arc::new(Frame::new(Arc::new(Job::new(new, Time::from_millis(0))))),
            schedule: Schedule::default(),
            bytes: 10,
        }
    }

    fn next(change: &Change, edit: impl FnOnce(&mut Job)) -> Change {
        let mut job = Job::clone(change.frame.job());
        job.version += 1;
        edit(&mut job);
        Change {
            frame: Arc::new(Frame::new(Arc::new(job))),
            ..change.clone()
        }
    }

    #[test]
    fn newest_version_of_an_unfinished_job_is_cached() {
        let cache = DocumentCache::default();
        let first = change();
        assert_eq!(cache.get(&first.frame.job().id), None);
        cache.store(&first);
        let second = next(&first, |job| job.progress = Some(50.0));
        cache.store(&second);
        assert_eq!(
            cache.get(&first.frame.job().id),
            Some(Arc::clone(second.frame.job()))
        );

        cache.store(&next(&second, |job| job.status = Status::Succeeded));
        assert_eq!(cache.get(&first.frame.job().id), None);
    }
}
