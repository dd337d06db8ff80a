//! The witness: what really happened at the provider, for tests and for anybody who asks.
//!
//! Invariant: it only reads. A wait ends at the change that makes its condition true, by no clock; a caller
//! who fears it never comes puts a timeout around it.

use serde::Serialize;
use tokio::sync::watch;

use super::ledger::Ledger;
use super::scenario::Scenario;
use super::task::{Product, Status};

/// A view of a running (or stopped) simulator. Cheap to clone.
#[derive(Clone)]
pub struct Witness(Ledger);

/// How often what was called, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Submits of any kind, refused ones included.
    pub submits_received: u64,
    /// Submits that created a task, answered or not.
    pub submits_accepted: u64,
    /// Queries for tasks, by id or as a list.
    pub queries_received: u64,
    /// Attempts to deliver a callback, repetitions included.
    pub callbacks_sent: u64,
    /// Those of them that were answered with a 2xx.
    pub callbacks_acknowledged: u64,
}

/// The well-formed, authenticated submits of one external id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Submits {
    /// All of them.
    pub received: u32,
    /// Those that created a task: one at most, since the id is unique.
    pub accepted: u32,
    /// The id of that task.
    pub task: Option<String>,
}

/// One task as it truly is, whatever its callbacks have told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskFacts {
    /// The provider's id: eighteen digits.
    pub id: String,
    /// The caller's own id.
    pub external_id: Option<String>,
    /// What was asked for.
    pub product: Product,
    /// The model, from the path of the submit.
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
    pub at_rest: bool,
}

impl Witness {
    pub(super) fn of(ledger: Ledger) -> Self {
        Self(ledger)
    }

    /// All counts.
    pub fn calls(&self) -> Counts {
        self.0.counts()
    }

    /// All tasks, oldest first.
    pub fn tasks(&self) -> Vec<TaskFacts> {
        self.0.all_facts()
    }

    /// One task by the provider's id.
    pub fn task(&self, id: &str) -> Option<TaskFacts> {
        self.0.facts(id.parse().ok()?)
    }

    /// The provider's id of the task that was created for the caller's own id.
    pub fn task_of(&self, external_id: &str) -> Option<String> {
        self.submits_of(external_id).task
    }

    /// How often a job was submitted: that it was paid for once is `accepted == 1`, that it was tried once `received == 1`.
    pub fn submits_of(&self, external_id: &str) -> Submits {
        self.0.submits(external_id)
    }

    /// A bell that rings at every change of anything above.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    /// Waits until a question about the provider has an answer, asked now and again at every change.
    pub async fn until<T>(&self, mut question: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            if let Some(answer) = question(self) {
                return answer;
            }
            if changes.changed().await.is_err() {
                // The bell lives in the ledger that we hold, so it cannot be gone.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the job of this external id was submitted, has ended and all its callbacks are done with.
    pub async fn at_rest(&self, external_id: &str) -> TaskFacts {
        self.until(|witness| {
            let task = witness.task(&witness.task_of(external_id)?)?;
            task.at_rest.then_some(task)
        })
        .await
    }
}
