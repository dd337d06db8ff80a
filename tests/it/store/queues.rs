//! Due jobs and claims.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use progress_hub::job::{Job, JobId, Status};
use progress_hub::store::{CLAIM_LEASE, Queue, Schedule};
use progress_hub::time::{Time, deterministic_jitter};
use tokio::task::JoinSet;

use super::{MINUTE, SECOND, StoreFixture, ended, job_of, next, now, video};

fn at(seconds: u64) -> Time {
    now() + Duration::from_secs(seconds)
}

fn submit(at: Time) -> Schedule {
    Schedule {
        submit_at: Some(at),
        ..Schedule::default()
    }
}

fn poll(at: Time) -> Schedule {
    Schedule {
        poll_at: Some(at),
        poll_interval: MINUTE,
        ..Schedule::default()
    }
}

/// The interval between a claim of a job scheduled by [`poll`] and its next poll.
fn interval_of(id: &JobId) -> Duration {
    deterministic_jitter(MINUTE, id.as_str())
}

/// The queue of a provider with enough slots for all jobs.
fn queue(provider: &str) -> Queue<'_> {
    Queue::Submit {
        provider,
        max_concurrent: 100,
    }
}

async fn claim(fixture: &StoreFixture, queue: Queue<'_>, now: Time) -> Vec<JobId> {
    let jobs = fixture.store.claim(queue, now, 100).await.unwrap();
    jobs.iter().map(|job| job.id.clone()).collect()
}

async fn next_due(fixture: &StoreFixture, queue: Queue<'_>) -> Option<Time> {
    fixture.store.next_due(queue).await.unwrap()
}

pub(crate) async fn due_jobs_are_claimed_in_order_of_due_time(fixture: StoreFixture) {
    let mut jobs = Vec::new();
    for seconds in [30, 10, 40, 20] {
        jobs.push(fixture.create_due(job_of("ada"), poll(at(seconds))).await);
    }
    let claimed = fixture.store.claim(Queue::Poll, at(30), 2).await.unwrap();
    assert_eq!(claimed, [Arc::clone(&jobs[1]), Arc::clone(&jobs[3])]);
    assert_eq!(
        claim(&fixture, Queue::Poll, at(30)).await,
        [jobs[0].id.clone()]
    );
    assert!(claim(&fixture, Queue::Poll, at(39)).await.is_empty());
}

pub(crate) async fn owners_take_turns_for_submissions(fixture: StoreFixture) {
    let of = |owner: &str| Job {
        owner: owner.to_owned(),
        ..video("kling")
    };
    for seconds in 0..20 {
        fixture.create_due(of("ada"), submit(at(seconds))).await;
    }
    for seconds in [30, 31] {
        fixture.create_due(of("bob"), submit(at(seconds))).await;
    }
    let mut owners = Vec::new();
    for limit in [1, 1, 2, 3] {
        let claimed = fixture.store.claim(queue("kling"), at(40), limit).await;
        owners.extend(claimed.unwrap().iter().map(|job| job.owner.clone()));
    }
    assert_eq!(owners, ["ada", "bob", "ada", "bob", "ada", "ada", "ada"]);
    // The single job of a new owner is claimed next.
    fixture.create_due(of("carol"), submit(at(39))).await;
    let claimed = fixture
        .store
        .claim(queue("kling"), at(40), 1)
        .await
        .unwrap();
    assert_eq!(claimed[0].owner, "carol");
}

pub(crate) async fn queues_are_independent(fixture: StoreFixture) {
    let kling = fixture.create_due(video("kling"), submit(now())).await;
    let runway = fixture.create_due(video("runway"), submit(now())).await;
    let polled = fixture.create_due(video("kling"), poll(now())).await;
    assert_eq!(
        claim(&fixture, queue("kling"), now()).await,
        [kling.id.clone()]
    );
    assert_eq!(
        claim(&fixture, queue("runway"), now()).await,
        [runway.id.clone()]
    );
    assert_eq!(
        claim(&fixture, Queue::Poll, now()).await,
        [polled.id.clone()]
    );
    assert!(claim(&fixture, queue("other"), now()).await.is_empty());
}

pub(crate) async fn submission_claim_is_exclusive_until_its_lease_expires(fixture: StoreFixture) {
    let job = fixture.create_due(video("kling"), submit(now())).await;
    let queue = queue("kling");
    assert_eq!(claim(&fixture, queue, now()).await, [job.id.clone()]);
    let end = now() + CLAIM_LEASE;
    assert!(claim(&fixture, queue, end - SECOND).await.is_empty());
    assert_eq!(claim(&fixture, queue, end).await, [job.id.clone()]);
    assert!(claim(&fixture, queue, end).await.is_empty());
}

pub(crate) async fn polls_repeat_until_the_job_ends(fixture: StoreFixture) {
    let rare = fixture.create_due(job_of("ada"), poll(now())).await;
    let often = Schedule {
        poll_interval: SECOND,
        ..poll(now())
    };
    let often = fixture.create_due(job_of("ada"), often).await;
    assert_eq!(claim(&fixture, Queue::Poll, at(0)).await.len(), 2);
    for seconds in [2, 4] {
        let due = claim(&fixture, Queue::Poll, at(seconds)).await;
        assert_eq!(due, [often.id.clone()]);
        assert!(claim(&fixture, Queue::Poll, at(seconds)).await.is_empty());
    }
    fixture
        .commit(&ended(&often, Status::Succeeded, now()))
        .await;
    let minute = interval_of(&rare.id);
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(0) + minute));
    assert_eq!(
        claim(&fixture, Queue::Poll, at(70)).await,
        [rare.id.clone()]
    );
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(70) + minute));
}

pub(crate) async fn claims_never_postpone_a_poll_past_the_deadline(fixture: StoreFixture) {
    for poll_backoff in [false, true] {
        let job = Job {
            deadline_at: at(100),
            ..job_of("ada")
        };
        let schedule = Schedule {
            poll_backoff,
            ..poll(now())
        };
        let job = fixture.create_due(job, schedule).await;
        let minute = interval_of(&job.id);
        for (claimed_at, next) in [(0, at(0) + minute), (70, at(100)), (99, at(100))] {
            fixture
                .store
                .schedule_poll(&job.id, at(claimed_at), Duration::ZERO)
                .await
                .unwrap();
            let claimed = claim(&fixture, Queue::Poll, at(claimed_at)).await;
            assert_eq!(claimed, [job.id.clone()]);
            assert_eq!(next_due(&fixture, Queue::Poll).await, Some(next));
        }
        let claimed = claim(&fixture, Queue::Poll, at(100)).await;
        assert_eq!(claimed, [job.id.clone()]);
        let beyond = next_due(&fixture, Queue::Poll).await.unwrap();
        assert!(beyond >= at(160), "polled until it finishes");

        let longer = Job {
            deadline_at: at(310),
            ..next(&job)
        };
        fixture.commit_due(&longer, poll(at(250))).await;
        let claimed = claim(&fixture, Queue::Poll, at(250)).await;
        assert_eq!(claimed, [job.id.clone()]);
        assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(310)));
        fixture.commit(&ended(&longer, Status::Failed, now())).await;
    }
}

pub(crate) async fn commit_ends_the_claim_and_sets_the_schedule(fixture: StoreFixture) {
    let both = Schedule {
        submit_at: Some(now()),
        ..poll(now())
    };
    let job = fixture.create_due(video("kling"), both).await;
    let queue = queue("kling");
    assert_eq!(claim(&fixture, queue, now()).await, [job.id.clone()]);
    assert_eq!(claim(&fixture, Queue::Poll, now()).await, [job.id.clone()]);

    let newer = next(&job);
    fixture.commit_due(&newer, poll(at(5))).await;
    assert!(claim(&fixture, queue, at(3600)).await.is_empty());
    assert!(claim(&fixture, Queue::Poll, at(4)).await.is_empty());
    let claimed = fixture.store.claim(Queue::Poll, at(5), 1).await.unwrap();
    assert_eq!(claimed, [Arc::new(newer)]);
}

pub(crate) async fn finished_job_leaves_the_queues(fixture: StoreFixture) {
    let both = Schedule {
        submit_at: Some(now()),
        ..poll(now())
    };
    let job = fixture.create_due(video("kling"), both).await;
    fixture
        .commit_due(&ended(&job, Status::Failed, now()), both)
        .await;
    for queue in [queue("kling"), Queue::Poll] {
        assert!(claim(&fixture, queue, at(3600)).await.is_empty());
        assert_eq!(next_due(&fixture, queue).await, None);
    }
}

pub(crate) async fn claims_never_overlap(fixture: StoreFixture) {
    let mut due = HashSet::new();
    for seconds in 0..200 {
        let job = fixture.create_due(job_of("ada"), poll(at(seconds))).await;
        due.insert(job.id.clone());
    }
    let mut claimers = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&fixture.store);
        claimers.spawn(async move {
            let mut mine: Vec<Arc<Job>> = Vec::new();
            loop {
                let some = store.claim(Queue::Poll, at(3600), 7).await.unwrap();
                // Stops if jobs are claimed twice, so that the test fails instead of looping.
                if some.is_empty() || mine.len() > 200 {
                    return mine;
                }
                mine.extend(some);
            }
        });
    }
    let claimed = claimers.join_all().await.concat();
    assert_eq!(claimed.len(), due.len());
    let claimed: HashSet<JobId> = claimed.iter().map(|job| job.id.clone()).collect();
    assert_eq!(claimed, due);
}

pub(crate) async fn requested_poll_is_claimed_at_the_requested_time(fixture: StoreFixture) {
    let far = fixture.create_due(job_of("ada"), poll(at(3600))).await;
    let unscheduled = fixture.create(job_of("ada")).await;
    fixture
        .store
        .schedule_poll(&far.id, at(10), Duration::ZERO)
        .await
        .unwrap();
    fixture
        .store
        .schedule_poll(&unscheduled.id, at(20), Duration::ZERO)
        .await
        .unwrap();
    assert!(claim(&fixture, Queue::Poll, at(9)).await.is_empty());
    assert_eq!(claim(&fixture, Queue::Poll, at(10)).await, [far.id.clone()]);
    assert_eq!(
        claim(&fixture, Queue::Poll, at(20)).await,
        [unscheduled.id.clone()]
    );
    // A poll request creates no version.
    fixture.expect_published(&far.id, &[1]).await;
}

pub(crate) async fn requested_poll_overrides_an_earlier_claim(fixture: StoreFixture) {
    let job = fixture.create_due(job_of("ada"), poll(now())).await;
    assert_eq!(claim(&fixture, Queue::Poll, now()).await, [job.id.clone()]);
    fixture
        .store
        .schedule_poll(&job.id, at(10), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(10)));
    assert!(claim(&fixture, Queue::Poll, at(9)).await.is_empty());
    assert_eq!(claim(&fixture, Queue::Poll, at(10)).await, [job.id.clone()]);
}

pub(crate) async fn schedule_poll_never_postpones_and_ignores_final_jobs(fixture: StoreFixture) {
    let soon = fixture.create_due(job_of("ada"), poll(at(10))).await;
    let finished = fixture.create(job_of("ada")).await;
    fixture
        .commit(&ended(&finished, Status::Succeeded, now()))
        .await;
    for id in [&soon.id, &finished.id, &JobId::new()] {
        fixture
            .store
            .schedule_poll(id, at(20), Duration::ZERO)
            .await
            .unwrap();
    }
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(10)));
    assert_eq!(
        claim(&fixture, Queue::Poll, at(30)).await,
        [soon.id.clone()]
    );
}

pub(crate) async fn repeated_poll_requests_are_rate_limited_by_cool_down(fixture: StoreFixture) {
    let cool_down = 10 * SECOND;
    let request_poll = async |id, seconds| {
        let requested = fixture
            .store
            .schedule_poll(id, at(seconds), cool_down)
            .await;
        requested.unwrap();
    };
    let job = fixture.create_due(job_of("ada"), poll(at(3600))).await;
    request_poll(&job.id, 5).await;
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(5)));
    assert_eq!(claim(&fixture, Queue::Poll, at(7)).await, [job.id.clone()]);
    for seconds in [7, 8, 9] {
        request_poll(&job.id, seconds).await;
        assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(17)));
    }
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(17)));
    assert_eq!(claim(&fixture, Queue::Poll, at(17)).await, [job.id.clone()]);
    request_poll(&job.id, 40).await;
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(40)));
}

pub(crate) async fn poll_request_survives_a_concurrent_commit(fixture: StoreFixture) {
    let job = fixture.create_due(job_of("ada"), poll(now())).await;
    assert_eq!(claim(&fixture, Queue::Poll, now()).await.len(), 1);
    let requested = fixture
        .store
        .schedule_poll(&job.id, at(1), 10 * SECOND)
        .await;
    requested.unwrap();
    let newer = next(&job);
    fixture.commit_due(&newer, poll(at(3600))).await;
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(10)));
    assert_eq!(claim(&fixture, Queue::Poll, at(10)).await.len(), 1);
    let newer = next(&newer);
    fixture.commit_due(&newer, poll(at(3600))).await;
    let due = next_due(&fixture, Queue::Poll).await;
    assert_eq!(due, Some(at(3600)), "the requested poll was claimed");
    // The commit does not change the time of the last poll, which starts the cool-down.
    let requested = fixture
        .store
        .schedule_poll(&job.id, at(12), 10 * SECOND)
        .await;
    requested.unwrap();
    assert_eq!(next_due(&fixture, Queue::Poll).await, Some(at(20)));
    fixture
        .commit_due(&ended(&newer, Status::Failed, now()), poll(at(1)))
        .await;
    assert_eq!(next_due(&fixture, Queue::Poll).await, None);
}

pub(crate) async fn poll_backoff_doubles_the_interval(fixture: StoreFixture) {
    let with_backoff = Schedule {
        poll_backoff: true,
        ..poll(at(10))
    };
    let job = fixture.create_due(job_of("ada"), with_backoff).await;
    assert_eq!(claim(&fixture, Queue::Poll, at(10)).await.len(), 1);
    let due = at(10) + interval_of(&job.id);
    assert_eq!(
        next_due(&fixture, Queue::Poll).await,
        Some(due),
        "at least the interval"
    );
    let mut last = due;
    for _ in 0..3 {
        assert_eq!(claim(&fixture, Queue::Poll, last).await.len(), 1);
        let due = next_due(&fixture, Queue::Poll).await.unwrap();
        let silence = last.saturating_duration_since(job.updated_at);
        assert_eq!(
            due,
            last + deterministic_jitter(silence * 2, job.id.as_str())
        );
        last = due;
    }
    let newer = Job {
        updated_at: last,
        ..next(&job)
    };
    fixture
        .commit_due(
            &newer,
            Schedule {
                poll_at: Some(last),
                ..with_backoff
            },
        )
        .await;
    claim(&fixture, Queue::Poll, last).await;
    let due = next_due(&fixture, Queue::Poll).await;
    assert_eq!(
        due,
        Some(last + interval_of(&job.id)),
        "an update resets the backoff"
    );
}

pub(crate) async fn rescheduled_polls_are_jittered(fixture: StoreFixture) {
    let mut dues = HashSet::new();
    for _ in 0..40 {
        let job = fixture.create_due(job_of("ada"), poll(now())).await;
        assert_eq!(claim(&fixture, Queue::Poll, now()).await, [job.id.clone()]);
        let due = next_due(&fixture, Queue::Poll).await.unwrap();
        assert!((at(60)..=at(66)).contains(&due), "{due}");
        dues.insert(due);
        fixture.commit(&ended(&job, Status::Failed, now())).await;
    }
    assert!(dues.len() > 20, "{} distinct times", dues.len());
}

pub(crate) async fn next_due_includes_leases(fixture: StoreFixture) {
    let queue = queue("kling");
    assert_eq!(next_due(&fixture, queue).await, None);
    fixture.create_due(video("kling"), submit(at(10))).await;
    fixture.create_due(video("kling"), submit(at(50))).await;
    fixture.create_due(video("runway"), submit(at(5))).await;
    assert_eq!(next_due(&fixture, queue).await, Some(at(10)));

    let leased = fixture.store.claim(queue, at(10), 1).await.unwrap();
    let end = at(10) + CLAIM_LEASE;
    assert_eq!(next_due(&fixture, queue).await, Some(end));
    fixture.store.claim(queue, end, 1).await.unwrap();
    assert_eq!(next_due(&fixture, queue).await, Some(at(50)));
    fixture.commit_due(&next(&leased[0]), submit(at(12))).await;
    assert_eq!(next_due(&fixture, queue).await, Some(at(12)));
    assert_eq!(next_due(&fixture, Queue::Poll).await, None);
}
