//! The threads that run queued commands: several readers and one writer with group commit.
//!
//! The writer publishes a change once, after its transaction is durable and before it replies to
//! the caller. A transaction that fails is rolled back and publishes nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::command_queue::{Changes, Command, Receiver};
use crate::store::{Error, EventHandler, StoreEvent};

/// Maximum number of commands that a reader takes at once. Batches save thread switches under
/// load. A small batch seldom waits behind a slow command while another reader is idle.
const MAX_READ_BATCH: usize = 8;

/// Maximum number of commands in one transaction. It bounds the latency of the first command.
const MAX_GROUP_COMMIT: usize = 256;

/// Runs commands until the queue is closed and empty. Several readers share one queue.
///
/// Each command sees all transactions that were acknowledged before it was queued.
pub(super) fn run_reader(db: &Connection, queue: &Mutex<Receiver>) {
    let mut commands = Vec::with_capacity(MAX_READ_BATCH);
    let receive = |commands: &mut Vec<_>| {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.blocking_recv_many(commands, MAX_READ_BATCH)
    };
    while receive(&mut commands) > 0 {
        for mut command in commands.drain(..) {
            let outcome = command.run(db, &mut Changes::new());
            command.reply(outcome);
        }
    }
}

/// Runs commands until the queue is closed and empty, then moves the write-ahead log into the
/// database file.
///
/// `is_failing` is true while the latest transaction has failed.
pub(super) fn run_writer(
    db: &Connection,
    mut queue: Receiver,
    on_event: &EventHandler,
    is_failing: &AtomicBool,
) {
    let mut group = Vec::with_capacity(MAX_GROUP_COMMIT);
    let mut changes = Changes::new();
    while queue.blocking_recv_many(&mut group, MAX_GROUP_COMMIT) > 0 {
        let outcome = run_group(db, &mut group, &mut changes);
        let was_failing = is_failing.swap(outcome.is_err(), Ordering::Relaxed);
        match &outcome {
            Ok(()) if was_failing => tracing::warn!("sqlite writes recovered"),
            Ok(()) => {}
            Err(error) => {
                changes.clear();
                if !was_failing {
                    tracing::error!(%error, "sqlite write failed");
                }
            }
        }
        for job in changes.drain(..) {
            on_event(StoreEvent::JobChanged(job));
        }
        for command in group.drain(..) {
            command.reply(outcome.clone());
        }
    }
    if let Err(error) = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%error, "WAL checkpoint on close failed");
    }
}

/// Runs the commands in one transaction, which is rolled back if one of them fails.
fn run_group(
    db: &Connection,
    group: &mut [Box<dyn Command>],
    changes: &mut Changes,
) -> Result<(), Error> {
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    for command in group {
        command.run(&transaction, changes)?;
    }
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::job::{Job, NewJob};
    use crate::store::sqlite::command_queue::CommandQueue;
    use crate::time::Time;

    fn job() -> Arc<Job> {
        let new = NewJob {
            owner: "ada".into(),
            provider: None,
            provider_task_id: None,
            model: None,
            metadata: serde_json::Map::new(),
            request: None,
            deadline: std::time::Duration::from_secs(60),
        };
        Arc::new(Job::new(new, Time::from_millis(0)))
    }

    fn insert(db: &Connection, changes: &mut Changes) -> Result<(), Error> {
        db.execute("INSERT INTO notes VALUES ('note')", [])?;
        changes.push(job());
        Ok(())
    }

    fn count(db: &Connection, _: &mut Changes) -> Result<i64, Error> {
        Ok(db.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))?)
    }

    /// A writer thread, with the number of changes it has published.
    struct Writer {
        published: Arc<Mutex<usize>>,
        is_failing: Arc<AtomicBool>,
        thread: JoinHandle<()>,
    }

    impl Writer {
        fn start(setup: &str, queue: Receiver) -> Self {
            let db = Connection::open_in_memory().unwrap();
            db.execute_batch(setup).unwrap();
            let published = Arc::new(Mutex::new(0));
            let is_failing = Arc::new(AtomicBool::new(false));
            let (count, failing) = (Arc::clone(&published), Arc::clone(&is_failing));
            let on_event: EventHandler = Arc::new(move |_| *count.lock().unwrap() += 1);
            Self {
                published,
                is_failing,
                thread: thread::spawn(move || run_writer(&db, queue, &on_event, &failing)),
            }
        }

        fn published(&self) -> usize {
            *self.published.lock().unwrap()
        }
    }

    #[tokio::test]
    async fn failed_group_commit_rolls_back_for_all_callers() {
        let (queue, receiver) = CommandQueue::new();
        let insert_too_much = |db: &Connection, _: &mut Changes| {
            Ok(db.execute("INSERT INTO notes VALUES (zeroblob(100000))", [])?)
        };
        let setup = "CREATE TABLE notes (note); PRAGMA max_page_count = 2;";
        // All three commands are queued before the thread starts, so they share a transaction.
        let (before, failing, after, writer) = tokio::join!(
            queue.execute(insert),
            queue.execute(insert_too_much),
            queue.execute(insert),
            async { Writer::start(setup, receiver) }
        );
        let full = "store unavailable: database or disk is full";
        assert_eq!(before.unwrap_err().to_string(), full);
        assert_eq!(failing.unwrap_err().to_string(), full);
        assert_eq!(after.unwrap_err().to_string(), full);
        assert_eq!(writer.published(), 0);
        assert!(writer.is_failing.load(Ordering::Relaxed));

        assert_eq!(queue.execute(count).await.unwrap(), 0);
        queue.execute(insert).await.unwrap();
        assert_eq!(queue.execute(count).await.unwrap(), 1);
        assert_eq!(writer.published(), 1);
        assert!(!writer.is_failing.load(Ordering::Relaxed));
        drop(queue.close());
        writer.thread.join().unwrap();
    }

    #[tokio::test]
    async fn corrupt_row_fails_only_its_caller() {
        let (queue, receiver) = CommandQueue::new();
        let read_corrupt = |db: &Connection, _: &mut Changes| {
            Ok(db.query_row("SELECT x'00'", [], |row| row.get::<_, String>(0))?)
        };
        let setup = "CREATE TABLE notes (note)";
        let (before, corrupt, after, writer) = tokio::join!(
            queue.execute(insert),
            queue.execute(read_corrupt),
            queue.execute(insert),
            async { Writer::start(setup, receiver) }
        );
        assert!(matches!(corrupt, Err(Error::Corrupt(_))), "{corrupt:?}");
        before.unwrap();
        after.unwrap();
        assert_eq!(queue.execute(count).await.unwrap(), 2);
        drop(queue.close());
        writer.thread.join().unwrap();
    }
}
