//! The embedded engine: one SQLite file, one process.
//!
//! Invariant: every write goes through one thread, so that what is compared is what is replaced and
//! the order of commits is the order of announcements; reads run beside it, and nothing here blocks
//! an async thread.

mod budgets;
mod command_queue;
mod file;
mod jobs;
mod queues;
mod reader;
mod sweep;
mod threads;
mod update_buffer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;

use self::command_queue::CommandQueue;
use self::file::Place;
use self::jobs::Record;
use self::queues::OwnedQueue;
use super::{
    BudgetStore, BufferOutcome, ChangeSource, CommitJob, CommitOutcome, CreateJob, CreateOutcome,
    Error, EventHandler, JobStore, ListQuery, Queue, Retention, SharedState, Store, WorkQueues,
    codec,
};
use crate::job::{Job, JobId, Topic, Update};
use crate::time::Time;

/// Threads that read a file beside its writer.
const READERS: usize = 4;

/// Jobs in an SQLite database, in a file or in memory.
#[derive(Debug)]
pub struct SqliteStore {
    writer: CommandQueue,
    /// Absent where the writer reads as well.
    readers: Option<CommandQueue>,
    failing: Arc<AtomicBool>,
    retention: Retention,
    /// The readers', then the writer's.
    threads: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens `sqlite://path` (made where there is none) or `sqlite::memory:`, and starts its
    /// threads. Leases of the process before are void, and jobs that it was sending are due to be
    /// looked at now. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`Error::Away`] where the URL is none, the file can't be opened or another process has it;
    /// [`Error::Corrupt`] where it is no SQLite database, another program's, or a newer hub's.
    pub fn open(url: &str, retention: Retention, announce: EventHandler) -> Result<Self, Error> {
        let place = Place::parse(url)?;
        let (db, lock) = place.open()?;
        let failing = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();

        let (readers, receiver) = CommandQueue::new();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..READERS {
            let Some(db) = place.open_beside()? else {
                break;
            };
            let receiver = Arc::clone(&receiver);
            threads.push(start("store-reader", move || {
                reader::serve(&db, &receiver);
            })?);
        }
        let readers = (!threads.is_empty()).then_some(readers);

        let (writer, receiver) = CommandQueue::new();
        let fault = Arc::clone(&failing);
        threads.push(start("store-writer", move || {
            threads::serve(&db, receiver, &announce, &fault);
            drop(db);
            drop(lock);
        })?);
        Ok(Self {
            writer,
            readers,
            failing,
            retention,
            threads: tokio::sync::Mutex::new(threads),
        })
    }

    async fn read<T, F>(&self, run: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let inbox = self.readers.as_ref().unwrap_or(&self.writer);
        inbox.execute(move |db, _| run(db)).await
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread
        .spawn(run)
        .map_err(|error| Error::Unavailable(error.to_string()))
}

#[async_trait]
impl JobStore for SqliteStore {
    async fn create(&self, create: CreateJob) -> Result<CreateOutcome, Error> {
        let record = Record::of(
            create.job,
            create.schedule,
            create.applied_buffered,
            create.budget_entries,
        )?;
        let key = create.idempotency;
        self.writer
            .execute(move |db, changes| jobs::create(db, &record, key.as_ref(), changes))
            .await
    }

    async fn get(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error> {
        let id = id.clone();
        self.read(move |db| jobs::get(db, id.as_str())).await
    }

    async fn get_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error> {
        let ids = ids.to_vec();
        self.read(move |db| jobs::get_many(db, &ids)).await
    }

    async fn list(&self, query: ListQuery) -> Result<Vec<Arc<Job>>, Error> {
        self.read(move |db| jobs::list(db, &query)).await
    }

    async fn find_task(&self, provider: &str, task_id: &str) -> Result<Option<JobId>, Error> {
        let (provider, task_id) = (provider.to_owned(), task_id.to_owned());
        self.read(move |db| jobs::find_task(db, &provider, &task_id))
            .await
    }

    async fn commit(&self, commit: CommitJob) -> Result<CommitOutcome, Error> {
        let record = Record::of(
            commit.job,
            commit.schedule,
            commit.applied_buffered,
            commit.budget_entries,
        )?;
        let expected = commit.expected_version;
        self.writer
            .execute(move |db, changes| jobs::commit(db, &record, expected, changes))
            .await
    }

    /// What can be read is on disk.
    async fn ensure_durable(&self, _: &Job) -> Result<CommitOutcome, Error> {
        Ok(CommitOutcome::Committed)
    }

    async fn buffer_update(
        &self,
        provider: &str,
        task_id: &str,
        update: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error> {
        let (provider, task_id) = (provider.to_owned(), task_id.to_owned());
        let news = codec::to_json(update)?;
        self.writer
            .execute(move |db, _| update_buffer::park(db, &provider, &task_id, &news, now))
            .await
    }

    async fn buffered_updates(&self, provider: &str, task_id: &str) -> Result<Vec<Update>, Error> {
        let (provider, task_id) = (provider.to_owned(), task_id.to_owned());
        self.read(move |db| update_buffer::parked(db, &provider, &task_id))
            .await
    }
}

#[async_trait]
impl WorkQueues for SqliteStore {
    async fn claim(
        &self,
        queue: Queue<'_>,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Job>>, Error> {
        let queue = OwnedQueue::from(queue);
        self.writer
            .execute(move |db, _| queues::claim(db, &queue, now, limit))
            .await
    }

    async fn next_due(&self, queue: Queue<'_>) -> Result<Option<Time>, Error> {
        let queue = OwnedQueue::from(queue);
        self.read(move |db| queues::next_due(db, &queue)).await
    }

    async fn schedule_poll(&self, id: &JobId, at: Time, cool_down: Duration) -> Result<(), Error> {
        let id = id.clone();
        self.writer
            .execute(move |db, _| queues::hasten(db, &id, at, cool_down))
            .await
    }
}

#[async_trait]
impl ChangeSource for SqliteStore {
    /// There is one node, and it hears of every change.
    async fn subscribe(&self, _: &[Topic]) -> Result<(), Error> {
        Ok(())
    }

    fn is_lossy(&self) -> bool {
        false
    }
}

#[async_trait]
impl BudgetStore for SqliteStore {
    async fn balances(&self, accounts: &[String], now: Time) -> Result<Vec<i64>, Error> {
        let names = accounts.to_vec();
        self.read(move |db| {
            let balances = names.iter().map(|name| budgets::balance(db, name, now));
            balances.collect()
        })
        .await
    }
}

#[async_trait]
impl SharedState for SqliteStore {
    async fn put_shared_state(&self, _: &str, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn shared_states(&self) -> Result<Vec<(String, String)>, Error> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    /// Asks the writer; where its last transaction failed, by a small write.
    async fn ping(&self) -> Result<(), Error> {
        let failing = self.failing.load(Ordering::Relaxed);
        self.writer
            .execute(move |db, _| {
                if failing {
                    file::probe_write(db)
                } else {
                    Ok(())
                }
            })
            .await
    }

    async fn sweep(&self, now: Time) -> Result<usize, Error> {
        let retention = self.retention;
        self.writer
            .execute(move |db, _| sweep::sweep(db, now, retention))
            .await
    }

    async fn close(&self) {
        let writer = self.writer.close();
        drop(self.readers.as_ref().and_then(CommandQueue::close));
        let mut threads = self.threads.lock().await;
        let mut readers = std::mem::take(&mut *threads);
        let last = readers.pop();
        let joined = tokio::task::spawn_blocking(move || {
            let mut whole = true;
            for reader in readers {
                whole &= reader.join().is_ok();
            }
            // The writer's connection is the last to go, so that it can take the log with it.
            drop(writer);
            whole & last.is_none_or(|last| last.join().is_ok())
        });
        if !joined.await.unwrap_or(false) {
            tracing::error!("a thread of the store had panicked");
        }
    }
}
