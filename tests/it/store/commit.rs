//! A job changes.

use std::sync::Arc;

use progress_hub::job::{BudgetWindow, InternalState, JobId, Reservation};
use progress_hub::store::{CommitOutcome, Schedule};
use serde_json::json;
use tokio::task::JoinSet;

use super::{Engine, bound, commitment, job_of, next, now, task, video};

pub(crate) async fn a_commit_replaces_the_document_and_is_announced(engine: Engine) {
    let job = engine.create(job_of("ada")).await;
    let mut newer = next(&job);
    newer.progress = Some(0.1 + 0.2);
    newer.stage = Some("sampling \u{1F3AC}".into());
    assert_eq!(engine.commit(&newer).await, CommitOutcome::Committed);
    engine.expect_heard(&job.id, &[1, 2]).await;
    assert_eq!(engine.get(&job.id).await, Some(Arc::new(newer)));
}

pub(crate) async fn commit_with_old_version_conflicts(engine: Engine) {
    let job = engine.create(job_of("ada")).await;
    let newer = next(&job);
    engine.commit(&newer).await;
    let mut late = next(&job);
    late.stage = Some("late".into());
    assert_eq!(engine.commit(&late).await, CommitOutcome::Conflict);
    engine.expect_heard(&job.id, &[1, 2]).await;
    assert_eq!(engine.get(&job.id).await, Some(Arc::new(newer)));
}

pub(crate) async fn a_commit_from_a_version_that_never_was_is_stale(engine: Engine) {
    let job = engine.create(job_of("ada")).await;
    let skipped = next(&next(&job));
    assert_eq!(engine.commit(&skipped).await, CommitOutcome::Conflict);
    assert_eq!(engine.get(&job.id).await, Some(job));
}

pub(crate) async fn commit_to_missing_job_returns_not_found(engine: Engine) {
    let job = job_of("ada");
    assert_eq!(engine.commit(&next(&job)).await, CommitOutcome::NotFound);
    assert_eq!(engine.get(&job.id).await, None);
    engine.expect_heard(&job.id, &[]).await;
}

pub(crate) async fn a_commit_that_takes_anothers_task_is_stale(engine: Engine) {
    let holder = engine.create(task("kling", "1")).await;
    let job = engine.create(video("kling")).await;
    assert_eq!(
        engine.commit(&bound(&job, "1")).await,
        CommitOutcome::Conflict
    );
    let found = engine.store.find_task("kling", "1").await.unwrap();
    assert_eq!(found, Some(holder.id.clone()));
    assert_eq!(engine.get(&job.id).await, Some(job));
}

pub(crate) async fn a_task_that_became_known_finds_its_job(engine: Engine) {
    let job = engine.create(video("kling")).await;
    let known = bound(&job, "1");
    assert_eq!(engine.commit(&known).await, CommitOutcome::Committed);
    let found = engine.store.find_task("kling", "1").await.unwrap();
    assert_eq!(found, Some(job.id.clone()));
    assert_eq!(engine.commit(&next(&known)).await, CommitOutcome::Committed);
}

pub(crate) async fn the_ticket_is_kept_beside_the_document(engine: Engine) {
    let job = engine.create(video("kling")).await;
    let mut newer = next(&job);
    newer.internal = Arc::new(InternalState {
        request: job.internal.request.clone(),
        handle: json!({"status_url": "https://queue.example/1"}),
        private_urls: vec![Some("https://api.example/1/content".to_owned()), None],
        success_reported_at: Some(job.created_at),
        reservation: Some(Reservation {
            amount_micros: 70_000,
            unit: "usd".to_owned(),
            windows: vec![BudgetWindow {
                name: "owner/ada/2026-11-24".to_owned(),
                expires_at: now(),
            }],
        }),
    });
    engine.commit(&newer).await;
    let read = engine.get(&job.id).await.unwrap();
    assert_eq!(read.internal, newer.internal);
    assert!(read.internal.request.is_some());
}

/// Raises a job's version until `times` of its own commits have passed; counts the stale ones.
async fn push(engine: &Engine, id: &JobId, times: usize) -> usize {
    let (mut done, mut stale) = (0, 0);
    while done < times {
        let job = engine.get(id).await.unwrap();
        match engine.commit(&next(&job)).await {
            CommitOutcome::Committed => done += 1,
            CommitOutcome::Conflict => stale += 1,
            CommitOutcome::NotFound => panic!("{id} is gone"),
        }
    }
    stale
}

pub(crate) async fn writers_of_one_job_are_announced_once_and_in_order(engine: Engine) {
    let job = engine.create(job_of("ada")).await;
    let mut writers = JoinSet::new();
    for _ in 0..32 {
        let (engine, id) = (engine.clone(), job.id.clone());
        writers.spawn(async move { push(&engine, &id, 10).await });
    }
    writers.join_all().await;
    assert_eq!(engine.get(&job.id).await.unwrap().version, 321);
    let versions: Vec<u64> = (1..=321).collect();
    engine.expect_heard(&job.id, &versions).await;
}

pub(crate) async fn writers_of_many_jobs_do_not_disturb_each_other(engine: Engine) {
    let mut writers = JoinSet::new();
    for _ in 0..32 {
        let job = engine.create(job_of("ada")).await;
        let writer = engine.clone();
        writers.spawn(async move {
            // Refusals share a transaction with the commits of the others.
            let late = commitment(&job, Schedule::default(), Vec::new());
            let (stale, refused) =
                tokio::join!(push(&writer, &job.id, 10), writer.store.commit(late),);
            assert_eq!((stale, refused.unwrap()), (0, CommitOutcome::Conflict));
            let versions: Vec<u64> = (1..=11).collect();
            writer.expect_heard(&job.id, &versions).await;
        });
    }
    writers.join_all().await;
}
