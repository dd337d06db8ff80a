//! What has been kept long enough is forgotten.

use progress_hub::job::{JobId, Status};
use progress_hub::store::{BUFFERED_UPDATE_TTL, BufferOutcome, CreateOutcome, Queue, Schedule};
use progress_hub::time::Time;

use super::{Engine, MINUTE, RETENTION, SECOND, ended, job_of, news, next, now, task};

async fn sweep(engine: &Engine, now: Time) -> usize {
    engine.store.sweep(now).await.unwrap()
}

async fn is_kept(engine: &Engine, id: &JobId) -> bool {
    engine.get(id).await.is_some()
}

pub(crate) async fn an_ended_job_is_forgotten_after_its_retention(engine: Engine) {
    let old = engine.create(job_of("ada")).await;
    let fresh = engine.create(job_of("ada")).await;
    let active = engine.create(job_of("ada")).await;
    engine.commit(&ended(&old, Status::Succeeded, now())).await;
    engine
        .commit(&ended(&fresh, Status::Failed, now() + MINUTE))
        .await;

    assert_eq!(sweep(&engine, now() + RETENTION.terminal).await, 0);
    assert_eq!(sweep(&engine, now() + RETENTION.terminal + SECOND).await, 1);
    assert!(!is_kept(&engine, &old.id).await);
    assert!(is_kept(&engine, &fresh.id).await);
    assert!(is_kept(&engine, &active.id).await);
    engine.expect_heard(&old.id, &[1, 2]).await;
}

pub(crate) async fn a_silent_job_is_forgotten_after_its_retention(engine: Engine) {
    let due = Schedule {
        poll_at: Some(now()),
        ..Schedule::default()
    };
    let silent = engine.create_due(job_of("ada"), due).await;
    let lively = engine.create(job_of("ada")).await;
    let mut newer = next(&lively);
    newer.updated_at = now() + MINUTE;
    engine.commit(&newer).await;

    assert_eq!(sweep(&engine, now() + RETENTION.active).await, 0);
    assert_eq!(sweep(&engine, now() + RETENTION.active + SECOND).await, 1);
    assert!(!is_kept(&engine, &silent.id).await);
    assert!(is_kept(&engine, &lively.id).await);
    assert_eq!(engine.store.next_due(Queue::Poll).await.unwrap(), None);
}

pub(crate) async fn a_forgotten_job_takes_its_key_and_task_along(engine: Engine) {
    let job = task("kling", "1");
    assert_eq!(
        engine.create_once(&job, "k", "f").await,
        CreateOutcome::Created
    );
    engine.commit(&ended(&job, Status::Succeeded, now())).await;
    assert_eq!(sweep(&engine, now() + RETENTION.terminal + SECOND).await, 1);

    assert_eq!(engine.store.find_task("kling", "1").await.unwrap(), None);
    let again = engine
        .create_once(&task("kling", "1"), "k", "another")
        .await;
    assert_eq!(again, CreateOutcome::Created);
}

pub(crate) async fn parked_news_is_forgotten_after_an_hour(engine: Engine) {
    for (stage, at) in [("old", now()), ("fresh", now() + MINUTE)] {
        let kept = engine
            .store
            .buffer_update("kling", "1", &news(stage), at)
            .await;
        assert_eq!(kept.unwrap(), BufferOutcome::Buffered);
    }
    assert_eq!(
        sweep(&engine, now() + BUFFERED_UPDATE_TTL + SECOND).await,
        1
    );
    let left = engine.store.buffered_updates("kling", "1").await.unwrap();
    assert_eq!(left, [news("fresh")]);
}

pub(crate) async fn a_sweep_goes_on_until_nothing_is_left(engine: Engine) {
    for _ in 0..1100 {
        let job = job_of("ada");
        engine.create(ended(&job, Status::Succeeded, now())).await;
    }
    let later = now() + RETENTION.terminal + SECOND;
    let mut swept = 0;
    loop {
        match sweep(&engine, later).await {
            0 => break,
            some => swept += some,
        }
    }
    assert_eq!(swept, 1100);
}
