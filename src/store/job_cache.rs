//! A bounded cache of jobs, which also finds them by their provider task.

use std::collections::HashMap;

use hashlink::LruCache;

use super::codec::task_of;
use crate::job::{Job, JobId};

/// Keeps the most recently used jobs, up to a number and a total size.
#[derive(Debug)]
pub(super) struct JobCache<E> {
    entries: LruCache<JobId, E>,
    /// The cached jobs by provider and task id.
    by_task: HashMap<(String, String), JobId>,
    pub(super) bytes: usize,
    max_jobs: usize,
    max_bytes: usize,
}

/// What is cached of a job.
pub(super) trait CachedJob {
    /// Returns the size in bytes of JSON.
    fn bytes(&self) -> usize;

    /// Returns the version whose task identifies the job, if the task is known.
    fn job(&self) -> Option<&Job>;
}

impl<E: CachedJob> JobCache<E> {
    pub(super) fn bounded(max_jobs: usize, max_bytes: usize) -> Self {
        Self {
            entries: LruCache::new_unbounded(),
            by_task: HashMap::new(),
            bytes: 0,
            max_jobs,
            max_bytes,
        }
    }

    /// Returns the entry of a job, and counts this as a use.
    pub(super) fn get(&mut self, id: &JobId) -> Option<&E> {
        let entry = self.entries.get(id)?;
        Some(entry)
    }

    /// Returns the entry of a job.
    pub(super) fn peek(&self, id: &str) -> Option<&E> {
        self.entries.peek(id)
    }

    /// Returns the job of a provider task.
    pub(super) fn find_task(&self, provider: &str, task_id: &str) -> Option<JobId> {
        let task = (provider.to_owned(), task_id.to_owned());
        self.by_task.get(&task).cloned()
    }

    /// Replaces the entry of a job, and evicts the least recently used ones beyond the limits.
    pub(super) fn insert(&mut self, id: JobId, entry: E) {
        self.remove(&id);
        self.bytes += entry.bytes();
        if let Some(task) = task_key(&entry) {
            self.by_task.insert(task, id.clone());
        }
        self.entries.insert(id, entry);
        while self.bytes > self.max_bytes || self.entries.len() > self.max_jobs {
            let Some((id, evicted)) = self.entries.remove_lru() else {
                return;
            };
            self.forget(&id, &evicted);
        }
    }

    /// Removes the entry of a job and returns it.
    pub(super) fn remove(&mut self, id: &JobId) -> Option<E> {
        let entry = self.entries.remove(id)?;
        self.forget(id, &entry);
        Some(entry)
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.by_task.clear();
        self.bytes = 0;
    }

    /// Updates the total size and the index of tasks after an entry was removed.
    fn forget(&mut self, id: &JobId, entry: &E) {
        self.bytes -= entry.bytes();
        if let Some(task) = task_key(entry)
            && self.by_task.get(&task) == Some(id)
        {
            self.by_task.remove(&task);
        }
    }
}

fn task_key<E: CachedJob>(entry: &E) -> Option<(String, String)> {
    let (provider, task_id) = task_of(entry.job()?)?;
    Some((provider.to_owned(), task_id.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::job::NewJob;
    use crate::time::Time;

    struct Entry(Arc<Job>, usize);

    impl CachedJob for Entry {
        fn bytes(&self) -> usize {
            self.1
        }

        fn job(&self) -> Option<&Job> {
            Some(&self.0)
        }
    }

    fn job(task_id: Option<&str>) -> Job {
        let new = NewJob {
            owner: "ada".into(),
            provider: Some("kling".into()),
            provider_task_id: task_id.map(str::to_owned),
            model: None,
            metadata: serde_json::Map::new(),
            request: None,
            deadline: Duration::from_secs(60),
        };
        Job::new(new, Time::from_millis(0))
    }

    fn insert(cache: &mut JobCache<Entry>, job: &Job, bytes: usize) {
        cache.insert(job.id.clone(), Entry(Arc::new(job.clone()), bytes));
    }

    #[test]
    fn least_recently_used_jobs_are_evicted() {
        let mut cache = JobCache::bounded(3, 100);
        let jobs = [1, 2, 3].map(|_| job(None));
        for job in &jobs {
            insert(&mut cache, job, 10);
        }
        assert!(cache.get(&jobs[0].id).is_some());
        let large = job(None);
        insert(&mut cache, &large, 85);
        let cached = jobs.map(|job| cache.peek(job.id.as_str()).is_some());
        assert_eq!(cached, [true, false, false]);
        assert!(cache.get(&large.id).is_some());

        insert(&mut cache, &job(None), 101);
        assert_eq!(cache.entries.len(), 0, "larger than the cache");
        assert_eq!(cache.bytes, 0);
    }

    #[test]
    fn task_is_found_while_its_job_is_cached() {
        let mut cache = JobCache::bounded(1, 100);
        let mut bound = job(Some("1"));
        insert(&mut cache, &bound, 10);
        assert_eq!(cache.find_task("kling", "1"), Some(bound.id.clone()));
        assert_eq!(cache.find_task("other", "1"), None);

        bound.provider_task_id = Some("2".to_owned());
        insert(&mut cache, &bound, 10);
        assert_eq!(cache.find_task("kling", "1"), None);
        assert_eq!(cache.find_task("kling", "2"), Some(bound.id.clone()));

        insert(&mut cache, &job(None), 10);
        assert_eq!(cache.find_task("kling", "2"), None);
        cache.clear();
        assert!(cache.by_task.is_empty() && cache.entries.is_empty());
        assert_eq!(cache.bytes, 0);
    }
}
