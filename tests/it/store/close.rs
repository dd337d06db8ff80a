//! A store ends.

use std::time::Duration;

use progress_hub::job::JobId;
use progress_hub::store::{CommitOutcome, Error, ListQuery, Queue, Schedule};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{StoreFixture, commit_job, creation, job_of, news, next, now};

pub(crate) async fn operations_after_close_fail_with_unavailable(fixture: StoreFixture) {
    let (store, id) = (&fixture.store, JobId::new());
    store.ping().await.unwrap();
    store.close().await;
    let job = job_of("ada");
    let create = creation(job.clone(), Schedule::default(), None);
    let commit = commit_job(&next(&job), Schedule::default(), Vec::new());
    let listing = ListQuery::default();
    let answers = [
        store.ping().await,
        store.get(&id).await.map(drop),
        store.get_many(&[id.clone()]).await.map(drop),
        store.list(listing).await.map(drop),
        store.find_task("kling", "1").await.map(drop),
        store.create(create).await.map(drop),
        store.commit(commit).await.map(drop),
        store.schedule_poll(&id, now(), Duration::ZERO).await,
        store.claim(Queue::Poll, now(), 1).await.map(drop),
        store.next_due(Queue::Poll).await.map(drop),
        store
            .buffer_update("kling", "1", &news("a"), now())
            .await
            .map(drop),
        store.buffered_updates("kling", "1").await.map(drop),
        store.sweep(now()).await.map(drop),
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        assert!(
            matches!(answer, Err(Error::Unavailable(_))),
            "{index}: {answer:?}"
        );
    }
    fixture.expect_published(&job.id, &[]).await;
}

/// Whoever was told that it is done was announced; whoever was not is told that it is away.
pub(crate) async fn operations_queued_before_close_complete(fixture: StoreFixture) {
    let mut writers = JoinSet::new();
    let (begun, mut beginnings) = mpsc::channel(16);
    for _ in 0..16 {
        let begun = begun.clone();
        let mut job = (*fixture.create(job_of("ada")).await).clone();
        let fixture = fixture.clone();
        writers.spawn(async move {
            let mut done = 1;
            loop {
                if done == 5 {
                    begun.send(()).await.unwrap();
                }
                job = next(&job);
                let commit = commit_job(&job, Schedule::default(), Vec::new());
                match fixture.store.commit(commit).await {
                    Ok(CommitOutcome::Committed) => done += 1,
                    Err(Error::Unavailable(_)) => break,
                    other => panic!("{other:?}"),
                }
            }
            let versions: Vec<u64> = (1..=done).collect();
            fixture.expect_published(&job.id, &versions).await;
        });
    }
    drop(begun);
    for _ in 0..16 {
        beginnings.recv().await.unwrap();
    }
    fixture.store.close().await;
    writers.join_all().await;
}

pub(crate) async fn close_is_idempotent(fixture: StoreFixture) {
    tokio::join!(fixture.store.close(), fixture.store.close());
    fixture.store.close().await;
}
