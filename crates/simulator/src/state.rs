//! All tasks and counts, with a notification for every change.
//!
//! One lock guards the records and is never held across an await. The newest 100,000 tasks and the submits of the newest
//! 100,000 jobs are kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngExt;
use serde::Serialize;
use tokio::sync::watch;

use super::task::Task;

const MAX_TASKS: usize = 100_000;

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

/// State shared by all dialects.
pub(super) struct SimulatorState {
    records: watch::Sender<Records>,
    next_number: AtomicU64,
}

#[derive(Default)]
pub(super) struct Records {
    /// Counts of all dialects.
    pub total: Counts,
    pub counts: BTreeMap<&'static str, Counts>,
    /// By number, which is the order of creation.
    pub tasks: BTreeMap<u64, Task>,
    numbers: HashMap<String, u64>,
    submits: HashMap<Job, Submits>,
    submits_order: VecDeque<Job>,
    /// Dialects whose account is out of credit.
    pub without_credit: BTreeSet<&'static str>,
}

/// A dialect and the identity of a job in it.
type Job = (&'static str, String);

impl SimulatorState {
    pub fn new() -> Self {
        // Eighteen digits from a random start, so that two runs do not produce the same ids.
        let start = rand::rng().random_range(800_000_000_000_000_000..900_000_000_000_000_000);
        Self {
            records: watch::Sender::default(),
            next_number: AtomicU64::new(start),
        }
    }

    /// Locks the records for reading. The caller must not lock them a second time meanwhile.
    pub fn read(&self) -> watch::Ref<'_, Records> {
        self.records.borrow()
    }

    pub fn changes(&self) -> watch::Receiver<Records> {
        self.records.subscribe()
    }

    /// Changes the counts of a dialect.
    pub fn count(&self, dialect: &'static str, count: impl Fn(&mut Counts)) {
        self.write(|records| records.count(dialect, count));
    }

    /// Records a well-formed submit and returns the number of earlier submits of the same job.
    pub fn record_submit(&self, dialect: &'static str, handle: &str) -> u32 {
        self.write(|records| {
            let submits = records.submits_mut((dialect, handle.to_owned()));
            submits.received += 1;
            submits.received - 1
        })
    }

    /// Marks the account as out of credit until a task is accepted.
    pub fn exhaust_credit(&self, dialect: &'static str) {
        self.write(|records| records.without_credit.insert(dialect));
    }

    /// Returns the number for a new task. The output of the task has the next number.
    pub fn next_number(&self) -> u64 {
        self.next_number.fetch_add(2, Ordering::Relaxed)
    }

    /// Adds a new task. Returns whether its external id was free.
    pub fn open(&self, task: &Task) -> bool {
        self.write(|records| {
            let submits = records.submits_mut((task.dialect, task.handle.clone()));
            if task.external_id.is_some() && submits.task.is_some() {
                return false;
            }
            submits.accepted += 1;
            submits.task = Some(task.id.clone());
            records.without_credit.remove(task.dialect);
            records.count(task.dialect, |counts| counts.submits_accepted += 1);
            records.numbers.insert(task.id.clone(), task.number);
            records.tasks.insert(task.number, task.clone());
            if records.tasks.len() > MAX_TASKS
                && let Some((_, oldest)) = records.tasks.pop_first()
            {
                records.numbers.remove(&oldest.id);
            }
            true
        })
    }

    /// Changes a task and returns its new state, or `None` if it has been evicted.
    pub fn change(&self, number: u64, change: impl FnOnce(&mut Task)) -> Option<Task> {
        self.write(|records| {
            let task = records.tasks.get_mut(&number)?;
            change(task);
            Some(task.clone())
        })
    }

    /// Records a cancel request and returns the task, or `None` if it is unknown. A task that has not ended may still end
    /// differently. If `delete` is set, a finished task is deleted.
    pub fn cancel(&self, dialect: &str, id: &str, delete: bool) -> Option<Task> {
        self.write(|records| {
            let number = records.find(dialect, id)?.number;
            let task = records.tasks.get_mut(&number)?;
            if task.status.is_final() {
                task.deleted = delete;
            } else {
                task.cancel_requested = true;
            }
            Some(task.clone())
        })
    }

    fn write<T: Default>(&self, change: impl FnOnce(&mut Records) -> T) -> T {
        let mut result = T::default();
        self.records.send_modify(|records| result = change(records));
        result
    }
}

impl Records {
    /// Returns a task by id.
    pub fn task(&self, id: &str) -> Option<&Task> {
        self.tasks.get(self.numbers.get(id)?)
    }

    /// Returns a task of this dialect that is not deleted.
    pub fn find(&self, dialect: &str, id: &str) -> Option<&Task> {
        self.task(id).filter(|task| task.is_in(dialect))
    }

    /// Returns the submits of a job.
    pub fn submits(&self, dialect: &'static str, handle: &str) -> Option<&Submits> {
        self.submits.get(&(dialect, handle.to_owned()))
    }

    fn count(&mut self, dialect: &'static str, count: impl Fn(&mut Counts)) {
        count(&mut self.total);
        count(self.counts.entry(dialect).or_default());
    }

    fn submits_mut(&mut self, job: Job) -> &mut Submits {
        if !self.submits.contains_key(&job) {
            self.submits_order.push_back(job.clone());
            if self.submits_order.len() > MAX_TASKS
                && let Some(oldest) = self.submits_order.pop_front()
            {
                self.submits.remove(&oldest);
            }
        }
        self.submits.entry(job).or_default()
    }
}
