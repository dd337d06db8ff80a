//! Budget windows.

use std::sync::Arc;
use std::time::Duration;

use progress_hub::admission::{AdmissionControl, Admitted};
use progress_hub::config::Config;
use progress_hub::job::{Job, Status, VideoRequest};
use progress_hub::links::Links;
use progress_hub::provider::{HttpClient, Providers};
use progress_hub::store::{
    BudgetEntry, CommitJob, CommitOutcome, CreateOutcome, IdempotencyKey, Schedule,
};
use progress_hub::telemetry::Metrics;
use progress_hub::time::Time;
use tokio::task::JoinSet;

use crate::app::JWT_SECRET;

use super::{
    DAY, MINUTE, SECOND, StoreFixture, commit_job, creation, ended, job_of, next, now, task,
};

/// An entry for a window of one day with a limit of ten.
pub(crate) fn entry(window: &str, amount: i64) -> BudgetEntry {
    BudgetEntry {
        window: window.into(),
        amount,
        limit: Some(10),
        earlier_windows: Vec::new(),
        window_ends_at: now() + DAY,
    }
}

async fn charge(fixture: &StoreFixture, job: &Job, entries: &[BudgetEntry]) -> CreateOutcome {
    let mut create = creation(job.clone(), Schedule::default(), None);
    create.budget_entries = entries.to_vec();
    fixture.store.create(create).await.unwrap()
}

fn settlement(next: &Job, entries: &[BudgetEntry]) -> CommitJob {
    CommitJob {
        budget_entries: entries.to_vec(),
        deliveries: Vec::new(),
        ..commit_job(next, Schedule::default(), Vec::new())
    }
}

async fn balance_at(fixture: &StoreFixture, window: &str, at: Time) -> i64 {
    let balances = fixture.store.balances(&[window.into()], at).await.unwrap();
    balances[0]
}

async fn balance(fixture: &StoreFixture, window: &str) -> i64 {
    balance_at(fixture, window, now()).await
}

fn exceeded(window: &str) -> CreateOutcome {
    CreateOutcome::LimitExceeded {
        window: window.into(),
    }
}

pub(crate) async fn create_charges_budgets_up_to_the_limit(fixture: StoreFixture) {
    let entries = [entry("ada", 4), entry("kling", 3)];
    assert_eq!(
        charge(&fixture, &job_of("ada"), &entries).await,
        CreateOutcome::Created
    );
    let names = ["kling", "unused", "ada"].map(str::to_owned);
    let balances = fixture.store.balances(&names, now()).await.unwrap();
    assert_eq!(balances, [3, 0, 4]);

    let job = job_of("ada");
    assert_eq!(
        charge(&fixture, &job, &[entry("ada", 7)]).await,
        exceeded("ada")
    );
    assert_eq!(fixture.get(&job.id).await, None);
    fixture.expect_published(&job.id, &[]).await;
    assert_eq!(
        charge(&fixture, &job, &[entry("ada", 6)]).await,
        CreateOutcome::Created
    );
    assert_eq!(balance(&fixture, "ada").await, 10);
    let unlimited = BudgetEntry {
        limit: None,
        ..entry("ada", i64::MAX)
    };
    let created = charge(&fixture, &job_of("ada"), &[unlimited]).await;
    assert_eq!(created, CreateOutcome::Created);
    assert_eq!(balance(&fixture, "ada").await, i64::MAX);
}

pub(crate) async fn rejected_create_charges_no_window(fixture: StoreFixture) {
    let entries = [entry("ada", 4), entry("kling", 11), entry("day", 12)];
    let rejected = charge(&fixture, &job_of("ada"), &entries).await;
    assert_eq!(rejected, exceeded("kling"), "the first that does not fit");
    assert_eq!(balance(&fixture, "ada").await, 0);
    let twice = [entry("ada", 6), entry("ada", 6)];
    let rejected = charge(&fixture, &job_of("ada"), &twice).await;
    assert_eq!(rejected, exceeded("ada"), "entries of one window add up");
    assert_eq!(balance(&fixture, "ada").await, 0);
}

pub(crate) async fn concurrent_creates_never_exceed_the_limit(fixture: StoreFixture) {
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let fixture = fixture.clone();
        callers.spawn(async move { charge(&fixture, &job_of("ada"), &[entry("ada", 3)]).await });
    }
    let outcomes = callers.join_all().await;
    let created = outcomes
        .iter()
        .filter(|outcome| **outcome == CreateOutcome::Created);
    assert_eq!(created.count(), 3);
    let rejected = outcomes
        .iter()
        .filter(|outcome| **outcome == exceeded("ada"));
    assert_eq!(rejected.count(), 29);
    assert_eq!(balance(&fixture, "ada").await, 9);
}

pub(crate) async fn repeated_request_is_charged_once(fixture: StoreFixture) {
    let create = |job: &Job| {
        let key = IdempotencyKey {
            caller: "ada".into(),
            key: "k".into(),
            fingerprint: "f".into(),
        };
        let mut create = creation(job.clone(), Schedule::default(), Some(key));
        create.budget_entries = vec![entry("ada", 6)];
        create
    };
    let first = job_of("ada");
    let created = fixture.store.create(create(&first)).await.unwrap();
    assert_eq!(created, CreateOutcome::Created);
    for job in [&job_of("ada"), &first] {
        let again = fixture.store.create(create(job)).await.unwrap();
        assert_eq!(again, CreateOutcome::Replayed(Arc::new(first.clone())));
    }
    assert_eq!(balance(&fixture, "ada").await, 6);

    let holder = task("kling", "1");
    assert_eq!(charge(&fixture, &holder, &[]).await, CreateOutcome::Created);
    let rejected = charge(&fixture, &task("kling", "1"), &[entry("ada", 1)]).await;
    assert_eq!(rejected, CreateOutcome::TaskConflict(Arc::new(holder)));
    assert_eq!(balance(&fixture, "ada").await, 6);
}

pub(crate) async fn refund_on_commit_can_be_spent_by_another_job(fixture: StoreFixture) {
    let job = job_of("ada");
    assert_eq!(
        charge(&fixture, &job, &[entry("ada", 10)]).await,
        CreateOutcome::Created
    );
    let other = job_of("ada");
    assert_eq!(
        charge(&fixture, &other, &[entry("ada", 1)]).await,
        exceeded("ada")
    );

    let finished = ended(&job, Status::Failed, now() + SECOND);
    let settled = fixture
        .store
        .commit(settlement(&finished, &[entry("ada", -4)]))
        .await;
    assert_eq!(settled.unwrap(), CommitOutcome::Committed);
    assert_eq!(balance(&fixture, "ada").await, 6);
    assert_eq!(
        charge(&fixture, &other, &[entry("ada", 4)]).await,
        CreateOutcome::Created
    );

    let overrun = settlement(&next(&other), &[entry("ada", 5)]);
    let settled = fixture.store.commit(overrun).await.unwrap();
    assert_eq!(settled, CommitOutcome::Committed, "commits ignore limits");
    assert_eq!(balance(&fixture, "ada").await, 15);
}

pub(crate) async fn unsuccessful_commit_charges_nothing(fixture: StoreFixture) {
    let job = fixture.create(job_of("ada")).await;
    fixture.commit(&next(&job)).await;
    let late = settlement(&next(&job), &[entry("ada", 5)]);
    assert_eq!(
        fixture.store.commit(late).await.unwrap(),
        CommitOutcome::Conflict
    );
    let missing = settlement(&next(&job_of("ada")), &[entry("ada", 5)]);
    assert_eq!(
        fixture.store.commit(missing).await.unwrap(),
        CommitOutcome::NotFound
    );
    assert_eq!(balance(&fixture, "ada").await, 0);
}

pub(crate) async fn concurrent_final_commits_are_charged_once(fixture: StoreFixture) {
    let job = job_of("ada");
    charge(&fixture, &job, &[entry("ada", 8)]).await;
    let mut rivals = JoinSet::new();
    for _ in 0..16 {
        let (fixture, finished) = (fixture.clone(), ended(&job, Status::Failed, now()));
        rivals.spawn(async move {
            let refund = settlement(&finished, &[entry("ada", -8)]);
            fixture.store.commit(refund).await.unwrap()
        });
    }
    let outcomes = rivals.join_all().await;
    let committed = outcomes
        .iter()
        .filter(|outcome| **outcome == CommitOutcome::Committed);
    assert_eq!(committed.count(), 1);
    assert_eq!(balance(&fixture, "ada").await, 0);
}

pub(crate) async fn balance_of_an_ended_window_is_zero(fixture: StoreFixture) {
    let one_minute = |amount| BudgetEntry {
        window_ends_at: now() + MINUTE,
        ..entry("ada", amount)
    };
    let job = job_of("ada");
    charge(&fixture, &job, &[one_minute(10), entry("kling", 1)]).await;
    assert_eq!(
        balance_at(&fixture, "ada", now() + MINUTE - SECOND).await,
        10
    );
    assert_eq!(balance_at(&fixture, "ada", now() + MINUTE).await, 0);

    let late = Job {
        updated_at: now() + MINUTE,
        ..job_of("ada")
    };
    assert_eq!(
        charge(&fixture, &late, &[entry("ada", 10)]).await,
        CreateOutcome::Created
    );
    let finished = ended(&job, Status::Failed, now() + MINUTE);
    let refund = settlement(&finished, &[one_minute(-10)]);
    assert_eq!(
        fixture.store.commit(refund).await.unwrap(),
        CommitOutcome::Committed
    );
    let later = now() + MINUTE;
    assert_eq!(
        balance_at(&fixture, "ada", later).await,
        10,
        "a refund of an ended window does not reach the next one"
    );
}

pub(crate) async fn sweep_deletes_ended_windows(fixture: StoreFixture) {
    let one_minute = BudgetEntry {
        window_ends_at: now() + MINUTE,
        ..entry("ada", 1)
    };
    charge(&fixture, &job_of("ada"), &[one_minute, entry("kling", 1)]).await;
    let sweep = async |at| fixture.store.sweep(at).await.unwrap();
    assert_eq!(sweep(now() + MINUTE - SECOND).await, 0);
    assert_eq!(sweep(now() + MINUTE).await, 1);
    assert_eq!(sweep(now() + MINUTE).await, 0);
    assert_eq!(balance(&fixture, "ada").await, 0);
    assert_eq!(balance(&fixture, "kling").await, 1);
}

pub(crate) async fn earlier_windows_count_toward_the_limit(fixture: StoreFixture) {
    let job = job_of("ada");
    charge(&fixture, &job, &[entry("monday", 3), entry("tuesday", 4)]).await;
    let on_wednesday = |amount| BudgetEntry {
        earlier_windows: vec!["monday".into(), "tuesday".into(), "unused".into()],
        ..entry("wednesday", amount)
    };
    let rejected = charge(&fixture, &job_of("ada"), &[on_wednesday(4)]).await;
    assert_eq!(rejected, exceeded("wednesday"));
    let created = charge(&fixture, &job_of("ada"), &[on_wednesday(3)]).await;
    assert_eq!(created, CreateOutcome::Created);
    let rejected = charge(&fixture, &job_of("ada"), &[on_wednesday(1)]).await;
    assert_eq!(rejected, exceeded("wednesday"));
    assert_eq!(balance(&fixture, "wednesday").await, 3);
    assert_eq!(balance(&fixture, "tuesday").await, 4, "not charged");

    let refund = settlement(&next(&job), &[entry("tuesday", -1)]);
    fixture.store.commit(refund).await.unwrap();
    let created = charge(&fixture, &job_of("ada"), &[on_wednesday(1)]).await;
    assert_eq!(created, CreateOutcome::Created);
}

pub(crate) async fn queued_jobs_count_across_midnight(fixture: StoreFixture) {
    let settings = [
        ("auth.hs256_secrets", JWT_SECRET),
        ("limits.queued_jobs", "2"),
        ("providers.acme.spec", "atlas"),
        ("providers.acme.api_key", "a key"),
    ];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config = Config::load(None, std::iter::empty(), settings.into()).unwrap();
    let providers = Providers::load(&config, &HttpClient::new().unwrap()).ok();
    let providers = providers.unwrap();
    let links = Links::new(None, None, Duration::ZERO);
    let admission = AdmissionControl::new(&config, links, Arc::new(Metrics::new()));
    let submit = async |at: Time| {
        let request = VideoRequest {
            model: "m".into(),
            prompt: "a lighthouse".into(),
            ..VideoRequest::default()
        };
        let provider = providers.get("acme").unwrap();
        let admitted = admission.admit("ada", provider, request, at);
        let Admitted {
            job,
            budget_entries,
        } = admitted.unwrap();
        let outcome = charge(&fixture, &job, &budget_entries.entries()).await;
        (job, outcome == CreateOutcome::Created)
    };
    let leave_queue = async |job: &Job, at: Time| {
        let charges = job.internal.queue_charges.iter();
        let releases = charges.map(|charge| BudgetEntry {
            window_ends_at: charge.window.expires_at,
            ..entry(&charge.window.name, -charge.amount)
        });
        let submitted = Job {
            updated_at: at,
            ..next(job)
        };
        let releases: Vec<_> = releases.collect();
        let outcome = fixture
            .store
            .commit(settlement(&submitted, &releases))
            .await;
        assert_eq!(outcome.unwrap(), CommitOutcome::Committed);
    };
    let days = DAY.as_millis() as i64;
    let midnight = Time::from_millis((now().millis() / days + 1) * days);
    let (before, after) = (midnight - SECOND, midnight + SECOND);

    let (first, is_created) = submit(before).await;
    assert!(is_created);
    let (second, is_created) = submit(after).await;
    assert!(is_created);
    assert!(!submit(after).await.1, "the first job still waits");
    leave_queue(&first, after).await;
    let (third, is_created) = submit(after).await;
    assert!(is_created);
    assert!(!submit(midnight + DAY - SECOND).await.1);
    leave_queue(&second, after + SECOND).await;
    leave_queue(&third, after + SECOND).await;
    for _ in 0..2 {
        assert!(submit(midnight + DAY).await.1);
    }
    assert!(!submit(midnight + DAY).await.1);
}

async fn charge_once(fixture: &StoreFixture, key: &str, entry: BudgetEntry) -> bool {
    fixture.store.charge_once(key, entry, now()).await.unwrap()
}

pub(crate) async fn key_is_charged_once_up_to_the_limit(fixture: StoreFixture) {
    for key in ["a", "a", "b", "a"] {
        assert!(charge_once(&fixture, key, entry("mails", 5)).await);
    }
    assert_eq!(balance(&fixture, "mails").await, 10);
    assert!(!charge_once(&fixture, "c", entry("mails", 1)).await);
    assert!(charge_once(&fixture, "b", entry("mails", 5)).await);
    assert_eq!(balance(&fixture, "mails").await, 10);
    assert!(charge_once(&fixture, "a", entry("other", 1)).await);
    assert_eq!(balance(&fixture, "other").await, 1);
}

pub(crate) async fn concurrent_charges_never_exceed_the_limit(fixture: StoreFixture) {
    let mut callers = JoinSet::new();
    for n in 0..64 {
        let fixture = fixture.clone();
        let key = (n % 32).to_string();
        callers.spawn(async move { charge_once(&fixture, &key, entry("mails", 1)).await });
    }
    let charged = callers.join_all().await;
    let count = charged.into_iter().filter(|charged| *charged).count();
    assert!(
        (10..=20).contains(&count),
        "each key was sent twice: {count}"
    );
    assert_eq!(balance(&fixture, "mails").await, 10);
}
