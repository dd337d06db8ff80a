//! What things are called in Redis.
//!
//! Invariant: all that one script touches shares a hash tag, its partition's; on one server there is
//! one partition, in a cluster there are [`PARTITIONS`], spread evenly over the slots, so that any
//! share of them is on any server.

use std::fmt::Display;

use crate::job::{JobId, Topic};

/// How many partitions a cluster has: enough to spread over that many primaries.
const PARTITIONS: u16 = 16;

/// The slots of a cluster.
const SLOTS: u16 = 16384;

/// Makes keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    /// Each partition's hash tag.
    tags: Vec<String>,
}

/// Keys that are in one place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partition<'a> {
    pub(super) number: usize,
    prefix: &'a str,
    tag: &'a str,
}

impl Keys {
    pub(super) fn new(prefix: &str, is_clustered: bool) -> Self {
        let tags = match is_clustered {
            false => vec!["0".to_owned()],
            true => (0..PARTITIONS).map(tag_in).collect(),
        };
        Self {
            prefix: prefix.to_owned(),
            tags,
        }
    }

    /// All partitions.
    pub(super) fn partitions(&self) -> impl Iterator<Item = Partition<'_>> {
        (0..self.tags.len()).map(|number| self.partition(number))
    }

    /// The partition that a name belongs to: always the same one.
    pub(super) fn partition_for(&self, name: &str) -> Partition<'_> {
        self.partition(usize::from(fred_slot(name)) % self.tags.len())
    }

    pub(super) fn partition(&self, number: usize) -> Partition<'_> {
        Partition {
            number,
            prefix: &self.prefix,
            tag: &self.tags[number],
        }
    }

    /// The channels that a topic is told on: the changes of an owner's jobs come from every
    /// partition.
    pub(super) fn channels(&self, topic: &Topic) -> Vec<String> {
        match topic {
            Topic::Job(id) => vec![self.partition_for(id.as_str()).channel(id)],
            Topic::Owner(owner) => self
                .partitions()
                .map(|part| part.owner_channel(owner))
                .collect(),
        }
    }
}

impl Partition<'_> {
    fn key(self, kind: &str, name: impl Display) -> String {
        let Self { prefix, tag, .. } = self;
        format!("{prefix}:{{{tag}}}:{kind}:{name}")
    }

    /// The hash of a job: the truth about it.
    pub(super) fn job(self, id: impl Display) -> String {
        self.key("job", id)
    }

    /// Where a job's changes are told.
    pub(super) fn channel(self, id: &JobId) -> String {
        self.key("changed", id)
    }

    /// Where the changes of an owner's jobs are told.
    pub(super) fn owner_channel(self, owner: &str) -> String {
        self.key("owner", owner)
    }

    /// Where a node tells itself that it hears.
    pub(super) fn probe_channel(self, node: &str) -> String {
        self.key("probe", node)
    }

    /// Where nodes tell each other what they remember.
    pub(super) fn shared_state_channel(self) -> String {
        self.key("told", "memory")
    }

    /// What nodes remember together.
    pub(super) fn shared_state(self) -> String {
        self.key("nodes", "memory")
    }

    /// Jobs by when to ask about them.
    pub(super) fn poll_queue(self) -> String {
        self.key("queue", "watch")
    }

    /// A provider's jobs by when to send them.
    pub(super) fn submit(self, provider: &str) -> String {
        self.key("submit", provider)
    }

    /// Jobs by when to forget them.
    pub(super) fn expiry_queue(self) -> String {
        self.key("queue", "forget")
    }

    /// The ids of jobs: this partition's, or an owner's.
    pub(super) fn jobs(self, owner: Option<&str>) -> String {
        match owner {
            Some(owner) => self.key("jobs", owner),
            None => self.key("all", "jobs"),
        }
    }

    /// The ids of jobs without an end, and some that have one by now.
    pub(super) fn active_jobs(self, owner: Option<&str>) -> String {
        match owner {
            Some(owner) => self.key("open", owner),
            None => self.key("all", "open"),
        }
    }

    /// What is still to be booked.
    pub(super) fn budget_outbox(self) -> String {
        self.key("all", "owed")
    }

    /// Whose a provider's task is.
    pub(super) fn task(self, task: &str) -> String {
        self.key("task", task)
    }

    /// What is parked for a task.
    pub(super) fn buffered_updates(self, task: &str) -> String {
        self.key("news", task)
    }

    /// Tasks for which something is parked, by when the oldest of it came.
    pub(super) fn buffered_tasks(self) -> String {
        self.key("all", "parked")
    }

    /// Which job a caller's key made.
    pub(super) fn idempotency(self, name: &str) -> String {
        self.key("key", name)
    }

    /// A sum.
    pub(super) fn account(self, name: &str) -> String {
        self.key("account", name)
    }

    /// Accounts by when they end.
    pub(super) fn accounts(self) -> String {
        self.key("all", "accounts")
    }

    /// Jobs that take a provider's places, each with the moment until which that is believed.
    pub(super) fn slots(self, provider: &str) -> String {
        self.key("places", provider)
    }
}

/// A task, as keys name it: a provider's name holds no slash.
pub(super) fn task_name(provider: &str, task_id: &str) -> String {
    format!("{provider}/{task_id}")
}

/// A caller's key, as keys name it: told apart whatever is in either.
pub(super) fn key_name(caller: &str, key: &str) -> String {
    format!("{}:{caller}:{key}", caller.len())
}

/// The first tag whose slot lies in the `number`th of as many equal ranges as there are partitions.
fn tag_in(number: u16) -> String {
    let width = SLOTS / PARTITIONS;
    let tags = (0u32..).map(|attempt| format!("{number}.{attempt}"));
    let mut fitting = tags.filter(|tag| fred_slot(tag) / width == number);
    fitting.next().unwrap_or_default()
}

fn fred_slot(text: &str) -> u16 {
    fred::util::redis_keyslot(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_partitions_cover_the_slot_range_evenly() {
        let keys = Keys::new("ph", true);
        let slots: Vec<u16> = keys
            .partitions()
            .map(|part| fred_slot(&part.poll_queue()) / (SLOTS / PARTITIONS))
            .collect();
        assert_eq!(slots, (0..PARTITIONS).collect::<Vec<_>>());
    }

    #[test]
    fn script_keys_share_a_slot() {
        let keys = Keys::new("ph", true);
        let part = keys.partition_for("job_1");
        let names = [
            part.job("job_1"),
            part.poll_queue(),
            part.submit("kling"),
            part.owner_channel("{a}:{b}"),
            part.jobs(None),
        ];
        let slots: std::collections::BTreeSet<u16> =
            names.iter().map(|name| fred_slot(name)).collect();
        assert_eq!(slots.len(), 1, "{names:?}");
    }

    #[test]
    fn similar_names_map_to_distinct_keys() {
        assert_ne!(key_name("a:1", "b"), key_name("a", "1:b"));
        assert_ne!(key_name("1:a", "b"), key_name("1", "a:b"));
    }
}
