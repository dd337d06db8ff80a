//! Deletion of expired data.

use progress_hub::job::{JobId, Status};
use progress_hub::store::{BUFFERED_UPDATE_TTL, BufferOutcome, CreateOutcome, Queue, Schedule};
use progress_hub::time::Time;

use super::{MINUTE, RETENTION, SECOND, StoreFixture, ended, job_of, next, now, task, update};

async fn sweep(fixture: &StoreFixture, now: Time) -> usize {
    fixture.store.sweep(now).await.unwrap()
}

async fn exists(fixture: &StoreFixture, id: &JobId) -> bool {
    fixture.get(id).await.is_some()
}

pub(crate) async fn finished_job_is_deleted_after_its_retention(fixture: StoreFixture) {
    let old = fixture.create(job_of("ada")).await;
    let fresh = fixture.create(job_of("ada")).await;
    let active = fixture.create(job_of("ada")).await;
    fixture.commit(&ended(&old, Status::Succeeded, now())).await;
    fixture
        .commit(&ended(&fresh, Status::Failed, now() + MINUTE))
        .await;

    assert_eq!(sweep(&fixture, now() + RETENTION.terminal).await, 0);
    assert_eq!(
        sweep(&fixture, now() + RETENTION.terminal + SECOND).await,
        1
    );
    assert!(!exists(&fixture, &old.id).await);
    assert!(exists(&fixture, &fresh.id).await);
    assert!(exists(&fixture, &active.id).await);
    fixture.expect_published(&old.id, &[1, 2]).await;
}

pub(crate) async fn inactive_job_is_deleted_after_its_retention(fixture: StoreFixture) {
    let due = Schedule {
        poll_at: Some(now()),
        ..Schedule::default()
    };
    let inactive = fixture.create_due(job_of("ada"), due).await;
    let active = fixture.create(job_of("ada")).await;
    let mut newer = next(&active);
    newer.updated_at = now() + MINUTE;
    fixture.commit(&newer).await;

    assert_eq!(sweep(&fixture, now() + RETENTION.active).await, 0);
    assert_eq!(sweep(&fixture, now() + RETENTION.active + SECOND).await, 1);
    assert!(!exists(&fixture, &inactive.id).await);
    assert!(exists(&fixture, &active.id).await);
    assert_eq!(fixture.store.next_due(Queue::Poll).await.unwrap(), None);
}

pub(crate) async fn deleting_a_job_frees_its_key_and_task(fixture: StoreFixture) {
    let job = task("kling", "1");
    assert_eq!(
        fixture.create_with_key(&job, "k", "f").await,
        CreateOutcome::Created
    );
    fixture.commit(&ended(&job, Status::Succeeded, now())).await;
    assert_eq!(
        sweep(&fixture, now() + RETENTION.terminal + SECOND).await,
        1
    );

    assert_eq!(fixture.store.find_task("kling", "1").await.unwrap(), None);
    let again = fixture
        .create_with_key(&task("kling", "1"), "k", "another")
        .await;
    assert_eq!(again, CreateOutcome::Created);
}

pub(crate) async fn buffered_update_is_deleted_after_its_ttl(fixture: StoreFixture) {
    for (stage, at) in [("old", now()), ("fresh", now() + MINUTE)] {
        let outcome = fixture
            .store
            .buffer_update("kling", "1", &update(stage), at)
            .await;
        assert_eq!(outcome.unwrap(), BufferOutcome::Buffered);
    }
    assert_eq!(
        sweep(&fixture, now() + BUFFERED_UPDATE_TTL + SECOND).await,
        1
    );
    let left = fixture.store.buffered_updates("kling", "1").await.unwrap();
    assert_eq!(left, [update("fresh")]);
}

pub(crate) async fn repeated_sweeps_delete_all_expired_jobs(fixture: StoreFixture) {
    for _ in 0..1100 {
        let job = job_of("ada");
        fixture.create(ended(&job, Status::Succeeded, now())).await;
    }
    let later = now() + RETENTION.terminal + SECOND;
    let mut deleted = 0;
    loop {
        match sweep(&fixture, later).await {
            0 => break,
            count => deleted += count,
        }
    }
    assert_eq!(deleted, 1100);
}
