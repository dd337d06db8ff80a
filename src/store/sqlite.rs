//! The embedded engine: jobs in an SQLite database, for a single node.
//!
//! One thread performs all writes, in transactions that several callers share. Commits are
//! therefore serialized, and changes are published in commit order. Other threads read. No async
//! thread blocks on the database.

mod budgets;
mod command_queue;
mod file;
mod jobs;
mod queues;
mod sweep;
mod threads;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;

use self::command_queue::CommandQueue;
use self::file::Location;
use self::jobs::JobRecord;
use self::queues::OwnedQueue;
use super::{
    BudgetStore, BufferOutcome, ChangeSource, CommitJob, CommitOutcome, CreateJob, CreateOutcome,
    Error, EventHandler, JobStore, ListQuery, Queue, Retention, SharedState, Store, WorkQueues,
    codec,
};
use crate::job::{Job, JobId, Topic, Update};
use crate::time::Time;

/// Number of threads that read a database file.
const READER_THREADS: usize = 4;

/// Jobs in an SQLite database, in a file or in memory.
#[derive(Debug)]
pub struct SqliteStore {
    writer: CommandQueue,
    /// `None` for a database in memory: the writer reads as well.
    readers: Option<CommandQueue>,
    is_failing: Arc<AtomicBool>,
    retention: Retention,
    /// The reader threads, followed by the writer thread.
    threads: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens `sqlite://path` or `sqlite::memory:` and starts the threads. Creates a missing file.
    ///
    /// Releases the claims of the previous process, and schedules polls of submissions that it
    /// left in flight. Blocks on file access.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the URL is invalid, or if the file can't be opened or is in use
    /// by another process. [`Error::Corrupt`] if the file is not an SQLite database, belongs to
    /// another program, or has a newer schema.
    pub fn open(url: &str, retention: Retention, on_event: EventHandler) -> Result<Self, Error> {
        let location = Location::parse(url)?;
        let (db, lock) = location.open()?;
        let is_failing = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();

        let (readers, receiver) = CommandQueue::new();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..READER_THREADS {
            let Some(db) = location.open_reader()? else {
                break;
            };
            let receiver = Arc::clone(&receiver);
            threads.push(spawn("store-reader", move || {
                threads::run_reader(&db, &receiver);
            })?);
        }
        let readers = (!threads.is_empty()).then_some(readers);

        let (writer, receiver) = CommandQueue::new();
        let failing = Arc::clone(&is_failing);
        threads.push(spawn("store-writer", move || {
            threads::run_writer(&db, receiver, &on_event, &failing);
            drop(db);
            drop(lock);
        })?);
        Ok(Self {
            writer,
            readers,
            is_failing,
            retention,
            threads: tokio::sync::Mutex::new(threads),
        })
    }

    async fn read<T, F>(&self, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        let queue = self.readers.as_ref().unwrap_or(&self.writer);
        queue.execute(move |db, _| operation(db)).await
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread
        .spawn(run)
        .map_err(|error| Error::Unavailable(error.to_string()))
}

#[async_trait]
impl JobStore for SqliteStore {
    async fn create(&self, mut create: CreateJob) -> Result<CreateOutcome, Error> {
        let key = create.idempotency.take();
        let record = JobRecord::from_create(create)?;
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
        let expected = commit.expected_version;
        let record = JobRecord::from_commit(commit)?;
        self.writer
            .execute(move |db, changes| jobs::commit(db, &record, expected, changes))
            .await
    }

    /// Returns at once: a version that can be read is on disk.
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
        let update = codec::to_json(update)?;
        self.writer
            .execute(move |db, _| jobs::buffer_update(db, &provider, &task_id, &update, now))
            .await
    }

    async fn buffered_updates(&self, provider: &str, task_id: &str) -> Result<Vec<Update>, Error> {
        let (provider, task_id) = (provider.to_owned(), task_id.to_owned());
        self.read(move |db| jobs::buffered_updates(db, &provider, &task_id))
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
            .execute(move |db, _| queues::schedule_poll(db, &id, at, cool_down))
            .await
    }
}

#[async_trait]
impl ChangeSource for SqliteStore {
    /// Does nothing: the node receives every change.
    async fn subscribe(&self, _: &[Topic]) -> Result<(), Error> {
        Ok(())
    }

    fn release(&self, _: Vec<Topic>) {}

    fn channels(&self) -> Option<usize> {
        None
    }

    fn is_lossy(&self) -> bool {
        false
    }
}

#[async_trait]
impl BudgetStore for SqliteStore {
    async fn balances(&self, windows: &[String], now: Time) -> Result<Vec<i64>, Error> {
        let windows = windows.to_vec();
        self.read(move |db| {
            let balances = windows.iter().map(|name| budgets::balance(db, name, now));
            Ok(balances.collect::<rusqlite::Result<_>>()?)
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

    /// Checks that the writer responds. If its last transaction failed, performs a small write.
    async fn ping(&self) -> Result<(), Error> {
        let is_failing = self.is_failing.load(Ordering::Relaxed);
        self.writer
            .execute(move |db, _| {
                if is_failing {
                    file::probe_write(db)?;
                }
                Ok(())
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
        let writer_thread = readers.pop();
        let joined = tokio::task::spawn_blocking(move || {
            let mut is_clean = true;
            for reader in readers {
                is_clean &= reader.join().is_ok();
            }
            // Dropping the sender ends the writer. Its connection must be the last to close, so
            // that it can remove the write-ahead log.
            drop(writer);
            is_clean & writer_thread.is_none_or(|thread| thread.join().is_ok())
        });
        if !joined.await.unwrap_or(false) {
            tracing::error!("store thread panicked");
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        // A value that was read but does not have the expected type.
        let is_corrupt = matches!(
            error,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
        );
        if is_corrupt {
            Self::Corrupt(error.to_string())
        } else {
            Self::Unavailable(error.to_string())
        }
    }
}

fn duration_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn sql_limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
