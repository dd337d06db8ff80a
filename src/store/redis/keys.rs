//! Names of Redis keys and channels.
//!
//! All keys of one script share a hash tag, which identifies their partition. A single server has one
//! partition. A cluster has [`PARTITIONS`], spread evenly over the hash slots.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::job::Topic;

/// Partitions in a cluster, and so the maximum number of primaries that share the load.
const PARTITIONS: u16 = 16;

/// Hash slots in a cluster.
const SLOTS: u16 = 16384;

/// Builds the names of keys.
#[derive(Clone, Debug)]
pub(super) struct KeyNames {
    prefix: String,
    /// The hash tag of each partition.
    tags: Vec<String>,
}

/// Builds the names of keys in one partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partition<'a> {
    pub(super) number: usize,
    prefix: &'a str,
    tag: &'a str,
}

impl KeyNames {
    pub(super) fn new(prefix: &str, is_clustered: bool) -> Self {
        let tags = if is_clustered {
            (0..PARTITIONS).map(hash_tag).collect()
        } else {
            vec!["0".to_owned()]
        };
        Self {
            prefix: prefix.to_owned(),
            tags,
        }
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = Partition<'_>> {
        (0..self.tags.len()).map(|number| self.partition(number))
    }

    /// Returns the partition of a name. It is always the same for one name.
    pub(super) fn partition_for(&self, name: &str) -> Partition<'_> {
        self.partition(usize::from(slot_of(name)) % self.tags.len())
    }

    pub(super) fn partition(&self, number: usize) -> Partition<'_> {
        Partition {
            number,
            prefix: &self.prefix,
            tag: &self.tags[number],
        }
    }

    /// Groups job ids by the number of their partition.
    pub(super) fn group<'a>(
        &self,
        ids: impl Iterator<Item = &'a str>,
    ) -> BTreeMap<usize, Vec<&'a str>> {
        let mut groups: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for id in ids {
            groups
                .entry(self.partition_for(id).number)
                .or_default()
                .push(id);
        }
        groups
    }

    /// Returns the channels of a topic. The jobs of an owner are in all partitions.
    pub(super) fn channels(&self, topic: &Topic) -> Vec<String> {
        match topic {
            Topic::Job(id) => vec![self.partition_for(id.as_str()).channel(id)],
            Topic::Owner(owner) => self
                .partitions()
                .map(|partition| partition.owner_channel(owner))
                .collect(),
        }
    }
}

/// Defines a method for each key and channel. All begin with the prefix and the hash tag.
macro_rules! names {
    ($($(#[$doc:meta])* $method:ident($($name:ident)?) = $format:literal;)*) => {
        impl Partition<'_> {
            $($(#[$doc])*
            pub(super) fn $method(self $(, $name: impl Display)?) -> String {
                self.key(format_args!($format))
            })*
        }
    };
}

names! {
    /// Hash: a job's document, internal state and schedule.
    job(id) = "job:{id}";
    /// Channel: changes of a job.
    channel(id) = "changed:{id}";
    /// Channel: changes of an owner's jobs.
    owner_channel(owner) = "owner:{owner}";
    /// Channel: a node's probes of its own pub/sub connection.
    probe_channel(node) = "probe:{node}";
    /// Channel: changes of the shared state.
    shared_state_channel() = "shared:changed";
    /// Hash: the values that all nodes share.
    shared_state() = "shared:state";
    /// Sorted set: jobs by the time of their next poll.
    poll_queue() = "queue:poll";
    /// Sorted set: a provider's jobs by the time of their next submission attempt.
    submit_queue(provider) = "submit:{provider}";
    /// Sorted set: jobs by the time their retention ends.
    expiry_queue() = "queue:expiry";
    /// Sorted set: ids of the jobs of an owner.
    owner_jobs(owner) = "jobs:{owner}";
    /// Sorted set: like [`Partition::owner_jobs`], without finished jobs. It may contain some that
    /// finished recently.
    owner_active_jobs(owner) = "active:{owner}";
    /// Sorted set: ids of the jobs of the partition.
    all_jobs() = "all:jobs";
    /// Sorted set: like [`Partition::all_jobs`], without finished jobs.
    all_active_jobs() = "all:active";
    /// String: written and expired by [`Store::ping`](crate::store::Store::ping).
    write_check() = "all:write_check";
    /// Hash: budget charges that have not been applied yet, by document key.
    budget_outbox() = "all:budget_outbox";
    /// String: the claim of a provider task.
    task(task) = "task:{task}";
    /// List: updates buffered for a provider task.
    buffered_updates(task) = "buffered:{task}";
    /// Sorted set: tasks with buffered updates, by the time the oldest update was received.
    buffered_tasks() = "all:buffered";
    /// String: the claim of an idempotency key.
    idempotency(name) = "idempotency:{name}";
    /// Hash: the balance of a budget window and the documents charged to it.
    budget_window(name) = "budget:{name}";
    /// Sorted set: budget windows by end time.
    budget_windows() = "all:budgets";
    /// Hash: the deliveries of a job, with their progress and documents.
    deliveries(job) = "deliveries:{job}";
    /// Sorted set: waiting deliveries to a destination by the time of their next attempt.
    delivery_queue(destination) = "outbox:{destination}";
    /// Sorted set: destinations whose [`Partition::delivery_queue`] is not empty.
    delivery_destinations() = "all:outboxes";
    /// Sorted set: waiting deliveries by the time they were created.
    waiting_deliveries() = "all:waiting";
    /// Sorted set: successful deliveries by the time they were created.
    delivered_deliveries() = "all:delivered";
    /// Sorted set: failed deliveries by the time they were created.
    failed_deliveries() = "all:failed";
    /// Sorted set: deliveries of an owner's jobs by the time they were created.
    owner_deliveries(owner) = "deliveries_of:{owner}";
    /// Hash: the states of the destinations of the partition.
    destination_states() = "all:destinations";
    /// String: the node that holds the lease of a destination.
    destination_lease(destination) = "lease:{destination}";
    /// Sorted set: jobs that hold a concurrency slot of a provider, by the time until which the
    /// entry is valid without verification.
    slots(provider) = "slots:{provider}";
}

impl Partition<'_> {
    fn key(self, name: impl Display) -> String {
        format!("{}:{{{}}}:{name}", self.prefix, self.tag)
    }
}

/// Returns a tag whose hash slot is in the partition's equal share of the slot range.
fn hash_tag(partition: u16) -> String {
    let slots_per_partition = SLOTS / PARTITIONS;
    let mut candidates = (0u32..)
        .map(|attempt| format!("{partition}.{attempt}"))
        .filter(|tag| slot_of(tag) / slots_per_partition == partition);
    candidates.next().unwrap_or_default()
}

fn slot_of(text: &str) -> u16 {
    fred::util::redis_keyslot(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_partitions_cover_the_slot_range_evenly() {
        let keys = KeyNames::new("ph", true);
        let slots: Vec<u16> = keys
            .partitions()
            .map(|partition| slot_of(&partition.poll_queue()) / (SLOTS / PARTITIONS))
            .collect();
        assert_eq!(slots, (0..PARTITIONS).collect::<Vec<_>>());
    }

    #[test]
    fn script_keys_share_a_slot() {
        let keys = KeyNames::new("ph", true);
        let partition = keys.partition_for("job_1");
        let names = [
            partition.job("job_1"),
            partition.poll_queue(),
            partition.submit_queue("kling"),
            partition.owner_channel("{a}:{b}"),
            partition.all_jobs(),
        ];
        let slots: std::collections::BTreeSet<u16> =
            names.iter().map(|name| slot_of(name)).collect();
        assert_eq!(slots.len(), 1, "{names:?}");
    }
}
