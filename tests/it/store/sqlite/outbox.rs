//! Deliveries in the database file.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use progress_hub::job::{Job, Status};
use progress_hub::outbox::{DeliveryId, DestinationState};
use progress_hub::store::sqlite::SqliteStore;
use progress_hub::store::{CommitOutcome, CreateOutcome, JobStore, Outbox, Store};

use super::{open, temp_file};
use crate::store::outbox::{commit_with, creation_with, delivered, due, to};
use crate::store::{MINUTE, RETENTION, SECOND, ended, job_of, next, now};

async fn create(store: &SqliteStore, job: &Job, event: &str) {
    let create = creation_with(job, &[to("app", event), to("mail", event)]);
    assert_eq!(store.create(create).await.unwrap(), CreateOutcome::Created);
}

async fn commit(store: &SqliteStore, job: &Job, event: &str) {
    let commit = commit_with(job, &[to("app", event), to("mail", event)]);
    assert_eq!(
        store.commit(commit).await.unwrap(),
        CommitOutcome::Committed
    );
}

#[tokio::test]
async fn deliveries_and_destinations_survive_a_restart() {
    let (_dir, path) = temp_file();
    let store = open(&path).unwrap();
    let job = job_of("ada");
    create(&store, &job, "job.created").await;
    let waiting = due(&store, "app", now()).await;
    let ended = due(&store, "mail", now()).await;
    let progress = delivered(&ended[0], now());
    let recorded = store.record_progress(&ended[0].id, progress.clone()).await;
    assert!(recorded.unwrap());
    let state = DestinationState {
        revision: 1,
        consecutive_failures: 3,
        ..DestinationState::default()
    };
    let put = store.put_destination_state("app", state.clone()).await;
    assert!(put.unwrap());
    store.close().await;

    let store = open(&path).unwrap();
    assert_eq!(due(&store, "app", now()).await, waiting);
    let stored = store.delivery(&ended[0].id).await.unwrap().unwrap();
    assert_eq!(stored.progress, progress);
    assert_eq!(store.destination_state("app").await.unwrap(), state);
    store.close().await;
}

#[tokio::test]
async fn documents_are_deleted_with_their_last_delivery() {
    let (_dir, path) = temp_file();
    let store = open(&path).unwrap();
    let shell = rusqlite::Connection::open(&path).unwrap();
    let documents = || -> Vec<i64> {
        let mut statement = shell
            .prepare("SELECT version FROM delivery_documents ORDER BY version")
            .unwrap();
        let versions = statement.query_map([], |row| row.get(0)).unwrap();
        versions.collect::<rusqlite::Result<_>>().unwrap()
    };
    let job = job_of("ada");
    create(&store, &job, "job.created").await;
    let mail = due(&store, "mail", now()).await.remove(0);
    let progress = delivered(&mail, now());
    assert!(store.record_progress(&mail.id, progress).await.unwrap());
    let second = next(&job);
    commit(&store, &second, "job.updated").await;
    assert_eq!(documents(), [1, 2], "the first one was delivered by mail");
    let last = ended(&second, Status::Succeeded, now());
    commit(&store, &last, "job.succeeded").await;
    assert_eq!(documents(), [1, 3]);

    let expired = now() + RETENTION.terminal + SECOND;
    assert_eq!(store.sweep(expired).await.unwrap(), 1);
    assert_eq!(documents(), [3], "both deliveries of it wait");
    for destination in ["app", "mail"] {
        let delivery = due(&store, destination, expired).await.remove(0);
        let progress = delivered(&delivery, expired);
        let recorded = store.record_progress(&delivery.id, progress).await;
        assert!(recorded.unwrap());
    }
    assert!(documents().is_empty());
    store.close().await;
}

#[tokio::test]
async fn corrupt_delivery_does_not_block_its_destination() {
    let (_dir, path) = temp_file();
    let store = open(&path).unwrap();
    let (bad, good) = (job_of("ada"), job_of("ada"));
    for job in [&bad, &good] {
        create(&store, job, "job.created").await;
    }
    let shell = rusqlite::Connection::open(&path).unwrap();
    let corrupt = "UPDATE deliveries SET progress = '{' WHERE job_id = ?";
    shell.execute(corrupt, [bad.id.as_str()]).unwrap();
    drop(shell);
    let limit = 1;
    let read = store.due_deliveries("app", now(), limit).await.unwrap();
    assert!(read.is_empty());
    let read = store.due_deliveries("app", now(), limit).await.unwrap();
    assert_eq!(read[0].id.job, good.id);
    let progress = delivered(&read[0], now());
    assert!(store.record_progress(&read[0].id, progress).await.unwrap());
    let next_at = store.next_delivery_at("app").await.unwrap();
    assert_eq!(next_at, Some(now() + 60 * MINUTE), "it is read again later");
    store.close().await;
}

const CHILD_DATABASE: &str = "PROGRESS_HUB_TEST_CHILD_OUTBOX";

/// Runs itself as a child process and kills it. The child finishes jobs and delivers some of them. It
/// writes the id of each delivery to its standard error when its commit, and when its result, is
/// acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_deliveries_survive_sigkill() {
    if let Some(path) = std::env::var_os(CHILD_DATABASE) {
        return finish_jobs_until_killed(Path::new(&path)).await;
    }
    let (_dir, path) = temp_file();
    let mut is_delivered: HashMap<String, bool> = HashMap::new();
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("store::sqlite::outbox::acknowledged_deliveries_survive_sigkill")
            .env(CHILD_DATABASE, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let kill_after = rand::random_range(20..400);
        let mut count = 0;
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            match line.split_once(' ') {
                Some(("waits", id)) => drop(is_delivered.entry(id.to_owned()).or_default()),
                Some(("delivered", id)) => drop(is_delivered.insert(id.to_owned(), true)),
                _ => panic!("the child failed: {line}"),
            }
            count += 1;
            // The loop goes on, to read what the child wrote before it died.
            if count == kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(count >= kill_after, "the child exited after {count} lines");

        let store = open(&path).unwrap();
        for (id, is_delivered) in &is_delivered {
            let id = DeliveryId::parse(id).unwrap();
            let stored = store.delivery(&id).await.unwrap();
            let stored = stored.unwrap_or_else(|| panic!("round {round}: {id} is lost"));
            // The child may have died after a result was stored and before it was acknowledged.
            let still_waits = stored.due_at().is_some();
            assert!(!(*is_delivered && still_waits), "round {round}: {id}");
        }
        store.close().await;
    }
}

async fn finish_jobs_until_killed(path: &Path) {
    // Writes each line with one call, so that a killed process leaves no partial line.
    let report = |state: &str, id: &DeliveryId| {
        let line = format!("{state} {id}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    };
    let store = Arc::new(open(path).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            loop {
                let job = job_of("ada");
                create(&store, &job, "job.created").await;
                let second = next(&job);
                commit(&store, &second, "job.updated").await;
                commit(&store, &ended(&second, Status::Failed, now()), "job.failed").await;
                report(
                    "waits",
                    &DeliveryId {
                        job: job.id,
                        version: 3,
                        event: "job.failed".to_owned(),
                        destination: "app".to_owned(),
                    },
                );
            }
        });
    }
    loop {
        for delivery in store.due_deliveries("app", now(), 4).await.unwrap() {
            let progress = delivered(&delivery, now());
            let recorded = store.record_progress(&delivery.id, progress).await;
            if recorded.unwrap() && delivery.id.event == "job.failed" {
                report("delivered", &delivery.id);
            }
        }
    }
}
