//! Budget windows: balances that a new job must not raise above a limit.
//!
//! The charges of a document are written to an outbox in the same step as the document. They are then
//! applied one by one, each at most once under its charge key, and removed from the outbox. A sweep
//! applies the entries of crashed nodes, and releases reservations whose job was never created.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use fred::interfaces::HashesInterface;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::jobs::{document_key, millis};
use super::keys::Partition;
use super::scripts::{CHARGE_WINDOW, RELEASE_CHARGE};
use crate::job::{Job, JobId};
use crate::store::codec::{from_json, to_json};
use crate::store::{BudgetEntry, BudgetStore, Error};
use crate::time::Time;

/// How long a window is kept after its end, so that a late charge finds that it has ended.
const WINDOW_GRACE_PERIOD: Duration = Duration::from_secs(3600);

/// Age from which any node may process an outbox entry. Longer than any operation takes.
const OUTBOX_ENTRY_LEASE: Duration = Duration::from_secs(10);

/// The charges of one document.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BudgetOutboxEntry {
    job: JobId,
    document_key: String,
    /// Whether the job has not been created yet.
    is_reservation: bool,
    /// Update time of the document. Decides which windows have ended.
    updated_at: Time,
    /// Time of the write by the system clock.
    created_at: Time,
    charges: Vec<BudgetEntry>,
}

impl BudgetOutboxEntry {
    /// Returns the entry of a commit. Charges to windows that have ended are left out.
    pub(super) fn new(entries: &[BudgetEntry], job: &Job) -> Self {
        let is_open = |entry: &&BudgetEntry| entry.window_ends_at > job.updated_at;
        Self {
            job: job.id.clone(),
            document_key: document_key(job),
            is_reservation: false,
            updated_at: job.updated_at,
            created_at: Time::now(),
            charges: entries.iter().filter(is_open).cloned().collect(),
        }
    }

    /// Returns the charges with their keys, under which each is applied at most once.
    fn keyed_charges(&self) -> impl Iterator<Item = (String, &BudgetEntry)> {
        let charges = self.charges.iter().enumerate();
        charges.map(|(number, charge)| (format!("{}/{number}", self.document_key), charge))
    }
}

/// Returns the TTL of the window of a charge in milliseconds.
fn window_ttl(charge: &BudgetEntry, now: Time) -> String {
    let remaining = charge.window_ends_at.saturating_duration_since(now);
    millis(remaining + WINDOW_GRACE_PERIOD)
}

#[async_trait]
impl BudgetStore for RedisStore {
    async fn balances(&self, windows: &[String], now: Time) -> Result<Vec<i64>, Error> {
        let _operation = self.connections.begin_operation()?;
        try_join_all(windows.iter().map(|window| self.balance(window, now))).await
    }

    async fn charge_once(&self, key: &str, entry: BudgetEntry, now: Time) -> Result<bool, Error> {
        let _operation = self.connections.begin_operation()?;
        self.charge_window(key, &entry, entry.limit, now).await
    }
}

impl RedisStore {
    /// Reserves the charges of a new job, or returns the first window whose limit they exceed.
    pub(super) async fn reserve_budget(
        &self,
        job: &Job,
        entries: &[BudgetEntry],
    ) -> Result<Option<String>, Error> {
        if entries.is_empty() {
            return Ok(None);
        }
        let partition = self.partition_for(job.id.as_str());
        let entry = BudgetOutboxEntry {
            is_reservation: true,
            ..BudgetOutboxEntry::new(entries, job)
        };
        let field = (entry.document_key.clone(), to_json(&entry)?);
        let client = self.connections.client();
        let () = client.hset(partition.budget_outbox(), field).await?;
        for (key, charge) in entry.keyed_charges() {
            let limit = self.remaining_limit(charge, job.updated_at).await?;
            if !self
                .charge_window(&key, charge, limit, job.updated_at)
                .await?
            {
                self.release_reservation(&entry, true).await?;
                self.delete_outbox_entry(&entry).await?;
                return Ok(Some(charge.window.clone()));
            }
        }
        Ok(None)
    }

    /// Returns the limit of a charge minus the balances of its earlier windows, or `None` for no
    /// limit.
    ///
    /// The earlier windows are in other partitions, so their balances are read before the charge is
    /// applied. The balances only decrease in between, because new jobs are charged to newer
    /// windows. The limit can be exceeded only by jobs that another node creates at the end of a
    /// window.
    async fn remaining_limit(&self, charge: &BudgetEntry, now: Time) -> Result<Option<i64>, Error> {
        let Some(limit) = charge.limit else {
            return Ok(None);
        };
        let earlier = charge.earlier_windows.iter();
        let balances = try_join_all(earlier.map(|window| self.balance(window, now))).await?;
        Ok(Some(balances.into_iter().fold(limit, i64::saturating_sub)))
    }

    /// Applies the charges of a stored document.
    pub(super) async fn apply_charges(&self, entry: &BudgetOutboxEntry) -> Result<(), Error> {
        for (key, charge) in entry.keyed_charges() {
            self.charge_window(&key, charge, None, entry.updated_at)
                .await?;
        }
        self.delete_outbox_entry(entry).await
    }

    /// Applies a charge once. Returns false if the limit prevents it.
    async fn charge_window(
        &self,
        key: &str,
        charge: &BudgetEntry,
        limit: Option<i64>,
        now: Time,
    ) -> Result<bool, Error> {
        let limit = limit.map(|limit| limit.to_string());
        let args = vec![
            now.millis().into(),
            charge.window_ends_at.millis().into(),
            window_ttl(charge, now).into(),
            charge.window.as_str().into(),
            key.into(),
            charge.amount.to_string().into(),
            limit.unwrap_or_default().into(),
        ];
        let partition = self.partition_for(&charge.window);
        let keys = vec![
            partition.budget_window(&charge.window),
            partition.budget_windows(),
        ];
        let is_charged: i64 = self.connections.run(&CHARGE_WINDOW, keys, args).await?;
        Ok(is_charged == 1)
    }

    /// Reverses the charges of a job. Unless `may_charge_again`, prevents charges for it from now on,
    /// because another node may still be creating the job.
    async fn release_reservation(
        &self,
        entry: &BudgetOutboxEntry,
        may_charge_again: bool,
    ) -> Result<(), Error> {
        for (key, charge) in entry.keyed_charges() {
            let partition = self.partition_for(&charge.window);
            let keys = vec![partition.budget_window(&charge.window)];
            let args = vec![
                key.into(),
                charge.window_ends_at.millis().into(),
                window_ttl(charge, entry.updated_at).into(),
                if may_charge_again { "1" } else { "" }.into(),
            ];
            let _: i64 = self.connections.run(&RELEASE_CHARGE, keys, args).await?;
        }
        Ok(())
    }

    async fn delete_outbox_entry(&self, entry: &BudgetOutboxEntry) -> Result<(), Error> {
        let outbox = self.partition_for(entry.job.as_str()).budget_outbox();
        let client = self.connections.client();
        Ok(client.hdel(outbox, entry.document_key.as_str()).await?)
    }

    /// Processes the outbox entries that crashed nodes left behind.
    pub(super) async fn recover_outbox(&self, partition: Partition<'_>) -> Result<(), Error> {
        let client = self.connections.client();
        let entries: HashMap<String, String> = client.hgetall(partition.budget_outbox()).await?;
        let now = Time::now();
        for entry in entries.values() {
            let entry: BudgetOutboxEntry = from_json(entry)?;
            if now.saturating_duration_since(entry.created_at) < OUTBOX_ENTRY_LEASE {
                continue;
            }
            if entry.is_reservation && self.read(&entry.job).await?.is_none() {
                // Without its outbox entry, the job can no longer be created.
                self.delete_outbox_entry(&entry).await?;
                self.release_reservation(&entry, false).await?;
            } else {
                self.apply_charges(&entry).await?;
            }
        }
        Ok(())
    }

    async fn balance(&self, window: &str, now: Time) -> Result<i64, Error> {
        let partition = self.partition_for(window);
        let (key, names) = (partition.budget_window(window), vec!["balance", "ends_at"]);
        let fields: Vec<Option<i64>> = self.connections.client().hmget(key, names).await?;
        Ok(match fields.as_slice() {
            [Some(balance), Some(ends_at)] if *ends_at > now.millis() => *balance,
            _ => 0,
        })
    }
}
