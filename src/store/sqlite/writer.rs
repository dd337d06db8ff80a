//! Group commit: the commands of several callers share a transaction.
//!
//! The first caller whose command finds an empty queue commits the group on its own thread, after
//! the other tasks of that thread have run once. A group therefore contains all commands of one
//! turn of an event loop, and neither the commands nor their results change threads.
//!
//! The writer thread commits a group if a caller cannot: another thread holds the connection, the
//! caller was cancelled, another process has locked the database, or the disk is slow. It also
//! moves the write-ahead log into the database file.
//!
//! A change is published once, after its transaction is durable and before the reply to its
//! caller. A transaction that fails is rolled back and publishes nothing.

use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::command::{self, Changes, Command, unavailable};
use super::document_cache::DocumentCache;
use super::file::BUSY_TIMEOUT;
use super::spawn;
use crate::store::{Error, EventHandler, StoreEvent};

/// Maximum number of commands in one transaction. It bounds the latency of the first command.
const MAX_GROUP_COMMIT: usize = 256;

/// Maximum number of commands that wait for their transaction.
const MAX_WAITING_COMMANDS: usize = 1024;

/// Duration of a transaction after which the next one runs on the writer thread, so that a slow
/// disk does not delay the sockets of a worker thread.
const MAX_INLINE_COMMIT: Duration = Duration::from_millis(4);

/// Number of pages, of 4 KiB each, written to the write-ahead log before a checkpoint moves them into
/// the database file. A page that changes several times between two checkpoints is moved once.
const CHECKPOINT_PAGES: i32 = 4096;

/// The connection that writes, and the commands that wait for it.
pub(super) struct Writer {
    queue: Mutex<Queue>,
    /// Bounds the queue.
    capacity: Semaphore,
    enqueue_timeout: Duration,
    /// `None` after the store was closed.
    connection: Mutex<Option<WriteConnection>>,
    thread: SyncSender<()>,
    /// Whether the latest transaction failed.
    is_failing: AtomicBool,
    /// Whether the latest transaction took longer than [`MAX_INLINE_COMMIT`].
    is_slow: AtomicBool,
    /// Number of pages written to the write-ahead log since the last checkpoint.
    wal_pages: Arc<AtomicI32>,
    cache: Arc<DocumentCache>,
    on_event: EventHandler,
}

#[derive(Default)]
struct Queue {
    commands: Vec<Box<dyn Command>>,
    is_closed: bool,
}

struct WriteConnection {
    db: Connection,
    /// Lock of the database file, released after the connection is closed.
    _lock: Option<File>,
}

impl Writer {
    /// Starts the writer thread. `checkpointer` is another connection to the same file, or `None`
    /// for a database in memory.
    pub(super) fn start(
        (mut db, file_lock): (Connection, Option<File>),
        checkpointer: Option<Connection>,
        cache: Arc<DocumentCache>,
        on_event: EventHandler,
        enqueue_timeout: Duration,
    ) -> Result<(Arc<Self>, JoinHandle<()>), Error> {
        let (thread, signals) = sync_channel(1);
        let wal_pages = Arc::new(AtomicI32::new(0));
        let pages = Arc::clone(&wal_pages);
        // Replaces SQLite's own checkpoints, which run within a commit.
        let mut length = 0;
        db.wal_hook(Some(move |_: &mut _, new_length| {
            // A log that is shorter than before was started from its beginning.
            let written = new_length - if new_length < length { 0 } else { length };
            length = new_length;
            pages.fetch_add(written, Ordering::Relaxed);
            Ok(())
        }))?;
        let writer = Arc::new(Self {
            queue: Mutex::default(),
            capacity: Semaphore::new(MAX_WAITING_COMMANDS),
            enqueue_timeout,
            connection: Mutex::new(Some(WriteConnection {
                db,
                _lock: file_lock,
            })),
            thread,
            is_failing: AtomicBool::new(false),
            is_slow: AtomicBool::new(false),
            wal_pages,
            cache,
            on_event,
        });
        let weak = Arc::downgrade(&writer);
        let thread = spawn("store-writer", move || {
            run_thread(&weak, &signals, checkpointer.as_ref());
        })?;
        Ok((writer, thread))
    }

    /// Runs `operation` in a transaction that it may share with other operations, and returns its
    /// result after the transaction is durable.
    ///
    /// A queued operation runs even if the returned future is dropped.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if the queue stays full, the error of the operation, or the error of
    /// the transaction.
    pub(super) async fn execute<T, F>(&self, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &mut Changes) -> Result<T, Error> + Send + 'static,
    {
        let _permit = self.acquire().await?;
        let (command, result) = command::command(operation);
        let is_first = {
            let mut queue = lock(&self.queue);
            if queue.is_closed {
                return Err(unavailable("store is closed"));
            }
            queue.commands.push(command);
            queue.commands.len() == 1
        };
        if is_first {
            let handover = Handover(self);
            if !self.is_slow.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
                std::mem::forget(handover);
                self.run_inline();
            }
        }
        command::result_of(result).await
    }

    async fn acquire(&self) -> Result<SemaphorePermit<'_>, Error> {
        let permit = match self.capacity.try_acquire() {
            Ok(permit) => return Ok(permit),
            Err(_) => timeout(self.enqueue_timeout, self.capacity.acquire()).await,
        };
        let permit = permit.map_err(|_| Error::Overloaded)?;
        permit.map_err(|_| unavailable("store is closed"))
    }

    /// Returns whether the latest transaction failed.
    pub(super) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Commits the queued commands on this thread. The writer thread commits the commands that
    /// arrive in the meantime, so that the other tasks of this thread can run.
    fn run_inline(&self) {
        match self.connection.try_lock() {
            Ok(mut connection) => self.run_group(&mut connection, Duration::ZERO),
            Err(TryLockError::Poisoned(poisoned)) => {
                self.run_group(&mut poisoned.into_inner(), Duration::ZERO);
            }
            // The thread that holds the connection checks the queue after it releases it.
            Err(TryLockError::WouldBlock) => return,
        }
        // Checked after the connection is released, for callers that could not lock it.
        if self.has_commands() || self.needs_checkpoint() {
            self.wake_thread();
        }
    }

    fn run_on_thread(&self, checkpointer: Option<&Connection>) {
        loop {
            let mut connection = lock(&self.connection);
            self.run_group(&mut connection, BUSY_TIMEOUT);
            drop(connection);
            if self.needs_checkpoint() {
                self.checkpoint(checkpointer);
            }
            if !self.has_commands() {
                return;
            }
        }
    }

    /// Moves the write-ahead log into the database file, mostly while commits continue.
    fn checkpoint(&self, checkpointer: Option<&Connection>) {
        let run = |db: &Connection| db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        let mut result = checkpointer.map_or(Ok(()), run);
        if let Some(connection) = lock(&self.connection).as_ref() {
            // No commit runs while the connection is locked. This checkpoint therefore moves the
            // rest, and the next commit writes to the beginning of the log unless a reader still
            // uses the log.
            result = result.and_then(|()| run(&connection.db));
            self.wal_pages.store(0, Ordering::Relaxed);
        }
        if let Err(error) = result {
            tracing::warn!(%error, "WAL checkpoint failed");
        }
    }

    fn needs_checkpoint(&self) -> bool {
        self.wal_pages.load(Ordering::Relaxed) >= CHECKPOINT_PAGES
    }

    fn has_commands(&self) -> bool {
        !lock(&self.queue).commands.is_empty()
    }

    fn wake_thread(&self) {
        // A full channel already contains a signal.
        let _ = self.thread.try_send(());
    }

    /// Removes the commands of the next transaction from the queue.
    fn take_group(&self) -> Vec<Box<dyn Command>> {
        let mut queue = lock(&self.queue);
        let count = queue.commands.len().min(MAX_GROUP_COMMIT);
        queue.commands.drain(..count).collect()
    }

    /// Runs the queued commands in one transaction. Waits up to `busy_timeout` for locks of other
    /// processes. If it is zero and the database is locked, the commands stay queued.
    fn run_group(&self, connection: &mut Option<WriteConnection>, busy_timeout: Duration) {
        let Some(WriteConnection { db, .. }) = connection else {
            return;
        };
        let mut group = self.take_group();
        let mut changes = Changes::default();
        if group.is_empty() {
            return;
        }
        let started = Instant::now();
        let outcome = match begin(db, busy_timeout) {
            Ok(transaction) => run(transaction, &mut group, &mut changes),
            Err(error)
                if busy_timeout.is_zero()
                    && error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) =>
            {
                lock(&self.queue).commands.splice(..0, group);
                return;
            }
            Err(error) => Err(error.into()),
        };
        self.is_slow
            .store(started.elapsed() > MAX_INLINE_COMMIT, Ordering::Relaxed);
        let was_failing = self.is_failing.swap(outcome.is_err(), Ordering::Relaxed);
        match &outcome {
            Ok(()) => {
                if was_failing {
                    tracing::warn!("sqlite writes recovered");
                }
                self.publish(changes);
            }
            Err(error) => {
                if !was_failing {
                    tracing::error!(%error, "sqlite write failed");
                }
            }
        }
        for command in group {
            command.reply(outcome.clone());
        }
    }

    /// Publishes the changes of a durable transaction. The caller holds the connection, so changes
    /// are published in commit order.
    fn publish(&self, changes: Changes) {
        if changes.deletes_unfinished {
            self.cache.clear();
        }
        for change in changes.stored {
            self.cache.store(&change);
            (self.on_event)(StoreEvent::JobChanged(change.frame));
        }
    }

    /// Rejects further commands and ends the writer thread.
    pub(super) fn close(&self) {
        lock(&self.queue).is_closed = true;
        self.wake_thread();
    }

    /// Runs the queued commands, moves the write-ahead log into the database file, and closes the
    /// connection, which must be the last one to the file. Blocks.
    pub(super) fn finish(&self) {
        let mut connection = lock(&self.connection);
        while connection.is_some() && self.has_commands() {
            self.run_group(&mut connection, BUSY_TIMEOUT);
        }
        let Some(WriteConnection { db, .. }) = connection.as_ref() else {
            return;
        };
        if let Err(error) = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "WAL checkpoint on close failed");
        }
        *connection = None;
    }

    fn is_closed(&self) -> bool {
        lock(&self.queue).is_closed
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

/// Wakes the writer thread if the caller that would commit the group is cancelled.
struct Handover<'a>(&'a Writer);

impl Drop for Handover<'_> {
    fn drop(&mut self) {
        self.0.wake_thread();
    }
}

/// Commits groups and runs checkpoints on request, until the writer is closed or dropped.
fn run_thread(writer: &Weak<Writer>, signals: &Receiver<()>, checkpointer: Option<&Connection>) {
    while signals.recv().is_ok() {
        match writer.upgrade() {
            Some(writer) if !writer.is_closed() => writer.run_on_thread(checkpointer),
            Some(_) | None => return,
        }
    }
}

/// Begins a transaction. Waits up to `busy_timeout` for locks of other processes.
fn begin(db: &Connection, busy_timeout: Duration) -> rusqlite::Result<Transaction<'_>> {
    db.busy_timeout(busy_timeout)?;
    Transaction::new_unchecked(db, TransactionBehavior::Immediate)
}

/// Runs the commands in a transaction, which is rolled back if one of them fails.
fn run(
    transaction: Transaction<'_>,
    group: &mut [Box<dyn Command>],
    changes: &mut Changes,
) -> Result<(), Error> {
    // A panic must not stop the caller that commits for others, or the writer thread.
    let run_all = || {
        group
            .iter_mut()
            .try_for_each(|command| command.run(&transaction, changes))
    };
    catch_unwind(AssertUnwindSafe(run_all))
        .unwrap_or_else(|_| Err(unavailable("operation panicked")))?;
    Ok(transaction.commit()?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
