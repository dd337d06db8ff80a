//! Deliveries and the state of destinations.

use std::sync::Arc;
use std::time::Duration;

use progress_hub::job::{Job, Status};
use progress_hub::outbox::{
    Attempt, Delivery, DeliveryId, DeliveryState, DestinationState, Disabled, DisabledReason,
    NewDelivery, Progress,
};
use progress_hub::store::{
    CommitJob, CommitOutcome, CreateJob, CreateOutcome, DeliveryCursor, DeliveryQuery,
    DeliveryStateFilter, Schedule, Store, StoredDestination, WAITING_RETENTION,
};
use progress_hub::time::Time;
use tokio::task::JoinSet;

use super::budgets::entry;
use super::{MINUTE, RETENTION, SECOND, StoreFixture, creation, ended, job_of, next, now, task};

/// Returns a delivery of an event.
pub(crate) fn to(destination: &str, event: &str) -> NewDelivery {
    NewDelivery {
        destination: destination.to_owned(),
        event: event.to_owned(),
        target: None,
        is_independent: false,
    }
}

pub(crate) fn output(n: usize) -> NewDelivery {
    NewDelivery {
        is_independent: true,
        ..to("archive", &format!("output.{n}"))
    }
}

pub(crate) fn creation_with(job: &Job, deliveries: &[NewDelivery]) -> CreateJob {
    CreateJob {
        deliveries: deliveries.to_vec(),
        ..creation(job.clone(), Schedule::default(), None)
    }
}

pub(crate) fn commit_with(next: &Job, deliveries: &[NewDelivery]) -> CommitJob {
    CommitJob {
        deliveries: deliveries.to_vec(),
        ..super::commit_job(next, Schedule::default(), Vec::new())
    }
}

async fn create(fixture: &StoreFixture, job: &Job, deliveries: &[NewDelivery]) {
    let created = fixture.store.create(creation_with(job, deliveries)).await;
    assert_eq!(created.unwrap(), CreateOutcome::Created);
}

async fn commit(fixture: &StoreFixture, next: &Job, deliveries: &[NewDelivery]) {
    let committed = fixture.store.commit(commit_with(next, deliveries)).await;
    assert_eq!(committed.unwrap(), CommitOutcome::Committed);
}

pub(crate) async fn due(store: &dyn Store, destination: &str, at: Time) -> Vec<Arc<Delivery>> {
    store.due_deliveries(destination, at, 1000).await.unwrap()
}

/// Returns the only delivery of a destination that is due.
async fn due_one(fixture: &StoreFixture, destination: &str, at: Time) -> Arc<Delivery> {
    let due = due(&*fixture.store, destination, at).await;
    assert_eq!(due.len(), 1, "{due:?}");
    Arc::clone(&due[0])
}

/// Returns the events and versions of all deliveries of a job, newest first.
async fn events_of(fixture: &StoreFixture, job: &Job) -> Vec<String> {
    let query = DeliveryQuery {
        job: Some(job.id.clone()),
        limit: 1000,
        ..DeliveryQuery::default()
    };
    let deliveries = fixture.store.deliveries(query).await.unwrap();
    let name =
        |it: &Arc<Delivery>| format!("{} {} {}", it.id.destination, it.id.event, it.id.version);
    deliveries.iter().map(name).collect()
}

pub(crate) fn delivered(delivery: &Delivery, at: Time) -> Progress {
    let attempt = Attempt {
        at,
        duration_ms: 7,
        status: Some(200),
        error: None,
    };
    let state = DeliveryState::Delivered { at };
    delivery.progress.next(state, Some(attempt))
}

pub(crate) fn failed(delivery: &Delivery, at: Time) -> Progress {
    let attempt = Attempt {
        at,
        duration_ms: 7,
        status: None,
        error: Some("connection refused: \"é\"\n".to_owned()),
    };
    let state = DeliveryState::Failed { at };
    delivery.progress.next(state, Some(attempt))
}

fn waiting(delivery: &Delivery, due_at: Time) -> Progress {
    let is_manual = false;
    let state = DeliveryState::Waiting { due_at, is_manual };
    delivery.progress.next(state, None)
}

async fn record(fixture: &StoreFixture, id: &DeliveryId, progress: Progress) -> bool {
    fixture.store.record_progress(id, progress).await.unwrap()
}

async fn waiting_counts(fixture: &StoreFixture) -> Vec<(String, u64)> {
    let destinations = fixture.store.destinations().await.unwrap();
    let destinations = destinations.into_iter();
    destinations.map(|it| (it.name, it.waiting)).collect()
}

pub(crate) async fn deliveries_are_added_with_the_version(fixture: StoreFixture) {
    let job = task("kling", "1");
    let with_target = NewDelivery {
        target: Some("https://app.example.com/a b?c=\"d\"".to_owned()),
        ..to("host:app.example.com", "job.created")
    };
    create(
        &fixture,
        &job,
        &[to("app", "job.created"), with_target.clone()],
    )
    .await;

    let document = serde_json::to_string(&job).unwrap();
    for new in [to("app", "job.created"), with_target] {
        let early = due(&*fixture.store, &new.destination, now() - SECOND).await;
        assert!(early.is_empty(), "{early:?}");
        let delivery = due_one(&fixture, &new.destination, now()).await;
        assert_eq!(*delivery, Delivery::new(&new, &job, &document));
        let next_at = fixture.store.next_delivery_at(&new.destination).await;
        assert_eq!(next_at.unwrap(), Some(now()));
        let stored = fixture.store.delivery(&delivery.id).await.unwrap();
        assert_eq!(stored, Some(delivery));
    }
    let expected = [
        ("app".to_owned(), 1),
        ("host:app.example.com".to_owned(), 1),
    ];
    assert_eq!(waiting_counts(&fixture).await, expected);
    assert!(due(&*fixture.store, "other", now()).await.is_empty());
    assert_eq!(fixture.store.next_delivery_at("other").await.unwrap(), None);
}

pub(crate) async fn unsuccessful_writes_add_no_deliveries(fixture: StoreFixture) {
    let job = job_of("ada");
    create(&fixture, &job, &[]).await;
    commit(&fixture, &next(&job), &[]).await;
    let deliveries = [to("app", "job.succeeded")];
    let stale = commit_with(&ended(&job, Status::Succeeded, now()), &deliveries);
    let stale = fixture.store.commit(stale).await.unwrap();
    assert_eq!(stale, CommitOutcome::Conflict);
    let missing = commit_with(&next(&job_of("ada")), &deliveries);
    let missing = fixture.store.commit(missing).await.unwrap();
    assert_eq!(missing, CommitOutcome::NotFound);
    let replayed = fixture.store.create(creation_with(&job, &deliveries)).await;
    let is_replayed = matches!(replayed, Ok(CreateOutcome::Replayed(_)));
    assert!(is_replayed, "{replayed:?}");
    let mut expensive = creation_with(&job_of("ada"), &deliveries);
    expensive.budget_entries = vec![entry("ada", 100)];
    let expensive = fixture.store.create(expensive).await;
    let is_rejected = matches!(expensive, Ok(CreateOutcome::LimitExceeded { .. }));
    assert!(is_rejected, "{expensive:?}");

    assert!(due(&*fixture.store, "app", now() + MINUTE).await.is_empty());
    assert!(fixture.store.destinations().await.unwrap().is_empty());
}

pub(crate) async fn repeated_create_adds_deliveries_once(fixture: StoreFixture) {
    let job = job_of("ada");
    create(&fixture, &job, &[to("app", "job.created")]).await;
    let delivery = due_one(&fixture, "app", now()).await;
    assert!(record(&fixture, &delivery.id, delivered(&delivery, now())).await);
    let again = creation_with(&job, &[to("app", "job.created")]);
    let again = fixture.store.create(again).await.unwrap();
    assert_eq!(again, CreateOutcome::Replayed(Arc::new(job)));
    assert!(due(&*fixture.store, "app", now() + MINUTE).await.is_empty());
}

pub(crate) async fn newer_delivery_supersedes_those_that_wait(fixture: StoreFixture) {
    let (job, other) = (job_of("ada"), job_of("ada"));
    create(
        &fixture,
        &job,
        &[to("app", "job.created"), to("mail", "job.created")],
    )
    .await;
    create(&fixture, &other, &[to("app", "job.created")]).await;
    let second = next(&job);
    commit(&fixture, &second, &[to("app", "job.updated")]).await;
    assert_eq!(
        events_of(&fixture, &job).await,
        ["app job.updated 2", "mail job.created 1"]
    );
    let last = ended(&second, Status::Succeeded, now() + SECOND);
    commit(
        &fixture,
        &last,
        &[to("app", "job.succeeded"), to("mail", "job.succeeded")],
    )
    .await;

    assert_eq!(
        events_of(&fixture, &job).await,
        ["mail job.succeeded 3", "app job.succeeded 3"]
    );
    assert_eq!(events_of(&fixture, &other).await, ["app job.created 1"]);
    let expected = [("app".to_owned(), 2), ("mail".to_owned(), 1)];
    assert_eq!(waiting_counts(&fixture).await, expected);
    let delivery = due_one(&fixture, "mail", now() + SECOND).await;
    assert_eq!(delivery.document, serde_json::to_string(&last).unwrap());
}

pub(crate) async fn ended_deliveries_are_kept_when_others_follow(fixture: StoreFixture) {
    let job = job_of("ada");
    create(&fixture, &job, &[to("app", "job.created")]).await;
    let created = due_one(&fixture, "app", now()).await;
    assert!(record(&fixture, &created.id, delivered(&created, now())).await);
    let mut version = job.clone();
    for n in 2..=3 {
        version = Job {
            updated_at: now() + n * SECOND,
            ..next(&version)
        };
        commit(&fixture, &version, &[to("app", "job.updated")]).await;
        let updated = due_one(&fixture, "app", version.updated_at).await;
        assert_eq!(updated.id.version, version.version);
        let progress = failed(&updated, version.updated_at);
        assert!(record(&fixture, &updated.id, progress).await);
    }
    // The second version is replaced by the third, because both have the same event.
    assert_eq!(
        events_of(&fixture, &job).await,
        ["app job.updated 3", "app job.created 1"]
    );
    let stored = fixture.store.delivery(&created.id).await.unwrap().unwrap();
    assert_eq!(stored.progress, delivered(&created, now()));
    assert_eq!(stored.document, serde_json::to_string(&job).unwrap());
}

pub(crate) async fn independent_deliveries_supersede_no_others(fixture: StoreFixture) {
    let job = job_of("ada");
    create(&fixture, &job, &[to("archive", "job.created"), output(0)]).await;
    let last = ended(&job, Status::Succeeded, now());
    commit(&fixture, &last, &[output(0), output(1), output(2)]).await;
    assert_eq!(
        events_of(&fixture, &job).await,
        [
            "archive output.2 2",
            "archive output.1 2",
            "archive output.0 2",
            "archive job.created 1"
        ]
    );
    assert_eq!(due(&*fixture.store, "archive", now()).await.len(), 4);
}

pub(crate) async fn superseded_delivery_records_nothing(fixture: StoreFixture) {
    let job = job_of("ada");
    create(&fixture, &job, &[to("app", "job.updated")]).await;
    let first = due_one(&fixture, "app", now()).await;
    let second = next(&job);
    commit(&fixture, &second, &[to("app", "job.updated")]).await;
    assert!(!record(&fixture, &first.id, delivered(&first, now())).await);
    let updated = due_one(&fixture, "app", now()).await;
    assert_eq!(
        (updated.id.version, &updated.progress),
        (2, &Progress::new(now()))
    );
    assert_eq!(fixture.store.delivery(&first.id).await.unwrap(), None);

    let last = ended(&second, Status::Failed, now());
    commit(&fixture, &last, &[to("app", "job.failed")]).await;
    assert!(!record(&fixture, &updated.id, delivered(&updated, now())).await);
    assert_eq!(due_one(&fixture, "app", now()).await.id.event, "job.failed");
}

pub(crate) async fn updates_of_an_unchanged_schedule_add_deliveries(fixture: StoreFixture) {
    let schedule = Schedule {
        poll_at: Some(now() + MINUTE),
        poll_interval: MINUTE,
        ..Schedule::default()
    };
    let mut job = job_of("ada");
    let create = creation(job.clone(), schedule, None);
    fixture.store.create(create).await.unwrap();
    for version in 2..=4 {
        job = next(&job);
        let commit = CommitJob {
            expected_revision: fixture.store.recent(&job.id).map(|recent| recent.revision),
            schedule,
            ..commit_with(&job, &[to("app", "job.updated")])
        };
        let committed = fixture.store.commit(commit).await.unwrap();
        assert_eq!(committed, CommitOutcome::Committed);
        assert_eq!(due_one(&fixture, "app", now()).await.id.version, version);
    }
}

pub(crate) async fn progress_is_recorded_once_per_revision(fixture: StoreFixture) {
    let job = job_of("ada");
    create(&fixture, &job, &[to("app", "job.created")]).await;
    let delivery = due_one(&fixture, "app", now()).await;
    let mut nodes = JoinSet::new();
    for n in 0..8 {
        let (fixture, delivery) = (fixture.clone(), Arc::clone(&delivery));
        let due_at = now() + Duration::from_secs(n);
        nodes.spawn(async move {
            let progress = waiting(&delivery, due_at);
            let recorded = record(&fixture, &delivery.id, progress.clone()).await;
            recorded.then_some(progress)
        });
    }
    let recorded = nodes.join_all().await;
    let recorded: Vec<Progress> = recorded.into_iter().flatten().collect();
    assert_eq!(recorded.len(), 1, "{recorded:?}");
    let stored = fixture.store.delivery(&delivery.id).await.unwrap().unwrap();
    assert_eq!(stored.progress, recorded[0]);

    let skipped = Progress {
        revision: 3,
        ..delivered(&stored, now())
    };
    assert!(!record(&fixture, &delivery.id, skipped).await);
    assert!(!record(&fixture, &delivery.id, Progress::new(now())).await);
    let other = DeliveryId {
        version: 2,
        ..delivery.id.clone()
    };
    assert!(!record(&fixture, &other, delivered(&stored, now())).await);
    assert!(record(&fixture, &delivery.id, delivered(&stored, now())).await);
}

pub(crate) async fn deliveries_are_due_in_order(fixture: StoreFixture) {
    let mut ids = Vec::new();
    for seconds in [30, 10, 40, 20] {
        let job = job_of("ada");
        create(&fixture, &job, &[to("app", "job.created")]).await;
        let due_at = now() + Duration::from_secs(seconds);
        let delivery = due_one(&fixture, "app", now()).await;
        assert!(record(&fixture, &delivery.id, waiting(&delivery, due_at)).await);
        ids.push(delivery.id.clone());
    }
    let next_at = fixture.store.next_delivery_at("app").await.unwrap();
    assert_eq!(next_at, Some(now() + 10 * SECOND));
    let due = async |seconds, limit| -> Vec<DeliveryId> {
        let at = now() + Duration::from_secs(seconds);
        let due = fixture.store.due_deliveries("app", at, limit).await;
        due.unwrap().iter().map(|it| it.id.clone()).collect()
    };
    let order = [1, 3, 0, 2].map(|n: usize| ids[n].clone());
    assert_eq!(due(30, 10).await, order[..3]);
    assert_eq!(due(30, 10).await, order[..3], "a read claims nothing");
    assert_eq!(due(40, 2).await, order[..2]);
    assert_eq!(due(9, 10).await, []);
}

pub(crate) async fn ended_delivery_leaves_the_queue_until_it_waits_again(fixture: StoreFixture) {
    let job = job_of("ada");
    create(&fixture, &job, &[to("app", "job.created")]).await;
    let delivery = due_one(&fixture, "app", now()).await;
    assert!(record(&fixture, &delivery.id, failed(&delivery, now())).await);
    assert!(due(&*fixture.store, "app", now() + MINUTE).await.is_empty());
    assert_eq!(fixture.store.next_delivery_at("app").await.unwrap(), None);
    assert!(fixture.store.destinations().await.unwrap().is_empty());

    let stored = fixture.store.delivery(&delivery.id).await.unwrap().unwrap();
    let state = DeliveryState::Waiting {
        due_at: now() + MINUTE,
        is_manual: true,
    };
    let progress = stored.progress.next(state, None);
    assert!(record(&fixture, &delivery.id, progress.clone()).await);
    let again = due_one(&fixture, "app", now() + MINUTE).await;
    assert_eq!(again.progress, progress);
    assert_eq!(again.progress.attempts.len(), 1, "the log is kept");
    assert_eq!(waiting_counts(&fixture).await, [("app".to_owned(), 1)]);
}

/// Every combination of filters, in pages of every size.
pub(crate) async fn lists_are_filtered_and_paged(fixture: StoreFixture) {
    let mut all = Vec::new();
    for n in 0..12_u32 {
        let job = Job {
            // Three jobs have the same time.
            updated_at: now() + (n / 3) * SECOND,
            ..job_of(["ada", "bob"][n as usize % 2])
        };
        create(
            &fixture,
            &job,
            &[to("app", "job.created"), to("mail", "job.created")],
        )
        .await;
        let at = now() + MINUTE;
        for destination in ["app", "mail"] {
            let due = due(&*fixture.store, destination, at).await;
            let delivery = due.iter().find(|it| it.id.job == job.id).unwrap();
            let progress = match n % 3 {
                0 => None,
                1 => Some(delivered(delivery, at)),
                _ => Some(failed(delivery, at)),
            };
            let mut delivery = Delivery::clone(delivery);
            if let Some(progress) = progress {
                assert!(record(&fixture, &delivery.id, progress.clone()).await);
                delivery.progress = progress;
            }
            all.push(Arc::new(delivery));
        }
    }
    let key = |it: &Arc<Delivery>| {
        let id = &it.id;
        (
            it.created_at,
            id.job.clone(),
            id.event.clone(),
            id.destination.clone(),
        )
    };
    all.sort_by_key(key);
    all.reverse();
    let states = [
        None,
        Some(DeliveryStateFilter::Waiting),
        Some(DeliveryStateFilter::Delivered),
        Some(DeliveryStateFilter::Failed),
    ];
    for state in states {
        for (job, owner, destination) in [
            (None, None, None),
            (None, None, Some("app")),
            (None, Some("ada"), None),
            (None, Some("bob"), Some("mail")),
            (None, Some("carol"), None),
            (Some(&all[3].id.job), None, None),
            (Some(&all[3].id.job), Some("ada"), Some("mail")),
        ] {
            let expected = all.iter().filter(|it| {
                job.is_none_or(|job| it.id.job == *job)
                    && owner.is_none_or(|owner| it.owner == owner)
                    && destination.is_none_or(|destination| it.id.destination == destination)
                    && state
                        .is_none_or(|state| state == DeliveryStateFilter::of(&it.progress.state))
            });
            let expected: Vec<Arc<Delivery>> = expected.cloned().collect();
            for limit in [1, 5, 100] {
                let mut query = DeliveryQuery {
                    job: job.cloned(),
                    owner: owner.map(str::to_owned),
                    destination: destination.map(str::to_owned),
                    state,
                    after: None,
                    limit,
                };
                let mut listed = Vec::new();
                loop {
                    let page = fixture.store.deliveries(query.clone()).await.unwrap();
                    assert!(page.len() <= limit);
                    let Some(last) = page.last() else { break };
                    query.after = Some(DeliveryCursor {
                        created_at: last.created_at,
                        id: last.id.clone(),
                    });
                    listed.extend(page);
                }
                assert_eq!(listed, expected, "{query:?}");
            }
        }
    }
}

pub(crate) async fn long_lists_are_complete(fixture: StoreFixture) {
    let mut expected = Vec::new();
    for _ in 0..600 {
        let job = job_of("ada");
        create(
            &fixture,
            &job,
            &[to("app", "job.created"), to("mail", "job.created")],
        )
        .await;
        expected.push(job.id);
    }
    expected.sort();
    expected.reverse();
    for destination in ["app", "mail"] {
        let query = DeliveryQuery {
            destination: Some(destination.to_owned()),
            limit: 1000,
            ..DeliveryQuery::default()
        };
        let listed = fixture.store.deliveries(query).await.unwrap();
        let listed: Vec<_> = listed.iter().map(|it| it.id.job.clone()).collect();
        assert_eq!(listed, expected);
    }
    assert_eq!(due(&*fixture.store, "app", now()).await.len(), 600);
}

pub(crate) async fn destination_state_is_replaced_once_per_revision(fixture: StoreFixture) {
    let store = &fixture.store;
    let initial = store.destination_state("app").await.unwrap();
    assert_eq!(initial, DestinationState::default());
    let mut nodes = JoinSet::new();
    for n in 1..=8 {
        let fixture = fixture.clone();
        let state = DestinationState {
            revision: 1,
            consecutive_failures: n,
            ..DestinationState::default()
        };
        nodes.spawn(async move {
            let put = fixture.store.put_destination_state("app", state.clone());
            put.await.unwrap().then_some(state)
        });
    }
    let replaced: Vec<_> = nodes.join_all().await.into_iter().flatten().collect();
    assert_eq!(replaced.len(), 1, "{replaced:?}");
    assert_eq!(store.destination_state("app").await.unwrap(), replaced[0]);

    let disabled = DestinationState {
        revision: 2,
        failing_since: Some(now()),
        disabled: Some(Disabled {
            at: now(),
            reason: DisabledReason::Gone,
            recheck_at: Some(now() + MINUTE),
        }),
        last_error: Some("HTTP 410".to_owned()),
        ..DestinationState::default()
    };
    for (name, revision, expected) in [("app", 3, false), ("app", 2, true), ("mail", 2, false)] {
        let state = DestinationState {
            revision,
            ..disabled.clone()
        };
        let replaced = store.put_destination_state(name, state).await.unwrap();
        assert_eq!(replaced, expected, "{name} {revision}");
    }
    create(
        &fixture,
        &job_of("ada"),
        &[to("zoo", "job.created"), to("app", "job.created")],
    )
    .await;
    let expected = [
        StoredDestination {
            name: "app".to_owned(),
            state: disabled,
            waiting: 1,
        },
        StoredDestination {
            name: "zoo".to_owned(),
            state: DestinationState::default(),
            waiting: 1,
        },
    ];
    assert_eq!(store.destinations().await.unwrap(), expected);
}

pub(crate) async fn own_lease_is_extended_and_released(fixture: StoreFixture) {
    let store = &fixture.store;
    for _ in 0..2 {
        assert!(store.lease_destination("app", "a", MINUTE).await.unwrap());
    }
    store.release_destination("app", "a").await.unwrap();
    store.release_destination("app", "a").await.unwrap();
    assert!(store.lease_destination("app", "b", MINUTE).await.unwrap());
}

pub(crate) async fn ended_deliveries_are_deleted_with_their_job(fixture: StoreFixture) {
    let job = job_of("ada");
    create(
        &fixture,
        &job,
        &[to("app", "job.created"), to("mail", "job.created")],
    )
    .await;
    let app = due_one(&fixture, "app", now()).await;
    assert!(record(&fixture, &app.id, delivered(&app, now())).await);
    let last = ended(&job, Status::Succeeded, now());
    commit(&fixture, &last, &[to("app", "job.succeeded"), output(0)]).await;
    let app = due_one(&fixture, "app", now()).await;
    assert!(record(&fixture, &app.id, failed(&app, now())).await);

    let expired = now() + RETENTION.terminal + SECOND;
    assert_eq!(fixture.store.sweep(expired).await.unwrap(), 1);
    assert_eq!(fixture.store.sweep(expired).await.unwrap(), 0);
    assert_eq!(
        events_of(&fixture, &job).await,
        ["archive output.0 2", "mail job.created 1"]
    );
    let query = DeliveryQuery {
        owner: Some("ada".to_owned()),
        limit: 10,
        ..DeliveryQuery::default()
    };
    assert_eq!(fixture.store.deliveries(query).await.unwrap().len(), 2);

    // A delivery that outlives its job is deleted when it ends.
    let output = due_one(&fixture, "archive", expired).await;
    assert_eq!(output.document, serde_json::to_string(&last).unwrap());
    assert!(record(&fixture, &output.id, waiting(&output, expired)).await);
    let output = due_one(&fixture, "archive", expired).await;
    assert!(record(&fixture, &output.id, delivered(&output, expired)).await);
    assert_eq!(events_of(&fixture, &job).await, ["mail job.created 1"]);
    assert!(!record(&fixture, &output.id, delivered(&output, expired)).await);
}

pub(crate) async fn waiting_deliveries_are_deleted_after_their_retention(fixture: StoreFixture) {
    let (old, retried) = (job_of("ada"), job_of("ada"));
    for job in [&old, &retried] {
        let job = ended(job, Status::Succeeded, now());
        create(&fixture, &job, &[to("app", "job.succeeded")]).await;
    }
    let due = due(&*fixture.store, "app", now()).await;
    let delivery = due.iter().find(|it| it.id.job == retried.id).unwrap();
    let due_at = now() + MINUTE;
    assert!(record(&fixture, &delivery.id, waiting(delivery, due_at)).await);

    let expired = now() + WAITING_RETENTION;
    let sweep = async |at| {
        let mut count = 0;
        while let deleted @ 1.. = fixture.store.sweep(at).await.unwrap() {
            count += deleted;
        }
        count
    };
    assert_eq!(sweep(expired).await, 2, "the jobs");
    assert_eq!(waiting_counts(&fixture).await, [("app".to_owned(), 2)]);
    assert_eq!(sweep(expired + SECOND).await, 1);
    assert_eq!(events_of(&fixture, &old).await.len(), 0);
    assert_eq!(events_of(&fixture, &retried).await.len(), 1);
    assert_eq!(sweep(expired + MINUTE + SECOND).await, 1);
    assert!(fixture.store.destinations().await.unwrap().is_empty());
}

/// The final delivery always waits, whatever commits and attempts precede it.
pub(crate) async fn final_delivery_survives_concurrent_updates_and_attempts(fixture: StoreFixture) {
    let mut writers = JoinSet::new();
    for _ in 0..6 {
        let fixture = fixture.clone();
        writers.spawn(async move {
            let mut job = job_of("ada");
            create(&fixture, &job, &[to("app", "job.created")]).await;
            for n in 0..10 {
                job = Job {
                    updated_at: now() + n * SECOND,
                    ..next(&job)
                };
                commit(&fixture, &job, &[to("app", "job.updated")]).await;
            }
            let last = ended(&job, Status::Succeeded, now() + MINUTE);
            commit(&fixture, &last, &[to("app", "job.succeeded")]).await;
            last.id
        });
    }
    let worker = {
        let fixture = fixture.clone();
        tokio::spawn(async move {
            let mut finals = Vec::new();
            let mut sent = std::collections::HashMap::new();
            while finals.len() < 6 {
                for delivery in due(&*fixture.store, "app", now() + MINUTE).await {
                    // A job's versions are sent in order.
                    let newest = sent.entry(delivery.id.job.clone()).or_insert(0);
                    assert!(delivery.id.version > *newest, "{}", delivery.id);
                    *newest = delivery.id.version;
                    let progress = delivered(&delivery, now());
                    let recorded = record(&fixture, &delivery.id, progress).await;
                    if delivery.id.event == "job.succeeded" {
                        assert!(recorded, "nothing supersedes the final delivery");
                        finals.push(delivery.id.job.clone());
                    }
                }
                tokio::task::yield_now().await;
            }
            finals
        })
    };
    let mut jobs = writers.join_all().await;
    let mut finals = worker.await.unwrap();
    jobs.sort();
    finals.sort();
    assert_eq!(finals, jobs);
    assert!(fixture.store.destinations().await.unwrap().is_empty());
}
