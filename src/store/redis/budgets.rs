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
use super::connection::to_store_error;
use super::jobs::{document_key, from_json, millis, to_json};
use super::keys::Partition;
use super::scripts::{CHARGE_WINDOW, RELEASE_RESERVATION};
use crate::job::{Job, JobId};
use crate::store::{BudgetEntry, Error};
use crate::time::Time;

/// How long an account is kept after its end, so that what comes late finds it over.
const WINDOW_GRACE_PERIOD: Duration = Duration::from_secs(3600);

/// After which a debt is somebody else's to pay: longer than any call takes.
const OUTBOX_ENTRY_LEASE: Duration = Duration::from_secs(10);

/// What is to be booked for one document.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BudgetOutboxEntry {
    job: JobId,
    /// Set while the job is yet to be created: then it is a reservation.
    is_reservation: bool,
    /// When the document was made, by which accounts are judged.
    now: i64,
    /// When it was written, by the clock.
    created_at: i64,
    charges: Vec<WindowCharge>,
}

/// What is booked on one account, in the order of its entries.
#[derive(Debug, Serialize, Deserialize)]
struct WindowCharge {
    account: String,
    ends_at: i64,
    /// Each amount, and the limit it is held to.
    amounts: Vec<(i64, Option<i64>)>,
}

impl RedisStore {
    /// What a commit's entries come to; limits are for those who are yet to spend.
    pub(super) fn outbox_entry(entries: &[BudgetEntry], job: &Job) -> BudgetOutboxEntry {
        let mut debt = BudgetOutboxEntry {
            job: job.id.clone(),
            is_reservation: false,
            now: job.updated_at.millis(),
            created_at: Time::now().millis(),
            charges: Vec::new(),
        };
        for entry in entries
            .iter()
            .filter(|entry| entry.window_ends_at > job.updated_at)
        {
            let amount = (entry.amount_micros, entry.limit_micros);
            match debt
                .charges
                .iter_mut()
                .find(|sum| sum.account == entry.account)
            {
                Some(sum) => sum.amounts.push(amount),
                None => debt.charges.push(WindowCharge {
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
    pub(super) async fn reserve_budget(
        &self,
        job: &Job,
        entries: &[BudgetEntry],
    ) -> Result<Result<Option<String>, String>, Error> {
        if entries.is_empty() {
            return Ok(Ok(None));
        }
        let name = document_key(job);
        let part = self.link.keys.partition_for(job.id.as_str());
        let debt = BudgetOutboxEntry {
            is_reservation: true,
            ..Self::outbox_entry(entries, job)
        };
        let written: Result<(), _> = self
            .link
            .client()
            .hset(part.budget_outbox(), (name.clone(), to_json(&debt)?))
            .await;
        written.map_err(|error| to_store_error(&error))?;
        for sum in &debt.charges {
            if !self.charge_window(sum, &name, debt.now, true).await? {
                let account = sum.account.clone();
                self.release_reservation(&debt, &name, false).await?;
                self.delete_outbox_entry(part, &name).await?;
                return Ok(Err(account));
            }
        }
        Ok(Ok(Some(name)))
    }

    /// Books what a commit has written down as owed.
    pub(super) async fn apply_outbox_entry(
        &self,
        job: &Job,
        entries: &[BudgetEntry],
    ) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let part = self.link.keys.partition_for(job.id.as_str());
        self.apply_charges(part, &document_key(job), &Self::outbox_entry(entries, job))
            .await
    }

    async fn apply_charges(
        &self,
        part: Partition<'_>,
        name: &str,
        debt: &BudgetOutboxEntry,
    ) -> Result<(), Error> {
        for sum in &debt.charges {
            self.charge_window(sum, name, debt.now, false).await?;
        }
        self.delete_outbox_entry(part, name).await
    }

    /// Whether the account had room for it; without limits it always has.
    async fn charge_window(
        &self,
        sum: &WindowCharge,
        tag: &str,
        now: i64,
        is_limited: bool,
    ) -> Result<bool, Error> {
        let part = self.link.keys.partition_for(&sum.account);
        let total = sum
            .amounts
            .iter()
            .fold(0, |all: i64, (one, _)| all.saturating_add(*one));
        let mut args: Vec<Value> = vec![
            now.into(),
            sum.ends_at.into(),
            self.window_ttl(sum, now).into(),
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
        let over: i64 = self
            .link
            .run_script_replicated(&CHARGE_WINDOW, keys, args)
            .await?;
        Ok(over == 0)
    }

    /// Takes a reservation back: for good where somebody may still be about to make it.
    async fn release_reservation(
        &self,
        debt: &BudgetOutboxEntry,
        tag: &str,
        is_for_good: bool,
    ) -> Result<(), Error> {
        for sum in &debt.charges {
            let key = self
                .link
                .keys
                .partition_for(&sum.account)
                .account(&sum.account);
            let args = vec![
                tag.into(),
                sum.ends_at.into(),
                self.window_ttl(sum, debt.now).into(),
                if is_for_good { "" } else { "1" }.into(),
            ];
            let _: i64 = self
                .link
                .run_script(&RELEASE_RESERVATION, vec![key], args)
                .await?;
        }
        Ok(())
    }

    fn window_ttl(&self, sum: &WindowCharge, now: i64) -> String {
        let left = Time::from_millis(sum.ends_at).saturating_duration_since(Time::from_millis(now));
        millis(left + WINDOW_GRACE_PERIOD)
    }

    async fn delete_outbox_entry(&self, part: Partition<'_>, name: &str) -> Result<(), Error> {
        let struck: Result<(), _> = self.link.client().hdel(part.budget_outbox(), name).await;
        struck.map_err(|error| to_store_error(&error))
    }

    /// Pays what is owed in a partition for longer than any call takes: whoever owed it is gone.
    pub(super) async fn recover_outbox(&self, part: Partition<'_>) -> Result<(), Error> {
        let owed: Vec<(String, String)> = {
            let owed: Result<std::collections::HashMap<String, String>, _> =
                self.link.client().hgetall(part.budget_outbox()).await;
            owed.map_err(|error| to_store_error(&error))?
                .into_iter()
                .collect()
        };
        let now = Time::now();
        for (name, text) in owed {
            let debt: BudgetOutboxEntry = from_json(&text)?;
            if now.saturating_duration_since(Time::from_millis(debt.created_at))
                < OUTBOX_ENTRY_LEASE
            {
                continue;
            }
            match debt.is_reservation && self.read(&debt.job).await?.is_none() {
                true => {
                    self.delete_outbox_entry(part, &name).await?;
                    self.release_reservation(&debt, &name, true).await?;
                }
                false => self.apply_charges(part, &name, &debt).await?,
            }
        }
        Ok(())
    }

    pub(super) async fn balance_of(&self, account: &str, now: Time) -> Result<i64, Error> {
        let key = self.link.keys.partition_for(account).account(account);
        let found: Result<Vec<Option<i64>>, _> =
            self.link.client().hmget(key, vec!["sum", "ends"]).await;
        Ok(
            match found.map_err(|error| to_store_error(&error))?.as_slice() {
                [Some(sum), Some(ends)] if *ends > now.millis() => *sum,
                _ => 0,
            },
        )
    }
}
