//! A job begins.

use std::sync::Arc;

use progress_hub::store::{CreateOutcome, Schedule};
use tokio::task::JoinSet;

use super::{Engine, creation, job_of, next, task};

pub(crate) async fn create_stores_and_publishes_the_job(engine: Engine) {
    let job = engine.create(task("kling", "1")).await;
    assert_eq!(engine.get(&job.id).await, Some(Arc::clone(&job)));
    engine.expect_heard(&job.id, &[1]).await;
    let found = engine.store.find_task("kling", "1").await.unwrap();
    assert_eq!(found, Some(job.id.clone()));
}

pub(crate) async fn a_repeated_request_finds_the_job_it_made(engine: Engine) {
    let first = job_of("ada");
    assert_eq!(
        engine.create_once(&first, "k", "f").await,
        CreateOutcome::Created
    );
    let newer = next(&first);
    engine.commit(&newer).await;
    let second = job_of("ada");
    let replay = engine.create_once(&second, "k", "f").await;
    assert_eq!(replay, CreateOutcome::Replayed(Arc::new(newer)));
    assert_eq!(engine.get(&second.id).await, None);
    engine.expect_heard(&second.id, &[]).await;
}

pub(crate) async fn a_key_is_not_reused_for_another_request(engine: Engine) {
    assert_eq!(
        engine.create_once(&job_of("ada"), "k", "f").await,
        CreateOutcome::Created
    );
    let other = job_of("ada");
    assert_eq!(
        engine.create_once(&other, "k", "g").await,
        CreateOutcome::IdempotencyKeyConflict
    );
    assert_eq!(engine.get(&other.id).await, None);
}

pub(crate) async fn equal_keys_of_two_callers_are_two_keys(engine: Engine) {
    assert_eq!(
        engine.create_once(&job_of("ada"), "k", "f").await,
        CreateOutcome::Created
    );
    assert_eq!(
        engine.create_once(&job_of("bob"), "k", "g").await,
        CreateOutcome::Created
    );
}

pub(crate) async fn one_of_many_equal_requests_makes_the_job(engine: Engine) {
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let engine = engine.clone();
        callers.spawn(async move {
            let job = job_of("ada");
            (job.id.clone(), engine.create_once(&job, "k", "f").await)
        });
    }
    let (mut made, mut replayed) = (Vec::new(), Vec::new());
    for (id, created) in callers.join_all().await {
        match created {
            CreateOutcome::Created => made.push(id),
            CreateOutcome::Replayed(job) => replayed.push(job.id.clone()),
            CreateOutcome::IdempotencyKeyConflict
            | CreateOutcome::TaskConflict(_)
            | CreateOutcome::LimitExceeded { .. }
            | CreateOutcome::Conflict => panic!("{created:?}"),
        }
    }
    assert_eq!((made.len(), replayed.len()), (1, 31));
    assert!(replayed.iter().all(|id| *id == made[0]));
}

pub(crate) async fn a_job_is_created_once(engine: Engine) {
    let job = engine.create(job_of("ada")).await;
    let newer = next(&job);
    engine.commit(&newer).await;
    let again = creation((*job).clone(), Schedule::default(), None);
    let created = engine.store.create(again).await.unwrap();
    assert_eq!(created, CreateOutcome::Replayed(Arc::new(newer)));
    engine.expect_heard(&job.id, &[1, 2]).await;
}

pub(crate) async fn a_task_is_one_jobs(engine: Engine) {
    let holder = engine.create(task("kling", "1")).await;
    let other = task("kling", "1");
    let created = engine.create_once(&other, "k", "f").await;
    assert_eq!(created, CreateOutcome::TaskConflict(holder));
    assert_eq!(engine.get(&other.id).await, None);
    let free = engine.create_once(&job_of("ada"), "k", "g").await;
    assert_eq!(
        free,
        CreateOutcome::Created,
        "a refused request must not use up its key"
    );
}

pub(crate) async fn equal_task_ids_of_two_providers_are_two_tasks(engine: Engine) {
    let kling = engine.create(task("kling", "1")).await;
    let runway = engine.create(task("runway", "1")).await;
    for job in [kling, runway] {
        let provider = job.provider.as_deref().unwrap();
        let found = engine.store.find_task(provider, "1").await.unwrap();
        assert_eq!(found, Some(job.id.clone()));
    }
}
