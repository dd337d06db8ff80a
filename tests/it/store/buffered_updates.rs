//! News that comes before its task is known.

use std::sync::Arc;

use progress_hub::job::{Job, JobId, Update};
use progress_hub::store::{
    BufferOutcome, CommitOutcome, CreateOutcome, MAX_BUFFERED_UPDATES, Schedule,
};
use tokio::task::JoinSet;

use super::{Engine, bound, commitment, creation, news, next, now, task, video};

async fn park(engine: &Engine, stage: &str) -> BufferOutcome {
    let news = news(stage);
    engine
        .store
        .buffer_update("kling", "1", &news, now())
        .await
        .unwrap()
}

async fn parked(engine: &Engine) -> Vec<Update> {
    engine.store.buffered_updates("kling", "1").await.unwrap()
}

pub(crate) async fn news_of_an_unknown_task_is_parked_in_order(engine: Engine) {
    assert_eq!(park(&engine, "b").await, BufferOutcome::Buffered);
    assert_eq!(park(&engine, "a").await, BufferOutcome::Buffered);
    assert_eq!(parked(&engine).await, [news("b"), news("a")]);
    let others = engine.store.buffered_updates("runway", "1").await.unwrap();
    assert!(others.is_empty());
}

pub(crate) async fn news_of_a_known_task_is_not_parked(engine: Engine) {
    let job = engine.create(task("kling", "1")).await;
    assert_eq!(
        park(&engine, "a").await,
        BufferOutcome::TaskKnown(job.id.clone())
    );
    assert!(parked(&engine).await.is_empty());
}

pub(crate) async fn the_same_news_is_parked_once(engine: Engine) {
    for stage in ["a", "b", "a", "b"] {
        assert_eq!(park(&engine, stage).await, BufferOutcome::Buffered);
    }
    assert_eq!(parked(&engine).await, [news("a"), news("b")]);
}

pub(crate) async fn of_too_much_news_the_latest_is_kept(engine: Engine) {
    for stage in 0..MAX_BUFFERED_UPDATES + 3 {
        park(&engine, &stage.to_string()).await;
    }
    let latest = (3..MAX_BUFFERED_UPDATES + 3).map(|stage| news(&stage.to_string()));
    assert_eq!(parked(&engine).await, latest.collect::<Vec<_>>());
}

pub(crate) async fn commit_deletes_applied_buffered_updates(engine: Engine) {
    let job = engine.create(video("kling")).await;
    park(&engine, "a").await;
    park(&engine, "b").await;
    let folded = parked(&engine).await;
    let commit = commitment(&bound(&job, "1"), Schedule::default(), folded);
    assert_eq!(
        engine.store.commit(commit).await.unwrap(),
        CommitOutcome::Committed
    );
    assert!(parked(&engine).await.is_empty());
    assert_eq!(
        park(&engine, "c").await,
        BufferOutcome::TaskKnown(job.id.clone())
    );
}

pub(crate) async fn commit_missing_a_buffered_update_conflicts(engine: Engine) {
    let job = engine.create(video("kling")).await;
    park(&engine, "a").await;
    let folded = parked(&engine).await;
    park(&engine, "b").await;
    let commit = commitment(&bound(&job, "1"), Schedule::default(), folded);
    assert_eq!(
        engine.store.commit(commit).await.unwrap(),
        CommitOutcome::Conflict
    );
    assert_eq!(parked(&engine).await, [news("a"), news("b")]);
    assert_eq!(engine.get(&job.id).await, Some(job));
}

/// As many are parked as were folded, but not the same.
pub(crate) async fn a_commit_that_missed_news_in_a_full_park_is_stale(engine: Engine) {
    let job = engine.create(video("kling")).await;
    for stage in 0..MAX_BUFFERED_UPDATES {
        park(&engine, &stage.to_string()).await;
    }
    let folded = parked(&engine).await;
    park(&engine, "one more").await;
    let commit = commitment(&bound(&job, "1"), Schedule::default(), folded);
    assert_eq!(
        engine.store.commit(commit).await.unwrap(),
        CommitOutcome::Conflict
    );
}

pub(crate) async fn a_create_that_missed_news_is_stale(engine: Engine) {
    park(&engine, "a").await;
    let mut create = creation(task("kling", "1"), Schedule::default(), None);
    let created = engine.store.create(create.clone()).await.unwrap();
    assert_eq!(created, CreateOutcome::Conflict);
    assert_eq!(engine.get(&create.job.id).await, None);

    create.applied_buffered = parked(&engine).await;
    let created = engine.store.create(create).await.unwrap();
    assert_eq!(created, CreateOutcome::Created);
    assert!(parked(&engine).await.is_empty());
}

/// Notes in a job's metadata that this news reached it.
fn note(job: &Job, update: &Update) -> Job {
    let mut noted = job.clone();
    let text = serde_json::to_string(update).unwrap();
    noted.metadata.insert(text, true.into());
    noted
}

/// What a webhook does: park, or record where the task is known.
async fn tell(engine: &Engine, task_id: &str, update: &Update) {
    let parked = engine
        .store
        .buffer_update("kling", task_id, update, now())
        .await;
    let BufferOutcome::TaskKnown(id) = parked.unwrap() else {
        return;
    };
    loop {
        let job = engine.get(&id).await.unwrap();
        if engine.commit(&note(&next(&job), update)).await == CommitOutcome::Committed {
            return;
        }
    }
}

/// What a submitter does with the provider's answer: fold what is parked, and commit.
async fn bind(engine: &Engine, id: &JobId, task_id: &str) {
    loop {
        let job = engine.get(id).await.unwrap();
        let folded = engine
            .store
            .buffered_updates("kling", task_id)
            .await
            .unwrap();
        let known = folded
            .iter()
            .fold(bound(&job, task_id), |job, update| note(&job, update));
        let commit = commitment(&known, Schedule::default(), folded);
        if engine.store.commit(commit).await.unwrap() == CommitOutcome::Committed {
            return;
        }
    }
}

pub(crate) async fn update_racing_task_binding_is_never_lost(engine: Engine) {
    for round in 0..100 {
        let task_id: Arc<str> = round.to_string().into();
        let job = engine.create(video("kling")).await;
        let updates: Vec<Update> = (0..6).map(|stage| news(&stage.to_string())).collect();
        let mut racers = JoinSet::new();
        for (turn, update) in updates.iter().cloned().enumerate() {
            if turn == round % updates.len() {
                let (engine, id, task_id) = (engine.clone(), job.id.clone(), task_id.clone());
                racers.spawn(async move { bind(&engine, &id, &task_id).await });
            }
            let (engine, task_id) = (engine.clone(), task_id.clone());
            racers.spawn(async move { tell(&engine, &task_id, &update).await });
        }
        racers.join_all().await;

        let after = engine.get(&job.id).await.unwrap();
        assert_eq!(after.metadata.len(), updates.len(), "round {round}");
        let left = engine
            .store
            .buffered_updates("kling", &task_id)
            .await
            .unwrap();
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
}
