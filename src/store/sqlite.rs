//! The embedded engine: jobs in an SQLite database, for a single node.
//!
//! One connection performs all writes, in transactions that several callers share. Commits are
//! therefore serialized, and changes are published in commit order. Unfinished jobs are read from
//! memory, and everything else by separate threads.

mod budgets;
mod command;
mod document_cache;
mod file;
mod jobs;
mod outbox;
mod queues;
mod readers;
mod sweep;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;

use self::command::Changes;
use self::document_cache::DocumentCache;
use self::file::{Access, Location};
use self::readers::Readers;
use self::writer::Writer;
use super::turns::Turns;
use super::{ChangeSource, Error, EventHandler, Retention, SharedState, Store};
use crate::time::Time;

/// Maximum time that an operation waits for a place in a queue.
const ENQUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Jobs in an SQLite database, in a file or in memory.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Arc<Writer>,
    /// `None` for a database in memory: the writer reads as well.
    readers: Option<Readers>,
    cache: Arc<DocumentCache>,
    retention: Retention,
    turns: Arc<Turns>,
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
        Self::open_with_cache(url, retention, on_event, DocumentCache::default())
    }

    fn open_with_cache(
        url: &str,
        retention: Retention,
        on_event: EventHandler,
        cache: DocumentCache,
    ) -> Result<Self, Error> {
        let location = Location::parse(url)?;
        let connection = location.open()?;
        let (mut readers, mut threads, mut checkpointer) = (None, Vec::new(), None);
        if let Some(path) = location.path() {
            let open = || location.connect(path, Access::ReadOnly);
            let (started, reader_threads) = Readers::start(open, ENQUEUE_TIMEOUT)?;
            readers = Some(started);
            threads = reader_threads;
            checkpointer = Some(location.connect(path, Access::ReadWrite)?);
        }
        let cache = Arc::new(cache);
        let (writer, writer_thread) = Writer::start(
            connection,
            checkpointer,
            Arc::clone(&cache),
            on_event,
            ENQUEUE_TIMEOUT,
        )?;
        threads.push(writer_thread);
        Ok(Self {
            writer,
            readers,
            cache,
            retention,
            turns: Arc::default(),
            threads: tokio::sync::Mutex::new(threads),
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        match &self.readers {
            Some(readers) => readers.execute(operation).await,
            None => self.writer.execute(move |db, _| operation(db)).await,
        }
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
        let is_failing = self.writer.is_failing();
        self.write(move |db, _| match is_failing {
            true => Ok(file::probe_write(db)?),
            false => Ok(()),
        })
        .await
    }

    async fn sweep(&self, now: Time) -> Result<usize, Error> {
        let retention = self.retention;
        self.write(move |db, changes| sweep::sweep(db, now, retention, changes))
            .await
    }

    async fn close(&self) {
        self.writer.close();
        if let Some(readers) = &self.readers {
            readers.close();
        }
        let mut threads = self.threads.lock().await;
        let (threads, writer) = (std::mem::take(&mut *threads), Arc::clone(&self.writer));
        let joined = tokio::task::spawn_blocking(move || {
            let mut is_clean = true;
            for thread in threads {
                is_clean &= thread.join().is_ok();
            }
            writer.finish();
            is_clean
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
