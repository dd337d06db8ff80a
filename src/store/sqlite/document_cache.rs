//! The newest versions of unfinished jobs, in memory.
//!
//! Only this process writes the database, so the cache is exact: the writer stores a version here
//! after its transaction is durable, before the caller receives the result. Readers never add
//! entries, so a slow read cannot replace a newer version. A job that is not cached is read from
//! the database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashlink::LruCache;

use super::command::Change;
use crate::job::{Job, JobId};
use crate::store::Schedule;
use crate::store::codec::task_of;

/// Maximum number of cached jobs. The least recently used one is evicted.
const MAX_JOBS: usize = 65_536;

/// Maximum total size of the cached jobs, in bytes of their stored JSON.
const MAX_BYTES: usize = 64 << 20;

/// A bounded cache of unfinished jobs.
#[derive(Debug)]
pub(super) struct DocumentCache(Mutex<State>);

#[derive(Debug)]
struct State {
    jobs: LruCache<JobId, Entry>,
    /// The cached jobs by provider and task id.
    by_task: HashMap<(String, String), JobId>,
    bytes: usize,
    max_jobs: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    job: Arc<Job>,
    schedule: Schedule,
    bytes: usize,
}

impl Default for DocumentCache {
    fn default() -> Self {
        Self::bounded(MAX_JOBS, MAX_BYTES)
    }
}

impl DocumentCache {
    pub(super) fn bounded(max_jobs: usize, max_bytes: usize) -> Self {
        Self(Mutex::new(State {
            jobs: LruCache::new_unbounded(),
            by_task: HashMap::new(),
            bytes: 0,
            max_jobs,
            max_bytes,
        }))
    }

    /// Returns the current version of a job, or `None` if it is not cached.
    pub(super) fn get(&self, id: &JobId) -> Option<Arc<Job>> {
        self.lock().jobs.get(id).map(|it| Arc::clone(&it.job))
    }

    /// Returns the schedule that was stored with the current version of a job, or `None` if the job
    /// is not cached.
    pub(super) fn schedule_of(&self, id: &JobId) -> Option<Schedule> {
        self.lock().jobs.peek(id).map(|it| it.schedule)
    }

    /// Returns the job of a provider task, or `None` if the job is not cached.
    pub(super) fn find_task(&self, provider: &str, task_id: &str) -> Option<JobId> {
        let task = (provider.to_owned(), task_id.to_owned());
        self.lock().by_task.get(&task).cloned()
    }

    /// Stores a durable version, or removes the job if this version is final.
    pub(super) fn store(&self, change: &Change) {
        let job = change.frame.job();
        let mut state = self.lock();
        state.remove(&job.id);
        if job.is_final() {
            return;
        }
        if let Some((provider, task_id)) = task_of(job) {
            let task = (provider.to_owned(), task_id.to_owned());
            state.by_task.insert(task, job.id.clone());
        }
        state.bytes += change.bytes;
        let entry = Entry {
            job: Arc::clone(job),
            schedule: change.schedule,
            bytes: change.bytes,
        };
        state.jobs.insert(job.id.clone(), entry);
        while state.jobs.len() > state.max_jobs || state.bytes > state.max_bytes {
            let Some(oldest) = state.jobs.iter().next().map(|(id, _)| id.clone()) else {
                return;
            };
            state.remove(&oldest);
        }
    }

    /// Removes all jobs.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.jobs.clear();
        state.by_task.clear();
        state.bytes = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, id: &JobId) {
        let Some(removed) = self.jobs.remove(id) else {
            return;
        };
        self.bytes -= removed.bytes;
        if let Some((provider, task_id)) = task_of(&removed.job) {
            self.by_task
                .remove(&(provider.to_owned(), task_id.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::{NewJob, Status};
    use crate::protocol::Frame;
    use crate::time::Time;

    fn change(task_id: Option<&str>, bytes: usize) -> Change {
        let new = NewJob {
            owner: "ada".into(),
            provider: Some("kling".into()),
            provider_task_id: task_id.map(str::to_owned),
            model: None,
            metadata: serde_json::Map::new(),
            request: None,
            deadline: Duration::from_secs(60),
        };
        Change {
            frame: Arc::new(Frame::new(Arc::new(Job::new(new, Time::from_millis(0))))),
            schedule: Schedule::default(),
            bytes,
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
        let first = change(None, 10);
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
        assert_eq!(cache.lock().bytes, 0);
    }

    #[test]
    fn least_recently_used_jobs_are_evicted() {
        let cache = DocumentCache::bounded(3, 100);
        let changes = [1, 2, 3].map(|_| change(None, 10));
        for change in &changes {
            cache.store(change);
        }
        assert!(cache.get(&changes[0].frame.job().id).is_some());
        let large = change(None, 85);
        cache.store(&large);
        let cached = changes.map(|change| cache.get(&change.frame.job().id).is_some());
        assert_eq!(cached, [true, false, false]);
        assert!(cache.get(&large.frame.job().id).is_some());

        cache.store(&change(None, 101));
        assert_eq!(cache.lock().jobs.len(), 0, "larger than the cache");
    }

    #[test]
    fn task_is_found_while_its_job_is_cached() {
        let cache = DocumentCache::bounded(1, 100);
        let job = change(Some("1"), 10);
        cache.store(&job);
        assert_eq!(
            cache.find_task("kling", "1"),
            Some(job.frame.job().id.clone())
        );
        assert_eq!(cache.find_task("other", "1"), None);

        let rebound = next(&job, |job| job.provider_task_id = Some("2".to_owned()));
        cache.store(&rebound);
        assert_eq!(cache.find_task("kling", "1"), None);
        assert_eq!(
            cache.find_task("kling", "2"),
            Some(job.frame.job().id.clone())
        );

        cache.store(&change(None, 10));
        assert_eq!(cache.find_task("kling", "2"), None);
        cache.clear();
        assert!(cache.lock().by_task.is_empty() && cache.lock().jobs.is_empty());
    }
}
