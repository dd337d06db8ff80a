//! The one thread that writes: what is waiting becomes one transaction.
//!
//! Invariant: a change is announced exactly once, after its transaction is on disk and before its
//! caller is answered; a transaction that fails leaves nothing behind and announces nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::command_queue::{Changes, Command, Receiver};
use crate::store::{Error, EventHandler, StoreEvent};

/// The most steps that share a transaction, so that the first of them does not wait for long.
const MAX_GROUP_COMMIT: usize = 256;

/// Serves the inbox until it is closed and empty, then moves the log into the database file.
pub(super) fn serve(
    db: &Connection,
    mut inbox: Receiver,
    announce: &EventHandler,
    failing: &Arc<AtomicBool>,
) {
    let mut group = Vec::with_capacity(MAX_GROUP_COMMIT);
    let mut changes = Changes::new();
    while inbox.blocking_recv_many(&mut group, MAX_GROUP_COMMIT) > 0 {
        let outcome = transact(db, &mut group, &mut changes);
        if let Err(error) = &outcome {
            changes.clear();
            if !failing.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "the store cannot write");
            }
        } else if failing.swap(false, Ordering::Relaxed) {
            tracing::warn!("the store writes again");
        }
        for job in changes.drain(..) {
            announce(StoreEvent::JobChanged(job));
        }
        let outcome = outcome.map_err(|error| Error::Unavailable(error.to_string()));
        for step in group.drain(..) {
            step.answer(outcome.clone());
        }
    }
    if let Err(error) = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%error, "the store's log stays beside its file until it is opened again");
    }
}

/// Dropped without a commit, the transaction is rolled back.
fn transact(
    db: &Connection,
    group: &mut [Box<dyn Command>],
    changes: &mut Changes,
) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    for step in group {
        step.run(&transaction, changes)?;
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use rusqlite::types::Type;

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

    fn note(db: &Connection, changes: &mut Changes) -> rusqlite::Result<()> {
        db.execute("INSERT INTO notes VALUES ('noted')", [])?;
        changes.push(job());
        Ok(())
    }

    fn notes(db: &Connection, _: &mut Changes) -> rusqlite::Result<i64> {
        db.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))
    }

    #[tokio::test]
    async fn failed_group_commit_rolls_back_for_all_callers() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE notes (note); PRAGMA max_page_count = 2;")
            .unwrap();
        let (inbox, receiver) = CommandQueue::new();
        let heard = Arc::new(Mutex::new(0));
        let failing = Arc::new(AtomicBool::new(false));
        let begin = async {
            let (heard, failing) = (Arc::clone(&heard), Arc::clone(&failing));
            let announce: EventHandler = Arc::new(move |_| *heard.lock().unwrap() += 1);
            thread::spawn(move || serve(&db, receiver, &announce, &failing))
        };
        let too_much = |db: &Connection, _: &mut Changes| {
            db.execute("INSERT INTO notes VALUES (zeroblob(100000))", [])
        };
        // The three are waiting before the thread begins, so they share a transaction.
        let (before, culprit, after, thread) = tokio::join!(
            inbox.execute(note),
            inbox.execute(too_much),
            inbox.execute(note),
            begin
        );
        let full = "the store is away: database or disk is full";
        assert_eq!(before.unwrap_err().to_string(), full);
        assert_eq!(culprit.unwrap_err().to_string(), full);
        assert_eq!(after.unwrap_err().to_string(), full);
        assert_eq!(*heard.lock().unwrap(), 0);
        assert!(failing.load(Ordering::Relaxed));

        assert_eq!(inbox.execute(notes).await.unwrap(), 0);
        inbox.execute(note).await.unwrap();
        assert_eq!(inbox.execute(notes).await.unwrap(), 1);
        assert_eq!(*heard.lock().unwrap(), 1);
        assert!(!failing.load(Ordering::Relaxed));
        drop(inbox.close());
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn corrupt_row_fails_only_its_caller() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE notes (note)").unwrap();
        let (inbox, receiver) = CommandQueue::new();
        let begin = async {
            let failing = Arc::new(AtomicBool::new(false));
            let announce: EventHandler = Arc::new(|_| {});
            thread::spawn(move || serve(&db, receiver, &announce, &failing))
        };
        let unreadable = |_: &Connection, _: &mut Changes| -> rusqlite::Result<()> {
            let name = "doc".to_owned();
            Err(rusqlite::Error::InvalidColumnType(0, name, Type::Blob))
        };
        let (before, culprit, after, thread) = tokio::join!(
            inbox.execute(note),
            inbox.execute(unreadable),
            inbox.execute(note),
            begin
        );
        assert!(matches!(culprit, Err(Error::Corrupt(_))), "{culprit:?}");
        before.unwrap();
        after.unwrap();
        assert_eq!(inbox.execute(notes).await.unwrap(), 2);
        drop(inbox.close());
        thread.join().unwrap();
    }
}
