//! The database file of the SQLite engine.

mod outbox;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use progress_hub::job::{Job, JobId, Status};
use progress_hub::store::sqlite::SqliteStore;
use progress_hub::store::{
    BudgetStore, CLAIM_LEASE, CommitOutcome, CreateOutcome, Error, EventHandler, JobStore,
    ListQuery, Queue, Schedule, Store, StoreEvent, WorkQueues,
};
use progress_hub::time::Time;
use tempfile::TempDir;

use super::budgets::entry;
use super::{MINUTE, RETENTION, commit_job, creation, job_of, next, now, video};

fn open(path: &Path) -> Result<SqliteStore, Error> {
    let url = format!("sqlite://{}", path.display());
    SqliteStore::open(&url, RETENTION, Arc::new(|_| {}))
}

fn temp_file() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    (dir, path)
}

/// Returns the error of opening the file, with `hub.db` in place of its path.
fn open_error(path: &Path) -> String {
    let error = open(path).unwrap_err().to_string();
    error.replace(&path.display().to_string(), "hub.db")
}

#[tokio::test]
async fn database_files_are_accessible_to_their_owner_only() {
    let (dir, path) = temp_file();
    let store = open(&path).unwrap();
    let create = creation(job_of("ada"), Schedule::default(), None);
    store.create(create).await.unwrap();
    let mut modes: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap())
        .map(|file| {
            let mode = file.metadata().unwrap().permissions().mode();
            format!("{} {:o}", file.file_name().display(), mode & 0o777)
        })
        .collect();
    modes.sort();
    let names = ["hub.db", "hub.db-shm", "hub.db-wal", "hub.db.lock"];
    assert_eq!(modes, names.map(|name| format!("{name} 600")));
    store.close().await;
}

#[tokio::test]
async fn jobs_survive_a_restart() {
    let (dir, path) = temp_file();
    let store = open(&path).unwrap();
    let job = job_of("ada");
    store
        .create(creation(job.clone(), Schedule::default(), None))
        .await
        .unwrap();
    store.close().await;
    let mut files: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(
        files,
        ["hub.db", "hub.db.lock"],
        "close removes the write-ahead log"
    );

    let store = open(&path).unwrap();
    assert_eq!(store.get(&job.id).await.unwrap(), Some(Arc::new(job)));
    store.close().await;
}

#[tokio::test]
async fn restart_releases_claims() {
    let (_dir, path) = temp_file();
    let due = Schedule {
        submit_at: Some(now()),
        ..Schedule::default()
    };
    let queue = Queue::Submit {
        provider: "kling",
        max_concurrent: 1,
    };
    let store = open(&path).unwrap();
    let job = Arc::new(video("kling"));
    let create = creation((*job).clone(), due, None);
    store.create(create).await.unwrap();
    let claimed = store.claim(queue, now(), 1).await.unwrap();
    assert_eq!(claimed, [Arc::clone(&job)]);
    let lease_end = Some(now() + CLAIM_LEASE);
    assert_eq!(store.next_due(queue).await.unwrap(), lease_end);
    store.close().await;

    let store = open(&path).unwrap();
    assert_eq!(store.next_due(queue).await.unwrap(), Some(now()));
    let claimed = store.claim(queue, now(), 1).await.unwrap();
    assert_eq!(claimed, [job], "the earlier claim occupies no slot");
    store.close().await;
}

#[tokio::test]
async fn restart_polls_in_flight_submissions_immediately() {
    let (_dir, path) = temp_file();
    let store = open(&path).unwrap();
    let soon = Time::now() + MINUTE;
    let waiting = Schedule {
        poll_at: Some(soon),
        poll_interval: MINUTE,
        ..Schedule::default()
    };
    let with_slot = Schedule {
        holds_slot: true,
        ..waiting
    };
    let [in_flight, pending, bound, running] = [(); 4].map(|()| video("kling"));
    let bound = Job {
        provider_task_id: Some("1".into()),
        ..bound
    };
    let running = Job {
        status: Status::Running,
        ..running
    };
    let others = [(pending, waiting), (bound, with_slot), (running, with_slot)];
    for (job, schedule) in [(in_flight.clone(), with_slot)].into_iter().chain(others) {
        let create = creation(job, schedule, None);
        assert_eq!(store.create(create).await.unwrap(), CreateOutcome::Created);
    }
    assert_eq!(store.next_due(Queue::Poll).await.unwrap(), Some(soon));
    store.close().await;

    let before = Time::now();
    let store = open(&path).unwrap();
    let opened = store.next_due(Queue::Poll).await.unwrap().unwrap();
    assert!(before <= opened && opened <= Time::now(), "{opened}");
    let claimed = store.claim(Queue::Poll, opened, 10).await.unwrap();
    assert_eq!(claimed, [Arc::new(in_flight)]);
    assert_eq!(store.next_due(Queue::Poll).await.unwrap(), Some(soon));
    store.close().await;
}

#[tokio::test]
async fn file_in_use_is_rejected() {
    let (dir, path) = temp_file();
    let store = open(&path).unwrap();
    let expected = "store unavailable: hub.db: database is in use by another process";
    assert_eq!(open_error(&path), expected);
    let alias = dir.path().join("alias.db");
    std::os::unix::fs::symlink(&path, &alias).unwrap();
    assert_eq!(
        open_error(&alias).replace(&path.display().to_string(), "hub.db"),
        expected
    );
    store.close().await;
    open(&path).unwrap().close().await;
}

#[test]
fn foreign_sqlite_file_is_rejected_unmodified() {
    let (_dir, path) = temp_file();
    let text = "dear diary, ".repeat(1000);
    fs::write(&path, &text).unwrap();
    assert_eq!(
        open_error(&path),
        "corrupt data in store: hub.db: not an SQLite database"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute_batch("CREATE TABLE jobs (title TEXT); PRAGMA user_version = 1;")
        .unwrap();
    drop(other);
    let before = fs::read(&path).unwrap();
    assert_eq!(
        open_error(&path),
        "corrupt data in store: hub.db: not a progress-hub database"
    );
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn newer_schema_is_rejected() {
    let (_dir, path) = temp_file();
    open(&path).unwrap().close().await;
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 2).unwrap();
    drop(newer);
    assert_eq!(
        open_error(&path),
        "corrupt data in store: hub.db: schema version 2 is not supported, the latest is 1"
    );
}

#[tokio::test]
async fn restart_keeps_jobs_schedules_and_balances() {
    let (_dir, path) = temp_file();
    let job = video("kling");
    let store = open(&path).unwrap();
    let create = creation(job.clone(), Schedule::default(), None);
    store.create(create).await.unwrap();
    store.close().await;

    for version in 1..=2 {
        let store = open(&path).unwrap();
        let stored = store.get(&job.id).await.unwrap().unwrap();
        assert_eq!((stored.version, &stored.internal), (version, &job.internal));
        let due = Schedule {
            poll_at: Some(now()),
            poll_interval: MINUTE,
            poll_backoff: true,
            ..Schedule::default()
        };
        let mut commit = commit_job(&next(&stored), due, Vec::new());
        commit.budget_entries = vec![entry("ada", 3)];
        assert_eq!(
            store.commit(commit).await.unwrap(),
            CommitOutcome::Committed
        );
        let claimed = store.claim(Queue::Poll, now(), 10).await.unwrap();
        assert_eq!(claimed.len(), 1);
        store.close().await;
    }
    let store = open(&path).unwrap();
    let balances = store.balances(&["ada".to_owned()], now()).await.unwrap();
    assert_eq!(balances, [6], "balances survive restarts");
    store.close().await;
}

#[test]
fn open_errors_name_the_file_or_url() {
    let missing = Path::new("/nowhere/at/all/hub.db");
    assert_eq!(
        open_error(missing),
        "store unavailable: hub.db: No such file or directory (os error 2)"
    );
    let postgres = SqliteStore::open("postgres://hub", RETENTION, Arc::new(|_| {}));
    assert_eq!(
        postgres.unwrap_err().to_string(),
        "store unavailable: invalid SQLite URL 'postgres://hub': use sqlite://path or sqlite::memory:"
    );
}

#[tokio::test]
async fn corrupt_job_does_not_hide_other_jobs() {
    let (_dir, path) = temp_file();
    let store = open(&path).unwrap();
    let due = Schedule {
        poll_at: Some(now()),
        poll_interval: MINUTE,
        ..Schedule::default()
    };
    let (good, bad) = (job_of("ada"), job_of("ada"));
    for job in [&bad, &good] {
        store
            .create(creation(job.clone(), due, None))
            .await
            .unwrap();
    }
    store.close().await;
    let shell = rusqlite::Connection::open(&path).unwrap();
    shell
        .execute(
            "UPDATE jobs SET document = '{' WHERE id = ?",
            [bad.id.as_str()],
        )
        .unwrap();
    drop(shell);

    let store = open(&path).unwrap();
    assert!(matches!(store.get(&bad.id).await, Err(Error::Corrupt(_))));
    let ids = [bad.id.clone(), good.id.clone()];
    let query = ListQuery {
        limit: 10,
        ..ListQuery::default()
    };
    let good = Arc::new(good);
    assert_eq!(store.get_many(&ids).await.unwrap(), [Arc::clone(&good)]);
    assert_eq!(store.list(query).await.unwrap(), [Arc::clone(&good)]);
    assert_eq!(store.claim(Queue::Poll, now(), 10).await.unwrap(), [good]);
    assert!(
        store
            .claim(Queue::Poll, now(), 10)
            .await
            .unwrap()
            .is_empty()
    );
    store.close().await;
}

#[tokio::test]
async fn columns_match_the_document() {
    let (_dir, path) = temp_file();
    let store = open(&path).unwrap();
    let job = super::task("kling", "1");
    store
        .create(creation(job.clone(), Schedule::default(), None))
        .await
        .unwrap();
    let finished = super::ended(&job, Status::Cancelled, now() + MINUTE);
    let commit = commit_job(&finished, Schedule::default(), Vec::new());
    assert_eq!(
        store.commit(commit).await.unwrap(),
        CommitOutcome::Committed
    );
    let shell = rusqlite::Connection::open(&path).unwrap();
    let (matches, document) = shell
        .query_row(
            "SELECT id = document ->> 'id' AND owner = document ->> 'owner'
                 AND status = document ->> 'status' AND version = document ->> 'version'
                 AND provider = document ->> 'provider'
                 AND task_id = document ->> 'provider_task_id'
                 AND deadline_at = 1000 * unixepoch(document ->> 'deadline_at')
                 AND finished_at = 1000 * unixepoch(document ->> 'finished_at')
                 AND updated_at = 1000 * unixepoch(document ->> 'updated_at'), document
             FROM jobs",
            [],
            |row| Ok((row.get::<_, bool>(0)?, row.get::<_, String>(1)?)),
        )
        .unwrap();
    assert!(matches, "{document}");
    assert_eq!(document, serde_json::to_string(&finished).unwrap());
    store.close().await;
}

const CHILD_DATABASE: &str = "PROGRESS_HUB_TEST_CHILD_DATABASE";

/// Runs itself as a child process and kills it. The child commits, and writes each version to its
/// standard error when it is published and when its commit is acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_commits_survive_sigkill() {
    if let Some(path) = std::env::var_os(CHILD_DATABASE) {
        return commit_until_killed(Path::new(&path)).await;
    }
    let (_dir, path) = temp_file();
    let mut written: HashMap<JobId, u64> = HashMap::new();
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("store::sqlite::acknowledged_commits_survive_sigkill")
            .env(CHILD_DATABASE, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let kill_after = rand::random_range(50..1000);
        let mut count = 0;
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            let Some((id, version)) = line.split_once(' ') else {
                panic!("the child failed: {line}");
            };
            let newest = written.entry(JobId::parse(id).unwrap()).or_default();
            *newest = version.parse::<u64>().unwrap().max(*newest);
            count += 1;
            // The loop goes on, to read what the child wrote before it died.
            if count == kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(count >= kill_after, "the child exited after {count} lines");

        let store = open(&path).unwrap();
        for (id, version) in &written {
            let stored = store.get(id).await.unwrap().unwrap().version;
            assert!(stored >= *version, "round {round}: {id} {version} {stored}");
        }
        store.close().await;
    }
}

async fn commit_until_killed(path: &Path) {
    // Writes each line with one call, so that a killed process leaves no partial line.
    let report = |id: &JobId, version: u64| {
        let line = format!("{id} {version}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    };
    let on_event: EventHandler = Arc::new(move |event| match event {
        StoreEvent::JobChanged(frame) => report(&frame.job().id, frame.job().version),
        StoreEvent::SharedStateChanged | StoreEvent::Unavailable | StoreEvent::Recovered => {}
    });
    let url = format!("sqlite://{}", path.display());
    let store = Arc::new(SqliteStore::open(&url, RETENTION, on_event).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let mut job = job_of("ada");
            store
                .create(creation(job.clone(), Schedule::default(), None))
                .await
                .unwrap();
            loop {
                report(&job.id, job.version);
                job = next(&job);
                let commit = commit_job(&job, Schedule::default(), Vec::new());
                assert_eq!(
                    store.commit(commit).await.unwrap(),
                    CommitOutcome::Committed
                );
            }
        });
    }
    writers.join_all().await;
}
