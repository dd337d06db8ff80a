//! Accounts: sums that a new job may not push past a limit.
//!
//! Invariant: what is to be booked is written beside the job in the step that changes it, booked
//! under the document's name, so once, and struck off; what a dead node left is booked by the next
//! sweep. A reservation whose job never came is taken back.

use std::time::Duration;

use fred::interfaces::HashesInterface;
use fred::types::Value;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::jobs::{from_json, millis, tag, to_json};
use super::keys::Partition;
use super::link::away;
use super::scripts::{BOOK, VOID};
use crate::job::{Job, JobId};
use crate::store::{BudgetEntry, Error};
use crate::time::Time;

/// How long an account is kept after its end, so that what comes late finds it over.
const KEPT_OVER: Duration = Duration::from_secs(3600);

/// After which a debt is somebody else's to pay: longer than any call takes.
const LEASE: Duration = Duration::from_secs(10);

/// What is to be booked for one document.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Debt {
    job: JobId,
    /// Set while the job is yet to be created: then it is a reservation.
    is_reserved: bool,
    /// When the document was made, by which accounts are judged.
    now: i64,
    /// When it was written, by the clock.
    written_at: i64,
    sums: Vec<Sum>,
}

/// What is booked on one account, in the order of its entries.
#[derive(Debug, Serialize, Deserialize)]
struct Sum {
    account: String,
    ends_at: i64,
    /// Each amount, and the limit it is held to.
    amounts: Vec<(i64, Option<i64>)>,
}

impl RedisStore {
    /// What a commit's entries come to; limits are for those who are yet to spend.
    pub(super) fn debt(entries: &[BudgetEntry], job: &Job) -> Debt {
        let mut debt = Debt {
            job: job.id.clone(),
            is_reserved: false,
            now: job.updated_at.millis(),
            written_at: Time::now().millis(),
            sums: Vec::new(),
        };
        for entry in entries
            .iter()
            .filter(|entry| entry.window_ends_at > job.updated_at)
        {
            let amount = (entry.amount_micros, entry.limit_micros);
            match debt
                .sums
                .iter_mut()
                .find(|sum| sum.account == entry.account)
            {
                Some(sum) => sum.amounts.push(amount),
                None => debt.sums.push(Sum {
                    account: entry.account.clone(),
                    ends_at: entry.window_ends_at.millis(),
                    amounts: vec![amount],
                }),
            }
        }
        debt
    }

    /// Reserves a new job's entries: answers under which name that is owed, if there are any, or the
    /// first account that has too little.
    pub(super) async fn reserve(
        &self,
        job: &Job,
        entries: &[BudgetEntry],
    ) -> Result<Result<Option<String>, String>, Error> {
        if entries.is_empty() {
            return Ok(Ok(None));
        }
        let name = tag(job);
        let part = self.link.keys.of(job.id.as_str());
        let debt = Debt {
            is_reserved: true,
            ..Self::debt(entries, job)
        };
        let written: Result<(), _> = self
            .link
            .client()
            .hset(part.owed(), (name.clone(), to_json(&debt)?))
            .await;
        written.map_err(|error| away(&error))?;
        for sum in &debt.sums {
            if !self.book(sum, &name, debt.now, true).await? {
                let account = sum.account.clone();
                self.take_back(&debt, &name, false).await?;
                self.strike_off(part, &name).await?;
                return Ok(Err(account));
            }
        }
        Ok(Ok(Some(name)))
    }

    /// Books what a commit has written down as owed.
    pub(super) async fn pay(&self, job: &Job, entries: &[BudgetEntry]) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let part = self.link.keys.of(job.id.as_str());
        self.pay_debt(part, &tag(job), &Self::debt(entries, job))
            .await
    }

    async fn pay_debt(&self, part: Partition<'_>, name: &str, debt: &Debt) -> Result<(), Error> {
        for sum in &debt.sums {
            self.book(sum, name, debt.now, false).await?;
        }
        self.strike_off(part, name).await
    }

    /// Whether the account had room for it; without limits it always has.
    async fn book(&self, sum: &Sum, tag: &str, now: i64, is_limited: bool) -> Result<bool, Error> {
        let part = self.link.keys.of(&sum.account);
        let total = sum
            .amounts
            .iter()
            .fold(0, |all: i64, (one, _)| all.saturating_add(*one));
        let mut args: Vec<Value> = vec![
            now.into(),
            sum.ends_at.into(),
            self.kept(sum, now).into(),
            sum.account.as_str().into(),
            tag.into(),
            total.to_string().into(),
        ];
        if is_limited {
            for (amount, limit) in &sum.amounts {
                args.push(amount.to_string().into());
                args.push(
                    limit
                        .map(|limit| limit.to_string())
                        .unwrap_or_default()
                        .into(),
                );
            }
        }
        let keys = vec![part.account(&sum.account), part.accounts()];
        let over: i64 = self.link.run_durably(&BOOK, keys, args).await?;
        Ok(over == 0)
    }

    /// Takes a reservation back: for good where somebody may still be about to make it.
    async fn take_back(&self, debt: &Debt, tag: &str, is_for_good: bool) -> Result<(), Error> {
        for sum in &debt.sums {
            let key = self.link.keys.of(&sum.account).account(&sum.account);
            let args = vec![
                tag.into(),
                sum.ends_at.into(),
                self.kept(sum, debt.now).into(),
                if is_for_good { "" } else { "1" }.into(),
            ];
            let _: i64 = self.link.run(&VOID, vec![key], args).await?;
        }
        Ok(())
    }

    fn kept(&self, sum: &Sum, now: i64) -> String {
        let left = Time::from_millis(sum.ends_at).saturating_duration_since(Time::from_millis(now));
        millis(left + KEPT_OVER)
    }

    async fn strike_off(&self, part: Partition<'_>, name: &str) -> Result<(), Error> {
        let struck: Result<(), _> = self.link.client().hdel(part.owed(), name).await;
        struck.map_err(|error| away(&error))
    }

    /// Pays what is owed in a partition for longer than any call takes: whoever owed it is gone.
    pub(super) async fn pay_for_the_dead(&self, part: Partition<'_>) -> Result<(), Error> {
        let owed: Vec<(String, String)> = {
            let owed: Result<std::collections::HashMap<String, String>, _> =
                self.link.client().hgetall(part.owed()).await;
            owed.map_err(|error| away(&error))?.into_iter().collect()
        };
        let now = Time::now();
        for (name, text) in owed {
            let debt: Debt = from_json(&text)?;
            if now.saturating_duration_since(Time::from_millis(debt.written_at)) < LEASE {
                continue;
            }
            match debt.is_reserved && self.read(&debt.job).await?.is_none() {
                true => {
                    self.strike_off(part, &name).await?;
                    self.take_back(&debt, &name, true).await?;
                }
                false => self.pay_debt(part, &name, &debt).await?,
            }
        }
        Ok(())
    }

    pub(super) async fn balance_of(&self, account: &str, now: Time) -> Result<i64, Error> {
        let key = self.link.keys.of(account).account(account);
        let found: Result<Vec<Option<i64>>, _> =
            self.link.client().hmget(key, vec!["sum", "ends"]).await;
        Ok(match found.map_err(|error| away(&error))?.as_slice() {
            [Some(sum), Some(ends)] if *ends > now.millis() => *sum,
            _ => 0,
        })
    }
}
