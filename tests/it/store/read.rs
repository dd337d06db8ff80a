//! Reads of single jobs and lists.

use std::collections::HashSet;
use std::sync::Arc;

use progress_hub::job::{Job, JobId, Status};
use progress_hub::store::ListQuery;

use super::{StoreFixture, ended, job_of, next, now};

async fn list(fixture: &StoreFixture, query: ListQuery) -> Vec<JobId> {
    let jobs = fixture.store.list(query).await.unwrap();
    jobs.iter().map(|job| job.id.clone()).collect()
}

fn everything() -> ListQuery {
    ListQuery {
        limit: 100,
        ..ListQuery::default()
    }
}

/// Creates jobs and returns them from newest to oldest.
async fn create_jobs(fixture: &StoreFixture, owner: &str, count: usize) -> Vec<Arc<Job>> {
    let mut jobs = Vec::new();
    for _ in 0..count {
        jobs.insert(0, fixture.create(job_of(owner)).await);
    }
    jobs
}

fn ids(jobs: &[Arc<Job>]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id.clone()).collect()
}

pub(crate) async fn reads_of_missing_jobs_return_nothing(fixture: StoreFixture) {
    let id = JobId::new();
    assert_eq!(fixture.get(&id).await, None);
    assert!(fixture.store.get_many(&[id]).await.unwrap().is_empty());
    assert!(fixture.store.get_many(&[]).await.unwrap().is_empty());
    assert!(list(&fixture, everything()).await.is_empty());
    assert_eq!(fixture.store.find_task("kling", "1").await.unwrap(), None);
}

pub(crate) async fn get_many_returns_existing_jobs(fixture: StoreFixture) {
    let jobs = create_jobs(&fixture, "ada", 20).await;
    let mut requested = ids(&jobs);
    requested.push(JobId::new());
    let read = fixture.store.get_many(&requested).await.unwrap();
    let read_ids: HashSet<JobId> = ids(&read).into_iter().collect();
    assert_eq!(
        (read.len(), read_ids),
        (20, ids(&jobs).into_iter().collect())
    );
    assert!(read.iter().all(|job| jobs.contains(job)));
}

pub(crate) async fn list_pages_from_newest_to_oldest(fixture: StoreFixture) {
    let jobs = create_jobs(&fixture, "ada", 5).await;
    let page = |before: Option<&JobId>| ListQuery {
        before: before.cloned(),
        limit: 2,
        ..ListQuery::default()
    };
    let mut seen = list(&fixture, page(None)).await;
    while seen.len() < 5 {
        let more = list(&fixture, page(seen.last())).await;
        assert!(!more.is_empty());
        seen.extend(more);
    }
    assert_eq!(seen, ids(&jobs));
    assert!(list(&fixture, page(seen.last())).await.is_empty());
}

pub(crate) async fn list_filters_by_owner_and_status(fixture: StoreFixture) {
    let ada = create_jobs(&fixture, "ada", 3).await;
    let bob = create_jobs(&fixture, "bob", 3).await;
    fixture.commit(&next(&ada[0])).await;
    fixture.commit(&ended(&ada[1], Status::Failed, now())).await;
    fixture.commit(&next(&bob[2])).await;

    let select = |owner: Option<&str>, status| ListQuery {
        owner: owner.map(str::to_owned),
        status,
        ..everything()
    };
    let running = Some(Status::Running);
    assert_eq!(list(&fixture, select(Some("ada"), None)).await, ids(&ada));
    assert_eq!(
        list(&fixture, select(Some("ada"), running)).await,
        ids(&ada[..1])
    );
    let failed = select(Some("ada"), Some(Status::Failed));
    assert_eq!(list(&fixture, failed).await, ids(&ada[1..2]));
    let all_owners = [bob[2].id.clone(), ada[0].id.clone()];
    assert_eq!(list(&fixture, select(None, running)).await, all_owners);
    assert!(list(&fixture, select(Some("eve"), None)).await.is_empty());
}

pub(crate) async fn list_returns_active_jobs_first_on_request(fixture: StoreFixture) {
    let jobs = create_jobs(&fixture, "ada", 4).await;
    fixture
        .commit(&ended(&jobs[0], Status::Succeeded, now()))
        .await;
    fixture
        .commit(&ended(&jobs[2], Status::Cancelled, now()))
        .await;
    let active_first = |owner: Option<&str>, limit| ListQuery {
        owner: owner.map(str::to_owned),
        active_first: true,
        limit,
        ..ListQuery::default()
    };
    let expected = [&jobs[1], &jobs[3], &jobs[0], &jobs[2]].map(|job| job.id.clone());
    assert_eq!(list(&fixture, active_first(Some("ada"), 4)).await, expected);
    assert_eq!(list(&fixture, active_first(None, 3)).await, expected[..3]);
    assert!(
        list(&fixture, active_first(Some("bob"), 4))
            .await
            .is_empty()
    );
}

pub(crate) async fn acknowledged_commit_is_visible_to_reads(fixture: StoreFixture) {
    let mut job = (*fixture.create(job_of("ada")).await).clone();
    for _ in 0..200 {
        job = next(&job);
        fixture.commit(&job).await;
        assert_eq!(fixture.get(&job.id).await.unwrap().version, job.version);
    }
}
