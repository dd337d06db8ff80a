//! Updates that arrive before a job has their task.

use std::sync::Arc;

use progress_hub::job::{Job, JobId, Update};
use progress_hub::store::{
    BufferOutcome, CommitOutcome, CreateOutcome, MAX_BUFFERED_BYTES, MAX_BUFFERED_TASKS,
    MAX_BUFFERED_UPDATES, Schedule,
};
use tokio::task::JoinSet;

use super::{StoreFixture, bound, commit_job, creation, next, now, task, update, video};

async fn buffer(fixture: &StoreFixture, stage: &str) -> BufferOutcome {
    let update = update(stage);
    fixture
        .store
        .buffer_update("kling", "1", &update, now())
        .await
        .unwrap()
}

async fn buffered(fixture: &StoreFixture) -> Vec<Update> {
    fixture.store.buffered_updates("kling", "1").await.unwrap()
}

pub(crate) async fn updates_of_an_unknown_task_are_buffered_in_order(fixture: StoreFixture) {
    assert_eq!(buffer(&fixture, "b").await, BufferOutcome::Buffered);
    assert_eq!(buffer(&fixture, "a").await, BufferOutcome::Buffered);
    assert_eq!(buffered(&fixture).await, [update("b"), update("a")]);
    let others = fixture.store.buffered_updates("runway", "1").await.unwrap();
    assert!(others.is_empty());
}

pub(crate) async fn update_of_a_known_task_returns_its_job(fixture: StoreFixture) {
    let job = fixture.create(task("kling", "1")).await;
    assert_eq!(
        buffer(&fixture, "a").await,
        BufferOutcome::TaskKnown(job.id.clone())
    );
    assert!(buffered(&fixture).await.is_empty());
}

pub(crate) async fn identical_updates_are_buffered_once(fixture: StoreFixture) {
    for stage in ["a", "b", "a", "b"] {
        assert_eq!(buffer(&fixture, stage).await, BufferOutcome::Buffered);
    }
    assert_eq!(buffered(&fixture).await, [update("a"), update("b")]);
}

pub(crate) async fn full_buffer_keeps_the_newest_updates(fixture: StoreFixture) {
    for stage in 0..MAX_BUFFERED_UPDATES + 3 {
        buffer(&fixture, &stage.to_string()).await;
    }
    let latest = (3..MAX_BUFFERED_UPDATES + 3).map(|stage| update(&stage.to_string()));
    assert_eq!(buffered(&fixture).await, latest.collect::<Vec<_>>());
}

pub(crate) async fn buffer_is_bounded_in_bytes_and_tasks(fixture: StoreFixture) {
    let third = MAX_BUFFERED_BYTES / 3;
    for stage in ["a", "b", "c", "d"] {
        buffer(&fixture, &stage.repeat(third)).await;
    }
    let kept = ["c", "d"].map(|stage| update(&stage.repeat(third)));
    assert_eq!(buffered(&fixture).await, kept);
    buffer(&fixture, &"e".repeat(MAX_BUFFERED_BYTES)).await;
    assert!(buffered(&fixture).await.is_empty());

    let put = async |provider: &str, task: usize| {
        let (task, update) = (task.to_string(), update("a"));
        let stored = fixture.store.buffer_update(provider, &task, &update, now());
        stored.await.unwrap();
    };
    put("runway", 0).await;
    for task in 0..2 * MAX_BUFFERED_TASKS {
        put("kling", task).await;
    }
    let mut kept = 0;
    for task in 0..2 * MAX_BUFFERED_TASKS {
        let task = task.to_string();
        let updates = fixture.store.buffered_updates("kling", &task);
        kept += updates.await.unwrap().len();
    }
    // A cluster divides the maximum among its partitions.
    assert!(
        (MAX_BUFFERED_TASKS / 2..MAX_BUFFERED_TASKS + 16).contains(&kept),
        "{kept}"
    );
    // The tasks of another provider are not replaced.
    let other = fixture.store.buffered_updates("runway", "0").await.unwrap();
    assert_eq!(other.len(), 1);
}

pub(crate) async fn commit_deletes_applied_buffered_updates(fixture: StoreFixture) {
    let job = fixture.create(video("kling")).await;
    buffer(&fixture, "a").await;
    buffer(&fixture, "b").await;
    let applied = buffered(&fixture).await;
    let commit = commit_job(&bound(&job, "1"), Schedule::default(), applied);
    assert_eq!(
        fixture.store.commit(commit).await.unwrap(),
        CommitOutcome::Committed
    );
    assert!(buffered(&fixture).await.is_empty());
    assert_eq!(
        buffer(&fixture, "c").await,
        BufferOutcome::TaskKnown(job.id.clone())
    );
}

pub(crate) async fn commit_missing_a_buffered_update_conflicts(fixture: StoreFixture) {
    let job = fixture.create(video("kling")).await;
    buffer(&fixture, "a").await;
    let applied = buffered(&fixture).await;
    buffer(&fixture, "b").await;
    let commit = commit_job(&bound(&job, "1"), Schedule::default(), applied);
    assert_eq!(
        fixture.store.commit(commit).await.unwrap(),
        CommitOutcome::Conflict
    );
    assert_eq!(buffered(&fixture).await, [update("a"), update("b")]);
    assert_eq!(fixture.get(&job.id).await, Some(job));
}

/// The buffer has as many updates as were applied, but other ones.
pub(crate) async fn commit_missing_an_update_in_a_full_buffer_conflicts(fixture: StoreFixture) {
    let job = fixture.create(video("kling")).await;
    for stage in 0..MAX_BUFFERED_UPDATES {
        buffer(&fixture, &stage.to_string()).await;
    }
    let applied = buffered(&fixture).await;
    buffer(&fixture, "newest").await;
    let commit = commit_job(&bound(&job, "1"), Schedule::default(), applied);
    assert_eq!(
        fixture.store.commit(commit).await.unwrap(),
        CommitOutcome::Conflict
    );
}

pub(crate) async fn create_missing_a_buffered_update_conflicts(fixture: StoreFixture) {
    buffer(&fixture, "a").await;
    let mut create = creation(task("kling", "1"), Schedule::default(), None);
    let created = fixture.store.create(create.clone()).await.unwrap();
    assert_eq!(created, CreateOutcome::Conflict);
    assert_eq!(fixture.get(&create.job.id).await, None);

    create.applied_buffered = buffered(&fixture).await;
    let created = fixture.store.create(create).await.unwrap();
    assert_eq!(created, CreateOutcome::Created);
    assert!(buffered(&fixture).await.is_empty());
}

/// Records in the metadata of `job` that `update` was applied.
fn record(job: &Job, update: &Update) -> Job {
    let mut recorded = job.clone();
    let text = serde_json::to_string(update).unwrap();
    recorded.metadata.insert(text, true.into());
    recorded
}

/// Handles an update as a webhook does: buffers it, or applies it if its task is known.
async fn deliver(fixture: &StoreFixture, task_id: &str, update: &Update) {
    let outcome = fixture
        .store
        .buffer_update("kling", task_id, update, now())
        .await;
    let BufferOutcome::TaskKnown(id) = outcome.unwrap() else {
        return;
    };
    loop {
        let job = fixture.get(&id).await.unwrap();
        if fixture.commit(&record(&next(&job), update)).await == CommitOutcome::Committed {
            return;
        }
    }
}

/// Sets the task id as the submitter does: applies the buffered updates and commits.
async fn bind(fixture: &StoreFixture, id: &JobId, task_id: &str) {
    loop {
        let job = fixture.get(id).await.unwrap();
        let applied = fixture
            .store
            .buffered_updates("kling", task_id)
            .await
            .unwrap();
        let next = applied
            .iter()
            .fold(bound(&job, task_id), |job, update| record(&job, update));
        let commit = commit_job(&next, Schedule::default(), applied);
        if fixture.store.commit(commit).await.unwrap() == CommitOutcome::Committed {
            return;
        }
    }
}

pub(crate) async fn update_racing_task_binding_is_never_lost(fixture: StoreFixture) {
    for round in 0..100 {
        let task_id: Arc<str> = round.to_string().into();
        let job = fixture.create(video("kling")).await;
        let updates: Vec<Update> = (0..6).map(|stage| update(&stage.to_string())).collect();
        let mut racers = JoinSet::new();
        for (turn, update) in updates.iter().cloned().enumerate() {
            if turn == round % updates.len() {
                let (fixture, id, task_id) = (fixture.clone(), job.id.clone(), task_id.clone());
                racers.spawn(async move { bind(&fixture, &id, &task_id).await });
            }
            let (fixture, task_id) = (fixture.clone(), task_id.clone());
            racers.spawn(async move { deliver(&fixture, &task_id, &update).await });
        }
        racers.join_all().await;

        let after = fixture.get(&job.id).await.unwrap();
        assert_eq!(after.metadata.len(), updates.len(), "round {round}");
        let left = fixture
            .store
            .buffered_updates("kling", &task_id)
            .await
            .unwrap();
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
}
