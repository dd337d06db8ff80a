//! Read-only access to the true state of the simulator, for tests.
//!
//! Waits end on the change that satisfies their condition. The caller adds a timeout if needed.

use serde::Serialize;
use tokio::sync::watch;

use super::scenario::Scenario;
use super::state::SimulatorState;
use super::task::{Product, Status};

/// View of a running or stopped simulator. Cheap to clone.
#[derive(Clone)]
pub struct Inspector(SimulatorState);

/// Number of requests and webhooks since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Submits, including rejected ones.
    pub submits_received: u64,
    /// Submits that created a task, whether or not a response was sent.
    pub submits_accepted: u64,
    /// Queries by id or list. Each HTTP request counts once.
    pub queries_received: u64,
    /// Tasks queried by id.
    pub tasks_queried: u64,
    /// Requests for the result of a finished task.
    pub results_fetched: u64,
    /// Cancel requests.
    pub cancels_received: u64,
    /// Downloads of a clip, whole or partial.
    pub downloads: u64,
    /// Requests for the state of the account.
    pub accounts_read: u64,
    /// Requests for the public keys.
    pub keys_read: u64,
    /// Challenges sent to receivers.
    pub challenges_sent: u64,
    /// Challenges that were passed.
    pub challenges_passed: u64,
    /// Webhook attempts, including retries.
    pub callbacks_sent: u64,
    /// Webhook attempts that were answered with 2xx.
    pub callbacks_acknowledged: u64,
}

impl Counts {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            submits_received: self.submits_received + other.submits_received,
            submits_accepted: self.submits_accepted + other.submits_accepted,
            queries_received: self.queries_received + other.queries_received,
            tasks_queried: self.tasks_queried + other.tasks_queried,
            results_fetched: self.results_fetched + other.results_fetched,
            cancels_received: self.cancels_received + other.cancels_received,
            downloads: self.downloads + other.downloads,
            accounts_read: self.accounts_read + other.accounts_read,
            keys_read: self.keys_read + other.keys_read,
            challenges_sent: self.challenges_sent + other.challenges_sent,
            challenges_passed: self.challenges_passed + other.challenges_passed,
            callbacks_sent: self.callbacks_sent + other.callbacks_sent,
            callbacks_acknowledged: self.callbacks_acknowledged + other.callbacks_acknowledged,
        }
    }
}

/// Well-formed, authenticated submits of one job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Submits {
    /// All submits.
    pub received: u32,
    /// Submits that created a task. At most one if the job has an external id.
    pub accepted: u32,
    /// Id of the last task.
    pub task: Option<String>,
}

/// True state of a task, independent of its webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskSnapshot {
    /// The provider's id.
    pub id: String,
    /// Dialect of the submit.
    pub dialect: &'static str,
    /// Identity of the job: the external id, otherwise the webhook URL, otherwise a digest of the body.
    pub handle: String,
    /// External id, chosen by the client.
    pub external_id: Option<String>,
    /// Kind of output.
    pub product: Product,
    /// Model name in the submit.
    pub model: String,
    /// Scenario of the task.
    pub scenario: Scenario,
    /// Status of the task.
    pub status: Status,
    /// Percentage while processing.
    pub progress: Option<u8>,
    /// Webhook attempts, including retries.
    pub callbacks_sent: u64,
    /// Webhook attempts that were answered with 2xx.
    pub callbacks_acknowledged: u64,
    /// Whether the task has ended and all its webhooks are done.
    pub is_settled: bool,
}

impl Inspector {
    pub(super) fn of(state: SimulatorState) -> Self {
        Self(state)
    }

    /// Returns the counts of all dialects.
    pub fn calls(&self) -> Counts {
        self.0.counts()
    }

    /// Returns the counts of one dialect.
    pub fn calls_in(&self, dialect: &str) -> Counts {
        self.0.counts_of(dialect)
    }

    /// Returns all tasks, oldest first.
    pub fn tasks(&self) -> Vec<TaskSnapshot> {
        self.0.snapshots()
    }

    /// Returns a task by id.
    pub fn task(&self, id: &str) -> Option<TaskSnapshot> {
        self.0.snapshot(id)
    }

    /// Returns the id of the task of a job, identified by its [handle](TaskSnapshot::handle).
    pub fn task_of(&self, handle: &str) -> Option<String> {
        self.submits_of(handle).task
    }

    /// Returns the submits of a job. `accepted == 1` means that it was paid for once, `received == 1` that it was submitted once.
    pub fn submits_of(&self, handle: &str) -> Submits {
        self.0.submits(handle)
    }

    /// Returns a receiver that is notified of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    /// Waits until `predicate` returns a value. It is called now and after every change.
    pub async fn until<T>(&self, mut predicate: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            if let Some(response) = predicate(self) {
                return response;
            }
            if changes.changed().await.is_err() {
                // The sender is part of the state that `self` holds, so it cannot be dropped.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the job with this handle has ended and all its webhooks are done.
    pub async fn settled(&self, handle: &str) -> TaskSnapshot {
        self.until(|inspector| {
            let task = inspector.task(&inspector.task_of(handle)?)?;
            task.is_settled.then_some(task)
        })
        .await
    }
}
