//! Work queues: jobs that are due for submission or for a poll.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Error;
use crate::job::{Job, JobId};
use crate::time::Time;

/// How long a claim for submission excludes other claims. The submission must be recorded within
/// this time.
pub const CLAIM_LEASE: Duration = Duration::from_secs(30);

/// When a job is due next, and in which queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Time of the next submission attempt, or `None` if nothing is to be submitted.
    pub submit_at: Option<Time>,
    /// Time of the next poll or deadline check, or `None` if neither is needed.
    pub poll_at: Option<Time>,
    /// Interval between a claim and the next poll, lengthened by
    /// [`deterministic_jitter`](crate::time::deterministic_jitter). The next poll is never later
    /// than the job's deadline.
    pub poll_interval: Duration,
    /// Whether the interval is at least twice the time since the job's last update. Set for
    /// providers that send webhooks.
    pub poll_backoff: bool,
    /// Whether the job occupies one of its provider's concurrency slots, as it does from the
    /// start of its submission to its end.
    pub holds_slot: bool,
}

/// A work queue. [`Schedule`] decides which queues contain a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue<'a> {
    /// Jobs of one provider that are due for submission, limited by its free concurrency slots.
    /// A slot is occupied by a job that holds one and by a job under a claim lease.
    Submit {
        /// Name of the provider.
        provider: &'a str,
        /// Number of concurrency slots.
        max_concurrent: usize,
    },
    /// Jobs of all providers that are due for a poll or a deadline check.
    Poll,
}

/// Claims on due jobs. Finished jobs are in no queue.
#[async_trait]
pub trait WorkQueues: Send + Sync + 'static {
    /// Claims up to `limit` jobs of `queue` that are due at `now`. Polls are claimed in the order of
    /// their due times. Submissions are claimed in turn from each owner.
    ///
    /// Claims are atomic. No other claim on any node returns a claimed job before the job's next
    /// commit or, without one, before [`CLAIM_LEASE`] ([`Queue::Submit`]) or the poll interval
    /// ([`Queue::Poll`]) has passed. Corrupt jobs are logged and skipped.
    async fn claim(
        &self,
        queue: Queue<'_>,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Job>>, Error>;

    /// Returns when the next job of `queue` can be claimed, or `None` if the queue is empty.
    ///
    /// Leases are taken into account, concurrency slots are not.
    async fn next_due(&self, queue: Queue<'_>) -> Result<Option<Time>, Error>;

    /// Moves the next poll of an unfinished job forward to `at`, but not to a time earlier than
    /// `cool_down` after the last poll claim.
    ///
    /// It never postpones a poll, and does nothing if the job is finished or missing. A commit
    /// before the next claim keeps this time, so a request that arrives during a poll is not lost.
    async fn schedule_poll(&self, id: &JobId, at: Time, cool_down: Duration) -> Result<(), Error>;
}
