//! Budget windows: balances that a new job must not raise above a limit.
//!
//! The charges of a document are written to an outbox in the same step as the document. They are then
//! applied to each window at most once, under the document key, and removed from the outbox. A sweep
//! applies the entries of crashed nodes, and releases reservations whose job was never created.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use fred::interfaces::HashesInterface;
use fred::types::Value;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::jobs::{document_key, millis};
use super::keys::Partition;
use super::scripts::{CHARGE_WINDOW, RELEASE_RESERVATION};
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
    /// Whether the job has not been created yet.
    is_reservation: bool,
    /// Update time of the document. Decides which windows have ended.
    updated_at: i64,
    /// Time of the write by the system clock.
    created_at: i64,
    charges: Vec<WindowCharge>,
}

/// The charges to one window, in the order of the budget entries.
#[derive(Debug, Serialize, Deserialize)]
struct WindowCharge {
    window: String,
    ends_at: i64,
    /// Amounts with their limits.
    amounts: Vec<(i64, Option<i64>)>,
}

/// Result of [`RedisStore::reserve_budget`].
pub(super) enum Reservation {
    NotNeeded,
    Reserved { document_key: String },
    LimitExceeded { window: String },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Limits {
    Enforce,
    Ignore,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LaterCharge {
    Allow,
    /// For a job that another node may still be creating.
    Prevent,
}

#[async_trait]
impl BudgetStore for RedisStore {
    async fn balances(&self, windows: &[String], now: Time) -> Result<Vec<i64>, Error> {
        let _operation = self.connections.begin_operation()?;
        try_join_all(windows.iter().map(|window| self.balance(window, now))).await
    }
}

impl RedisStore {
    /// Returns the charges of a document. Charges to windows that have ended are left out.
    pub(super) fn outbox_entry(entries: &[BudgetEntry], job: &Job) -> BudgetOutboxEntry {
        let mut charges: Vec<WindowCharge> = Vec::new();
        for entry in entries
            .iter()
            .filter(|entry| entry.window_ends_at > job.updated_at)
        {
            let amount = (entry.amount_micros, entry.limit_micros);
            match charges
                .iter_mut()
                .find(|charge| charge.window == entry.window)
            {
                Some(charge) => charge.amounts.push(amount),
                None => charges.push(WindowCharge {
                    window: entry.window.clone(),
                    ends_at: entry.window_ends_at.millis(),
                    amounts: vec![amount],
                }),
            }
        }
        BudgetOutboxEntry {
            job: job.id.clone(),
            is_reservation: false,
            updated_at: job.updated_at.millis(),
            created_at: Time::now().millis(),
            charges,
        }
    }

    /// Reserves the charges of a new job, or returns the first window whose limit they exceed.
    pub(super) async fn reserve_budget(
        &self,
        job: &Job,
        entries: &[BudgetEntry],
    ) -> Result<Reservation, Error> {
        if entries.is_empty() {
            return Ok(Reservation::NotNeeded);
        }
        let document_key = document_key(job);
        let partition = self.partition_for(job.id.as_str());
        let entry = BudgetOutboxEntry {
            is_reservation: true,
            ..Self::outbox_entry(entries, job)
        };
        let field = (document_key.clone(), to_json(&entry)?);
        let client = self.connections.client();
        let () = client.hset(partition.budget_outbox(), field).await?;
        for charge in &entry.charges {
            let is_charged = self
                .charge_window(charge, &document_key, entry.updated_at, Limits::Enforce)
                .await?;
            if !is_charged {
                let window = charge.window.clone();
                self.release_reservation(&entry, &document_key, LaterCharge::Allow)
                    .await?;
                self.delete_outbox_entry(partition, &document_key).await?;
                return Ok(Reservation::LimitExceeded { window });
            }
        }
        Ok(Reservation::Reserved { document_key })
    }

    /// Applies the outbox entry of a commit.
    pub(super) async fn apply_outbox_entry(
        &self,
        job: &Job,
        entries: &[BudgetEntry],
    ) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let partition = self.partition_for(job.id.as_str());
        let entry = Self::outbox_entry(entries, job);
        self.apply_charges(partition, &document_key(job), &entry)
            .await
    }

    async fn apply_charges(
        &self,
        partition: Partition<'_>,
        document_key: &str,
        entry: &BudgetOutboxEntry,
    ) -> Result<(), Error> {
        for charge in &entry.charges {
            self.charge_window(charge, document_key, entry.updated_at, Limits::Ignore)
                .await?;
        }
        self.delete_outbox_entry(partition, document_key).await
    }

    /// Charges a window once for a document. Returns false if an enforced limit prevents it.
    async fn charge_window(
        &self,
        charge: &WindowCharge,
        document_key: &str,
        updated_at: i64,
        limits: Limits,
    ) -> Result<bool, Error> {
        let amounts = charge.amounts.iter();
        let total = amounts.fold(0, |total: i64, (amount, _)| total.saturating_add(*amount));
        let mut args: Vec<Value> = vec![
            updated_at.into(),
            charge.ends_at.into(),
            window_ttl(charge, updated_at).into(),
            charge.window.as_str().into(),
            document_key.into(),
            total.to_string().into(),
        ];
        if limits == Limits::Enforce {
            for (amount, limit) in &charge.amounts {
                let limit = limit.map(|limit| limit.to_string());
                args.push(amount.to_string().into());
                args.push(limit.unwrap_or_default().into());
            }
        }
        let partition = self.partition_for(&charge.window);
        let keys = vec![
            partition.budget_window(&charge.window),
            partition.budget_windows(),
        ];
        let exceeded: i64 = self
            .connections
            .run_script_replicated(&CHARGE_WINDOW, keys, args)
            .await?;
        Ok(exceeded == 0)
    }

    async fn release_reservation(
        &self,
        entry: &BudgetOutboxEntry,
        document_key: &str,
        later_charge: LaterCharge,
    ) -> Result<(), Error> {
        for charge in &entry.charges {
            let partition = self.partition_for(&charge.window);
            let may_charge_again = match later_charge {
                LaterCharge::Allow => "1",
                LaterCharge::Prevent => "",
            };
            let args = vec![
                document_key.into(),
                charge.ends_at.into(),
                window_ttl(charge, entry.updated_at).into(),
                may_charge_again.into(),
            ];
            let keys = vec![partition.budget_window(&charge.window)];
            let _: i64 = self
                .connections
                .run_script(&RELEASE_RESERVATION, keys, args)
                .await?;
        }
        Ok(())
    }

    async fn delete_outbox_entry(
        &self,
        partition: Partition<'_>,
        document_key: &str,
    ) -> Result<(), Error> {
        let client = self.connections.client();
        Ok(client.hdel(partition.budget_outbox(), document_key).await?)
    }

    /// Processes the outbox entries that crashed nodes left behind.
    pub(super) async fn recover_outbox(&self, partition: Partition<'_>) -> Result<(), Error> {
        let client = self.connections.client();
        let entries: HashMap<String, String> = client.hgetall(partition.budget_outbox()).await?;
        let now = Time::now();
        for (document_key, entry) in entries {
            let entry: BudgetOutboxEntry = from_json(&entry)?;
            let age = now.saturating_duration_since(Time::from_millis(entry.created_at));
            if age < OUTBOX_ENTRY_LEASE {
                continue;
            }
            if entry.is_reservation && self.read(&entry.job).await?.is_none() {
                // Without its outbox entry, the job can no longer be created.
                self.delete_outbox_entry(partition, &document_key).await?;
                self.release_reservation(&entry, &document_key, LaterCharge::Prevent)
                    .await?;
            } else {
                self.apply_charges(partition, &document_key, &entry).await?;
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

/// Returns the TTL of a window in milliseconds.
fn window_ttl(charge: &WindowCharge, updated_at: i64) -> String {
    let ends_at = Time::from_millis(charge.ends_at);
    let remaining = ends_at.saturating_duration_since(Time::from_millis(updated_at));
    millis(remaining + WINDOW_GRACE_PERIOD)
}
