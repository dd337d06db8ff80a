//! Closing a store.

use std::time::Duration;

use progress_hub::job::JobId;
use progress_hub::outbox::{DeliveryId, DestinationState, Progress};
use progress_hub::store::{CommitOutcome, DeliveryQuery, Error, ListQuery, Queue, Schedule};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{StoreFixture, commit_job, creation, job_of, next, now, update};

pub(crate) async fn operations_after_close_fail_with_unavailable(fixture: StoreFixture) {
    let (store, id) = (&fixture.store, JobId::new());
    store.ping().await.unwrap();
    store.close().await;
    let job = job_of("ada");
    let create = creation(job.clone(), Schedule::default(), None);
    let commit = commit_job(&next(&job), Schedule::default(), Vec::new());
    let query = ListQuery::default();
    let delivery = DeliveryId {
        job: id.clone(),
        version: 1,
        event: "job.created".to_owned(),
        destination: "app".to_owned(),
    };
    let progress = Progress {
        revision: 1,
        ..Progress::new(now())
    };
    let state = DestinationState {
        revision: 1,
        ..DestinationState::default()
    };
    let results = [
        store.ping().await,
        store.get(&id).await.map(drop),
        store.get_many(&[id.clone()]).await.map(drop),
        store.list(query).await.map(drop),
        store.find_task("kling", "1").await.map(drop),
        store.create(create).await.map(drop),
        store.commit(commit).await.map(drop),
        store.schedule_poll(&id, now(), Duration::ZERO).await,
        store.claim(Queue::Poll, now(), 1).await.map(drop),
        store.next_due(Queue::Poll).await.map(drop),
        store
            .buffer_update("kling", "1", &update("a"), now())
            .await
            .map(drop),
        store.buffered_updates("kling", "1").await.map(drop),
        store.due_deliveries("app", now(), 1).await.map(drop),
        store.next_delivery_at("app").await.map(drop),
        store.record_progress(&delivery, progress).await.map(drop),
        store.delivery(&delivery).await.map(drop),
        store.deliveries(DeliveryQuery::default()).await.map(drop),
        store.destinations().await.map(drop),
        store.destination_state("app").await.map(drop),
        store.put_destination_state("app", state).await.map(drop),
        store.sweep(now()).await.map(drop),
    ];
    for (index, result) in results.into_iter().enumerate() {
        assert!(
            matches!(result, Err(Error::Unavailable(_))),
            "{index}: {result:?}"
        );
    }
    fixture.expect_published(&job.id, &[]).await;
}

/// Every acknowledged commit is published. Every other one fails with `Unavailable`.
pub(crate) async fn operations_queued_before_close_complete(fixture: StoreFixture) {
    let mut writers = JoinSet::new();
    let (started, mut starts) = mpsc::channel(16);
    for _ in 0..16 {
        let started = started.clone();
        let mut job = (*fixture.create(job_of("ada")).await).clone();
        let fixture = fixture.clone();
        writers.spawn(async move {
            let mut version = 1;
            loop {
                if version == 5 {
                    started.send(()).await.unwrap();
                }
                job = next(&job);
                let commit = commit_job(&job, Schedule::default(), Vec::new());
                match fixture.store.commit(commit).await {
                    Ok(CommitOutcome::Committed) => version += 1,
                    Err(Error::Unavailable(_)) => break,
                    other => panic!("{other:?}"),
                }
            }
            let versions: Vec<u64> = (1..=version).collect();
            fixture.expect_published(&job.id, &versions).await;
        });
    }
    drop(started);
    for _ in 0..16 {
        starts.recv().await.unwrap();
    }
    fixture.store.close().await;
    writers.join_all().await;
}

pub(crate) async fn close_is_idempotent(fixture: StoreFixture) {
    tokio::join!(fixture.store.close(), fixture.store.close());
    fixture.store.close().await;
}
