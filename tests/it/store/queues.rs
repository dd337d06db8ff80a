//! What is due, and who has claimed it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use progress_hub::job::{Job, JobId, Status};
use progress_hub::store::{CLAIM_LEASE, Queue, Schedule};
use progress_hub::time::{Time, deterministic_jitter};
use tokio::task::JoinSet;

use super::{Engine, MINUTE, SECOND, ended, job_of, next, now, video};

fn at(seconds: u64) -> Time {
    now() + Duration::from_secs(seconds)
}

fn submit(at: Time) -> Schedule {
    Schedule {
        submit_at: Some(at),
        ..Schedule::default()
    }
}

fn watch(at: Time) -> Schedule {
    Schedule {
        poll_at: Some(at),
        poll_interval: MINUTE,
        ..Schedule::default()
    }
}

/// How long a claim puts this job of [`watch`] off.
fn put_off(id: &JobId) -> Duration {
    deterministic_jitter(MINUTE, id.as_str())
}

/// The queue of a provider with places for all.
fn queue(provider: &str) -> Queue<'_> {
    Queue::Submit {
        provider,
        max_concurrent: 100,
    }
}

async fn claim(engine: &Engine, queue: Queue<'_>, now: Time) -> Vec<JobId> {
    let jobs = engine.store.claim(queue, now, 100).await.unwrap();
    jobs.iter().map(|job| job.id.clone()).collect()
}

async fn next_due(engine: &Engine, queue: Queue<'_>) -> Option<Time> {
    engine.store.next_due(queue).await.unwrap()
}

pub(crate) async fn what_is_due_is_claimed_earliest_first(engine: Engine) {
    let mut jobs = Vec::new();
    for seconds in [30, 10, 40, 20] {
        jobs.push(engine.create_due(job_of("ada"), watch(at(seconds))).await);
    }
    let claimed = engine.store.claim(Queue::Poll, at(30), 2).await.unwrap();
    assert_eq!(claimed, [Arc::clone(&jobs[1]), Arc::clone(&jobs[3])]);
    assert_eq!(
        claim(&engine, Queue::Poll, at(30)).await,
        [jobs[0].id.clone()]
    );
    assert!(claim(&engine, Queue::Poll, at(39)).await.is_empty());
}

pub(crate) async fn a_queue_holds_its_own_jobs_only(engine: Engine) {
    let kling = engine.create_due(video("kling"), submit(now())).await;
    let runway = engine.create_due(video("runway"), submit(now())).await;
    let watched = engine.create_due(video("kling"), watch(now())).await;
    assert_eq!(
        claim(&engine, queue("kling"), now()).await,
        [kling.id.clone()]
    );
    assert_eq!(
        claim(&engine, queue("runway"), now()).await,
        [runway.id.clone()]
    );
    assert_eq!(
        claim(&engine, Queue::Poll, now()).await,
        [watched.id.clone()]
    );
    assert!(claim(&engine, queue("other"), now()).await.is_empty());
}

pub(crate) async fn a_lease_keeps_others_away_until_it_ends(engine: Engine) {
    let job = engine.create_due(video("kling"), submit(now())).await;
    let queue = queue("kling");
    assert_eq!(claim(&engine, queue, now()).await, [job.id.clone()]);
    let end = now() + CLAIM_LEASE;
    assert!(claim(&engine, queue, end - SECOND).await.is_empty());
    assert_eq!(claim(&engine, queue, end).await, [job.id.clone()]);
    assert!(claim(&engine, queue, end).await.is_empty());
}

pub(crate) async fn polls_repeat_until_the_job_ends(engine: Engine) {
    let rare = engine.create_due(job_of("ada"), watch(now())).await;
    let often = Schedule {
        poll_interval: SECOND,
        ..watch(now())
    };
    let often = engine.create_due(job_of("ada"), often).await;
    assert_eq!(claim(&engine, Queue::Poll, at(0)).await.len(), 2);
    for seconds in [2, 4] {
        let due = claim(&engine, Queue::Poll, at(seconds)).await;
        assert_eq!(due, [often.id.clone()]);
        assert!(claim(&engine, Queue::Poll, at(seconds)).await.is_empty());
    }
    engine
        .commit(&ended(&often, Status::Succeeded, now()))
        .await;
    let minute = put_off(&rare.id);
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(0) + minute));
    assert_eq!(claim(&engine, Queue::Poll, at(70)).await, [rare.id.clone()]);
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(70) + minute));
}

pub(crate) async fn claims_never_postpone_a_poll_past_the_deadline(engine: Engine) {
    for patient in [false, true] {
        let job = Job {
            deadline_at: at(100),
            ..job_of("ada")
        };
        let agenda = Schedule {
            poll_backoff: patient,
            ..watch(now())
        };
        let job = engine.create_due(job, agenda).await;
        let minute = put_off(&job.id);
        for (claimed_at, next) in [(0, at(0) + minute), (70, at(100)), (99, at(100))] {
            engine
                .store
                .schedule_poll(&job.id, at(claimed_at), Duration::ZERO)
                .await
                .unwrap();
            let claimed = claim(&engine, Queue::Poll, at(claimed_at)).await;
            assert_eq!(claimed, [job.id.clone()]);
            assert_eq!(next_due(&engine, Queue::Poll).await, Some(next));
        }
        let claimed = claim(&engine, Queue::Poll, at(100)).await;
        assert_eq!(claimed, [job.id.clone()]);
        let beyond = next_due(&engine, Queue::Poll).await.unwrap();
        assert!(beyond >= at(160), "it is looked at until it ends");

        let longer = Job {
            deadline_at: at(310),
            ..next(&job)
        };
        engine.commit_due(&longer, watch(at(250))).await;
        let claimed = claim(&engine, Queue::Poll, at(250)).await;
        assert_eq!(claimed, [job.id.clone()]);
        assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(310)));
        engine.commit(&ended(&longer, Status::Failed, now())).await;
    }
}

pub(crate) async fn a_commit_ends_the_lease_and_sets_the_agenda(engine: Engine) {
    let both = Schedule {
        submit_at: Some(now()),
        ..watch(now())
    };
    let job = engine.create_due(video("kling"), both).await;
    let queue = queue("kling");
    assert_eq!(claim(&engine, queue, now()).await, [job.id.clone()]);
    assert_eq!(claim(&engine, Queue::Poll, now()).await, [job.id.clone()]);

    let newer = next(&job);
    engine.commit_due(&newer, watch(at(5))).await;
    assert!(claim(&engine, queue, at(3600)).await.is_empty());
    assert!(claim(&engine, Queue::Poll, at(4)).await.is_empty());
    let claimed = engine.store.claim(Queue::Poll, at(5), 1).await.unwrap();
    assert_eq!(claimed, [Arc::new(newer)]);
}

pub(crate) async fn an_ended_job_leaves_the_queues(engine: Engine) {
    let both = Schedule {
        submit_at: Some(now()),
        ..watch(now())
    };
    let job = engine.create_due(video("kling"), both).await;
    engine
        .commit_due(&ended(&job, Status::Failed, now()), both)
        .await;
    for queue in [queue("kling"), Queue::Poll] {
        assert!(claim(&engine, queue, at(3600)).await.is_empty());
        assert_eq!(next_due(&engine, queue).await, None);
    }
}

pub(crate) async fn claims_never_overlap(engine: Engine) {
    let mut due = HashSet::new();
    for seconds in 0..200 {
        let job = engine.create_due(job_of("ada"), watch(at(seconds))).await;
        due.insert(job.id.clone());
    }
    let mut claimers = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&engine.store);
        claimers.spawn(async move {
            let mut mine: Vec<Arc<Job>> = Vec::new();
            loop {
                let some = store.claim(Queue::Poll, at(3600), 7).await.unwrap();
                // More than there are would be the same again.
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

pub(crate) async fn requested_poll_is_claimed_at_the_requested_time(engine: Engine) {
    let far = engine.create_due(job_of("ada"), watch(at(3600))).await;
    let unwatched = engine.create(job_of("ada")).await;
    engine
        .store
        .schedule_poll(&far.id, at(10), Duration::ZERO)
        .await
        .unwrap();
    engine
        .store
        .schedule_poll(&unwatched.id, at(20), Duration::ZERO)
        .await
        .unwrap();
    assert!(claim(&engine, Queue::Poll, at(9)).await.is_empty());
    assert_eq!(claim(&engine, Queue::Poll, at(10)).await, [far.id.clone()]);
    assert_eq!(
        claim(&engine, Queue::Poll, at(20)).await,
        [unwatched.id.clone()]
    );
    // Hastening is no version.
    engine.expect_heard(&far.id, &[1]).await;
}

pub(crate) async fn a_hastened_job_is_claimed_despite_an_earlier_claim(engine: Engine) {
    let job = engine.create_due(job_of("ada"), watch(now())).await;
    assert_eq!(claim(&engine, Queue::Poll, now()).await, [job.id.clone()]);
    engine
        .store
        .schedule_poll(&job.id, at(10), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(10)));
    assert!(claim(&engine, Queue::Poll, at(9)).await.is_empty());
    assert_eq!(claim(&engine, Queue::Poll, at(10)).await, [job.id.clone()]);
}

pub(crate) async fn schedule_poll_never_postpones_and_ignores_final_jobs(engine: Engine) {
    let soon = engine.create_due(job_of("ada"), watch(at(10))).await;
    let over = engine.create(job_of("ada")).await;
    engine.commit(&ended(&over, Status::Succeeded, now())).await;
    for id in [&soon.id, &over.id, &JobId::new()] {
        engine
            .store
            .schedule_poll(id, at(20), Duration::ZERO)
            .await
            .unwrap();
    }
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(10)));
    assert_eq!(claim(&engine, Queue::Poll, at(30)).await, [soon.id.clone()]);
}

pub(crate) async fn repeated_poll_requests_are_rate_limited_by_cool_down(engine: Engine) {
    let cool_down = 10 * SECOND;
    let nudge = async |id, seconds| {
        let nudged = engine.store.schedule_poll(id, at(seconds), cool_down).await;
        nudged.unwrap();
    };
    let job = engine.create_due(job_of("ada"), watch(at(3600))).await;
    nudge(&job.id, 5).await;
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(5)));
    assert_eq!(claim(&engine, Queue::Poll, at(7)).await, [job.id.clone()]);
    for seconds in [7, 8, 9] {
        nudge(&job.id, seconds).await;
        assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(17)));
    }
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(17)));
    assert_eq!(claim(&engine, Queue::Poll, at(17)).await, [job.id.clone()]);
    nudge(&job.id, 40).await;
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(40)));
}

pub(crate) async fn poll_request_survives_a_concurrent_commit(engine: Engine) {
    let job = engine.create_due(job_of("ada"), watch(now())).await;
    assert_eq!(claim(&engine, Queue::Poll, now()).await.len(), 1);
    let nudged = engine
        .store
        .schedule_poll(&job.id, at(1), 10 * SECOND)
        .await;
    nudged.unwrap();
    let found = next(&job);
    engine.commit_due(&found, watch(at(3600))).await;
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(10)));
    assert_eq!(claim(&engine, Queue::Poll, at(10)).await.len(), 1);
    let found = next(&found);
    engine.commit_due(&found, watch(at(3600))).await;
    let due = next_due(&engine, Queue::Poll).await;
    assert_eq!(due, Some(at(3600)), "the nudge was followed");
    // Nor does what the look found change when it was.
    let nudged = engine
        .store
        .schedule_poll(&job.id, at(12), 10 * SECOND)
        .await;
    nudged.unwrap();
    assert_eq!(next_due(&engine, Queue::Poll).await, Some(at(20)));
    engine
        .commit_due(&ended(&found, Status::Failed, now()), watch(at(1)))
        .await;
    assert_eq!(next_due(&engine, Queue::Poll).await, None);
}

pub(crate) async fn poll_backoff_doubles_the_interval(engine: Engine) {
    let patient = Schedule {
        poll_backoff: true,
        ..watch(at(10))
    };
    let job = engine.create_due(job_of("ada"), patient).await;
    assert_eq!(claim(&engine, Queue::Poll, at(10)).await.len(), 1);
    let due = at(10) + put_off(&job.id);
    assert_eq!(
        next_due(&engine, Queue::Poll).await,
        Some(due),
        "no sooner than an impatient one"
    );
    let mut last = due;
    for _ in 0..3 {
        assert_eq!(claim(&engine, Queue::Poll, last).await.len(), 1);
        let due = next_due(&engine, Queue::Poll).await.unwrap();
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
    engine
        .commit_due(
            &newer,
            Schedule {
                poll_at: Some(last),
                ..patient
            },
        )
        .await;
    claim(&engine, Queue::Poll, last).await;
    let due = next_due(&engine, Queue::Poll).await;
    assert_eq!(due, Some(last + put_off(&job.id)), "news ends a silence");
}

pub(crate) async fn rescheduled_polls_are_jittered(engine: Engine) {
    let mut dues = HashSet::new();
    for _ in 0..40 {
        let job = engine.create_due(job_of("ada"), watch(now())).await;
        assert_eq!(claim(&engine, Queue::Poll, now()).await, [job.id.clone()]);
        let due = next_due(&engine, Queue::Poll).await.unwrap();
        assert!((at(60)..=at(66)).contains(&due), "{due}");
        dues.insert(due);
        engine.commit(&ended(&job, Status::Failed, now())).await;
    }
    assert!(dues.len() > 20, "{} moments", dues.len());
}

pub(crate) async fn the_next_due_time_counts_leases_in(engine: Engine) {
    let queue = queue("kling");
    assert_eq!(next_due(&engine, queue).await, None);
    engine.create_due(video("kling"), submit(at(10))).await;
    engine.create_due(video("kling"), submit(at(50))).await;
    engine.create_due(video("runway"), submit(at(5))).await;
    assert_eq!(next_due(&engine, queue).await, Some(at(10)));

    let leased = engine.store.claim(queue, at(10), 1).await.unwrap();
    let end = at(10) + CLAIM_LEASE;
    assert_eq!(next_due(&engine, queue).await, Some(end));
    engine.store.claim(queue, end, 1).await.unwrap();
    assert_eq!(next_due(&engine, queue).await, Some(at(50)));
    engine.commit_due(&next(&leased[0]), submit(at(12))).await;
    assert_eq!(next_due(&engine, queue).await, Some(at(12)));
    assert_eq!(next_due(&engine, Queue::Poll).await, None);
}
