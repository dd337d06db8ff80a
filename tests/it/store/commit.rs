//! Commits of new versions.

use std::sync::Arc;

use progress_hub::job::{
    BudgetWindow, InternalState, JobId, OutputSource, QueueCharge, Reservation,
};
use progress_hub::store::{CommitOutcome, Schedule};
use serde_json::json;
use tokio::task::JoinSet;
use url::Url;

use super::{StoreFixture, bound, commit_job, job_of, next, now, task, video};

pub(crate) async fn commit_replaces_and_publishes_the_document(fixture: StoreFixture) {
    let job = fixture.create(job_of("ada")).await;
    let mut newer = next(&job);
    newer.progress = Some(0.1 + 0.2);
    newer.stage = Some("sampling \u{1F3AC}".into());
    assert_eq!(fixture.commit(&newer).await, CommitOutcome::Committed);
    fixture.expect_published(&job.id, &[1, 2]).await;
    assert_eq!(fixture.get(&job.id).await, Some(Arc::new(newer)));
}

pub(crate) async fn commit_with_old_version_conflicts(fixture: StoreFixture) {
    let job = fixture.create(job_of("ada")).await;
    let newer = next(&job);
    fixture.commit(&newer).await;
    let mut late = next(&job);
    late.stage = Some("late".into());
    assert_eq!(fixture.commit(&late).await, CommitOutcome::Conflict);
    fixture.expect_published(&job.id, &[1, 2]).await;
    assert_eq!(fixture.get(&job.id).await, Some(Arc::new(newer)));
}

pub(crate) async fn commit_that_skips_a_version_conflicts(fixture: StoreFixture) {
    let job = fixture.create(job_of("ada")).await;
    let skipped = next(&next(&job));
    assert_eq!(fixture.commit(&skipped).await, CommitOutcome::Conflict);
    assert_eq!(fixture.get(&job.id).await, Some(job));
}

pub(crate) async fn commit_to_missing_job_returns_not_found(fixture: StoreFixture) {
    let job = job_of("ada");
    assert_eq!(fixture.commit(&next(&job)).await, CommitOutcome::NotFound);
    assert_eq!(fixture.get(&job.id).await, None);
    fixture.expect_published(&job.id, &[]).await;
}

pub(crate) async fn commit_with_task_of_another_job_conflicts(fixture: StoreFixture) {
    let holder = fixture.create(task("kling", "1")).await;
    let job = fixture.create(video("kling")).await;
    assert_eq!(
        fixture.commit(&bound(&job, "1")).await,
        CommitOutcome::Conflict
    );
    let found = fixture.store.find_task("kling", "1").await.unwrap();
    assert_eq!(found, Some(holder.id.clone()));
    assert_eq!(fixture.get(&job.id).await, Some(job));
}

pub(crate) async fn task_set_by_commit_finds_the_job(fixture: StoreFixture) {
    let job = fixture.create(video("kling")).await;
    let next_job = bound(&job, "1");
    assert_eq!(fixture.commit(&next_job).await, CommitOutcome::Committed);
    let found = fixture.store.find_task("kling", "1").await.unwrap();
    assert_eq!(found, Some(job.id.clone()));
    assert_eq!(
        fixture.commit(&next(&next_job)).await,
        CommitOutcome::Committed
    );
}

pub(crate) async fn internal_state_is_stored_with_the_document(fixture: StoreFixture) {
    let job = fixture.create(video("kling")).await;
    let mut newer = next(&job);
    newer.internal = Arc::new(InternalState {
        request: job.internal.request.clone(),
        handle: json!({"status_url": "https://queue.example/1"}),
        output_sources: vec![
            Some(OutputSource {
                url: "https://api.example/1/content".to_owned(),
                is_private: true,
            }),
            None,
        ],
        success_reported_at: Some(job.created_at),
        reservation: Some(Reservation {
            amount_micros: 70_000,
            unit: "usd".to_owned(),
            windows: vec![BudgetWindow {
                name: "owner/ada/2026-11-24".to_owned(),
                expires_at: now(),
            }],
        }),
        queue_charges: vec![QueueCharge {
            window: BudgetWindow {
                name: "queue".to_owned(),
                expires_at: job.created_at,
            },
            amount: 1,
        }],
        webhook_url: Some(Url::parse("https://app.example.com/hook").unwrap()),
        owner_email: Some("ada@example.com".to_owned()),
    });
    fixture.commit(&newer).await;
    let read = fixture.get(&job.id).await.unwrap();
    assert_eq!(read.internal, newer.internal);
    assert!(read.internal.request.is_some());
}

/// Commits `times` versions of a job, and returns the number of conflicts.
async fn commit_times(fixture: &StoreFixture, id: &JobId, times: usize) -> usize {
    let (mut committed, mut conflicts) = (0, 0);
    while committed < times {
        let job = fixture.get(id).await.unwrap();
        match fixture.commit(&next(&job)).await {
            CommitOutcome::Committed => committed += 1,
            CommitOutcome::Conflict => conflicts += 1,
            CommitOutcome::NotFound => panic!("{id} not found"),
        }
    }
    conflicts
}

pub(crate) async fn concurrent_commits_to_one_job_publish_each_version_once_in_order(
    fixture: StoreFixture,
) {
    let job = fixture.create(job_of("ada")).await;
    let mut writers = JoinSet::new();
    for _ in 0..32 {
        let (fixture, id) = (fixture.clone(), job.id.clone());
        writers.spawn(async move { commit_times(&fixture, &id, 10).await });
    }
    writers.join_all().await;
    assert_eq!(fixture.get(&job.id).await.unwrap().version, 321);
    let versions: Vec<u64> = (1..=321).collect();
    fixture.expect_published(&job.id, &versions).await;
}

pub(crate) async fn commits_to_different_jobs_never_conflict(fixture: StoreFixture) {
    let mut writers = JoinSet::new();
    for _ in 0..32 {
        let job = fixture.create(job_of("ada")).await;
        let writer = fixture.clone();
        writers.spawn(async move {
            // Conflicts may share a transaction with the commits of other writers.
            let late = commit_job(&job, Schedule::default(), Vec::new());
            let (conflicts, rejected) = tokio::join!(
                commit_times(&writer, &job.id, 10),
                writer.store.commit(late),
            );
            assert_eq!((conflicts, rejected.unwrap()), (0, CommitOutcome::Conflict));
            let versions: Vec<u64> = (1..=11).collect();
            writer.expect_published(&job.id, &versions).await;
        });
    }
    writers.join_all().await;
}
