//! Concurrency slots of providers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use progress_hub::job::{Job, JobId, Status};
use progress_hub::store::{CLAIM_LEASE, CommitOutcome, Queue, Schedule};
use progress_hub::time::Time;
use tokio::task::JoinSet;

use super::{MINUTE, SECOND, StoreFixture, ended, next, now, video};

fn due(at: Time) -> Schedule {
    Schedule {
        submit_at: Some(at),
        ..Schedule::default()
    }
}

/// The schedule of a job that is being submitted or runs at its provider.
const HOLDS_SLOT: Schedule = Schedule {
    poll_backoff: false,
    submit_at: None,
    poll_at: None,
    poll_interval: MINUTE,
    holds_slot: true,
};

fn kling(max_concurrent: usize) -> Queue<'static> {
    Queue::Submit {
        provider: "kling",
        max_concurrent,
    }
}

/// Creates jobs of one provider, due one millisecond apart, the last at `now()`.
async fn waiting(fixture: &StoreFixture, provider: &str, count: u64) -> Vec<Arc<Job>> {
    let mut jobs = Vec::new();
    for early in (0..count).rev() {
        let at = now() - Duration::from_millis(early);
        jobs.push(fixture.create_due(video(provider), due(at)).await);
    }
    jobs
}

async fn claim(fixture: &StoreFixture, queue: Queue<'_>, now: Time) -> Vec<JobId> {
    let jobs = fixture.store.claim(queue, now, 100).await.unwrap();
    jobs.iter().map(|job| job.id.clone()).collect()
}

fn ids(jobs: &[Arc<Job>]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id.clone()).collect()
}

pub(crate) async fn claims_never_exceed_free_slots(fixture: StoreFixture) {
    let jobs = waiting(&fixture, "kling", 4).await;
    assert!(claim(&fixture, kling(0), now()).await.is_empty());
    assert_eq!(claim(&fixture, kling(2), now()).await, ids(&jobs[..2]));
    assert!(claim(&fixture, kling(2), now()).await.is_empty());

    // The claim and the submission occupy the same slot.
    fixture.commit_due(&next(&jobs[0]), HOLDS_SLOT).await;
    assert!(claim(&fixture, kling(2), now()).await.is_empty());
    assert_eq!(claim(&fixture, kling(3), now()).await, ids(&jobs[2..3]));
    fixture.commit_due(&next(&next(&jobs[0])), HOLDS_SLOT).await;
    assert!(claim(&fixture, kling(3), now()).await.is_empty());

    let one = fixture.store.claim(kling(100), now(), 1).await.unwrap();
    assert_eq!(one, jobs[3..]);
}

pub(crate) async fn slots_are_counted_per_provider(fixture: StoreFixture) {
    let jobs = waiting(&fixture, "kling", 2).await;
    let others = waiting(&fixture, "runway", 2).await;
    let holder = fixture.create_due(video("runway"), HOLDS_SLOT).await;
    assert_eq!(claim(&fixture, kling(1), now()).await, ids(&jobs[..1]));
    let runway = |max_concurrent| Queue::Submit {
        provider: "runway",
        max_concurrent,
    };
    assert!(claim(&fixture, runway(1), now()).await.is_empty());
    assert_eq!(claim(&fixture, runway(2), now()).await, ids(&others[..1]));
    fixture
        .commit_due(&ended(&holder, Status::Failed, now()), HOLDS_SLOT)
        .await;
    assert!(claim(&fixture, kling(1), now()).await.is_empty());
    assert_eq!(claim(&fixture, runway(2), now()).await, ids(&others[1..]));
}

pub(crate) async fn finished_job_releases_its_slot(fixture: StoreFixture) {
    let jobs = waiting(&fixture, "kling", 3).await;
    let statuses = [Status::Succeeded, Status::Cancelled];
    for (index, status) in statuses.into_iter().enumerate() {
        let job = &jobs[index];
        assert_eq!(
            claim(&fixture, kling(1), now()).await,
            ids(&[Arc::clone(job)])
        );
        let submitting = next(job);
        fixture.commit_due(&submitting, HOLDS_SLOT).await;
        assert!(claim(&fixture, kling(1), now() + MINUTE).await.is_empty());
        // The schedule of a finished job is ignored.
        fixture
            .commit_due(&ended(&submitting, status, now()), HOLDS_SLOT)
            .await;
    }
    assert_eq!(claim(&fixture, kling(1), now()).await, ids(&jobs[2..]));
}

pub(crate) async fn retry_releases_the_slot(fixture: StoreFixture) {
    let jobs = waiting(&fixture, "kling", 2).await;
    assert_eq!(claim(&fixture, kling(1), now()).await, ids(&jobs[..1]));
    let submitting = next(&jobs[0]);
    fixture.commit_due(&submitting, HOLDS_SLOT).await;
    assert!(claim(&fixture, kling(1), now()).await.is_empty());
    let retry = next(&submitting);
    fixture.commit_due(&retry, due(now() + SECOND)).await;
    assert_eq!(claim(&fixture, kling(1), now()).await, ids(&jobs[1..]));
    assert!(claim(&fixture, kling(1), now() + SECOND).await.is_empty());
    assert_eq!(
        claim(&fixture, kling(2), now() + SECOND).await,
        ids(&jobs[..1])
    );
}

pub(crate) async fn expired_lease_releases_the_slot(fixture: StoreFixture) {
    let jobs = waiting(&fixture, "kling", 2).await;
    assert_eq!(claim(&fixture, kling(1), now()).await, ids(&jobs[..1]));
    let end = now() + CLAIM_LEASE;
    assert!(claim(&fixture, kling(1), end - SECOND).await.is_empty());
    // The job with the expired claim moves to the end of the queue.
    assert_eq!(claim(&fixture, kling(1), end).await, ids(&jobs[1..]));
    assert!(claim(&fixture, kling(1), end).await.is_empty());
    assert_eq!(claim(&fixture, kling(2), end).await, ids(&jobs[..1]));
}

pub(crate) async fn no_claims_when_the_limit_is_below_held_slots(fixture: StoreFixture) {
    for _ in 0..3 {
        fixture.create_due(video("kling"), HOLDS_SLOT).await;
    }
    let jobs = waiting(&fixture, "kling", 1).await;
    assert!(claim(&fixture, kling(2), now()).await.is_empty());
    assert_eq!(claim(&fixture, kling(4), now()).await, ids(&jobs));
}

pub(crate) async fn next_due_ignores_slots(fixture: StoreFixture) {
    fixture.create_due(video("kling"), HOLDS_SLOT).await;
    waiting(&fixture, "kling", 1).await;
    assert!(claim(&fixture, kling(1), now()).await.is_empty());
    let next = fixture.store.next_due(kling(1)).await.unwrap();
    assert_eq!(next, Some(now()));
}

/// Each job is submitted twice: the first submission is returned to the queue.
pub(crate) async fn concurrent_claims_never_exceed_the_limit(fixture: StoreFixture) {
    const SLOTS: usize = 5;
    const JOBS: u64 = 60;
    waiting(&fixture, "kling", JOBS).await;
    let claimed_jobs = Arc::new(AtomicUsize::new(0));
    let mut claimers = JoinSet::new();
    for _ in 0..8 {
        let (fixture, claimed_jobs) = (fixture.clone(), Arc::clone(&claimed_jobs));
        claimers.spawn(async move {
            let (mut peak, mut finished) = (0, 0);
            let (store, queue) = (&fixture.store, kling(SLOTS));
            while store.next_due(queue).await.unwrap().is_some() {
                let claimed = store.claim(queue, now(), 3).await.unwrap();
                let count = claimed_jobs.fetch_add(claimed.len(), Ordering::SeqCst) + claimed.len();
                peak = peak.max(count);
                for job in claimed {
                    let submitting = next(&job);
                    let committed = fixture.commit_due(&submitting, HOLDS_SLOT).await;
                    assert_eq!(committed, CommitOutcome::Committed);
                    claimed_jobs.fetch_sub(1, Ordering::SeqCst);
                    let committed = if job.version == 1 {
                        fixture.commit_due(&next(&submitting), due(now())).await
                    } else {
                        finished += 1;
                        let end = ended(&submitting, Status::Succeeded, now());
                        fixture.commit_due(&end, HOLDS_SLOT).await
                    };
                    assert_eq!(committed, CommitOutcome::Committed);
                }
            }
            (peak, finished)
        });
    }
    let (peaks, finished): (Vec<usize>, Vec<u64>) = claimers.join_all().await.into_iter().unzip();
    assert_eq!(finished.iter().sum::<u64>(), JOBS);
    let peak = peaks.into_iter().max().unwrap();
    assert!(peak <= SLOTS, "{peak}");
}
