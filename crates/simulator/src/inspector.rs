//! The inspector: what really happened at the provider, for tests and for anybody who asks.
//!
//! Invariant: it only reads. A wait ends at the change that makes its condition true, by no clock; a caller
//! who fears it never comes puts a timeout around it.

use serde::Serialize;
use tokio::sync::watch;

use super::scenario::Scenario;
use super::state::SimulatorState;
use super::task::{Product, Status};

/// A view of a running (or stopped) simulator. Cheap to clone.
#[derive(Clone)]
pub struct Inspector(SimulatorState);

/// How often what was called, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Submits of any kind, refused ones included.
    pub submits_received: u64,
    /// Submits that created a task, answered or not.
    pub submits_accepted: u64,
    /// Queries for tasks, by id or as a list: each is one HTTP call, however many tasks it asks about.
    pub queries_received: u64,
    /// Tasks requested_range about by id, one by one.
    pub tasks_queried: u64,
    /// Second calls, for what a finished task has made.
    pub results_fetched: u64,
    /// Requests to cancel.
    pub cancels_received: u64,
    /// Clips fetched, whole or in part, behind the key or not.
    pub downloads: u64,
    /// Questions about the account.
    pub accounts_read: u64,
    /// Fetches of the public keys.
    pub keys_read: u64,
    /// Tests of receivers.
    pub challenges_sent: u64,
    /// Those of them that were passed.
    pub challenges_passed: u64,
    /// Attempts to deliver a callback, repetitions included.
    pub callbacks_sent: u64,
    /// Those of them that were answered with a 2xx.
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

/// The well-formed, authenticated submits of one job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Submits {
    /// All of them.
    pub received: u32,
    /// Those that created a task: one at most where the job has an external id, which is unique.
    pub accepted: u32,
    /// The id of the last of those tasks.
    pub task: Option<String>,
}

/// One task as it truly is, whatever its callbacks have told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskSnapshot {
    /// The provider's id.
    pub id: String,
    /// The dialect in which it was submitted.
    pub dialect: &'static str,
    /// What its submits have in common: the external id, else the callback address, else a digest of the body.
    pub handle: String,
    /// The caller's own id.
    pub external_id: Option<String>,
    /// What was requested_range for.
    pub product: Product,
    /// The model, as the submit named it.
    pub model: String,
    /// How the task is treated.
    pub scenario: Scenario,
    /// Where the task is.
    pub status: Status,
    /// Percent, while processing.
    pub progress: Option<u8>,
    /// Attempts to deliver a callback, repetitions included.
    pub callbacks_sent: u64,
    /// Those of them that were answered with a 2xx.
    pub callbacks_acknowledged: u64,
    /// Whether nothing more will happen of itself: no step and no callback is still to come.
    pub is_settled: bool,
}

impl Inspector {
    pub(super) fn of(state: SimulatorState) -> Self {
        Self(state)
    }

    /// All counts, of all dialects together.
    pub fn calls(&self) -> Counts {
        self.0.counts()
    }

    /// The counts of one dialect.
    pub fn calls_in(&self, dialect: &str) -> Counts {
        self.0.counts_of(dialect)
    }

    /// All tasks, oldest first.
    pub fn tasks(&self) -> Vec<TaskSnapshot> {
        self.0.snapshots()
    }

    /// One task by the provider's id.
    pub fn task(&self, id: &str) -> Option<TaskSnapshot> {
        self.0.snapshot(id)
    }

    /// The provider's id of the task that was created for a job, named by its [handle](TaskFacts::handle).
    pub fn task_of(&self, handle: &str) -> Option<String> {
        self.submits_of(handle).task
    }

    /// How often a job was submitted: that it was paid for once is `accepted == 1`, that it was tried once `received == 1`.
    pub fn submits_of(&self, handle: &str) -> Submits {
        self.0.submits(handle)
    }

    /// A changed that rings at every change of anything above.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    /// Waits until a question about the provider has an answer, requested_range now and again at every change.
    pub async fn until<T>(&self, mut question: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            if let Some(answer) = question(self) {
                return answer;
            }
            if changes.changed().await.is_err() {
                // The changed lives in the state that we hold, so it cannot be gone.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the job of this handle was submitted, has ended and all its callbacks are done with.
    pub async fn settled(&self, handle: &str) -> TaskSnapshot {
        self.until(|inspector| {
            let task = inspector.task(&inspector.task_of(handle)?)?;
            task.is_settled.then_some(task)
        })
        .await
    }
}
