//! Creation of jobs.

use std::sync::Arc;

use progress_hub::store::{CreateOutcome, Schedule};
use tokio::task::JoinSet;

use super::{StoreFixture, creation, job_of, next, task};

pub(crate) async fn create_stores_and_publishes_the_job(fixture: StoreFixture) {
    let job = fixture.create(task("kling", "1")).await;
    assert_eq!(fixture.get(&job.id).await, Some(Arc::clone(&job)));
    fixture.expect_published(&job.id, &[1]).await;
    let found = fixture.store.find_task("kling", "1").await.unwrap();
    assert_eq!(found, Some(job.id.clone()));
}

pub(crate) async fn repeated_request_returns_the_existing_job(fixture: StoreFixture) {
    let first = job_of("ada");
    assert_eq!(
        fixture.create_with_key(&first, "k", "f").await,
        CreateOutcome::Created
    );
    let newer = next(&first);
    fixture.commit(&newer).await;
    let second = job_of("ada");
    let replay = fixture.create_with_key(&second, "k", "f").await;
    assert_eq!(replay, CreateOutcome::Replayed(Arc::new(newer)));
    assert_eq!(fixture.get(&second.id).await, None);
    fixture.expect_published(&second.id, &[]).await;
}

pub(crate) async fn idempotency_key_of_another_request_conflicts(fixture: StoreFixture) {
    assert_eq!(
        fixture.create_with_key(&job_of("ada"), "k", "f").await,
        CreateOutcome::Created
    );
    let other = job_of("ada");
    assert_eq!(
        fixture.create_with_key(&other, "k", "g").await,
        CreateOutcome::IdempotencyKeyConflict
    );
    assert_eq!(fixture.get(&other.id).await, None);
}

pub(crate) async fn idempotency_keys_are_scoped_by_caller(fixture: StoreFixture) {
    assert_eq!(
        fixture.create_with_key(&job_of("ada"), "k", "f").await,
        CreateOutcome::Created
    );
    assert_eq!(
        fixture.create_with_key(&job_of("bob"), "k", "g").await,
        CreateOutcome::Created
    );
}

pub(crate) async fn concurrent_equal_requests_create_one_job(fixture: StoreFixture) {
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let fixture = fixture.clone();
        callers.spawn(async move {
            let job = job_of("ada");
            (
                job.id.clone(),
                fixture.create_with_key(&job, "k", "f").await,
            )
        });
    }
    let (mut created_ids, mut replayed_ids) = (Vec::new(), Vec::new());
    for (id, outcome) in callers.join_all().await {
        match outcome {
            CreateOutcome::Created => created_ids.push(id),
            CreateOutcome::Replayed(job) => replayed_ids.push(job.id.clone()),
            CreateOutcome::IdempotencyKeyConflict
            | CreateOutcome::TaskConflict(_)
            | CreateOutcome::LimitExceeded { .. }
            | CreateOutcome::Conflict => panic!("{outcome:?}"),
        }
    }
    assert_eq!((created_ids.len(), replayed_ids.len()), (1, 31));
    assert!(replayed_ids.iter().all(|id| *id == created_ids[0]));
}

pub(crate) async fn creating_an_existing_job_returns_it(fixture: StoreFixture) {
    let job = fixture.create(job_of("ada")).await;
    let newer = next(&job);
    fixture.commit(&newer).await;
    let again = creation((*job).clone(), Schedule::default(), None);
    let created = fixture.store.create(again).await.unwrap();
    assert_eq!(created, CreateOutcome::Replayed(Arc::new(newer)));
    fixture.expect_published(&job.id, &[1, 2]).await;
}

pub(crate) async fn create_with_task_of_another_job_conflicts(fixture: StoreFixture) {
    let holder = fixture.create(task("kling", "1")).await;
    let other = task("kling", "1");
    let created = fixture.create_with_key(&other, "k", "f").await;
    assert_eq!(created, CreateOutcome::TaskConflict(holder));
    assert_eq!(fixture.get(&other.id).await, None);
    let free = fixture.create_with_key(&job_of("ada"), "k", "g").await;
    assert_eq!(
        free,
        CreateOutcome::Created,
        "a rejected request leaves its key unused"
    );
}

pub(crate) async fn task_ids_are_scoped_by_provider(fixture: StoreFixture) {
    let kling = fixture.create(task("kling", "1")).await;
    let runway = fixture.create(task("runway", "1")).await;
    for job in [kling, runway] {
        let provider = job.provider.as_deref().unwrap();
        let found = fixture.store.find_task(provider, "1").await.unwrap();
        assert_eq!(found, Some(job.id.clone()));
    }
}
