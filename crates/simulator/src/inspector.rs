//! Read-only access to the true state of the simulator, for tests.
//!
//! Waits end on the change that satisfies their condition. The caller adds a timeout if needed.

use std::sync::Arc;

use serde::Serialize;

use super::state::SimulatorState;
use super::task::Task;

/// View of a running or stopped simulator. Cheap to clone.
#[derive(Clone)]
pub struct Inspector(pub(super) Arc<SimulatorState>);

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

impl Inspector {
    /// Returns the counts of all dialects.
    pub fn calls(&self) -> Counts {
        self.0.read().total
    }

    /// Returns the counts of one dialect.
    pub fn calls_in(&self, dialect: &str) -> Counts {
        let records = self.0.read();
        records.counts.get(dialect).copied().unwrap_or_default()
    }

    /// Returns all tasks, oldest first.
    pub fn tasks(&self) -> Vec<Task> {
        self.0.read().tasks.values().cloned().collect()
    }

    /// Returns a task by id.
    pub fn task(&self, id: &str) -> Option<Task> {
        self.0.read().task(id).cloned()
    }

    /// Returns the id of the task of a job, identified by its [handle](Task::handle).
    pub fn task_of(&self, handle: &str) -> Option<String> {
        self.submits_of(handle).task
    }

    /// Returns the submits of a job in any dialect. `accepted == 1` means that it was paid for once, `received == 1` that
    /// it was submitted once.
    pub fn submits_of(&self, handle: &str) -> Submits {
        let records = self.0.read();
        let mut dialects = records.counts.keys();
        let submits = dialects.find_map(|dialect| records.submits(dialect, handle));
        submits.cloned().unwrap_or_default()
    }

    /// Waits until `predicate` returns a value. It is called now and after every change.
    pub async fn until<T>(&self, mut predicate: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changes = self.0.changes();
        loop {
            changes.mark_unchanged();
            if let Some(response) = predicate(self) {
                return response;
            }
            // The sender is part of the state that `self` holds, so it cannot be dropped.
            changes.changed().await.ok();
        }
    }

    /// Waits until the job with this handle has ended and all its webhooks are done.
    pub async fn settled(&self, handle: &str) -> Task {
        self.until(|inspector| {
            let task = inspector.task(&inspector.task_of(handle)?)?;
            task.is_settled.then_some(task)
        })
        .await
    }
}
