//! What a job is charged.

use std::sync::Arc;

use progress_hub::job::{Job, Status};
use progress_hub::store::{
    BudgetEntry, CommitJob, CommitOutcome, CreateOutcome, IdempotencyKey, Schedule,
};
use progress_hub::time::Time;
use tokio::task::JoinSet;

use super::{DAY, Engine, MINUTE, SECOND, commitment, creation, ended, job_of, next, now, task};

/// So much to the account, which may hold ten and lasts for a day.
pub(crate) fn entry(account: &str, amount: i64) -> BudgetEntry {
    BudgetEntry {
        window: account.into(),
        amount_micros: amount,
        limit_micros: Some(10),
        window_ends_at: now() + DAY,
    }
}

async fn charge(engine: &Engine, job: &Job, entries: &[BudgetEntry]) -> CreateOutcome {
    let mut create = creation(job.clone(), Schedule::default(), None);
    create.budget_entries = entries.to_vec();
    engine.store.create(create).await.unwrap()
}

fn settlement(next: &Job, entries: &[BudgetEntry]) -> CommitJob {
    CommitJob {
        budget_entries: entries.to_vec(),
        ..commitment(next, Schedule::default(), Vec::new())
    }
}

async fn balance_at(engine: &Engine, account: &str, at: Time) -> i64 {
    let balances = engine.store.balances(&[account.into()], at).await.unwrap();
    balances[0]
}

async fn balance(engine: &Engine, account: &str) -> i64 {
    balance_at(engine, account, now()).await
}

fn over(account: &str) -> CreateOutcome {
    CreateOutcome::LimitExceeded {
        window: account.into(),
    }
}

pub(crate) async fn a_new_job_is_charged_up_to_the_limit(engine: Engine) {
    let entries = [entry("ada", 4), entry("kling", 3)];
    assert_eq!(
        charge(&engine, &job_of("ada"), &entries).await,
        CreateOutcome::Created
    );
    let names = ["kling", "nobody", "ada"].map(str::to_owned);
    let balances = engine.store.balances(&names, now()).await.unwrap();
    assert_eq!(balances, [3, 0, 4]);

    let job = job_of("ada");
    assert_eq!(charge(&engine, &job, &[entry("ada", 7)]).await, over("ada"));
    assert_eq!(engine.get(&job.id).await, None);
    engine.expect_heard(&job.id, &[]).await;
    assert_eq!(
        charge(&engine, &job, &[entry("ada", 6)]).await,
        CreateOutcome::Created
    );
    assert_eq!(balance(&engine, "ada").await, 10);
    let unlimited = BudgetEntry {
        limit_micros: None,
        ..entry("ada", i64::MAX)
    };
    let created = charge(&engine, &job_of("ada"), &[unlimited]).await;
    assert_eq!(created, CreateOutcome::Created);
    assert_eq!(balance(&engine, "ada").await, i64::MAX);
}

pub(crate) async fn a_refused_job_charges_none_of_its_accounts(engine: Engine) {
    let entries = [entry("ada", 4), entry("kling", 11), entry("day", 12)];
    let refused = charge(&engine, &job_of("ada"), &entries).await;
    assert_eq!(refused, over("kling"), "the first that fails");
    assert_eq!(balance(&engine, "ada").await, 0);
    let twice = [entry("ada", 6), entry("ada", 6)];
    let refused = charge(&engine, &job_of("ada"), &twice).await;
    assert_eq!(refused, over("ada"), "its entries count together");
    assert_eq!(balance(&engine, "ada").await, 0);
}

pub(crate) async fn of_many_jobs_as_many_are_kept_as_the_limit_allows(engine: Engine) {
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let engine = engine.clone();
        callers.spawn(async move { charge(&engine, &job_of("ada"), &[entry("ada", 3)]).await });
    }
    let outcomes = callers.join_all().await;
    let kept = outcomes
        .iter()
        .filter(|made| **made == CreateOutcome::Created);
    assert_eq!(kept.count(), 3);
    let refused = outcomes.iter().filter(|made| **made == over("ada"));
    assert_eq!(refused.count(), 29);
    assert_eq!(balance(&engine, "ada").await, 9);
}

pub(crate) async fn a_repeated_request_is_charged_once(engine: Engine) {
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
    let created = engine.store.create(create(&first)).await.unwrap();
    assert_eq!(created, CreateOutcome::Created);
    for job in [&job_of("ada"), &first] {
        let again = engine.store.create(create(job)).await.unwrap();
        assert_eq!(again, CreateOutcome::Replayed(Arc::new(first.clone())));
    }
    assert_eq!(balance(&engine, "ada").await, 6);

    let known = task("kling", "1");
    assert_eq!(charge(&engine, &known, &[]).await, CreateOutcome::Created);
    let taken = charge(&engine, &task("kling", "1"), &[entry("ada", 1)]).await;
    assert_eq!(taken, CreateOutcome::TaskConflict(Arc::new(known)));
    assert_eq!(balance(&engine, "ada").await, 6);
}

pub(crate) async fn an_end_gives_back_what_another_job_then_takes(engine: Engine) {
    let job = job_of("ada");
    assert_eq!(
        charge(&engine, &job, &[entry("ada", 10)]).await,
        CreateOutcome::Created
    );
    let other = job_of("ada");
    assert_eq!(
        charge(&engine, &other, &[entry("ada", 1)]).await,
        over("ada")
    );

    let end = ended(&job, Status::Failed, now() + SECOND);
    let settled = engine
        .store
        .commit(settlement(&end, &[entry("ada", -4)]))
        .await;
    assert_eq!(settled.unwrap(), CommitOutcome::Committed);
    assert_eq!(balance(&engine, "ada").await, 6);
    assert_eq!(
        charge(&engine, &other, &[entry("ada", 4)]).await,
        CreateOutcome::Created
    );

    let costly = settlement(&next(&other), &[entry("ada", 5)]);
    let settled = engine.store.commit(costly).await.unwrap();
    assert_eq!(
        settled,
        CommitOutcome::Committed,
        "what was spent was spent"
    );
    assert_eq!(balance(&engine, "ada").await, 15);
}

pub(crate) async fn a_commit_that_is_not_done_books_nothing(engine: Engine) {
    let job = engine.create(job_of("ada")).await;
    engine.commit(&next(&job)).await;
    let late = settlement(&next(&job), &[entry("ada", 5)]);
    assert_eq!(
        engine.store.commit(late).await.unwrap(),
        CommitOutcome::Conflict
    );
    let gone = settlement(&next(&job_of("ada")), &[entry("ada", 5)]);
    assert_eq!(
        engine.store.commit(gone).await.unwrap(),
        CommitOutcome::NotFound
    );
    assert_eq!(balance(&engine, "ada").await, 0);
}

pub(crate) async fn concurrent_final_commits_are_charged_once(engine: Engine) {
    let job = job_of("ada");
    charge(&engine, &job, &[entry("ada", 8)]).await;
    let mut rivals = JoinSet::new();
    for _ in 0..16 {
        let (engine, end) = (engine.clone(), ended(&job, Status::Failed, now()));
        rivals.spawn(async move {
            let back = settlement(&end, &[entry("ada", -8)]);
            engine.store.commit(back).await.unwrap()
        });
    }
    let done = rivals.join_all().await;
    let done = done
        .iter()
        .filter(|end| **end == CommitOutcome::Committed)
        .count();
    assert_eq!((done, balance(&engine, "ada").await), (1, 0));
}

pub(crate) async fn an_account_that_has_ended_is_zero_again(engine: Engine) {
    let brief = |amount| BudgetEntry {
        window_ends_at: now() + MINUTE,
        ..entry("ada", amount)
    };
    let job = job_of("ada");
    charge(&engine, &job, &[brief(10), entry("kling", 1)]).await;
    assert_eq!(
        balance_at(&engine, "ada", now() + MINUTE - SECOND).await,
        10
    );
    assert_eq!(balance_at(&engine, "ada", now() + MINUTE).await, 0);

    let late = Job {
        updated_at: now() + MINUTE,
        ..job_of("ada")
    };
    assert_eq!(
        charge(&engine, &late, &[entry("ada", 10)]).await,
        CreateOutcome::Created
    );
    let end = ended(&job, Status::Failed, now() + MINUTE);
    let back = settlement(&end, &[brief(-10)]);
    assert_eq!(
        engine.store.commit(back).await.unwrap(),
        CommitOutcome::Committed
    );
    let later = now() + MINUTE;
    assert_eq!(
        balance_at(&engine, "ada", later).await,
        10,
        "what belonged to the account that ended is not the next one's"
    );
}

pub(crate) async fn accounts_that_have_ended_are_forgotten(engine: Engine) {
    let brief = BudgetEntry {
        window_ends_at: now() + MINUTE,
        ..entry("ada", 1)
    };
    charge(&engine, &job_of("ada"), &[brief, entry("kling", 1)]).await;
    let sweep = async |at| engine.store.sweep(at).await.unwrap();
    assert_eq!(sweep(now() + MINUTE - SECOND).await, 0);
    assert_eq!(sweep(now() + MINUTE).await, 1);
    assert_eq!(sweep(now() + MINUTE).await, 0);
    assert_eq!(balance(&engine, "ada").await, 0);
    assert_eq!(balance(&engine, "kling").await, 1);
}
