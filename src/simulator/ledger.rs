//! The ledger: all tasks and all counts, and a bell that rings at every change.
//!
//! Invariant: one lock, never held across an await; whoever waits for the bell and then reads sees the change
//! that rang it. The ledger keeps the newest 100,000 tasks and the newest 100,000 external ids; older ones are
//! forgotten, as the real provider forgets after thirty days.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use tokio::sync::watch;

use super::refusal::Refusal;
use super::task::{Seed, Task};
use super::witness::{Counts, Submits, TaskFacts};

const KEPT: usize = 100_000;

/// Cheap to clone; all clones are one ledger.
#[derive(Clone)]
pub(super) struct Ledger(Arc<Shared>);

struct Shared {
    book: Mutex<Book>,
    bell: watch::Sender<u64>,
}

struct Book {
    counts: Counts,
    /// By id; ids rise, so this is the order of creation too.
    tasks: BTreeMap<u64, Entry>,
    submits: HashMap<String, Submits>,
    submits_order: VecDeque<String>,
    next_id: u64,
}

struct Entry {
    task: Task,
    callbacks_sent: u64,
    callbacks_acknowledged: u64,
    at_rest: bool,
}

impl Ledger {
    pub fn new() -> Self {
        // Eighteen digits from a random start, so that ids of two runs do not meet in one hub's store.
        let next_id = rand::rng().random_range(800_000_000_000_000_000..900_000_000_000_000_000);
        let book = Book {
            counts: Counts::default(),
            tasks: BTreeMap::new(),
            submits: HashMap::new(),
            submits_order: VecDeque::new(),
            next_id,
        };
        Self(Arc::new(Shared {
            book: Mutex::new(book),
            bell: watch::Sender::new(0),
        }))
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.bell.subscribe()
    }

    pub fn count_submit(&self) {
        self.write(|book| book.counts.submits_received += 1);
    }

    pub fn count_query(&self) {
        self.write(|book| book.counts.queries_received += 1);
    }

    /// Notes a well-formed submit and tells how many of the same external id came before it. Those without
    /// an id are counted together, under the empty one.
    pub fn note_submit(&self, external_id: Option<&str>) -> u32 {
        self.write(|book| {
            let submits = book.submits_of(external_id);
            let before = submits.received;
            submits.received += 1;
            before
        })
    }

    /// Creates a task, unless its external id is taken: that is unique per account.
    pub fn open(&self, seed: Seed) -> Result<Task, Refusal> {
        self.write(|book| {
            let id = book.next_id;
            let submits = book.submits_of(seed.external_id.as_deref());
            if seed.external_id.is_some() && submits.task.is_some() {
                return Err(Refusal::invalid("external_task_id already exists"));
            }
            submits.accepted += 1;
            submits.task = Some(id.to_string());
            // An output has the number after its task.
            book.next_id = id + 2;
            book.counts.submits_accepted += 1;
            let task = Task::new(id, seed);
            let entry = Entry {
                task: task.clone(),
                callbacks_sent: 0,
                callbacks_acknowledged: 0,
                at_rest: false,
            };
            book.tasks.insert(id, entry);
            if book.tasks.len() > KEPT {
                book.tasks.pop_first();
            }
            Ok(task)
        })
    }

    /// Changes a task and returns it as it now is; `None` when it is forgotten.
    pub fn change(&self, id: u64, change: impl FnOnce(&mut Task)) -> Option<Task> {
        self.update(id, |entry| {
            change(&mut entry.task);
            entry.task.clone()
        })
    }

    pub fn callback_sent(&self, id: u64) {
        self.update(id, |entry| entry.callbacks_sent += 1);
        self.write(|book| book.counts.callbacks_sent += 1);
    }

    pub fn callback_acknowledged(&self, id: u64) {
        self.update(id, |entry| entry.callbacks_acknowledged += 1);
        self.write(|book| book.counts.callbacks_acknowledged += 1);
    }

    /// Nothing more will happen to this task.
    pub fn rest(&self, id: u64) {
        self.update(id, |entry| entry.at_rest = true);
    }

    pub fn task(&self, id: u64) -> Option<Task> {
        self.read().tasks.get(&id).map(|entry| entry.task.clone())
    }

    /// The tasks with an id below `before`, newest first.
    pub fn tasks_before(
        &self,
        before: u64,
        mut wanted: impl FnMut(&Task) -> bool,
        limit: usize,
    ) -> Vec<Task> {
        let book = self.read();
        let older = book
            .tasks
            .range(..before)
            .rev()
            .map(|(_, entry)| &entry.task);
        older
            .filter(|task| wanted(task))
            .take(limit)
            .cloned()
            .collect()
    }

    pub fn counts(&self) -> Counts {
        self.read().counts
    }

    pub fn facts(&self, id: u64) -> Option<TaskFacts> {
        self.read().tasks.get(&id).map(Entry::facts)
    }

    pub fn all_facts(&self) -> Vec<TaskFacts> {
        self.read().tasks.values().map(Entry::facts).collect()
    }

    pub fn submits(&self, external_id: &str) -> Submits {
        self.read()
            .submits
            .get(external_id)
            .cloned()
            .unwrap_or_default()
    }

    fn update<T>(&self, id: u64, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.write(|book| book.tasks.get_mut(&id).map(change))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let result = change(&mut self.read());
        self.0.bell.send_modify(|rung| *rung += 1);
        result
    }

    fn read(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn submits_of(&mut self, external_id: Option<&str>) -> &mut Submits {
        let external_id = external_id.unwrap_or_default();
        if !self.submits.contains_key(external_id) {
            self.submits_order.push_back(external_id.to_owned());
            if self.submits_order.len() > KEPT
                && let Some(oldest) = self.submits_order.pop_front()
            {
                self.submits.remove(&oldest);
            }
        }
        self.submits.entry(external_id.to_owned()).or_default()
    }
}

impl Entry {
    fn facts(&self) -> TaskFacts {
        let task = &self.task;
        TaskFacts {
            id: task.id.to_string(),
            external_id: task.external_id.clone(),
            product: task.product,
            model: task.model.clone(),
            scenario: task.scenario,
            status: task.status,
            progress: task.progress,
            callbacks_sent: self.callbacks_sent,
            callbacks_acknowledged: self.callbacks_acknowledged,
            at_rest: self.at_rest,
        }
    }
}
