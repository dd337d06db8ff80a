//! Read-only access to the true state of the simulator, for tests.
//!
//! Waits end on the change that satisfies their condition. The caller adds a timeout if needed.

use std::sync::Arc;

use super::state::{Counts, SimulatorState, Submits};
use super::task::Task;

/// View of a running or stopped simulator. Cheap to clone.
#[derive(Clone)]
pub struct Inspector(pub(super) Arc<SimulatorState>);

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
