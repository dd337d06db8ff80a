//! Group commits, callers that are cancelled or wait, and the end of the writer.

use std::sync::Arc;

use super::*;
use crate::job::{Job, NewJob};
use crate::protocol::Frame;
use crate::store::Schedule;
use crate::store::sqlite::command::Change;
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
    changes.stored.push(Change {
        frame: Arc::new(Frame::new(job())),
        schedule: Schedule::default(),
        bytes: 0,
    });
    Ok(())
}

fn count(db: &Connection, _: &mut Changes) -> Result<i64, Error> {
    Ok(db.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))?)
}

/// A writer, with the number of changes it has published.
struct TestWriter {
    writer: Arc<Writer>,
    published: Arc<Mutex<usize>>,
    thread: JoinHandle<()>,
}

impl TestWriter {
    fn start(setup: &str) -> Self {
        Self::start_with(Connection::open_in_memory().unwrap(), setup)
    }

    fn start_with(db: Connection, setup: &str) -> Self {
        db.execute_batch(setup).unwrap();
        let published = Arc::new(Mutex::new(0));
        let count = Arc::clone(&published);
        let on_event: EventHandler = Arc::new(move |_| *count.lock().unwrap() += 1);
        let cache = Arc::new(DocumentCache::default());
        let (writer, thread) =
            Writer::start((db, None), None, cache, on_event, Duration::ZERO).unwrap();
        Self {
            writer,
            published,
            thread,
        }
    }

    fn published(&self) -> usize {
        *self.published.lock().unwrap()
    }

    fn close(self) {
        self.writer.close();
        self.thread.join().unwrap();
        self.writer.finish();
    }
}

#[tokio::test]
async fn failed_group_commit_rolls_back_for_all_callers() {
    let insert_too_much = |db: &Connection, _: &mut Changes| {
        Ok(db.execute("INSERT INTO notes VALUES (zeroblob(100000))", [])?)
    };
    let setup = "CREATE TABLE notes (note); PRAGMA max_page_count = 2;";
    let test = TestWriter::start(setup);
    // The first command waits for the others, so they share a transaction.
    let (before, failing, after) = tokio::join!(
        test.writer.execute(insert),
        test.writer.execute(insert_too_much),
        test.writer.execute(insert),
    );
    let full = "store unavailable: database or disk is full";
    assert_eq!(before.unwrap_err().to_string(), full);
    assert_eq!(failing.unwrap_err().to_string(), full);
    assert_eq!(after.unwrap_err().to_string(), full);
    assert_eq!(test.published(), 0);
    assert!(test.writer.is_failing());

    assert_eq!(test.writer.execute(count).await.unwrap(), 0);
    test.writer.execute(insert).await.unwrap();
    assert_eq!(test.writer.execute(count).await.unwrap(), 1);
    assert_eq!(test.published(), 1);
    assert!(!test.writer.is_failing());
    test.close();
}

#[tokio::test]
async fn corrupt_row_fails_only_its_caller() {
    let read_corrupt = |db: &Connection, _: &mut Changes| {
        Ok(db.query_row("SELECT x'00'", [], |row| row.get::<_, String>(0))?)
    };
    let setup = "CREATE TABLE notes (note)";
    let test = TestWriter::start(setup);
    let (before, corrupt, after) = tokio::join!(
        test.writer.execute(insert),
        test.writer.execute(read_corrupt),
        test.writer.execute(insert),
    );
    assert!(matches!(corrupt, Err(Error::Corrupt(_))), "{corrupt:?}");
    before.unwrap();
    after.unwrap();
    assert_eq!(test.writer.execute(count).await.unwrap(), 2);
    test.close();
}

#[tokio::test]
async fn command_of_a_cancelled_caller_runs() {
    let test = TestWriter::start("CREATE TABLE notes (note)");
    let mut cancelled = Box::pin(test.writer.execute(insert));
    assert!(futures_util::poll!(&mut cancelled).is_pending());
    drop(cancelled);
    // The writer thread or this command commits both.
    assert!(test.writer.execute(count).await.unwrap() <= 1);
    test.writer.execute(insert).await.unwrap();
    assert_eq!(test.writer.execute(count).await.unwrap(), 2);
    test.close();
}

#[tokio::test]
async fn command_waits_for_the_thread_that_holds_the_connection() {
    let test = TestWriter::start("CREATE TABLE notes (note)");
    let (locked, is_locked) = std::sync::mpsc::channel();
    let (release, is_released) = std::sync::mpsc::channel::<()>();
    let writer = Arc::clone(&test.writer);
    let holder = std::thread::spawn(move || {
        let _connection = lock(&writer.connection);
        locked.send(()).unwrap();
        is_released.recv().unwrap_err();
    });
    is_locked.recv().unwrap();
    let mut waiting = Box::pin(test.writer.execute(insert));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    tokio::task::yield_now().await;
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(release);
    holder.join().unwrap();
    test.writer.wake_thread();
    waiting.await.unwrap();
    assert_eq!(test.published(), 1);
    test.close();
}

#[tokio::test]
async fn closed_writer_runs_queued_commands_and_rejects_further_ones() {
    let test = TestWriter::start("CREATE TABLE notes (note)");
    let mut queued = Box::pin(test.writer.execute(insert));
    assert!(futures_util::poll!(&mut queued).is_pending());
    test.writer.close();
    let rejected = test.writer.execute(insert).await.unwrap_err();
    assert_eq!(rejected.to_string(), "store unavailable: store is closed");
    test.writer.finish();
    queued.await.unwrap();
    assert_eq!(test.published(), 1);
}

#[tokio::test]
async fn panic_of_a_command_rolls_back_and_publishes_nothing() {
    let test = TestWriter::start("CREATE TABLE notes (note)");
    let panicking = |db: &Connection, changes: &mut Changes| -> Result<(), Error> {
        insert(db, changes)?;
        panic!("test failure");
    };
    let (before, failed) =
        tokio::join!(test.writer.execute(insert), test.writer.execute(panicking));
    for error in [before.unwrap_err(), failed.unwrap_err()] {
        assert_eq!(error.to_string(), "store unavailable: operation panicked");
    }
    assert_eq!(test.writer.execute(count).await.unwrap(), 0);
    // The same on the writer thread.
    let mut cancelled = Box::pin(test.writer.execute(panicking));
    assert!(futures_util::poll!(&mut cancelled).is_pending());
    drop(cancelled);
    test.writer.execute(insert).await.ok();
    let published = test.published();
    let stored = test.writer.execute(count).await.unwrap();
    assert_eq!(usize::try_from(stored).unwrap(), published);
    test.writer.execute(insert).await.unwrap();
    assert_eq!(test.published(), published + 1);
    test.close();
}

#[tokio::test]
async fn commit_waits_for_another_process_that_has_locked_the_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    let setup = "PRAGMA journal_mode = WAL; CREATE TABLE notes (note);";
    let test = TestWriter::start_with(Connection::open(&path).unwrap(), setup);
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut waiting = Box::pin(test.writer.execute(insert));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    tokio::task::yield_now().await;
    assert!(futures_util::poll!(&mut waiting).is_pending());
    other.execute_batch("COMMIT").unwrap();
    waiting.await.unwrap();
    assert_eq!(test.published(), 1);
    test.close();
}
