//! Which shards watch which jobs and owners: the one thing that threads share.
//!
//! Invariant: a shard's bit is set before its first watcher of a job is attached, and cleared after
//! its last has gone, so no change passes a watcher by.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::job::JobId;

/// What can be watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// One job.
    Job(JobId),
    /// All jobs of an owner.
    Owner(String),
}

#[derive(Default)]
struct Masks {
    jobs: HashMap<JobId, u64>,
    owners: HashMap<String, u64>,
}

#[derive(Default)]
pub(super) struct Interest {
    masks: Mutex<Masks>,
}

impl Interest {
    fn masks(&self) -> std::sync::MutexGuard<'_, Masks> {
        self.masks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shards that watch the job itself or its owner, one bit each.
    pub(super) fn of_change(&self, job: &JobId, owner: &str) -> u64 {
        let masks = self.masks();
        let of_job = masks.jobs.get(job).copied().unwrap_or(0);
        of_job | masks.owners.get(owner).copied().unwrap_or(0)
    }

    pub(super) fn add(&self, key: Key, shard: usize) {
        let mut masks = self.masks();
        let mask = match key {
            Key::Job(job) => masks.jobs.entry(job).or_default(),
            Key::Owner(owner) => masks.owners.entry(owner).or_default(),
        };
        *mask |= 1 << shard;
    }

    pub(super) fn remove(&self, key: &Key, shard: usize) {
        let mut masks = self.masks();
        let left = match key {
            Key::Job(job) => masks.jobs.get_mut(job),
            Key::Owner(owner) => masks.owners.get_mut(owner),
        };
        let Some(mask) = left else { return };
        *mask &= !(1 << shard);
        if *mask == 0 {
            match key {
                Key::Job(job) => masks.jobs.remove(job),
                Key::Owner(owner) => masks.owners.remove(owner),
            };
        }
    }

    pub(super) fn jobs(&self) -> usize {
        self.masks().jobs.len()
    }

    pub(super) fn of_shard(&self, shard: usize) -> (Vec<JobId>, Vec<String>) {
        let masks = self.masks();
        let watches = |mask: &u64| mask & (1 << shard) != 0;
        let jobs = masks
            .jobs
            .iter()
            .filter(|(_, mask)| watches(mask))
            .map(|(job, _)| job.clone());
        let owners = masks
            .owners
            .iter()
            .filter(|(_, mask)| watches(mask))
            .map(|(owner, _)| owner.clone());
        (jobs.collect(), owners.collect())
    }
}
