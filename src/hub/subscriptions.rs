//! Index of the shards that have subscribers of a job or an owner. All threads share it.
//!
//! Invariant: the bit of a shard is set before its first subscriber of a topic is attached and
//! cleared after its last one is detached, so no subscriber misses a change.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::job::{Job, JobId, Topic};
use crate::time::Time;

/// Returns the guard even if another thread panicked while it held the lock. Every critical section
/// of the hub leaves its data consistent.
pub(super) fn lock_ignoring_poison<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// The newest version of a job that was delivered on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveredVersion {
    /// Version number.
    pub version: u64,
    /// Time of the version. It distinguishes two documents with the same version number, which can
    /// exist after a failover of the store.
    pub updated_at: Time,
    /// Whether the version is terminal.
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
    /// Shards with subscribers, one bit each.
    mask: u64,
    delivered: Option<DeliveredVersion>,
}

impl JobSubscribers {
    fn is_final(&self) -> bool {
        self.delivered.is_some_and(|delivered| delivered.is_final)
    }
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
    fn masks(&self) -> MutexGuard<'_, ShardMasks> {
        lock_ignoring_poison(self.masks.lock())
    }

    /// Returns the shards with subscribers of the job or its owner, one bit each.
    pub(super) fn shards_for(&self, job: &Job) -> u64 {
        let masks = self.masks();
        let owner_mask = masks.owners.get(&job.owner).copied().unwrap_or(0);
        let job_mask = masks.jobs.get(&job.id).map_or(0, |entry| entry.mask);
        owner_mask | job_mask
    }

    /// Records the version as delivered if the job has subscribers and the version is the newest.
    pub(super) fn record_delivered(&self, job: &Job) {
        if let Some(entry) = self.masks().jobs.get_mut(&job.id)
            && entry.delivered.is_none_or(|it| it.version < job.version)
        {
            entry.delivered = Some(DeliveredVersion::of(job));
        }
    }

    pub(super) fn last_delivered(&self, job: &JobId) -> Option<DeliveredVersion> {
        self.masks().jobs.get(job)?.delivered
    }

    pub(super) fn contains(&self, topic: &Topic) -> bool {
        let masks = self.masks();
        match topic {
            Topic::Job(job) => masks.jobs.contains_key(job),
            Topic::Owner(owner) => masks.owners.contains_key(owner),
        }
    }

    /// Returns the jobs whose last delivered version is not final, and all owners.
    pub(super) fn active(&self) -> (Vec<JobId>, Vec<String>) {
        let masks = self.masks();
        let jobs = masks.jobs.iter().filter(|(_, entry)| !entry.is_final());
        let jobs = jobs.map(|(job, _)| job.clone()).collect();
        (jobs, masks.owners.keys().cloned().collect())
    }

    pub(super) fn add(&self, topic: Topic, shard: usize) {
        let mut masks = self.masks();
        let mask = match topic {
            Topic::Job(job) => &mut masks.jobs.entry(job).or_default().mask,
            Topic::Owner(owner) => masks.owners.entry(owner).or_default(),
        };
        *mask |= 1 << shard;
    }

    pub(super) fn remove(&self, topic: &Topic, shard: usize) {
        let mut masks = self.masks();
        let mask = match topic {
            Topic::Job(job) => masks.jobs.get_mut(job).map(|entry| &mut entry.mask),
            Topic::Owner(owner) => masks.owners.get_mut(owner),
        };
        let Some(mask) = mask else { return };
        *mask &= !(1 << shard);
        if *mask == 0 {
            match topic {
                Topic::Job(job) => masks.jobs.remove(job).map(|entry| entry.mask),
                Topic::Owner(owner) => masks.owners.remove(owner),
            };
        }
    }

    pub(super) fn job_count(&self) -> usize {
        self.masks().jobs.len()
    }

    pub(super) fn topics_of_shard(&self, shard: usize) -> (Vec<JobId>, Vec<String>) {
        let masks = self.masks();
        let contains = |mask: u64| mask & (1 << shard) != 0;
        let jobs = masks.jobs.iter().filter(|(_, entry)| contains(entry.mask));
        let owners = masks.owners.iter().filter(|(_, mask)| contains(**mask));
        (
            jobs.map(|(job, _)| job.clone()).collect(),
            owners.map(|(owner, _)| owner.clone()).collect(),
        )
    }
}
