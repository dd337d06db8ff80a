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

use self::command_queue::{Changes, CommandQueue};
use self::file::Location;
use super::{ChangeSource, Error, EventHandler, Retention, SharedState, Store};
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

    async fn read<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let queue = self.readers.as_ref().unwrap_or(&self.writer);
        queue.execute(move |db, _| operation(db)).await
    }

    /// Runs an operation in a transaction, and then publishes the changes that it adds.
    async fn write<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Connection, &mut Changes) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.writer.execute(operation).await
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread
        .spawn(run)
        .map_err(|error| Error::Unavailable(error.to_string()))
}

impl ChangeSource for SqliteStore {}

impl SharedState for SqliteStore {}

#[async_trait]
impl Store for SqliteStore {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    /// Checks that the writer responds. If its last transaction failed, performs a small write.
    async fn ping(&self) -> Result<(), Error> {
        let is_failing = self.is_failing.load(Ordering::Relaxed);
        self.write(move |db, _| match is_failing {
            true => Ok(file::probe_write(db)?),
            false => Ok(()),
        })
        .await
    }

    async fn sweep(&self, now: Time) -> Result<usize, Error> {
        let retention = self.retention;
        self.write(move |db, _| sweep::sweep(db, now, retention))
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
