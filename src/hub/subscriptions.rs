//! Which shards watch which jobs and owners: the one thing that threads share.
//!
//! Invariant: a shard's bit is set before its first watcher of a job is attached, and cleared after
//! its last has gone, so no change passes a watcher by.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::job::{Job, JobId, Topic};
use crate::time::Time;

/// The newest version of a job that was handed out on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveredVersion {
    /// Its number.
    pub version: u64,
    /// When it was made: two of one number are told apart by it.
    pub updated_at: Time,
    /// Whether nothing comes after it.
    pub is_final: bool,
}

impl DeliveredVersion {
    fn of(job: &Job) -> Self {
        Self {
            version: job.version,
            updated_at: job.updated_at,
            is_final: job.is_final(),
        }
    }
}

#[derive(Default)]
struct JobSubscribers {
    /// The shards that watch it, one bit each.
    mask: u64,
    shown: Option<DeliveredVersion>,
}

#[derive(Default)]
struct ShardMasks {
    jobs: HashMap<JobId, JobSubscribers>,
    owners: HashMap<String, u64>,
}

#[derive(Default)]
pub(super) struct SubscriptionIndex {
    masks: Mutex<ShardMasks>,
}

impl SubscriptionIndex {
    fn masks(&self) -> std::sync::MutexGuard<'_, ShardMasks> {
        self.masks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shards that watch the job itself or its owner, one bit each, to whom it is handed now.
    pub(super) fn shards_for(&self, job: &Job) -> u64 {
        let mut masks = self.masks();
        let of_owner = masks.owners.get(&job.owner).copied().unwrap_or(0);
        let Some(watched) = masks.jobs.get_mut(&job.id) else {
            return of_owner;
        };
        if watched
            .shown
            .is_none_or(|shown| shown.version < job.version)
        {
            watched.shown = Some(DeliveredVersion::of(job));
        }
        of_owner | watched.mask
    }

    pub(super) fn last_delivered(&self, job: &JobId) -> Option<DeliveredVersion> {
        self.masks().jobs.get(job)?.shown
    }

    pub(super) fn contains(&self, key: &Topic) -> bool {
        let masks = self.masks();
        match key {
            Topic::Job(job) => masks.jobs.contains_key(job),
            Topic::Owner(owner) => masks.owners.contains_key(owner),
        }
    }

    /// What is watched and has no end yet.
    pub(super) fn active(&self) -> (Vec<JobId>, Vec<String>) {
        let masks = self.masks();
        let is_open = |watched: &JobSubscribers| !watched.shown.is_some_and(|shown| shown.is_final);
        let jobs = masks.jobs.iter().filter(|(_, watched)| is_open(watched));
        let jobs = jobs.map(|(job, _)| job.clone()).collect();
        (jobs, masks.owners.keys().cloned().collect())
    }

    pub(super) fn add(&self, key: Topic, shard: usize) {
        let mut masks = self.masks();
        let mask = match key {
            Topic::Job(job) => &mut masks.jobs.entry(job).or_default().mask,
            Topic::Owner(owner) => masks.owners.entry(owner).or_default(),
        };
        *mask |= 1 << shard;
    }

    pub(super) fn remove(&self, key: &Topic, shard: usize) {
        let mut masks = self.masks();
        let left = match key {
            Topic::Job(job) => masks.jobs.get_mut(job).map(|watched| &mut watched.mask),
            Topic::Owner(owner) => masks.owners.get_mut(owner),
        };
        let Some(mask) = left else { return };
        *mask &= !(1 << shard);
        if *mask == 0 {
            match key {
                Topic::Job(job) => masks.jobs.remove(job).map(|watched| watched.mask),
                Topic::Owner(owner) => masks.owners.remove(owner),
            };
        }
    }

    pub(super) fn jobs(&self) -> usize {
        self.masks().jobs.len()
    }

    pub(super) fn topics_of_shard(&self, shard: usize) -> (Vec<JobId>, Vec<String>) {
        let masks = self.masks();
        let watches = |mask: &u64| mask & (1 << shard) != 0;
        let jobs = masks
            .jobs
            .iter()
            .filter(|(_, watched)| watches(&watched.mask))
            .map(|(job, _)| job.clone());
        let owners = masks
            .owners
            .iter()
            .filter(|(_, mask)| watches(mask))
            .map(|(owner, _)| owner.clone());
        (jobs.collect(), owners.collect())
    }
}
