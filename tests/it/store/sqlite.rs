//! What only the embedded engine promises: its file.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
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
use super::{MINUTE, RETENTION, commitment, creation, job_of, next, now, video};

fn open(path: &Path) -> Result<SqliteStore, Error> {
    let url = format!("sqlite://{}", path.display());
    SqliteStore::open(&url, RETENTION, Arc::new(|_| {}))
}

fn scratch() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    (dir, path)
}

/// The refusal, without the path.
fn refusal(path: &Path) -> String {
    let error = open(path).unwrap_err().to_string();
    error.replace(&path.display().to_string(), "hub.db")
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let (dir, path) = scratch();
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
        "the log went into the file"
    );

    let store = open(&path).unwrap();
    assert_eq!(store.get(&job.id).await.unwrap(), Some(Arc::new(job)));
    store.close().await;
}

#[tokio::test]
async fn restart_releases_claims() {
    let (_dir, path) = scratch();
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
    let leased_until = Some(now() + CLAIM_LEASE);
    assert_eq!(store.next_due(queue).await.unwrap(), leased_until);
    store.close().await;

    let store = open(&path).unwrap();
    assert_eq!(store.next_due(queue).await.unwrap(), Some(now()));
    let claimed = store.claim(queue, now(), 1).await.unwrap();
    assert_eq!(claimed, [job], "its own old lease takes no place");
    store.close().await;
}

#[tokio::test]
async fn restart_polls_in_flight_submissions_immediately() {
    let (_dir, path) = scratch();
    let store = open(&path).unwrap();
    let soon = Time::now() + MINUTE;
    let waiting = Schedule {
        poll_at: Some(soon),
        poll_interval: MINUTE,
        ..Schedule::default()
    };
    let placed = Schedule {
        holds_slot: true,
        ..waiting
    };
    let [sending, unsent, bound, begun] = [(); 4].map(|()| video("kling"));
    let bound = Job {
        provider_task_id: Some("1".into()),
        ..bound
    };
    let begun = Job {
        status: Status::Running,
        ..begun
    };
    let others = [(unsent, waiting), (bound, placed), (begun, placed)];
    for (job, agenda) in [(sending.clone(), placed)].into_iter().chain(others) {
        let create = creation(job, agenda, None);
        assert_eq!(store.create(create).await.unwrap(), CreateOutcome::Created);
    }
    assert_eq!(store.next_due(Queue::Poll).await.unwrap(), Some(soon));
    store.close().await;

    let before = Time::now();
    let store = open(&path).unwrap();
    let opened = store.next_due(Queue::Poll).await.unwrap().unwrap();
    assert!(before <= opened && opened <= Time::now(), "{opened}");
    let claimed = store.claim(Queue::Poll, opened, 10).await.unwrap();
    assert_eq!(claimed, [Arc::new(sending)]);
    assert_eq!(store.next_due(Queue::Poll).await.unwrap(), Some(soon));
    store.close().await;
}

#[tokio::test]
async fn a_file_is_opened_once() {
    let (dir, path) = scratch();
    let store = open(&path).unwrap();
    let expected = "the store is away: hub.db: another process has it open";
    assert_eq!(refusal(&path), expected);
    let alias = dir.path().join("alias.db");
    std::os::unix::fs::symlink(&path, &alias).unwrap();
    assert_eq!(
        refusal(&alias).replace(&path.display().to_string(), "hub.db"),
        expected
    );
    store.close().await;
    open(&path).unwrap().close().await;
}

#[test]
fn foreign_sqlite_file_is_rejected_unmodified() {
    let (_dir, path) = scratch();
    let text = "dear diary, ".repeat(1000);
    fs::write(&path, &text).unwrap();
    assert_eq!(
        refusal(&path),
        "the store holds something unreadable: hub.db: it is not an SQLite database"
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
        refusal(&path),
        "the store holds something unreadable: hub.db: it is another program's database"
    );
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (_dir, path) = scratch();
    open(&path).unwrap().close().await;
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 3).unwrap();
    drop(newer);
    assert_eq!(
        refusal(&path),
        "the store holds something unreadable: hub.db: it has schema 3, and this program knows 2"
    );
}

/// A file as the first release left it, with a job in it.
#[tokio::test]
async fn a_file_of_an_older_schema_is_brought_up_to_date() {
    let (_dir, path) = scratch();
    let job = video("kling");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(include_str!("../../../src/store/sqlite/0001_initial.sql"))
        .unwrap();
    old.execute_batch("PRAGMA application_id = 0x50487562; PRAGMA user_version = 1;")
        .unwrap();
    let insert = "INSERT INTO jobs (id, owner, status, version, provider, watch_at, watch_every,
             holds_place, deadline_at, updated_at, doc, ticket)
         VALUES (?1, 'ada', 'accepted', 1, 'kling', ?2, 60000, 0, ?3, ?2, ?4, ?5)";
    let (at, deadline) = (job.updated_at.millis(), job.deadline_at.millis());
    let doc = serde_json::to_string(&job).unwrap();
    let ticket = serde_json::to_string(&*job.internal).unwrap();
    old.execute(
        insert,
        rusqlite::params![job.id.as_str(), at, deadline, doc, ticket],
    )
    .unwrap();
    drop(old);

    for version in 1..=2 {
        let store = open(&path).unwrap();
        let kept = store.get(&job.id).await.unwrap().unwrap();
        assert_eq!((kept.version, &kept.internal), (version, &job.internal));
        let due = Schedule {
            poll_at: Some(now()),
            poll_interval: MINUTE,
            poll_backoff: true,
            ..Schedule::default()
        };
        let mut commit = commitment(&next(&kept), due, Vec::new());
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
    assert_eq!(balances, [6], "a restart keeps balances");
    store.close().await;
}

#[test]
fn what_cannot_be_opened_is_said() {
    let missing = Path::new("/nowhere/at/all/hub.db");
    assert_eq!(
        refusal(missing),
        "the store is away: hub.db: No such file or directory (os error 2)"
    );
    let postgres = SqliteStore::open("postgres://hub", RETENTION, Arc::new(|_| {}));
    assert_eq!(
        postgres.unwrap_err().to_string(),
        "the store is away: 'postgres://hub' is neither sqlite://path nor sqlite::memory:"
    );
}

#[tokio::test]
async fn an_unreadable_job_does_not_hide_the_others() {
    let (_dir, path) = scratch();
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
    let shell = rusqlite::Connection::open(&path).unwrap();
    shell
        .execute("UPDATE jobs SET doc = '{' WHERE id = ?", [bad.id.as_str()])
        .unwrap();

    assert!(matches!(store.get(&bad.id).await, Err(Error::Corrupt(_))));
    let ids = [bad.id.clone(), good.id.clone()];
    let listing = ListQuery {
        limit: 10,
        ..ListQuery::default()
    };
    let good = Arc::new(good);
    assert_eq!(store.get_many(&ids).await.unwrap(), [Arc::clone(&good)]);
    assert_eq!(store.list(listing).await.unwrap(), [Arc::clone(&good)]);
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
async fn the_columns_show_what_the_document_says() {
    let (_dir, path) = scratch();
    let store = open(&path).unwrap();
    let job = super::task("kling", "1");
    store
        .create(creation(job.clone(), Schedule::default(), None))
        .await
        .unwrap();
    let over = super::ended(&job, Status::Cancelled, now() + MINUTE);
    let commit = commitment(&over, Schedule::default(), Vec::new());
    assert_eq!(
        store.commit(commit).await.unwrap(),
        CommitOutcome::Committed
    );
    let shell = rusqlite::Connection::open(&path).unwrap();
    let (agrees, doc) = shell
        .query_row(
            "SELECT id = doc ->> 'id' AND owner = doc ->> 'owner' AND status = doc ->> 'status'
                 AND version = doc ->> 'version' AND provider = doc ->> 'provider'
                 AND task_id = doc ->> 'provider_task_id'
                 AND deadline_at = 1000 * unixepoch(doc ->> 'deadline_at')
                 AND finished_at = 1000 * unixepoch(doc ->> 'finished_at')
                 AND updated_at = 1000 * unixepoch(doc ->> 'updated_at'), doc
             FROM jobs",
            [],
            |row| Ok((row.get::<_, bool>(0)?, row.get::<_, String>(1)?)),
        )
        .unwrap();
    assert!(agrees, "{doc}");
    assert_eq!(doc, serde_json::to_string(&over).unwrap());
    store.close().await;
}

const CHILD: &str = "STORE_FILE_OF_THE_CHILD";

/// The test runs itself as a child, which commits and says what it was told (first by the
/// announcement, then by the answer), and kills it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    if let Some(path) = std::env::var_os(CHILD) {
        return commit_until_killed(Path::new(&path)).await;
    }
    let (_dir, path) = scratch();
    let mut told: HashMap<JobId, u64> = HashMap::new();
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("store::sqlite::what_was_acknowledged_survives_kill_9")
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let enough = rand::random_range(50..1000);
        let mut heard = 0;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            let Some((id, version)) = line
                .strip_prefix("told ")
                .and_then(|rest| rest.strip_suffix('.'))
                .and_then(|rest| rest.split_once(' '))
            else {
                continue;
            };
            let newest = told.entry(JobId::parse(id).unwrap()).or_default();
            *newest = version.parse::<u64>().unwrap().max(*newest);
            heard += 1;
            // What it said until it was dead is read as well.
            if heard == enough {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(
            heard >= enough,
            "the child ended by itself after {heard} of {enough}"
        );

        let store = open(&path).unwrap();
        for (id, version) in &told {
            let job = store.get(id).await.unwrap().unwrap();
            assert!(
                job.version >= *version,
                "round {round}: {id} {version} {}",
                job.version
            );
        }
        store.close().await;
    }
}

async fn commit_until_killed(path: &Path) {
    // A leading line break ends what the test harness has begun.
    let tell = |id: &JobId, version| println!("\ntold {id} {version}.");
    let announce: EventHandler = Arc::new(move |event| match event {
        StoreEvent::JobChanged(job) => tell(&job.id, job.version),
        StoreEvent::SharedStateChanged | StoreEvent::Unavailable | StoreEvent::Recovered => {}
    });
    let url = format!("sqlite://{}", path.display());
    let store = Arc::new(SqliteStore::open(&url, RETENTION, announce).unwrap());
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
                tell(&job.id, job.version);
                job = next(&job);
                let commit = commitment(&job, Schedule::default(), Vec::new());
                assert_eq!(
                    store.commit(commit).await.unwrap(),
                    CommitOutcome::Committed
                );
            }
        });
    }
    writers.join_all().await;
}
