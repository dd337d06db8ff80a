//! Jobs are read, one by one and in lists.

use std::collections::HashSet;
use std::sync::Arc;

use progress_hub::job::{Job, JobId, Status};
use progress_hub::store::ListQuery;

use super::{Engine, ended, job_of, next, now};

async fn list(engine: &Engine, listing: ListQuery) -> Vec<JobId> {
    let jobs = engine.store.list(listing).await.unwrap();
    jobs.iter().map(|job| job.id.clone()).collect()
}

fn everything() -> ListQuery {
    ListQuery {
        limit: 100,
        ..ListQuery::default()
    }
}

/// Jobs of an owner, newest first.
async fn jobs_of(engine: &Engine, owner: &str, count: usize) -> Vec<Arc<Job>> {
    let mut jobs = Vec::new();
    for _ in 0..count {
        jobs.insert(0, engine.create(job_of(owner)).await);
    }
    jobs
}

fn ids(jobs: &[Arc<Job>]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id.clone()).collect()
}

pub(crate) async fn what_does_not_exist_is_not_found(engine: Engine) {
    let id = JobId::new();
    assert_eq!(engine.get(&id).await, None);
    assert!(engine.store.get_many(&[id]).await.unwrap().is_empty());
    assert!(engine.store.get_many(&[]).await.unwrap().is_empty());
    assert!(list(&engine, everything()).await.is_empty());
    assert_eq!(engine.store.find_task("kling", "1").await.unwrap(), None);
}

pub(crate) async fn many_are_read_at_once(engine: Engine) {
    let jobs = jobs_of(&engine, "ada", 20).await;
    let mut asked = ids(&jobs);
    asked.push(JobId::new());
    let read = engine.store.get_many(&asked).await.unwrap();
    let read_ids: HashSet<JobId> = ids(&read).into_iter().collect();
    assert_eq!(
        (read.len(), read_ids),
        (20, ids(&jobs).into_iter().collect())
    );
    assert!(read.iter().all(|job| jobs.contains(job)));
}

pub(crate) async fn a_listing_is_newest_first_and_goes_on_at_its_cursor(engine: Engine) {
    let jobs = jobs_of(&engine, "ada", 5).await;
    let page = |before: Option<&JobId>| ListQuery {
        before: before.cloned(),
        limit: 2,
        ..ListQuery::default()
    };
    let mut seen = list(&engine, page(None)).await;
    while seen.len() < 5 {
        let more = list(&engine, page(seen.last())).await;
        assert!(!more.is_empty());
        seen.extend(more);
    }
    assert_eq!(seen, ids(&jobs));
    assert!(list(&engine, page(seen.last())).await.is_empty());
}

pub(crate) async fn a_listing_keeps_owners_and_statuses_apart(engine: Engine) {
    let ada = jobs_of(&engine, "ada", 3).await;
    let bob = jobs_of(&engine, "bob", 3).await;
    engine.commit(&next(&ada[0])).await;
    engine.commit(&ended(&ada[1], Status::Failed, now())).await;
    engine.commit(&next(&bob[2])).await;

    let select = |owner: Option<&str>, status| ListQuery {
        owner: owner.map(str::to_owned),
        status,
        ..everything()
    };
    let running = Some(Status::Running);
    assert_eq!(list(&engine, select(Some("ada"), None)).await, ids(&ada));
    assert_eq!(
        list(&engine, select(Some("ada"), running)).await,
        ids(&ada[..1])
    );
    let failed = select(Some("ada"), Some(Status::Failed));
    assert_eq!(list(&engine, failed).await, ids(&ada[1..2]));
    let everybodys = [bob[2].id.clone(), ada[0].id.clone()];
    assert_eq!(list(&engine, select(None, running)).await, everybodys);
    assert!(list(&engine, select(Some("eve"), None)).await.is_empty());
}

pub(crate) async fn a_listing_can_begin_with_the_unfinished(engine: Engine) {
    let jobs = jobs_of(&engine, "ada", 4).await;
    engine
        .commit(&ended(&jobs[0], Status::Succeeded, now()))
        .await;
    engine
        .commit(&ended(&jobs[2], Status::Cancelled, now()))
        .await;
    let listing = |owner: Option<&str>, limit| ListQuery {
        owner: owner.map(str::to_owned),
        active_first: true,
        limit,
        ..ListQuery::default()
    };
    let expected = [&jobs[1], &jobs[3], &jobs[0], &jobs[2]].map(|job| job.id.clone());
    assert_eq!(list(&engine, listing(Some("ada"), 4)).await, expected);
    assert_eq!(list(&engine, listing(None, 3)).await, expected[..3]);
    assert!(list(&engine, listing(Some("bob"), 4)).await.is_empty());
}

pub(crate) async fn what_was_acknowledged_is_read(engine: Engine) {
    let mut job = (*engine.create(job_of("ada")).await).clone();
    for _ in 0..200 {
        job = next(&job);
        engine.commit(&job).await;
        assert_eq!(engine.get(&job.id).await.unwrap().version, job.version);
    }
}
