//! All tasks and counts, with a notification for every change.
//!
//! One lock guards the state and is never held across an await. The newest 100,000 tasks and the submits of the newest
//! 100,000 jobs are kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use tokio::sync::watch;

use super::call::{Call, Cancelled, Listing, Name};
use super::inspector::{Counts, Submits, TaskSnapshot};
use super::task::{NewTask, Task};

const MAX_TASKS: usize = 100_000;

/// Shared state. Clones refer to the same state.
#[derive(Clone)]
pub(super) struct SimulatorState(Arc<Shared>);

struct Shared {
    inner: Mutex<StateInner>,
    changed: watch::Sender<u64>,
}

struct StateInner {
    counts: BTreeMap<&'static str, Counts>,
    /// By number, which is the order of creation.
    tasks: BTreeMap<u64, Entry>,
    numbers: HashMap<String, u64>,
    submits: HashMap<Handle, Submits>,
    submits_order: VecDeque<Handle>,
    /// Dialects whose account is out of credit.
    without_credit: BTreeSet<&'static str>,
    next_number: u64,
}

/// A dialect and the identity of a job in it.
type Handle = (&'static str, String);

struct Entry {
    task: Task,
    callbacks_sent: u64,
    callbacks_acknowledged: u64,
    settled: bool,
}

impl SimulatorState {
    pub fn new() -> Self {
        // Eighteen digits from a random start, so that two runs do not produce the same ids.
        let next_number =
            rand::rng().random_range(800_000_000_000_000_000..900_000_000_000_000_000);
        let inner = StateInner {
            counts: BTreeMap::new(),
            tasks: BTreeMap::new(),
            numbers: HashMap::new(),
            submits: HashMap::new(),
            submits_order: VecDeque::new(),
            without_credit: BTreeSet::new(),
            next_number,
        };
        Self(Arc::new(Shared {
            inner: Mutex::new(inner),
            changed: watch::Sender::new(0),
        }))
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Counts a request.
    pub fn count(&self, dialect: &'static str, call: &Call) {
        self.add(dialect, |counts| match call {
            Call::Submit => counts.submits_received += 1,
            Call::Query(names) => {
                counts.queries_received += 1;
                counts.tasks_queried += names.len() as u64;
            }
            Call::List => counts.queries_received += 1,
            Call::Result(_) => counts.results_fetched += 1,
            Call::Cancel(_) => counts.cancels_received += 1,
            Call::Content(_) => counts.downloads += 1,
            Call::Account => counts.accounts_read += 1,
            Call::Keys => counts.keys_read += 1,
        });
    }

    /// Counts a clip download.
    pub fn count_clip(&self, dialect: &'static str) {
        self.add(dialect, |counts| counts.downloads += 1);
    }

    pub fn challenge_sent(&self, dialect: &'static str) {
        self.add(dialect, |counts| counts.challenges_sent += 1);
    }

    pub fn challenge_passed(&self, dialect: &'static str) {
        self.add(dialect, |counts| counts.challenges_passed += 1);
    }

    /// Records a well-formed submit and returns the number of earlier submits of the same job.
    pub fn record_submit(&self, dialect: &'static str, handle: &str) -> u32 {
        self.write(|inner| {
            let submits = inner.submits_of((dialect, handle.to_owned()));
            let before = submits.received;
            submits.received += 1;
            before
        })
    }

    /// Marks the account as out of credit until a task is accepted.
    pub fn exhaust_credit(&self, dialect: &'static str) {
        self.write(|inner| inner.without_credit.insert(dialect));
    }

    pub fn has_credit(&self, dialect: &'static str) -> bool {
        !self.read().without_credit.contains(dialect)
    }

    /// Creates a task. Returns `None` if its external id is in use.
    pub fn open(&self, request: NewTask, name: impl FnOnce(u64) -> String) -> Option<Task> {
        self.write(|inner| {
            let number = inner.next_number;
            let submits = inner.submits_of((request.dialect, request.handle.clone()));
            if request.external_id.is_some() && submits.task.is_some() {
                return None;
            }
            let id = name(number);
            submits.accepted += 1;
            submits.task = Some(id.clone());
            inner.without_credit.remove(request.dialect);
            // The output of a task has the next number.
            inner.next_number = number + 2;
            inner
                .counts
                .entry(request.dialect)
                .or_default()
                .submits_accepted += 1;
            let task = Task::new(number, id.clone(), request);
            let entry = Entry {
                task: task.clone(),
                callbacks_sent: 0,
                callbacks_acknowledged: 0,
                settled: false,
            };
            inner.tasks.insert(number, entry);
            inner.numbers.insert(id, number);
            if inner.tasks.len() > MAX_TASKS
                && let Some((_, oldest)) = inner.tasks.pop_first()
            {
                inner.numbers.remove(&oldest.task.id);
            }
            Some(task)
        })
    }

    /// Changes a task and returns its new state, or `None` if it has been evicted.
    pub fn change(&self, number: u64, change: impl FnOnce(&mut Task)) -> Option<Task> {
        self.update(number, |entry| {
            change(&mut entry.task);
            entry.task.clone()
        })
    }

    /// Records a cancel request. If `delete` is set, cancelling a finished task deletes it.
    pub fn cancel(&self, dialect: &'static str, id: &str, delete: bool) -> Cancelled {
        let Some(task) = self.find(dialect, &Name::Task(id.to_owned())) else {
            return Cancelled::Unknown;
        };
        let outcome = self.update(task.number, |entry| {
            let task = &mut entry.task;
            if task.status.is_final() {
                task.deleted = delete;
                return Cancelled::Ended;
            }
            task.cancel_requested = true;
            Cancelled::Agreed(Box::new(task.clone()))
        });
        outcome.unwrap_or(Cancelled::Unknown)
    }

    pub fn callback_sent(&self, dialect: &'static str, number: u64) {
        self.update(number, |entry| entry.callbacks_sent += 1);
        self.add(dialect, |counts| counts.callbacks_sent += 1);
    }

    pub fn callback_acknowledged(&self, dialect: &'static str, number: u64) {
        self.update(number, |entry| entry.callbacks_acknowledged += 1);
        self.add(dialect, |counts| counts.callbacks_acknowledged += 1);
    }

    /// Marks a task as settled: no step and no webhook is left.
    pub fn settle(&self, number: u64) {
        self.update(number, |entry| entry.settled = true);
    }

    /// Returns a task of this dialect that is not deleted.
    pub fn find(&self, dialect: &'static str, name: &Name) -> Option<Task> {
        let inner = self.read();
        let id = match name {
            Name::Task(id) => id,
            Name::External(id) => {
                let submits = inner.submits.get(&(dialect, id.clone()))?;
                submits.task.as_ref()?
            }
        };
        let task = &inner.tasks.get(inner.numbers.get(id)?)?.task;
        (task.request.dialect == dialect && !task.deleted).then(|| task.clone())
    }

    /// Returns the tasks of a list, and one more if there is a next page.
    pub fn list(&self, dialect: &'static str, listing: &Listing) -> Vec<Task> {
        let inner = self.read();
        let older = inner.tasks.range(..listing.cursor).rev();
        let older = older.map(|(_, entry)| &entry.task);
        older
            .filter(|task| task.request.dialect == dialect && !task.deleted && listing.wants(task))
            .take(listing.limit + 1)
            .cloned()
            .collect()
    }

    /// Returns the counts of one dialect.
    pub fn counts_of(&self, dialect: &str) -> Counts {
        self.read().counts.get(dialect).copied().unwrap_or_default()
    }

    /// Returns the counts of all dialects.
    pub fn counts(&self) -> Counts {
        let inner = self.read();
        inner
            .counts
            .values()
            .copied()
            .fold(Counts::default(), Counts::plus)
    }

    pub fn snapshot(&self, id: &str) -> Option<TaskSnapshot> {
        let inner = self.read();
        inner.tasks.get(inner.numbers.get(id)?).map(Entry::snapshot)
    }

    pub fn snapshots(&self) -> Vec<TaskSnapshot> {
        self.read().tasks.values().map(Entry::snapshot).collect()
    }

    /// Returns the submits of a job in any dialect.
    pub fn submits(&self, handle: &str) -> Submits {
        let inner = self.read();
        let mut dialects = inner.counts.keys();
        let submits =
            dialects.find_map(|dialect| inner.submits.get(&(*dialect, handle.to_owned())));
        submits.cloned().unwrap_or_default()
    }

    fn add(&self, dialect: &'static str, count: impl FnOnce(&mut Counts)) {
        self.write(|inner| count(inner.counts.entry(dialect).or_default()));
    }

    fn update<T>(&self, number: u64, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.write(|inner| inner.tasks.get_mut(&number).map(change))
    }

    fn write<T>(&self, change: impl FnOnce(&mut StateInner) -> T) -> T {
        let result = change(&mut self.read());
        self.0.changed.send_modify(|rung| *rung += 1);
        result
    }

    fn read(&self) -> MutexGuard<'_, StateInner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateInner {
    fn submits_of(&mut self, handle: Handle) -> &mut Submits {
        if !self.submits.contains_key(&handle) {
            self.submits_order.push_back(handle.clone());
            if self.submits_order.len() > MAX_TASKS
                && let Some(oldest) = self.submits_order.pop_front()
            {
                self.submits.remove(&oldest);
            }
        }
        self.submits.entry(handle).or_default()
    }
}

impl Entry {
    fn snapshot(&self) -> TaskSnapshot {
        let task = &self.task;
        TaskSnapshot {
            id: task.id.clone(),
            dialect: task.request.dialect,
            handle: task.request.handle.clone(),
            external_id: task.request.external_id.clone(),
            product: task.request.product,
            model: task.request.model.clone(),
            scenario: task.request.scenario,
            status: task.status,
            progress: task.progress(),
            callbacks_sent: self.callbacks_sent,
            callbacks_acknowledged: self.callbacks_acknowledged,
            is_settled: self.settled,
        }
    }
}
