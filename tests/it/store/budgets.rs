//! What a job is charged.

use std::sync::Arc;

use progress_hub::job::{Job, Status};
use progress_hub::store::{
    BudgetEntry, CommitJob, CommitOutcome, CreateOutcome, IdempotencyKey, Schedule,
};
use progress_hub::time::Time;
use tokio::task::JoinSet;

use super::{
    DAY, MINUTE, SECOND, StoreFixture, commit_job, creation, ended, job_of, next, now, task,
};

/// So much to the account, which may hold ten and lasts for a day.
pub(crate) fn entry(account: &str, amount: i64) -> BudgetEntry {
    BudgetEntry {
        window: account.into(),
        amount_micros: amount,
        limit_micros: Some(10),
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
        ..commit_job(next, Schedule::default(), Vec::new())
    }
}

async fn balance_at(fixture: &StoreFixture, account: &str, at: Time) -> i64 {
    let balances = fixture.store.balances(&[account.into()], at).await.unwrap();
    balances[0]
}

async fn balance(fixture: &StoreFixture, account: &str) -> i64 {
    balance_at(fixture, account, now()).await
}

fn over(account: &str) -> CreateOutcome {
    CreateOutcome::LimitExceeded {
        window: account.into(),
    }
}

pub(crate) async fn create_charges_budgets_up_to_the_limit(fixture: StoreFixture) {
    let entries = [entry("ada", 4), entry("kling", 3)];
    assert_eq!(
        charge(&fixture, &job_of("ada"), &entries).await,
        CreateOutcome::Created
    );
    let names = ["kling", "nobody", "ada"].map(str::to_owned);
    let balances = fixture.store.balances(&names, now()).await.unwrap();
    assert_eq!(balances, [3, 0, 4]);

    let job = job_of("ada");
    assert_eq!(
        charge(&fixture, &job, &[entry("ada", 7)]).await,
        over("ada")
    );
    assert_eq!(fixture.get(&job.id).await, None);
    fixture.expect_published(&job.id, &[]).await;
    assert_eq!(
        charge(&fixture, &job, &[entry("ada", 6)]).await,
        CreateOutcome::Created
    );
    assert_eq!(balance(&fixture, "ada").await, 10);
    let unlimited = BudgetEntry {
        limit_micros: None,
        ..entry("ada", i64::MAX)
    };
    let created = charge(&fixture, &job_of("ada"), &[unlimited]).await;
    assert_eq!(created, CreateOutcome::Created);
    assert_eq!(balance(&fixture, "ada").await, i64::MAX);
}

pub(crate) async fn rejected_create_charges_no_window(fixture: StoreFixture) {
    let entries = [entry("ada", 4), entry("kling", 11), entry("day", 12)];
    let refused = charge(&fixture, &job_of("ada"), &entries).await;
    assert_eq!(refused, over("kling"), "the first that fails");
    assert_eq!(balance(&fixture, "ada").await, 0);
    let twice = [entry("ada", 6), entry("ada", 6)];
    let refused = charge(&fixture, &job_of("ada"), &twice).await;
    assert_eq!(refused, over("ada"), "its entries count together");
    assert_eq!(balance(&fixture, "ada").await, 0);
}

pub(crate) async fn concurrent_creates_never_exceed_the_limit(fixture: StoreFixture) {
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let fixture = fixture.clone();
        callers.spawn(async move { charge(&fixture, &job_of("ada"), &[entry("ada", 3)]).await });
    }
    let outcomes = callers.join_all().await;
    let kept = outcomes
        .iter()
        .filter(|made| **made == CreateOutcome::Created);
    assert_eq!(kept.count(), 3);
    let refused = outcomes.iter().filter(|made| **made == over("ada"));
    assert_eq!(refused.count(), 29);
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

    let known = task("kling", "1");
    assert_eq!(charge(&fixture, &known, &[]).await, CreateOutcome::Created);
    let taken = charge(&fixture, &task("kling", "1"), &[entry("ada", 1)]).await;
    assert_eq!(taken, CreateOutcome::TaskConflict(Arc::new(known)));
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
        over("ada")
    );

    let end = ended(&job, Status::Failed, now() + SECOND);
    let settled = fixture
        .store
        .commit(settlement(&end, &[entry("ada", -4)]))
        .await;
    assert_eq!(settled.unwrap(), CommitOutcome::Committed);
    assert_eq!(balance(&fixture, "ada").await, 6);
    assert_eq!(
        charge(&fixture, &other, &[entry("ada", 4)]).await,
        CreateOutcome::Created
    );

    let costly = settlement(&next(&other), &[entry("ada", 5)]);
    let settled = fixture.store.commit(costly).await.unwrap();
    assert_eq!(
        settled,
        CommitOutcome::Committed,
        "what was spent was spent"
    );
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
    let gone = settlement(&next(&job_of("ada")), &[entry("ada", 5)]);
    assert_eq!(
        fixture.store.commit(gone).await.unwrap(),
        CommitOutcome::NotFound
    );
    assert_eq!(balance(&fixture, "ada").await, 0);
}

pub(crate) async fn concurrent_final_commits_are_charged_once(fixture: StoreFixture) {
    let job = job_of("ada");
    charge(&fixture, &job, &[entry("ada", 8)]).await;
    let mut rivals = JoinSet::new();
    for _ in 0..16 {
        let (fixture, end) = (fixture.clone(), ended(&job, Status::Failed, now()));
        rivals.spawn(async move {
            let back = settlement(&end, &[entry("ada", -8)]);
            fixture.store.commit(back).await.unwrap()
        });
    }
    let done = rivals.join_all().await;
    let done = done
        .iter()
        .filter(|end| **end == CommitOutcome::Committed)
        .count();
    assert_eq!((done, balance(&fixture, "ada").await), (1, 0));
}

pub(crate) async fn balance_of_an_ended_window_is_zero(fixture: StoreFixture) {
    let brief = |amount| BudgetEntry {
        window_ends_at: now() + MINUTE,
        ..entry("ada", amount)
    };
    let job = job_of("ada");
    charge(&fixture, &job, &[brief(10), entry("kling", 1)]).await;
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
    let end = ended(&job, Status::Failed, now() + MINUTE);
    let back = settlement(&end, &[brief(-10)]);
    assert_eq!(
        fixture.store.commit(back).await.unwrap(),
        CommitOutcome::Committed
    );
    let later = now() + MINUTE;
    assert_eq!(
        balance_at(&fixture, "ada", later).await,
        10,
        "what belonged to the account that ended is not the next one's"
    );
}

pub(crate) async fn sweep_deletes_ended_windows(fixture: StoreFixture) {
    let brief = BudgetEntry {
        window_ends_at: now() + MINUTE,
        ..entry("ada", 1)
    };
    charge(&fixture, &job_of("ada"), &[brief, entry("kling", 1)]).await;
    let sweep = async |at| fixture.store.sweep(at).await.unwrap();
    assert_eq!(sweep(now() + MINUTE - SECOND).await, 0);
    assert_eq!(sweep(now() + MINUTE).await, 1);
    assert_eq!(sweep(now() + MINUTE).await, 0);
    assert_eq!(balance(&fixture, "ada").await, 0);
    assert_eq!(balance(&fixture, "kling").await, 1);
}
