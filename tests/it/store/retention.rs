//! What has been kept long enough is forgotten.

use progress_hub::job::{JobId, Status};
use progress_hub::store::{BUFFERED_UPDATE_TTL, BufferOutcome, CreateOutcome, Queue, Schedule};
use progress_hub::time::Time;

use super::{MINUTE, RETENTION, SECOND, StoreFixture, ended, job_of, news, next, now, task};

async fn sweep(fixture: &StoreFixture, now: Time) -> usize {
    fixture.store.sweep(now).await.unwrap()
}

async fn is_kept(fixture: &StoreFixture, id: &JobId) -> bool {
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
    assert!(!is_kept(&fixture, &old.id).await);
    assert!(is_kept(&fixture, &fresh.id).await);
    assert!(is_kept(&fixture, &active.id).await);
    fixture.expect_published(&old.id, &[1, 2]).await;
}

pub(crate) async fn inactive_job_is_deleted_after_its_retention(fixture: StoreFixture) {
    let due = Schedule {
        poll_at: Some(now()),
        ..Schedule::default()
    };
    let silent = fixture.create_due(job_of("ada"), due).await;
    let lively = fixture.create(job_of("ada")).await;
    let mut newer = next(&lively);
    newer.updated_at = now() + MINUTE;
    fixture.commit(&newer).await;

    assert_eq!(sweep(&fixture, now() + RETENTION.active).await, 0);
    assert_eq!(sweep(&fixture, now() + RETENTION.active + SECOND).await, 1);
    assert!(!is_kept(&fixture, &silent.id).await);
    assert!(is_kept(&fixture, &lively.id).await);
    assert_eq!(fixture.store.next_due(Queue::Poll).await.unwrap(), None);
}

pub(crate) async fn deleting_a_job_frees_its_key_and_task(fixture: StoreFixture) {
    let job = task("kling", "1");
    assert_eq!(
        fixture.create_once(&job, "k", "f").await,
        CreateOutcome::Created
    );
    fixture.commit(&ended(&job, Status::Succeeded, now())).await;
    assert_eq!(
        sweep(&fixture, now() + RETENTION.terminal + SECOND).await,
        1
    );

    assert_eq!(fixture.store.find_task("kling", "1").await.unwrap(), None);
    let again = fixture
        .create_once(&task("kling", "1"), "k", "another")
        .await;
    assert_eq!(again, CreateOutcome::Created);
}

pub(crate) async fn buffered_update_is_deleted_after_its_ttl(fixture: StoreFixture) {
    for (stage, at) in [("old", now()), ("fresh", now() + MINUTE)] {
        let kept = fixture
            .store
            .buffer_update("kling", "1", &news(stage), at)
            .await;
        assert_eq!(kept.unwrap(), BufferOutcome::Buffered);
    }
    assert_eq!(
        sweep(&fixture, now() + BUFFERED_UPDATE_TTL + SECOND).await,
        1
    );
    let left = fixture.store.buffered_updates("kling", "1").await.unwrap();
    assert_eq!(left, [news("fresh")]);
}

pub(crate) async fn repeated_sweeps_delete_all_expired_jobs(fixture: StoreFixture) {
    for _ in 0..1100 {
        let job = job_of("ada");
        fixture.create(ended(&job, Status::Succeeded, now())).await;
    }
    let later = now() + RETENTION.terminal + SECOND;
    let mut swept = 0;
    loop {
        match sweep(&fixture, later).await {
            0 => break,
            some => swept += some,
        }
    }
    assert_eq!(swept, 1100);
}
